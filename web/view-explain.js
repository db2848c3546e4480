// Explain: who would answer a request, in which order, who not, and why.

import { get, post } from "./api.js";
import { command, debounce, empty, h, icon, problem, redraw, replace, skeleton } from "./dom.js";
import { plural } from "./format.js";
import { HEALTH, badge } from "./status.js";
import { on } from "./store.js";

const LEVELS = ["eco", "balanced", "precision"];
const APIS = ["chat", "responses", "messages", "completions", "embeddings"];
// What a word of the gateway means to an operator who asks why.
const SKIPS = {
  disabled: "switched off",
  unmanaged: "no manifest manages it",
  key_failed: "its key does not work",
  not_allowed: "this consumer may not ask for it",
  dialect: "cannot be asked in this dialect",
  context_too_long: "its context is too small",
  not_local: "not inside our walls, and privacy is required",
  cooling: "pausing after failures",
  limit: "as many requests as it may have",
  unhealthy: "unhealthy, and such are excluded",
};
const ROUTES = { pin: "The provider is named, so the request is not moved.", name: "Every provider with a model of this name may answer.", cell: "The models of the first cell that has a usable one may answer." };

export const explainHref = (fields) => `#/routes/explain?${new URLSearchParams(Object.entries(fields).filter(([, value]) => value))}`;

// A word that a shell takes as it is, or quoted.
const word = (text) => (/^[\w./:@%+-]+$/.test(text) ? text : `'${text.replaceAll("'", `'\\''`)}'`);

function commandOf(fields) {
  const options = [["model", "--model"], ["level", "--power"], ["tier", "--tier"], ["task", "--task"], ["consumer", "--consumer"], ["api", "--api"]];
  return ["providerd routes explain", ...options.filter(([name]) => fields[name] && !(name === "api" && fields.api === "chat")).map(([name, option]) => `${option} ${word(fields[name])}`), fields.private && "--private"].filter(Boolean).join(" ");
}

const named = (of) => h("span", { class: "explain-name" }, h("a", { class: "mono strong", href: `#/providers/${encodeURIComponent(of.provider)}` }, of.provider), h("span", { class: "mono" }, `/${of.model}`));

function cells(all) {
  if (!all.length) return null;
  const step = (cell) => {
    const name = `${cell.power_level} × ${cell.user_tier}${cell.task_type ? ` (${cell.task_type})` : ""}`;
    const state = cell.usable ? ["good", "check", plural(cell.models, "model")] : cell.models ? ["bad", "unhealthy", "no usable model"] : ["idle", "unknown", "empty"];
    return h("li", { class: `step ${state[0]}`, "aria-current": cell.usable ? "step" : null }, h("span", { class: "strong" }, name), h("span", { class: "badge" }, icon(state[1]), state[2]), cell.origin && h("span", { class: "mono muted small" }, cell.origin));
  };
  return [h("h3", {}, "Cells, in the order in which they are looked at"), h("ol", { class: "steps" }, all.map(step))];
}

// Among equals of one priority and health, how often each is asked first.
function share(candidates, of) {
  const equals = candidates.filter((each) => each.priority === of.priority && each.health === of.health);
  const weights = equals.reduce((sum, each) => sum + each.weight, 0);
  return equals.length > 1 && weights > 0 ? `${Math.round((100 * of.weight) / weights)} % among its equals` : "";
}

function result(found, fields) {
  const first = found.candidates[0];
  const title = first ? ["good", "healthy", [named(first), " would answer first"]] : ["bad", "unhealthy", ["Nothing would answer"]];
  const equals = found.candidates.some((each) => share(found.candidates, each));
  const facts = ["Priority decides, then health", equals && `; among equals the seed ${found.seed} chooses by weight`, found.candidates.length > 3 && "; at most three are asked"].filter(Boolean).join("");
  return [
    h("div", { class: `verdict explain-verdict ${title[0]}` }, h("div", { class: `verdict-mark ${title[0]}` }, icon(title[1])), h("div", {}, h("h2", {}, title[2]),
      h("p", { class: "muted" }, found.asked && found.route.startsWith("alias:") ? `“${found.asked}” is an alias of ${found.targets.join(", then ")}. ` : "", ROUTES[found.route] ?? ""))),
    found.error && h("p", { class: "notices explain-error" }, h("strong", {}, `The caller gets ${found.error.status} ${found.error.code}. `), found.error.message),
    cells(found.cells),
    found.candidates.length > 0 && [h("h3", {}, "Who is asked, in this order"), h("ol", { class: "explained" }, found.candidates.map((each, at) =>
      h("li", {}, h("span", { class: "route-order", "aria-hidden": "true" }, String(at + 1)), named(each), badge(HEALTH, each.health),
        h("span", { class: "muted" }, [`priority ${each.priority}, weight ${each.weight}`, share(found.candidates, each), !each.native && "through a translation", each.context_length && `${each.context_length.toLocaleString("en")} tokens of context`].filter(Boolean).join(" · ")),
        each.origin && h("span", { class: "mono muted small" }, each.origin))))],
    found.candidates.length > 0 && h("p", { class: "muted small" }, facts, "."),
    found.skipped.length > 0 && [h("h3", {}, "Who is not asked, and why"), h("ul", { class: "explained" }, found.skipped.map((each) =>
      h("li", { class: "off" }, h("span", { class: "route-mark bad" }, icon("off")), named(each), h("span", { class: "badge bad" }, SKIPS[each.reason] ?? each.reason),
        h("span", { class: "muted" }, [each.note, each.wait_ms && `for ${(each.wait_ms / 1000).toFixed(1)} s`].filter(Boolean).join(" · ")),
        each.origin && h("span", { class: "mono muted small" }, each.origin))))],
    h("div", { class: "explain-foot" }, h("p", { class: "muted small" }, "The same on the command line:"), command(commandOf(fields))),
  ];
}

export default function explain({ signal, query, remember }) {
  const fields = { level: query.get("level") ?? "", tier: query.get("tier") ?? "", task: query.get("task") ?? "", model: query.get("model") ?? "", consumer: query.get("consumer") ?? "", api: APIS.includes(query.get("api")) ? query.get("api") : "chat", private: query.get("private") === "yes" ? "yes" : "" };
  const answer = h("div", { class: "panel", "aria-live": "polite", "aria-busy": "true" }, skeleton(3, "row"));
  const lists = { tiers: h("datalist", { id: "known-tiers" }), tasks: h("datalist", { id: "known-tasks" }), models: h("datalist", { id: "known-models" }), consumers: h("datalist", { id: "known-consumers" }) };
  let turn = 0;
  let drawn = "";

  async function ask() {
    const mine = ++turn;
    answer.setAttribute("aria-busy", "true");
    const body = { model: fields.model || null, power_level: fields.level || null, user_tier: fields.tier || null, task_type: fields.task || null, consumer: fields.consumer || null, api: fields.api, privacy_required: Boolean(fields.private) };
    try {
      const found = await post("routes/explain", body);
      if (signal.aborted || mine !== turn) return;
      const now = JSON.stringify([found, fields]);
      if (now !== drawn) redraw(answer, result(found, fields));
      drawn = now;
    } catch (error) {
      if (signal.aborted || mine !== turn) return;
      drawn = "";
      // A question that names what does not exist is answered with a word about it.
      if (error.status === 422) redraw(answer, empty("This cannot be asked", error.message.replace(/\n?hint: /, " – ")));
      else replace(answer, problem(error, ask));
    }
    answer.removeAttribute("aria-busy");
  }
  const soon = debounce(250, () => signal.aborted || ask());
  const changed = (name) => (event) => {
    const input = event.target;
    fields[name] = input.type === "checkbox" ? (input.checked ? "yes" : "") : input.value.trim();
    const { api, ...rest } = fields;
    remember(explainHref({ ...rest, api: api === "chat" ? "" : api }));
    soon();
  };
  const field = (name, label, control) => h("div", { class: "ask-field" }, h("label", { for: `ask-${name}` }, label), control);
  const text = (name, label, list, placeholder) => field(name, label, h("input", { id: `ask-${name}`, class: "input mono", type: "text", list, value: fields[name], placeholder, autocomplete: "off", spellcheck: "false", autocapitalize: "off", maxlength: "255", oninput: changed(name) }));
  const pick = (name, label, options) => {
    const select = h("select", { id: `ask-${name}`, class: "input", onchange: changed(name) }, options.map(([value, word_]) => h("option", { value, selected: value === fields[name] }, word_)));
    return field(name, label, select);
  };
  const form = h("form", { class: "panel ask", "aria-label": "What is asked for" },
    text("model", "Model or alias", "known-models", "any: auto"),
    pick("level", "Power level", [["", "not said (balanced)"], ...LEVELS.map((level) => [level, level])]),
    text("tier", "User tier", "known-tiers", "all"),
    text("task", "Task", "known-tasks", "any"),
    text("consumer", "Consumer", "known-consumers", "anyone"),
    pick("api", "Dialect", APIS.map((api) => [api, api])),
    h("div", { class: "ask-field check" }, h("input", { id: "ask-private", type: "checkbox", checked: Boolean(fields.private), onchange: changed("private") }), h("label", { for: "ask-private" }, "Privacy required: only providers inside our walls")),
    Object.values(lists));
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    ask();
  });

  // What there is to choose from; the question can be asked without it.
  async function fill() {
    const options = (list, words) => replace(list, [...new Set(words)].sort().map((value) => h("option", { value })));
    const [routes, models, budgets] = await Promise.allSettled([get("routes", { signal, remember: true }), get("models", { params: { limit: 500 }, signal }), get("usage", { params: { by: "consumer", since: "90d" }, signal })]);
    if (signal.aborted) return;
    const all = routes.value?.cells ?? [];
    options(lists.tiers, all.map((cell) => cell.user_tier));
    options(lists.tasks, all.map((cell) => cell.task_type).filter(Boolean));
    options(lists.models, (models.value?.items ?? []).map((model) => `${model.provider}/${model.name}`));
    options(lists.consumers, (budgets.value?.items ?? []).map((item) => item.consumer).filter(Boolean));
  }
  fill();
  ask();
  on("event", (event) => event && ["change", "health", "key_test", "gateway"].includes(event.kind) && soon(), signal);
  return {
    title: "Explain a route",
    node: h("div", { class: "explain" },
      h("nav", { class: "crumbs", "aria-label": "Breadcrumb" }, h("a", { href: "#/routes", "data-back": true }, icon("back"), "Routes")),
      h("div", { class: "head" }, h("div", {}, h("h1", { tabindex: "-1" }, "Who would answer?"), h("p", { class: "muted" }, "By what is declared, stored and proven now. Pauses after failures live in each gateway and are not known here."))),
      h("div", { class: "columns ask-columns" }, form, answer)),
  };
}
