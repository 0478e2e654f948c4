// The panel of one image: a dialog with all that is known of it.

const panel = { dialog: null, row: null };

function openPanel(row) {
  panel.dialog ??= makePanel();
  const pressed = document.activeElement?.id; // "Next" keeps the focus when the next image is shown
  fillPanel(row);
  if (!panel.dialog.open) panel.dialog.showModal();
  panel.dialog.scrollTop = 0;
  const button =
    ["panel-previous", "panel-next"].includes(pressed) && document.getElementById(pressed);
  (button && !button.disabled ? button : document.getElementById("panel-title")).focus();
}

function makePanel() {
  const dialog = element("dialog", {
    id: "panel",
    className: "panel",
    "aria-labelledby": "panel-title",
  });
  document.body.append(dialog);
  dialog.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (step && !event.altKey && !event.ctrlKey && !event.metaKey) openNext(step);
  });
  dialog.addEventListener("click", (event) => {
    if (event.target === dialog) dialog.close(); // a click beside the panel
  });
  return dialog;
}

/** Open the image that comes next in the gallery's order. */
function openNext(step) {
  const next = gallery.rows[gallery.rows.indexOf(panel.row) + step];
  if (gallery.rows.includes(panel.row) && next !== undefined) openPanel(next);
}

function fillPanel(row) {
  panel.row = row;
  const details = report.details?.[row] ?? {};
  const parts = [
    makePanelHead(row),
    element(
      "div",
      { className: "summary" },
      element("div", { className: "portrait" }, pictureOf(row, describe(row))),
      makeMainFacts(row),
    ),
    makeRank(row),
    makeSeeds(row),
    makeViews(details),
    makeNeighbors(details),
    makeAllFacts(row),
  ];
  panel.dialog.replaceChildren(...parts.filter((part) => part !== null));
}

function makePanelHead(row) {
  const place = gallery.rows.indexOf(row);
  const button = (id, text, label, action, disabled) => {
    const node = element("button", { id, type: "button", "aria-label": label, disabled }, text);
    node.addEventListener("click", action);
    return node;
  };
  const isListed = place >= 0;
  const title = element("h2", { id: "panel-title", tabIndex: -1 }, describe(row));
  const where = isListed
    ? `${(place + 1).toLocaleString("en")} of ${gallery.rows.length.toLocaleString("en")} chosen images`
    : "";
  return element(
    "header",
    {},
    element("div", {}, title, element("p", { className: "note" }, where)),
    element(
      "div",
      { className: "buttons" },
      button("panel-previous", "\u2039", "Previous image", () => openNext(-1), place <= 0),
      button(
        "panel-next",
        "\u203a",
        "Next image",
        () => openNext(1),
        !isListed || place === gallery.rows.length - 1,
      ),
      button("panel-close", "\u2715", "Close", () => panel.dialog.close(), false),
    ),
  );
}

/** The values that say most of an image, beside its picture. */
function makeMainFacts(row) {
  const { f, g } = report.axes ?? {};
  const keys = [
    report.headline_score,
    report.outstanding,
    "stderr",
    f?.key,
    g?.key,
    "outcome",
    "outcome_seeds",
  ];
  return makeFacts(
    row,
    columns.filter(({ key }) => keys.includes(key)),
  );
}

function makeFacts(row, shown) {
  const facts = shown
    .filter(({ key }) => valueOf(row, key) !== null)
    .map((column) => {
      const meaning = column.meaning
        ? element("span", { className: "note" }, column.meaning)
        : null;
      const value = element("span", { className: "value" }, formatValue(row, column));
      return element("div", {}, element("dt", {}, column.title), element("dd", {}, value, meaning));
    });
  return element("dl", { className: "facts" }, ...facts);
}

function makeAllFacts(row) {
  return element("details", {}, element("summary", {}, "All values"), makeFacts(row, columns));
}

/** A bar: the rank of an image and its interval among all candidates. */
function makeRank(row) {
  const [rank, low, high] = ["rank", "rank_low", "rank_high"].map((key) => valueOf(row, key));
  if (rank === null || low === null || high === null) return null;
  const most = images.rank.reduce((a, b) => Math.max(a, b ?? 0), 1);
  const percent = (value) => `${(100 * (value - 1)) / Math.max(1, most - 1)}%`;
  const bar = element("span", { className: "interval" });
  bar.style.left = percent(low);
  bar.style.right = `calc(100% - ${percent(high)})`;
  const mark = element("span", { className: "mark" });
  mark.style.left = percent(rank);
  const sentence = `Rank ${rank} of ${most}; 95 % interval ${low} to ${high}, by the reliability of the ranking.`;
  return element(
    "div",
    { className: "rank" },
    element("h3", {}, "Rank among candidates"),
    element("div", { className: "track", role: "img", "aria-label": sentence }, bar, mark),
    element("p", { className: "note" }, sentence),
  );
}

/** Marks: the score of an image in every pair, on the line of all pairs' scores. */
function makeSeeds(row) {
  const scores = report.per_seed?.[row];
  if (!scores || scores.length < 2) return null;
  panel.range ??= rangeOf(report.per_seed.flat());
  const [low, high] = panel.range;
  const marks = scores
    .filter((score) => score !== null)
    .map((score) => {
      const mark = element("span", { className: "mark" });
      mark.style.left = `${(100 * (score - low)) / (high - low || 1)}%`;
      return mark;
    });
  const zero = element("span", { className: "zero" });
  zero.style.left = `${(100 * (0 - low)) / (high - low || 1)}%`;
  const each = scores.map(
    (score, place) => `${report.seeds?.[place] ?? place}: ${formatNumber(score, {})}`,
  );
  const { title } = columnOf[report.headline_score];
  const sentence = `The ${title} by seed: ${each.join(", ")}. The thin line is 0; the scale ends at the lowest and the highest of all candidates.`;
  return element(
    "div",
    {},
    element("h3", {}, "Score in each pair of encoders"),
    element(
      "div",
      { className: "track thin", role: "img", "aria-label": sentence },
      zero,
      ...marks,
    ),
    element("p", { className: "note" }, sentence),
  );
}

function rangeOf(values) {
  return values.reduce(
    ([low, high], value) => [Math.min(low, value ?? 0), Math.max(high, value ?? 0)],
    [0, 0],
  );
}

function makeViews({ views }) {
  const note = views?.length ? report.views_note : report.no_views_note;
  if (!note) return null;
  const items = (views ?? []).map((tile, view) =>
    element("li", {}, tilePicture(tile, `View ${view + 1}`)),
  );
  return element(
    "div",
    {},
    element("h3", {}, "Views, as scored"),
    items.length ? element("ul", { className: "strip" }, ...items) : null,
    element("p", { className: "note" }, note),
  );
}

function makeNeighbors({ neighbors }) {
  const title = element("h3", {}, "Nearest neighbours, by pixels");
  if (!neighbors?.length)
    return element("div", {}, title, element("p", { className: "note" }, "None were looked for."));
  return element(
    "div",
    {},
    title,
    element(
      "ul",
      { className: "strip neighbors" },
      ...neighbors.map(readNeighbor).map(makeNeighbor),
    ),
    element("p", { className: "note" }, report.neighbors_note ?? ""),
  );
}

function makeNeighbor(neighbor) {
  const kind = className(neighbor.label);
  const name = `${neighbor.subset} ${neighbor.index}`;
  const distance = `distance ${Number(neighbor.distance.toPrecision(3))}`;
  const content = [
    tilePicture(neighbor.picture, [name, kind, distance].filter(Boolean).join(", ")),
    element("span", { className: "name" }, name),
    kind === null ? null : element("span", { className: "name" }, kind),
    element("span", { className: "note" }, distance),
    neighbor.kind ? element("strong", { className: "badge" }, neighbor.kind) : null,
  ];
  const row = neighbor.row ?? null;
  if (row === null) return element("li", {}, element("div", { className: "neighbor" }, ...content));
  const button = element("button", { type: "button", className: "neighbor" }, ...content);
  button.addEventListener("click", () => openPanel(row));
  return element("li", {}, button);
}
