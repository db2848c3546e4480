//! Zhipu (Z.ai): separate worlds inside and outside China, and business codes under an HTTP status.

use super::facts::{ChatServing, ErrorHabits, Family};
use super::shapes::{OPENAI_SHAPED, PLAIN_ERRORS, SERVES_CHAT};
use crate::dialect::{ReasoningForm, StructuredForm};
use crate::{KeyVerdict, read::Complaint};

pub(super) const FAMILY: Family = Family {
    name: "Zhipu",
    base_url: Some("https://open.bigmodel.cn/api/paas/v4"),
    hosts: &["open.bigmodel.cn", "api.z.ai"],
    suffixes: &["/api/coding/paas/v4", "/api/paas/v4"],
    regions: &["https://open.bigmodel.cn/api/paas/v4", "https://api.z.ai/api/paas/v4"],
    fake_key: "00000000000000000000000000000000.providerd0000000",
    errors: ErrorHabits { reads: errors, forbidden_is_invalid: true, ..PLAIN_ERRORS },
    serving: ChatServing {
        takes: |caps, _| {
            caps.reasoning = ReasoningForm::Switch;
            caps.structured = StructuredForm::Json;
            caps.cache_marks = true;
        },
        ..SERVES_CHAT
    },
    ..OPENAI_SHAPED
};

fn errors(said: &Complaint<'_>) -> Option<KeyVerdict> {
    if said.has_code(&["1113", "1304", "1308", "1309", "1310"]) {
        said.quota(true)
    } else if said.has_code(&["1311", "1220"]) {
        said.restricted(true)
    } else if said.has_code(&["1110", "1111", "1112", "1121"]) {
        said.restricted(false)
    } else if said.has_code(&["1000", "1001", "1002", "1003", "1004", "1005"]) {
        said.invalid()
    } else if said.has_code(&["1302", "1303", "1305", "1312"]) {
        said.rate(false)
    } else {
        None
    }
}
