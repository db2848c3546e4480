//! A LiteLLM proxy: one key of its own in front of many vendors' keys.
//!
//! Sources: docs.litellm.ai (`proxy/health`, `proxy/user_keys`, `proxy/virtual_keys`), BerriAI/litellm#24680, #36729.

use super::facts::{At, ErrorHabits, Family};
use super::shapes::{BY_GUARDED_LIST, FOREIGN_ERRORS, OPENAI_SHAPED, SK_KEY, get, probe};
use crate::{KeyVerdict, read::Complaint};

pub(super) const FAMILY: Family = Family {
    name: "LiteLLM",
    base_url: Some("http://127.0.0.1:4000/v1"),
    fake_key: SK_KEY,
    // Asks no vendor and wants no key; `/health` would call every model.
    probe: probe(get(At::Root("/health/liveliness"))),
    // Public where the proxy has no master key: then a key proves nothing.
    proofs: BY_GUARDED_LIST,
    errors: ErrorHabits { reads: errors, ..FOREIGN_ERRORS },
    ..OPENAI_SHAPED
};

fn errors(said: &Complaint<'_>) -> Option<KeyVerdict> {
    match said.status {
        // A vendor refused what the proxy sent it, such as the proxy's own key: that says nothing about ours. The
        // exception's name stands before what is quoted.
        400..=403 if said.has("litellm.") => said.unclear(),
        // Of a key, its user or its team: looked at once the key is known.
        400 | 429 if said.has("budget_exceeded") => said.quota(true),
        _ => None,
    }
}
