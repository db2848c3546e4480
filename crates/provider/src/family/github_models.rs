//! GitHub Models, which its operator has ended.

use super::facts::{Family, Serving};
use super::shapes::{OPENAI_SHAPED, SERVES_CHAT};

pub(super) const FAMILY: Family = Family {
    base_url: Some("https://models.github.ai/inference"),
    hosts: &["models.github.ai"],
    suffixes: &["/inference"],
    serving: Serving { apis: &["chat"], ..SERVES_CHAT },
    retired: Some("GitHub Models was retired on 2026-07-30"),
    ..OPENAI_SHAPED
};
