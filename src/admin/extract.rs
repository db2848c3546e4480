//! What requests bring: query parameters and JSON bodies, checked before a handler sees them.

use axum::{
    body::{Body, Bytes},
    extract::{FromRequest, FromRequestParts, Query, Request},
    http::{HeaderMap, header, request::Parts},
};
use http_body_util::{BodyExt as _, Limited};
use serde::de::DeserializeOwned;

use super::error::ApiError;

/// Bytes of a request's body.
pub const MAX_BODY: usize = 64 * 1024;

/// Query parameters.
pub(super) struct Params<T>(pub T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequestParts<S> for Params<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, ApiError> {
        let Query(found) = Query::<T>::try_from_uri(&parts.uri).map_err(|error| {
            ApiError::Invalid(format!("a query parameter cannot be read: {}", short(&error)))
        })?;
        Ok(Self(found))
    }
}

/// A JSON body.
pub(super) struct JsonBody<T>(pub T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for JsonBody<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, _: &S) -> Result<Self, ApiError> {
        if !is_json(request.headers()) {
            return Err(ApiError::MediaType);
        }
        let bytes = bytes(request.into_body()).await?;
        // A list would be taken for the fields in their order.
        if !bytes.trim_ascii_start().starts_with(b"{") {
            return Err(ApiError::Invalid("the body is not a JSON object".to_owned()));
        }
        // serde_json names the place and what was expected. It may quote a value, which may be a key.
        serde_json::from_slice(&bytes).map(Self).map_err(|error| {
            let what = match error.classify() {
                serde_json::error::Category::Data => {
                    "has a field that is missing, unknown, or of a wrong type"
                }
                _ => "is not JSON",
            };
            let place = format!("line {} column {}", error.line(), error.column());
            ApiError::Invalid(format!("the body {what} ({place})"))
        })
    }
}

async fn bytes(body: Body) -> Result<Bytes, ApiError> {
    match Limited::new(body, MAX_BODY).collect().await {
        Ok(collected) => Ok(collected.to_bytes()),
        Err(error) if error.is::<http_body_util::LengthLimitError>() => Err(ApiError::TooLarge),
        Err(_) => Err(ApiError::Invalid("the body broke off".to_owned())),
    }
}

fn is_json(headers: &HeaderMap) -> bool {
    let value = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let kind = value.split(';').next().unwrap_or_default().trim();
    kind.eq_ignore_ascii_case("application/json")
}

/// The innermost words of an error: the outer ones say the same with more of the library in them.
fn short(error: &dyn std::error::Error) -> String {
    let mut inner = error;
    while let Some(source) = inner.source() {
        inner = source;
    }
    inner.to_string()
}
