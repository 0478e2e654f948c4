// Tables that sort by a click on the head of a column, and that can be saved as CSV as shown.

function startTables() {
  for (const table of document.querySelectorAll("table[data-sortable]")) {
    for (const header of table.tHead.rows[0].cells) makeSortable(table, header);
  }
  for (const button of document.querySelectorAll("button[data-csv]")) {
    const name = button.dataset.csv;
    button.hidden = false;
    button.addEventListener("click", () =>
      save(`${name}.csv`, tableLines(document.getElementById(name))),
    );
  }
}

function makeSortable(table, header) {
  const button = element("button", { type: "button", className: "sort" });
  button.append(...header.childNodes);
  header.append(button);
  const first = header.dataset.type === "number" ? "descending" : "ascending";
  const other = { ascending: "descending", descending: "ascending" };
  button.addEventListener("click", () => {
    const order = other[header.getAttribute("aria-sort")] ?? first;
    for (const cell of header.parentElement.cells) cell.removeAttribute("aria-sort");
    header.setAttribute("aria-sort", order);
    sortTable(table.tBodies[0], header, order === "ascending" ? 1 : -1);
  });
}

function sortTable(body, header, direction) {
  const isNumber = header.dataset.type === "number";
  const keyed = [...body.rows].map((row) => [
    cellValue(row.cells[header.cellIndex], isNumber),
    row,
  ]);
  keyed.sort(([a], [b]) => compare(a, b, direction));
  body.append(...keyed.map(([, row]) => row));
}

function cellValue(cell, isNumber) {
  if (!isNumber) return cell.textContent.trim();
  const { value } = cell.dataset;
  return value === undefined || value === "" ? null : Number(value);
}

/** The rows of a table as they stand, a list of lists of texts; numbers with all their digits. */
function tableLines(table) {
  const text = (cell) => cell.dataset.value ?? csvText(cell.textContent.trim());
  return [...table.tHead.rows, ...table.tBodies[0].rows].map((row) => [...row.cells].map(text));
}

const FORMULA = /^[=+\-@\t\r]/;

/** A text as a cell of a CSV file. A spreadsheet would compute a text that begins like a formula. */
function csvText(text) {
  const safe = FORMULA.test(text) ? `'${text}` : text;
  return /[",\r\n]/.test(safe) ? `"${safe.replaceAll('"', '""')}"` : safe;
}

/** Offer lines of cells as a CSV file. */
function save(name, lines) {
  const content = lines.map((cells) => `${cells.join(",")}\r\n`).join("");
  const address = URL.createObjectURL(new Blob([content], { type: "text/csv" }));
  const link = element("a", { href: address, download: name });
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(address), 60000);
}
