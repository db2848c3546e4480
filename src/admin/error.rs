//! Failures as the API reports them: a status, a word for programs, a sentence for people.
//!
//! Invariant: no internals. What went wrong inside stands in the log; the answer says what the caller can do.

use axum::{
    Json,
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use serde::Serialize;
use utoipa::ToSchema;

use crate::store::StoreError;

/// The body of every failure.
#[derive(Debug, Serialize, ToSchema)]
pub struct ErrorBody {
    pub error: ErrorDetail,
    /// The message again, below `/api/v1/llm/` alone: where the pages look for it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
}

/// What went wrong.
#[derive(Debug, Serialize, ToSchema)]
pub struct ErrorDetail {
    /// A word for programs, in kebab case.
    pub code: String,
    /// A sentence for people.
    pub message: String,
}

/// Why a request is not answered as it wished.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ApiError {
    Unauthorized,
    /// No admin token is configured.
    Closed,
    /// The Host or Origin header names another host or site.
    ForeignHost(&'static str),
    NotFound(String),
    NoSuchPath,
    /// No provider bears this name, and no type.
    UnknownType,
    /// The caller's session is good, and not an administrator's.
    NotAdmin,
    /// A manifest owns what was to be written; says which.
    Managed(String),
    /// With a status that the framework has chosen.
    Refused(StatusCode),
    MethodNotAllowed,
    Timeout,
    TooLarge,
    MediaType,
    Invalid(String),
    TooManyRequests {
        retry_after: u64,
    },
    /// Too many streams of events are open.
    TooManyStreams,
    /// Start-up is not over, or the database is away.
    Unavailable(&'static str),
    /// For programs that ask whether the daemon is ready.
    NotReady(&'static str),
    Internal,
}

impl ApiError {
    fn parts(&self) -> (StatusCode, &'static str, String) {
        let (status, code, message): (_, _, &str) = match self {
            Self::Unauthorized => (
                StatusCode::UNAUTHORIZED,
                "unauthorized",
                "send `Authorization: Bearer TOKEN` with a token that the daemon knows",
            ),
            Self::Closed => (
                StatusCode::FORBIDDEN,
                "admin-closed",
                "no admin token is configured, so the admin API is closed; hint: put the SHA-256 of a token into \
                 server.token_sha256, or give the systemd credential admin_token_sha256 or admin_token",
            ),
            Self::ForeignHost(what) => (StatusCode::FORBIDDEN, "foreign-host", *what),
            Self::NotFound(what) => (StatusCode::NOT_FOUND, "not-found", what.as_str()),
            Self::NoSuchPath => (StatusCode::NOT_FOUND, "not-found", "there is nothing at this path"),
            Self::UnknownType => {
                (StatusCode::BAD_REQUEST, "unknown-type", "no provider has this name, and no type either")
            }
            Self::NotAdmin => (
                StatusCode::FORBIDDEN,
                "admin-required",
                "this session does not have a role that may use these pages",
            ),
            Self::Managed(what) => (StatusCode::CONFLICT, "managed", what.as_str()),
            Self::Refused(status) => (*status, "refused", "the request cannot be understood"),
            Self::MethodNotAllowed => (
                StatusCode::METHOD_NOT_ALLOWED,
                "method-not-allowed",
                "this path does not know this method; the Allow header lists those it does",
            ),
            Self::Timeout => {
                (StatusCode::REQUEST_TIMEOUT, "timeout", "the request did not end within its time limit")
            }
            Self::TooLarge => (StatusCode::PAYLOAD_TOO_LARGE, "too-large", "the body is over 64 KiB"),
            Self::MediaType => (
                StatusCode::UNSUPPORTED_MEDIA_TYPE,
                "media-type",
                "send JSON with `Content-Type: application/json`",
            ),
            Self::Invalid(what) => (StatusCode::UNPROCESSABLE_ENTITY, "invalid", what.as_str()),
            Self::TooManyRequests { .. } => (
                StatusCode::TOO_MANY_REQUESTS,
                "too-many-requests",
                "at most 10 key tests a minute for each token; wait as long as Retry-After says",
            ),
            Self::TooManyStreams => (
                StatusCode::SERVICE_UNAVAILABLE,
                "too-many-streams",
                "too many streams of events are open; close one, or wait",
            ),
            Self::Unavailable(what) => (StatusCode::SERVICE_UNAVAILABLE, "unavailable", *what),
            Self::NotReady(what) => (StatusCode::SERVICE_UNAVAILABLE, "not-ready", *what),
            Self::Internal => (
                StatusCode::INTERNAL_SERVER_ERROR,
                "internal",
                "something went wrong here; the log says what",
            ),
        };
        (status, code, message.to_owned())
    }

    fn retry_after(&self) -> Option<u64> {
        match self {
            Self::TooManyRequests { retry_after } => Some(*retry_after),
            Self::TooManyStreams => Some(10),
            Self::Unavailable(_) => Some(2),
            _ => None,
        }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let (status, code, message) = self.parts();
        let body = ErrorBody { error: ErrorDetail { code: code.to_owned(), message }, detail: None };
        let mut response = (status, Json(body)).into_response();
        let headers = response.headers_mut();
        if status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer realm=\"providerd\""));
        }
        if let Some(seconds) = self.retry_after() {
            headers.insert(header::RETRY_AFTER, seconds.into());
        }
        response
    }
}

impl From<StoreError> for ApiError {
    fn from(error: StoreError) -> Self {
        if error.is_transient() {
            tracing::debug!(error = %error, "a request could not be answered from the database");
            return Self::Unavailable("the database cannot be reached now");
        }
        tracing::warn!(error = %error, "a request could not be answered from the database");
        Self::Internal
    }
}
