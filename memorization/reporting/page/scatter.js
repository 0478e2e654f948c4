// The scatter plot of all images. A click on a point opens its image; so does Enter at the point
// that the arrow keys have chosen. Images that the gallery's filters leave out are faint.

const MOST_POINTS = 8000; // of the chosen images
const MOST_FAINT = 3000;
const scatter = { canvas: null, axes: {}, rows: [], current: null };

function startScatter() {
  const place = document.getElementById("scatter");
  if (!place || !rowCount || !report.axes) return;
  const keys = "Arrow keys move from point to point, Enter opens the image.";
  scatter.canvas = element("div", {
    className: "canvas",
    tabIndex: 0,
    role: "application",
    "aria-label": `Scatter plot of images. ${keys}`,
  });
  const hint = element("span", { className: "note" }, "The image of a point is shown here.");
  scatter.preview = element("div", { className: "preview", role: "status" }, hint);
  scatter.note = element("p", { className: "note" });
  const parts = [
    element(
      "div",
      { className: "filters" },
      makeAxisMenu("f", "Across"),
      makeAxisMenu("g", "Upwards"),
    ),
    scatter.canvas,
    scatter.preview,
    report.band ? element("p", { className: "note" }, `${report.band.meaning}.`) : null,
    element(
      "p",
      { className: "note" },
      `A click on a point opens the image. ${keys} Faint points are images that the filters leave out.`,
    ),
    scatter.note,
  ];
  place.replaceChildren(...parts.filter((part) => part !== null));
  scatter.canvas.addEventListener("keydown", moveByKey);
  let waiting;
  onChoice(() => {
    clearTimeout(waiting);
    waiting = setTimeout(() => drawn.has(place) && plotScatter(), 150);
  });
  const observer = new IntersectionObserver(
    (entries) => {
      if (!entries.some((entry) => entry.isIntersecting)) return;
      observer.disconnect();
      draw(place, plotScatter).then(listenToPoints);
    },
    { rootMargin: "300px" },
  );
  observer.observe(place);
}

function makeAxisMenu(name, title) {
  const { key } = report.axes[name];
  const numbers = columns.filter((column) => column.type === "number" || column.type === "integer");
  const options = numbers.map((column) => element("option", { value: column.key }, column.title));
  const menu = element("select", { id: `axis-${name}` }, ...options);
  menu.value = key;
  menu.addEventListener("change", () => drawn.size && plotScatter());
  scatter.axes[name] = menu;
  return element("label", { className: "field" }, element("span", {}, title), menu);
}

function titleOf(key) {
  const axis = Object.values(report.axes).find((candidate) => candidate.key === key);
  return axis?.title ?? columnOf[key].title;
}

/** The coordinates of an image in the plot; null if it has none. */
function pointOf(row) {
  const [x, y] = [valueOf(row, scatter.axes.f.value), valueOf(row, scatter.axes.g.value)];
  return x === null || y === null ? null : [x, y];
}

/** At most so many of some rows, evenly from all of them. */
function thin(rows, most) {
  if (rows.length <= most) return rows;
  return Array.from({ length: most }, (_, place) => rows[Math.floor((place * rows.length) / most)]);
}

async function plotScatter() {
  const chosen = new Set(gallery.rows);
  const [points, others] = [true, false].map((isChosen) =>
    allRows.filter((row) => chosen.has(row) === isChosen && pointOf(row)),
  );
  scatter.rows = thin(points, MOST_POINTS);
  const faint = thin(others, MOST_FAINT);
  sayWhatIsDrawn(points.length, others.length);
  const traces = [];
  for (const subset of Object.keys(report.subsets)) {
    const of = (rows) => rows.filter((row) => valueOf(row, "subset") === subset);
    const title = report.subsets[subset].title;
    traces.unshift(makePoints(of(faint), subset, 0.35, title)); // below the chosen ones
    traces.push(makePoints(of(scatter.rows), subset, 0.8, title));
  }
  const layout = {
    ...makeLayout(),
    xaxis: { ...makeAxis({ title: titleOf(scatter.axes.f.value) }), fixedrange: false },
    yaxis: { ...makeAxis({ title: titleOf(scatter.axes.g.value) }), fixedrange: false },
    hovermode: "closest",
    dragmode: matchMedia("(pointer: coarse)").matches ? false : "zoom",
  };
  const filled = traces.filter((trace) => trace.x.length);
  filled.push(...makeBand(filled), makeRing());
  await window.Plotly.react(scatter.canvas, filled, layout, PLOT_CONFIG);
}

function sayWhatIsDrawn(points, others) {
  const drawnOf = (count, most) =>
    `${Math.min(count, most).toLocaleString("en")} of ${count.toLocaleString("en")}`;
  const parts = [];
  if (points > MOST_POINTS) parts.push(`${drawnOf(points, MOST_POINTS)} chosen images`);
  if (others > MOST_FAINT) parts.push(`${drawnOf(others, MOST_FAINT)} others`);
  scatter.note.textContent = parts.length ? `Drawn are ${parts.join(" and ")}.` : "";
}

function makePoints(rows, subset, opacity, title) {
  const points = rows.map(pointOf);
  const size = rows.length > 3000 ? 4 : rows.length > 800 ? 5 : 7;
  return {
    type: "scatter",
    mode: "markers",
    name: plainText(shorten(opacity < 0.5 ? `${title}, left out` : title, 40)),
    x: points.map(([x]) => x),
    y: points.map(([, y]) => y),
    customdata: rows,
    hoverinfo: "none",
    marker: { color: colorOf(subset), size, opacity },
  };
}

/** The lines y = x + value that hold most of the images that no encoder saw. */
function makeBand(traces) {
  const { f, g } = scatter.axes;
  if (!report.band || f.value !== report.axes.f.key || g.value !== report.axes.g.key) return [];
  let [low, high] = [Infinity, -Infinity];
  for (const { x } of traces)
    for (const value of x) [low, high] = [Math.min(low, value), Math.max(high, value)];
  const color = colorOf("text");
  return ["low", "middle", "high"].map((name) => {
    const value = report.band[name];
    return {
      type: "scatter",
      mode: "lines",
      x: [low, high],
      y: [low + value, high + value],
      hoverinfo: "skip",
      showlegend: false,
      line: { color, width: 1, dash: name === "middle" ? "solid" : "dash" },
    };
  });
}

/** A ring around the point that the arrow keys have chosen. */
function makeRing() {
  const point = scatter.current === null ? null : pointOf(scatter.current);
  return {
    type: "scatter",
    mode: "markers",
    showlegend: false,
    hoverinfo: "skip",
    x: point ? [point[0]] : [],
    y: point ? [point[1]] : [],
    marker: { symbol: "circle-open", size: 16, color: colorOf("text"), line: { width: 3 } },
  };
}

function listenToPoints() {
  const rowOf = (event) =>
    event.points.map((point) => point.customdata).find((row) => Number.isInteger(row));
  scatter.canvas.on(
    "plotly_click",
    (event) => rowOf(event) !== undefined && openPanel(rowOf(event)),
  );
  scatter.canvas.on(
    "plotly_hover",
    (event) => rowOf(event) !== undefined && showPreview(rowOf(event)),
  );
}

function showPreview(row) {
  const text = ["f", "g"].map((name) => {
    const column = columnOf[scatter.axes[name].value];
    return `${column.title} ${formatValue(row, column)}`;
  });
  scatter.preview.replaceChildren(
    pictureOf(row, ""),
    element("span", {}, `${describe(row)}: ${text.join(", ")}`),
  );
}

/** Right and left go to the next point across, up and down to the next one upwards. */
function moveByKey(event) {
  const moves = { ArrowRight: [0, 1], ArrowLeft: [0, -1], ArrowUp: [1, 1], ArrowDown: [1, -1] };
  if (event.key === "Enter" || event.key === " ") {
    if (scatter.current !== null) openPanel(scatter.current);
  } else if (moves[event.key] && scatter.rows.length) moveTo(...moves[event.key]);
  else return;
  event.preventDefault();
}

function moveTo(axis, step) {
  const ordered = scatter.rows.toSorted((a, b) => pointOf(a)[axis] - pointOf(b)[axis] || a - b);
  const place = ordered.indexOf(scatter.current);
  const next = place < 0 ? (step > 0 ? 0 : ordered.length - 1) : place + step;
  scatter.current = ordered[Math.min(Math.max(next, 0), ordered.length - 1)];
  const { x, y } = makeRing();
  const { data } = scatter.canvas; // once it is drawn
  if (data) window.Plotly.restyle(scatter.canvas, { x: [x], y: [y] }, [data.length - 1]);
  showPreview(scatter.current);
}
