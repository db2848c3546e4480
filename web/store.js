// What the page knows of the daemon: one copy, refreshed in the background, watched by the views.
//
// Topics: "status", "rows", "row" (one changed), "event", "live", "reach" (the server is there or is not).

import { all, follow, get, sleep } from "./api.js";

const STATUS_EVERY = 5_000;
// A whole list of 5,000 providers is some megabytes; single rows are refreshed as events name them.
const ROWS_EVERY = 15_000;
const MANY_ROWS_EVERY = 60_000;
const MANY = 500;
// A daemon that starts says “not yet”; the list is asked for again soon.
const AGAIN = 2_000;
// More changed rows at once than this are cheaper to read as a list.
const SINGLE_ROWS = 12;
const KEPT_EVENTS = 300;
// An outage of thousands is thousands of events; the rows they name are read again this often at most.
const ROWS_SETTLE = 250;
const LIST_SETTLE = 5_000;

const fresh = () => ({
  status: null,
  statusError: null,
  rows: new Map(),
  total: null,
  complete: false,
  rowsError: null,
  events: null,
  eventsError: null,
  live: "waiting",
  heardAt: null,
  lostAt: null,
});

export let state = fresh();
const bus = new EventTarget();
let running = null;

export function on(topic, run, signal) {
  bus.addEventListener(topic, (event) => run(event.detail), { signal });
}
const tell = (topic, detail) => bus.dispatchEvent(new CustomEvent(topic, { detail }));

function reached() {
  const was = state.lostAt;
  state.heardAt = Date.now();
  state.lostAt = null;
  if (was !== null) tell("reach");
}

// An answer of 503 to one question (“the database is away”) is an answer: only silence, or a refusal to say even how
// everything is, means that the server is lost.
function lost(error, asked = "other") {
  if (state.lostAt !== null || !(asked === "status" ? error.offline : error.status === 0)) return;
  state.lostAt = Date.now();
  tell("reach");
}

export function start() {
  stop();
  state = fresh();
  clearTimeout(touching);
  touching = 0;
  touched.clear();
  running = new AbortController();
  const { signal } = running;
  repeat(signal, refreshStatus, () => STATUS_EVERY);
  repeat(signal, refreshRows, () => (!state.complete ? AGAIN : state.rows.size > MANY ? MANY_ROWS_EVERY : ROWS_EVERY));
  listen(signal);
}

export function stop() {
  running?.abort();
  running = null;
}

// A hidden page asks for nothing; shown again, it asks at once.
async function repeat(signal, run, pause) {
  while (!signal.aborted) {
    await run(signal);
    await sleep(pause(), signal);
    while (document.hidden && !signal.aborted) {
      await new Promise((done) => {
        document.addEventListener("visibilitychange", done, { once: true, signal });
        signal.addEventListener("abort", done, { once: true });
      });
    }
  }
}

export async function refreshStatus(signal = running?.signal) {
  try {
    const status = await get("status", { signal, remember: true });
    if (signal?.aborted) return;
    const same = status === state.status;
    Object.assign(state, { status, statusError: null });
    reached();
    if (!same) tell("status");
  } catch (error) {
    if (signal?.aborted || error.name === "AbortError") return;
    state.statusError = error;
    lost(error, "status");
    tell("status");
  }
}

// A signal of its own, so that somebody who signs in again does not wait for what was given up.
let reading = null;
export async function refreshRows(signal = running?.signal) {
  if (reading === signal) return;
  reading = signal;
  const read = new Map();
  try {
    await all("providers", {
      signal,
      each(items, total) {
        for (const row of items) read.set(row.name, row);
        state.total = total ?? read.size;
        // The first time, what is there already is shown while the rest comes.
        if (!state.complete) {
          state.rows = new Map(read);
          tell("rows");
        }
      },
    });
    if (signal?.aborted) return;
    Object.assign(state, { rows: read, total: read.size, complete: true, rowsError: null });
    reached();
    tell("rows");
  } catch (error) {
    if (signal?.aborted || error.name === "AbortError") return;
    state.rowsError = error;
    lost(error);
    tell("rows");
  } finally {
    if (reading === signal) reading = null;
  }
}

// Takes what a detail answer says about one provider into its row.
export function takeRow(detail) {
  if (!state.rows.has(detail.name)) return;
  const { models, config, history, recent_checks, usage, key_preview, key_fingerprint, ...row } = detail;
  state.rows.set(detail.name, { ...row, models: Array.isArray(models) ? models.length : models });
  tell("row", detail.name);
}

const touched = new Set();
let touching = 0;
let whole = false;
let listed = 0;
function touch(event, signal) {
  touched.add(event.provider);
  // Who comes or goes changes the list itself.
  const changes = event.kind === "change" && Array.isArray(event.detail?.changes) ? event.detail.changes : [];
  whole ||= changes.some((change) => change.kind === "provider" && change.action !== "update");
  touching ||= setTimeout(settle, ROWS_SETTLE, signal);
}

async function settle(signal) {
  touching = 0;
  refreshStatus(signal);
  const names = [...touched];
  const list = whole || names.length > SINGLE_ROWS || names.some((each) => !state.rows.has(each));
  const wait = list ? listed + LIST_SETTLE - Date.now() : 0;
  if (wait > 0) {
    touching = setTimeout(settle, wait, signal);
    return;
  }
  touched.clear();
  whole = false;
  if (list) {
    listed = Date.now();
    return refreshRows(signal);
  }
  for (const each of names) {
    try {
      takeRow(await get(`providers/${encodeURIComponent(each)}`, { signal }));
    } catch (error) {
      if (signal.aborted) return;
      if (error.status === 404) {
        state.rows.delete(each);
        tell("rows");
      }
    }
  }
}

// Newest first, each once.
function take(events, signal) {
  const known = new Set(state.events.map((event) => event.id));
  const fresh = events.filter((event) => !known.has(event.id));
  for (const event of fresh) {
    state.events.unshift(event);
    state.events.length = Math.min(state.events.length, KEPT_EVENTS);
    if (event.provider) touch(event, signal);
    tell("event", event);
  }
  if (fresh.some((event) => !event.provider)) refreshStatus(signal);
}

// While no stream can be had, for example because too many are open, the list says what is new.
async function poll(signal) {
  try {
    take([...((await get("events", { params: { limit: 50 }, signal })).items ?? [])].reverse(), signal);
  } catch {
    // The next attempt to follow says what is wrong.
  }
}

async function listen(signal) {
  try {
    state.events = (await get("events", { params: { limit: 100 }, signal })).items ?? [];
    state.eventsError = null;
  } catch (error) {
    if (signal.aborted) return;
    state.eventsError = error;
    lost(error);
    tell("event", null);
    if (error.status === 401) return;
    await sleep(STATUS_EVERY, signal);
    return signal.aborted ? undefined : listen(signal);
  }
  tell("event", null);
  await follow({
    signal,
    // From the very first where there is none yet: what happens before the stream begins is not missed.
    from: state.events[0]?.id ?? 0,
    changed(to) {
      if (to === "live") reached();
      else if (to === "waiting") poll(signal);
      state.live = to;
      tell("live");
    },
    item: (event) => take([event], signal),
  });
}
