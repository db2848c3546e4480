// The frame: signing in, the bar on top, which view is shown, and the truth about the connection.

import { ApiError, forget, get, onRefused, post, signedIn, useToken } from "./api.js";
import { announce, command, empty, h, icon, replace } from "./dom.js";
import { clock, count, revision, tick, zone } from "./format.js";
import { on, refreshStatus, start, state, stop } from "./store.js";
import events from "./view-events.js";
import explain from "./view-explain.js";
import held from "./view-held.js";
import models from "./view-models.js";
import overview from "./view-overview.js";
import provider from "./view-provider.js";
import providers from "./view-providers.js";
import routes from "./view-routes.js";
import usage from "./view-usage.js";

const TABS = [
  ["#/", "Overview", "overview"],
  ["#/providers", "Providers", "providers"],
  ["#/routes", "Routes", "routes"],
  ["#/usage", "Usage", "usage"],
  ["#/events", "Events", "events"],
  ["#/held", "Held back", "held"],
];
const KEYS = [
  ["/", "Search"],
  ["↑ ↓", "Move between rows; Home, End, Page up and Page down as well"],
  ["Enter", "Open the row"],
  ["Esc", "Clear the search, or go back to the list"],
  ["1 … 6", "Overview, Providers, Routes, Usage, Events, Held back"],
  ["?", "This list"],
];

const app = document.getElementById("app");
let leave = null;
let main = null;
let frame = null;
const places = new Map();

// ---------------------------------------------------------------- signing in

// The token that is kept for this tab, where that was asked for; nothing else is ever stored of it.
const KEPT = "providerd-token";
function kept(text) {
  try {
    if (text === undefined) return sessionStorage.getItem(KEPT);
    if (text === null) sessionStorage.removeItem(KEPT);
    else sessionStorage.setItem(KEPT, text);
  } catch {
    // Then a reload asks for it again.
  }
  return null;
}

function signIn(message = "") {
  stop();
  forget();
  kept(null);
  leave?.abort();
  leave = null;
  main = frame = null;
  const note = h("p", { class: "sign-error", role: "alert" }, message);
  const input = h("input", { type: "password", id: "token", name: "token", class: "input", autocomplete: "current-password", spellcheck: "false", autocapitalize: "off", required: true, "aria-describedby": "token-help" });
  const keep = h("input", { type: "checkbox", id: "keep", name: "keep" });
  const button = h("button", { type: "submit", class: "button primary wide" }, "Sign in");
  const form = h("form", { class: "sign-card", "aria-labelledby": "sign-title" },
    h("img", { src: "/assets/icon.svg", alt: "", width: "40", height: "40" }),
    h("h1", { id: "sign-title" }, "providerd"),
    h("p", { class: "muted" }, "Health, keys and routes of your LLM providers."),
    h("label", { for: "token" }, "Admin token"), input, h("div", { class: "ask-field check" }, keep, h("label", { for: "keep" }, "Keep it for this tab")), note, button,
    h("p", { id: "token-help", class: "muted small" }, "Unless you keep it for this tab, it is gone when you reload. The server knows its SHA-256 only, from server.token_sha256. With the embedded database, the first start of providerd printed it."));
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    const text = input.value.trim();
    // What cannot stand in a header would fail with a riddle.
    if (!/^[\x21-\x7e]+$/.test(text)) return refuse("A token has no spaces and no letters beyond ASCII.");
    button.disabled = true;
    button.textContent = "Signing in…";
    useToken(text);
    try {
      await get("status");
      input.value = "";
      if (keep.checked) kept(text);
      enter();
    } catch (error) {
      forget();
      refuse(error instanceof ApiError && error.status === 401 ? "This token is not accepted." : error.message);
    }
  });
  const refuse = (text) => {
    button.disabled = false;
    button.textContent = "Sign in";
    note.textContent = text;
    input.setAttribute("aria-invalid", "true");
    input.focus();
    input.select();
  };
  document.title = "Sign in · providerd";
  before = Infinity;
  replace(app, h("main", { id: "main", class: "sign", tabindex: "-1" }, form));
  input.focus();
}

// ---------------------------------------------------------------- the frame

function enter() {
  start();
  const marks = Object.fromEntries(TABS.map(([, , name]) => [name, h("span", { class: "tab-mark", hidden: true })]));
  const tabs = TABS.map(([href, word, name]) => h("a", { href, class: "tab", "data-tab": name }, icon(name), h("span", { class: "tab-word" }, word), marks[name]));
  const live = h("span", { class: "chip-status idle" });
  const synced = h("span", { class: "chip-status idle" });
  const sync = h("button", { type: "button", class: "button", "aria-label": "Sync now: look at manifests and database again" }, icon("sync"), h("span", { class: "wide-only" }, "Sync"));
  sync.addEventListener("click", async () => {
    if (sync.getAttribute("aria-disabled") === "true") return;
    sync.setAttribute("aria-disabled", "true");
    sync.classList.add("spin");
    try {
      await post("sync");
      announce("The daemon looks again");
      await refreshStatus();
    } catch (error) {
      announce(error.message, true);
    } finally {
      sync.removeAttribute("aria-disabled");
      setTimeout(() => sync.classList.remove("spin"), 600);
    }
  });
  const theme = h("button", { type: "button", class: "button icon-only", "aria-label": "Theme" }, icon("theme"));
  theme.addEventListener("click", () => {
    const dark = document.documentElement.dataset.theme ? document.documentElement.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
    document.documentElement.dataset.theme = dark ? "light" : "dark";
    announce(dark ? "Light theme" : "Dark theme");
    try {
      localStorage.setItem("providerd-theme", document.documentElement.dataset.theme);
    } catch {
      // Then it holds until the page is closed.
    }
  });
  const keys = h("button", { type: "button", class: "button icon-only wide-only", "aria-label": "Keyboard shortcuts", onclick: help }, icon("help"));
  const out = h("button", { type: "button", class: "button icon-only", "aria-label": "Sign out", onclick: () => signIn() }, icon("out"));
  const banners = h("div", { class: "banners" });
  main = h("main", { id: "main", tabindex: "-1" });
  frame = { tabs, marks, live, synced, banners };
  replace(app,
    h("header", { class: "top" }, h("a", { class: "brand", href: "#/", "aria-label": "providerd, overview" }, h("img", { src: "/assets/icon.svg", alt: "", width: "22", height: "22" }), h("span", {}, "providerd")),
      h("nav", { class: "tabs", "aria-label": "Main" }, tabs), h("div", { class: "top-end" }, synced, live, sync, theme, keys, out)),
    banners, main,
    h("footer", { class: "foot muted" }, `Times are in ${zone}; hover over one for UTC.`));
  const every = new AbortController();
  leave = every;
  on("status", drawFrame, every.signal);
  on("live", drawFrame, every.signal);
  on("reach", drawFrame, every.signal);
  // Timed, so that "20 s ago" and the age in the banner stay true while nothing arrives.
  const timer = setInterval(() => (tick(), state.lostAt !== null && drawFrame()), 1000);
  every.signal.addEventListener("abort", () => clearInterval(timer));
  addEventListener("hashchange", () => show(true), { signal: every.signal });
  addEventListener("keydown", shortcut, { signal: every.signal });
  drawFrame();
  show(true);
}

function banner(tone, title, text, ...more) {
  return h("div", { class: `banner ${tone}` }, icon(tone === "bad" ? "unhealthy" : "degraded"), h("p", {}, h("strong", {}, title), " ", text), more);
}

let said = "";
// How many were down when somebody last heard of it.
let before = Infinity;
function drawFrame() {
  if (!frame) return;
  const { status, live, lostAt, heardAt } = state;
  const chip = (element, tone, shape, word, title) => {
    element.className = `chip-status ${tone}`;
    element.title = title;
    replace(element, icon(shape), h("span", { class: "chip-word" }, word));
  };
  if (lostAt !== null) chip(frame.live, "bad", "unhealthy", "Offline", "The server cannot be reached");
  else if (live === "live") chip(frame.live, "good", "healthy", "Live", "Events arrive as they happen");
  else chip(frame.live, "idle", "unknown", "Connecting", "Not following events yet");
  if (!status) chip(frame.synced, "idle", "unknown", "Reading", "");
  else if (status.suspended) chip(frame.synced, "warn", "held", "Suspended", "Applying is suspended");
  else if (status.synced) chip(frame.synced, "good", "check", status.revision ? `Synced ${revision(status.revision)}` : "Synced", status.revision ?? "The database holds what the manifests declare");
  else chip(frame.synced, "warn", "sync", "Catching up", "The database does not hold yet what the manifests declare");
  const mark = (name, many, tone) => {
    frame.marks[name].hidden = !many;
    frame.marks[name].className = `tab-mark ${tone}`;
    replace(frame.marks[name], count(many), h("span", { class: "sr" }, name === "held" ? " held back" : " down"));
  };
  mark("providers", status?.providers?.unhealthy ?? 0, "bad");
  mark("held", (status?.held?.length ?? 0) + (status?.manifests?.length ?? 0) + (status?.suspended ? 1 : 0), "warn");
  const down = status?.providers?.unhealthy ?? 0;
  if (status && down > before) announce(`${down} of ${status.providers.total} providers are down`);
  if (status) before = down;
  entitle();
  const list = [];
  if (lostAt !== null) list.push(banner("bad", "Connection lost.", heardAt ? `This is what was known at ${clock(heardAt, true)}. Trying again by itself.` : "Trying again by itself.", h("button", { type: "button", class: "button", onclick: () => refreshStatus() }, "Try now")));
  else if (status && status.database === false) list.push(banner("bad", "The database cannot be reached.", `providerd shows what it last read, at ${clock(Date.parse(status.checked_at), true)}, and keeps trying.`));
  if (status?.impaired) list.push(banner("warn", "Checks doubt themselves.", `${typeof status.impaired === "string" ? status.impaired : "Too many hosts fail at once"}. Run providerd doctor on that machine.`));
  if (status?.suspended) list.push(banner("warn", "Applying is suspended.", "Manifests are read and providers are checked, but nothing is written.", command("providerd resume")));
  const now = list.map((each) => each.querySelector("p").textContent).join("|");
  // A redraw with the same words would take the focus from the button in it.
  if (now === said && frame.banners.childElementCount === list.length) return;
  if (list.length && now !== said) announce(list.map((each) => each.querySelector("p").textContent).join(" "), lostAt !== null);
  else if (!list.length && said) announce("All is connected again");
  said = now;
  replace(frame.banners, list);
  document.documentElement.classList.toggle("stale", lostAt !== null);
}

// ---------------------------------------------------------------- which view

let title = "";
// In a row of tabs, the number of those that are down is what one wants to see.
function entitle() {
  const down = state.status?.providers?.unhealthy ?? 0;
  document.title = `${down ? `(${down} down) ` : ""}${title} · providerd`;
}

let view = null;
let shown = "";
// The list of providers as it was last looked at, with its search and filters.
let list = "#/providers";

function viewOf([first, second, ...more]) {
  if (first === undefined) return ["overview", overview];
  if (!more.length) {
    if (first === "providers") return ["providers", second ? provider : providers];
    if (first === "routes" && (!second || second === "explain")) return ["routes", second ? explain : routes];
    const alone = { models: ["providers", models], usage: ["usage", usage], events: ["events", events], held: ["held", held] }[first];
    if (alone && !second) return alone;
  }
  return ["", nowhere];
}

function nowhere() {
  return { title: "No such page", node: h("div", { class: "panel" }, h("h1", { tabindex: "-1", class: "sr" }, "No such page"),
    empty("There is no such page", `Nothing is at ${location.hash}.`, h("a", { class: "button", href: "#/" }, "To the overview"))) };
}

function show(moved) {
  if (!main) return;
  const hash = location.hash || "#/";
  const [path, rest = ""] = hash.slice(1).split(/\?(.*)/s);
  const parts = path.split("/").filter(Boolean).map((part) => {
    try {
      return decodeURIComponent(part);
    } catch {
      return part;
    }
  });
  // A skip link or an anchor of the page itself is no view.
  if (hash.length > 1 && !hash.startsWith("#/")) return;
  if (shown) places.set(shown, scrollY);
  view?.abort();
  view = new AbortController();
  leave.signal.addEventListener("abort", () => view.abort());
  const context = {
    signal: view.signal,
    query: new URLSearchParams(rest),
    name: parts[1],
    list,
    // The address follows what is chosen, without a step in the history for every key stroke.
    remember(to) {
      shown = to;
      if (to.startsWith("#/providers")) list = to;
      window.history.replaceState(null, "", to);
    },
  };
  const [tab, make] = viewOf(parts);
  if (make === providers) list = hash;
  const made = make(context);
  replace(main, made.node);
  title = made.title;
  entitle();
  for (const each of frame.tabs) {
    if (each.dataset.tab === tab) each.setAttribute("aria-current", "page");
    else each.removeAttribute("aria-current");
  }
  shown = hash;
  made.ready?.();
  const back = moved && places.get(hash);
  scrollTo(0, tab === "providers" && !parts[1] && back ? back : 0);
  if (moved) (main.querySelector("h1") ?? main).focus({ preventScroll: true });
}

// ---------------------------------------------------------------- keys

function help() {
  const dialog = h("dialog", { class: "dialog", "aria-labelledby": "keys-title" },
    h("div", { class: "panel-head" }, h("h2", { id: "keys-title" }, "Keyboard"), h("button", { type: "button", class: "button icon-only", "aria-label": "Close", onclick: () => dialog.close() }, icon("close"))),
    h("dl", { class: "keys" }, KEYS.map(([key, word]) => h("div", {}, h("dt", {}, h("kbd", {}, key)), h("dd", {}, word)))));
  dialog.addEventListener("close", () => dialog.remove());
  document.body.append(dialog);
  dialog.showModal();
}

function shortcut(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || event.defaultPrevented || document.querySelector("dialog[open]")) return;
  const typing = event.target.matches?.("input, textarea, select");
  if (event.key === "Escape" && !typing && document.querySelector("[data-back]")) {
    if (places.size) window.history.back();
    else location.hash = list;
    return;
  }
  if (typing) return;
  if (event.key === "/") {
    event.preventDefault();
    const field = document.querySelector("[data-search]");
    if (field) field.focus();
    else {
      location.hash = "#/providers";
      setTimeout(() => document.querySelector("[data-search]")?.focus());
    }
  } else if (event.key === "?") help();
  else if (/^[1-6]$/.test(event.key)) location.hash = TABS[Number(event.key) - 1][0];
}

window.history.scrollRestoration = "manual";
document.querySelector(".skip").addEventListener("click", (event) => {
  event.preventDefault();
  (document.querySelector("#main h1") ?? document.getElementById("main"))?.focus();
});
onRefused(() => {
  // During signing in the form itself says so.
  if (main && signedIn()) signIn("The token is no longer accepted. Sign in again.");
});
const known = kept();
if (known === null) signIn();
else {
  useToken(known);
  get("status").then(enter, (error) => (error.status === 401 ? signIn("The token is no longer accepted. Sign in again.") : enter()));
}
