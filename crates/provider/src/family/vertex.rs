//! Google's Vertex. A service account's JSON must be exchanged for a token; it is never sent as it is.

use super::facts::{At, Auth, Family, KeyHeader, KeyPlan, Listing, Proofs, SentKeys};
use super::shapes::{OPENAI_SHAPED, get, list, probe, proofs, serves_own};
use crate::dialect::UpstreamDialect;

pub(super) const FAMILY: Family = Family {
    name: "Google Vertex AI",
    hosts: &["*-aiplatform.googleapis.com", "aiplatform.googleapis.com"],
    suffixes: &["/v1", "/v1beta1"],
    auth: Auth { sent: SentKeys::None, ..Auth::by(KeyHeader::Bearer) },
    probe: probe(get(At::Root("/v1/publishers/google/models?pageSize=1"))),
    list: Listing { unsupported: Some("listing models needs a minted token"), ..list(&[]) },
    proofs: Proofs {
        chat_elsewhere: false,
        ..proofs(KeyPlan::Untestable(
            "a service account is proven by exchanging it for a token, which is not done",
        ))
    },
    serving: serves_own(&[("claude", UpstreamDialect::VertexClaude), ("", UpstreamDialect::Vertex)]),
    ..OPENAI_SHAPED
};
