//! Google's Generative Language API. Keys begin with `AIza`, `AQ.` or something newer: no prefix is required.

use serde_json::Value;

use super::facts::{At, Auth, Control, ErrorHabits, Family, KeyHeader, KeyPlan, Listing, ModelIds, Proofs};
use super::shapes::{
    OPENAI_SHAPED, PLAIN_ERRORS, get, list, lists, probe, proofs, serves_own, shaped, valid,
};
use crate::{KeyReport, KeyVerdict, dialect::UpstreamDialect, read::Complaint};

pub(super) const FAMILY: Family = Family {
    name: "Google AI",
    base_url: Some("https://generativelanguage.googleapis.com/v1beta"),
    hosts: &["generativelanguage.googleapis.com"],
    suffixes: &["/v1beta/openai", "/v1beta", "/v1"],
    // Never the query, which ends up in logs.
    auth: Auth::by(KeyHeader::Named("x-goog-api-key")),
    fake_key: "AQ.providerd-negative-control-not-a-key",
    probe: probe(get(At::Base("/models?pageSize=1"))),
    list: Listing {
        offers: |item| lists(item, "supportedGenerationMethods", "generateContent") != Some(false),
        ids: ModelIds::After("models/"),
        ..list(&[get(At::Base("/models?pageSize=1000"))])
    },
    proofs: Proofs {
        chat_elsewhere: false,
        ..proofs(KeyPlan::Try(&[shaped(At::Base("/models?pageSize=1"), Control::Foreign, models)]))
    },
    errors: ErrorHabits { reads: errors, ..PLAIN_ERRORS },
    serving: serves_own(&[("", UpstreamDialect::Google)]),
    ..OPENAI_SHAPED
};

fn models(json: &Value) -> Option<KeyReport> {
    // The compatible surface answers with `data`.
    ["models", "data"].iter().any(|name| json.get(name).is_some_and(Value::is_array)).then(valid)
}

fn errors(said: &Complaint<'_>) -> Option<KeyVerdict> {
    match said.status {
        _ if said.has("dunning") => said.quota(true),
        // Its text for a limit per minute speaks of a quota as well; the status word decides.
        429 => said.rate(said.has("resource_exhausted")),
        _ if said.has("unregistered callers") => said.unclear(),
        401 if said.has("expected oauth 2 access token") => said.invalid(),
        400 if said.has("failed_precondition") => said.restricted(false),
        403 if said.has("permission_denied") => said.restricted(true),
        _ => None,
    }
}
