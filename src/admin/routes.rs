//! `GET /api/v1/routes`: which models serve each power level and user tier.

use axum::{extract::State, http::HeaderMap, response::Response};

use crate::{
    admin::{Shared, error::ApiError, list, openapi::ReadErrors},
    status::view::Routes,
};

/// Which models serve each power level and user tier, in the order in which they are tried.
#[utoipa::path(get, path = "/api/v1/routes", tag = "catalog",
    responses((status = 200, description = "All cells", body = Routes), (status = 304, description = "Unchanged"), ReadErrors))]
pub(super) async fn all(State(shared): State<Shared>, headers: HeaderMap) -> Result<Response, ApiError> {
    let snapshot = shared.snapshot()?;
    Ok(list::tagged(&headers, &snapshot.routes.digest, || snapshot.routes.text.clone()))
}
