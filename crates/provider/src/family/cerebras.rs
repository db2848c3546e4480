//! Cerebras.

use super::facts::{At, ChatServing, ErrorHabits, Family, ListedPrices, Listing};
use super::shapes::{BY_GUARDED_LIST, MODELS, OPENAI_SHAPED, PLAIN_ERRORS, SERVES_CHAT, get, list};

pub(super) const FAMILY: Family = Family {
    name: "Cerebras",
    base_url: Some("https://api.cerebras.ai/v1"),
    hosts: &["api.cerebras.ai"],
    fake_key: "csk-providerd0negative0control0not0a0key000000000000",
    list: Listing {
        prices: ListedPrices::PerToken,
        ..list(&[get(At::Base("/models?format=openrouter")), MODELS])
    },
    // It has not been shown that its list refuses strangers.
    proofs: BY_GUARDED_LIST,
    errors: ErrorHabits { forbidden_is_invalid: true, ..PLAIN_ERRORS },
    serving: ChatServing {
        takes: |caps, _| {
            caps.plain_content = true;
            caps.images = false;
            caps.documents = false;
        },
        ..SERVES_CHAT
    },
    ..OPENAI_SHAPED
};
