// Routes: power level × user tier → models in the order in which they are tried.

import { get } from "./api.js";
import { debounce, empty, h, icon, problem, redraw, replace, skeleton } from "./dom.js";
import { providerHref } from "./events-list.js";
import { count, plural } from "./format.js";
import { HEALTH, KEY, of } from "./status.js";
import { on } from "./store.js";
import { explainHref } from "./view-explain.js";

const LEVELS = ["eco", "balanced", "precision"];
// So many models of a cell are shown at first, and so many more each time.
const SHOWN = 6;
const MORE = 100;
const EVERY = 15_000;

const rank = (level) => (LEVELS.indexOf(level) + LEVELS.length + 1) % (LEVELS.length + 1);
const tierOrder = (one, two) => (one === "all" ? -1 : two === "all" ? 1 : one.localeCompare(two));

const keyFails = (model) => model.key === "failed" || model.key === "missing";

// A cell is as good as the best of it: usable, unproven (nothing of it was seen to answer with a key that works), down, or
// empty.
function verdict(models) {
  const enabled = models.filter((model) => model.enabled !== false);
  if (!enabled.length) return "empty";
  const usable = enabled.filter((model) => model.health !== "unhealthy" && !keyFails(model));
  if (!usable.length) return "down";
  return usable.some((model) => model.health !== "unknown" && (model.key === undefined || model.key === "valid" || model.key === "none")) ? "usable" : "unproven";
}

function model(of_, at) {
  const off = of_.enabled === false;
  const shape = !off && keyFails(of_) ? { ...of(KEY, of_.key), word: `Key ${of(KEY, of_.key).word.toLowerCase()}`, icon: "key" } : of(HEALTH, off ? "disabled" : of_.health);
  return h("li", { class: `route ${off ? "off" : ""}` },
    h("span", { class: "route-order", "aria-hidden": "true" }, String(at + 1)),
    h("span", { class: `route-mark ${shape.tone}`, title: shape.word }, icon(shape.icon), h("span", { class: "sr" }, shape.word)),
    h("span", { class: "route-name" }, h("a", { class: "mono", href: providerHref(of_.provider) }, of_.provider), h("span", { class: "mono route-model" }, of_.model)),
    h("span", { class: "route-rank muted", title: `priority ${of_.priority}, weight ${of_.weight}` }, h("span", { class: "sr" }, "priority "), String(of_.priority ?? "–"), h("span", { "aria-hidden": "true" }, " · "), h("span", { class: "sr" }, ", weight "), String(of_.weight ?? "–")));
}

function cell(of_, opened, again, key) {
  const models = of_?.models ?? [];
  const state = verdict(models);
  const shown = opened.get(key) ?? SHOWN;
  const rest = models.length - shown;
  const list = models.slice(0, shown);
  return h("td", { class: `cell ${state}`, role: "cell" },
    state === "empty" && h("p", { class: "cell-note bad" }, icon("off"), models.length ? "No usable model: all are disabled" : "Empty: requests find no model"),
    state === "down" && h("p", { class: "cell-note bad" }, icon("unhealthy"), "No model here can answer"),
    state === "unproven" && h("p", { class: "cell-note idle" }, icon("unknown"), "No model here is proven yet"),
    models.length > 0 && h("ol", { class: "route-list" }, list.map(model)),
    rest > 0 && h("button", { type: "button", class: "link", "aria-label": `${count(rest)} more models of ${key}`, onclick: () => (opened.set(key, shown + MORE), again()) }, `${count(rest)} more`),
    of_ && h("p", { class: "cell-foot" }, h("a", { href: explainHref({ level: of_.power_level, tier: of_.user_tier === "all" ? "" : of_.user_tier, task: of_.task_type }), "aria-label": `Explain ${key}` }, "Explain")));
}

export default function routes({ signal }) {
  const body = h("div", {}, skeleton(3, "chart"));
  const note = h("p", { class: "muted" });
  const opened = new Map();
  let cells = null;
  let drawn = null;

  function draw() {
    if (!cells.length) {
      replace(note);
      replace(body, empty("No routes", "Declare [[routes]] in a manifest to map power levels to models."));
      return;
    }
    const tasks = [...new Set(cells.map((each) => each.task_type ?? null))].sort((one, two) => (one === null ? -1 : two === null ? 1 : one.localeCompare(two)));
    let bad = 0;
    let unproven = 0;
    let holes = 0;
    const tables = tasks.map((task) => {
      const mine = cells.filter((each) => (each.task_type ?? null) === task);
      const levels = [...new Set([...(task === null ? LEVELS : []), ...mine.map((each) => each.power_level)])].sort((one, two) => rank(one) - rank(two));
      const tiers = [...new Set(mine.map((each) => each.user_tier))].sort(tierOrder);
      const at = (level, tier) => mine.find((each) => each.power_level === level && each.user_tier === tier);
      return h("section", { class: "panel flush" },
        h("h2", {}, task === null ? "Any task" : ["Task ", h("span", { class: "mono" }, task)]),
        h("div", { class: "routes-wrap", tabindex: "0", role: "region", "aria-label": task === null ? "Routes of any task" : `Routes of task ${task}` },
          h("table", { class: "routes", role: "table" },
            h("thead", { role: "rowgroup" }, h("tr", { role: "row" }, h("th", { scope: "col", role: "columnheader" }, "User tier"), levels.map((level) => h("th", { scope: "col", role: "columnheader" }, level)))),
            h("tbody", { role: "rowgroup" }, tiers.map((tier) => h("tr", { role: "row" }, h("th", { scope: "row", role: "rowheader", class: "mono" }, tier),
              levels.map((level) => {
                const found = at(level, tier);
                if (!found) {
                  // As the gateway looks: the tier `all`, then any task; what no cell serves is a hole.
                  const wider = (each) => each.power_level === level && (each.task_type ?? null) === null && [tier, "all"].includes(each.user_tier) && each.models?.length;
                  const covered = at(level, "all")?.models?.length || cells.some(wider);
                  if (!covered) holes += 1;
                  return h("td", { class: `cell ${covered ? "unnamed" : "hole"}`, role: "cell", "data-level": level }, h("p", { class: covered ? "muted" : "cell-note idle" }, !covered && icon("unknown"), covered ? "No route of its own: the next wider cell answers" : "No route"));
                }
                const state = verdict(found.models ?? []);
                if (state === "empty" || state === "down") bad += 1;
                if (state === "unproven") unproven += 1;
                const made = cell(found, opened, draw, `${level} × ${tier}${task === null ? "" : ` (${task})`}`);
                made.dataset.level = level;
                return made;
              })))))));
    });
    replace(note, bad ? h("span", { class: "text-bad" }, icon("unhealthy"), ` ${plural(bad, "cell")} without a working model`) : unproven ? `${plural(unproven, "cell")} with models of which none is proven yet; none is known to lack a working one.` : "Every cell with routes has a working model.", holes > 0 && ` ${plural(holes, "combination")} without any route.`, " Models are tried from the top; the figures are priority and weight.");
    redraw(body, tables);
  }
  async function load() {
    let answer;
    try {
      answer = await get("routes", { signal, remember: true });
    } catch (error) {
      if (!signal.aborted && !cells) replace(body, problem(error, load));
      return;
    }
    if (signal.aborted || answer === drawn) return;
    drawn = answer;
    cells = answer.cells ?? [];
    draw();
  }
  const timer = setInterval(() => document.hidden || load(), EVERY);
  signal.addEventListener("abort", () => clearInterval(timer));
  const soon = debounce(400, () => signal.aborted || load());
  on("event", (event) => event && ["change", "health", "hold", "drift"].includes(event.kind) && soon(), signal);
  load();
  return { title: "Routes", node: h("div", {}, h("div", { class: "head" }, h("div", {}, h("h1", { tabindex: "-1" }, "Routes"), note), h("a", { class: "button", href: "#/routes/explain" }, icon("search"), "Explain a request")), body) };
}
