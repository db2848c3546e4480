//! `POST /api/v1/sync`, `/suspend`, `/resume`: what the commands of these names do.
//!
//! Every call is a row of the audit trail before it acts: what cannot be recorded is not done.

use axum::{
    Extension, Json,
    extract::State,
    http::StatusCode,
    response::{IntoResponse as _, Response},
};
use chrono::{DateTime, TimeDelta, Utc};
use serde::{Deserialize, Serialize};
use serde_json::json;
use utoipa::ToSchema;

use super::{
    Shared,
    auth::Caller,
    doc::{BodyErrors, ReadErrors},
    error::{ApiError, ErrorBody},
    extract::JsonBody,
};
use crate::{
    config,
    plan::EventKind,
    store::{NewEvent, Stopped, Suspension},
};

/// Characters of a reason in the audit trail.
const MAX_REASON: usize = 500;

/// That the daemon looks at everything again.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Triggered {
    pub triggered: bool,
}

/// What to suspend.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Suspend {
    /// One provider; `null` or absent: everything.
    #[schema(max_length = 255)]
    provider: Option<String>,
    /// Why, for the audit trail.
    #[schema(max_length = 500)]
    reason: Option<String>,
    /// Stop this provider's health checks and key tests instead: maintenance.
    #[serde(default)]
    checks: bool,
    /// How long checks are stopped, such as `30m` or `2h`; `null` or absent: until resumed.
    #[serde(rename = "for")]
    #[schema(max_length = 32)]
    duration: Option<String>,
}

/// What to resume.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Resume {
    /// One provider; `null` or absent: everything.
    #[schema(max_length = 255)]
    provider: Option<String>,
    /// Start this provider's health checks and key tests again.
    #[serde(default)]
    checks: bool,
}

/// How it is now.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct SuspendedNow {
    pub suspended: bool,
    /// When it ends by itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub until: Option<DateTime<Utc>>,
}

/// Looks at the manifests and the database again, at once.
#[utoipa::path(post, path = "/api/v1/sync", tag = "actions",
    responses((status = 202, description = "It will be looked at", body = Triggered), ReadErrors))]
pub(super) async fn sync(
    State(shared): State<Shared>,
    Extension(caller): Extension<Caller>,
) -> Result<Response, ApiError> {
    let live = shared.live()?;
    record(&shared, &caller, "sync", None).await?;
    live.wake.poke("api");
    Ok((StatusCode::ACCEPTED, Json(Triggered { triggered: true })).into_response())
}

/// Stops applying, for everything or for one provider; checks go on. Or stops the checks of one provider.
#[utoipa::path(post, path = "/api/v1/suspend", tag = "actions", request_body = Suspend,
    responses((status = 200, description = "It is suspended", body = SuspendedNow),
        (status = 404, description = "There is no such provider", body = ErrorBody), ReadErrors, BodyErrors))]
pub(super) async fn suspend(
    State(shared): State<Shared>,
    Extension(caller): Extension<Caller>,
    JsonBody(body): JsonBody<Suspend>,
) -> Result<Json<SuspendedNow>, ApiError> {
    let live = shared.live()?;
    let reason = match &body.reason {
        Some(reason) => tidy(reason)?,
        None => format!("suspended through the API by token {}", caller.who),
    };
    let now = Utc::now();
    let until = match &body.duration {
        None => None,
        Some(_) if !body.checks => {
            return Err(ApiError::Invalid("for holds for checks; say checks: true".to_owned()));
        }
        Some(text) => {
            let duration =
                config::duration::parse(text).map_err(|error| ApiError::Invalid(format!("for: {error}")))?;
            let until = TimeDelta::from_std(duration).ok().and_then(|wait| now.checked_add_signed(wait));
            Some(until.ok_or_else(|| ApiError::Invalid("for is too long".to_owned()))?)
        }
    };
    let provider = known(&shared, body.provider.as_deref())?;
    let stopped = stopped(provider, body.checks)?;
    record(&shared, &caller, "suspend", provider).await?;
    shared.store.suspend(stopped, &Suspension { at: now, reason, until }).await?;
    live.wake.poke("api");
    Ok(Json(SuspendedNow { suspended: true, until }))
}

/// Starts applying, or the checks of one provider, again. Of no effect where nothing was suspended.
#[utoipa::path(post, path = "/api/v1/resume", tag = "actions", request_body = Resume,
    responses((status = 200, description = "It is not suspended", body = SuspendedNow),
        (status = 404, description = "There is no such provider", body = ErrorBody), ReadErrors, BodyErrors))]
pub(super) async fn resume(
    State(shared): State<Shared>,
    Extension(caller): Extension<Caller>,
    JsonBody(body): JsonBody<Resume>,
) -> Result<Json<SuspendedNow>, ApiError> {
    let live = shared.live()?;
    let provider = known(&shared, body.provider.as_deref())?;
    let stopped = stopped(provider, body.checks)?;
    record(&shared, &caller, "resume", provider).await?;
    shared.store.resume(stopped, &format!("resumed through the API by token {}", caller.who)).await?;
    live.wake.poke("api");
    Ok(Json(SuspendedNow { suspended: false, until: None }))
}

fn stopped(provider: Option<&str>, checks: bool) -> Result<Stopped<'_>, ApiError> {
    Ok(match (provider, checks) {
        (Some(name), true) => Stopped::Checks(name),
        (Some(name), false) => Stopped::Provider(name),
        (None, false) => Stopped::Everything,
        (None, true) => {
            return Err(ApiError::Invalid("checks are stopped for one provider; name it".to_owned()));
        }
    })
}

/// A provider that the picture knows.
fn known<'a>(shared: &Shared, provider: Option<&'a str>) -> Result<Option<&'a str>, ApiError> {
    let Some(name) = provider else { return Ok(None) };
    match shared.snapshot()?.row(name) {
        Some(_) => Ok(provider),
        None => Err(ApiError::NotFound("no provider has this name".to_owned())),
    }
}

/// One line of text that the database takes.
fn tidy(reason: &str) -> Result<String, ApiError> {
    if reason.chars().count() > MAX_REASON {
        return Err(ApiError::Invalid(format!("reason must have at most {MAX_REASON} characters")));
    }
    let line = |c: char| if c.is_control() { ' ' } else { c };
    Ok(reason.chars().map(line).collect::<String>().trim().to_owned())
}

/// One row of the audit trail: who asked for what.
pub(super) async fn record(
    shared: &Shared,
    caller: &Caller,
    call: &'static str,
    provider: Option<&str>,
) -> Result<(), ApiError> {
    let event = NewEvent {
        kind: EventKind::Admin,
        provider: provider.map(Into::into),
        provider_id: None,
        detail: json!({ "call": call, "who": caller.who }),
        reason: format!("{call} through the API"),
        origin: None,
        revision: None,
    };
    Ok(shared.store.record(&[event]).await?)
}
