// The tiles, the charts and the books: everything that is filled from a snapshot but the tables.

import { sparkline, TimeChart } from "./chart.js";
import { PERCENTILES, timesOf } from "./detail.js";
import { byId, element, setText } from "./dom.js";
import * as format from "./format.js";

const TILES = [
  { key: "rate", label: "Requests per second", unit: "1/s", color: "c1" },
  { key: "error_rate", label: "Error rate", unit: "%", color: "bad" },
  { key: "p50", label: "p50", unit: "ms", color: "c1", latency: true },
  { key: "p95", label: "p95", unit: "ms", color: "c2", latency: true },
  { key: "p99", label: "p99", unit: "ms", color: "c3", latency: true },
];

/** The stat tiles: the last minute large, the whole range below it. */
export class Tiles {
  #tiles;

  constructor() {
    this.#tiles = TILES.map((tile) => {
      const kind = tile.latency ? [element("span", { class: "tile-kind" }, "Latency ")] : [];
      const heading = element("h3", {}, ...kind, tile.label);
      const value = element("p", { class: "tile-value" }, "–");
      const note = element("p", { class: "tile-note" });
      const canvas = element("canvas", { class: "spark", "aria-hidden": "true" });
      const card = element("article", { class: "card tile" }, heading, value, note, canvas);
      card.dataset.tile = tile.key;
      byId("tiles").append(card);
      return { ...tile, value, note, canvas, values: [] };
    });
    new ResizeObserver(() => this.draw()).observe(byId("tiles"));
  }

  update({ requests, range }) {
    for (const tile of this.#tiles) {
      tile.values = requests[tile.key];
      const over = requests.total?.[tile.key] ?? null;
      const now = requests.now?.[tile.key] ?? (tile.key === "rate" && requests.total && range.live ? 0 : null);
      const shown = (range.live ? now : over) ?? null;
      const [number, ...unit] = format.value(shown, tile.unit).split(/(?=[ /%])/);
      tile.value.replaceChildren(number, element("span", { class: "tile-unit" }, unit.join("")));
      setText(tile.note, range.live ? `last minute · ${format.value(over, tile.unit)} in range` : "in range");
    }
    this.draw();
  }

  draw() {
    for (const { canvas, values, color } of this.#tiles) sparkline(canvas, values, color, { floor: 0, area: true });
  }
}

/** The charts of the page. */
export class Charts {
  #requests;
  #machine;

  constructor(zoom) {
    const chart = (host, options) => {
      const made = new TimeChart({ zoom, ...options });
      byId(host).append(made.root);
      return made;
    };
    this.#requests = [
      chart("request-charts", {
        title: "Requests per second", unit: "1/s",
        lines: [
          { key: "rate", label: "all", color: "c1", fill: 0.18 },
          { key: "failing", label: "failed", color: "bad", fill: 0.35 },
        ],
      }),
      chart("request-charts", { title: "Latency", unit: "ms", lines: PERCENTILES }),
      chart("request-charts", {
        title: "Error rate", unit: "%", least: 1,
        lines: [{ key: "error_rate", label: "failed", color: "bad", fill: 0.2 }],
      }),
    ];
    const line = (key, label, color, fill) => ({ key, label, color, fill });
    this.#machine = {
      cpu: chart("machine-charts", {
        title: "CPU", unit: "%", height: 132, ceiling: 100, lines: [line("cpu_percent", "used", "c1", 0.18)],
      }),
      memory: chart("machine-charts", {
        title: "Memory", unit: "%", height: 132, ceiling: 100, lines: [line("memory_percent", "used", "c3", 0.18)],
      }),
      disk: chart("machine-charts", {
        title: "Disk", unit: "By/s", height: 132, least: 1024,
        lines: [line("disk_read_mb", "read", "c4"), line("disk_write_mb", "write", "c2")],
      }),
      network: chart("machine-charts", {
        title: "Network", unit: "By/s", height: 132, least: 1024,
        lines: [line("network_received_mb", "in", "c4"), line("network_sent_mb", "out", "c2")],
      }),
    };
  }

  update({ range, requests, system }) {
    const times = timesOf(range, requests.rate.length);
    for (const chart of this.#requests) chart.update(times, requests, range);
    for (const chart of Object.values(this.#machine)) chart.update(times, system, range);
    const { last } = system;
    const of = (used, total, unit) =>
      (used === undefined || total === undefined ? "" : `${format.value(used, unit)} of ${format.value(total, unit)}`);
    const cores = last.cpu_count;
    this.#machine.cpu.remark(cores === undefined ? "" : `${cores} ${cores === 1 ? "core" : "cores"}`);
    this.#machine.memory.remark(of(last.memory_used_mb, last.memory_total_mb, "MiBy"));
    this.#machine.disk.remark(of(last.disk_used_gb, last.disk_total_gb, "GiBy"));
  }
}

const GROWTH_SECONDS = 60;
const GROWTH_RECORDS = 10_000;

/** The books of the store, and what is wrong with them. */
export class Ingest {
  #pending = [];
  #cells = new Map();

  /** Returns warnings as texts. */
  update({ recorded, stored, pending, dropped, deleted, bytes }) {
    const lost = Object.entries(dropped).filter(([, number]) => number > 0);
    const total = lost.reduce((sum, [, number]) => sum + number, 0);
    this.#set("Recorded", format.exact(recorded), "= stored + pending + dropped + deleted");
    this.#set("Stored", format.exact(stored), stored ? `${(bytes / stored).toFixed(1)} bytes a record` : "");
    this.#set("Pending", format.exact(pending), "in journals, already visible here");
    const reasons = lost.map(([reason, number]) => `${format.visible(reason)}: ${format.exact(number)}`).join(", ");
    this.#set("Dropped", format.exact(total), reasons, total > 0);
    this.#set("Deleted", format.exact(deleted), "too old, or erased");
    this.#set("On disk", format.bytes(bytes), "");
    const warnings = [];
    if (total > 0) {
      warnings.push(`${format.exact(total)} records were dropped (${reasons}). The figures below lack them.`);
    }
    if (this.#grows(pending)) {
      warnings.push(
        `${format.exact(pending)} records wait in journals, and ever more: nothing moves them into the store. ` +
        "Nothing is lost yet.",
      );
    }
    return warnings;
  }

  /** Whether pending only ever rose for a minute, and by much. A shipper that works makes it fall every few seconds. */
  #grows(pending) {
    const now = performance.now() / 1000;
    if (this.#pending.length && pending < this.#pending.at(-1).pending) this.#pending = [];
    this.#pending.push({ now, pending });
    const old = this.#pending.findLast((each) => each.now <= now - GROWTH_SECONDS);
    if (!old) return false;
    this.#pending = this.#pending.slice(this.#pending.indexOf(old));
    return pending - old.pending >= GROWTH_RECORDS;
  }

  #set(label, figure, note, bad = false) {
    if (!this.#cells.has(label)) {
      const cells = { figure: element("dd", { class: "ingest-figure" }), note: element("dd", { class: "quiet" }) };
      cells.root = element("div", {}, element("dt", {}, label), cells.figure, cells.note);
      cells.root.dataset.ingest = label.toLowerCase();
      byId("ingest").append(cells.root);
      this.#cells.set(label, cells);
    }
    const cells = this.#cells.get(label);
    setText(cells.figure, figure);
    setText(cells.note, note);
    cells.root.classList.toggle("is-bad", bad);
  }
}
