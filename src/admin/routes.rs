//! `GET /api/v1/routes`: which models serve each power level and user tier; `POST /api/v1/routes/explain`: who would
//! answer a request.

use axum::{
    Json,
    extract::State,
    http::HeaderMap,
    response::{IntoResponse as _, Response},
};

use crate::{
    admin::{
        AdminShared,
        error::ApiError,
        extract::JsonBody,
        list,
        openapi::{BodyErrors, ReadErrors},
    },
    dataplane::{
        explain::{RouteQuestion, answer},
        load,
    },
    status::view::RoutesView,
};

/// Which models serve each power level and user tier, in the order in which they are tried.
#[utoipa::path(get, path = "/api/v1/routes", tag = "catalog",
    responses((status = 200, description = "All cells", body = RoutesView), (status = 304, description = "Unchanged"), ReadErrors))]
pub(super) async fn all(State(shared): State<AdminShared>, headers: HeaderMap) -> Result<Response, ApiError> {
    let snapshot = shared.snapshot()?;
    Ok(list::tagged(&headers, &snapshot.routes.digest, || snapshot.routes.text.clone()))
}

/// Who would answer a request, in which order, and why not the others; by what is declared and proven now.
#[utoipa::path(post, path = "/api/v1/routes/explain", tag = "catalog", request_body = RouteQuestion,
    responses((status = 200, description = "The decision in words, as `providerd routes explain --output json` prints it", body = Object), BodyErrors, ReadErrors))]
pub(super) async fn explain(
    State(shared): State<AdminShared>,
    JsonBody(question): JsonBody<RouteQuestion>,
) -> Result<Response, ApiError> {
    let live = shared.live()?;
    let (input, _) = load::read_input(&shared.store, &live.keyring.byok, &shared.gateway).await?;
    let (picture, _) = load::build(&input, &live.keyring.byok);
    match answer(&picture, &question) {
        Ok(explanation) => Ok(Json(explanation).into_response()),
        Err(error) => Err(ApiError::Invalid(error.to_string())),
    }
}
