// The page is usable once the gallery is there; plotly is evaluated after that.

startGallery();
startTables();
paintStrips();
performance.mark("usable");
requestAnimationFrame(() =>
  setTimeout(() => {
    startScatter();
    startFigures();
  }),
);
