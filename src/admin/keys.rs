//! `GET /api/v1/llm/providers/keys`: every provider with what may be shown of its key.

use axum::{extract::State, http::HeaderMap, response::Response};

use crate::{
    admin::{AdminShared, error::ApiError, list, openapi::ReadErrors},
    status::view::ProviderKeys,
};

/// Every provider that the database holds, with its key's preview, fingerprint and status.
#[utoipa::path(get, path = "/api/v1/llm/providers/keys", tag = "keys",
    responses((status = 200, description = "All providers", body = ProviderKeys), (status = 304, description = "Unchanged"), ReadErrors))]
pub(super) async fn all(State(shared): State<AdminShared>, headers: HeaderMap) -> Result<Response, ApiError> {
    let snapshot = shared.snapshot()?;
    Ok(list::tagged(&headers, &snapshot.keys.digest, || snapshot.keys.text.clone()))
}
