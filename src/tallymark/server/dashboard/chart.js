// Charts over time with uPlot, and the small ones drawn by hand.

import { element, setText } from "./dom.js";
import * as format from "./format.js";

const SYNC = "tallymark";
const AXIS_WIDTH = 54; // at least, so that charts above each other line up
const AXIS_FONT = "11px system-ui, sans-serif";
const BINARY_STEPS = Array.from({ length: 60 }, (_, power) => 2 ** (power - 10));

// Colours live in the style sheet, one set per theme; canvases ask for them when they draw.
let palette = readPalette();

function readPalette() {
  const known = new Map();
  return (name) => {
    if (!known.has(name)) known.set(name, resolve(`var(--${name})`));
    return known.get(name);
  };
}

/** A colour of the style sheet as canvases understand it: of the present theme. */
function resolve(colour) {
  const probe = element("i");
  probe.style.color = colour;
  document.body.append(probe);
  const resolved = getComputedStyle(probe).color;
  probe.remove();
  return resolved;
}

const MINUTE = 60;
const HOUR = 60 * MINUTE;
const DAY = 24 * HOUR;
const TIME_STEPS = [
  1, 2, 5, 10, 15, 30, MINUTE, 2 * MINUTE, 5 * MINUTE, 10 * MINUTE, 15 * MINUTE, 30 * MINUTE,
  HOUR, 2 * HOUR, 3 * HOUR, 6 * HOUR, 12 * HOUR, DAY, 2 * DAY, 5 * DAY, 10 * DAY, 30 * DAY, 91 * DAY, 365 * DAY,
];

const charts = new Set();

/** Draw everything again in the colours of the present theme. */
export function recolour() {
  palette = readPalette();
  for (const chart of charts) chart.recolour();
}

/**
 * Turn the missing values that only mean "measured less often than windows are long" into `undefined`, which is drawn
 * through. What stays null is a gap: a stretch more than twice as long as the usual distance between two values.
 */
export function bridge(values) {
  const filled = [];
  values.forEach((value, index) => { if (value !== null) filled.push(index); });
  if (filled.length === values.length || filled.length < 3) return values;
  const steps = filled.slice(1).map((index, at) => index - filled[at]).sort((a, b) => a - b);
  const usual = steps[steps.length >> 1];
  const bridged = [...values];
  for (let at = 1; at < filled.length; at++) {
    const [from, to] = [filled[at - 1], filled[at]];
    if (to - from <= 2 * usual + 1 && usual > 1) bridged.fill(undefined, from + 1, to);
  }
  return bridged;
}

/**
 * A chart with a title, a legend that follows the crosshair, and a plot.
 *
 * Lines: {key, label, color, width, fill, unit}. All charts share one crosshair. Dragging calls `zoom(from, to)` in
 * seconds. Left and right move the crosshair for those who do not use a pointer.
 */
export class TimeChart {
  #lines;
  #options;
  #plot = null;
  #times = [];
  #columns = {};
  #range = { start: 0, end: 1 };
  #pointed = false;

  constructor(options) {
    this.#options = { height: 176, floor: 0, ceiling: null, ...options };
    this.#lines = options.lines;
    this.#build();
    charts.add(this);
    this.observer = new ResizeObserver(() => this.#resize());
    this.observer.observe(this.area);
  }

  #build() {
    const { title, unit } = this.#options;
    this.legend = this.#lines.map((line) => {
      const value = element("span", { class: "legend-value" }, "–");
      const key = element("span", { class: "swatch", "data-color": line.color });
      return { value, item: element("li", {}, key, element("span", { class: "legend-label" }, line.label), value) };
    });
    this.note = element("span", { class: "chart-note" });
    this.time = element("span", { class: "chart-time", "aria-hidden": "true" });
    this.area = element("div", {
      class: "plot", tabindex: "0", role: "img", "aria-label": `${title}, ${unit}`,
    });
    this.nothing = element("p", { class: "nothing" });
    this.root = element(
      "figure", { class: "card chart" },
      element(
        "figcaption", {},
        element("div", { class: "chart-head" }, element("h3", {}, title), this.note),
        element("ul", { class: "legend" }, ...this.legend.map(({ item }) => item)),
      ),
      element("div", { class: "plot-frame" }, this.area, this.nothing, this.time),
    );
    this.root.style.setProperty("--plot-height", `${this.#options.height}px`);
    this.area.addEventListener("keydown", (event) => this.#key(event));
    this.area.addEventListener("blur", () => this.#moveTo(null));
  }

  /** Show columns (by the keys of the lines) over times (seconds), the axis running over the whole range. */
  update(times, columns, range) {
    this.#times = times;
    this.#range = range;
    this.#columns = columns;
    const data = [times, ...this.#lines.map(({ key }) => bridge(columns[key] ?? times.map(() => null)))];
    const empty = data.slice(1).every((values) => values.every((value) => value === null || value === undefined));
    this.nothing.hidden = !empty;
    setText(this.nothing, range.live ? "Nothing in this range yet" : "Nothing in this range");
    if (this.#plot) this.#plot.setData(data);
    else this.#create(data);
    this.#describe();
    this.#legend(this.#plot?.cursor.idx ?? null);
  }

  /** A remark beside the title. */
  remark(text) {
    setText(this.note, text);
  }

  recolour() {
    this.#plot?.redraw(false, true);
  }

  destroy() {
    charts.delete(this);
    this.observer.disconnect();
    this.#plot?.destroy();
    this.root.remove();
  }

  #create(data) {
    const width = this.area.clientWidth;
    if (!width) return; // not laid out yet; the observer comes back
    const axis = () => palette("ink-3");
    const grid = { stroke: () => palette("grid"), width: 1 };
    const { unit, height, floor, ceiling } = this.#options;
    const plain = { min: { pad: 0.1, soft: 0, mode: 3 }, max: { pad: 0.1, soft: 0, mode: 3 } };
    const range = floor === null ? plain : (_, __, high) => [floor, this.#top(high, ceiling)];
    this.#plot = new uPlot({
      width, height, padding: [8, 18, 0, 0],
      legend: { show: false },
      scales: { x: { time: true, range: () => [this.#range.start, this.#range.end] }, y: { range } },
      series: [{}, ...this.#lines.map((line) => this.#series(line))],
      axes: [
        {
          stroke: axis, font: AXIS_FONT, grid: { show: false }, ticks: { show: false }, size: 26, gap: 6,
          space: 64, incrs: TIME_STEPS,
          values: (_, splits, __, ___, increment) => format.ticks(splits, increment),
        },
        {
          stroke: axis, font: AXIS_FONT, grid, ticks: { show: false }, gap: 6, space: height < 150 ? 28 : 36,
          ...(format.isBytes(unit) && { incrs: BINARY_STEPS.map((step) => step / this.#bytes()) }),
          size: (plot, values) => this.#axisWidth(plot, values),
          values: (_, splits) => format.scale(splits, unit),
        },
      ],
      cursor: {
        y: false,
        points: { size: 7, width: 2, fill: () => palette("card") },
        drag: { x: true, y: false, setScale: false, dist: 6 },
        sync: {
          key: SYNC, setSeries: false, scales: ["x", null],
          filters: { pub: (type) => type === "mousemove" || type === "mouseleave" }, // each zooms by itself
        },
        bind: { dblclick: () => null },
      },
      hooks: {
        setCursor: [(plot) => this.#legend(plot.cursor.idx)],
        setSelect: [(plot) => this.#zoomed(plot)],
        ready: [(plot) => this.#watchPointer(plot)],
      },
    }, data, this.area);
  }

  #series(line) {
    const colour = () => palette(line.color);
    return {
      label: line.label, stroke: colour, width: line.width ?? 1.75, pxAlign: 0,
      fill: line.fill ? (plot) => this.#fade(plot, line.color, line.fill) : undefined,
      points: { show: false, size: 5, fill: colour, filter: isolated },
    };
  }

  /** An area that fades towards the axis. */
  #fade(plot, name, strength) {
    const colour = palette(name);
    const { top, height } = plot.bbox;
    if (!height) return "transparent";
    const gradient = plot.ctx.createLinearGradient(0, top, 0, top + height);
    const faded = (part) => `color-mix(in srgb, ${colour} ${100 * part}%, transparent)`;
    gradient.addColorStop(0, faded(strength));
    gradient.addColorStop(1, faded(strength / 10));
    return gradient;
  }

  #top(high, ceiling) {
    if (ceiling !== null) return ceiling;
    const least = this.#options.least ?? 0;
    if (!(high > 0)) return least || 1;
    return Math.max(high * 1.08, least);
  }

  #bytes() {
    return format.bytesIn(this.#options.unit);
  }

  #axisWidth(plot, values) {
    if (!values?.length) return AXIS_WIDTH;
    plot.ctx.font = `${11 * devicePixelRatio}px system-ui, sans-serif`;
    const widest = Math.max(...values.map((text) => plot.ctx.measureText(text).width)) / devicePixelRatio;
    return Math.max(AXIS_WIDTH, Math.ceil(widest) + 10);
  }

  #resize() {
    const width = this.area.clientWidth;
    if (!width) return;
    if (this.#plot) this.#plot.setSize({ width, height: this.#options.height });
    else if (this.#times.length) this.update(this.#times, this.#columns, this.#range);
  }

  #watchPointer(plot) {
    plot.over.addEventListener("mouseenter", () => { this.#pointed = true; });
    plot.over.addEventListener("mouseleave", () => { this.#pointed = false; this.time.hidden = true; });
  }

  #zoomed(plot) {
    const { left, width } = plot.select;
    if (width < 6) return;
    const [from, to] = [plot.posToVal(left, "x"), plot.posToVal(left + width, "x")];
    plot.setSelect({ left: 0, width: 0, top: 0, height: 0 }, false);
    this.#options.zoom?.(from, to);
  }

  /** The values under the crosshair, or the latest. */
  #legend(index) {
    const at = index ?? null;
    this.#lines.forEach((line, position) => {
      const values = this.#columns[line.key] ?? [];
      // What is drawn through has no value of its own: uPlot then points at the nearest that has.
      const shown = at === null
        ? values.findLast((value) => value !== null)
        : values[this.#plot.cursor.idxs?.[position + 1] ?? at];
      setText(this.legend[position].value, format.value(shown ?? null, line.unit ?? this.#options.unit));
    });
    const here = at !== null && (this.#pointed || document.activeElement === this.area);
    this.time.hidden = !here;
    if (!here) return;
    setText(this.time, format.moment(this.#times[at]));
    const plot = this.#plot;
    const left = plot.over.offsetLeft + plot.valToPos(this.#times[at], "x");
    const half = this.time.offsetWidth / 2;
    this.time.style.left = `${Math.min(Math.max(left, half), this.area.clientWidth - half)}px`;
  }

  #describe() {
    const { title, unit } = this.#options;
    const parts = this.#lines.map((line) => {
      const present = (this.#columns[line.key] ?? []).filter((value) => value !== null);
      if (!present.length) return `${line.label}: nothing`;
      const show = (value) => format.value(value, line.unit ?? unit);
      return `${line.label}: latest ${show(present.at(-1))}, highest ${show(Math.max(...present))}`;
    });
    const text = `${title}. ${parts.join(". ")}`;
    if (this.area.getAttribute("aria-label") !== text) this.area.setAttribute("aria-label", text);
  }

  #key(event) {
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!this.#plot || (step === undefined && event.key !== "Escape")) return;
    if (event.key === "Escape") {
      if (this.#plot.cursor.idx === null || this.#plot.cursor.idx === undefined) return;
      event.stopPropagation();
      event.preventDefault();
      this.#moveTo(null);
      return;
    }
    event.preventDefault();
    const last = this.#times.length - 1;
    const at = this.#plot.cursor.idx ?? (step > 0 ? -1 : last + 1);
    this.#moveTo(Math.min(Math.max(at + step, 0), last));
  }

  /** As a pointer would: so the crosshair moves in every chart. */
  #moveTo(index) {
    if (!this.#plot) return;
    const { over } = this.#plot;
    if (index === null) {
      over.dispatchEvent(new MouseEvent("mouseleave"));
      return;
    }
    const { left, top } = over.getBoundingClientRect();
    const clientX = left + this.#plot.valToPos(this.#times[index], "x");
    over.dispatchEvent(new MouseEvent("mousemove", { clientX, clientY: top + 10 }));
  }
}

/** Values without a neighbour, which no line would show: uPlot draws them as points. */
function isolated(plot, series) {
  const values = plot.data[series];
  const lonely = [];
  let before = null;
  const next = (from) => values.slice(from).find((value) => value !== undefined) ?? null;
  for (let index = 0; index < values.length; index++) {
    if (values[index] === undefined) continue;
    if (values[index] !== null && before === null && next(index + 1) === null) lonely.push(index);
    before = values[index];
  }
  return lonely;
}

/** A line without axes on a canvas that already has its size in CSS. */
export function sparkline(canvas, values, colour = "c1", { floor = null, area = false } = {}) {
  const ratio = devicePixelRatio || 1;
  const [width, height] = [canvas.clientWidth, canvas.clientHeight];
  if (!width || !height) return;
  canvas.width = width * ratio;
  canvas.height = height * ratio;
  const present = values.filter((value) => value !== null);
  if (!present.length) return;
  const low = floor ?? Math.min(...present);
  const high = Math.max(...present);
  const context = canvas.getContext("2d");
  context.scale(ratio, ratio);
  context.lineWidth = 1.5;
  context.lineJoin = "round";
  context.strokeStyle = context.fillStyle = palette(colour);
  const x = (index) => 1.5 + (index / Math.max(values.length - 1, 1)) * (width - 3);
  const flat = floor === null ? 0.5 : 0; // how high a line lies that never changes
  const y = (value) => height - 2 - (high === low ? flat : (value - low) / (high - low)) * (height - 4);
  for (const run of runs(bridge(values))) {
    if (run.length === 1) {
      context.beginPath();
      context.arc(x(run[0][0]), y(run[0][1]), 1.5, 0, 7);
      context.fill();
      continue;
    }
    context.beginPath();
    for (const [index, value] of run) context.lineTo(x(index), y(value));
    context.stroke();
    if (!area) continue;
    context.lineTo(x(run.at(-1)[0]), height);
    context.lineTo(x(run[0][0]), height);
    context.globalAlpha = 0.12;
    context.fill();
    context.globalAlpha = 1;
  }
}

/** The stretches between gaps, as [index, value] pairs. */
function runs(values) {
  const found = [[]];
  values.forEach((value, index) => {
    if (value === null) found.push([]);
    else if (value !== undefined) found.at(-1).push([index, value]);
  });
  return found.filter((run) => run.length);
}
