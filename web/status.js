// The words, shapes and tones of statuses. Tones: good, warn, bad, idle, note.

import { h, icon } from "./dom.js";

export const HEALTH = {
  unhealthy: { word: "Unhealthy", tone: "bad", icon: "unhealthy", rank: 0 },
  degraded: { word: "Degraded", tone: "warn", icon: "degraded", rank: 1 },
  unknown: { word: "Unknown", tone: "idle", icon: "unknown", rank: 2 },
  healthy: { word: "Healthy", tone: "good", icon: "healthy", rank: 3 },
  disabled: { word: "Disabled", tone: "idle", icon: "off", rank: 4 },
};

export const KEY = {
  failed: { word: "Failed", tone: "bad", icon: "unhealthy", rank: 0 },
  missing: { word: "Missing", tone: "bad", icon: "key", rank: 1 },
  error: { word: "Unproven", tone: "warn", icon: "degraded", rank: 2 },
  pending: { word: "Pending", tone: "idle", icon: "unknown", rank: 3 },
  valid: { word: "Valid", tone: "good", icon: "healthy", rank: 4 },
  none: { word: "No key", tone: "idle", icon: "off", rank: 5 },
};

export const STATE = {
  held: { word: "Held back", tone: "warn", icon: "held", rank: 0 },
  frozen: { word: "Frozen", tone: "warn", icon: "file", rank: 1 },
  drifted: { word: "Drifted", tone: "warn", icon: "drift", rank: 2 },
  suspended: { word: "Suspended", tone: "warn", icon: "held", rank: 3 },
  pending: { word: "Pending", tone: "idle", icon: "unknown", rank: 4 },
  unmanaged: { word: "Unmanaged", tone: "idle", icon: "off", rank: 5 },
  synced: { word: "Synced", tone: "good", icon: "check", rank: 6 },
};

export const ATTENTION = {
  unhealthy: { word: "Provider down", tone: "bad", icon: "unhealthy", filter: "unhealthy" },
  key_failed: { word: "Key failed", tone: "bad", icon: "key", filter: "key-failed" },
  key_missing: { word: "Key missing", tone: "bad", icon: "key", filter: "key-missing" },
  undecryptable: { word: "Key cannot be decrypted", tone: "bad", icon: "key" },
  invalid: { word: "Invalid manifest", tone: "bad", icon: "file" },
  refused: { word: "Refused", tone: "bad", icon: "off" },
  held: { word: "Held back", tone: "warn", icon: "held" },
  suspended: { word: "Suspended", tone: "warn", icon: "held", filter: "suspended" },
  drift: { word: "Drift", tone: "warn", icon: "drift", filter: "drifted" },
};

export const EVENT = {
  change: { word: "Change applied", icon: "change" },
  drift: { word: "Drift", icon: "drift" },
  hold: { word: "Held back", icon: "held" },
  refusal: { word: "Refused", icon: "off" },
  key: { word: "Key changed", icon: "key" },
  health: { word: "Health", icon: "overview" },
  key_test: { word: "Key test", icon: "key" },
  suspend: { word: "Suspended", icon: "held" },
  resume: { word: "Resumed", icon: "sync" },
  import: { word: "Imported", icon: "file" },
  gateway: { word: "Gateway", icon: "change" },
  admin: { word: "Admin call", icon: "person" },
};

const other = (word) => ({ word: word ?? "Unknown", tone: "idle", icon: "unknown", rank: 9 });
export const of = (table, word) => (Object.hasOwn(table, word ?? "") ? table[word] : other(word));

// A disabled provider is not checked as others are: that it is off comes first.
export const healthOf = (row) => (row.enabled === false ? "disabled" : row.health);

export function badge(table, word, quiet = false) {
  const { word: text, tone, icon: shape } = of(table, word);
  return h("span", { class: `badge ${tone}${quiet ? " quiet" : ""}` }, icon(shape), h("span", {}, text));
}
