// The page: what is looked at (kept in the address), where it comes from, and who shows it.

import { recolour, sparkline } from "./chart.js";
import { Detail } from "./detail.js";
import { byId, element, setText } from "./dom.js";
import { Charts, Ingest, Tiles } from "./figures.js";
import * as format from "./format.js";
import { get, Live } from "./live.js";
import { fillName, rowsOf, Table } from "./tables.js";

const RANGES = { "5m": 300, "15m": 900, "1h": 3600, "6h": 21600, "24h": 86400, "7d": 604800, "30d": 2592000 };
const BAD_PERCENT = 1; // failures that stand out in the table
const DEFAULT_RANGE = "15m";
const AGES_EVERY_MS = 10_000;
const SPARKLINES_AT_ONCE = 64;
const SPARKLINES_EVERY_MS = 10_000;
const SHORTEST_ZOOM_SECONDS = 5;

const root = document.documentElement;
const view = { range: DEFAULT_RANGE, from: null, to: null, service: null };
let latest = null;
let problem = null;
let connection = "connecting";
let asked = null;

// ---- what is looked at

function parameters() {
  const span = view.range === "custom"
    ? { since: new Date(view.from * 1000).toISOString(), until: new Date(view.to * 1000).toISOString() }
    : { since: `now-${view.range}` };
  return { ...span, service: view.service };
}

function readAddress() {
  const address = new URLSearchParams(location.hash.slice(1));
  const [from, to] = [Number(address.get("from")), Number(address.get("to"))];
  const range = address.get("range");
  if (from > 0 && to > from) Object.assign(view, { range: "custom", from, to });
  else view.range = range in RANGES ? range : DEFAULT_RANGE;
  view.service = address.get("service");
  const [service, metric_type, name, unit] = ["of", "type", "name", "unit"].map((key) => address.get(key));
  return name === null ? null : { service, metric_type, name, unit };
}

function writeAddress() {
  const address = new URLSearchParams();
  if (view.range === "custom") {
    address.set("from", view.from);
    address.set("to", view.to);
  } else if (view.range !== DEFAULT_RANGE) {
    address.set("range", view.range);
  }
  if (view.service !== null) address.set("service", view.service);
  if (detail.series) {
    const { service, metric_type, name, unit } = detail.series;
    Object.entries({ of: service, type: metric_type, name, unit }).forEach(([key, given]) => address.set(key, given));
  }
  history.replaceState(null, "", `#${address}`);
}

function look(changes) {
  Object.assign(view, changes);
  writeAddress();
  showControls();
  root.dataset.stale = "";
  sparklines.due = 0;
  detail.refresh(parameters());
  asked?.abort();
  if (view.range === "custom") {
    live.stop();
    showConnection("paused");
    askOnce();
  } else {
    live.watch(parameters());
  }
}

async function askOnce() {
  asked = new AbortController();
  const { signal } = asked;
  try {
    show(await get("overview", parameters(), signal));
  } catch (error) {
    if (!signal.aborted) showProblem(error);
  }
}

function zoom(from, to) {
  const middle = (from + to) / 2;
  const half = Math.max(to - from, SHORTEST_ZOOM_SECONDS) / 2;
  look({ range: "custom", from: Math.floor(middle - half), to: Math.ceil(middle + half) });
}

// ---- what is shown

function show(snapshot) {
  latest = snapshot;
  problem = null;
  const { ingest } = snapshot;
  const nothing = snapshot.series.name.length === 0;
  root.dataset.state = nothing ? "empty" : "ready";
  delete root.dataset.stale;
  byId("figures").hidden = nothing && ingest.recorded === 0;
  showQuickstart(snapshot);
  showServices(snapshot.services);
  showWarnings(books.update(ingest));
  tiles.update(snapshot);
  charts.update(snapshot);
  setText(byId("percentile-note"), format.within(snapshot.percentile_error));
  showOperations(rowsOf(snapshot.operations));
  metrics.update(rowsOf(snapshot.series));
  setText(byId("metrics-count"), format.exact(snapshot.series.name.length));
  detail.refresh(parameters());
}

function showProblem(error) {
  problem = error;
  root.dataset.stale = "";
  if (latest === null) root.dataset.state = "failed";
  if (connection === "live") showConnection("failing");
  if (error.status === 401) location.reload(); // the session is over: the server answers a page with its login
  showWarnings(latest ? books.update(latest.ingest) : []);
}

function showWarnings(warnings) {
  const banners = warnings.map((text) => ["warning", "", text]);
  if (problem?.status === 0) {
    const old = latest ? " What is shown is old; it comes back by itself." : " It is tried again every few seconds.";
    banners.unshift(["error", "Reconnecting.", `${problem.message}.${old}`]);
  } else if (problem) {
    banners.unshift(["error", `${problem.title}.`, problem.detail]);
  } else if (latest && latest.series.name.length === 0 && byId("empty").hidden) {
    banners.push(["note", "", "Nothing was recorded in this range. Try a longer one."]);
  }
  const key = JSON.stringify(banners);
  if (byId("banners").dataset.key === key) return;
  byId("banners").dataset.key = key;
  byId("banners").replaceChildren(...banners.map(([kind, title, text]) => {
    const strong = title ? [element("strong", {}, title)] : [];
    return element("div", { class: `banner ${kind}` }, ...strong, element("span", {}, text));
  }));
}

const STATES = {
  connecting: ["Connecting", "Waiting for the server"],
  live: ["Live", "Updates by itself"],
  lost: ["Reconnecting", "The server does not answer"],
  failing: ["Failing", "The server could not compute the figures"],
  paused: ["Paused", "Go back to live figures"],
};

function showConnection(state) {
  connection = state;
  byId("status").dataset.connection = state;
  setText(byId("status-text"), STATES[state][0]);
  byId("status").title = STATES[state][1];
  byId("status").disabled = state !== "paused";
}

function showControls() {
  for (const button of byId("ranges").children) {
    button.setAttribute("aria-pressed", String(button.dataset.range === view.range));
  }
  if (view.range === "custom") {
    byId("from").value = format.localInput(view.from);
    byId("to").value = format.localInput(view.to);
  }
}

function showServices(services) {
  const select = byId("service");
  const all = view.service !== null && !services.includes(view.service) ? [...services, view.service] : services;
  byId("service-label").hidden = all.length < 2 && view.service === null;
  const key = JSON.stringify(all);
  if (select.dataset.key !== key) {
    select.dataset.key = key;
    select.replaceChildren(
      element("option", { value: "" }, "All applications"),
      ...all.map((service) => element("option", { value: `=${service}` }, format.visible(service))),
    );
  }
  select.value = view.service === null ? "" : `=${view.service}`;
}

/** What to paste where, as long as no application has recorded anything: the server itself always has. */
function showQuickstart({ applications, ingest, range }) {
  byId("empty").hidden = applications.length > 0 || !range.live;
  const { recorded, store } = ingest;
  setText(byId("empty-title"), recorded ? "Waiting for records of an application" : "Waiting for the first record");
  setText(byId("store"), store);
  setText(byId("quickstart"), [
    "from tallymark import Metrics",
    `with Metrics(${JSON.stringify(store)}, service="my-app") as metrics:`,
    '    metrics.record_operation("api_request", "GET /hello", duration_ms=12.5)',
  ].join("\n"));
}

function showOperations(rows) {
  const total = rows.reduce((sum, row) => sum + row.sum, 0);
  for (const row of rows) row.share = total > 0 ? row.sum / total : 0;
  operations.update(rows);
  setText(byId("operations-count"), format.exact(rows.length));
}

// ---- the tables

const several = (services) => view.service === null && services.length > 1;
const numeric = (key, label, show, more = {}) => ({ key, label, show, numeric: true, ...more });
const milliseconds = (key, more) => numeric(key, key, (row) => format.value(row[key], "ms"), more);
const open = ({ service, metric_type, name, unit = "ms" }) => {
  detail.open({ service, metric_type, name, unit }, parameters());
  writeAddress();
};

const operations = new Table(byId("operations"), {
  label: "Operations", class: "operations", sort: "sum", open,
  nothing: "No operations in this range",
  identity: (row) => JSON.stringify([row.service, row.metric_type, row.name]),
  text: (row) => `${row.name}\n${row.metric_type}\n${row.service}`,
  columns: [
    {
      key: "name", label: "Operation", class: "naming", sort: (row) => row.name,
      fill: (cell, row) => fillName(cell, row.name, row.metric_type, several(latest.applications) ? row.service : null),
    },
    numeric("count", "Count", (row) => format.count(row.count), { class: "roomy" }),
    numeric("rate", "Rate", (row) => format.value(row.rate, "1/s"), { wide: true }),
    {
      key: "error_rate", label: "Errors", numeric: true, sort: (row) => row.error_rate,
      fill: (cell, row) => {
        setText(cell, format.value(row.error_rate, "%"));
        cell.classList.toggle("is-bad", row.error_rate >= BAD_PERCENT);
      },
    },
    milliseconds("avg", { wide: true }), milliseconds("p50", { wide: true }),
    milliseconds("p95"), milliseconds("p99", { wide: true }),
    {
      key: "sum", label: "Total time", numeric: true, class: "share", sort: (row) => row.sum,
      title: "Count × average, and its share of all operations",
      fill: (cell, row) => {
        if (!cell.firstChild) {
          cell.append(element("span"), element("span", { class: "share-bar", "aria-hidden": "true" }));
        }
        setText(cell.firstChild, format.value(row.sum, "ms"));
        cell.title = format.value(row.share * 100, "%");
        cell.lastChild.style.setProperty("--share", row.share.toFixed(4));
      },
    },
  ],
});

const metrics = new Table(byId("metrics"), {
  label: "Metrics", class: "metrics", sort: "name", descending: false, open,
  nothing: "No metrics in this range",
  identity: (row) => JSON.stringify([row.service, row.metric_type, row.name, row.unit]),
  text: (row) => `${row.name}\n${row.metric_type}\n${row.service}\n${row.unit}`,
  rendered: (shown) => sparklines.want(shown),
  columns: [
    {
      key: "name", label: "Metric", class: "naming", sort: (row) => row.name,
      fill: (cell, row) => fillName(cell, row.name, row.metric_type, several(latest.services) ? row.service : null),
    },
    {
      key: "trend", label: "", class: "trend",
      fill: (cell) => {
        if (!cell.firstChild) cell.append(element("canvas", { class: "spark", "aria-hidden": "true" }));
      },
    },
    numeric("last", "Last", (row) => format.value(row.last, row.unit)),
    numeric("last_timestamp", "Seen", (row) => format.ago(Date.now() / 1000 - row.last_timestamp), { wide: true }),
    numeric("count", "Records", (row) => format.count(row.count), { class: "roomy" }),
    {
      key: "unit", label: "Unit", class: "unit", wide: true, sort: (row) => row.unit,
      show: (row) => (row.unit === "1" ? "" : format.visible(row.unit)),
    },
  ],
});

// The small charts beside the metrics on the page: asked for together, now and then, and only for what is shown.
const sparklines = {
  due: 0,
  shown: [],
  values: new Map(),
  busy: false,

  want(shown) {
    this.shown = shown;
    this.draw();
    const missing = shown.some(([row]) => !this.values.has(this.id(row)));
    if (!this.busy && latest && (missing || performance.now() >= this.due)) this.ask();
  },

  id: (row) => JSON.stringify([row.service, row.metric_type, row.name, row.unit]),

  async ask() {
    this.busy = true;
    this.due = performance.now() + SPARKLINES_EVERY_MS;
    const names = [...new Set(this.shown.map(([row]) => row.name))];
    const found = new Map(this.shown.map(([row]) => [this.id(row), []]));
    try {
      for (let at = 0; at < names.length; at += SPARKLINES_AT_ONCE) {
        const name = names.slice(at, at + SPARKLINES_AT_ONCE);
        const { series } = await get("series/sparklines", { ...parameters(), name });
        for (const each of series) if (found.has(this.id(each))) found.set(this.id(each), each.values);
      }
    } catch {
      // The next snapshot, or the stream, says what is wrong.
    }
    this.values = found;
    this.busy = false;
    this.draw();
  },

  draw() {
    for (const [row, line] of this.shown) {
      sparkline(line.querySelector("canvas"), this.values.get(this.id(row)) ?? []);
    }
  },
};

// ---- putting it together

const detail = new Detail({
  zoom,
  closed: () => writeAddress(),
});
const tiles = new Tiles();
const charts = new Charts(zoom);
const books = new Ingest();
const live = new Live({
  snapshot: (snapshot) => show(snapshot),
  problem: (error) => showProblem(error),
  connection: (state) => showConnection(state),
});

byId("ranges").addEventListener("click", ({ target }) => {
  const range = target.dataset.range;
  if (range === undefined) return;
  const custom = range === "custom";
  const form = byId("custom");
  form.hidden = custom ? !form.hidden : true;
  byId("ranges").lastElementChild.setAttribute("aria-expanded", String(!form.hidden));
  if (!custom) {
    look({ range, from: null, to: null });
  } else if (!form.hidden) {
    const shown = latest?.range ?? { start: Date.now() / 1000 - 900, end: Date.now() / 1000 };
    byId("from").value = format.localInput(view.from ?? shown.start);
    byId("to").value = format.localInput(view.to ?? Math.min(shown.end, Date.now() / 1000));
    byId("from").focus();
  }
});

byId("custom").addEventListener("submit", (event) => {
  event.preventDefault();
  const [from, to] = [byId("from"), byId("to")].map((input) => new Date(input.value).getTime() / 1000);
  const wrong = from < to ? "" : "The end must come after the start.";
  setText(byId("custom-error"), wrong);
  if (!wrong) look({ range: "custom", from, to });
});

byId("status").addEventListener("click", () => {
  if (connection === "paused") byId("ranges").querySelector(`[data-range="${DEFAULT_RANGE}"]`).click();
});

byId("service").addEventListener("change", ({ target }) => {
  look({ service: target.value === "" ? null : target.value.slice(1) });
});
byId("operations-filter").addEventListener("input", ({ target }) => operations.filter(target.value));
byId("metrics-filter").addEventListener("input", ({ target }) => metrics.filter(target.value));

byId("copy").addEventListener("click", async ({ target }) => {
  try {
    await navigator.clipboard.writeText(byId("quickstart").textContent);
    setText(target, "Copied");
  } catch {
    getSelection().selectAllChildren(byId("quickstart")); // no clipboard outside secure pages: leave it selected
    setText(target, "Selected");
  }
  setTimeout(() => setText(target, "Copy"), 2000);
});

// ---- colours

const THEMES = [["auto", "◐", "as the system has it"], ["light", "☀", "light"], ["dark", "☾", "dark"]];

function showTheme() {
  const [, sign, name] = THEMES.find(([theme]) => theme === (root.dataset.theme ?? "auto"));
  setText(byId("theme"), sign);
  byId("theme").title = `Colours: ${name}`;
  recolour();
  tiles.draw();
  sparklines.draw();
}

byId("theme").addEventListener("click", () => {
  const at = THEMES.findIndex(([theme]) => theme === (root.dataset.theme ?? "auto"));
  const [theme] = THEMES[(at + 1) % THEMES.length];
  if (theme === "auto") delete root.dataset.theme;
  else root.dataset.theme = theme;
  localStorage.setItem("tallymark-theme", theme);
  showTheme();
});
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", showTheme);
matchMedia("(prefers-contrast: more)").addEventListener("change", showTheme);

setInterval(() => { if (latest && !document.hidden) metrics.render(); }, AGES_EVERY_MS);
setText(byId("zone"), format.zone);
addEventListener("hashchange", () => location.reload()); // an address that somebody pasted, not our own
const wanted = readAddress();
showTheme();
if (view.range === "custom") byId("custom").hidden = false;
look({});
if (wanted) open(wanted);
