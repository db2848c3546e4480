//! What went wrong upstream: one set of classes for the errors of every family (gateway-protocols §11).
//!
//! Not its job: deciding whether to try again. Invariant: every status and body has a class; no text of an upstream
//! about its own credentials reaches a caller.

use std::fmt;

use serde_json::Value;

use super::json::JsonLook;

/// The class of an upstream's error: what the gateway decides by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FailureClass {
    /// The request is wrong.
    Invalid,
    /// This model does not take a parameter or a feature of the request; another may.
    Unsupported,
    /// The request is longer than the model's window.
    ContextOverflow,
    /// The provider's policy withholds an answer.
    Policy,
    /// More bytes than the provider takes.
    TooLarge,
    /// The provider refused our key.
    Auth,
    /// The account has no credit.
    NoCredit,
    /// No such model or deployment.
    NotFound,
    /// Too many requests or tokens.
    RateLimit,
    /// The provider has no capacity.
    Overloaded,
    /// The provider failed.
    Server,
    /// The provider, or a clock of ours, ran out of time.
    Timeout,
    /// The answer ended without its mark of an end.
    Truncated,
    /// The answer is not what its dialect says.
    Malformed,
}

impl FailureClass {
    /// `type` and `code` of OpenAI's error object.
    pub(crate) fn openai(self) -> (&'static str, Option<&'static str>) {
        match self {
            Self::Invalid => ("invalid_request_error", None),
            Self::Unsupported => ("invalid_request_error", Some("unsupported_parameter")),
            Self::ContextOverflow => ("invalid_request_error", Some("context_length_exceeded")),
            Self::Policy => ("invalid_request_error", Some("content_policy_violation")),
            Self::TooLarge => ("invalid_request_error", Some("request_too_large")),
            Self::Auth => ("api_error", Some("upstream_auth")),
            Self::NoCredit => ("insufficient_quota", Some("insufficient_quota")),
            Self::NotFound => ("invalid_request_error", Some("model_not_found")),
            Self::RateLimit => ("rate_limit_error", Some("rate_limit_exceeded")),
            Self::Overloaded => ("server_error", Some("overloaded")),
            Self::Server | Self::Malformed => ("server_error", Some("upstream_error")),
            Self::Timeout => ("server_error", Some("upstream_timeout")),
            Self::Truncated => ("server_error", Some("upstream_truncated")),
        }
    }

    /// `type` of Anthropic's error object: only words of its own list.
    pub(crate) fn anthropic(self) -> &'static str {
        match self {
            Self::Invalid | Self::Unsupported | Self::ContextOverflow | Self::Policy => {
                "invalid_request_error"
            }
            Self::TooLarge => "request_too_large",
            Self::NoCredit => "billing_error",
            Self::NotFound => "not_found_error",
            Self::RateLimit => "rate_limit_error",
            Self::Overloaded => "overloaded_error",
            Self::Timeout => "timeout_error",
            Self::Auth | Self::Server | Self::Truncated | Self::Malformed => "api_error",
        }
    }

    /// The status for a caller of the OpenAI dialects; `anthropic` for one of Messages.
    pub fn status(self, anthropic: bool) -> u16 {
        match self {
            Self::Invalid | Self::Unsupported | Self::ContextOverflow | Self::Policy => 400,
            Self::TooLarge => 413,
            Self::NotFound => 404,
            Self::RateLimit | Self::NoCredit => 429,
            Self::Overloaded if anthropic => 529,
            Self::Overloaded => 503,
            Self::Auth | Self::Server | Self::Truncated | Self::Malformed => 502,
            Self::Timeout => 504,
        }
    }

    /// Whether the caller's request, not the upstream, is to blame.
    pub fn is_callers(self) -> bool {
        matches!(
            self,
            Self::Invalid | Self::Unsupported | Self::ContextOverflow | Self::Policy | Self::TooLarge
        )
    }

    /// The word in logs and metrics.
    pub fn word(self) -> &'static str {
        match self {
            Self::Invalid => "invalid",
            Self::Unsupported => "unsupported",
            Self::ContextOverflow => "context_overflow",
            Self::Policy => "policy",
            Self::TooLarge => "too_large",
            Self::Auth => "auth",
            Self::NoCredit => "no_credit",
            Self::NotFound => "not_found",
            Self::RateLimit => "rate_limit",
            Self::Overloaded => "overloaded",
            Self::Server => "server",
            Self::Timeout => "timeout",
            Self::Truncated => "truncated",
            Self::Malformed => "malformed",
        }
    }
}

/// An error of an upstream, in no dialect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UpstreamFailure {
    /// Its class.
    pub class: FailureClass,
    /// For the caller; not yet masked.
    pub message: String,
    /// The parameter to blame, where the upstream named one.
    pub param: Option<String>,
    /// Seconds until another try makes sense, where the body said so.
    pub retry_after: Option<u64>,
}

impl fmt::Display for UpstreamFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.class.word(), self.message)
    }
}

impl std::error::Error for UpstreamFailure {}

/// Longest message that is passed on, in bytes: upstreams answer with whole pages of HTML.
const MESSAGE: usize = 2000;

impl UpstreamFailure {
    /// An error of this class.
    pub fn new(class: FailureClass, message: impl Into<String>) -> Self {
        let mut message = message.into();
        if message.len() > MESSAGE {
            let end = (0..=MESSAGE).rev().find(|end| message.is_char_boundary(*end)).unwrap_or(0);
            message.truncate(end);
        }
        Self { class, message, param: None, retry_after: None }
    }

    /// The stream ended without its mark of an end.
    pub fn truncated() -> Self {
        Self::new(FailureClass::Truncated, "the upstream ended its answer before it was whole")
    }

    /// Bytes that are not the upstream's dialect.
    pub fn malformed(what: impl fmt::Display) -> Self {
        Self::new(FailureClass::Malformed, format!("the upstream's answer cannot be read: {what}"))
    }

    /// The message for the caller: upstream refusals of our key are not the caller's business.
    pub fn public_message(&self) -> &str {
        match self.class {
            FailureClass::Auth => "the upstream refused the gateway's credentials",
            _ if self.message.is_empty() => "the upstream failed without a message",
            _ => &self.message,
        }
    }
}

/// Phrases of errors about the length of the context, lower case (gateway-protocols §11.1).
const CONTEXT: &[&str] = &[
    "context_length_exceeded",
    "maximum context length",
    "prompt is too long",
    "exceed context limit",
    "exceeds the maximum number of tokens allowed",
    "exceeds the available context size",
    "exceed_context_size_error",
    "input tokens exceed the configured limit",
    "is longer than the model's context length",
    "current length is",
    "input is too long",
    "too many tokens",
    "context window",
];

/// What looks like those and is not.
const NOT_CONTEXT: &[&str] = &["string_above_max_length", "invalid 'user'", "tokens per"];

const POLICY: &[&str] = &[
    "content_policy_violation",
    "responsibleaipolicyviolation",
    "content management policy",
    "safety system",
    "content_filter",
];

const CREDIT: &[&str] = &[
    "insufficient_quota",
    "credit_balance_exhausted",
    "credit balance is too low",
    "insufficient balance",
    "insufficient credit",
    "api usage limits",
    "payment_required",
    "payment required",
    "billing_error",
    "arrearage",
    "exceeded_current_quota",
    "used all available credits",
];

const UNSUPPORTED: &[&str] = &[
    "unsupported_parameter",
    "unsupported_value",
    "unsupported parameter",
    "is not supported for this model",
    "not supported with this model",
    "does not support",
    "is not enabled for models/",
    "is deprecated for this model",
    "unexpected value(s) `",
];

fn says(text: &str, phrases: &[&str]) -> bool {
    phrases.iter().any(|phrase| text.contains(phrase))
}

/// Reads an error body of any family under its status. `kind` is a type from elsewhere: the header
/// `x-amzn-errortype`, the name of a stream's exception, or empty.
pub fn read_failure(status: u16, kind: &str, body: &[u8]) -> UpstreamFailure {
    let json = serde_json::from_slice::<Value>(body).unwrap_or_default();
    if json.is_null() {
        let text = String::from_utf8_lossy(body.get(..body.len().min(MESSAGE)).unwrap_or_default());
        // A page for browsers says nothing to a caller.
        let message = if text.trim_start().starts_with('<') { "" } else { text.trim() };
        return classify(status, kind, "", message, None);
    }
    read_failure_json(status, kind, &json)
}

/// Reads an error object of any family.
pub(crate) fn read_failure_json(status: u16, kind: &str, json: &Value) -> UpstreamFailure {
    // Google's compatible endpoint wraps the object in an array.
    let json = json.as_array().and_then(|list| list.first()).unwrap_or(json);
    let error = json.at("error");
    let base = json.at("base_resp");
    let first = |values: &[&Value], keys: &[&str]| {
        values.iter().find_map(|value| keys.iter().find_map(|key| value.word(key))).map(str::to_owned)
    };
    let message = error
        .as_str()
        .map(str::to_owned)
        .or_else(|| {
            first(&[error, json.at("response").at("error"), json], &["message", "Message", "detail", "title"])
        })
        .or_else(|| base.word("status_msg").map(str::to_owned))
        .or_else(|| json.items("detail").first().and_then(|item| item.word("msg")).map(str::to_owned))
        .or_else(|| json.items("errors").first().and_then(|item| item.word("message")).map(str::to_owned))
        .unwrap_or_default();
    let mut words = String::new();
    for value in [error, json] {
        for key in ["type", "code", "status", "__type", "object"] {
            match value.at(key) {
                Value::String(word) => {
                    words.push_str(word);
                    words.push(' ');
                }
                Value::Number(word) if status == 200 => {
                    words.push_str(&word.to_string());
                    words.push(' ');
                }
                _ => {}
            }
        }
    }
    for detail in error.items("details") {
        words.push_str(detail.text("reason"));
        words.push(' ');
    }
    // Errors inside a 200 carry their status in the body.
    let inside = error.count("code").or_else(|| error.count("status")).or_else(|| json.count("code"));
    let status = match (status, inside, base.count("status_code")) {
        (0..400, Some(inner @ 400..=599), _) => inner as u16,
        (0..400, _, Some(1004 | 2049)) => 401,
        (0..400, _, Some(1008)) => 402,
        (0..400, _, Some(1002 | 1039)) => 429,
        _ => status,
    };
    let mut failure =
        classify(status, kind, &words, &message, error.word("param").or_else(|| json.word("param")));
    failure.retry_after = error.items("details").iter().find_map(|detail| {
        let seconds = detail.word("retryDelay")?.strip_suffix('s')?.parse::<f64>().ok()?;
        (seconds.is_finite() && seconds >= 0.0).then_some(seconds.ceil() as u64)
    });
    failure
}

fn classify(status: u16, kind: &str, words: &str, message: &str, param: Option<&str>) -> UpstreamFailure {
    use FailureClass as C;
    let kind = kind.split(':').next().unwrap_or_default().to_ascii_lowercase();
    let words = words.to_ascii_lowercase();
    let text = format!("{words} {}", message.to_ascii_lowercase());
    let has = |word: &str| kind.contains(word) || words.contains(word);
    let context = (status < 429 || status == 500) && says(&text, CONTEXT) && !says(&text, NOT_CONTEXT);
    let class = if context {
        C::ContextOverflow
    } else if status == 402 || says(&text, CREDIT) {
        C::NoCredit
    } else if status < 500 && status != 429 && says(&text, POLICY) {
        C::Policy
    } else if status == 413 || has("request_too_large") {
        C::TooLarge
    } else if matches!(status, 401 | 403)
        || has("authentication_error")
        || has("permission_error")
        || has("permission_denied")
        || has("unauthenticated")
        || has("api_key_invalid")
        || has("invalid_api_key")
        || has("accessdenied")
    {
        C::Auth
    } else if matches!(status, 404 | 410)
        || has("not_found")
        || has("resourcenotfound")
        || has("deploymentnotfound")
    {
        C::NotFound
    } else if matches!(status, 498 | 503 | 529)
        || has("overloaded")
        || has("serviceunavailable")
        || has("unavailable")
    {
        C::Overloaded
    } else if status == 429
        || has("rate_limit")
        || has("resource_exhausted")
        || has("throttling")
        || has("too_many_requests")
        || has("modelnotready")
    {
        C::RateLimit
    } else if matches!(status, 408 | 504) || has("timeout") || has("deadline_exceeded") {
        C::Timeout
    } else if matches!(status, 409 | 424)
        || status >= 500
        || has("internal")
        || has("modelstreamerror")
        || has("modelerror")
    {
        C::Server
    } else if says(&text, UNSUPPORTED) {
        C::Unsupported
    } else if (400..500).contains(&status)
        || has("invalid_request")
        || has("validation")
        || has("invalid_argument")
        || has("failed_precondition")
    {
        C::Invalid
    } else {
        C::Server
    };
    UpstreamFailure { param: param.map(str::to_owned), ..UpstreamFailure::new(class, message) }
}
