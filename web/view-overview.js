// The overview: how many are well, what needs attention, what changed lately.

import { command, debounce, empty, h, icon, problem, redraw, replace, skeleton } from "./dom.js";
import { eventItem, providerHref } from "./events-list.js";
import { ago, count, moment, plural, revision, since } from "./format.js";
import { ATTENTION, HEALTH, KEY, of } from "./status.js";
import { on, refreshStatus, state } from "./store.js";

// So many of one kind are listed; the rest is one click away.
const SHOWN = 6;
const LATELY = 12;
// The server names no more than this.
const MOST = 200;

// Mark, heading and text. The good mark never stands over what is not known.
function verdict(status) {
  const { total = 0, unhealthy = 0, degraded = 0, unknown = 0, disabled = 0 } = status.providers ?? {};
  const { failed = 0, missing = 0, pending = 0, error = 0 } = status.keys ?? {};
  const { without_model: empty_ = 0, unproven = 0 } = status.cells ?? {};
  const keys = failed + missing;
  if (!status.checked_at) return ["idle", "Starting", "The database has not been read yet."];
  if (!total) return ["idle", "No providers yet", "Put a manifest into the directory and it appears here."];
  const rest = [];
  if (keys) rest.push(`${plural(keys, "key")} failed`);
  if (degraded) rest.push(`${count(degraded)} degraded`);
  if (empty_) rest.push(`${plural(empty_, "route cell")} without a working model`);
  if (status.held?.length) rest.push(`${plural(status.held.length, "change")} held back`);
  if (status.manifests?.length) rest.push(`${plural(status.manifests.length, "manifest problem")}`);
  const others = rest.join(" · ");
  const all = total === 1 ? "The only provider" : `All ${count(total)} providers`;
  if (unhealthy) return ["bad", total === 1 ? "The only provider is down" : `${count(unhealthy)} of ${count(total)} providers ${unhealthy === 1 ? "is" : "are"} down`, others];
  if (keys) return ["bad", `${plural(keys, "key")} ${keys === 1 ? "does" : "do"} not work`, rest.slice(1).join(" · ")];
  const checked = total - disabled - unknown;
  if (unknown && !checked) return ["idle", `${plural(total, "provider")}, none checked yet`, others || "The first checks are on their way."];
  if (unknown) return [rest.length ? "warn" : "idle", `${count(checked)} of ${count(total - disabled)} checked so far`, others || "Nothing is known to need attention yet."];
  const answers = `${all} ${total === 1 ? "answers" : "answer"}`;
  if (rest.length || status.attention?.length) return ["warn", answers, others || "Something still needs attention."];
  if (pending) return ["idle", answers, `${plural(pending, "key")} not proven yet.`];
  const left = [error && `${plural(error, "key")} cannot be proven`, unproven && `no model of ${plural(unproven, "route cell")} is proven`].filter(Boolean);
  return ["good", `${all} ${total === 1 ? "is" : "are"} well`, left.length ? `${left.join(" · ")}; nothing else needs attention.` : "Nothing needs attention."];
}

// A bar in proportion, and its legend: each part leads to the list it counts.
function gauge(title, table, counts, order, filter) {
  const parts = order.map((word) => [word, counts?.[word] ?? 0]);
  const total = parts.reduce((all, [, many]) => all + many, 0);
  return h("section", { class: "gauge", "aria-label": title },
    h("h2", {}, title),
    h("div", { class: "gauge-bar", "aria-hidden": "true" }, parts.filter(([, many]) => many).map(([word, many]) => {
      const part = h("span", { class: of(table, word).tone === "good" ? "good" : of(table, word).tone });
      part.style.flexGrow = String(many / Math.max(total, 1));
      return part;
    }), !total && h("span", { class: "none" })),
    h("ul", { class: "gauge-legend" }, parts.map(([word, many]) => {
      const { word: text, tone, icon: shape } = of(table, word);
      return h("li", { class: many ? tone : "zero" }, h("a", { href: `#/providers?f=${filter(word)}` }, icon(shape), h("span", { class: "gauge-count" }, count(many)), " ", h("span", {}, text)));
    })));
}

function facts(status) {
  return h("dl", { class: "facts inline" },
    fact("Catalog", status.suspended ? "suspended" : status.synced ? "synced" : "catching up"),
    status.revision && fact("Revision", h("span", { class: "mono", title: status.revision }, revision(status.revision))),
    fact("Role", status.leader ? "leader" : "standby"),
    fact("Version", status.version ?? "–"),
    fact("Read", ago(status.checked_at)));
}
const fact = (name, of) => h("div", {}, h("dt", {}, name), h("dd", {}, of));

// Who touched it last, as far as the events at hand tell.
const changeOf = (name) => (state.events ?? []).find((event) => event.provider === name && ["change", "key", "drift"].includes(event.kind));
function lastChange(name) {
  const found = changeOf(name);
  return found && h("span", {}, `last ${found.kind === "key" ? "key change" : found.kind} `, moment(found.at, false), found.actor ? ` by token ${found.actor}` : found.revision ? [" from ", h("span", { class: "mono" }, revision(found.revision))] : "");
}

function item(of_) {
  const kind = of(ATTENTION, of_.kind);
  const row = of_.provider ? state.rows.get(of_.provider) : null;
  const known = row && [
    of_.kind === "unhealthy" && row.health_since && h("span", {}, "down for ", h("strong", {}, since(row.health_since)), " (since ", moment(row.health_since, false), ")"),
    of_.kind.startsWith("key") && row.key_last_tested && h("span", {}, "tested ", ago(row.key_last_tested)),
    of_.kind === "unhealthy" && h("span", {}, row.key === "none" ? "needs no key" : `key ${of(KEY, row.key).word.toLowerCase()}`),
    row.source && h("span", { class: "mono" }, row.source),
    row.revision && h("span", { class: "mono", title: row.revision }, revision(row.revision)),
    lastChange(row.name),
  ].filter(Boolean);
  return h("li", { class: `attention ${kind.tone}` }, h("span", { class: "attention-mark" }, icon(kind.icon)),
    h("div", { class: "attention-body" },
      h("p", { class: "attention-title" }, of_.provider && h("a", { class: "mono strong", href: providerHref(of_.provider) }, of_.provider), h("span", { class: of_.provider ? "attention-kind" : "strong" }, kind.word)),
      h("p", { class: "attention-message" }, of_.message),
      known?.length > 0 && h("p", { class: "attention-known muted" }, known)),
    of_.command && command(of_.command));
}

function attention(status, opened, again) {
  const items = status.attention ?? [];
  if (!items.length) return empty("Nothing needs attention", "Nothing is known to be down, refused, drifted or held back.");
  const groups = Map.groupBy ? Map.groupBy(items, (each) => each.kind) : items.reduce((map, each) => map.set(each.kind, [...(map.get(each.kind) ?? []), each]), new Map());
  const order = Object.keys(ATTENTION);
  const rank = (kind) => (order.indexOf(kind) + order.length + 1) % (order.length + 1);
  return h("ul", { class: "attentions" }, [...groups].sort(([one], [two]) => rank(one) - rank(two)).map(([kind, all]) => {
    const open = opened.has(kind);
    const rest = all.length - SHOWN;
    const target = of(ATTENTION, kind).filter;
    return [(open ? all.slice(0, 200) : all.slice(0, SHOWN)).map(item),
      rest > 0 && !open && h("li", { class: "attention-more" }, target
        ? h("a", { href: `#/providers?f=${target}` }, `${plural(rest, "more", "more")}: ${of(ATTENTION, kind).word.toLowerCase()}`)
        : h("button", { type: "button", class: "link", onclick: () => (opened.add(kind), again()) }, `${plural(rest, "more", "more")}: ${of(ATTENTION, kind).word.toLowerCase()}`))];
  }));
}

export default function overview({ signal }) {
  const opened = new Set();
  // The heading stays the same element, for it may have the focus.
  const heading = h("h1", { tabindex: "-1" }, "Overview");
  const text = h("p", { class: "muted" }, "Reading…");
  const mark = h("div", { class: "verdict-mark idle" }, icon("unknown"));
  const known = h("div", { class: "verdict-facts" });
  const gauges = h("div", { class: "gauges" }, skeleton(2, "block"));
  const list = h("div", {}, skeleton(4, "row"));
  const listCount = h("span", { class: "count" });
  const lately = h("div", {}, skeleton(6, "row"));

  let drawn = "";
  const drawStatus = () => {
    const { status, statusError } = state;
    if (!status) {
      if (statusError) {
        replace(gauges);
        replace(list, problem(statusError, () => refreshStatus()));
      }
      return;
    }
    const [tone, title, more] = verdict(status);
    mark.className = `verdict-mark ${tone}`;
    replace(mark, icon({ bad: "unhealthy", warn: "degraded", good: "healthy" }[tone] ?? "unknown"));
    if (heading.textContent !== title) heading.textContent = title;
    text.textContent = more;
    replace(known, facts(status));
    // Nothing is drawn again for a later time alone, under the hands of somebody who copies a command.
    const rows = (status.attention ?? []).map((each) => state.rows.get(each.provider) ?? null).map((row) => row && [row.health_since, row.key, row.key_last_tested, row.source, row.revision]);
    const changes = (status.attention ?? []).map((each) => each.provider && changeOf(each.provider)?.id);
    const now = JSON.stringify([{ ...status, checked_at: null }, rows, changes, [...opened]]);
    if (now === drawn) return;
    drawn = now;
    redraw(gauges,
      gauge("Providers", HEALTH, status.providers, ["unhealthy", "degraded", "unknown", "healthy", "disabled"].filter((word) => word !== "disabled" || status.providers?.disabled), (word) => word),
      gauge("Keys", KEY, status.keys, [...["failed", "missing", "error", "pending", "valid", "none"].filter((word) => word !== "missing" || status.keys?.missing)], (word) => `key-${word}`));
    const many = status.attention?.length ?? 0;
    listCount.textContent = many >= MOST ? `${count(MOST)} or more` : many ? count(many) : "";
    redraw(list, attention(status, opened, drawStatus));
  };
  const drawEvents = () => {
    if (!state.events) {
      if (state.eventsError) replace(lately, problem(state.eventsError));
      return;
    }
    redraw(lately, state.events.length ? h("ol", { class: "events compact" }, state.events.slice(0, LATELY).map((event) => eventItem(event, { compact: true })))
      : empty("No events yet", "Changes, health transitions and key tests are recorded here."));
  };
  on("status", drawStatus, signal);
  on("rows", drawStatus, signal);
  on("row", drawStatus, signal);
  on("event", debounce(100, () => signal.aborted || (drawEvents(), drawStatus())), signal);
  drawStatus();
  drawEvents();
  return {
    title: "Overview",
    node: h("div", { class: "overview" }, h("div", { class: "verdict" }, mark, h("div", {}, heading, text), known), gauges,
      h("div", { class: "columns" },
        h("section", { class: "panel", "aria-labelledby": "attention-title" }, h("h2", { id: "attention-title" }, "Needs attention ", listCount), list),
        h("section", { class: "panel", "aria-labelledby": "lately-title" }, h("h2", { id: "lately-title" }, "What changed lately"), lately, h("p", { class: "panel-foot" }, h("a", { href: "#/events" }, "All events"))))),
  };
}
