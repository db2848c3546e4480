//! `GET /api/v1/llm/models` with the pages' filters, and `PUT /api/v1/llm/admin/models/{id}/toggle`.

use axum::{
    Extension, Json,
    extract::{Path, State, rejection::PathRejection},
};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use uuid::Uuid;

use crate::{
    admin::{
        AdminShared,
        actions::record,
        auth::Caller,
        error::{ApiError, ErrorBody},
        extract::Params,
        list,
        openapi::{ParameterErrors, ReadErrors},
    },
    store::{PageModel, PageModelFilter, PageModelOwner, PageModelSort},
};

/// Models of one answer.
const MAX_LIMIT: u32 = 1000;
/// Where a page begins at most; PostgreSQL walks over what comes before.
const MAX_OFFSET: u32 = 1_000_000;

/// In which order models are listed.
#[derive(Debug, Clone, Copy, Default, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub(super) enum PageSort {
    /// The cheapest first.
    #[default]
    Cost,
    /// The fastest first.
    Latency,
    Name,
    /// The longest first.
    Context,
    /// By name.
    Popularity,
}

/// Which models.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct WantedPageModels {
    /// Id of the provider.
    provider_id: Option<Uuid>,
    /// Only those that are switched on, of providers that are.
    #[serde(default)]
    #[param(required = false, default = false)]
    enabled_only: bool,
    #[serde(default)]
    #[param(inline, required = false)]
    sort_by: PageSort,
    /// Part of the name or the display name; case does not matter.
    #[param(max_length = 255)]
    search: Option<String>,
    /// USD per million tokens, of the mean of input and output.
    min_cost: Option<f64>,
    /// USD per million tokens, of the mean of input and output.
    max_cost: Option<f64>,
    /// Tokens.
    min_context: Option<i32>,
    /// Tokens.
    max_context: Option<i32>,
    #[param(minimum = 1, maximum = 1000, default = 100)]
    limit: Option<u32>,
    #[param(minimum = 0, maximum = 1_000_000, default = 0)]
    offset: Option<u32>,
}

/// Models, in the shape of OpenAI's list; the same list stands in `models`, where other pages look for it.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct PageModels {
    /// `list`
    pub object: &'static str,
    pub data: Vec<PageModelItem>,
    /// The same models, by the names of another page.
    pub models: Vec<PageModelEntry>,
    /// On all pages.
    pub total: i64,
}

/// A model.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct PageModelItem {
    /// Its name.
    pub id: String,
    /// `model`
    pub object: &'static str,
    pub name: String,
    pub display_name: String,
    /// Name of its provider.
    pub provider: String,
    pub provider_id: Uuid,
    pub pricing: PagePricing,
    /// Tokens.
    pub context_length: Option<i32>,
    pub enabled: bool,
    pub avg_latency_ms: Option<f64>,
    /// Its id in `llm_models`.
    #[serde(rename = "_uuid")]
    pub uuid: Uuid,
}

/// USD per million tokens; 0 where it is not known, as the pages calculate with it.
#[derive(Debug, Clone, Copy, Serialize, ToSchema)]
pub(super) struct PagePricing {
    pub input: f64,
    pub output: f64,
}

/// A model, as the registry page lists it.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct PageModelEntry {
    pub model_id: Uuid,
    pub name: String,
    pub provider: String,
    /// `active` or `disabled`.
    pub status: &'static str,
}

impl From<PageModel> for PageModelItem {
    fn from(row: PageModel) -> Self {
        Self {
            id: row.name.clone(),
            object: "model",
            display_name: row
                .display_name
                .filter(|name| !name.is_empty())
                .unwrap_or_else(|| row.name.clone()),
            name: row.name,
            provider: row.provider,
            provider_id: row.provider_id,
            pricing: PagePricing {
                input: row.input.unwrap_or_default(),
                output: row.output.unwrap_or_default(),
            },
            context_length: row.context_length,
            enabled: row.enabled,
            avg_latency_ms: row.average_latency_ms,
            uuid: row.id,
        }
    }
}

/// Models of the database by the pages' filters.
#[utoipa::path(get, path = "/api/v1/llm/models", tag = "pages", params(WantedPageModels),
    responses((status = 200, description = "One page of models", body = PageModels), ReadErrors, ParameterErrors))]
pub(super) async fn all(
    State(shared): State<AdminShared>,
    Params(wanted): Params<WantedPageModels>,
) -> Result<Json<PageModels>, ApiError> {
    let within = |what: &str, value: u32, least: u32, most: u32| match value {
        value if (least..=most).contains(&value) => Ok(i64::from(value)),
        _ => Err(ApiError::Invalid(format!("{what} must be from {least} to {most}"))),
    };
    let finite = |what: &str, value: Option<f64>| match value {
        Some(value) if !value.is_finite() => Err(ApiError::Invalid(format!("{what} must be a number"))),
        value => Ok(value),
    };
    let filter = PageModelFilter {
        provider: wanted.provider_id,
        enabled_only: wanted.enabled_only,
        search: list::text("search", wanted.search.as_deref())?.map(str::to_owned),
        min_cost: finite("min_cost", wanted.min_cost)?,
        max_cost: finite("max_cost", wanted.max_cost)?,
        min_context: wanted.min_context.map(i64::from),
        max_context: wanted.max_context.map(i64::from),
        sort: match wanted.sort_by {
            PageSort::Cost => PageModelSort::Cost,
            PageSort::Latency => PageModelSort::Latency,
            PageSort::Context => PageModelSort::Context,
            PageSort::Name | PageSort::Popularity => PageModelSort::Name,
        },
        limit: within("limit", wanted.limit.unwrap_or(list::DEFAULT_LIMIT), 1, MAX_LIMIT)?,
        offset: within("offset", wanted.offset.unwrap_or(0), 0, MAX_OFFSET)?,
    };
    let (rows, total) = shared.store.page_models(&filter).await?;
    let entry = |row: &PageModel| PageModelEntry {
        model_id: row.id,
        name: row.name.clone(),
        provider: row.provider.clone(),
        status: if row.enabled { "active" } else { "disabled" },
    };
    let models = rows.iter().map(entry).collect();
    Ok(Json(PageModels { object: "list", models, data: rows.into_iter().map(Into::into).collect(), total }))
}

/// How it is now.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct PageToggled {
    pub success: bool,
    pub model_id: Uuid,
    pub is_active: bool,
    pub message: String,
}

/// Switches a model on or off that no manifest switches: one of an unmanaged provider, one that discovery found, or one
/// whose manifest does not say `enabled`. The id is the row's, or a name that only one model has.
#[utoipa::path(put, path = "/api/v1/llm/admin/models/{id}/toggle", tag = "pages",
    params(("id" = String, Path, description = "Id of the row, or name of the model")),
    responses((status = 200, description = "It is switched", body = PageToggled),
        (status = 404, description = "There is no such model", body = ErrorBody),
        (status = 409, description = "A manifest says whether it is enabled: the message names file and line; or several models have this name", body = ErrorBody), ReadErrors))]
pub(super) async fn toggle(
    State(shared): State<AdminShared>,
    Extension(caller): Extension<Caller>,
    id: Result<Path<String>, PathRejection>,
) -> Result<Json<PageToggled>, ApiError> {
    let unknown = || ApiError::NotFound("no model has this id or name".to_owned());
    let Path(id) = id.map_err(|_| unknown())?;
    let found = shared.store.page_model_owners(&id).await?;
    let model = match found.as_slice() {
        [] => return Err(unknown()),
        [model] => model,
        [..] => {
            let what =
                "several models have this name; hint: send the row's id (`_uuid` of GET /api/v1/llm/models)";
            return Err(ApiError::Managed(what.to_owned()));
        }
    };
    if let Some(refusal) = owned(&shared, model) {
        return Err(ApiError::Managed(refusal));
    }
    let enabled = !model.enabled;
    record(&shared, &caller, if enabled { "enable model" } else { "disable model" }, Some(&model.provider))
        .await?;
    if !shared.store.page_model_switch(model.id, enabled).await? {
        return Err(unknown());
    }
    if let Ok(live) = shared.live() {
        live.wake.poke("api");
    }
    let word = if enabled { "enabled" } else { "disabled" };
    Ok(Json(PageToggled {
        success: true,
        model_id: model.id,
        is_active: enabled,
        message: format!("{}/{} is {word}", model.provider, model.name),
    }))
}

/// Why a manifest does not let this model be switched; with the line of the model where the manifest can be read.
fn owned(shared: &AdminShared, model: &PageModelOwner) -> Option<String> {
    let origin = model.owner.as_ref()?;
    let build = shared.checked.get().and_then(|checked| checked.checks.build());
    let declared = build.as_ref().and_then(|build| build.catalog.providers.get(&*model.provider));
    let line = declared
        .and_then(|provider| provider.models.iter().find(|it| *it.name == *model.name))
        .map_or(origin.line, |model| model.line);
    Some(format!(
        "{}:{line} says whether `{}/{}` is enabled; hint: change it there, or remove `enabled` from the manifest",
        origin.file, model.provider, model.name
    ))
}
