//! Replicate: predictions instead of a chat protocol.

use serde_json::Value;

use super::facts::{At, Control, Family, KeyPlan, Listing, ModelIds, Proofs};
use super::shapes::{MODELS, OPENAI_SHAPED, get, list, probe, proofs, serves_own, shaped, valid};
use crate::KeyReport;

pub(super) const FAMILY: Family = Family {
    name: "Replicate",
    base_url: Some("https://api.replicate.com/v1"),
    hosts: &["api.replicate.com"],
    fake_key: "r8_providerd0negative0control0not0a0key0",
    probe: probe(get(At::Base("/account"))),
    list: Listing { ids: ModelIds::OwnerAndName, ..list(&[MODELS]) },
    proofs: Proofs {
        chat_elsewhere: false,
        ..proofs(KeyPlan::Try(&[shaped(At::Base("/account"), Control::Foreign, account)]))
    },
    serving: serves_own(&[]),
    ..OPENAI_SHAPED
};

fn account(json: &Value) -> Option<KeyReport> {
    json.get("username").is_some_and(Value::is_string).then(valid)
}
