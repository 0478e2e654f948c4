// Figures, drawn by plotly as SVG from descriptions of their traces, in the colours of the page.

let plotly = null; // a promise of window.Plotly
const drawn = new Map(); // figure's place: how to draw it again

/** A promise of plotly. Its source is text until then: to evaluate it takes a second or so. */
function loadPlotly() {
  plotly ??= new Promise((resolve) => {
    const source = document.getElementById("plotly-source");
    document.head.append(element("script", { textContent: source.textContent }));
    source.textContent = "";
    resolve(window.Plotly);
  });
  return plotly;
}

/** Draw every figure when it comes near to the window, and again when light and dark change. */
function startFigures() {
  const observer = new IntersectionObserver(
    (entries) => {
      for (const { target, isIntersecting } of entries) {
        if (!isIntersecting) continue;
        observer.unobserve(target);
        draw(target, () => plotFigure(target));
      }
    },
    { rootMargin: "600px" },
  );
  for (const figure of document.querySelectorAll("figure[data-figure]")) observer.observe(figure);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
    for (const plot of drawn.values()) plot();
  });
}

async function draw(place, plot) {
  await loadPlotly();
  drawn.set(place, plot);
  await plot();
}

/** A colour by its name, as page.css defines it for light and for dark. */
function colorOf(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
}

/** A colour #rrggbb with an opacity of 0 to 1. */
function transparent(color, opacity) {
  return (
    color +
    Math.round(255 * opacity)
      .toString(16)
      .padStart(2, "0")
  );
}

/** A text for plotly, which takes a few tags for markup. */
function plainText(text) {
  const entities = { "&": "&amp;", "<": "&lt;", ">": "&gt;" };
  return String(text ?? "").replace(/[&<>]/g, (letter) => entities[letter]);
}

function shorten(text, most) {
  return text.length <= most ? text : `${text.slice(0, most - 1)}\u2026`;
}

const PLOT_CONFIG = { displayModeBar: false, responsive: true, showTips: false };

/** What all plots have in common. */
function makeLayout() {
  return {
    paper_bgcolor: "rgba(0,0,0,0)",
    plot_bgcolor: "rgba(0,0,0,0)",
    font: { family: getComputedStyle(document.body).fontFamily, size: 13, color: colorOf("text") },
    margin: { l: 56, r: 16, t: 8, b: 48 },
    legend: { orientation: "h", x: 0, y: 1.02, yanchor: "bottom" },
    hoverlabel: {
      bgcolor: colorOf("raised"),
      bordercolor: colorOf("line"),
      font: { color: colorOf("text") },
    },
    dragmode: false,
    shapes: [],
    annotations: [],
  };
}

function makeAxis({ title, type, format, categories } = {}) {
  const axis = {
    title: { text: plainText(title), standoff: 8 },
    gridcolor: colorOf("grid"),
    linecolor: colorOf("line"),
    zerolinecolor: colorOf("line"),
    automargin: true,
    fixedrange: true,
  };
  if (type) axis.type = type;
  if (format === "percent") axis.tickformat = "~%"; // as many digits as it takes
  if (categories) {
    axis.categoryorder = "array";
    axis.categoryarray = categories.map(plainText);
  }
  return axis;
}

function plotFigure(place) {
  const figure = report.figures[place.dataset.figure];
  const canvas = place.querySelector(".canvas");
  const layout = { ...makeLayout(), xaxis: makeAxis(figure.x), yaxis: makeAxis(figure.y) };
  if (figure.y2)
    layout.yaxis2 = { ...makeAxis(figure.y2), overlaying: "y", side: "right", showgrid: false };
  for (const line of figure.lines ?? []) addLine(layout, line);
  const traces = figure.matrix ? [makeMatrix(figure.matrix)] : figure.traces.map(makeTrace);
  if (figure.matrix) layout.yaxis.autorange = "reversed"; // the first row stands at the top
  layout.showlegend = traces.filter((trace) => trace.showlegend !== false).length > 1;
  if (traces.some((trace) => trace.type === "bar")) layout.barmode = "group";
  return window.Plotly.react(canvas, traces, layout, PLOT_CONFIG);
}

/** A line across the plot, with a text at its end. */
function addLine(layout, { axis, value, text }) {
  const [along, across] = axis === "x" ? ["y", "x"] : ["x", "y"];
  const muted = colorOf("muted");
  layout.shapes.push({
    type: "line",
    [`${across}0`]: value,
    [`${across}1`]: value,
    [`${along}0`]: 0,
    [`${along}1`]: 1,
    [`${along}ref`]: "paper",
    line: { color: muted, width: 1, dash: "dash" },
  });
  if (!text) return;
  const place =
    axis === "x"
      ? { x: value, y: 1, yref: "paper", yanchor: "top" }
      : { x: 1, xref: "paper", y: value, yanchor: "bottom" };
  layout.annotations.push({
    ...place,
    text: plainText(text),
    showarrow: false,
    xanchor: axis === "x" ? "left" : "right",
    font: { size: 11, color: muted },
  });
}

const KINDS = {
  line: (trace, color) => ({
    ...base(trace, color),
    mode: "lines",
    line: { color, width: 2, dash: trace.dash ? "dot" : "solid" },
  }),
  points: (trace, color) => ({
    ...base(trace, color),
    mode: trace.joined ? "lines+markers" : "markers",
    marker: { color, size: 7 },
    ...errorBars(trace, color),
  }),
  bars: (trace, color) => ({
    ...base(trace, color),
    type: "bar",
    orientation: trace.horizontal ? "h" : "v",
    marker: { color },
    ...errorBars(trace, colorOf("text")),
  }),
  steps: ({ x, y, ...trace }, color) => ({
    ...base({ ...trace, x: [x[0], ...x], y: [0, ...y, 0] }, color),
    mode: "lines",
    line: { color, width: 1.5, shape: "hv" },
    fill: "tozeroy",
    fillcolor: transparent(color, 0.2),
  }),
  band: ({ x, low, high, ...trace }, color) => ({
    ...base({ ...trace, x: [...x, ...x.toReversed()], y: [...high, ...low.toReversed()] }, color),
    mode: "lines",
    line: { width: 0 },
    fill: "toself",
    fillcolor: transparent(color, 0.2),
    hoverinfo: "skip",
    showlegend: false, // the figure's text says what it is
  }),
};

function makeTrace(trace) {
  return KINDS[trace.kind](trace, colorOf(trace.color ?? "series1"));
}

function base({ name, x, y, axis }) {
  const texts = (values) =>
    values.map((value) => (typeof value === "string" ? plainText(value) : value));
  const yaxis = axis === 2 ? { yaxis: "y2" } : {};
  return {
    type: "scatter",
    name: plainText(shorten(name ?? "", 60)),
    x: texts(x),
    y: texts(y),
    ...yaxis,
  };
}

/** low and high are the ends of the bars, in the units of the axis. */
function errorBars({ x, y, low, high, horizontal }, color) {
  if (!low || !high) return {};
  const values = horizontal ? x : y;
  const bars = {
    type: "data",
    symmetric: false,
    array: values.map((value, number) => high[number] - value),
    arrayminus: values.map((value, number) => value - low[number]),
    color,
    thickness: 1.2,
    width: 3,
  };
  return { [horizontal ? "error_x" : "error_y"]: bars };
}

const DARKEST = 0.3; // small numbers stay pale, so that chance does not look like a pattern

function makeMatrix({ x, y, z, text }) {
  const highest = z.flat().reduce((most, value) => Math.max(most, value ?? 0), DARKEST);
  return {
    type: "heatmap",
    x: x.map(plainText),
    y: y.map(plainText),
    z,
    text,
    texttemplate: text ? "%{text}" : "",
    hoverinfo: "x+y+z",
    xgap: 2,
    ygap: 2,
    colorscale: [
      [0, colorOf("matrix-low")],
      [1, colorOf("matrix-high")],
    ],
    zmin: 0,
    zmax: highest,
    showscale: false,
  };
}
