// The gallery: controls that choose and order images, pages of them, and a download.

const gallery = { rows: [], page: 0, listeners: [], fields: {}, nodes: {} };
const outstandingKey = report.outstanding ?? "q";
const PAGE_SIZES = [24, 60, 120, 240];

function startGallery() {
  const place = document.getElementById("gallery");
  if (!place || !rowCount) return;
  place.replaceChildren(
    makeControls(),
    makeStatus(),
    element("ul", { id: "cards", className: "cards" }),
    makePager(),
  );
  if (report.pictures.note) place.append(element("p", { className: "note" }, report.pictures.note));
  chooseRows();
}

/** Call listen(rows) now and whenever other images are chosen. */
function onChoice(listen) {
  gallery.listeners.push(listen);
  listen(gallery.rows);
}

function makeControls() {
  const form = element("form", {
    id: "filters",
    className: "filters",
    role: "search",
    "aria-label": "Images",
  });
  const numbers = columns.filter((column) => column.type === "number" || column.type === "integer");
  const present = (key) =>
    [...new Set(images[key] ?? [])].filter((value) => value !== null && value !== -1);
  const labels = present("label")
    .sort((a, b) => a - b)
    .map((label) => [label, className(label)]);
  const subsets = present("subset").map((name) => [name, report.subsets[name]?.title ?? name]);
  const outcomes = Object.keys(report.outcomes ?? {}).map((name) => [name, name]);
  const start = report.headline_score;
  form.append(
    makeInput("text", "Find", {
      type: "search",
      placeholder: "index, class or file",
      spellcheck: false,
    }),
    makeMenu(
      "subset",
      "Subset",
      [["", "all"], ...subsets],
      subsets.some(([name]) => name === "candidate") ? "candidate" : "",
    ),
    makeMenu("label", "Class", [["", "all"], ...labels], ""),
    makeMenu("outcome", "Deja Vu", [["", "all"], ...outcomes], ""),
    makeMenu(
      "sort",
      "Sort by",
      numbers.map((column) => [column.key, column.title]),
      start,
    ),
    makeMenu(
      "order",
      "Order",
      [
        ["descending", "highest first"],
        ["ascending", "lowest first"],
      ],
      orderOf(start),
    ),
    makeInput("low", "At least", { type: "number", step: "any", inputMode: "decimal" }),
    makeInput("high", "At most", { type: "number", step: "any", inputMode: "decimal" }),
    element("button", { type: "reset" }, "Reset"),
  );
  gallery.fields.outcome.closest("label").hidden = outcomes.length === 0;
  gallery.fields.label.closest("label").hidden = labels.length === 0;
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("input", (event) => {
    if (event.target.name === "sort") gallery.fields.order.value = orderOf(event.target.value);
    chooseRows();
  });
  form.addEventListener("reset", () => setTimeout(chooseRows)); // after the fields are reset
  return form;
}

function orderOf(key) {
  const { kind, high_first: highFirst } = columnOf[key];
  return kind === "p" || highFirst === false ? "ascending" : "descending";
}

function makeInput(name, title, properties) {
  gallery.fields[name] = element("input", { name, autocomplete: "off", ...properties });
  return element("label", { className: "field" }, element("span", {}, title), gallery.fields[name]);
}

function makeMenu(name, title, choices, chosen) {
  const options = choices.map(([value, text]) => {
    const option = element("option", { value: String(value) }, text);
    option.defaultSelected = value === chosen;
    return option;
  });
  gallery.fields[name] = element("select", { name }, ...options);
  return element("label", { className: "field" }, element("span", {}, title), gallery.fields[name]);
}

function makeStatus() {
  gallery.nodes.status = element("p", { id: "shown", className: "status", role: "status" });
  const frames =
    "A frame: the score is rare among images that no encoder was trained on (q < 0.1).";
  const note = images[outstandingKey] ? element("p", { className: "note" }, frames) : null;
  const button = element(
    "button",
    { type: "button", id: "download-images" },
    "Download these as CSV",
  );
  button.addEventListener("click", () => save(report.downloads.images, imageLines(gallery.rows)));
  return element("div", { className: "bar" }, gallery.nodes.status, button, note);
}

function makePager() {
  const { nodes } = gallery;
  const button = (name, text, label, page) => {
    nodes[name] = element(
      "button",
      { type: "button", id: `page-${name}`, "aria-label": label },
      text,
    );
    nodes[name].addEventListener("click", () => turnTo(page()));
  };
  button("first", "\u00ab", "First page", () => 0);
  button("previous", "\u2039 Previous", "Previous page", () => gallery.page - 1);
  button("next", "Next \u203a", "Next page", () => gallery.page + 1);
  button("last", "\u00bb", "Last page", () => Infinity);
  nodes.number = element("input", {
    id: "page-number",
    type: "number",
    min: 1,
    step: 1,
    "aria-label": "Page",
  });
  nodes.number.addEventListener("change", () => turnTo(nodes.number.valueAsNumber - 1));
  nodes.count = element("span");
  const sizes = PAGE_SIZES.map((size) =>
    element("option", { value: String(size) }, `${size} a page`),
  );
  nodes.size = element("select", { id: "page-size", "aria-label": "Images a page" }, ...sizes);
  nodes.size.value = "60";
  nodes.size.addEventListener("change", () => turnTo(0));
  const number = element("span", { className: "page-number" }, nodes.number, nodes.count);
  return element(
    "nav",
    { className: "pager", "aria-label": "Pages of images" },
    nodes.first,
    nodes.previous,
    number,
    nodes.next,
    nodes.last,
    nodes.size,
  );
}

/** Choose the images that pass the filters, in the order of the sort menu. */
function chooseRows() {
  const { sort, order } = gallery.fields;
  const direction = order.value === "ascending" ? 1 : -1;
  gallery.rows = allRows.filter(makeFilter());
  gallery.rows.sort(
    (a, b) => compare(valueOf(a, sort.value), valueOf(b, sort.value), direction) || a - b,
  );
  turnTo(0);
  for (const listen of gallery.listeners) listen(gallery.rows);
}

/** Whether an image passes all filters: a function of its row. */
function makeFilter() {
  const { text, subset, label, outcome, sort, low, high } = gallery.fields;
  const words = text.value.toLowerCase().split(/\s+/).filter(Boolean);
  const tests = [];
  if (subset.value) tests.push((row) => valueOf(row, "subset") === subset.value);
  if (label.value) tests.push((row) => valueOf(row, "label") === Number(label.value));
  if (outcome.value) tests.push((row) => valueOf(row, "outcome") === outcome.value);
  const number = (row) => valueOf(row, sort.value) ?? NaN; // no comparison with NaN is true
  if (low.value) tests.push((row) => number(row) >= low.valueAsNumber);
  if (high.value) tests.push((row) => number(row) <= high.valueAsNumber);
  for (const word of words) tests.push((row) => hasWord(row, word));
  return (row) => tests.every((test) => test(row));
}

/** Whether a word is the index of an image, or a part of its class's or file's name. */
function hasWord(row, word) {
  if (String(valueOf(row, "index")) === word) return true;
  return [classOf(row), valueOf(row, "file")].some((text) => text?.toLowerCase().includes(word));
}

/** Show a page of the chosen images, the nearest one that there is. */
function turnTo(page) {
  const { nodes, rows } = gallery;
  const size = Number(nodes.size?.value ?? 60);
  const last = Math.max(0, Math.ceil(rows.length / size) - 1);
  gallery.page = Math.min(Math.max(Math.round(page) || 0, 0), last);
  const first = gallery.page * size;
  const shown = rows.slice(first, first + size);
  document.getElementById("cards")?.replaceChildren(...shown.map(makeCard));
  const count = (number) => number.toLocaleString("en");
  nodes.status.textContent = shown.length
    ? `Images ${count(first + 1)} to ${count(first + shown.length)} of ${count(rows.length)}`
    : "No image passes these filters.";
  nodes.number.value = gallery.page + 1;
  nodes.number.max = last + 1;
  nodes.count.textContent = ` of ${count(last + 1)}`;
  nodes.first.disabled = nodes.previous.disabled = gallery.page === 0;
  nodes.next.disabled = nodes.last.disabled = gallery.page === last;
}

function makeCard(row) {
  const column = columnOf[gallery.fields.sort.value];
  const value = formatValue(row, column);
  const name = classOf(row) ?? valueOf(row, "file") ?? `index ${valueOf(row, "index")}`;
  const hidden = { "aria-hidden": "true" };
  const card = element(
    "button",
    { type: "button", className: "card", "aria-haspopup": "dialog" },
    pictureOf(row, `${describe(row)}: ${column.title} ${value}`),
    element("span", { className: "value", ...hidden }, value),
    element("span", { className: "name", title: name, ...hidden }, name),
  );
  Object.assign(card.dataset, { row, subset: valueOf(row, "subset") });
  if (standsOut(row)) card.classList.add("outstanding");
  card.addEventListener("click", () => openPanel(row));
  return element("li", {}, card);
}

/** Whether an image's score is rare among images that no encoder saw: q < .1. */
function standsOut(row) {
  const q = valueOf(row, outstandingKey);
  return q !== null && q < 0.1;
}

/** The columns of images as lines of a CSV file, with the class's name beside its number. */
function imageLines(rows) {
  const header = columns.flatMap(({ key, type }) => (type === "class" ? [key, "class"] : [key]));
  const cells = (row) =>
    columns.flatMap(({ key, type }) => {
      const value = valueOf(row, key);
      const text = value === null ? "" : typeof value === "number" ? String(value) : csvText(value);
      return type === "class" ? [text, csvText(className(value) ?? "")] : [text];
    });
  return [header, ...rows.map(cells)];
}
