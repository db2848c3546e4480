//! Groq.

use super::facts::{ChatServing, ErrorHabits, Family};
use super::shapes::{BY_LIST, OPENAI_SHAPED, PLAIN_ERRORS, SERVES_CHAT};

pub(super) const FAMILY: Family = Family {
    name: "Groq",
    base_url: Some("https://api.groq.com/openai/v1"),
    hosts: &["api.groq.com"],
    suffixes: &["/openai/v1", "/v1"],
    fake_key: "gsk_providerd0negative0control0not0a0key00000000000000000",
    proofs: BY_LIST,
    errors: ErrorHabits {
        reads: |said| if said.status == 498 { said.overload() } else { None },
        ..PLAIN_ERRORS
    },
    serving: ChatServing { takes: |caps, _| caps.structured_streams = false, ..SERVES_CHAT },
    ..OPENAI_SHAPED
};
