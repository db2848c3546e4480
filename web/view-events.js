// The audit trail, newest first; it follows live unless the reader has gone down to read.

import { get } from "./api.js";
import { announce, debounce, empty, h, icon, problem, replace, skeleton } from "./dom.js";
import { eventItem } from "./events-list.js";
import { parse, plural } from "./format.js";
import { EVENT, of } from "./status.js";
import { on, state } from "./store.js";

const PAGE = 100;
// Beyond this the list begins again.
const MOST = 2000;
// Events of an outage come by the hundred; they are drawn and told together.
const TOGETHER = 120;
const DAY = new Intl.DateTimeFormat("en-GB", { weekday: "long", day: "numeric", month: "long", year: "numeric" });
const dayOf = (event) => {
  const at = parse(event.at);
  return at === null ? "" : DAY.format(at);
};

export default function events({ query, signal, remember }) {
  let provider = query.get("provider") ?? "";
  let kind = Object.hasOwn(EVENT, query.get("kind") ?? "") ? query.get("kind") : "";
  let items = [];
  let waiting = [];
  // How many of those were announced.
  let told = 0;
  let next = null;
  let turn = 0;

  const field = h("input", { type: "search", id: "search", class: "input", placeholder: "Provider, exact name", "aria-label": "Only events of this provider", autocomplete: "off", spellcheck: "false", list: "event-providers", value: provider, "data-search": true });
  const names = h("datalist", { id: "event-providers" });
  const kinds = h("select", { class: "input", "aria-label": "Only events of this kind" }, h("option", { value: "" }, "All kinds"), Object.entries(EVENT).map(([name, { word }]) => h("option", { value: name }, word)));
  kinds.value = kind;
  const live = h("span", { class: "live", role: "status" });
  const fresh = h("button", { type: "button", class: "button primary new-events", hidden: true, onclick: () => take(true) });
  const list = h("div", { class: "panel" }, skeleton(10, "row"));
  const more = h("button", { type: "button", class: "button", hidden: true }, "Load older events");

  const fits = (event) => (!provider || event.provider === provider) && (!kind || event.kind === kind);
  function drawLive() {
    const word = { live: "Following live", waiting: "Not live: reconnecting", refused: "Signed out" }[state.live] ?? state.live;
    live.className = `live ${state.live === "live" ? "good" : "warn"}`;
    replace(live, icon(state.live === "live" ? "healthy" : "degraded"), h("span", {}, word));
  }
  const row = (event, isNew) => {
    const item = eventItem(event);
    if (isNew) item.classList.add("fresh");
    return item;
  };
  // Puts rows above the others, which stay as they are.
  function prepend(added) {
    if (!list.querySelector(".day")) replace(list);
    for (const event of [...added].reverse()) {
      const day = dayOf(event);
      let section = list.firstElementChild;
      if (section?.dataset.day !== day) {
        section = h("section", { class: "day", "data-day": day }, h("h2", {}, day), h("ol", { class: "events" }));
        list.prepend(section);
      }
      section.lastElementChild.prepend(row(event, true));
    }
  }
  function draw() {
    more.hidden = next === null;
    if (!items.length) {
      replace(list, empty(provider || kind ? "No such events" : "No events yet", provider || kind ? "Nothing of this kind is recorded." : "Changes, health transitions and key tests are recorded here."));
      return;
    }
    const days = [];
    for (const event of items) {
      const day = dayOf(event);
      if (days.at(-1)?.day !== day) days.push({ day, all: [] });
      days.at(-1).all.push(event);
    }
    replace(list, days.map(({ day, all }) => h("section", { class: "day", "data-day": day }, h("h2", {}, day), h("ol", { class: "events" }, all.map((event) => row(event, false))))));
  }
  function take(jump = false) {
    const had = new Set(items.map((event) => event.id));
    const added = waiting.filter((event) => !had.has(event.id));
    waiting = [];
    told = 0;
    fresh.hidden = true;
    items = [...added, ...items];
    if (items.length > MOST) load();
    else if (added.length) prepend(added);
    if (jump) {
      scrollTo(0, 0);
      field.focus({ preventScroll: true });
    }
  }
  async function load(older = false) {
    const mine = ++turn;
    if (!older) {
      items = [];
      waiting = [];
      told = 0;
      fresh.hidden = true;
      replace(list, skeleton(10, "row"));
    }
    more.setAttribute("aria-disabled", "true");
    try {
      const page = await get("events", { params: { provider, kind, limit: PAGE, cursor: older ? next : null }, signal });
      if (mine !== turn || signal.aborted) return;
      const had = new Set(items.map((event) => event.id));
      items = [...items, ...(page.items ?? []).filter((event) => !had.has(event.id))];
      next = page.next ?? null;
      draw();
      if (older) announce(`${plural((page.items ?? []).length, "older event")} loaded`);
    } catch (error) {
      if (mine === turn && !signal.aborted) replace(list, problem(error, () => load()));
    } finally {
      more.removeAttribute("aria-disabled");
    }
  }
  const change = () => {
    const asked = new URLSearchParams();
    if (provider) asked.set("provider", provider);
    if (kind) asked.set("kind", kind);
    remember(`#/events${asked.size ? `?${asked}` : ""}`);
    load();
  };
  field.addEventListener("input", debounce(300, () => {
    if (field.value.trim() !== provider) ((provider = field.value.trim()), change());
  }));
  kinds.addEventListener("change", () => ((kind = kinds.value), change()));
  more.addEventListener("click", () => more.getAttribute("aria-disabled") !== "true" && load(true));

  const arrive = () => {
    if (signal.aborted || !waiting.length) return;
    const [event] = waiting;
    const others = waiting.length - told - 1;
    announce(`${of(EVENT, event.kind).word}${event.provider ? ` of ${event.provider}` : ""}: ${event.reason}${others > 0 ? `, and ${plural(others, "other event")}` : ""}`);
    told = waiting.length;
    // What somebody reads further down must not slide away under his eyes.
    if (scrollY < 160 && !list.contains(document.activeElement)) take();
    else {
      fresh.hidden = false;
      fresh.textContent = plural(waiting.length, "new event");
    }
  };
  let coming = 0;
  on("event", (event) => {
    if (!event || !fits(event)) return;
    waiting.unshift(event);
    coming ||= setTimeout(() => ((coming = 0), arrive()), TOGETHER);
  }, signal);
  on("live", drawLive, signal);
  const fillNames = () => replace(names, [...state.rows.keys()].slice(0, 500).map((name) => h("option", { value: name })));
  on("rows", debounce(500, fillNames), signal);
  fillNames();
  drawLive();
  load();
  return {
    title: "Events",
    node: h("div", { class: "events-view" },
      h("div", { class: "head" }, h("h1", { tabindex: "-1" }, "Events"), live),
      h("div", { class: "tools" }, h("div", { class: "search" }, icon("search"), field, names, h("kbd", { "aria-hidden": "true" }, "/")), kinds),
      fresh, list, h("p", { class: "more" }, more)),
  };
}
