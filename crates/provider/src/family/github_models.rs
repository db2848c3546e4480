//! GitHub Models, which its operator has ended.

use super::facts::{ChatServing, Family};
use super::shapes::{OPENAI_SHAPED, SERVES_CHAT};

pub(super) const FAMILY: Family = Family {
    name: "GitHub Models",
    base_url: Some("https://models.github.ai/inference"),
    hosts: &["models.github.ai"],
    suffixes: &["/inference"],
    serving: ChatServing { apis: &["chat"], ..SERVES_CHAT },
    retired: Some("GitHub Models was retired on 2026-07-30"),
    ..OPENAI_SHAPED
};
