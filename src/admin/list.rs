//! Answers of ready-made JSON: tags for what has not changed, and lists in pages.
//!
//! A cursor is a place in an order, not a number of rows: what is added or removed before it moves nothing.

use axum::{
    body::{Body, Bytes},
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::{IntoResponse as _, Response},
};

use super::error::ApiError;

/// Items of a page if the request does not say.
pub const DEFAULT_LIMIT: u32 = 100;
/// Most items of a page.
pub const MAX_LIMIT: u32 = 500;
/// Characters of a name, as the column has it.
const MAX_TEXT: usize = 255;
/// Digits of the longest cursor: a name of 255 characters of four bytes, another one, and an id, with room.
const MAX_CURSOR: usize = 5000;

/// A JSON answer, or 304 where the caller has it already. Weak tags: two answers of one tag may differ in the time
/// at which they were made.
pub(super) fn tagged(headers: &HeaderMap, digest: &str, body: impl FnOnce() -> Bytes) -> Response {
    let tag = format!("W/\"{digest}\"");
    let known = headers.get_all(header::IF_NONE_MATCH).iter().filter_map(|value| value.to_str().ok());
    let opaque = |text: &str| text.trim().trim_start_matches("W/").trim_matches('"').to_owned();
    let has_it =
        known.flat_map(|value| value.split(',')).any(|each| each.trim() == "*" || opaque(each) == digest);
    let mut response = if has_it { StatusCode::NOT_MODIFIED.into_response() } else { json(body()) };
    if let Ok(tag) = HeaderValue::from_str(&tag) {
        response.headers_mut().insert(header::ETAG, tag);
    }
    response
}

pub(super) fn json(body: Bytes) -> Response {
    ([(header::CONTENT_TYPE, "application/json")], Body::from(body)).into_response()
}

/// The page size that was asked for.
pub(super) fn limit(asked: Option<u32>) -> Result<usize, ApiError> {
    match asked.unwrap_or(DEFAULT_LIMIT) {
        limit @ 1..=MAX_LIMIT => Ok(limit as usize),
        _ => Err(ApiError::Invalid(format!("limit must be from 1 to {MAX_LIMIT}"))),
    }
}

/// A text to compare with; no name is longer than the column it stands in.
pub(super) fn text<'a>(what: &str, given: Option<&'a str>) -> Result<Option<&'a str>, ApiError> {
    match given {
        Some(text) if text.chars().count() > MAX_TEXT => {
            Err(ApiError::Invalid(format!("{what} must have at most {MAX_TEXT} characters")))
        }
        other => Ok(other),
    }
}

/// A cursor over keys in hexadecimal.
pub(super) fn cursor(given: Option<&str>) -> Result<Option<&str>, ApiError> {
    match given {
        Some(text)
            if text.is_empty()
                || text.len() > MAX_CURSOR
                || !text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')) =>
        {
            Err(ApiError::Invalid("cursor must be what `next` of an earlier page says".to_owned()))
        }
        other => Ok(other),
    }
}

/// One page, written down: `items` are JSON texts.
pub(super) fn page<'a>(items: impl Iterator<Item = &'a str>, next: Option<&str>, total: usize) -> Bytes {
    let mut text = String::from("{\"items\":[");
    for (at, item) in items.enumerate() {
        if at > 0 {
            text.push(',');
        }
        text.push_str(item);
    }
    text.push_str("],\"next\":");
    match next {
        // Hexadecimal digits: nothing to escape.
        Some(next) => {
            text.push('"');
            text.push_str(next);
            text.push('"');
        }
        None => text.push_str("null"),
    }
    text.push_str(&format!(",\"total\":{total}}}"));
    text.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_are_json() {
        let check = |items: &[&str], next, total, expected: &str| {
            assert_eq!(page(items.iter().copied(), next, total), expected.as_bytes());
        };
        check(&[], None, 0, r#"{"items":[],"next":null,"total":0}"#);
        check(&["1", "2"], Some("ab"), 3, r#"{"items":[1,2],"next":"ab","total":3}"#);
    }

    #[test]
    fn what_is_known_is_not_sent_again() {
        let check = |given: &[&str], expected: StatusCode| {
            let mut headers = HeaderMap::new();
            for value in given {
                headers.append(header::IF_NONE_MATCH, value.parse().unwrap());
            }
            let response = tagged(&headers, "abc", || "{}".into());
            assert_eq!(response.status(), expected, "{given:?}");
            assert_eq!(response.headers()[header::ETAG], "W/\"abc\"");
        };
        check(&[], StatusCode::OK);
        check(&["\"x\""], StatusCode::OK);
        check(&["\"abc\""], StatusCode::NOT_MODIFIED);
        check(&["W/\"abc\""], StatusCode::NOT_MODIFIED);
        check(&["\"x\", W/\"abc\""], StatusCode::NOT_MODIFIED);
        check(&["\"x\"", "\"abc\""], StatusCode::NOT_MODIFIED);
        check(&["*"], StatusCode::NOT_MODIFIED);
    }

    #[test]
    fn limits_and_cursors_are_checked() {
        for (asked, expected) in [
            (None, Some(100)),
            (Some(1), Some(1)),
            (Some(500), Some(500)),
            (Some(0), None),
            (Some(501), None),
        ] {
            assert_eq!(limit(asked).ok(), expected);
        }
        for (given, good) in [(None, true), (Some("0af"), true), (Some(""), false), (Some("xyz"), false)] {
            assert_eq!(cursor(given).is_ok(), good);
        }
    }
}
