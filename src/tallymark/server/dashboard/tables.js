// Sorted, filtered tables that stay still while their figures change: rows are kept and moved, never rebuilt.

import { element, setChildren, setText } from "./dom.js";
import { exact, visible } from "./format.js";

const FIRST_ROWS = 25;
const MORE_ROWS = 100;

/** Rows as objects from columns of equal length. */
export function rowsOf(columns) {
  const names = Object.keys(columns);
  return columns[names[0]].map((_, index) => Object.fromEntries(names.map((name) => [name, columns[name][index]])));
}

/**
 * Columns: {key, label, title, show(row) -> text, fill(cell, row), sort(row), wide, numeric, descending}. A column
 * with `fill` writes its cell itself. `identity(row)` names a row for good; `text(row)` is what the filter looks at.
 */
export class Table {
  #options;
  #rows = [];
  #elements = new Map();
  #filter = "";
  #limit = FIRST_ROWS;

  constructor(host, options) {
    this.#options = options;
    this.sort = { key: options.sort, descending: options.descending ?? true };
    this.heads = new Map(options.columns.map((column) => [column.key, this.#head(column)]));
    this.body = element("tbody");
    this.none = element("p", { class: "nothing" });
    this.more = element("button", { type: "button", class: "more", hidden: true });
    this.more.addEventListener("click", () => { this.#limit += MORE_ROWS; this.render(); });
    host.append(
      element(
        "div", { class: "table-scroll" },
        element(
          "table", { class: options.class, "aria-label": options.label },
          element("thead", {}, element("tr", {}, ...this.heads.values())),
          this.body,
        ),
      ),
      this.none, this.more,
    );
    this.#markSort();
  }

  update(rows) {
    this.#rows = rows;
    this.render();
  }

  filter(text) {
    this.#filter = text.trim().toLowerCase();
    this.#limit = FIRST_ROWS;
    this.render();
  }

  /** The rows on the page, with the element of each. */
  shown() {
    return [...this.body.children].map((row) => [this.#elements.get(row.dataset.identity).row, row]);
  }

  #head(column) {
    const head = element("th", { scope: "col", class: classes(column), title: column.title });
    if (!column.sort && !column.show) {
      head.append(element("span", { class: "head" }, column.label));
      return head;
    }
    const button = element("button", { type: "button", class: "head" }, column.label);
    button.addEventListener("click", () => this.#sortBy(column));
    head.append(button);
    return head;
  }

  #sortBy(column) {
    const same = this.sort.key === column.key;
    this.sort = { key: column.key, descending: same ? !this.sort.descending : Boolean(column.numeric) };
    this.#markSort();
    this.render();
  }

  #markSort() {
    for (const [key, head] of this.heads) {
      if (key === this.sort.key) head.setAttribute("aria-sort", this.sort.descending ? "descending" : "ascending");
      else head.removeAttribute("aria-sort");
    }
  }

  /** Show the rows as they are now: what depends on the time is shown anew. */
  render() {
    const { identity, text, nothing } = this.#options;
    const found = this.#rows.filter((row) => !this.#filter || text(row).toLowerCase().includes(this.#filter));
    found.sort(this.#order());
    const page = found.slice(0, this.#limit);
    const kept = new Map();
    setChildren(this.body, page.map((row) => {
      const id = identity(row);
      const entry = this.#elements.get(id) ?? this.#row(id);
      entry.row = row;
      kept.set(id, entry);
      this.#options.columns.forEach((column, at) => {
        if (column.fill) column.fill(entry.cells[at], row);
        else setText(entry.cells[at], column.show(row));
      });
      return entry.element;
    }));
    this.#elements = kept;
    const hidden = found.length - page.length;
    this.more.hidden = hidden <= 0;
    setText(this.more, `Show ${exact(Math.min(hidden, MORE_ROWS))} more of ${exact(hidden)}`);
    this.none.hidden = found.length > 0;
    setText(this.none, this.#filter ? "Nothing matches" : nothing);
    this.#options.rendered?.(this.shown());
  }

  #order() {
    const column = this.#options.columns.find(({ key }) => key === this.sort.key);
    const of = column.sort ?? ((row) => row[column.key]);
    const direction = this.sort.descending ? -1 : 1;
    const { identity } = this.#options;
    return (left, right) => {
      const [a, b] = [of(left), of(right)];
      // What has no value comes last, whichever way the rest is sorted.
      if (a === null || b === null) return (a === null) - (b === null) || compare(identity(left), identity(right));
      return direction * compare(a, b) || compare(identity(left), identity(right));
    };
  }

  #row(id) {
    const cells = this.#options.columns.map((column) => element("td", { class: classes(column) }));
    const row = element("tr", {}, ...cells);
    row.dataset.identity = id;
    const entry = { element: row, cells, row: null };
    row.addEventListener("click", () => {
      if (!getSelection().toString()) this.#options.open(entry.row);
    });
    return entry;
  }
}

const classes = ({ numeric, wide, class: own }) => [numeric && "numeric", wide && "wide", own].filter(Boolean).join(" ");

const compare = (a, b) => (typeof a === "number" ? a - b : a < b ? -1 : a > b ? 1 : 0);

/** Write a name that opens something: a button for the keyboard and screen readers, with what kind it is below. */
export function fillName(cell, name, kind, service) {
  if (!cell.firstChild) {
    cell.append(
      element("button", { type: "button", class: "name" }, element("bdi")),
      element("span", { class: "kind" }, element("bdi"), element("bdi")),
    );
  }
  const [button, below] = cell.children;
  setText(button.firstChild, visible(name));
  button.title = visible(name);
  setText(below.firstChild, visible(kind));
  setText(below.lastChild, service === null ? "" : ` · ${visible(service)}`);
}
