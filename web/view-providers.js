// The table of all providers: searched, filtered and sorted here, drawn only where it is looked at.

import { announce, debounce, empty, h, icon, problem, replace, skeleton } from "./dom.js";
import { providerHref } from "./events-list.js";
import { ago, count, latency, revision, since } from "./format.js";
import { strip } from "./charts.js";
import { HEALTH, KEY, STATE, badge, healthOf, of } from "./status.js";
import { on, refreshRows, state } from "./store.js";

// Heights of a row and of a card; app.css has the same.
const ROW = 56;
const CARD = 148;
const OVERSCAN = 6;
// The last 24 hours of what was never checked.
const NOTHING = Array(24).fill(null);
const NARROW = matchMedia("(max-width: 760px)");

const FILTERS = [
  ["unhealthy", "Unhealthy", (row) => healthOf(row) === "unhealthy"],
  ["degraded", "Degraded", (row) => healthOf(row) === "degraded"],
  ["unknown", "Unknown", (row) => healthOf(row) === "unknown"],
  ["healthy", "Healthy", (row) => healthOf(row) === "healthy", true],
  ["key-failed", "Key failed", (row) => row.key === "failed"],
  ["key-missing", "Key missing", (row) => row.key === "missing"],
  ["key-error", "Key unproven", (row) => row.key === "error"],
  ["key-pending", "Key pending", (row) => row.key === "pending"],
  ["key-valid", "Key valid", (row) => row.key === "valid", true],
  ["key-none", "No key", (row) => row.key === "none", true],
  ["drifted", "Drifted", (row) => row.state === "drifted"],
  ["held", "Held back", (row) => row.state === "held"],
  ["frozen", "Frozen", (row) => row.state === "frozen"],
  ["suspended", "Suspended", (row) => row.state === "suspended"],
  ["pending", "Not applied yet", (row) => row.state === "pending"],
  ["unmanaged", "Unmanaged", (row) => row.state === "unmanaged"],
  ["disabled", "Disabled", (row) => row.enabled === false],
];

const text = new Intl.Collator("en", { numeric: true });
const number = (value, missing) => (Number.isFinite(value) ? value : missing);
const SORTS = {
  health: ["Health, worst first", (one, two) => of(HEALTH, healthOf(one)).rank - of(HEALTH, healthOf(two)).rank || of(KEY, one.key).rank - of(KEY, two.key).rank],
  name: ["Name", () => 0],
  latency: ["Latency, slowest first", (one, two) => number(two.latency_ms, -1) - number(one.latency_ms, -1)],
  key: ["Key, worst first", (one, two) => of(KEY, one.key).rank - of(KEY, two.key).rank],
  state: ["State", (one, two) => of(STATE, one.state).rank - of(STATE, two.state).rank],
  checked: ["Checked, longest ago first", (one, two) => Date.parse(one.last_check ?? 0) - Date.parse(two.last_check ?? 0)],
};
const COLUMNS = [
  ["name", "Provider", "c-name"],
  ["health", "Health", "c-health"],
  [null, "Last 24 h", "c-strip"],
  ["latency", "Latency", "c-latency num"],
  ["key", "Key", "c-key"],
  ["state", "State", "c-state"],
  [null, "Source", "c-source"],
  ["checked", "Checked", "c-checked num"],
];

function keyWhen(row) {
  if (row.key === "valid") return ["proven ", ago(row.key_last_tested)];
  if (row.key === "none") return [""];
  return row.key_last_tested ? ["tested ", ago(row.key_last_tested)] : [row.key === "pending" ? "test is due" : "never proven"];
}

function cells(row) {
  const health = healthOf(row);
  return [
    h("td", { class: "c-name", role: "cell" }, h("a", { class: "row-link mono", href: providerHref(row.name), tabindex: "-1" }, row.name), h("span", { class: "sub" }, row.type, row.notices?.length ? h("span", { class: "noted", title: row.notices.join("\n") }, ` · ${row.notices.length === 1 ? "1 notice" : `${row.notices.length} notices`}`) : "")),
    h("td", { class: "c-health", role: "cell", title: row.health_reason ?? undefined }, badge(HEALTH, health), h("span", { class: "sub" }, row.health_since && health !== "disabled" ? ["for ", since(row.health_since)] : "")),
    h("td", { class: "c-strip", role: "cell" }, strip(row.strip ?? NOTHING)),
    h("td", { class: "c-latency num", role: "cell" }, latency(row.latency_ms)),
    h("td", { class: "c-key", role: "cell", title: row.key_reason ?? undefined }, badge(KEY, row.key), h("span", { class: "sub" }, keyWhen(row))),
    h("td", { class: "c-state", role: "cell" }, badge(STATE, row.state, true)),
    h("td", { class: "c-source", role: "cell" }, row.source ? h("span", { class: "mono" }, row.source) : h("span", { class: "muted" }, "no manifest"), h("span", { class: "sub mono", title: row.revision ?? undefined }, revision(row.revision) ?? "")),
    h("td", { class: "c-checked num muted", role: "cell" }, ago(row.last_check)),
  ];
}

export default function providers({ query, signal, remember }) {
  let search = query.get("q") ?? "";
  let chosen = new Set((query.get("f") ?? "").split(",").filter((name) => FILTERS.some(([known]) => known === name)));
  let [sort, reversed] = (() => {
    const asked = query.get("sort") ?? "health";
    const name = asked.replace(/^-/, "");
    return Object.hasOwn(SORTS, name) ? [name, asked.startsWith("-")] : ["health", false];
  })();
  let list = [];
  let active = 0;

  const field = h("input", { type: "search", id: "search", class: "input", placeholder: "Name, type, URL, file…", "aria-label": "Search providers", autocomplete: "off", spellcheck: "false", value: search, "data-search": true });
  const shown = h("p", { class: "shown muted", role: "status" });
  const chips = h("div", { class: "chips", role: "group", "aria-label": "Show only" });
  const select = h("select", { class: "input", "aria-label": "Sort by" }, Object.entries(SORTS).map(([name, [word]]) => h("option", { value: name }, word)));
  const heads = COLUMNS.map(([name, word, kind]) => {
    const content = name ? h("button", { type: "button", class: "sort", onclick: () => order(name) }, word, h("span", { class: "sort-mark", "aria-hidden": "true" })) : word;
    return h("th", { scope: "col", role: "columnheader", class: kind, "data-sort": name ?? undefined }, content);
  });
  const above = h("tr", { class: "spacer", "aria-hidden": "true" }, h("td", { colspan: COLUMNS.length }));
  const below = h("tr", { class: "spacer", "aria-hidden": "true" }, h("td", { colspan: COLUMNS.length }));
  const body = h("tbody", { role: "rowgroup" });
  const table = h("table", { class: "grid", role: "table", "aria-label": "Providers" }, h("thead", { role: "rowgroup" }, h("tr", { role: "row", "aria-rowindex": "1" }, heads)), body);
  const wrap = h("div", { class: "grid-wrap", tabindex: "-1", "aria-describedby": "grid-help" }, table, h("p", { id: "grid-help", class: "sr" }, "Up and down arrow keys move from provider to provider, Enter opens one."));
  const other = h("div", {}, skeleton(10, "row"));
  const title = h("span", { class: "count" });

  // ---------------------------------------------------------------- which rows

  const matches = () => {
    const words = search.toLowerCase().split(/\s+/).filter(Boolean);
    const wanted = FILTERS.filter(([name]) => chosen.has(name)).map(([, , is]) => is);
    return (row) => {
      if (wanted.length && !wanted.some((is) => is(row))) return false;
      if (!words.length) return true;
      const hay = `${row.name} ${row.type} ${row.base_url ?? ""} ${row.source ?? ""} ${row.health_reason ?? ""}`.toLowerCase();
      return words.every((word) => hay.includes(word));
    };
  };
  function compute() {
    const [, compare] = SORTS[sort];
    const sign = reversed ? -1 : 1;
    const kept = list[active]?.name;
    list = [...state.rows.values()].filter(matches()).sort((one, two) => sign * (compare(one, two) || (sort === "name" ? text.compare(one.name, two.name) : 0)) || text.compare(one.name, two.name));
    const again = list.findIndex((row) => row.name === kept);
    active = again >= 0 ? again : Math.min(active, Math.max(list.length - 1, 0));
    draw();
  }

  function draw() {
    const { rows, complete, rowsError, total } = state;
    title.textContent = total === null ? "" : count(total);
    drawChips();
    heads.forEach((head) => {
      if (!head.dataset.sort) return;
      const on = head.dataset.sort === sort;
      // Several orders begin with the worst; ascending names what the rank does.
      if (on) head.setAttribute("aria-sort", reversed ? "descending" : "ascending");
      else head.removeAttribute("aria-sort");
    });
    select.value = sort;
    table.hidden = !list.length;
    table.setAttribute("aria-rowcount", String(list.length + 1));
    other.hidden = list.length > 0;
    if (rowsError && !rows.size) replace(other, problem(rowsError, () => refreshRows()));
    else if (!rows.size && complete) replace(other, empty("No providers yet", "Write a manifest, for example providers.d/ollama-cloud.toml, or adopt what the database already holds:", h("div", { class: "command" }, h("code", {}, "providerd import"))));
    else if (list.length) replace(other);
    else if (rows.size) replace(other, empty("Nothing matches", complete ? "No provider has all of this." : "Still reading…", h("button", { type: "button", class: "button", onclick: clear }, "Show all")));
    shown.textContent = !rows.size ? "" : list.length === rows.size ? (complete ? `${count(rows.size)} shown` : `Reading… ${count(rows.size)} of ${count(total)}`) : `${count(list.length)} of ${count(rows.size)} shown`;
    layout();
  }

  function drawChips() {
    const counts = FILTERS.map(([, , is]) => {
      let many = 0;
      for (const row of state.rows.values()) many += is(row) ? 1 : 0;
      return many;
    });
    const had = document.activeElement?.dataset?.chip;
    replace(chips, FILTERS.map(([name, word, , usual], at) => {
      const on = chosen.has(name);
      if (!on && (!counts[at] || usual)) return null;
      return h("button", { type: "button", class: "chip", "aria-pressed": String(on), "data-chip": name, onclick: () => toggle(name) }, word, h("span", { class: "chip-count" }, count(counts[at])));
    }), chosen.size > 0 && h("button", { type: "button", class: "chip clear", "data-chip": "clear", onclick: clear }, icon("close"), "Clear"));
    if (had) (chips.querySelector(`[data-chip="${had}"]`) ?? field).focus();
  }

  // ---------------------------------------------------------------- which of them are drawn

  const drawn = new Map();
  function layout() {
    const height = NARROW.matches ? CARD : ROW;
    const top = wrap.getBoundingClientRect().top + (NARROW.matches ? 0 : table.tHead.offsetHeight);
    const first = Math.max(0, Math.min(Math.floor(-top / height), list.length) - OVERSCAN);
    const last = Math.min(list.length, Math.ceil((innerHeight - top) / height) + OVERSCAN);
    const wanted = new Set(list.slice(first, last).map((row) => row.name));
    // The focus must not fall off the page; the arrow keys go on from here. Moved before anything else changes,
    // for focusing measures the page, and a page that is short for a moment loses its scroll position.
    const focus = document.activeElement?.closest("tr.row")?.dataset.name;
    if (focus !== undefined && !wanted.has(focus)) wrap.focus({ preventScroll: true });
    above.firstChild.style.height = `${first * height}px`;
    below.firstChild.style.height = `${Math.max(0, list.length - last) * height}px`;
    const rows = [];
    for (let at = first; at < last; at += 1) {
      const row = list[at];
      let entry = drawn.get(row.name);
      if (!entry) {
        entry = { row: null, node: h("tr", { role: "row", class: "row", "data-name": row.name }) };
        drawn.set(row.name, entry);
      }
      if (entry.row !== row) {
        const focused = entry.node.contains(document.activeElement);
        entry.row = row;
        replace(entry.node, cells(row));
        if (focused) entry.node.querySelector("a").focus({ preventScroll: true });
      }
      entry.node.setAttribute("aria-rowindex", String(at + 2));
      entry.node.querySelector("a").tabIndex = at === active ? 0 : -1;
      rows.push(entry.node);
    }
    for (const [name, { node }] of drawn) {
      if (wanted.has(name)) continue;
      node.remove();
      drawn.delete(name);
    }
    // Nodes that are in their place stay there, or they would lose the focus.
    let next = body.firstChild;
    for (const node of [above, ...rows, below]) {
      if (node === next) next = next.nextSibling;
      else body.insertBefore(node, next);
    }
    // The active row may be far away; then the first one drawn is what Tab reaches.
    if (rows.length && (active < first || active >= last)) rows[Math.min(OVERSCAN, rows.length - 1)].querySelector("a").tabIndex = 0;
  }

  function go(to, focus = true) {
    if (!list.length) return;
    active = Math.max(0, Math.min(to, list.length - 1));
    const height = NARROW.matches ? CARD : ROW;
    const head = (NARROW.matches ? 0 : table.tHead.offsetHeight) + document.querySelector(".top").offsetHeight;
    const start = wrap.getBoundingClientRect().top + scrollY + (NARROW.matches ? 0 : table.tHead.offsetHeight) + active * height;
    if (start < scrollY + head + 8) scrollTo(0, start - head - 8);
    else if (start + height > scrollY + innerHeight - 72) scrollTo(0, start + height - innerHeight + 72);
    layout();
    if (focus) drawn.get(list[active].name)?.node.querySelector("a").focus({ preventScroll: true });
  }

  wrap.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.target.closest("thead")) return;
    const page = Math.max(1, Math.floor(innerHeight / ROW) - 4);
    const to = { ArrowDown: active + 1, ArrowUp: active - 1, PageDown: active + page, PageUp: active - page, Home: 0, End: list.length - 1 }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    go(to);
  });
  body.addEventListener("focusin", (event) => {
    const name = event.target.closest("tr")?.dataset.name;
    const at = list.findIndex((row) => row.name === name);
    if (at >= 0) active = at;
  });
  body.addEventListener("click", (event) => {
    const row = event.target.closest("tr.row");
    if (!row || event.target.closest("a") || String(getSelection())) return;
    location.hash = providerHref(row.dataset.name);
  });

  // ---------------------------------------------------------------- what the person asks for

  const keep = () => {
    const asked = new URLSearchParams();
    if (search) asked.set("q", search);
    if (chosen.size) asked.set("f", [...chosen].join(","));
    if (sort !== "health" || reversed) asked.set("sort", (reversed ? "-" : "") + sort);
    remember(`#/providers${asked.size ? `?${asked.toString().replaceAll("%2C", ",")}` : ""}`);
  };
  const update = () => (keep(), (active = 0), compute());
  function toggle(name) {
    if (!chosen.delete(name)) chosen.add(name);
    update();
  }
  function clear() {
    chosen = new Set();
    search = field.value = "";
    update();
    field.focus();
  }
  function order(name) {
    [sort, reversed] = name === sort ? [sort, !reversed] : [name, false];
    announce(`Sorted by ${SORTS[sort][0]}${reversed ? ", reversed" : ""}`);
    update();
  }
  field.addEventListener("input", debounce(80, () => ((search = field.value.trim()), update())));
  field.addEventListener("keydown", (event) => {
    if (event.key === "ArrowDown" || (event.key === "Enter" && list.length)) {
      event.preventDefault();
      if (event.key === "Enter" && list.length === 1) location.hash = providerHref(list[0].name);
      else go(0);
    }
    if (event.key === "Escape" && field.value) {
      event.preventDefault();
      field.value = search = "";
      update();
    }
  });
  select.addEventListener("change", () => (([sort, reversed] = [select.value, false]), update()));

  let frame = 0;
  const soon = () => {
    frame ||= requestAnimationFrame(() => {
      frame = 0;
      if (!signal.aborted) layout();
    });
  };
  addEventListener("scroll", soon, { passive: true, signal });
  addEventListener("resize", soon, { signal });
  NARROW.addEventListener("change", soon, { signal });
  on("rows", compute, signal);
  on("row", debounce(100, () => !signal.aborted && compute()), signal);

  return {
    title: "Providers",
    node: h("div", { class: "providers" },
      h("div", { class: "head" }, h("h1", { tabindex: "-1" }, "Providers ", title), h("a", { class: "button", href: "#/models" }, "All models")),
      h("div", { class: "tools" }, h("div", { class: "search" }, icon("search"), field, h("kbd", { "aria-hidden": "true" }, "/")), h("div", { class: "narrow-only" }, select), shown), chips,
      wrap, other),
    ready: compute,
  };
}
