// Health strips and the latency chart, drawn as SVG. Failures stand taller than success, so that they are
// seen without colour.

import { h, s } from "./dom.js";
import { clock, count, day, latency, parse, percent } from "./format.js";

const DAY = 86_400_000;

const sum = (buckets, field) => buckets.reduce((total, bucket) => total + (bucket?.[field] ?? 0), 0);
const checks = (bucket) => (bucket ? (bucket.ok ?? 0) + (bucket.slow ?? 0) + (bucket.bad ?? 0) : 0);

export function uptime(buckets) {
  const total = buckets.reduce((all, bucket) => all + checks(bucket), 0);
  return { total, bad: sum(buckets, "bad"), slow: sum(buckets, "slow"), text: percent(total - sum(buckets, "bad"), total) };
}

// Height of a bar, 0 to 1, and its class.
function bar(bucket) {
  const total = checks(bucket);
  if (!total) return ["none", 0.14];
  if (bucket.bad) return ["bad", 0.7 + 0.3 * (bucket.bad / total)];
  if (bucket.slow) return ["slow", 0.5 + 0.15 * (bucket.slow / total)];
  return ["ok", 0.42];
}

export function describe(buckets, span) {
  const { total, bad, slow, text } = uptime(buckets);
  if (!total) return `${span}: not checked`;
  const part = [`${span}: ${text} answered`];
  if (bad) part.push(`${count(bad)} of ${count(total)} checks failed`);
  if (slow) part.push(`${count(slow)} slow`);
  return part.join(", ");
}

// Four paths, however many buckets there are: a table draws hundreds of these.
export function strip(buckets, { span = "24 h", gap = 0.28, name = "strip" } = {}) {
  const height = 20;
  const paths = { ok: "", slow: "", bad: "", none: "" };
  buckets.forEach((bucket, at) => {
    const [kind, share] = bar(bucket);
    const top = height - height * share;
    paths[kind] += `M${(at + gap / 2).toFixed(3)} ${height}V${top.toFixed(2)}h${(1 - gap).toFixed(3)}V${height}z`;
  });
  return s("svg", { class: name, viewBox: `0 0 ${Math.max(buckets.length, 1)} ${height}`, preserveAspectRatio: "none", role: "img", "aria-label": describe(buckets, span) },
    Object.entries(paths).filter(([, d]) => d).map(([kind, d]) => s("path", { class: `bar-${kind}`, d })));
}

// The stretches of time up to now, `many` of `width` ms each, oldest first. The server tells of those in which
// something was checked; the others are empty.
export function timeline(points, width, many, now = Date.now()) {
  const end = Math.floor(now / width) * width + width;
  const found = Array.from({ length: many }, (_, at) => ({ at: new Date(end - (many - at) * width).toISOString(), ok: 0, slow: 0, bad: 0, p50_ms: null, p95_ms: null }));
  for (const point of points ?? []) {
    const from = parse(point?.at);
    const slot = from === null ? undefined : found[many - Math.ceil((end - from) / width)];
    if (!slot) continue;
    // Finer points than slots: the median of the busier one stands for both.
    if (Number.isFinite(point.p50_ms) && (slot.p50_ms === null || checks(point) > checks(slot))) slot.p50_ms = point.p50_ms;
    if (Number.isFinite(point.p95_ms)) slot.p95_ms = Math.max(slot.p95_ms ?? 0, point.p95_ms);
    for (const field of ["ok", "slow", "bad"]) slot[field] += point[field] ?? 0;
  }
  return found;
}

const NICE = [1, 2, 2.5, 5, 10];
function ceiling(value) {
  const power = 10 ** Math.floor(Math.log10(Math.max(value, 1)));
  return (NICE.find((step) => step * power >= value) ?? 10) * power;
}

// One point of a history in words.
export function point(bucket, width) {
  const from = parse(bucket.at);
  const when = from === null ? "" : width >= DAY ? `${day(from)} (UTC)` : `${clock(from)} – ${clock(from + width)}`;
  const total = checks(bucket);
  if (!total) return `${when}: not checked`;
  const parts = [`${count(bucket.ok)} ok`];
  if (bucket.slow) parts.push(`${count(bucket.slow)} slow`);
  if (bucket.bad) parts.push(`${count(bucket.bad)} failed`);
  if (Number.isFinite(bucket.p50_ms)) parts.push(`p50 ${latency(bucket.p50_ms)}`, `p95 ${latency(bucket.p95_ms)}`);
  return `${when}: ${parts.join(" · ")}`;
}

// Lets pointer and keys move over the `many` steps of a plot, which `over` draws side by side; `show` is called with
// the step, or null. `pointed`: whether the pointer finds any. Gives what a further event of the pointer may call.
export function browse(plot, { over, many, pointed = true, show }) {
  let chosen = null;
  const choose = (at) => {
    chosen = at;
    show(at);
  };
  const place = (event) => {
    const box = over.getBoundingClientRect();
    const at = Math.floor(((event.clientX - box.left) / box.width) * Math.max(many, 1));
    choose(pointed && at >= 0 && at < many ? at : null);
  };
  plot.addEventListener("pointermove", place);
  plot.addEventListener("pointerleave", () => choose(null));
  plot.addEventListener("blur", () => choose(null));
  plot.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: -1, ArrowRight: 1, Home: -Infinity, End: Infinity }[event.key];
    if (event.key === "Escape" && chosen !== null) {
      event.preventDefault();
      choose(null);
    }
    if (step === undefined || !many) return;
    event.preventDefault();
    const from = chosen ?? (step < 0 ? many : -1);
    choose(Math.min(Math.max(from + step, 0), many - 1));
  });
  return place;
}

// Health and latency over one span, with a cursor that both share: pointer, or arrow keys when focused.
export function history(buckets, { width, span }) {
  const many = Math.max(buckets.length, 1);
  const rest = describe(buckets, span);
  const readout = h("output", { class: "readout" }, rest);
  const cursors = [s("rect", { class: "cursor", y: "0", width: "1", height: "100%" }), s("rect", { class: "cursor", y: "0", width: "1", height: "100%" })];
  const health = strip(buckets, { span, gap: many > 40 ? 0.3 : 0.22, name: "strip tall" });
  health.prepend(cursors[0]);

  const values = buckets.flatMap((bucket) => (bucket ? [bucket.p95_ms, bucket.p50_ms] : [])).filter(Number.isFinite);
  const top = ceiling(Math.max(...values, 1));
  const y = (value) => (100 - (100 * value) / top).toFixed(2);
  const chart = s("svg", { class: "latency", viewBox: `0 0 ${many} 100`, preserveAspectRatio: "none", role: "img", "aria-label": `Latency over ${span}: ${values.length ? `p95 up to ${latency(Math.max(...values))}` : "no measurements"}` });
  chart.append(cursors[1]);
  for (const share of [0, 0.5, 1]) chart.append(s("line", { class: "rule", x1: 0, x2: many, y1: 100 * share, y2: 100 * share }));
  for (const [start, end] of runs(buckets)) {
    const at = Array.from({ length: end - start }, (_, index) => start + index);
    const line = (field) => at.map((index) => `${index + 0.5} ${y(buckets[index][field])}`);
    // A lone measurement is drawn as wide as its bucket, or it would not be seen.
    const wide = (points) => (points.length > 1 ? points : [points[0].replace(/^\S+/, String(start + 0.1)), points[0].replace(/^\S+/, String(start + 0.9))]);
    const upper = wide(line("p95_ms"));
    const lower = wide(line("p50_ms"));
    chart.append(
      s("path", { class: "between", d: `M${upper.join("L")}L${[...lower].reverse().join("L")}z` }),
      s("path", { class: "p95", d: `M${upper.join("L")}` }),
      s("path", { class: "p50", d: `M${lower.join("L")}` }),
    );
  }

  const show = (at) => {
    for (const cursor of cursors) {
      cursor.classList.toggle("on", at !== null);
      if (at !== null) cursor.setAttribute("x", at);
    }
    readout.textContent = at === null ? rest : point(buckets[at] ?? {}, width);
  };
  const plot = h("div", { class: "plot", tabindex: "0", role: "group", "aria-label": `${span}: health and latency. Arrow keys move through time.` },
    h("div", { class: "plot-axis", "aria-hidden": "true" }, h("span", {}, values.length ? latency(top) : ""), h("span", {}, values.length ? latency(top / 2) : ""), h("span", {}, values.length ? "0" : "")),
    h("div", { class: "plot-area" }, chart, !values.length && h("p", { class: "plot-none muted" }, "No latency measured in this time.")),
    h("div", { class: "plot-strip" }, health),
    h("div", { class: "plot-time muted", "aria-hidden": "true" }, ticks(buckets, width)),
  );
  plot.addEventListener("pointerdown", browse(plot, { over: health, many: buckets.length, show }));
  return h("figure", { class: "history" },
    h("figcaption", { class: "history-caption" }, readout, h("span", { class: "legend", "aria-hidden": "true" }, h("span", { class: "key-p50" }, "p50"), h("span", { class: "key-p95" }, "p95"))),
    plot, table(buckets, width));
}

const OUTCOMES = { ok: ["ok", "Ok"], slow: ["slow", "Slow"], soft: ["slow", "Asked to come back later"], auth: ["ok", "Answered, refused the key"], hard: ["bad", "Failed"], local: ["none", "Our own failure, not counted"] };

// The last checks one by one, the newest first as the server lists them: bars as high as they took, and a table with
// reasons.
export function recent(checks) {
  const shown = [...checks].reverse();
  const top = ceiling(Math.max(...shown.map((check) => check.took_ms), 1));
  const paths = { ok: "", slow: "", bad: "", none: "" };
  shown.forEach((check, at) => {
    const [kind] = OUTCOMES[check.outcome] ?? OUTCOMES.local;
    const y = 100 - Math.max(2, (100 * check.took_ms) / top);
    paths[kind] += `M${at + 0.12} 100V${y.toFixed(2)}h.76V100z`;
  });
  const failed = shown.filter((check) => check.outcome === "hard").length;
  const chart = s("svg", { class: "latency", viewBox: `0 0 ${Math.max(shown.length, 20)} 100`, preserveAspectRatio: "none", role: "img", "aria-label": `${count(shown.length)} checks, ${count(failed)} failed, the longest ${latency(Math.max(...shown.map((check) => check.took_ms)))}` });
  for (const share of [0, 0.5, 1]) chart.append(s("line", { class: "rule", x1: 0, x2: Math.max(shown.length, 20), y1: 100 * share, y2: 100 * share }));
  for (const [kind, d] of Object.entries(paths)) if (d) chart.append(s("path", { class: `bar-${kind}`, d }));
  const at = (text) => h("time", { datetime: text, title: text }, clock(Date.parse(text), true));
  return h("figure", { class: "history" },
    h("figcaption", { class: "history-caption" }, h("span", {}, `The last ${count(shown.length)} checks, ${failed ? `${count(failed)} failed` : "none failed"}`)),
    h("div", { class: "plot still" }, h("div", { class: "plot-axis", "aria-hidden": "true" }, h("span", {}, latency(top)), h("span", {}, latency(top / 2)), h("span", {}, "0")), h("div", { class: "plot-area" }, chart)),
    h("div", { class: "scroll-box checks", tabindex: "0", role: "region", "aria-label": "Last checks" }, h("table", { class: "plain" },
      h("thead", {}, h("tr", {}, [["At"], ["Outcome"], ["Took", 1], ["Why"]].map(([word, number]) => h("th", { scope: "col", class: number ? "num" : null }, word)))),
      h("tbody", {}, checks.map((check) => h("tr", { class: check.outcome === "hard" ? "bad" : null }, h("th", { scope: "row" }, at(check.at)), h("td", {}, (OUTCOMES[check.outcome] ?? OUTCOMES.local)[1]), h("td", { class: "num" }, latency(check.took_ms)), h("td", { class: "reason" }, check.reason ?? "")))))));
}

function* runs(buckets) {
  let start = null;
  for (let at = 0; at <= buckets.length; at += 1) {
    const there = Number.isFinite(buckets[at]?.p50_ms) && Number.isFinite(buckets[at]?.p95_ms);
    if (there && start === null) start = at;
    if (!there && start !== null) {
      yield [start, at];
      start = null;
    }
  }
}

function ticks(buckets, width) {
  if (!buckets.length) return [];
  return [0, 0.25, 0.5, 0.75, 1].map((share) => {
    const at = Math.min(Math.round(share * buckets.length), buckets.length - 1);
    const from = parse(buckets[at]?.at);
    if (share === 1) return h("span", {}, "now");
    return h("span", {}, from === null ? "" : width >= DAY ? day(from) : clock(from).replace(/.*, /, ""));
  });
}

// The same figures for those who cannot see the drawing, or want to read them off.
function table(buckets, width) {
  const details = h("details", { class: "figures" }, h("summary", {}, "Figures"));
  details.addEventListener("toggle", () => {
    if (!details.open || details.children.length > 1) return;
    const rows = [...buckets].reverse().filter((bucket) => checks(bucket)).map((bucket) => {
      const from = parse(bucket.at);
      return h("tr", {}, h("th", { scope: "row" }, from === null ? "–" : width >= DAY ? day(from) : clock(from)),
        [bucket.ok, bucket.slow, bucket.bad].map((value) => h("td", { class: "num" }, count(value))),
        [bucket.p50_ms, bucket.p95_ms].map((value) => h("td", { class: "num" }, latency(value))));
    });
    details.append(h("div", { class: "scroll-box", tabindex: "0", role: "region", "aria-label": "Figures" }, h("table", { class: "plain" },
      h("thead", {}, h("tr", {}, ["From", "Ok", "Slow", "Failed", "p50", "p95"].map((word, at) => h("th", { scope: "col", class: at ? "num" : "" }, word)))),
      h("tbody", {}, rows))));
  });
  return details;
}
