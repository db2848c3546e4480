//! NVIDIA's hosted NIM.

use serde_json::Value;

use super::facts::{At, Control, ErrorHabits, Family, KeyPlan};
use super::shapes::{
    CHAT, EMPTY, IMPOSSIBLE, OPENAI_SHAPED, PLAIN_ERRORS, differential, post, probe, proofs, shaped, valid,
};
use crate::KeyReport;

pub(super) const FAMILY: Family = Family {
    name: "NVIDIA NIM",
    base_url: Some("https://integrate.api.nvidia.com/v1"),
    hosts: &["integrate.api.nvidia.com"],
    fake_key: "nvapi-providerd0negative0control0not0a0key000000000000000000000000",
    // Its model list can take more than 10 s; the gateway answers a malformed request at once.
    probe: probe(post(CHAT, EMPTY)),
    proofs: proofs(KeyPlan::Try(&[
        differential(CHAT, EMPTY),
        differential(CHAT, IMPOSSIBLE),
        shaped(At::Far("api.nvcf.nvidia.com", "/v2/nvcf/functions"), Control::Always, functions),
    ])),
    errors: ErrorHabits {
        reads: |said| match said.status {
            403 if said.has("authorization failed") => said.invalid(),
            404 if said.has("not found for account") => said.valid(),
            400 if said.has("degraded function") => said.overload(),
            _ => None,
        },
        ..PLAIN_ERRORS
    },
    ..OPENAI_SHAPED
};

fn functions(json: &Value) -> Option<KeyReport> {
    json.get("functions").is_some_and(Value::is_array).then(valid)
}
