// The admin API: one token, kept in this module's memory and nowhere else; JSON calls; the stream of events.

const BASE = new URL("api/v1/", document.baseURI.split("#")[0]);
// Longer than any answer from memory should take; a stalled proxy must not look like a quiet day.
const PATIENCE = 20_000;
// The server breathes at least every 15 s; three missed breaths mean that nobody is there.
const SILENCE = 50_000;

// Answers kept to be told “unchanged”.
const REMEMBERED = 200;

let token = null;
let refused = () => {};
const tags = new Map();

export class ApiError extends Error {
  constructor(status, code, message, retryAfter = null) {
    super(message);
    Object.assign(this, { status, code, retryAfter });
  }
  // No answer at all, or one that says that the service is away.
  get offline() {
    return this.status === 0 || this.status === 502 || this.status === 503 || this.status === 504;
  }
}

export const onRefused = (run) => (refused = run);
export const signedIn = () => token !== null;
export const useToken = (text) => (token = text);
export function forget() {
  token = null;
  tags.clear();
}

const words = {
  401: "The token is not accepted.",
  403: "This token may not do that.",
  404: "There is no such thing.",
  429: "Too many requests; wait a little.",
  503: "providerd cannot answer now: its database is away or it is starting.",
};

async function failure(answer) {
  let body = null;
  try {
    body = (await answer.json()).error;
  } catch {
    // A proxy answers in HTML; the status has to do.
  }
  const retryAfter = Number.parseInt(answer.headers.get("Retry-After") ?? "", 10);
  const message = body?.message ?? words[answer.status] ?? `The server answered ${answer.status}.`;
  return new ApiError(answer.status, body?.code ?? "http", message, Number.isFinite(retryAfter) ? retryAfter : null);
}

async function send(path, options, signal) {
  const headers = { Accept: "application/json", ...options.headers };
  const sent = token;
  if (sent !== null) headers.Authorization = `Bearer ${sent}`;
  let answer;
  try {
    answer = await fetch(new URL(path, BASE), { ...options, headers, signal, cache: "no-store", credentials: "omit", redirect: "error" });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError(0, "offline", error.name === "TimeoutError" ? "The server did not answer in time." : "The server cannot be reached.");
  }
  // A late refusal of a token that was replaced in the meantime says nothing about the new one.
  if (answer.status === 401 && sent === token) refused();
  if (!answer.ok && answer.status !== 304) throw await failure(answer);
  return answer;
}

const limited = (signal) => {
  const timeout = AbortSignal.timeout(PATIENCE);
  return signal ? AbortSignal.any([signal, timeout]) : timeout;
};

const query = (path, of) => {
  const pairs = Object.entries(of ?? {}).filter(([, value]) => value !== undefined && value !== null && value !== "");
  return pairs.length ? `${path}?${new URLSearchParams(pairs)}` : path;
};

export async function get(path, { params, signal, remember = false } = {}) {
  const full = query(path, params);
  const known = remember ? tags.get(full) : null;
  const answer = await send(full, { headers: known ? { "If-None-Match": known.tag } : {} }, limited(signal));
  if (answer.status === 304) return known.data;
  let data;
  try {
    data = await answer.json();
  } catch {
    throw new ApiError(answer.status, "garbled", "The answer is not what this page understands.");
  }
  const tag = answer.headers.get("ETag");
  if (remember && tag) {
    // Pages of lists go by cursors that come and go.
    if (tags.size >= REMEMBERED) tags.clear();
    tags.set(full, { tag, data });
  }
  return data;
}

export async function post(path, body = {}) {
  // A key test talks to the provider and may take its whole time limit.
  const options = { method: "POST", body: JSON.stringify(body), headers: { "Content-Type": "application/json" } };
  return (await send(path, options, AbortSignal.timeout(3 * PATIENCE))).json();
}

// As `get`, for an answer that is text.
export async function getText(path, { params, signal } = {}) {
  return (await send(query(path, params), { headers: { Accept: "text/csv" } }, limited(signal))).text();
}

// All pages of a list, one after the other; `each` sees every page as it comes.
export async function all(path, { params, signal, each, limit = 500 }) {
  let cursor = null;
  do {
    const page = await get(path, { params: { ...params, limit, cursor }, signal, remember: true });
    each(page.items ?? [], page.total ?? null);
    cursor = page.next ?? null;
  } while (cursor !== null);
}

// Follows the events until `signal` ends it; comes back by itself after any break, where it left off.
// `changed` hears "live", "waiting" and "refused".
export async function follow({ signal, from, item, changed }) {
  let last = from;
  let pause = 1000;
  while (!signal.aborted) {
    const quiet = new AbortController();
    let timer = 0;
    const heard = () => {
      clearTimeout(timer);
      timer = setTimeout(() => quiet.abort(), SILENCE);
    };
    try {
      heard();
      const headers = { Accept: "text/event-stream", ...(last === null ? {} : { "Last-Event-ID": String(last) }) };
      const answer = await send("events", { headers }, AbortSignal.any([signal, quiet.signal]));
      if (!(answer.headers.get("Content-Type") ?? "").startsWith("text/event-stream")) throw new ApiError(406, "no-stream", "no stream");
      changed("live");
      pause = 1000;
      for await (const [id, data] of messages(answer.body, heard)) {
        if (id !== "") last = id;
        if (data !== "") item(JSON.parse(data));
      }
    } catch (error) {
      if (signal.aborted) break;
      if (error.status === 401) return changed("refused");
    } finally {
      clearTimeout(timer);
    }
    changed("waiting");
    // Spread, so that a restart is not met by every open page at once.
    await sleep(pause * (0.75 + Math.random() / 2), signal);
    pause = Math.min(pause * 2, 30_000);
  }
}

export const sleep = (time, signal) =>
  new Promise((done) => {
    const timer = setTimeout(done, time);
    signal?.addEventListener("abort", () => (clearTimeout(timer), done()), { once: true });
  });

// Server-sent events, as the HTML standard has them cut into messages: [id, data].
export async function* messages(body, heard = () => {}) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  let id = "";
  let data = [];
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      heard();
      const lines = (rest + value).split(/\r\n|\n|\r(?!$)/);
      rest = lines.pop();
      for (const line of lines) {
        if (line === "") {
          if (data.length) yield [id, data.join("\n")];
          data = [];
          continue;
        }
        const colon = line.indexOf(":");
        const field = colon < 0 ? line : line.slice(0, colon);
        const text = colon < 0 ? "" : line.slice(colon + 1).replace(/^ /, "");
        if (field === "data") data.push(text);
        else if (field === "id") id = text;
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}
