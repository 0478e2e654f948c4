// Small pictures, cut out of sheets. A sheet is the text of a script element; it is decoded when one
// of its tiles is first shown.

const MOST_SHEETS = 12; // decoded at a time, about 4 MB of memory each
const MOST_TILES = 4000;
const sheets = new Map();
const tiles = new Map();

/** Forget the oldest entries of a Map until `most` are left. */
function shrink(map, most) {
  for (const key of map.keys()) {
    if (map.size <= most) return;
    map.delete(key);
  }
}

/** A promise of the picture of a sheet. */
function decodeSheet(sheet) {
  if (!sheets.has(sheet)) {
    const picture = new Image();
    picture.src = document.getElementById(`sheet-${sheet}`).textContent.trim();
    sheets.set(
      sheet,
      picture.decode().then(() => picture),
    );
    shrink(sheets, MOST_SHEETS);
  }
  return sheets.get(sheet);
}

/** A promise of a tile's data URI. */
async function tileUri([sheet, place]) {
  const key = `${sheet} ${place}`;
  if (!tiles.has(key)) {
    const picture = await decodeSheet(sheet);
    const { size, columns: across } = report.sheet_info[sheet];
    const canvas = element("canvas", { width: size, height: size });
    const [left, top] = [(place % across) * size, Math.floor(place / across) * size];
    canvas.getContext("2d").drawImage(picture, left, top, size, size, 0, 0, size, size);
    tiles.set(key, canvas.toDataURL());
    shrink(tiles, MOST_TILES);
  }
  return tiles.get(key);
}

/** An image element of a tile. If the picture is not in this file (null), a box says so. */
function tilePicture(tile, alt) {
  if (!tile) {
    const label = `${alt}; picture not embedded`;
    return element(
      "span",
      { className: "tile absent", role: "img", "aria-label": label },
      "no picture",
    );
  }
  const { size } = report.sheet_info[tile[0]];
  const picture = element("img", { className: "tile", alt, width: size, height: size });
  tileUri(tile).then((uri) => (picture.src = uri));
  return picture;
}

function pictureOf(row, alt) {
  return tilePicture(report.pictures.tile[row], alt);
}

/** Paint the strips of pictures that stand in the page's text. */
function paintStrips() {
  for (const place of document.querySelectorAll("span.tile[data-tile]")) {
    const { sheet, tile } = place.dataset;
    const alt = place.getAttribute("aria-label") ?? "";
    place.replaceWith(tilePicture([Number(sheet), Number(tile)], alt));
  }
}
