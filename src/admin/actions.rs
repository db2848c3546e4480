//! `POST /api/v1/sync`, `/suspend`, `/resume`: what the commands of these names do; `/providers/{name}/check`: a check now.
//!
//! Every call is a row of the audit trail before it acts: what cannot be recorded is not done.

use axum::{
    Extension, Json,
    extract::{Path, State, rejection::PathRejection},
    http::StatusCode,
    response::{IntoResponse as _, Response},
};
use chrono::{DateTime, TimeDelta, Utc};
use serde::{Deserialize, Serialize};
use serde_json::json;
use utoipa::{
    PartialSchema, ToSchema,
    openapi::{
        RefOr,
        schema::{ObjectBuilder, Schema, Type},
    },
};

use catalog::plan::EventKind;

use crate::{
    admin::{
        AdminShared,
        auth::Caller,
        error::{ApiError, ErrorBody},
        extract::JsonBody,
        openapi::{BodyErrors, ReadErrors},
    },
    store::{NewEvent, Stopped, Suspension},
};

/// Characters of a reason in the audit trail.
const MAX_REASON: usize = 500;

/// Whether what was asked for was begun.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Triggered {
    pub triggered: bool,
}

/// What to suspend: applying, or the checks of one provider.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(
    untagged,
    expecting = "expected provider and reason; for maintenance provider, checks: true, for (such as 30m) and reason"
)]
pub(super) enum SuspendCall {
    Applying(SuspendApplying),
    Checks(SuspendChecks),
}

/// Stops applying; checks go on.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct SuspendApplying {
    /// One provider; `null` or absent: everything.
    #[schema(max_length = 255)]
    provider: Option<String>,
    /// Why, for the audit trail.
    #[schema(max_length = 500)]
    reason: Option<String>,
}

/// Stops one provider's health checks and key tests: maintenance.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct SuspendChecks {
    #[schema(max_length = 255)]
    provider: String,
    #[expect(dead_code, reason = "its presence is what differs")]
    checks: Yes,
    /// How long, such as `30m` or `2h`; `null` or absent: until resumed.
    #[serde(rename = "for")]
    #[schema(value_type = Option<String>, pattern = "^[1-9][0-9]{0,3}[smhd]$")]
    duration: Option<Pause>,
    /// Why, for the audit trail.
    #[schema(max_length = 500)]
    reason: Option<String>,
}

/// What to resume: applying, or the checks of one provider.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(untagged, expecting = "expected provider; after maintenance provider and checks: true")]
pub(super) enum ResumeCall {
    Applying(ResumeApplying),
    Checks(ResumeChecks),
}

/// Starts applying again.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct ResumeApplying {
    /// One provider; `null` or absent: everything.
    #[schema(max_length = 255)]
    provider: Option<String>,
}

/// Starts one provider's health checks and key tests again.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct ResumeChecks {
    #[schema(max_length = 255)]
    provider: String,
    #[expect(dead_code, reason = "its presence is what differs")]
    checks: Yes,
}

/// `true`, and nothing else.
#[derive(Debug, Deserialize)]
#[serde(try_from = "bool")]
struct Yes;

impl TryFrom<bool> for Yes {
    type Error = &'static str;

    fn try_from(value: bool) -> Result<Self, Self::Error> {
        if value { Ok(Self) } else { Err("expected true") }
    }
}

impl PartialSchema for Yes {
    fn schema() -> RefOr<Schema> {
        ObjectBuilder::new().schema_type(Type::Boolean).enum_values(Some([true])).into()
    }
}

impl ToSchema for Yes {}

/// A number of seconds, minutes, hours or days.
#[derive(Debug, Deserialize)]
#[serde(try_from = "String")]
struct Pause(TimeDelta);

impl TryFrom<String> for Pause {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        let parsed = || {
            let unit = text.chars().last()?;
            let digits = text.strip_suffix(unit)?;
            let plain = digits.bytes().all(|byte| byte.is_ascii_digit()) && !digits.starts_with('0');
            let number = digits.parse::<i64>().ok().filter(|_| plain && digits.len() <= 4)?;
            Some(Self(match unit {
                's' => TimeDelta::seconds(number),
                'm' => TimeDelta::minutes(number),
                'h' => TimeDelta::hours(number),
                'd' => TimeDelta::days(number),
                _ => return None,
            }))
        };
        parsed().ok_or("expected a number and s, m, h or d")
    }
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
    State(shared): State<AdminShared>,
    Extension(caller): Extension<Caller>,
) -> Result<Response, ApiError> {
    let live = shared.live()?;
    record(&shared, &caller, "sync", None).await?;
    live.wake.poke("api");
    Ok((StatusCode::ACCEPTED, Json(Triggered { triggered: true })).into_response())
}

/// Stops applying, for everything or for one provider; checks go on. Or stops the checks of one provider.
#[utoipa::path(post, path = "/api/v1/suspend", tag = "actions", request_body = SuspendCall,
    responses((status = 200, description = "It is suspended", body = SuspendedNow),
        (status = 404, description = "There is no such provider", body = ErrorBody), ReadErrors, BodyErrors))]
pub(super) async fn suspend(
    State(shared): State<AdminShared>,
    Extension(caller): Extension<Caller>,
    JsonBody(body): JsonBody<SuspendCall>,
) -> Result<Json<SuspendedNow>, ApiError> {
    let live = shared.live()?;
    let (reason, until) = match &body {
        SuspendCall::Applying(what) => (&what.reason, None),
        SuspendCall::Checks(what) => (&what.reason, what.duration.as_ref().map(|pause| Utc::now() + pause.0)),
    };
    let reason = match reason {
        Some(reason) => tidy(reason)?,
        None => format!("suspended through the API by token {}", caller.who),
    };
    let (provider, stopped) = match &body {
        SuspendCall::Applying(what) => applying(&shared, what.provider.as_deref())?,
        SuspendCall::Checks(what) => checks(&shared, &what.provider)?,
    };
    record(&shared, &caller, "suspend", provider).await?;
    shared.store.suspend(stopped, &Suspension { at: Utc::now(), reason, until }).await?;
    live.wake.poke("api");
    Ok(Json(SuspendedNow { suspended: true, until }))
}

/// Starts applying, or the checks of one provider, again. Of no effect where nothing was suspended.
#[utoipa::path(post, path = "/api/v1/resume", tag = "actions", request_body = ResumeCall,
    responses((status = 200, description = "It is not suspended", body = SuspendedNow),
        (status = 404, description = "There is no such provider", body = ErrorBody), ReadErrors, BodyErrors))]
pub(super) async fn resume(
    State(shared): State<AdminShared>,
    Extension(caller): Extension<Caller>,
    JsonBody(body): JsonBody<ResumeCall>,
) -> Result<Json<SuspendedNow>, ApiError> {
    let live = shared.live()?;
    let (provider, stopped) = match &body {
        ResumeCall::Applying(what) => applying(&shared, what.provider.as_deref())?,
        ResumeCall::Checks(what) => checks(&shared, &what.provider)?,
    };
    record(&shared, &caller, "resume", provider).await?;
    shared.store.resume(stopped, &format!("resumed through the API by token {}", caller.who)).await?;
    live.wake.poke("api");
    Ok(Json(SuspendedNow { suspended: false, until: None }))
}

/// Checks one provider and tests its key now, out of turn. What comes of it is in the provider's status and history.
///
/// Not triggered where another daemon checks it, or where checks are paused or switched off.
#[utoipa::path(post, path = "/api/v1/providers/{name}/check", tag = "actions",
    params(("name" = String, Path, description = "Name of the provider")),
    responses((status = 202, description = "It will be checked", body = Triggered),
        (status = 404, description = "There is no such provider", body = ErrorBody), ReadErrors))]
pub(super) async fn check(
    State(shared): State<AdminShared>,
    Extension(caller): Extension<Caller>,
    name: Result<Path<String>, PathRejection>,
) -> Result<Response, ApiError> {
    // What is not text is no name of a provider.
    let name = name.map(|Path(name)| name).unwrap_or_default();
    let provider = known(&shared, &name)?;
    let Some(checked) = shared.checked.get() else {
        return Ok((StatusCode::ACCEPTED, Json(Triggered { triggered: false })).into_response());
    };
    record(&shared, &caller, "check", Some(provider)).await?;
    let triggered = checked.checks.now(provider).await;
    Ok((StatusCode::ACCEPTED, Json(Triggered { triggered })).into_response())
}

/// Which provider it concerns, and what that stops.
type Concerned<'a> = (Option<&'a str>, Stopped<'a>);

fn applying<'a>(shared: &AdminShared, provider: Option<&'a str>) -> Result<Concerned<'a>, ApiError> {
    let Some(name) = provider else { return Ok((None, Stopped::Everything)) };
    Ok((Some(known(shared, name)?), Stopped::Provider(name)))
}

fn checks<'a>(shared: &AdminShared, name: &'a str) -> Result<Concerned<'a>, ApiError> {
    Ok((Some(known(shared, name)?), Stopped::Checks(name)))
}

/// A provider that the picture knows.
fn known<'a>(shared: &AdminShared, name: &'a str) -> Result<&'a str, ApiError> {
    match shared.snapshot()?.row(name) {
        Some(_) => Ok(name),
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
    shared: &AdminShared,
    caller: &Caller,
    call: &'static str,
    provider: Option<&str>,
) -> Result<(), ApiError> {
    let event = NewEvent::about(
        EventKind::Admin,
        provider.map(Into::into),
        None,
        json!({ "call": call, "who": caller.who }),
        format!("{call} through the API"),
    );
    Ok(shared.store.record(&[event]).await?)
}
