// Models: every model of every provider, with prices, context and latency.

import { all } from "./api.js";
import { debounce, empty, h, icon, problem, replace, skeleton } from "./dom.js";
import { count, latency, plural, usd } from "./format.js";
import { HEALTH, badge, healthOf } from "./status.js";
import { state } from "./store.js";
import { explainHref } from "./view-explain.js";

// A page draws this many; a search narrows the rest.
const SHOWN = 300;

export default function models({ signal, query, remember }) {
  let wanted = query.get("q") ?? "";
  const field = h("input", { type: "search", id: "search", class: "input", placeholder: "Provider or model", "aria-label": "Search models", autocomplete: "off", spellcheck: "false", value: wanted, "data-search": true });
  const shown = h("p", { class: "muted shown", role: "status" });
  const body = h("div", { class: "panel" }, skeleton(8, "row"));
  let items = null;

  function draw() {
    const needle = wanted.toLowerCase();
    const found = items.filter((model) => `${model.provider}/${model.name} ${model.display_name ?? ""}`.toLowerCase().includes(needle));
    shown.textContent = found.length === items.length ? plural(items.length, "model") : `${count(found.length)} of ${plural(items.length, "model")}`;
    if (!found.length) return void replace(body, empty(items.length ? "No such model" : "No models yet", items.length ? "Nothing fits the search." : "Declare models in a manifest, or let providerd discover them."));
    replace(body, h("div", { class: "table-box", tabindex: "0", role: "region", "aria-label": "Models" }, h("table", { class: "plain" },
      h("thead", {}, h("tr", {}, [["Model"], ["Provider"], ["Context", 1], ["In / 1M", 1], ["Out / 1M", 1], ["Latency", 1], ["State"], [""]].map(([word, number]) => h("th", { scope: "col", class: number ? "num" : null }, word || h("span", { class: "sr" }, "Explain"))))),
      h("tbody", {}, found.slice(0, SHOWN).map((model) => {
        const row = state.rows.get(model.provider);
        return h("tr", {},
          h("th", { scope: "row" }, h("span", { class: "mono" }, model.name), model.display_name && model.display_name !== model.name && h("span", { class: "sub" }, model.display_name)),
          h("td", {}, h("a", { class: "mono", href: `#/providers/${encodeURIComponent(model.provider)}` }, model.provider), row && h("span", { class: "sub" }, badge(HEALTH, healthOf(row), true))),
          h("td", { class: "num" }, Number.isFinite(model.context_length) ? count(model.context_length) : "–"),
          h("td", { class: "num" }, usd(model.cost_per_1m_input_tokens)), h("td", { class: "num" }, usd(model.cost_per_1m_output_tokens)),
          h("td", { class: "num" }, latency(model.avg_latency_ms)),
          h("td", {}, model.enabled === false ? h("span", { class: "badge idle quiet" }, icon("off"), "Disabled") : h("span", { class: "badge good quiet" }, icon("check"), "Enabled")),
          h("td", {}, h("a", { href: explainHref({ model: `${model.provider}/${model.name}` }), "aria-label": `Explain ${model.provider}/${model.name}` }, "Explain")));
      })))), found.length > SHOWN && h("p", { class: "panel-foot muted" }, `The first ${count(SHOWN)} are shown; search for the others.`));
  }
  async function load() {
    const read = [];
    try {
      await all("models", { signal, each: (page) => read.push(...page) });
    } catch (error) {
      if (!signal.aborted) replace(body, problem(error, load));
      return;
    }
    if (signal.aborted) return;
    items = read;
    draw();
  }
  field.addEventListener("input", debounce(150, () => {
    wanted = field.value.trim();
    remember(`#/models${wanted ? `?${new URLSearchParams({ q: wanted })}` : ""}`);
    if (items) draw();
  }));
  load();
  return {
    title: "Models",
    node: h("div", {},
      h("nav", { class: "crumbs", "aria-label": "Breadcrumb" }, h("a", { href: "#/providers", "data-back": true }, icon("back"), "Providers")),
      h("div", { class: "head" }, h("div", {}, h("h1", { tabindex: "-1" }, "Models"), shown)),
      h("div", { class: "tools" }, h("div", { class: "search" }, icon("search"), field, h("kbd", { "aria-hidden": "true" }, "/"))), body),
  };
}
