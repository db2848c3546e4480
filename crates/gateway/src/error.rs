//! What a caller is answered when the gateway itself has to say no, or has to say that a provider failed.
//!
//! Its job: one value with code, status and hints for retrying, and its form in the dialects of callers, plain and as
//! the last event of a stream. Not its job: deciding what is an error (`ask`, `decide`, `course`, `limit`), or sending
//! it. Invariant: an envelope names nothing that the caller may not know; the code that makes the message keeps to that.

use std::{borrow::Cow, fmt, time::Duration};

use serde_json::{Value, json};

use crate::picture::Api;

/// The `code` of an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ErrorCode {
    InvalidJson,
    DuplicateField,
    InvalidRequest,
    UnknownPowerLevel,
    UnsupportedParameter,
    ContextLengthExceeded,
    InvalidApiKey,
    BudgetExceeded,
    ModelNotAllowed,
    ModelNotFound,
    NotFound,
    MethodNotAllowed,
    RequestTooLarge,
    RateLimitExceeded,
    ConcurrencyExceeded,
    /// A provider's own 400, 404, 413 or 422, with its own words.
    UpstreamRefused,
    UpstreamError,
    UpstreamAuth,
    UpstreamTruncated,
    NoUpstream,
    UsageUnavailable,
    Overloaded,
    ShuttingDown,
    UpstreamTimeout,
    /// Only in logs and rows: the caller left before there was an answer.
    CallerLeft,
}

impl ErrorCode {
    /// All of them, for tables and tests.
    pub const ALL: [Self; 25] = [
        Self::InvalidJson,
        Self::DuplicateField,
        Self::InvalidRequest,
        Self::UnknownPowerLevel,
        Self::UnsupportedParameter,
        Self::ContextLengthExceeded,
        Self::InvalidApiKey,
        Self::BudgetExceeded,
        Self::ModelNotAllowed,
        Self::ModelNotFound,
        Self::NotFound,
        Self::MethodNotAllowed,
        Self::RequestTooLarge,
        Self::RateLimitExceeded,
        Self::ConcurrencyExceeded,
        Self::UpstreamRefused,
        Self::UpstreamError,
        Self::UpstreamAuth,
        Self::UpstreamTruncated,
        Self::NoUpstream,
        Self::UsageUnavailable,
        Self::Overloaded,
        Self::ShuttingDown,
        Self::UpstreamTimeout,
        Self::CallerLeft,
    ];

    /// The word that stands in an answer, a row, a metric.
    pub const fn as_str(self) -> &'static str {
        self.row().0
    }

    /// The HTTP status that goes with it.
    pub const fn status(self) -> u16 {
        self.row().1
    }

    /// Word, status, OpenAI's `type`, Anthropic's `type`. The types are those that the clients of both know
    /// (OpenAI's published error page, Anthropic's list of `error.type`); others would not be retried by them.
    const fn row(self) -> (&'static str, u16, &'static str, &'static str) {
        const INVALID: &str = "invalid_request_error";
        match self {
            Self::InvalidJson => ("invalid_json", 400, INVALID, INVALID),
            Self::DuplicateField => ("duplicate_field", 400, INVALID, INVALID),
            Self::InvalidRequest => ("invalid_request", 400, INVALID, INVALID),
            Self::UnknownPowerLevel => ("unknown_power_level", 400, INVALID, INVALID),
            Self::UnsupportedParameter => ("unsupported_parameter", 400, INVALID, INVALID),
            Self::ContextLengthExceeded => ("context_length_exceeded", 400, INVALID, INVALID),
            Self::InvalidApiKey => ("invalid_api_key", 401, INVALID, "authentication_error"),
            Self::BudgetExceeded => ("budget_exceeded", 402, "insufficient_quota", "billing_error"),
            Self::ModelNotAllowed => ("model_not_allowed", 403, INVALID, "permission_error"),
            Self::ModelNotFound => ("model_not_found", 404, INVALID, "not_found_error"),
            Self::NotFound => ("not_found", 404, INVALID, "not_found_error"),
            Self::MethodNotAllowed => ("method_not_allowed", 405, INVALID, INVALID),
            Self::RequestTooLarge => ("request_too_large", 413, INVALID, "request_too_large"),
            Self::RateLimitExceeded => ("rate_limit_exceeded", 429, "rate_limit_error", "rate_limit_error"),
            Self::ConcurrencyExceeded => {
                ("concurrency_exceeded", 429, "rate_limit_error", "rate_limit_error")
            }
            Self::UpstreamRefused => ("upstream_refused", 400, INVALID, INVALID),
            Self::UpstreamError => ("upstream_error", 502, "server_error", "api_error"),
            Self::UpstreamAuth => ("upstream_auth", 502, "api_error", "api_error"),
            Self::UpstreamTruncated => ("upstream_truncated", 502, "server_error", "api_error"),
            Self::NoUpstream => ("no_upstream", 503, "server_error", "overloaded_error"),
            Self::UsageUnavailable => ("usage_unavailable", 503, "server_error", "api_error"),
            Self::Overloaded => ("overloaded", 503, "server_error", "overloaded_error"),
            Self::ShuttingDown => ("shutting_down", 503, "server_error", "overloaded_error"),
            Self::UpstreamTimeout => ("upstream_timeout", 504, "server_error", "timeout_error"),
            Self::CallerLeft => ("caller_left", 499, INVALID, "api_error"),
        }
    }

    /// Whose fault it is by its nature.
    pub const fn blame(self) -> ErrorSource {
        match self {
            Self::UpstreamRefused
            | Self::UpstreamError
            | Self::UpstreamAuth
            | Self::UpstreamTruncated
            | Self::UpstreamTimeout => ErrorSource::Upstream,
            Self::NoUpstream | Self::UsageUnavailable | Self::Overloaded | Self::ShuttingDown => {
                ErrorSource::Gateway
            }
            _ => ErrorSource::Caller,
        }
    }
}

impl fmt::Display for ErrorCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// Where an error comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ErrorSource {
    Caller,
    Gateway,
    Upstream,
}

/// One error, ready for any dialect.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}: {message}", self.code_word())]
pub struct GatewayError {
    pub code: ErrorCode,
    /// The code's own, except where a provider's refusal passes through.
    pub status: u16,
    /// For people: what happened and what to do. Holds no key, no prompt, nothing of an answer.
    pub message: Box<str>,
    /// The field, header or clock that it is about.
    pub param: Option<Cow<'static, str>>,
    /// When asking again makes sense.
    pub retry_after: Option<Duration>,
    /// `x-should-retry`, where a client's own rule would be wrong.
    pub should_retry: Option<bool>,
    pub blame: ErrorSource,
    /// A provider's own code, of a refusal that passes through.
    pub upstream_code: Option<Box<str>>,
}

impl GatewayError {
    pub fn new(code: ErrorCode, message: impl Into<Box<str>>) -> Self {
        Self {
            code,
            status: code.status(),
            message: message.into(),
            param: None,
            retry_after: None,
            // A client's own rule reads a 402 right, but a budget is the one refusal that must never be asked again.
            should_retry: matches!(code, ErrorCode::BudgetExceeded).then_some(false),
            blame: code.blame(),
            upstream_code: None,
        }
    }

    /// A provider's refusal that passes through; `message` is masked already.
    pub fn refused(
        status: u16,
        message: impl Into<Box<str>>,
        code: Option<&str>,
        param: Option<&str>,
    ) -> Self {
        Self {
            status,
            upstream_code: code.map(Into::into),
            param: param.map(|param| Cow::Owned(param.to_owned())),
            ..Self::new(ErrorCode::UpstreamRefused, message)
        }
    }

    pub fn param(mut self, param: impl Into<Cow<'static, str>>) -> Self {
        self.param = Some(param.into());
        self
    }

    pub fn retry_after(mut self, after: Duration) -> Self {
        self.retry_after = Some(after);
        self
    }

    /// Clients shall not ask again by themselves: the gateway has done so already.
    pub fn exhausted(mut self) -> Self {
        self.should_retry = Some(false);
        self
    }

    /// The word that stands as `code`.
    pub fn code_word(&self) -> &str {
        match (&self.upstream_code, self.code) {
            (Some(own), _) => own,
            (None, code) => code.as_str(),
        }
    }

    /// OpenAI's `type`.
    fn openai_type(&self) -> &'static str {
        self.code.row().2
    }

    /// Anthropic's `type`; a refusal that passes through keeps the type of its status.
    fn anthropic_type(&self) -> &'static str {
        match (self.code, self.status) {
            (ErrorCode::UpstreamRefused, 404) => "not_found_error",
            (ErrorCode::UpstreamRefused, 413) => "request_too_large",
            (code, _) => code.row().3,
        }
    }

    /// `retry-after` in whole seconds, rounded up: too early costs a request, too late a second.
    pub fn retry_after_secs(&self) -> Option<u64> {
        self.retry_after.map(|after| after.as_secs() + u64::from(after.subsec_nanos() > 0))
    }

    /// Response headers beside `content-type`.
    pub fn headers(&self) -> Vec<(&'static str, String)> {
        let mut headers = Vec::new();
        if let Some(secs) = self.retry_after_secs() {
            headers.push(("retry-after", secs.to_string()));
        }
        if let Some(retry) = self.should_retry {
            headers.push(("x-should-retry", retry.to_string()));
        }
        headers
    }

    /// `{message, type, param, code}`: all four keys, as OpenAI's clients expect.
    fn openai(&self) -> Value {
        json!({
            "message": self.message,
            "type": self.openai_type(),
            "param": self.param,
            "code": self.code_word(),
        })
    }

    fn anthropic(&self, request_id: Option<&str>) -> Value {
        let mut envelope = json!({
            "type": "error",
            "error": {"type": self.anthropic_type(), "message": self.message, "code": self.code_word()},
        });
        if let (Some(id), Some(object)) = (request_id, envelope.as_object_mut()) {
            object.insert("request_id".into(), id.into());
        }
        envelope
    }

    /// The body of an answer in the caller's dialect.
    pub fn body(&self, api: Api, request_id: Option<&str>) -> Value {
        match api {
            Api::Messages => self.anthropic(request_id),
            _ => json!({"error": self.openai()}),
        }
    }

    /// The last event of a stream that breaks, in the caller's dialect. Nothing follows it: neither `[DONE]` nor
    /// `message_stop`, by which a client would take half an answer for a whole one.
    ///
    /// `sequence` is the next `sequence_number` and `response_id` the id of the response that began (Responses only).
    pub fn event(
        &self,
        api: Api,
        request_id: Option<&str>,
        sequence: u64,
        response_id: Option<&str>,
    ) -> String {
        match api {
            Api::Messages => format!("event: error\ndata: {}\n\n", self.anthropic(request_id)),
            Api::Responses => {
                let data = json!({
                    "type": "response.failed",
                    "sequence_number": sequence,
                    "response": {
                        "id": response_id,
                        "object": "response",
                        "status": "failed",
                        "error": {"code": self.code_word(), "message": self.message},
                        "output": [],
                    },
                });
                format!("event: response.failed\ndata: {data}\n\n")
            }
            _ => format!("data: {}\n\n", json!({"error": self.openai()})),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_and_statuses_are_the_promised_ones() {
        let promised = [
            (400, "invalid_json duplicate_field unknown_power_level unsupported_parameter"),
            (401, "invalid_api_key"),
            (402, "budget_exceeded"),
            (403, "model_not_allowed"),
            (404, "model_not_found"),
            (413, "request_too_large"),
            (429, "rate_limit_exceeded concurrency_exceeded"),
            (502, "upstream_error upstream_auth upstream_truncated"),
            (503, "no_upstream usage_unavailable overloaded shutting_down"),
            (504, "upstream_timeout"),
        ];
        for (status, words) in promised {
            for word in words.split(' ') {
                let code = ErrorCode::ALL.iter().find(|code| code.as_str() == word);
                assert_eq!(code.map(|code| code.status()), Some(status), "{word}");
            }
        }
        let mut words: Vec<_> = ErrorCode::ALL.iter().map(|code| code.as_str()).collect();
        words.sort_unstable();
        words.dedup();
        assert_eq!(words.len(), ErrorCode::ALL.len());
    }

    #[test]
    fn envelopes_are_those_of_the_dialect() {
        let error =
            GatewayError::new(ErrorCode::UpstreamTimeout, "no first token within 60 s").param("first_token");
        assert_eq!(
            error.body(Api::Chat, None),
            json!({"error": {"message": "no first token within 60 s", "type": "server_error",
                "param": "first_token", "code": "upstream_timeout"}})
        );
        let body = error.body(Api::Messages, Some("r-1"));
        assert_eq!(body["type"], "error");
        assert_eq!(body["error"]["type"], "timeout_error");
        assert_eq!(body["request_id"], "r-1");
        let null = GatewayError::new(ErrorCode::InvalidJson, "x").body(Api::Chat, None);
        assert!(null["error"].as_object().unwrap().contains_key("param"));
    }

    #[test]
    fn a_broken_stream_ends_with_an_event_and_no_mark_of_a_whole_one() {
        let error = GatewayError::new(ErrorCode::UpstreamTruncated, "it broke\noff");
        let check = |api, begins: &str, holds: &str| {
            let event = error.event(api, Some("r"), 7, Some("resp_1"));
            assert!(event.starts_with(begins), "{event}");
            assert!(event.contains(holds), "{event}");
            assert!(event.ends_with("\n\n"));
            assert_eq!(event.matches("\n\n").count(), 1, "a message cannot end the event early");
            assert!(!event.contains("[DONE]") && !event.contains("message_stop"));
        };
        check(Api::Chat, "data: {\"error\":", "\"code\":\"upstream_truncated\"");
        check(Api::Completions, "data: {\"error\":", "upstream_truncated");
        check(Api::Messages, "event: error\ndata: {", "\"type\":\"api_error\"");
        check(Api::Responses, "event: response.failed\ndata: {", "\"sequence_number\":7");
    }

    #[test]
    fn hints_for_retrying_are_headers() {
        let check = |error: GatewayError, expected: &[(&str, &str)]| {
            let headers = error.headers();
            let headers: Vec<_> = headers.iter().map(|(name, value)| (*name, value.as_str())).collect();
            assert_eq!(headers, expected);
        };
        let error = |code| GatewayError::new(code, "x");
        check(error(ErrorCode::BudgetExceeded), &[("x-should-retry", "false")]);
        check(
            error(ErrorCode::RateLimitExceeded).retry_after(Duration::from_millis(1_001)),
            &[("retry-after", "2")],
        );
        check(error(ErrorCode::UpstreamError).exhausted(), &[("x-should-retry", "false")]);
        check(error(ErrorCode::InvalidJson), &[]);
    }

    #[test]
    fn a_refusal_passes_through_with_its_own_words() {
        let error =
            GatewayError::refused(422, "temperature is too high", Some("bad_value"), Some("temperature"));
        let body = error.body(Api::Chat, None);
        assert_eq!((error.status, &body["error"]["code"]), (422, &json!("bad_value")));
        assert_eq!(body["error"]["param"], "temperature");
        let error = GatewayError::refused(404, "no such model", None, None);
        assert_eq!(error.body(Api::Messages, None)["error"]["type"], "not_found_error");
    }
}
