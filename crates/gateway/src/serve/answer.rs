//! Answers as HTTP: headers of our own, errors in the caller's dialect.
//!
//! Not its job: what is answered. Invariant: each answer to a request has an `x-request-id`.

use std::ops::Range;

use bytes::Bytes;
use hyper::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use hyper::{Response, StatusCode};

use crate::error::GatewayError;
use crate::limit::decimal;
use crate::picture::Api;
use crate::relay::GatewayBody;
use crate::trip::Shown;

/// Headers of an answer, at most.
pub(super) const HEADERS: usize = 16;

/// Names of our own, made once: a name made from a text is read letter by letter.
static REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
static UPSTREAM_ID: HeaderName = HeaderName::from_static("x-upstream-request-id");
static MODEL: HeaderName = HeaderName::from_static("x-providerd-model");
static ATTEMPTS: HeaderName = HeaderName::from_static("x-providerd-attempts");
static ROUTE: HeaderName = HeaderName::from_static("x-providerd-route");
/// Of requests and of tokens: the limit, what remains, until it is full again.
static LIMITS: [[HeaderName; 3]; 2] = [
    [
        HeaderName::from_static("x-ratelimit-limit-requests"),
        HeaderName::from_static("x-ratelimit-remaining-requests"),
        HeaderName::from_static("x-ratelimit-reset-requests"),
    ],
    [
        HeaderName::from_static("x-ratelimit-limit-tokens"),
        HeaderName::from_static("x-ratelimit-remaining-tokens"),
        HeaderName::from_static("x-ratelimit-reset-tokens"),
    ],
];
static PROVIDER_USED: HeaderName = HeaderName::from_static("x-provider-used");

fn put(headers: &mut HeaderMap, name: HeaderName, value: impl Into<Bytes>) {
    // What cannot stand in a header (a name of another alphabet) is left out.
    if let Ok(value) = HeaderValue::from_maybe_shared(value.into()) {
        headers.insert(name, value);
    }
}

pub(super) fn show(headers: &mut HeaderMap, shown: Shown, seed: bool) {
    if let Some(model) = shown.model {
        headers.insert(MODEL.clone(), model);
        if let Some(provider) = shown.provider.filter(|_| seed) {
            headers.insert(PROVIDER_USED.clone(), provider);
        }
    }
    if let Some(route) = shown.route {
        headers.insert(ROUTE.clone(), route);
    }
    if let Some(id) = shown.upstream_id {
        headers.insert(UPSTREAM_ID.clone(), id);
    }
    // All numbers lie in one buffer, which costs less than the headers themselves.
    let mut numbers = NumberTexts::default();
    let attempts = numbers.push(|text| decimal(text, u64::from(shown.attempts)));
    let views = shown.limits.map(|view| {
        view.map(|view| {
            [
                numbers.push(|text| decimal(text, view.limit)),
                numbers.push(|text| decimal(text, view.remaining)),
                numbers.push(|text| view.write_reset(text)),
            ]
        })
    });
    let texts = Bytes::from(numbers.0);
    let mut number = |name: &HeaderName, place: Range<usize>| {
        if let Ok(value) = HeaderValue::from_maybe_shared(texts.slice(place)) {
            headers.insert(name, value);
        }
    };
    if shown.attempts > 0 {
        number(&ATTEMPTS, attempts);
    }
    for (names, view) in LIMITS.iter().zip(views) {
        for (name, place) in names.iter().zip(view.into_iter().flatten()) {
            number(name, place);
        }
    }
}

/// Texts of numbers, one after the other.
#[derive(Default)]
struct NumberTexts(Vec<u8>);

impl NumberTexts {
    /// One more; where it stands.
    fn push(&mut self, write: impl FnOnce(&mut Vec<u8>)) -> Range<usize> {
        if self.0.capacity() == 0 {
            self.0.reserve_exact(128);
        }
        let from = self.0.len();
        write(&mut self.0);
        from..self.0.len()
    }
}

pub(super) fn request_id_header(headers: &mut HeaderMap, id: &str) {
    put(headers, REQUEST_ID.clone(), Bytes::copy_from_slice(id.as_bytes()));
}

pub(super) fn small(status: StatusCode, text: &'static str) -> Response<GatewayBody> {
    let mut response = Response::new(GatewayBody::Whole(Bytes::from_static(text.as_bytes())));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain"));
    response
}

pub(super) fn json_response(status: StatusCode, body: Bytes) -> Response<GatewayBody> {
    let mut response = Response::new(GatewayBody::Whole(body));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// An error as an answer, in the caller's dialect.
pub(super) fn refused(
    error: &GatewayError,
    api: Api,
    request_id: &str,
    shown: Option<Box<Shown>>,
) -> Response<GatewayBody> {
    let status = StatusCode::from_u16(error.status).unwrap_or(StatusCode::BAD_GATEWAY);
    let body = error.body(api, Some(request_id)).to_string();
    let mut response = json_response(status, body.into());
    let headers = response.headers_mut();
    for (name, value) in error.headers() {
        put(headers, HeaderName::from_static(name), value);
    }
    request_id_header(headers, request_id);
    if let Some(shown) = shown {
        show(headers, *shown, false);
    }
    response
}

pub(super) fn streaming(
    body: GatewayBody,
    request_id: &str,
    shown: Option<Box<Shown>>,
    seed: bool,
) -> Response<GatewayBody> {
    let mut response = Response::new(body);
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    // nginx in front shall not gather events.
    headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
    request_id_header(headers, request_id);
    if let Some(shown) = shown {
        show(headers, *shown, seed);
    }
    response
}
