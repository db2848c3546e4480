//! Asks providers step by step: name, line, TLS, HTTP, key; and whether their clocks agree with this one.
//!
//! Not its job: statuses; one look proves nothing about health, but it shows at which step it fails. Costs no tokens.

use chrono::{DateTime, TimeDelta, Utc};
use futures_util::{StreamExt as _, stream};

use net::{ProbeError, probe::Prober};
use provider::{CheckOutcome, Failure, Method, Request};

use super::{super::progress::Progress, Finding, SKEW};
use crate::checks::{
    monitor::CheckTarget,
    once::{self, Candidate},
};

/// As many at once as a slow network bears.
const AT_ONCE: usize = 16;

/// Clocks that are asked; one that is wrong itself must not blame this machine's.
const CLOCKS: usize = 3;

/// What fails, provider by provider, in their order. Who cannot be asked at all has a finding elsewhere.
pub(super) async fn ask(prober: &Prober, candidates: Vec<Candidate>) -> Vec<Finding> {
    let targets: Vec<_> = candidates.into_iter().filter_map(Result::ok).collect();
    let progress = Progress::steps("asking providers", targets.len());
    let mut looks = stream::iter(&targets).map(|target| look(prober, target)).buffered(AT_ONCE);
    let (mut findings, mut reached) = (Vec::new(), Vec::new());
    let mut position = targets.iter();
    while let Some((http, found)) = looks.next().await {
        progress.step();
        findings.extend(found);
        if let Some(target) = position.next().filter(|_| http) {
            reached.push(&**target);
        }
    }
    findings.extend(clocks(prober, &reached).await);
    findings
}

/// Whether it speaks HTTP, and what is wrong.
async fn look(prober: &Prober, target: &CheckTarget) -> (bool, Option<Finding>) {
    if let Err(error) = prober.reach(&target.base, target.limits).await {
        return (false, Some(unreached(target, error)));
    }
    let finding = |check, message: &str, hint: &str| {
        let (message, own) = super::split_hint(message);
        Some(Finding {
            check,
            subject: target.name.to_string(),
            message,
            hint: own.unwrap_or_else(|| hint.to_owned()),
        })
    };
    match prober.check(target.health_check()).await.outcome {
        CheckOutcome::Hard { failure, reason, .. } => {
            let hint =
                "look at the provider's status page, and at `base_url` and `health.path` in its manifest";
            return (matches!(failure, Failure::Status | Failure::Body), finding("http", &reason, hint));
        }
        CheckOutcome::Local { reason } => return (false, finding("network", &reason, LOCAL)),
        CheckOutcome::Auth { .. } if target.key.is_none() => {
            let message = "it answers, but wants a key, and none is stored or declared";
            return (true, finding("auth", message, "give it an `api_key` in its manifest"));
        }
        _ => {}
    }
    if target.key.is_none() {
        return (true, None);
    }
    let (key, local) = once::test_key(prober, target).await;
    let found = match key.verdict {
        _ if local.is_some() => finding("network", &local.unwrap_or_default(), LOCAL),
        _ if target.withheld.is_some() => finding(
            "drift",
            &key.reason,
            "its key goes nowhere meanwhile: `providerd apply` sets the row right, or declare what it says",
        ),
        "invalid" => finding(
            "auth",
            &format!("it refuses the key: {}", key.reason),
            "put a valid key where `api_key` in its manifest points",
        ),
        "restricted" | "quota" => finding(
            "auth",
            &format!("the key is real, but may not be used: {}", key.reason),
            "look at the key's rights, quota and billing at the provider",
        ),
        _ => None,
    };
    (true, found)
}

const LOCAL: &str =
    "the fault is on this machine: look at its network, proxy (`egress.proxy`) and file limit";

/// No line could be opened: at which step, and what helps there.
fn unreached(target: &CheckTarget, error: ProbeError) -> Finding {
    let host = target.base.host_str().unwrap_or_default();
    let port = target.base.port_or_known_default().unwrap_or_default();
    let (check, message, hint) = match error {
        ProbeError::Local { reason } => ("network", reason, LOCAL.to_owned()),
        ProbeError::Failed { failure, reason } => {
            let (check, hint) = match failure {
                Failure::Dns => (
                    "dns",
                    format!("check the name in `base_url`, and this machine's resolver: `getent hosts {host}`"),
                ),
                Failure::Tls => (
                    "tls",
                    "an authority of your own goes into `egress.ca_files`; a certificate that is not valid yet or no \
                     longer may mean that this machine's clock is wrong"
                        .to_owned(),
                ),
                Failure::Egress => (
                    "egress",
                    "the egress policy forbids the address: `egress.allow_private` permits private ones, and \
                     link-local and metadata addresses are always refused"
                        .to_owned(),
                ),
                Failure::Connect | Failure::Timeout | Failure::Status | Failure::Body => (
                    "tcp",
                    format!(
                        "no server answers at {host} port {port} from here: check the port, firewalls, and `egress.proxy`"
                    ),
                ),
            };
            (check, reason, hint)
        }
    };
    let (message, own) = super::split_hint(&message);
    Finding { check, subject: target.name.to_string(), message, hint: own.unwrap_or(hint) }
}

/// A finding if every provider that was asked for the time disagrees with this machine.
async fn clocks(prober: &Prober, reached: &[&CheckTarget]) -> Option<Finding> {
    let mut off: Option<(TimeDelta, String)> = None;
    for target in reached.iter().take(CLOCKS) {
        // Without the key: any answer carries the time.
        let request = Request {
            method: Method::Get,
            url: target.base.clone(),
            headers: Vec::new(),
            body: None,
            max_body: 1024,
        };
        let before = Utc::now();
        let Ok(answer) = prober.send(&request, target.limits).await else { continue };
        let header = answer.headers.iter().find(|(name, _)| name.eq_ignore_ascii_case("date"));
        let Some(date) = header.and_then(|(_, value)| http_date(value)) else { continue };
        let difference = difference(before, date, Utc::now());
        if difference <= SKEW {
            return None;
        }
        off.get_or_insert((difference, target.name.to_string()));
    }
    let (difference, subject) = off?;
    Some(Finding {
        check: "clock",
        subject,
        message: format!("its clock and this machine's differ by {} s", difference.num_seconds()),
        hint: "let this machine follow network time (`timedatectl set-ntp true`)".into(),
    })
}

fn http_date(value: &str) -> Option<DateTime<Utc>> {
    DateTime::parse_from_rfc2822(value).ok().map(|date| date.with_timezone(&Utc))
}

/// How far a time, rounded down to seconds and given between two readings of this clock, is off.
fn difference(before: DateTime<Utc>, stated: DateTime<Utc>, after: DateTime<Utc>) -> TimeDelta {
    let early = before - (stated + TimeDelta::seconds(1));
    early.max(stated - after).max(TimeDelta::zero())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_read_and_compared_with_their_coarseness_allowed_for() {
        let stated = http_date("Sun, 06 Nov 1994 08:49:37 GMT").unwrap();
        assert_eq!(stated.timestamp(), 784_111_777);
        assert!(http_date("yesterday").is_none());
        let check = |before: i64, after: i64, expected: i64| {
            let at = |millis| stated + TimeDelta::milliseconds(millis);
            assert_eq!(difference(at(before), stated, at(after)).num_milliseconds(), expected);
        };
        check(-100, 100, 0);
        check(900, 950, 0);
        check(3_000, 3_100, 2_000);
        check(-9_000, -8_000, 8_000);
    }
}
