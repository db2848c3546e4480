//! A server that speaks OpenAI's dialect, of which nothing else is known.

use super::facts::{At, Control, Family, KeyPlan};
use super::shapes::{
    CHAT, EMPTY, FOREIGN_ERRORS, IMPOSSIBLE, OPENAI_SHAPED, differential, has_data, proofs, shaped,
};

pub(super) const FAMILY: Family = Family {
    name: "OpenAI-compatible endpoint",
    proofs: proofs(KeyPlan::Try(&[
        shaped(At::Base("/models"), Control::Always, has_data),
        differential(CHAT, EMPTY),
        differential(CHAT, IMPOSSIBLE),
    ])),
    errors: FOREIGN_ERRORS,
    ..OPENAI_SHAPED
};
