// Numbers, units, durations and times for people. Everything here returns plain text.

const NONE = "–";
const SI = [[1e12, "T"], [1e9, "G"], [1e6, "M"], [1e3, "k"]];
const SMALL_SI = [[1, ""], [1e-3, "m"], [1e-6, "µ"], [1e-9, "n"]];
const BINARY = [[2 ** 40, "TiB"], [2 ** 30, "GiB"], [2 ** 20, "MiB"], [2 ** 10, "KiB"], [1, "B"]];
const SECONDS_IN = { ns: 1e-9, us: 1e-6, "µs": 1e-6, ms: 1e-3, s: 1, min: 60, h: 3600, d: 86400 };
const BYTES_IN = {
  By: 1, B: 1, KiBy: 2 ** 10, MiBy: 2 ** 20, GiBy: 2 ** 30, TiBy: 2 ** 40, kBy: 1e3, MBy: 1e6, GBy: 1e9,
};

/** Three significant digits, two below one, without an exponent or trailing zeros. */
function digits(number) {
  const size = Math.abs(number);
  if (size < 1) return String(Number(number.toPrecision(2)));
  return String(Number(number.toFixed(size >= 100 ? 0 : size >= 10 ? 1 : 2)));
}

function scaled(number, steps) {
  const size = Math.abs(number);
  // 999.7 would be rounded to 1000: it belongs to the next step.
  const [factor, prefix] = steps.find(([step]) => size >= step * 0.9995) ?? steps.at(-1);
  return [digits(number / factor), prefix];
}

/** 12300 as "12.3k", 0.0021 as "2.1m". */
export function count(number) {
  if (number === null || number === undefined) return NONE;
  if (number === 0) return "0";
  const steps = Math.abs(number) >= 0.0995 ? [...SI, [1, ""]] : SMALL_SI;
  return scaled(number, steps).join("");
}

/** How far percentiles may be off, a share, rounded up; nothing where they are exact. */
export function within(error) {
  return error === null ? "" : `percentiles within ${Math.ceil(1000 * error) / 10} %`;
}

/** Every digit, grouped: for counts that must be exact. */
export function exact(number) {
  return number === null || number === undefined ? NONE : number.toLocaleString("en-US");
}

function duration(seconds) {
  const size = Math.abs(seconds);
  if (size === 0) return "0 ms";
  if (size < 59.95) {
    const [text, prefix] = scaled(seconds, [[1, "s"], [1e-3, "ms"], [1e-6, "µs"], [1e-9, "ns"]]);
    return `${text} ${prefix}`;
  }
  const whole = Math.round(size);
  const sign = seconds < 0 ? "-" : "";
  for (const [large, unit, small, rest] of [[86400, "d", 3600, "h"], [3600, "h", 60, "min"], [60, "min", 1, "s"]]) {
    if (whole < large) continue;
    const remainder = Math.floor((whole % large) / small);
    return `${sign}${Math.floor(whole / large)} ${unit}${remainder ? ` ${remainder} ${rest}` : ""}`;
  }
  return `${sign}${whole} s`;
}

export const bytes = (number) => (number === null || number === undefined ? NONE : scaled(number, BINARY).join(" "));

const percent = (number) => {
  if (number !== 0 && Math.abs(number) < 0.01) return number > 0 ? "<0.01%" : ">-0.01%";
  return `${Math.abs(number) >= 99.95 ? Math.round(number * 100) / 100 : digits(number)}%`;
};

/** Per second; per minute or hour where that would be less than one in ten seconds or minutes. */
function perTime(perSecond) {
  const size = Math.abs(perSecond);
  if (size === 0 || size >= 0.0995) return [1, "/s"];
  return size * 60 >= 0.0995 ? [60, "/min"] : [3600, "/h"];
}

const rate = (perSecond, [factor, suffix] = perTime(perSecond)) => `${count(perSecond * factor)}${suffix}`;

/** A value with its unit, in the spelling that tallymark stores (UCUM). */
export function value(number, unit) {
  if (number === null || number === undefined) return NONE;
  if (unit in SECONDS_IN) return duration(number * SECONDS_IN[unit]);
  if (unit in BYTES_IN) return bytes(number * BYTES_IN[unit]);
  if (unit.endsWith("/s") && unit.slice(0, -2) in BYTES_IN) return `${bytes(number * BYTES_IN[unit.slice(0, -2)])}/s`;
  if (unit === "%") return percent(number);
  if (unit === "1" || unit === "") return count(number);
  if (unit === "1/s") return rate(number);
  return `${count(number)} ${visible(unit)}`;
}

/** The labels of an axis of values. */
export function scale(splits, unit) {
  if (unit !== "1/s") return splits.map((split) => value(split, unit));
  const step = perTime(Math.max(...splits));
  return splits.map((split) => rate(split, step));
}

/** Whether a unit counts bytes, whose round numbers are powers of two. */
export const isBytes = (unit) => unit.replace(/\/s$/, "") in BYTES_IN;

/** Bytes in one of a unit of bytes. */
export const bytesIn = (unit) => BYTES_IN[unit.replace(/\/s$/, "")];

export const isDuration = (unit) => unit in SECONDS_IN;

// Names come from anybody: what would not show, or would turn the text around, is shown as its code.
// eslint-disable-next-line no-control-regex
const HIDDEN = /[\u0000-\u001f\u007f-\u009f\u00ad\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff]/g;
export const visible = (text) =>
  text.replace(HIDDEN, (character) => `\\u${character.charCodeAt(0).toString(16).padStart(4, "0")}`);

export const zone = Intl.DateTimeFormat().resolvedOptions().timeZone;

const clock = (options) => {
  const format = new Intl.DateTimeFormat(undefined, { hourCycle: "h23", ...options });
  return (seconds) => format.format(seconds * 1000);
};
const hourMinute = clock({ hour: "2-digit", minute: "2-digit" });
const hourMinuteSecond = clock({ hour: "2-digit", minute: "2-digit", second: "2-digit" });
const day = clock({ day: "numeric", month: "short" });
export const moment = clock({
  weekday: "short", day: "numeric", month: "short", hour: "2-digit", minute: "2-digit", second: "2-digit",
});
export const dayTime = clock({ day: "numeric", month: "short", hour: "2-digit", minute: "2-digit" });

/** The labels of a time axis: seconds only where ticks are that close, the date where a day begins. */
export function ticks(splits, increment) {
  return splits.map((seconds) => {
    if (increment >= 86400) return day(seconds);
    const date = new Date(seconds * 1000);
    if (date.getHours() === 0 && date.getMinutes() === 0 && date.getSeconds() === 0) return day(seconds);
    return increment < 60 ? hourMinuteSecond(seconds) : hourMinute(seconds);
  });
}

/** "now", "12 s ago", "3 min ago". */
export function ago(seconds) {
  if (seconds < 2) return "now";
  return seconds < 60 ? `${Math.round(seconds)} s ago` : `${duration(seconds).split(" ").slice(0, 2).join(" ")} ago`;
}

/** What a datetime-local input takes. */
export function localInput(seconds) {
  const date = new Date(seconds * 1000);
  return new Date(date.getTime() - date.getTimezoneOffset() * 60000).toISOString().slice(0, 19);
}
