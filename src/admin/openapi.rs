//! The OpenAPI document, put together from the handlers themselves, and the answers that many of them share.

use axum::{Router, body::Bytes, extract::State, http::HeaderMap, response::Response, routing::get};
use serde::Serialize;
use sha2::{Digest as _, Sha256};
use utoipa::{
    IntoResponses, Modify, OpenApi, ToSchema,
    openapi::{
        self,
        security::{HttpAuthScheme, HttpBuilder, SecurityScheme},
    },
};

use super::{
    error::{ErrorBody, ErrorDetail},
    list,
};

/// Failures of every call that only reads.
#[derive(IntoResponses)]
#[expect(dead_code, reason = "describes answers and is never made")]
pub(super) enum ReadErrors {
    /// The token is missing, or none of those that are accepted.
    #[response(status = 401)]
    Unauthorized(ErrorBody),
    /// No token is configured, or the Host header names another host.
    #[response(status = 403)]
    Forbidden(ErrorBody),
    /// A fault of the daemon's own.
    #[response(status = 500)]
    Internal(ErrorBody),
    /// Start-up is not over, or the database is away. See Retry-After.
    #[response(status = 503)]
    Unavailable(ErrorBody),
}

/// Further failures of calls with parameters.
#[derive(IntoResponses)]
#[expect(dead_code, reason = "describes answers and is never made")]
pub(super) enum ParameterErrors {
    /// A parameter is out of its range or cannot be read.
    #[response(status = 422)]
    Invalid(ErrorBody),
}

/// Further failures of calls with a body.
#[derive(IntoResponses)]
#[expect(dead_code, reason = "describes answers and is never made")]
pub(super) enum BodyErrors {
    /// The request did not end within its time limit.
    #[response(status = 408)]
    Timeout(ErrorBody),
    /// The body is over 64 KiB.
    #[response(status = 413)]
    TooLarge(ErrorBody),
    /// The body is no JSON by its `Content-Type`.
    #[response(status = 415)]
    MediaType(ErrorBody),
    /// The body is not what is documented here.
    #[response(status = 422)]
    Invalid(ErrorBody),
}

/// One page of a list.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Page<T> {
    pub items: Vec<T>,
    /// `cursor` of the next page; `null` on the last one.
    pub next: Option<String>,
    /// Items on all pages.
    pub total: u64,
}

struct Bearer;

impl Modify for Bearer {
    fn modify(&self, document: &mut openapi::OpenApi) {
        let scheme = HttpBuilder::new()
            .scheme(HttpAuthScheme::Bearer)
            .description(Some("A token whose SHA-256 stands in `server.token_sha256` or a credential."))
            .build();
        let components = document.components.get_or_insert_default();
        components.add_security_scheme("token", SecurityScheme::Http(scheme));
    }
}

#[derive(OpenApi)]
#[openapi(
    info(
        title = "providerd",
        description = "The admin API of providerd: what the commands show and do.",
        license(name = "Apache-2.0", identifier = "Apache-2.0")
    ),
    components(schemas(ErrorBody, ErrorDetail)),
    security(("token" = [])),
    modifiers(&Bearer)
)]
pub(super) struct Document;

/// Serves the document; public, since all of it stands in the public source.
pub(super) fn serve<S: Clone + Send + Sync + 'static>(document: &openapi::OpenApi) -> Router<S> {
    let text = Bytes::from(document.to_json().unwrap_or_default());
    let digest: String = Sha256::digest(&text).iter().take(8).map(|byte| format!("{byte:02x}")).collect();
    let answer = async |State((text, digest)): State<(Bytes, String)>, headers: HeaderMap| -> Response {
        list::tagged(&headers, &digest, || text)
    };
    Router::new().route("/api/v1/openapi.json", get(answer)).with_state((text, digest))
}
