// Values as people read them. Pure, but for the clock of relative times.

import { h } from "./dom.js";

const COUNT = new Intl.NumberFormat("en");
const SHORT = new Intl.NumberFormat("en", { notation: "compact", maximumFractionDigits: 1 });
const CLOCK = new Intl.DateTimeFormat("en-GB", { hour: "2-digit", minute: "2-digit" });
const SECOND = new Intl.DateTimeFormat("en-GB", { hour: "2-digit", minute: "2-digit", second: "2-digit" });
const DAY = new Intl.DateTimeFormat("en-GB", { day: "numeric", month: "short" });
const DAY_YEAR = new Intl.DateTimeFormat("en-GB", { day: "numeric", month: "short", year: "numeric" });

export const zone = Intl.DateTimeFormat().resolvedOptions().timeZone || "local time";

export const count = (value) => (Number.isFinite(value) ? COUNT.format(value) : "–");
export const short = (value) => (Number.isFinite(value) ? SHORT.format(value) : "–");
export const plural = (value, one, many = `${one}s`) => `${count(value)} ${value === 1 ? one : many}`;

export function latency(value) {
  if (!Number.isFinite(value)) return "–";
  return value < 1000 ? `${Math.round(value)} ms` : `${(value / 1000).toFixed(value < 9950 ? 2 : 1)} s`;
}

export function usd(value) {
  if (!Number.isFinite(value)) return "–";
  return `$${value.toLocaleString("en", { minimumFractionDigits: 2, maximumFractionDigits: value !== 0 && Math.abs(value) < 1 ? 4 : 2 })}`;
}

export const percent = (part, whole) => {
  if (!whole) return "–";
  const share = (100 * part) / whole;
  // Never round a failure away.
  return `${(share < 100 && share > 99.99 ? 99.99 : share).toFixed(share === 100 || share === 0 ? 0 : 2)}\u00a0%`;
};

export function parse(text) {
  const at = text ? Date.parse(text) : NaN;
  return Number.isNaN(at) ? null : at;
}

// "12 s", "4 min", "2 h 3 min", "5 d 2 h": at most two units.
export function duration(milliseconds) {
  const seconds = Math.max(0, Math.round(milliseconds / 1000));
  if (seconds < 60) return `${seconds} s`;
  const minutes = Math.floor(seconds / 60);
  if (minutes < 60) return `${minutes} min`;
  const hours = Math.floor(minutes / 60);
  if (hours < 24) return minutes % 60 && hours < 10 ? `${hours} h ${minutes % 60} min` : `${hours} h`;
  const days = Math.floor(hours / 24);
  return hours % 24 && days < 5 ? `${days} d ${hours % 24} h` : `${days} d`;
}

export function clock(at, seconds = false) {
  const date = new Date(at);
  const now = new Date();
  const time = (seconds ? SECOND : CLOCK).format(date);
  if (date.toDateString() === now.toDateString()) return time;
  return `${(date.getFullYear() === now.getFullYear() ? DAY : DAY_YEAR).format(date)}, ${time}`;
}

// Days of the server are days of UTC, wherever the reader is.
const DAY_UTC = new Intl.DateTimeFormat("en-GB", { day: "numeric", month: "short", timeZone: "UTC" });
export const day = (at) => DAY_UTC.format(new Date(at));

const relative = (at) => {
  const ago = Date.now() - at;
  return ago < -1500 ? `in ${duration(-ago)}` : ago < 1500 ? "now" : `${duration(ago)} ago`;
};
const elapsed = (at) => duration(Date.now() - at);

// A time that keeps itself current; the exact one stands in its title.
export function ago(text, never = "never") {
  const at = parse(text);
  if (at === null) return h("span", { class: "muted" }, never);
  return h("time", { datetime: text, title: `${clock(at, true)} (${text})`, "data-live": "ago" }, relative(at));
}

// How long something lasts already.
export function since(text) {
  const at = parse(text);
  if (at === null) return null;
  return h("time", { datetime: text, title: `since ${clock(at, true)} (${text})`, "data-live": "since" }, elapsed(at));
}

export function moment(text, seconds = true) {
  const at = parse(text);
  if (at === null) return h("span", { class: "muted" }, "–");
  return h("time", { datetime: text, title: text }, clock(at, seconds));
}

export function tick(root = document) {
  for (const element of root.querySelectorAll("time[data-live]")) {
    const at = parse(element.dateTime);
    if (at === null) continue;
    const text = element.dataset.live === "ago" ? relative(at) : elapsed(at);
    if (element.textContent !== text) element.textContent = text;
  }
}

export const revision = (text) => {
  if (!text) return null;
  const [, commit, rest] = /^([0-9a-f]{7,})(.*)$/i.exec(text) ?? [null, text, ""];
  return commit.slice(0, 8) + rest;
};

// A value of a manifest or an audit row in one line.
export function value(of) {
  if (of === null || of === undefined) return "none";
  if (typeof of === "string") return of === "" ? "“”" : of;
  if (typeof of === "object") return JSON.stringify(of);
  return String(of);
}
