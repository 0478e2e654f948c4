// The data of the page: columns of equal length, one value for every image. A row is an image.

document.documentElement.classList.remove("no-script");
const report = JSON.parse(document.getElementById("report-data").textContent);
const images = report.images ?? {};
const columns = report.columns ?? [];
const columnOf = Object.fromEntries(columns.map((column) => [column.key, column]));
const rowCount = images.index?.length ?? 0;
const allRows = Array.from({ length: rowCount }, (_, row) => row);

/** A value of an image, null if it has none. */
function valueOf(row, key) {
  return images[key]?.[row] ?? null;
}

/** A neighbour as an object, from the list of its values. If it has a row, the columns of that row
 * say the rest. */
function readNeighbor(values) {
  const neighbor = Object.fromEntries(
    report.neighbor_keys.map((key, place) => [key, values[place] ?? null]),
  );
  const { row } = neighbor;
  if (row === null) return neighbor;
  for (const key of ["split", "index", "subset", "label"]) neighbor[key] = valueOf(row, key);
  return { ...neighbor, file: valueOf(row, "file"), picture: report.pictures.tile[row] };
}

/** The name of a class; null if an image has no label. */
function className(label) {
  return label === null || label < 0 ? null : (report.classes[label] ?? `class ${label}`);
}

function classOf(row) {
  return className(valueOf(row, "label"));
}

/** Numbers are shown as their column says; p and q with two significant digits. */
function formatNumber(value, column) {
  if (value === null) return "none";
  let text;
  if (column.type === "integer") text = value.toLocaleString("en");
  else if (column.kind === "p") text = formatProbability(value);
  else text = value.toFixed(column.digits ?? 4);
  return text.replace(/^-/, "\u2212");
}

function formatProbability(value) {
  return value < 0.001 && value > 0 ? value.toExponential(1) : String(Number(value.toPrecision(2)));
}

/** A value of an image as a person reads it. */
function formatValue(row, column) {
  const value = valueOf(row, column.key);
  if (column.type === "class") return className(value) ?? "none";
  if (column.type === "subset") return report.subsets[value]?.title ?? value;
  if (value === null) return "none";
  if (column.type === "outcome") return `${value} (${report.outcomes[value]})`;
  return typeof value === "number" ? formatNumber(value, column) : String(value);
}

/** What an image is called in a sentence: "candidate 12, Trouser". */
function describe(row) {
  const name = `${valueOf(row, "subset")} ${valueOf(row, "index")}`;
  const kind = classOf(row);
  return kind === null ? name : `${name}, ${kind}`;
}

/** Numbers by size, texts by the alphabet; what has no value comes last in both directions. */
function compare(a, b, direction) {
  if (a === null || b === null) return (a === null) - (b === null);
  if (typeof a === "number" && typeof b === "number") return direction * (a - b);
  return direction * String(a).localeCompare(String(b), "en", { numeric: true });
}

/** An HTML element of properties, attributes, and children: elements and texts, never markup. */
function element(name, properties = {}, ...children) {
  const node = document.createElement(name);
  for (const [key, value] of Object.entries(properties)) {
    if (key === "data") Object.assign(node.dataset, value);
    else if (key in node) node[key] = value;
    else node.setAttribute(key, value);
  }
  node.append(...children.filter((child) => child !== null));
  return node;
}
