// One provider: is it up, since when, which key, who changed it.

import { get, post } from "./api.js";
import { history, recent, timeline, uptime } from "./charts.js";
import { announce, copyButton, empty, h, icon, problem, redraw, replace, skeleton } from "./dom.js";
import { eventItem } from "./events-list.js";
import { ago, count, latency, moment, plural, revision, short, since, usd, value } from "./format.js";
import { EVENT, HEALTH, KEY, STATE, badge, healthOf, of } from "./status.js";
import { on, state, takeRow } from "./store.js";

const EVENTS = 25;

const fact = (name, ...of_) => h("div", {}, h("dt", {}, name), h("dd", {}, of_));

function panel(title, ...content) {
  const id = `p-${title.toLowerCase().replace(/[^a-z]+/g, "-")}`;
  return h("section", { class: "panel", "aria-labelledby": id }, h("h2", { id }, title), content);
}

function answerFirst(provider, events) {
  const health = healthOf(provider);
  const last = events?.find((event) => ["change", "drift", "key"].includes(event.kind));
  const day = uptime(provider.history?.day ?? []);
  return h("dl", { class: "answers" },
    h("div", { class: of(HEALTH, health).tone }, h("dt", {}, "Health"), h("dd", {}, h("span", { class: "big" }, badge(HEALTH, health)),
      h("span", { class: "sub" }, provider.health_since && health !== "disabled" ? ["for ", since(provider.health_since), ", since ", moment(provider.health_since, false)] : ""),
      provider.health_reason && h("span", { class: "why" }, provider.health_reason))),
    h("div", { class: of(KEY, provider.key).tone }, h("dt", {}, "Key"), h("dd", {}, h("span", { class: "big" }, badge(KEY, provider.key)),
      h("span", { class: "sub" }, provider.key === "none" ? "it needs none" : provider.key_last_tested ? [provider.key === "valid" ? "last proven " : "last tested ", ago(provider.key_last_tested)] : "not tested yet"),
      provider.key_reason && h("span", { class: "why" }, provider.key_reason))),
    h("div", {}, h("dt", {}, "Latency"), h("dd", {}, h("span", { class: "big" }, latency(provider.latency_ms)),
      h("span", { class: "sub" }, day.total ? `${day.text} answered in 24\u00a0h` : ""), h("span", { class: "sub" }, "checked ", ago(provider.last_check)))),
    h("div", { class: of(STATE, provider.state).tone }, h("dt", {}, "Catalog"), h("dd", {}, h("span", { class: "big" }, badge(STATE, provider.state)),
      h("span", { class: "sub mono" }, provider.source ?? "no manifest"),
      last && h("span", { class: "why" }, `${of(EVENT, last.kind).word} `, ago(last.at), last.actor ? ` by token ${last.actor}` : last.revision ? ` from ${revision(last.revision)}` : ""))));
}

function notices(provider) {
  const texts = provider.notices ?? [];
  if (!texts.length) return null;
  return h("ul", { class: "notices", "aria-label": "Notices" }, texts.map((text) => h("li", {}, icon(of(STATE, provider.state).icon), h("span", {}, text))));
}

function models(provider) {
  const all = Array.isArray(provider.models) ? provider.models : [];
  if (!all.length) return empty("No models", "Its manifest declares none.");
  return h("div", { class: "scroll-box", tabindex: "0", role: "region", "aria-label": "Table of models" }, h("table", { class: "plain" },
    h("thead", {}, h("tr", {}, h("th", { scope: "col" }, "Model"), h("th", { scope: "col", class: "num" }, "Context"), h("th", { scope: "col", class: "num" }, "In / 1M"), h("th", { scope: "col", class: "num" }, "Out / 1M"), h("th", { scope: "col", class: "num" }, "Latency"), h("th", { scope: "col" }, "State"))),
    h("tbody", {}, all.map((model) => h("tr", {},
      h("th", { scope: "row" }, h("span", { class: "mono" }, model.name), model.display_name && model.display_name !== model.name && h("span", { class: "sub" }, model.display_name)),
      h("td", { class: "num" }, Number.isFinite(model.context_length) ? count(model.context_length) : "–"),
      h("td", { class: "num" }, usd(model.cost_per_1m_input_tokens)), h("td", { class: "num" }, usd(model.cost_per_1m_output_tokens)),
      h("td", { class: "num" }, latency(model.avg_latency_ms)),
      h("td", {}, model.enabled === false ? h("span", { class: "badge idle quiet" }, icon("off"), "Disabled") : h("span", { class: "badge good quiet" }, icon("check"), "Enabled")))))));
}

function config(provider) {
  const entries = Object.entries(provider.config ?? {});
  return h("dl", { class: "facts" },
    fact("Type", provider.type ?? "–"), fact("Base URL", h("span", { class: "mono wrap" }, provider.base_url ?? "–")),
    fact("Priority", count(provider.priority)), fact("Enabled", provider.enabled === false ? "no" : "yes"),
    entries.filter(([name]) => name !== "base_url").map(([name, of_]) => fact(h("span", { class: "mono" }, name), h("span", { class: "mono wrap" }, value(of_)))));
}

function keyFacts(provider) {
  return h("dl", { class: "facts" },
    fact("Preview", provider.key_preview ? h("span", { class: "mono" }, provider.key_preview) : "–"),
    fact("Fingerprint", provider.key_fingerprint ? h("span", { class: "mono wrap" }, provider.key_fingerprint) : "–"),
    fact("Consumers look in", provider.key_source ?? "–"),
    fact(provider.key === "valid" ? "Last proven" : "Last tested", ago(provider.key_last_tested)));
}

function source(provider) {
  return h("dl", { class: "facts" },
    fact("Declared at", provider.source ? [h("span", { class: "mono wrap" }, provider.source), " ", copyButton(provider.source)] : "no manifest declares it"),
    fact("Revision", provider.revision ? h("span", { class: "mono wrap" }, provider.revision) : "none recorded"),
    fact("Identity", h("span", { class: "mono wrap" }, provider.id ?? "–")));
}

function usage(of_) {
  if (!of_) return empty("No usage recorded", "Nothing was logged for it in the last 30 days.");
  return h("dl", { class: "figures-row" },
    [["Calls", count(of_.calls)], ["Failures", count(of_.failures)], ["Tokens in", short(of_.prompt_tokens)], ["Tokens out", short(of_.completion_tokens)], ["Cost", usd(of_.cost_usd)]].map(([name, text]) => h("div", {}, h("dt", {}, name), h("dd", {}, text))));
}

// The buttons, and what came of them.
function actions(name, reload) {
  const result = h("p", { class: "result", role: "status" });
  const say = (tone, shape, text) => {
    result.className = `result ${tone}`;
    replace(result, icon(shape), h("span", {}, text));
  };
  const run = (button, doing, work) => async () => {
    if (button.getAttribute("aria-disabled") === "true") return;
    // Not `disabled`: the focus would be lost.
    button.setAttribute("aria-disabled", "true");
    say("idle busy", "sync", doing);
    try {
      await work();
    } catch (error) {
      const wait = error.retryAfter ? `. Try again in ${error.retryAfter} s.` : "";
      say("bad", "unhealthy", error.message.replace(/[.\s]+$/, wait ? "" : "$&") + wait);
    } finally {
      button.removeAttribute("aria-disabled");
    }
  };
  const test = h("button", { type: "button", class: "button primary", "data-action": "test" }, icon("key"), "Test key");
  test.addEventListener("click", run(test, "Asking the provider…", async () => {
    const found = await post("llm/providers/keys/test", { provider_type: name });
    if (found.success) say("good", "healthy", ["Valid", Number.isFinite(found.models_found) ? `, ${plural(found.models_found, "model")} found` : "", Number.isFinite(found.latency_ms) ? `, ${latency(found.latency_ms)}` : ""].join(""));
    else say("bad", "unhealthy", `Not proven: ${found.error ?? "the provider gave no reason"}`);
    reload();
  }));
  const sync = h("button", { type: "button", class: "button", "data-action": "sync" }, icon("sync"), "Sync now");
  sync.addEventListener("click", run(sync, "Asking the daemon to look again…", async () => {
    await post("sync");
    say("good", "check", "The daemon looks at manifests and database again.");
    reload();
  }));
  const check = h("button", { type: "button", class: "button", "data-action": "check" }, icon("overview"), "Check now");
  check.addEventListener("click", run(check, "Asking the daemon to check…", async () => {
    const { triggered } = await post(`providers/${encodeURIComponent(name)}/check`);
    if (triggered) say("good", "check", "It is being checked; the result appears here.");
    else say("warn", "degraded", "Not checked: its checks are paused, it is disabled, or another daemon checks it.");
    setTimeout(reload, 1500);
  }));
  // Pauses, or goes on with, checks and key tests: maintenance.
  let isPaused = false;
  const pause = h("button", { type: "button", class: "button", "data-action": "pause" });
  const drawPause = () => replace(pause, icon(isPaused ? "play" : "pause"), isPaused ? "Resume checks" : "Pause checks");
  drawPause();
  pause.addEventListener("click", run(pause, isPaused ? "Resuming…" : "Pausing…", async () => {
    await post(isPaused ? "resume" : "suspend", { provider: name, checks: true });
    isPaused = !isPaused;
    drawPause();
    say("good", "check", isPaused ? "It is neither checked nor is its key tested until you resume; statuses stay as they are." : "It is checked again.");
    reload();
  }));
  return {
    node: h("div", { class: "actions" }, result, pause, sync, check, test),
    paused(now) {
      if (now === isPaused || pause.getAttribute("aria-disabled") === "true") return;
      isPaused = now;
      drawPause();
    },
  };
}

export default function provider({ name, list, signal }) {
  const known = state.rows.get(name);
  const heading = h("h1", { class: "mono", tabindex: "-1" }, name);
  const under = h("p", { class: "muted" });
  const body = h("div", {}, skeleton(1, "block"), skeleton(2, "chart"));
  const trail = h("div", {}, skeleton(4, "row"));
  let events = null;
  let detail = null;
  let span = "day";
  const tools = actions(name, load);

  const drawUnder = (from) => {
    if (from) replace(under, [from.type, from.base_url].filter(Boolean).join(" · "));
  };
  drawUnder(known);

  // Parts are drawn once and filled again, so that a refresh moves neither focus nor scroll.
  const slots = Object.fromEntries(["answers", "notices", "history", "models", "key", "source", "config", "usage"].map((each) => [each, h("div", {})]));
  // What is shown: button, width of a stretch, its name, how many, and which sums of the server it is made of.
  const spans = {
    recent: ["Last checks", 0, "last checks", 60, "recent_checks"],
    six: ["6 hours", 3_600_000, "6 h", 6, "day"],
    day: ["24 hours", 3_600_000, "24 h", 24, "day"],
    week: ["7 days", 86_400_000, "7 days", 7, "month"],
    month: ["30 days", 86_400_000, "30 days", 30, "month"],
  };
  const tabs = h("div", { class: "segments", role: "group", "aria-label": "Time shown" }, Object.entries(spans).map(([each, [word]]) =>
    h("button", { type: "button", "aria-pressed": String(each === span), "data-span": each, onclick: () => {
      span = each;
      for (const tab of tabs.children) tab.setAttribute("aria-pressed", String(tab.dataset.span === span));
      drawHistory(true);
    } }, word)));
  const shape = h("div", { class: "detail" }, slots.notices, slots.answers,
    h("section", { class: "panel", "aria-labelledby": "p-history" }, h("div", { class: "panel-head" }, h("h2", { id: "p-history" }, "Health and latency"), tabs), slots.history),
    h("div", { class: "columns even" },
      h("div", { class: "stack" }, panel("Models", slots.models), panel("Usage, 30 days", slots.usage)),
      h("div", { class: "stack" }, panel("Key", slots.key), panel("Source", slots.source), panel("Configuration", slots.config))),
    panel("Events", trail, h("p", { class: "panel-foot" }, h("a", { href: `#/events?provider=${encodeURIComponent(name)}` }, "All its events"))));

  let last = {};
  const put = (slot, from, make) => {
    const text = JSON.stringify(from);
    if (last[slot] === text) return;
    last[slot] = text;
    redraw(slots[slot], make());
  };
  function drawHistory(force = false) {
    const [, width, word, many, from] = spans[span];
    const points = (span === "recent" ? detail?.recent_checks : detail?.history?.[from]) ?? [];
    if (force) delete last.history;
    // Somebody reading figures is not interrupted.
    else if (slots.history.matches(":hover") || slots.history.contains(document.activeElement) || slots.history.querySelector("details[open]")) return;
    // Drawn again when an hour has passed, too.
    if (span === "recent") {
      put("history", [span, points], () => points.length ? recent(points) : empty("No check has ended yet", "The daemon that checks this provider remembers its last 60 checks; a restart forgets them."));
      return;
    }
    put("history", [span, points, Math.floor(Date.now() / width)], () => points.length ? history(timeline(points, width, many), { width, span: word })
      : empty("Nothing recorded in this time", "Checks are summed up within minutes; health and latency appear here then."));
  }
  function draw() {
    drawUnder(detail);
    tools.paused(detail.checks_paused === true);
    if (body.firstChild !== shape) replace(body, shape);
    put("answers", [detail, events?.[0]?.id], () => answerFirst(detail, events));
    put("notices", [detail.state, detail.notices], () => notices(detail));
    put("models", detail.models, () => models(detail));
    put("key", [detail.key, detail.key_preview, detail.key_fingerprint, detail.key_last_tested], () => keyFacts(detail));
    put("source", [detail.source, detail.revision], () => source(detail));
    put("config", [detail.config, detail.type, detail.base_url, detail.priority, detail.enabled], () => config(detail));
    put("usage", detail.usage ?? null, () => usage(detail.usage));
    drawHistory();
  }

  async function load() {
    try {
      detail = await get(`providers/${encodeURIComponent(name)}`, { signal });
    } catch (error) {
      if (signal.aborted || detail) return;
      if (error.status === 404) replace(body, empty("There is no such provider", `No provider is called ${name}. It may have been renamed or pruned.`, h("a", { class: "button", href: "#/providers" }, "All providers")));
      else replace(body, problem(error, load));
      return;
    }
    if (signal.aborted) return;
    draw();
    takeRow(detail);
  }
  async function loadEvents() {
    try {
      events = (await get("events", { params: { provider: name, limit: EVENTS }, signal })).items ?? [];
    } catch (error) {
      if (!signal.aborted && !events) replace(trail, problem(error, loadEvents));
      return;
    }
    if (signal.aborted) return;
    drawEvents();
    if (detail) draw();
  }
  function drawEvents() {
    redraw(trail, events.length ? h("ol", { class: "events" }, events.map((event) => eventItem(event, { withProvider: false }))) : empty("No events", "Nothing has happened to it yet."));
  }

  on("event", (event) => {
    if (event?.provider !== name || !events) return;
    if (!events.some((one) => one.id === event.id)) events = [event, ...events].slice(0, EVENTS);
    drawEvents();
    if (event.kind === "health" || event.kind === "key_test") announce(`${of(EVENT, event.kind).word}: ${event.detail?.from ?? ""} to ${event.detail?.to ?? ""}`);
  }, signal);
  // The list refreshes rows in the background; a changed check is a reason to read the rest again.
  let checked = known?.last_check;
  const again = () => {
    const row = state.rows.get(name);
    if (row && detail && row.last_check !== detail.last_check && row.last_check !== checked) {
      checked = row.last_check;
      load();
    } else if (row && detail && row.health !== detail.health) load();
  };
  on("rows", again, signal);
  load();
  loadEvents();

  return {
    title: name,
    node: h("div", { class: "provider" },
      h("nav", { class: "crumbs", "aria-label": "Breadcrumb" }, h("a", { href: list, "data-back": true }, icon("back"), "Providers")),
      h("div", { class: "head" }, h("div", {}, heading, under), tools.node), body),
  };
}
