// Charts over time, drawn as SVG: stacked bars, or lines. A cursor that pointer and arrow keys move, what it stands on
// in words, and the same figures as a table.

import { browse } from "./charts.js";
import { h, s } from "./dom.js";

const NICE = [1, 2, 2.5, 5, 10];

// The round number above a value, which the axis ends with.
function ceiling(value) {
  if (!(value > 0)) return 1;
  const power = 10 ** Math.floor(Math.log10(value));
  return (NICE.find((step) => step * power >= value * 0.999) ?? 10) * power;
}

// How many series have a colour of their own; what is left is one more, "others".
export const SERIES = 6;

function stack(bars, series, top) {
  const paths = series.map(() => "");
  bars.forEach((bar, at) => {
    let from = 0;
    series.forEach((_, which) => {
      const value = bar.values[which] ?? 0;
      if (!(value > 0)) return;
      const y = 100 - (100 * from) / top;
      const height = (100 * value) / top;
      paths[which] += `M${(at + 0.12).toFixed(2)} ${y.toFixed(3)}v${(-height).toFixed(3)}h.76v${height.toFixed(3)}z`;
      from += value;
    });
  });
  return paths.map((d, which) => d && s("path", { class: `fill s${series[which].tone ?? which}`, d })).filter(Boolean);
}

function lines(bars, series, top) {
  const found = [];
  series.forEach((one, which) => {
    let d = "";
    let run = [];
    const end = () => {
      // A lone measurement is drawn as wide as its bar, or it would not be seen.
      if (run.length === 1) d += `M${run[0][0] - 0.4} ${run[0][1]}h.8`;
      else if (run.length) d += `M${run.map(([x, y]) => `${x} ${y}`).join("L")}`;
      run = [];
    };
    bars.forEach((bar, at) => {
      const value = bar.values[which];
      if (Number.isFinite(value)) run.push([at + 0.5, (100 - (100 * value) / top).toFixed(2)]);
      else end();
    });
    end();
    if (d) found.push(s("path", { class: `line s${one.tone ?? which} ${one.dash ? "dash" : ""}`, d }));
  });
  return found;
}

// `bars`: [{ name, tick, values }], the oldest first; `series`: [{ name, tone, dash }]; `format`: a value in words.
export function timechart({ title, bars, series, kind = "stack", format, empty = "Nothing in this time." }) {
  const many = Math.max(bars.length, 1);
  const total = (bar) => bar.values.reduce((sum, value) => sum + (value ?? 0), 0);
  const highest = Math.max(0, ...bars.map((bar) => (kind === "stack" ? total(bar) : Math.max(0, ...bar.values.filter(Number.isFinite)))));
  const any = highest > 0;
  const top = ceiling(highest);
  const chart = s("svg", { class: "timechart", viewBox: `0 0 ${many} 100`, preserveAspectRatio: "none", role: "img", "aria-label": any ? `${title}, at most ${format(highest)}` : `${title}: nothing` });
  const cursor = s("rect", { class: "cursor", y: "0", width: "1", height: "100" });
  chart.append(cursor);
  for (const share of [0, 0.5, 1]) chart.append(s("line", { class: "rule", x1: 0, x2: many, y1: 100 * share, y2: 100 * share }));
  chart.append(...(kind === "stack" ? stack(bars, series, top) : lines(bars, series, top)));

  const say = (bar) => {
    const parts = series.map((one, at) => [one.name, bar.values[at]]).filter(([, value]) => (kind === "stack" ? value > 0 : Number.isFinite(value)));
    if (!parts.length) return `${bar.name}: nothing`;
    const sum = kind === "stack" && parts.length > 1 ? `${format(total(bar))} · ` : "";
    return `${bar.name}: ${sum}${parts.map(([name, value]) => `${name} ${format(value)}`).join(" · ")}`;
  };
  const rest = any ? "" : empty;
  const readout = h("output", { class: "readout" }, rest);
  const show = (at) => {
    cursor.classList.toggle("on", at !== null);
    if (at !== null) cursor.setAttribute("x", at);
    readout.textContent = at === null ? rest : say(bars[at]);
  };
  const plot = h("div", { class: "plot", tabindex: "0", role: "group", "aria-label": `${title}. Arrow keys move through time.` },
    h("div", { class: "plot-axis", "aria-hidden": "true" }, any ? [format(top), format(top / 2), "0"].map((word) => h("span", {}, word)) : [h("span", {}), h("span", {}), h("span", {})]),
    h("div", { class: "plot-area" }, chart, !any && h("p", { class: "plot-none muted" }, empty)),
    h("div", { class: "plot-time muted", "aria-hidden": "true" }, ticks(bars)));
  browse(plot, { over: chart, many: bars.length, pointed: any, show });
  const legend = h("ul", { class: "series" }, series.map((one, at) => h("li", { class: `s${one.tone ?? at} ${one.dash ? "dash" : ""} ${kind}` }, h("span", {}, one.name), one.sum && h("span", { class: "muted" }, one.sum))));
  return h("figure", { class: "history timeline" }, h("figcaption", { class: "history-caption" }, readout), plot, legend, any && figures(title, bars, series, format));
}

function ticks(bars) {
  if (!bars.length) return [];
  const many = Math.min(5, bars.length);
  return Array.from({ length: many }, (_, at) => h("span", {}, bars[Math.round((at / Math.max(many - 1, 1)) * (bars.length - 1))].tick));
}

function figures(title, bars, series, format) {
  const details = h("details", { class: "figures" }, h("summary", {}, "Figures"));
  details.addEventListener("toggle", () => {
    if (!details.open || details.children.length > 1) return;
    const rows = [...bars].reverse().filter((bar) => bar.values.some((value) => value > 0));
    details.append(h("div", { class: "scroll-box", tabindex: "0", role: "region", "aria-label": `${title}: figures` }, h("table", { class: "plain" },
      h("thead", {}, h("tr", {}, h("th", { scope: "col" }, "From"), series.map((one) => h("th", { scope: "col", class: "num" }, one.name)))),
      h("tbody", {}, rows.map((bar) => h("tr", {}, h("th", { scope: "row" }, bar.name), bar.values.map((value) => h("td", { class: "num" }, Number.isFinite(value) ? format(value) : "–"))))))));
  });
  return details;
}
