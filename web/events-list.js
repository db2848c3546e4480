// How one row of the audit trail is shown: what, to whom, field by field, why, from where.

import { h, icon } from "./dom.js";
import { moment, revision, value } from "./format.js";
import { EVENT, HEALTH, KEY, badge, of } from "./status.js";

// More fields than this are folded.
const OPEN_FIELDS = 6;
// Longest value shown in full; a list of models can be long.
const LONG = 240;

export const providerHref = (name) => `#/providers/${encodeURIComponent(name)}`;

const VERBS = { create: "created", adopt: "adopted", update: "changed", delete: "deleted", retire: "retired", release: "released" };

// One sentence that says what happened, as nodes.
function sentence(event) {
  const { detail } = event;
  if (detail?.from && detail?.to && (event.kind === "health" || event.kind === "key_test")) {
    const table = event.kind === "health" ? HEALTH : KEY;
    return [h("span", { class: "sr" }, `${of(EVENT, event.kind).word}: `), badge(table, detail.from, true), h("span", { class: "arrow", "aria-label": "to" }, "→"), badge(table, detail.to)];
  }
  if (event.kind === "health" && typeof detail?.impaired === "boolean") return [detail.impaired ? "The prober suspects itself" : "Results are believed again"];
  if (event.kind === "key" && detail?.action) return [`Key: ${value(detail.action)}`];
  if (event.kind === "hold") return [detail?.kind === "route" ? "Route change held back" : "Prune held back"];
  if (event.kind === "drift") return [detail?.corrected === false ? "Drift reported" : "Drift set back"];
  if ((event.kind === "change" || event.kind === "gateway") && Array.isArray(detail?.changes)) {
    const first = detail.changes[0] ?? {};
    const more = detail.changes.length - 1;
    const what = first.kind === "provider" ? "Provider" : `${value(first.kind)} ${value(first.name)}`;
    return [`${what[0].toUpperCase()}${what.slice(1)} ${VERBS[first.action] ?? value(first.action)}${more > 0 ? `, and ${more} more` : ""}`];
  }
  if (event.kind === "admin" && detail?.call) return [`Admin call: ${value(detail.call)}`];
  return [of(EVENT, event.kind).word];
}

function shown(of) {
  const text = value(of);
  return text.length > LONG ? `${text.slice(0, LONG)}…` : text;
}

function change(field, old, next, cause) {
  return h("li", { class: "field" }, h("span", { class: "field-name" }, field),
    old !== undefined && [h("del", {}, h("span", { class: "sr" }, "was "), shown(old)), h("span", { class: "arrow", "aria-hidden": "true" }, "→")],
    h("ins", {}, h("span", { class: "sr" }, "now "), shown(next)), cause && cause !== "declared" && h("span", { class: "tag" }, cause));
}

// Field by field, as far as the detail has fields; the rest by name.
function fields(event) {
  const { detail } = event;
  if (detail === null || typeof detail !== "object") return [];
  const rows = [];
  const object = (each) => each.kind && each.kind !== "provider" ? `${each.kind} ${each.name} · ` : "";
  for (const each of Array.isArray(detail.changes) ? detail.changes : []) {
    for (const field of each.fields ?? []) rows.push(change(object(each) + field.field, field.old ?? null, field.new, field.cause));
    for (const [name, of] of Object.entries(each.values ?? {})) rows.push(change(object(each) + name, undefined, of));
    if (!each.fields && !each.values) rows.push(h("li", { class: "field" }, h("span", { class: "field-name" }, `${each.kind} ${each.name}`), VERBS[each.action] ?? value(each.action)));
  }
  for (const field of Array.isArray(detail.fields) ? detail.fields : []) rows.push(change(field.field, field.old ?? null, field.new, field.cause));
  if (event.kind === "key" && (detail.old || detail.new)) rows.push(change("fingerprint", detail.old ?? null, detail.new ?? null));
  if (detail.key?.action) rows.push(change("key", undefined, `${detail.key.action} ${detail.key.new ?? ""}`.trim()));
  if (typeof detail.key === "string") rows.push(change("key", undefined, detail.key));
  if (Array.isArray(detail.objects)) rows.push(change("objects", undefined, detail.objects.join(", ")));
  if (detail.digest) rows.push(change("digest", undefined, detail.digest));
  const known = ["changes", "fields", "old", "new", "key", "objects", "digest", "from", "to", "kind", "action", "corrected", "impaired", "who", "call"];
  for (const [name, of] of Object.entries(detail)) if (!known.includes(name)) rows.push(change(name, undefined, of));
  return rows;
}

export function eventItem(event, { compact = false, withProvider = true } = {}) {
  const tone = event.kind === "health" ? of(HEALTH, event.detail?.to).tone : event.kind === "key_test" ? of(KEY, event.detail?.to).tone
    : event.kind === "drift" || event.kind === "hold" ? "warn" : event.kind === "refusal" ? "bad" : "note";
  const rows = compact ? [] : fields(event);
  const list = rows.length > 0 && h("ul", { class: "fields" }, rows);
  const from = [
    event.origin && h("span", { class: "mono" }, typeof event.origin === "string" ? event.origin : `${event.origin.file}:${event.origin.line}`),
    event.revision && h("span", { class: "mono", title: event.revision }, revision(event.revision)),
    event.actor && h("span", {}, `by token ${event.actor}`),
  ].filter(Boolean);
  return h("li", { class: `event ${tone}`, "data-id": event.id },
    h("span", { class: "event-mark" }, icon(of(EVENT, event.kind).icon)),
    h("div", { class: "event-body" },
      h("div", { class: "event-line" },
        withProvider && event.provider && h("a", { class: "mono strong", href: providerHref(event.provider) }, event.provider),
        h("span", { class: "event-what" }, sentence(event)),
        event.reason && h("span", { class: "event-why" }, event.reason)),
      list && (rows.length > OPEN_FIELDS ? h("details", {}, h("summary", {}, `${rows.length} fields`), list) : list),
      from.length > 0 && h("p", { class: "event-from muted" }, from)),
    h("span", { class: "event-at muted" }, moment(event.at)));
}
