// One series by itself, large.

import { TimeChart } from "./chart.js";
import { byId, element, setText } from "./dom.js";
import * as format from "./format.js";
import { get } from "./live.js";

const FIGURES = [
  ["Records", (total) => format.exact(total.count)],
  ["Last", (total, unit) => format.value(total.last, unit)],
  ["Average", (total, unit) => format.value(total.avg, unit)],
  ["Min", (total, unit) => format.value(total.min, unit)],
  ["Max", (total, unit) => format.value(total.max, unit)],
  ["p50", (total, unit) => format.value(total.p50, unit)],
  ["p95", (total, unit) => format.value(total.p95, unit)],
  ["p99", (total, unit) => format.value(total.p99, unit)],
  ["Error rate", (total) => format.value(total.error_rate, "%")],
];

export const PERCENTILES = [
  { key: "p50", label: "p50", color: "c1" },
  { key: "p95", label: "p95", color: "c2" },
  { key: "p99", label: "p99", color: "c3" },
];

const EXTREMES = [
  { key: "avg", label: "average", color: "c1", fill: 0.16 },
  { key: "min", label: "min", color: "c5", width: 1.25 },
  { key: "max", label: "max", color: "c2", width: 1.25 },
];

/** Times of the windows of a range, seconds. */
export const timesOf = ({ start, window }, length) => Array.from({ length }, (_, index) => start + index * window);

export class Detail {
  #dialog = byId("detail");
  #series = null;
  #charts = null;
  #abort = null;
  #handlers;

  /** Handlers: zoom(from, to), closed(). */
  constructor(handlers) {
    this.#handlers = handlers;
    byId("detail-close").addEventListener("click", () => this.#dialog.close());
    this.#dialog.addEventListener("click", (event) => { if (event.target === this.#dialog) this.#dialog.close(); });
    this.#dialog.addEventListener("close", () => this.#closed());
  }

  get series() {
    return this.#series;
  }

  open(series, view) {
    this.#clear();
    this.#series = series;
    setText(byId("detail-title"), format.visible(series.name));
    const kinds = [series.metric_type, ...(series.unit === "1" ? [] : [series.unit]), series.service];
    byId("detail-kind").replaceChildren(...kinds.map((kind) => element("bdi", {}, format.visible(kind))));
    if (!this.#dialog.open) this.#dialog.showModal();
    return this.refresh(view);
  }

  /** Ask for the chart again; an answer that is still on its way is not overtaken. */
  async refresh(view) {
    if (this.#series === null || this.#abort) return;
    const series = this.#series;
    const abort = new AbortController();
    this.#abort = abort;
    try {
      this.#show(await get("series/chart", { ...view, ...series }, abort.signal));
      byId("detail-problem").hidden = true;
    } catch (problem) {
      if (abort.signal.aborted) return;
      byId("detail-problem").hidden = false;
      setText(byId("detail-problem"), problem.message);
    } finally {
      if (this.#abort === abort) this.#abort = null;
    }
  }

  #show(chart) {
    const { unit } = this.#series;
    const { total } = chart;
    this.#charts ??= this.#build(unit, total);
    const known = ([label]) => total !== null && (label !== "Error rate" || total.error_rate !== null);
    const figure = ([label, show]) => element("div", {}, element("dt", {}, label), element("dd", {}, show(total, unit)));
    byId("detail-figures").replaceChildren(...FIGURES.filter(known).map(figure));
    setText(byId("detail-note"), format.within(chart.percentile_error));
    const times = timesOf(chart.range, chart.rate.length);
    const failing = chart.rate.map((rate, at) => (rate === null ? null : (rate * (chart.error_rate[at] ?? 0)) / 100));
    for (const each of this.#charts) each.update(times, { ...chart, failing }, chart.range);
  }

  #build(unit, total) {
    const zoom = (from, to) => this.#handlers.zoom(from, to);
    const outcome = total !== null && total.error_rate !== null;
    const latency = format.isDuration(unit);
    const phone = innerWidth < 640;
    const charts = [
      new TimeChart({
        title: latency ? "Duration" : "Value", unit, zoom, height: phone ? 220 : 300, floor: latency ? 0 : null,
        lines: latency ? PERCENTILES : EXTREMES,
      }),
      new TimeChart({
        title: "Records per second", unit: "1/s", zoom, height: phone ? 110 : 130,
        lines: [
          { key: "rate", label: "all", color: "c1", fill: 0.16 },
          ...(outcome ? [{ key: "failing", label: "failed", color: "bad", fill: 0.3 }] : []),
        ],
      }),
    ];
    byId("detail-charts").replaceChildren(...charts.map((chart) => chart.root));
    return charts;
  }

  #clear() {
    this.#abort?.abort();
    this.#abort = null;
    this.#charts?.forEach((chart) => chart.destroy());
    this.#charts = null;
    byId("detail-figures").replaceChildren();
    setText(byId("detail-note"), "");
    byId("detail-problem").hidden = true;
  }

  #closed() {
    this.#series = null;
    this.#clear();
    this.#handlers.closed();
  }
}
