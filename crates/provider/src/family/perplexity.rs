//! Perplexity: the list has a version, the chat endpoint has none.

use super::facts::{At, ChatServing, Control, ErrorHabits, Family, KeyPlan};
use super::shapes::{
    CHAT, EMPTY, IMPOSSIBLE, OPENAI_SHAPED, PLAIN_ERRORS, SERVES_CHAT, differential, get, has_data, list,
    probe, proofs, shaped,
};

/// The unversioned list is gone.
const MODELS: At = At::Root("/v1/models");

pub(super) const FAMILY: Family = Family {
    name: "Perplexity",
    base_url: Some("https://api.perplexity.ai"),
    hosts: &["api.perplexity.ai"],
    fake_key: "pplx-providerd0negative0control0not0a0key0000000000000",
    probe: probe(get(MODELS)),
    list: list(&[get(MODELS)]),
    proofs: proofs(KeyPlan::Try(&[
        shaped(MODELS, Control::Always, has_data),
        differential(CHAT, IMPOSSIBLE),
        differential(CHAT, EMPTY),
    ])),
    errors: ErrorHabits {
        reads: |said| match said.status {
            402 => said.quota(false),
            _ if said.has("insufficient credit") => said.quota(false),
            _ => None,
        },
        ..PLAIN_ERRORS
    },
    serving: ChatServing { apis: &["chat"], takes: |caps, _| caps.tools = false, ..SERVES_CHAT },
    ..OPENAI_SHAPED
};
