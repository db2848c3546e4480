//! What each type of provider speaks: base URL, authentication, endpoints, errors, lists of models, proofs of a key,
//! redaction, what others' text looks like when it is shown, and the dialects of requests and streams.
//!
//! PURE: this crate depends on no runtime, socket, clock or database. Requests are descriptions, replies are values.
//! Nothing here costs money: no well-formed completion is ever asked of a model. Invariant: a key is called valid only
//! by an answer that no caller gets without it; where a provider's behaviour is not known for certain, the verdict
//! stays inconclusive.

pub mod dialect;
mod family;
mod list;
mod markers;
mod probe;
mod proof;
mod read;
mod redact;
mod retry;
pub mod rollup;
mod serving;
pub mod shown;
mod wire;
mod words;

pub use family::{KeyHeader, ProviderType, TypeDescription};
pub use list::{ListError, ListStep, ListedModel, ModelList, Models};
pub use probe::{CheckOutcome, Failure, health_probe, read_health};
pub use proof::{Controls, Guard, Proof, Step};
pub use read::read_error;
pub use redact::{KeyEcho, redact};
pub use retry::{MAX_RETRY_AFTER, retry_after};
pub use serving::{key_header, native_apis, serving_base};
pub use wire::{BaseError, Header, Method, Reply, Request, RowUrls, Value, origin_of, parse_base, row_base};

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// What an answer says about a key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "verdict", rename_all = "lowercase")]
pub enum KeyVerdict {
    /// Only a working key gets this answer.
    Valid,
    /// The provider says that it does not know or no longer accepts this key.
    Invalid { reason: String },
    /// A permission, scope, plan, address or region is missing. `proven`: the answer shows that the key is real.
    Restricted { reason: String, proven: bool },
    /// No credit, or a billing limit is reached. `proven`: the answer shows that the key is real.
    Quota { reason: String, proven: bool },
    /// Too many requests: wait. `proven`: the answer shows that the key is real.
    Rate { reason: String, proven: bool },
    /// The provider is too busy or failing; nothing is known about the key.
    Overload { reason: String },
    /// The answer does not say.
    Inconclusive { reason: String },
    /// No free request exists that would prove it.
    Untestable { reason: String },
}

/// What a verdict contributes to a key's status.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Evidence {
    Proof,
    Rejection,
    Nothing,
}

impl KeyVerdict {
    pub const fn evidence(&self) -> Evidence {
        match self {
            Self::Valid
            | Self::Restricted { proven: true, .. }
            | Self::Quota { proven: true, .. }
            | Self::Rate { proven: true, .. } => Evidence::Proof,
            Self::Invalid { .. } => Evidence::Rejection,
            _ => Evidence::Nothing,
        }
    }

    /// One word for metrics, events and tables.
    pub const fn word(&self) -> &'static str {
        match self {
            Self::Valid => "valid",
            Self::Invalid { .. } => "invalid",
            Self::Restricted { .. } => "restricted",
            Self::Quota { .. } => "quota",
            Self::Rate { .. } => "rate",
            Self::Overload { .. } => "overload",
            Self::Inconclusive { .. } => "inconclusive",
            Self::Untestable { .. } => "untestable",
        }
    }

    /// The provider's words, or ours; empty for a valid key. May echo the key: pass it through [`redact()`].
    pub fn reason(&self) -> &str {
        match self {
            Self::Valid => "",
            Self::Invalid { reason }
            | Self::Restricted { reason, .. }
            | Self::Quota { reason, .. }
            | Self::Rate { reason, .. }
            | Self::Overload { reason }
            | Self::Inconclusive { reason }
            | Self::Untestable { reason } => reason,
        }
    }

    /// The same verdict, with the reason made fit to store and to show.
    #[must_use]
    pub fn redacted(mut self, key: &str) -> Self {
        match &mut self {
            Self::Valid => {}
            Self::Invalid { reason }
            | Self::Restricted { reason, .. }
            | Self::Quota { reason, .. }
            | Self::Rate { reason, .. }
            | Self::Overload { reason }
            | Self::Inconclusive { reason }
            | Self::Untestable { reason } => *reason = redact(reason, key),
        }
        self
    }
}

/// What is left of an account, where the provider says it for free.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Quota {
    /// `None`: no cap.
    pub remaining: Option<f64>,
    pub limit: Option<f64>,
    /// Currency or unit as the provider names it.
    pub unit: String,
}

/// What an answer says beside the verdict.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Facts {
    pub quota: Option<Quota>,
    /// `Some(false)`: the key is real, yet completions will be refused.
    pub can_serve: Option<bool>,
    pub retry_after: Option<Duration>,
}

/// The result of one key test.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct KeyReport {
    pub verdict: KeyVerdict,
    pub facts: Facts,
}

impl KeyReport {
    pub fn new(verdict: KeyVerdict) -> Self {
        let can_serve = match &verdict {
            KeyVerdict::Quota { .. } | KeyVerdict::Restricted { .. } => Some(false),
            // Whether a refused key could serve is no question.
            _ => None,
        };
        Self { verdict, facts: Facts { can_serve, ..Facts::default() } }
    }
}

impl From<KeyVerdict> for KeyReport {
    fn from(verdict: KeyVerdict) -> Self {
        Self::new(verdict)
    }
}
