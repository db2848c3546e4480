//! `GET /api/v1/usage`: sums of usage.

use axum::{
    extract::State,
    http::header,
    response::{IntoResponse as _, Response},
};
use chrono::Utc;
use serde::Deserialize;
use utoipa::{IntoParams, ToSchema};

use super::{
    AdminShared,
    error::ApiError,
    extract::Params,
    list,
    openapi::{ParameterErrors, ReadErrors},
};
use crate::{
    store::{UsageBy, UsageQuery},
    usage::view::{self, UsageAnswer},
};

/// Which usage.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct WantedUsage {
    /// One item for each of these, between commas: provider, model, consumer, user, level, month, week, day, hour. Empty: all in one.
    #[param(default = "provider", max_length = 255)]
    by: Option<String>,
    /// From a time (RFC 3339) or a duration back (`2h`, `7d`).
    #[param(default = "30d", max_length = 64)]
    since: Option<String>,
    /// Up to a time or a duration back.
    #[param(max_length = 64)]
    until: Option<String>,
    /// Only requests that this provider answered.
    #[param(max_length = 255)]
    provider: Option<String>,
    /// Only requests of this consumer.
    #[param(max_length = 255)]
    consumer: Option<String>,
    /// `csv`: comma-separated values with a header, in place of JSON.
    #[serde(default)]
    #[param(inline, required = false)]
    format: UsageFormat,
}

/// How sums are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub(super) enum UsageFormat {
    #[default]
    Json,
    Csv,
}

/// Tokens, cost and latency of what the gateway served, from sums by the hour and day.
///
/// At most 10,000 items.
#[utoipa::path(get, path = "/api/v1/usage", tag = "usage", params(WantedUsage),
    responses((status = 200, description = "Sums", content((UsageAnswer = "application/json"), (String = "text/csv"))), ReadErrors, ParameterErrors))]
pub(super) async fn sums(
    State(shared): State<AdminShared>,
    Params(wanted): Params<WantedUsage>,
) -> Result<Response, ApiError> {
    let now = Utc::now();
    let time = |text: Option<&str>| {
        // A `+` that was not escaped arrives as a space.
        text.map(|text| view::since(&text.replace(' ', "+"), now)).transpose().map_err(ApiError::Invalid)
    };
    let by = wanted
        .by
        .as_deref()
        .unwrap_or("provider")
        .split(',')
        .filter(|word| !word.is_empty())
        .map(|word| {
            let words: Vec<&str> = UsageBy::ALL.iter().map(|it| it.as_str()).collect();
            UsageBy::of(word).ok_or_else(|| ApiError::Invalid(format!("by must be of {}", words.join(", "))))
        })
        .collect::<Result<Vec<UsageBy>, ApiError>>()?;
    list::text("provider", wanted.provider.as_deref())?;
    list::text("consumer", wanted.consumer.as_deref())?;
    let query = UsageQuery {
        by,
        since: time(wanted.since.as_deref())?.unwrap_or(now - view::DEFAULT_SINCE),
        until: time(wanted.until.as_deref())?,
        provider: wanted.provider,
        consumer: wanted.consumer,
    };
    query.check().map_err(|error| ApiError::Invalid(error.to_string()))?;
    // PostgreSQL's texts hold no NUL, so nothing fits it.
    let nothing =
        [&query.provider, &query.consumer].iter().any(|it| it.as_ref().is_some_and(|it| it.contains('\0')));
    let lines = if nothing { Vec::new() } else { shared.store.usage_lines(&query, now).await? };
    if wanted.format == UsageFormat::Csv {
        let name = format!("attachment; filename=\"usage-{}.csv\"", now.format("%Y-%m-%d"));
        let head = [
            (header::CONTENT_TYPE, "text/csv; charset=utf-8".to_owned()),
            (header::CONTENT_DISPOSITION, name),
        ];
        return Ok((head, view::csv(&query.by, &lines)).into_response());
    }
    let answer = view::answer(&query, &lines);
    Ok(list::json(serde_json::to_vec(&answer).map_err(|_| ApiError::Internal)?.into()))
}
