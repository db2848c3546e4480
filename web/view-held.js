// What is held back and why, with the exact words that let it go.

import { command, empty, h, icon, problem, redraw, replace, skeleton } from "./dom.js";
import { providerHref } from "./events-list.js";
import { count, plural } from "./format.js";
import { STATE, badge } from "./status.js";
import { on, refreshStatus, state } from "./store.js";

const SHOWN = 24;

function held(of_) {
  const prune = of_.kind === "prune";
  const objects = of_.objects ?? [];
  const item = (name) => h("li", {}, prune && state.rows.has(name) ? h("a", { class: "mono", href: providerHref(name) }, name) : h("span", { class: "mono" }, name));
  return h("article", { class: "panel held" },
    h("h2", {}, icon("held"), prune ? `Prune of ${plural(objects.length, "provider")}` : `Route change in ${plural(objects.length, "cell")}`),
    h("p", {}, of_.reason),
    h("ul", { class: "objects" }, objects.slice(0, SHOWN).map(item)),
    objects.length > SHOWN && h("details", {}, h("summary", {}, `${count(objects.length - SHOWN)} more`), h("ul", { class: "objects" }, objects.slice(SHOWN).map(item))),
    h("h3", {}, "To let it happen"),
    of_.command ? [command(of_.command), of_.digest && h("p", { class: "muted" }, "The digest names exactly what is listed here: if the plan changes, it no longer fits and nothing is deleted.")]
      : h("p", { class: "muted" }, prune ? "Confirm it on the command line after reading the plan." : "Add a route that keeps the cell usable, or set reconcile.route_guard to “warn”. Everything else is applied meanwhile."),
    h("h3", {}, "To see it first"), command("providerd plan"));
}

export default function view({ signal }) {
  const body = h("div", { class: "stack" }, skeleton(2, "chart"));
  let drawn = "";
  const draw = () => {
    const { status, statusError } = state;
    if (!status) {
      if (statusError) replace(body, problem(statusError, () => refreshStatus()));
      return;
    }
    const others = (status.attention ?? []).filter((each) => ["refused", "suspended", "undecryptable"].includes(each.kind));
    const rows = [...state.rows.values()].filter((row) => ["frozen", "held", "suspended"].includes(row.state));
    const from = JSON.stringify([status.held, status.manifests, others, status.suspended, rows.map((row) => [row.name, row.state, row.notices])]);
    if (from === drawn) return;
    drawn = from;
    const parts = [
      status.suspended && h("article", { class: "panel held" }, h("h2", {}, icon("held"), "Applying is suspended"), h("p", {}, "Nothing is written to the catalog until it is resumed; checks go on."), command("providerd resume")),
      (status.held ?? []).map(held),
      status.manifests?.length > 0 && h("article", { class: "panel" }, h("h2", {}, icon("file"), plural(status.manifests.length, "manifest problem")),
        h("p", { class: "muted" }, "What such a file declares stays at its last good state; nothing of it is pruned."),
        h("ul", { class: "problems" }, status.manifests.map((each) => h("li", {}, h("span", { class: "mono strong" }, [each.file, each.line, each.column].filter((part) => part !== null && part !== undefined).join(":")), h("span", {}, each.message)))),
        h("h3", {}, "To see all of it"), command("providerd validate")),
      others.length > 0 && h("article", { class: "panel" }, h("h2", {}, icon("off"), "Refused"),
        h("ul", { class: "problems" }, others.map((each) => h("li", {}, each.provider && h("a", { class: "mono strong", href: providerHref(each.provider) }, each.provider), h("span", {}, each.message), each.command && command(each.command))))),
      rows.length > 0 && h("article", { class: "panel" }, h("h2", {}, icon("providers"), "Providers that stay as they are"),
        h("ul", { class: "problems" }, rows.slice(0, 100).map((row) => h("li", {}, h("span", { class: "problem-head" }, h("a", { class: "mono strong", href: providerHref(row.name) }, row.name), badge(STATE, row.state, true)), h("span", { class: "muted" }, (row.notices ?? []).join("; "))))),
        rows.length > 100 && h("p", { class: "muted" }, `and ${count(rows.length - 100)} more`)),
    ].flat().filter(Boolean);
    redraw(body, parts.length ? parts : empty("Nothing is held back", "Everything that the manifests declare is applied."));
  };
  on("status", draw, signal);
  on("rows", draw, signal);
  draw();
  return { title: "Held back", node: h("div", {}, h("div", { class: "head" }, h("div", {}, h("h1", { tabindex: "-1" }, "Held back"), h("p", { class: "muted" }, "What waits for an operator, and why."))), body) };
}
