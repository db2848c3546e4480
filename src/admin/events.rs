//! `GET /api/v1/events`: the audit trail, in pages or as it grows.

use axum::{
    extract::State,
    http::{HeaderMap, header},
    response::Response,
};
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::{
    IntoParams, ToSchema,
    openapi::schema::{Object, ObjectBuilder, Type},
};

use catalog::plan::EventKind;

use crate::{
    admin::{
        AdminShared,
        error::ApiError,
        event_stream,
        extract::Params,
        list,
        openapi::{Page, ParameterErrors, ReadErrors},
    },
    store::{EventQuery, EventRow},
};

/// Which events.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct EventsParams {
    /// Name of the provider.
    #[param(max_length = 255)]
    provider: Option<String>,
    #[param(schema_with = kinds)]
    kind: Option<EventKind>,
    /// Not older than this; RFC 3339.
    #[param(value_type = Option<DateTime<Utc>>)]
    since: Option<String>,
    #[param(minimum = 1, maximum = 500, default = 100)]
    limit: Option<u32>,
    /// `next` of the page before.
    #[param(pattern = "^[0-9]{1,18}$")]
    cursor: Option<String>,
}

/// Where a stream begins.
#[derive(IntoParams)]
#[into_params(parameter_in = Header)]
#[expect(dead_code, reason = "describes a header that is read by hand")]
struct Resumed {
    /// For a stream: begin after this event.
    #[param(rename = "Last-Event-ID", required = false, pattern = "^[0-9]{1,18}$")]
    last_event_id: String,
}

fn kinds() -> Object {
    let words = EventKind::ALL.iter().map(|kind| kind.as_str());
    ObjectBuilder::new().schema_type(Type::String).enum_values(Some(words)).build()
}

/// One row of the audit trail.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub(super) struct EventItem {
    /// Grows; not without gaps.
    pub id: i64,
    pub at: DateTime<Utc>,
    #[schema(schema_with = kinds)]
    pub kind: String,
    /// `null`: not about one provider.
    pub provider: Option<String>,
    pub reason: String,
    /// Manifest and line.
    pub origin: Option<String>,
    /// Commit of the manifests, shortened; `+dirty` where the work tree differed from it.
    pub revision: Option<String>,
    /// First 8 digits of the SHA-256 of the token that asked for it.
    pub actor: Option<String>,
    /// Field by field; a key is a fingerprint.
    #[schema(value_type = Object)]
    pub detail: Value,
}

impl From<EventRow> for EventItem {
    fn from(event: EventRow) -> Self {
        let actor = event.detail.get("who").and_then(Value::as_str).map(str::to_owned);
        Self {
            id: event.id,
            at: event.at,
            kind: event.kind,
            provider: event.provider,
            reason: event.reason,
            origin: event.origin.map(|origin| origin.to_string()),
            revision: event.revision,
            actor,
            detail: event.detail,
        }
    }
}

/// What a row must be to be shown.
#[derive(Debug, Clone, Default)]
pub(super) struct Filter {
    pub provider: Option<String>,
    pub kind: Option<EventKind>,
    pub since: Option<DateTime<Utc>>,
}

impl Filter {
    pub fn fits(&self, event: &EventItem) -> bool {
        self.provider.as_ref().is_none_or(|name| event.provider.as_ref() == Some(name))
            && self.kind.is_none_or(|kind| event.kind == kind.as_str())
            && self.since.is_none_or(|since| event.at >= since)
    }
}

/// The audit trail, the newest first; with `Accept: text/event-stream`, what happens from now on.
///
/// The stream's `id` is the event's, its `data` the item. `Last-Event-ID` begins after that event.
#[utoipa::path(get, path = "/api/v1/events", tag = "events", params(EventsParams, Resumed),
    responses((status = 200, description = "One page of events, or the stream",
            content((Page<EventItem> = "application/json"), (String = "text/event-stream"))),
        ReadErrors, ParameterErrors))]
pub(super) async fn all(
    State(shared): State<AdminShared>,
    headers: HeaderMap,
    Params(wanted): Params<EventsParams>,
) -> Result<Response, ApiError> {
    let limit = list::limit(wanted.limit)?;
    list::text("provider", wanted.provider.as_deref())?;
    let filter = Filter {
        provider: wanted.provider,
        kind: wanted.kind,
        since: wanted.since.as_deref().map(time).transpose()?,
    };
    let before = number("cursor", wanted.cursor.as_deref())?;
    let last = headers.get("last-event-id").map(|value| value.to_str().unwrap_or("?"));
    let last = number("Last-Event-ID", last)?;
    if wants_stream(&headers) {
        return event_stream::stream(&shared, filter, last).await;
    }
    // PostgreSQL's texts hold no NUL, so nothing fits it.
    let nothing = filter.provider.as_ref().is_some_and(|name| name.contains('\0'));
    let (events, total) = if nothing {
        (Vec::new(), 0)
    } else {
        let query = EventQuery {
            provider: filter.provider,
            kind: filter.kind.map(|kind| kind.as_str().to_owned()),
            since: filter.since,
            before,
            // One more than is shown says whether there is another page.
            limit: u32::try_from(limit + 1).unwrap_or(u32::MAX),
        };
        shared.store.events_page(&query).await?
    };
    let more = events.len() > limit;
    let items: Vec<EventItem> = events.into_iter().take(limit).map(EventItem::from).collect();
    let next = items.last().filter(|_| more).map(|item| item.id.to_string());
    let page = Page { items, next, total: u64::try_from(total).unwrap_or_default() };
    Ok(list::json(serde_json::to_vec(&page).map_err(|_| ApiError::Internal)?.into()))
}

fn wants_stream(headers: &HeaderMap) -> bool {
    let accepted = headers.get_all(header::ACCEPT).iter().filter_map(|value| value.to_str().ok());
    accepted.flat_map(|value| value.split(',')).any(|each| {
        each.split(';').next().is_some_and(|kind| kind.trim().eq_ignore_ascii_case("text/event-stream"))
    })
}

fn time(text: &str) -> Result<DateTime<Utc>, ApiError> {
    // A `+` that was not escaped arrives as a space.
    let text = text.replace(' ', "+");
    let wrong = || ApiError::Invalid("since must be a time such as 2026-01-31T12:00:00Z".to_owned());
    DateTime::parse_from_rfc3339(&text).map(|time| time.to_utc()).map_err(|_| wrong())
}

fn number(what: &str, text: Option<&str>) -> Result<Option<i64>, ApiError> {
    let wrong = || ApiError::Invalid(format!("{what} must be the number of an event"));
    let digits =
        |text: &str| (1..=18).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_digit());
    match text {
        None => Ok(None),
        Some(text) if digits(text) => text.parse().map(Some).map_err(|_| wrong()),
        Some(_) => Err(wrong()),
    }
}
