// The page is usable once the gallery is there; plotly is evaluated after that.

startGallery();
startTables();
paintStrips();
requestAnimationFrame(() => setTimeout(() => {
  startScatter();
  startFigures();
}));
