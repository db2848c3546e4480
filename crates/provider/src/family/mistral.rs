//! Mistral.

use super::facts::{ChatServing, ErrorHabits, Family};
use super::shapes::{BY_LIST, OPENAI_SHAPED, PLAIN_ERRORS, SERVES_CHAT};
use crate::dialect::ReasoningForm;

pub(super) const FAMILY: Family = Family {
    name: "Mistral AI",
    base_url: Some("https://api.mistral.ai/v1"),
    hosts: &["api.mistral.ai"],
    fake_key: "providerd0not0a0key0000000000000",
    proofs: BY_LIST,
    errors: ErrorHabits {
        reads: |said| if said.status == 422 { said.valid() } else { None },
        ..PLAIN_ERRORS
    },
    serving: ChatServing {
        takes: |caps, _| {
            caps.renames.insert("seed".to_owned(), "random_seed".to_owned());
            caps.strict_tools = false;
            caps.reasoning = ReasoningForm::None;
            // Its last chunk always has the figures, and fields that it does not know are a 422.
            caps.stream_usage = false;
        },
        ..SERVES_CHAT
    },
    ..OPENAI_SHAPED
};
