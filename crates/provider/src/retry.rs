//! How long a provider asks us to wait, in all the forms in which providers say it.

use std::time::Duration;

use chrono::{DateTime, NaiveDateTime, TimeDelta, Utc};
use serde_json::Value;

use super::Reply;

/// No answer may silence checks for longer: an outage would hide behind it.
pub const MAX_RETRY_AFTER: Duration = Duration::from_secs(10 * 60);

/// How long to wait before the next request; `None` where the reply does not say. At most 10 min.
///
/// Headers come before the body, and the body's fields before its prose. A reset header counts only on a reply
/// that refuses for its rate: successes carry it as well.
pub fn retry_after(reply: &Reply<'_>, now: DateTime<Utc>) -> Option<Duration> {
    let refused = matches!(reply.status, 429 | 503 | 529);
    from_headers(reply, now)
        .or_else(|| if reply.is_success() { None } else { from_body(reply) })
        .or_else(|| if refused { from_resets(reply, now) } else { None })
        .map(|wait| wait.min(MAX_RETRY_AFTER))
}

fn from_headers(reply: &Reply<'_>, now: DateTime<Utc>) -> Option<Duration> {
    if let Some(wait) = reply.header("retry-after-ms").and_then(|text| text.parse::<f64>().ok()) {
        return seconds(wait / 1000.0);
    }
    let text = reply.header("retry-after")?;
    match text.parse::<f64>() {
        Ok(wait) => seconds(wait),
        Err(_) => until(text, now),
    }
}

/// Non-negative and finite; anything larger than the cap becomes the cap.
fn seconds(wait: f64) -> Option<Duration> {
    (wait.is_finite() && wait >= 0.0)
        .then(|| Duration::from_secs_f64(wait.min(MAX_RETRY_AFTER.as_secs_f64())))
}

/// An HTTP date in one of its three forms (RFC 9110, 5.6.7) or an RFC 3339 time; one that is past means "now".
fn until(text: &str, now: DateTime<Utc>) -> Option<Duration> {
    let at = DateTime::parse_from_rfc3339(text)
        .or_else(|_| DateTime::parse_from_rfc2822(text))
        .map(|at| at.with_timezone(&Utc))
        .ok()
        .or_else(|| obsolete(text, now))?;
    Some((at - now).to_std().unwrap_or(Duration::ZERO))
}

/// The forms of RFC 850 (`Monday, 23-Nov-26 12:00:30 GMT`) and of C's asctime (`Mon Nov 23 12:00:30 2026`), both in GMT.
fn obsolete(text: &str, now: DateTime<Utc>) -> Option<DateTime<Utc>> {
    if let Some((_, date)) = text.split_once(", ") {
        let date = date.strip_suffix(" GMT").or_else(|| date.strip_suffix(" UTC"))?;
        let at = NaiveDateTime::parse_from_str(date, "%d-%b-%y %H:%M:%S").ok()?.and_utc();
        // Two digits name the year that lies no more than fifty years ahead.
        let century = TimeDelta::days(36_525);
        return Some(if at - now > TimeDelta::days(18_263) { at.checked_sub_signed(century)? } else { at });
    }
    // The weekday adds nothing, and a wrong one is no reason not to wait.
    let (_, date) = text.split_once(' ')?;
    Some(NaiveDateTime::parse_from_str(date, "%b %e %H:%M:%S %Y").ok()?.and_utc())
}

fn from_body(reply: &Reply<'_>) -> Option<Duration> {
    let json = reply.json();
    if let Some(json) = &json {
        if let Some(wait) = field(json, 0) {
            return Some(wait);
        }
        return [
            json.get("error").and_then(|error| error.get("message")),
            json.get("error"),
            json.get("message"),
            json.get("detail"),
        ]
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .find_map(prose);
    }
    prose(&String::from_utf8_lossy(reply.body.get(..reply.body.len().min(4096)).unwrap_or_default()))
}

/// `retryDelay: "17s"` or `retry_after: 17`, wherever they stand.
fn field(json: &Value, depth: u8) -> Option<Duration> {
    match json {
        Value::Object(fields) => fields
            .iter()
            .find_map(|(name, value)| match (name.as_str(), value) {
                ("retryDelay" | "retry_delay" | "retry_after" | "retryAfter", Value::String(text)) => {
                    text.parse().ok().and_then(seconds).or_else(|| duration(text))
                }
                ("retry_after" | "retryAfter" | "retry_after_seconds", Value::Number(number)) => {
                    number.as_f64().and_then(seconds)
                }
                ("retry_after_ms", Value::Number(number)) => {
                    number.as_f64().and_then(|ms| seconds(ms / 1000.0))
                }
                _ => None,
            })
            .or_else(|| {
                if depth < 6 { fields.values().find_map(|value| field(value, depth + 1)) } else { None }
            }),
        Value::Array(items) if depth < 6 => items.iter().take(32).find_map(|item| field(item, depth + 1)),
        _ => None,
    }
}

/// "try again in 7.66s", "retry after 2m".
fn prose(text: &str) -> Option<Duration> {
    let lower: String = text.chars().take(4096).collect::<String>().to_lowercase();
    ["try again in ", "retry in ", "retry after ", "try again after ", "wait "].iter().find_map(|lead| {
        let rest = &lower[lower.find(lead)? + lead.len()..];
        duration(rest)
    })
}

/// `1h2m3.5s`, `850ms`, `2 minutes`, read from the beginning of a text; a number without a unit is refused.
fn duration(text: &str) -> Option<Duration> {
    let mut rest = text.trim_start();
    let mut total = 0.0;
    let mut any = false;
    loop {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
        let (number, after) = rest.split_at(digits);
        let number = number.trim_end_matches('.');
        if number.is_empty() {
            break;
        }
        let after = after.trim_start();
        let letters = after.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(after.len());
        let (unit, next) = after.split_at(letters);
        let scale = match unit {
            "ms" | "millisecond" | "milliseconds" => 0.001,
            "s" | "sec" | "secs" | "second" | "seconds" => 1.0,
            "m" | "min" | "mins" | "minute" | "minutes" => 60.0,
            "h" | "hr" | "hour" | "hours" => 3600.0,
            "d" | "day" | "days" => 86_400.0,
            _ => break,
        };
        total += number.parse::<f64>().ok()? * scale;
        any = true;
        rest = next;
    }
    if any { seconds(total) } else { None }
}

/// The reset that comes first among the limits that are used up, else the first of all.
fn from_resets(reply: &Reply<'_>, now: DateTime<Utc>) -> Option<Duration> {
    let mut first: Option<Duration> = None;
    let mut blocking: Option<Duration> = None;
    for (name, value) in reply.headers.iter().take(256) {
        let name = name.to_ascii_lowercase();
        if !name.contains("ratelimit") || !name.contains("reset") {
            continue;
        }
        let value = value.trim();
        let Some(wait) = until(value, now)
            .or_else(|| duration(value))
            .or_else(|| value.parse().ok().and_then(|number: f64| epoch_or_seconds(number, now)))
        else {
            continue;
        };
        first = Some(first.map_or(wait, |found| found.min(wait)));
        if reply.header(&name.replace("reset", "remaining")) == Some("0") {
            blocking = Some(blocking.map_or(wait, |found| found.max(wait)));
        }
    }
    blocking.or(first)
}

/// A bare number is a wait, or a moment in seconds or milliseconds since 1970.
fn epoch_or_seconds(number: f64, now: DateTime<Utc>) -> Option<Duration> {
    let now = now.timestamp_millis() as f64 / 1000.0;
    if number > 1e11 {
        seconds((number / 1000.0 - now).max(0.0))
    } else if number > 1e9 {
        seconds((number - now).max(0.0))
    } else {
        seconds(number)
    }
}
