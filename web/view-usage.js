// Usage: requests, tokens, cost, latency and errors over time, by what is asked; budgets with what is left.

import { get, getText } from "./api.js";
import { announce, empty, h, icon, problem, redraw, replace, skeleton } from "./dom.js";
import { clock, count, day, latency, percent, plural, short, usd } from "./format.js";
import { SERIES, timechart } from "./timechart.js";

const HOUR = 3_600_000;
const DAY = 24 * HOUR;
// Word in the address, button, how far back, the step of the chart, and its name to the server.
const RANGES = [
  ["1h", "1 h", HOUR, "hour", "the last hour"],
  ["24h", "24 h", DAY, "hour", "24 hours"],
  ["7d", "7 d", 7 * DAY, "day", "7 days"],
  ["30d", "30 d", 30 * DAY, "day", "30 days"],
  ["90d", "90 d", 90 * DAY, "day", "90 days"],
  ["365d", "1 y", 365 * DAY, "week", "a year"],
];
const BY = [["provider", "Provider"], ["model", "Model"], ["consumer", "Consumer"], ["level", "Power level"], ["user", "User"]];
const money = (item) => Number(item.cost_usd);
const VALUES = {
  cost: ["Cost", money, usd],
  requests: ["Requests", (item) => item.requests, short],
  tokens: ["Tokens", (item) => item.input_tokens + item.output_tokens, short],
  errors: ["Errors", (item) => item.errors, short],
};
const UNNAMED = { user: "no user named", level: "no level asked for" };
const EVERY = 30_000;

const one = (list, word, otherwise) => list.find(([name]) => name === word) ?? list.find(([name]) => name === otherwise);

function segments(label, options, chosen, choose) {
  return h("div", { class: "segments", role: "group", "aria-label": label }, options.map(([word, text]) =>
    h("button", { type: "button", "aria-pressed": String(word === chosen), "data-choice": word, onclick: () => choose(word) }, text)));
}

// The stretches of time of a chart, as the server cuts them: UTC hours, days, and weeks from Monday.
function stretches(range, now) {
  const [, , length, step] = range;
  const width = { hour: HOUR, day: DAY, week: 7 * DAY }[step];
  // The first of January 1970 was a Thursday.
  const offset = step === "week" ? 4 * DAY : 0;
  const floor = (at) => Math.floor((at - offset) / width) * width + offset;
  const found = [];
  for (let at = floor(now - length); at <= now; at += width) {
    const name = step === "hour" ? `${clock(at)} – ${clock(at + width).replace(/.*, /, "")}` : step === "day" ? `${day(at)} (UTC)` : `week of ${day(at)}`;
    found.push({ at, name, tick: step === "hour" ? clock(at).replace(/.*, /, "") : day(at) });
  }
  return found;
}

const timeOf = (item) => Date.parse(item.hour ?? item.day ?? item.week);

function tiles(total) {
  const failed = total ? percent(total.errors, total.requests) : "–";
  const tile = (name, big, ...sub) => h("div", {}, h("dt", {}, name), h("dd", {}, h("span", { class: "big" }, big), sub.filter(Boolean).map((text) => h("span", { class: "sub" }, text))));
  return h("dl", { class: "answers tiles" },
    tile("Cost", total ? usd(money(total)) : "–", total?.unpriced > 0 && `without ${plural(total.unpriced, "request")} of unknown price`),
    tile("Requests", short(total?.requests), total && `${failed} errors`, total?.fallbacks > 0 && `${count(total.fallbacks)} by fallback`),
    tile("Tokens", total ? short(total.input_tokens + total.output_tokens) : "–", total && `${short(total.input_tokens)} in, ${short(total.output_tokens)} out`, total?.cached_tokens > 0 && `${short(total.cached_tokens)} from caches`),
    tile("Latency", latency(total?.latency_p50_ms ?? undefined), total && `p95 ${latency(total.latency_p95_ms ?? undefined)}`),
    tile("First token", latency(total?.ttft_p50_ms ?? undefined), total && `p95 ${latency(total.ttft_p95_ms ?? undefined)}, of streams`));
}

const keyName = (item, by) => item[by] || UNNAMED[by] || "–";

function linked(item, by) {
  const name = keyName(item, by);
  if (by === "provider" && item[by]) return h("a", { class: "mono", href: `#/providers/${encodeURIComponent(item[by])}` }, name);
  return h("span", { class: item[by] ? "mono" : "muted" }, name);
}

function table(items, by, byWord) {
  if (!items.length) return empty("No usage in this time", "Requests through the gateway appear here within seconds.");
  const timed = by !== "user";
  return h("div", { class: "scroll-box tall", tabindex: "0", role: "region", "aria-label": `Usage by ${byWord.toLowerCase()}` }, h("table", { class: "plain" },
    h("thead", {}, h("tr", {}, h("th", { scope: "col" }, byWord), ["Cost", "Requests", "Errors", "Fallbacks", "Tokens in", "Tokens out", timed && "p50", timed && "p95", timed && "First token"].filter(Boolean).map((word) => h("th", { scope: "col", class: "num" }, word)))),
    h("tbody", {}, items.map((item) => h("tr", {},
      h("th", { scope: "row" }, linked(item, by)),
      h("td", { class: "num" }, item.unpriced === item.requests ? h("span", { class: "muted" }, "unknown") : usd(money(item))),
      h("td", { class: "num" }, count(item.requests)),
      h("td", { class: `num ${item.errors ? "text-bad" : ""}` }, count(item.errors)),
      h("td", { class: "num" }, count(item.fallbacks)),
      h("td", { class: "num" }, short(item.input_tokens)), h("td", { class: "num" }, short(item.output_tokens)),
      timed && [item.latency_p50_ms, item.latency_p95_ms, item.ttft_p50_ms].map((value) => h("td", { class: "num" }, latency(value ?? undefined))))))));
}

function budgets(answer) {
  const { budgets: all = [], limits = [] } = answer;
  const line = (of) => {
    const spent = of.used_percent >= 100;
    const tone = spent ? "bad" : of.used_percent >= 80 ? "warn" : "good";
    const bar = h("span", { class: "meter-fill" });
    bar.style.width = `${Math.min(of.used_percent, 100)}%`;
    return h("li", { class: `budget ${tone}` },
      h("p", { class: "budget-head" }, h("span", { class: "mono strong" }, of.consumer), of.user && h("span", {}, " user ", h("span", { class: "mono" }, of.user)), h("span", { class: "muted" }, ` a ${of.per}`),
        h("span", { class: "budget-left" }, spent ? h("span", { class: "badge bad" }, icon("unhealthy"), "Spent") : `${usd(Number(of.left_usd))} left`)),
      h("div", { class: "meter", "aria-hidden": "true" }, bar),
      h("p", { class: "muted small" }, `${of.used_percent} % of ${usd(Number(of.limit_usd))} used${Number(of.held_usd) > 0 ? `, ${usd(Number(of.held_usd))} held for requests` : ""}; begins again ${clock(Date.parse(of.window_end))}`));
  };
  const limit = (of) => h("li", {}, of.consumer ? h("span", { class: "mono strong" }, of.consumer) : [h("span", { class: "muted" }, "each user of tier "), h("span", { class: "mono strong" }, of.tier)],
    h("span", { class: "muted" }, ": ", [
      of.requests_per_minute !== null && `${count(of.requests_per_minute)} requests a minute`,
      of.tokens_per_minute !== null && `${short(of.tokens_per_minute)} tokens a minute`,
      of.concurrency !== null && `${count(of.concurrency)} at once`,
    ].filter(Boolean).join(", ")));
  return [
    all.length ? h("ul", { class: "budgets" }, all.slice(0, 100).map(line)) : empty("No budgets", "Declare budgets of consumers and tiers in a manifest; what is left of them appears here."),
    limits.length > 0 && [h("h3", {}, "Limits"), h("ul", { class: "limits" }, limits.map(limit))],
  ];
}

export default function usage({ signal, query, remember }) {
  const chosen = {
    range: one(RANGES, query.get("range"), "24h")[0],
    by: one(BY, query.get("by"), "provider")[0],
    value: Object.hasOwn(VALUES, query.get("value") ?? "") ? query.get("value") : "cost",
  };
  const controls = h("div", { class: "tools" });
  const sums = h("div", {}, skeleton(1, "block"));
  const chart = h("div", {}, skeleton(1, "chart"));
  const waits = h("div", {}, skeleton(1, "chart"));
  const rows = h("div", {}, skeleton(4, "row"));
  const left = h("div", {}, skeleton(3, "row"));
  const chartTitle = h("h2", { id: "usage-over-time" });
  const exporting = h("button", { type: "button", class: "button", "data-action": "csv" }, icon("file"), "Export CSV");
  let data = null;
  let asked = 0;

  function drawControls() {
    const choose = (field) => (word) => {
      chosen[field] = word;
      remember(`#/usage?${new URLSearchParams(chosen)}`);
      drawControls();
      if (field === "value") draw();
      else load(true);
    };
    redraw(controls, segments("Range of time", RANGES, chosen.range, choose("range")), segments("By", BY, chosen.by, choose("by")),
      segments("Figure", Object.entries(VALUES).map(([word, [text]]) => [word, text]), chosen.value, choose("value")));
  }

  // An operator who reads a chart's figures is not interrupted.
  const busy = (slot) => slot.matches(":hover") || slot.contains(document.activeElement) || slot.querySelector("details[open]");

  function draw(background = false) {
    const { total, items, over, range, by } = data;
    const [word, valueOf, format] = VALUES[chosen.value];
    const byWord = one(BY, by)[1];
    replace(sums, tiles(total));
    chartTitle.textContent = `${word} over ${range[4]}, by ${byWord.toLowerCase()}`;
    const now = Date.now();
    const ranked = [...items].map((item) => [keyName(item, by), valueOf(item)]).sort((a, b) => b[1] - a[1]);
    const named = ranked.slice(0, SERIES).filter(([, value]) => value > 0);
    const place = new Map(named.map(([name], at) => [name, at]));
    const others = ranked.slice(SERIES).reduce((all, [, value]) => all + value, 0);
    const series = named.map(([name, value]) => ({ name, sum: format(value) }));
    if (others > 0) series.push({ name: "others", tone: "rest", sum: format(others) });
    if (!background || !busy(chart)) {
      const bars = stretches(range, now).map((bar) => ({ ...bar, values: series.map(() => 0) }));
      const at = new Map(bars.map((bar, index) => [bar.at, index]));
      for (const item of over) {
        const bar = bars[at.get(timeOf(item))];
        const which = place.get(keyName(item, by)) ?? (others > 0 ? series.length - 1 : undefined);
        if (bar && which !== undefined) bar.values[which] += valueOf(item);
      }
      redraw(chart, timechart({ title: chartTitle.textContent, bars, series, format, empty: `No ${word.toLowerCase()} in this time.` }));
    }
    if (!background || !busy(waits)) {
      const bars = stretches(range, now).map((bar) => ({ ...bar, values: [null, null, null] }));
      const at = new Map(bars.map((bar, index) => [bar.at, index]));
      for (const item of data.waits) {
        const bar = bars[at.get(timeOf(item))];
        if (bar) bar.values = [item.latency_p50_ms, item.latency_p95_ms, item.ttft_p50_ms];
      }
      redraw(waits, timechart({ title: `Latency over ${range[4]}`, bars, kind: "lines", format: latency, empty: "No latency measured in this time.",
        series: [{ name: "p50" }, { name: "p95", dash: true, tone: "0" }, { name: "first token", tone: "1" }] }));
    }
    if (!background || !busy(rows)) redraw(rows, table(items, by, byWord));
  }

  async function load(fresh = false) {
    const range = one(RANGES, chosen.range);
    const { by } = chosen;
    const turn = ++asked;
    // Users are summed by the day.
    const step = by === "user" && range[3] === "hour" ? "day" : range[3];
    const used = [...range.slice(0, 3), step, range[4]];
    const ask = (what) => get("usage", { params: { by: what, since: range[0] }, signal, remember: true });
    try {
      const [total, items, over, waits] = await Promise.all([ask(","), ask(by), ask(`${step},${by}`), ask(step)]);
      if (signal.aborted || turn !== asked) return;
      data = { total: total.items[0] ?? null, items: items.items, over: over.items, waits: waits.items, range: used, by };
      draw(!fresh);
    } catch (error) {
      if (signal.aborted || turn !== asked) return;
      if (fresh || !data) [sums, chart, waits, rows].forEach((slot, at) => replace(slot, at === 1 ? problem(error, () => load(true)) : null));
    }
  }
  async function loadBudgets() {
    try {
      const answer = await get("budgets", { signal, remember: true });
      if (!signal.aborted) redraw(left, budgets(answer));
    } catch (error) {
      if (!signal.aborted && left.querySelector(".skeleton")) replace(left, problem(error, loadBudgets));
    }
  }
  exporting.addEventListener("click", async () => {
    const range = one(RANGES, chosen.range);
    const step = chosen.by === "user" && range[3] === "hour" ? "day" : range[3];
    try {
      const text = await getText("usage", { params: { by: `${step},${chosen.by}`, since: range[0], format: "csv" }, signal });
      const link = h("a", { href: URL.createObjectURL(new Blob([text], { type: "text/csv" })), download: `usage-by-${chosen.by}-${range[0]}.csv` });
      link.click();
      URL.revokeObjectURL(link.href);
      announce(`Exported ${plural(text.trimEnd().split("\n").length - 1, "line")}`);
    } catch (error) {
      if (!signal.aborted) announce(error.message, true);
    }
  });
  drawControls();
  load(true);
  loadBudgets();
  const timer = setInterval(() => {
    if (document.hidden) return;
    load();
    loadBudgets();
  }, EVERY);
  signal.addEventListener("abort", () => clearInterval(timer));
  const panel = (id, title, ...content) => h("section", { class: "panel", "aria-labelledby": id }, typeof title === "string" ? h("h2", { id }, title) : title, content);
  return {
    title: "Usage",
    node: h("div", { class: "usage stack" },
      h("div", { class: "head" }, h("div", {}, h("h1", { tabindex: "-1" }, "Usage"), h("p", { class: "muted" }, "What the gateway served, counted once per request; cost where the price is known.")), exporting),
      controls, sums, panel("usage-over-time", chartTitle, chart), panel("usage-table", "Sums", rows),
      h("div", { class: "columns" }, panel("usage-latency", "Latency", waits), panel("usage-budgets", "Budgets and limits", left))),
  };
}
