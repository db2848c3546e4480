//! `GET /api/v1/llm/providers`, `GET /api/v1/llm/providers/info`, `POST /api/v1/llm/providers/{id}/test`.

use axum::{
    Extension, Json,
    extract::{Path, State, rejection::PathRejection},
};
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use uuid::Uuid;

use provider::{KeyHeader, ProviderType, key_header};

use crate::{
    admin::{
        AdminShared,
        auth::Caller,
        error::{ApiError, ErrorBody},
        extract::Params,
        key_test,
        openapi::{ParameterErrors, ReadErrors},
    },
    status::view::Health,
    store::PageProvider,
};

/// Which providers.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct WantedPageProviders {
    /// Only those that are switched on.
    #[serde(default)]
    #[param(required = false, default = false)]
    enabled_only: bool,
}

/// Every provider, as the pages list them.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct PageProviders {
    pub success: bool,
    pub providers: Vec<PageProviderItem>,
    pub total: usize,
}

/// One provider. Some fields stand twice, by the names of different pages.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct PageProviderItem {
    pub id: Uuid,
    /// The same.
    pub provider_id: Uuid,
    pub name: String,
    /// As the row has it.
    #[serde(rename = "type")]
    pub kind: Option<String>,
    /// The same.
    pub provider_type: Option<String>,
    /// `active`, `disabled`, or `error` for one that is switched on and unhealthy.
    pub status: &'static str,
    pub enabled: bool,
    /// Number of models.
    pub models: i64,
    /// The same.
    pub model_count: i64,
    /// USD per million tokens, the mean of input and output over its models; 0 where no price is known.
    pub avg_cost_per_1m: f64,
    /// The same.
    pub avg_cost: f64,
    /// Names of the models that are switched on.
    pub enabled_models: Vec<String>,
    /// Higher is preferred.
    pub priority: i32,
    pub health_status: Health,
    pub last_health_check: Option<DateTime<Utc>>,
}

impl From<PageProvider> for PageProviderItem {
    fn from(row: PageProvider) -> Self {
        let health = Health::of(row.health_status.as_deref());
        // Cents of a cent: the pages print it as it is.
        let cost = (row.average_cost.unwrap_or_default() * 10_000.0).round() / 10_000.0;
        Self {
            id: row.id,
            provider_id: row.id,
            name: row.name,
            kind: row.kind.clone(),
            provider_type: row.kind,
            status: match (row.enabled, health) {
                (false, _) => "disabled",
                (true, Health::Unhealthy) => "error",
                (true, _) => "active",
            },
            enabled: row.enabled,
            models: row.models,
            model_count: row.models,
            avg_cost_per_1m: cost,
            avg_cost: cost,
            enabled_models: row.enabled_models,
            priority: row.priority.unwrap_or_default(),
            health_status: health,
            last_health_check: row.last_health_check,
        }
    }
}

/// Types of providers.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct PageTypes {
    pub success: bool,
    pub providers: Vec<PageTypeItem>,
    pub total: usize,
}

/// One type.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct PageTypeItem {
    pub provider_type: &'static str,
    pub display_name: &'static str,
    pub description: String,
    /// How its keys begin.
    pub key_format: String,
    /// Whether a free request proves a key.
    pub supports_test: bool,
    /// `bearer` or `api_key`.
    pub auth_type: &'static str,
}

/// How a test ended. Some fields stand twice, by the names of different pages.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct PageTestResult {
    pub success: bool,
    pub provider_id: Uuid,
    pub provider_name: String,
    /// `success` or `failed`.
    pub status: &'static str,
    pub latency_ms: u64,
    /// The same.
    pub latency: u64,
    pub models_found: Option<u64>,
    /// Why not, where it did not succeed.
    pub error: Option<String>,
    pub message: String,
}

/// Every provider that the database holds, as Ops-Center's pages list them.
#[utoipa::path(get, path = "/api/v1/llm/providers", tag = "pages", params(WantedPageProviders),
    responses((status = 200, description = "All providers, at most 10,000", body = PageProviders), ReadErrors, ParameterErrors))]
pub(super) async fn all(
    State(shared): State<AdminShared>,
    Params(wanted): Params<WantedPageProviders>,
) -> Result<Json<PageProviders>, ApiError> {
    let rows = shared.store.page_providers(wanted.enabled_only).await?;
    let providers: Vec<PageProviderItem> = rows.into_iter().map(Into::into).collect();
    Ok(Json(PageProviders { success: true, total: providers.len(), providers }))
}

/// The types of providers that can be declared.
#[utoipa::path(get, path = "/api/v1/llm/providers/info", tag = "pages",
    responses((status = 200, description = "All types", body = PageTypes), ReadErrors))]
pub(super) async fn types() -> Json<PageTypes> {
    let providers: Vec<PageTypeItem> = ProviderType::ALL
        .iter()
        .filter(|kind| kind.retired().is_none())
        .map(|kind| type_item(*kind))
        .collect();
    Json(PageTypes { success: true, total: providers.len(), providers })
}

fn type_item(kind: ProviderType) -> PageTypeItem {
    let description = kind.describe();
    PageTypeItem {
        provider_type: kind.as_str(),
        display_name: kind.display_name(),
        description: format!("default base URL: {}", description.base_url.replace('`', "")),
        key_format: kind.key_format().unwrap_or_else(|| "any text".to_owned()),
        supports_test: kind.has_key_test(),
        auth_type: match key_header(kind) {
            KeyHeader::Bearer => "bearer",
            KeyHeader::Named(_) => "api_key",
        },
    }
}

/// Proves the stored key of one provider now; of one without a key, that its list of models can be read. At most 10 a
/// minute for each caller. Nothing is written to the catalog.
#[utoipa::path(post, path = "/api/v1/llm/providers/{id}/test", tag = "pages",
    params(("id" = Uuid, Path, description = "Id of the provider")),
    responses((status = 200, description = "How the test ended", body = PageTestResult),
        (status = 404, description = "There is no such provider", body = ErrorBody),
        (status = 429, description = "Too many tests; see Retry-After", body = ErrorBody), ReadErrors))]
pub(super) async fn test(
    State(shared): State<AdminShared>,
    Extension(caller): Extension<Caller>,
    id: Result<Path<String>, PathRejection>,
) -> Result<Json<PageTestResult>, ApiError> {
    let unknown = || ApiError::NotFound("no provider has this id".to_owned());
    let id: Uuid = id.ok().and_then(|Path(id)| id.parse().ok()).ok_or_else(unknown)?;
    let (name, result) = key_test::of_row(&shared, &caller, id).await?.ok_or_else(unknown)?;
    let message = match &result.error {
        None => "the provider answers and accepts its key".to_owned(),
        Some(error) => error.clone(),
    };
    Ok(Json(PageTestResult {
        success: result.success,
        provider_id: id,
        provider_name: name,
        status: if result.success { "success" } else { "failed" },
        latency_ms: result.latency_ms,
        latency: result.latency_ms,
        models_found: result.models_found,
        error: result.error,
        message,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_type_that_works_has_its_line() {
        let items: Vec<PageTypeItem> = ProviderType::ALL.iter().map(|kind| type_item(*kind)).collect();
        let of = |word: &str| items.iter().find(|item| item.provider_type == word).unwrap();
        assert_eq!((of("openai").display_name, of("openai").auth_type), ("OpenAI", "bearer"));
        assert_eq!((of("anthropic").auth_type, of("anthropic").supports_test), ("api_key", true));
        assert_eq!(of("openrouter").key_format, "sk-or-v1-…");
        assert_eq!(of("zhipu").key_format, "any text");
        assert!(items.iter().all(|item| !item.display_name.is_empty() && !item.description.contains('`')));
    }
}
