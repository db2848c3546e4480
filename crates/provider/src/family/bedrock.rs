//! Amazon Bedrock with its API keys. Requests that need a signature are not made.

use serde_json::{Map, Value};

use super::facts::{At, Auth, Control, ErrorHabits, Family, KeyHeader, KeyPlan, Listing, Proofs, SentKeys};
use super::shapes::{OPENAI_SHAPED, PLAIN_ERRORS, get, list, lists, probe, serves_own, shaped, valid};
use crate::{KeyReport, KeyVerdict, dialect::UpstreamDialect, read::Complaint};

/// How API keys begin, long- and short-lived, as opposed to access keys of AWS.
const API_KEYS: &[&str] = &["ABSK", "bedrock-api-key-"];

const MODELS: At = At::Control("/foundation-models");

pub(super) const FAMILY: Family = Family {
    name: "Amazon Bedrock",
    hosts: &["*.amazonaws.com"],
    suffixes: &["/openai/v1", "/v1"],
    // Access keys belong into signatures, not onto the wire.
    auth: Auth { sent: SentKeys::Beginning(API_KEYS), ..Auth::by(KeyHeader::Bearer) },
    fake_key: "ABSKcHJvdmlkZXJkIG5lZ2F0aXZlIGNvbnRyb2wgbm90IGEga2V5",
    probe: probe(get(MODELS)),
    list: Listing {
        joined: true,
        offers,
        ..list(&[get(MODELS), get(At::Control("/inference-profiles?maxResults=1000"))])
    },
    proofs: Proofs {
        usual: KeyPlan::Untestable(
            "access keys need signed requests, which are not made; use a Bedrock API key (ABSK…) to have it tested",
        ),
        special: &[(API_KEYS, KeyPlan::Try(&[shaped(MODELS, Control::Foreign, summaries)]))],
        chat_elsewhere: false,
    },
    errors: ErrorHabits { reads: errors, ..PLAIN_ERRORS },
    serving: serves_own(&[("", UpstreamDialect::Bedrock)]),
    ..OPENAI_SHAPED
};

fn offers(item: &Map<String, Value>) -> bool {
    let status = item.get("status").and_then(Value::as_str).filter(|status| !status.is_empty());
    status.is_none_or(|status| status == "ACTIVE") && lists(item, "outputModalities", "TEXT") != Some(false)
}

fn summaries(json: &Value) -> Option<KeyReport> {
    json.get("modelSummaries").is_some_and(Value::is_array).then(valid)
}

fn errors(said: &Complaint<'_>) -> Option<KeyVerdict> {
    if said.has("security token") && said.has("invalid") {
        said.invalid()
    } else if said.has("on-demand throughput") {
        said.valid()
    } else if said.has("throttlingexception") {
        said.rate(false)
    } else if said.has("accessdeniedexception") {
        // Permissions are per region: in the wrong one this says nothing about the key.
        said.restricted(false)
    } else {
        None
    }
}
