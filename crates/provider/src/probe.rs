//! Is the provider there? One small free request, and what its answer means for health alone.

use std::time::Duration;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use url::Url;

use crate::{
    KeyVerdict, ProviderType as P, Reply, Request,
    family::family,
    read::{ErrorSaid, read_said},
    retry::retry_after,
    wire::{CHECK_BODY, Method, locate, request},
};

/// Why a check failed hard.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Failure {
    Dns,
    Connect,
    Tls,
    Timeout,
    /// 5xx, or a status that the check does not expect.
    Status,
    /// Not what an API answers.
    Body,
    /// The egress policy forbids the address.
    Egress,
}

impl Failure {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Dns => "dns",
            Self::Connect => "connect",
            Self::Tls => "tls",
            Self::Timeout => "timeout",
            Self::Status => "status",
            Self::Body => "body",
            Self::Egress => "egress",
        }
    }
}

/// The result of one check. Texts may echo the key until they went through `redact`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "outcome", rename_all = "lowercase")]
pub enum CheckOutcome {
    Ok,
    /// Answered properly, but later than `slow_after`.
    Slow,
    /// Asked to come back later, or gave up waiting for us.
    Soft {
        reason: String,
        retry_after: Option<Duration>,
    },
    Hard {
        failure: Failure,
        reason: String,
        retry_after: Option<Duration>,
    },
    /// Reachable and answering; it refuses this key or this account.
    Auth {
        reason: String,
    },
    /// Our own resolver, socket or file limit: says nothing about the provider.
    Local {
        reason: String,
    },
}

impl CheckOutcome {
    pub const fn word(&self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Slow => "slow",
            Self::Soft { .. } => "soft",
            Self::Hard { .. } => "hard",
            Self::Auth { .. } => "auth",
            Self::Local { .. } => "local",
        }
    }

    /// Why it was not good, in one word: for metrics. A refused key is no failure of the provider.
    pub const fn failure_word(&self) -> Option<&'static str> {
        match self {
            Self::Ok | Self::Auth { .. } | Self::Local { .. } => None,
            Self::Slow => Some("slow"),
            Self::Soft { .. } => Some("soft"),
            Self::Hard { failure, .. } => Some(failure.as_str()),
        }
    }

    pub fn reason(&self) -> &str {
        match self {
            Self::Ok => "",
            Self::Slow => "slower than slow_after",
            Self::Soft { reason, .. }
            | Self::Hard { reason, .. }
            | Self::Auth { reason }
            | Self::Local { reason } => reason,
        }
    }

    pub const fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Soft { retry_after, .. } | Self::Hard { retry_after, .. } => *retry_after,
            _ => None,
        }
    }

    /// A proper answer that took longer than allowed is slow.
    #[must_use]
    pub fn timed(self, took: Duration, slow_after: Duration) -> Self {
        if self == Self::Ok && took > slow_after { Self::Slow } else { self }
    }
}

/// The request of a check. `path` replaces the type's own probe: below the base URL, beginning with `/`.
pub fn health_probe(kind: P, base: &Url, key: Option<&str>, path: Option<&str>) -> Request {
    let family = family(kind);
    if let Some(path) = path {
        let mut url = base.clone();
        let (path, query) = path.split_once('?').map_or((path, None), |(path, query)| (path, Some(query)));
        let slash = if path.starts_with('/') { "" } else { "/" };
        url.set_path(&format!("{}{slash}{path}", base.path().trim_end_matches('/')));
        url.set_query(query);
        return request(kind, Method::Get, url, key, None, CHECK_BODY);
    }
    let own = &family.probe;
    let ask = own.keyless.filter(|_| key.is_none()).unwrap_or(own.ask);
    request(kind, ask.method, locate(family, base, ask.at), key, ask.body, CHECK_BODY)
}

/// What the reply says about the provider's health. `expect` replaces "any success"; with it, or with a probe
/// path of the manifest's own, the body is not looked at (`own_path`).
pub fn read_health(
    kind: P,
    expect: Option<&[u16]>,
    own_path: bool,
    reply: &Reply<'_>,
    now: DateTime<Utc>,
) -> CheckOutcome {
    let status = reply.status;
    let family = family(kind);
    if let Some(retired) = family.retired {
        let reason = format!("{retired}\nhint: remove the provider, or choose another type");
        return CheckOutcome::Hard { failure: Failure::Status, reason, retry_after: None };
    }
    if expect.is_some_and(|expect| expect.contains(&status)) {
        return CheckOutcome::Ok;
    }
    let wait = retry_after(reply, now);
    let (said, json) = ErrorSaid::read(reply);
    let verdict = read_said(kind, status, &said);
    let reason = verdict.as_ref().map_or_else(
        || format!("HTTP {status}"),
        |verdict| match verdict {
            KeyVerdict::Valid => format!("HTTP {status}"),
            other => other.reason().to_owned(),
        },
    );
    if said.is_page && matches!(status, 401 | 403) {
        return CheckOutcome::Auth { reason };
    }
    match (&verdict, status) {
        (Some(KeyVerdict::Invalid { .. } | KeyVerdict::Quota { .. } | KeyVerdict::Restricted { .. }), _) => {
            return CheckOutcome::Auth { reason };
        }
        (_, 401 | 403 | 407) => return CheckOutcome::Auth { reason },
        (_, 408 | 425 | 429) => return CheckOutcome::Soft { reason, retry_after: wait },
        (_, status)
            if family
                .probe
                .tolerated
                .is_some_and(|(at, words)| at == status && said.text.contains(words)) =>
        {
            return CheckOutcome::Ok;
        }
        (_, 500..=599) => return CheckOutcome::Hard { failure: Failure::Status, reason, retry_after: wait },
        (Some(KeyVerdict::Rate { .. }), 200..=299) => {
            return CheckOutcome::Soft { reason, retry_after: wait };
        }
        (Some(_), 200..=299) => {
            let reason = format!("a success that holds an error: {reason}");
            return CheckOutcome::Hard { failure: Failure::Body, reason, retry_after: wait };
        }
        _ => {}
    }
    if reply.is_success() && expect.is_none() {
        let needs_json = !own_path && family.probe.json;
        if needs_json && !is_api_answer(reply, json.is_some()) {
            let reason = match &said.packed {
                Some(with) => format!(
                    "the answer is packed (content-encoding: {with}), although none was asked for\n\
                     hint: turn compression off in what stands before the provider"
                ),
                None => {
                    let what = if said.is_page { "a web page" } else { "no JSON" };
                    format!("{what} where an API answer was expected\nhint: is base_url right?")
                }
            };
            return CheckOutcome::Hard { failure: Failure::Body, reason, retry_after: None };
        }
        return CheckOutcome::Ok;
    }
    // The probe is malformed on purpose: an answer that says so comes from the API itself.
    let about_request = matches!(status, 400 | 415 | 422) && !said.is_page || status == 404 && json.is_some();
    if !own_path && family.probe.ask.method == Method::Post && about_request {
        return CheckOutcome::Ok;
    }
    let hint = match status {
        300..=399 => "redirects are not followed; set base_url to where it points",
        404 | 405 => "is base_url right?",
        _ if expect.is_some() => "expect_status lists other statuses",
        _ => "set health.path or health.expect_status if this is a proper answer",
    };
    CheckOutcome::Hard {
        failure: Failure::Status,
        reason: format!("{reason}\nhint: {hint}"),
        retry_after: wait,
    }
}

fn is_api_answer(reply: &Reply<'_>, parsed: bool) -> bool {
    // What was cut off cannot be parsed; its beginning has to do.
    parsed
        || reply.truncated
            && reply
                .body
                .iter()
                .find(|byte| !byte.is_ascii_whitespace())
                .is_some_and(|byte| matches!(byte, b'{' | b'['))
}
