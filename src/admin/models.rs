//! `GET /api/v1/models`: every model of every provider.

use axum::{extract::State, http::HeaderMap, response::Response};
use serde::Deserialize;
use utoipa::IntoParams;

use crate::{
    admin::{
        AdminShared,
        error::ApiError,
        extract::Params,
        list,
        openapi::{Page, ParameterErrors, ReadErrors},
    },
    status::{ModelEntry, Snapshot, view::ModelItem},
};

/// Which models.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct ModelsParams {
    /// Name of the provider.
    #[param(max_length = 255)]
    provider: Option<String>,
    #[param(minimum = 1, maximum = 500, default = 100)]
    limit: Option<u32>,
    /// `next` of the page before.
    #[param(pattern = "^[0-9a-f]{1,5000}$")]
    cursor: Option<String>,
}

/// Every model, by provider and name.
#[utoipa::path(get, path = "/api/v1/models", tag = "catalog", params(ModelsParams),
    responses((status = 200, description = "One page of models", body = Page<ModelItem>), (status = 304, description = "Unchanged"), ReadErrors, ParameterErrors))]
pub(super) async fn all(
    State(shared): State<AdminShared>,
    headers: HeaderMap,
    Params(wanted): Params<ModelsParams>,
) -> Result<Response, ApiError> {
    let limit = list::limit(wanted.limit)?;
    let cursor = list::cursor(wanted.cursor.as_deref())?;
    let provider = list::text("provider", wanted.provider.as_deref())?;
    let snapshot = shared.snapshot()?;
    Ok(list::tagged(&headers, &snapshot.digest, || page(&snapshot, provider, limit, cursor)))
}

fn page(
    snapshot: &Snapshot,
    provider: Option<&str>,
    limit: usize,
    cursor: Option<&str>,
) -> axum::body::Bytes {
    let models: &[ModelEntry] = match provider {
        None => &snapshot.models,
        Some(name) => {
            snapshot.row(name).and_then(|row| snapshot.models.get(row.models.clone())).unwrap_or_default()
        }
    };
    let begin = cursor.map_or(0, |cursor| models.partition_point(|model| *model.sort_key <= *cursor));
    let rest = models.get(begin..).unwrap_or_default();
    let items = rest.get(..limit.min(rest.len())).unwrap_or_default();
    let next = if items.len() < rest.len() { items.last().map(|model| &*model.sort_key) } else { None };
    list::page(items.iter().map(|model| &*model.item), next, models.len())
}
