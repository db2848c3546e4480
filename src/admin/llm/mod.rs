//! What Ops-Center's pages call: everything below `/api/v1/llm/`, in the shapes that those pages read.
//!
//! One file per page's subject; `access` says who may. Not its job: what the commands show (the rooms beside this one),
//! and serving completions (the gateway). Invariants: sums of usage come from the roll-ups, never from the log; what a
//! manifest owns is not written, and the refusal names the manifest; every failure carries its message as `detail`, too.

mod access;
mod models;
mod providers;
mod rules;
mod usage;

use axum::{
    body::{Body, Bytes},
    http::{Response, header},
};
use http_body_util::BodyExt as _;
use serde_json::Value;
use utoipa_axum::{router::OpenApiRouter, routes};

pub use self::access::PageAccess;
pub(super) use self::access::authorize;
use super::{AdminShared, key_test, keys};

/// Where the pages' calls lie.
const BELOW: &str = "/api/v1/llm/";
/// Bytes of a failure's body; ours are far below.
const MAX_FAILURE: usize = 64 * 1024;

pub(super) fn router() -> OpenApiRouter<AdminShared> {
    OpenApiRouter::new()
        .routes(routes!(keys::all))
        .routes(routes!(key_test::test))
        .routes(routes!(providers::all))
        .routes(routes!(providers::types))
        .routes(routes!(providers::test))
        .routes(routes!(models::all))
        .routes(routes!(models::toggle))
        .routes(routes!(rules::show))
        .routes(routes!(usage::sums))
        .routes(routes!(usage::summary))
        .routes(routes!(usage::by_provider))
        .routes(routes!(usage::by_power_level))
        .routes(routes!(usage::export))
}

/// Whether this path is one of the pages'.
pub(super) fn is_below(path: &str) -> bool {
    path.starts_with(BELOW)
}

/// Repeats the message of a failure as `detail`, where the pages look for it.
pub(super) async fn with_detail(response: Response<Body>) -> Response<Body> {
    let (mut head, body) = response.into_parts();
    let Ok(bytes) = http_body_util::Limited::new(body, MAX_FAILURE).collect().await else {
        return Response::from_parts(head, Body::empty());
    };
    let bytes = bytes.to_bytes();
    let more = detailed(&bytes).map_or(bytes, Bytes::from);
    head.headers.insert(header::CONTENT_LENGTH, more.len().into());
    Response::from_parts(head, Body::from(more))
}

fn detailed(body: &[u8]) -> Option<Vec<u8>> {
    let mut json: Value = serde_json::from_slice(body).ok()?;
    let message = json.get("error")?.get("message")?.clone();
    json.as_object_mut()?.insert("detail".to_owned(), message);
    serde_json::to_vec(&json).ok()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_failure_says_its_message_twice() {
        let body = json!({ "error": { "code": "not-found", "message": "no provider has this name" } });
        let more: Value = serde_json::from_slice(&detailed(body.to_string().as_bytes()).unwrap()).unwrap();
        assert_eq!(more["detail"], "no provider has this name");
        assert_eq!(more["error"], body["error"]);
        for other in ["", "[]", "{\"error\":1}", "plain"] {
            assert_eq!(detailed(other.as_bytes()), None, "{other}");
        }
    }
}
