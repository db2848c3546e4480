//! Runs the pure machines over the network: a check, a key test, a list of models.

use std::{future::Future, time::Duration};

use chrono::{DateTime, Utc};
use tokio::time::Instant;
use url::Url;

use provider::{
    CheckOutcome, Controls, KeyReport, KeyVerdict, ListError, ListStep, ModelList, Models, Proof,
    ProviderType, Request, Step, health_probe, read_health, redact,
};

use super::{ProbeReply, Prober};
use crate::{
    connect::{PhaseLimits, Phases},
    fault::ProbeError,
};

/// A machine that asks for more requests than this would be a fault of ours.
const MAX_STEPS: usize = 128;
/// The longest a key test takes in all: several requests, each within its own limit.
const MAX_TEST: Duration = Duration::from_secs(60);

/// What a check needs to know.
#[derive(Debug, Clone, Copy)]
pub struct HealthCheck<'a> {
    pub kind: ProviderType,
    pub base: &'a Url,
    pub key: Option<&'a str>,
    /// The manifest's own probe path.
    pub path: Option<&'a str>,
    pub expect_status: Option<&'a [u16]>,
    pub slow_after: Duration,
    pub limits: PhaseLimits,
}

/// A finished check. Its texts are redacted.
#[derive(Debug, Clone)]
pub struct FinishedCheck {
    pub outcome: CheckOutcome,
    pub status: Option<u16>,
    pub took: Duration,
    /// `None` where no reply came.
    pub phases: Option<Phases>,
    pub tls_not_after: Option<DateTime<Utc>>,
}

/// A finished key test. Its texts are redacted.
#[derive(Debug)]
pub struct KeyTested {
    pub report: KeyReport,
    /// To be kept for the next test of the same base URL.
    pub controls: Controls,
    pub took: Duration,
    /// Our own side failed: the result says nothing and is to be discarded.
    pub local: Option<String>,
}

impl Prober {
    /// Checks a provider's health once.
    pub async fn check(&self, check: HealthCheck<'_>) -> FinishedCheck {
        let began = Instant::now();
        let request = health_probe(check.kind, check.base, check.key, check.path);
        let answer = self.send(&request, check.limits).await;
        let took = began.elapsed();
        let key = check.key.unwrap_or_default();
        match answer {
            Ok(answer) => {
                let own_path = check.path.is_some();
                let outcome =
                    read_health(check.kind, check.expect_status, own_path, &answer.reply(), Utc::now());
                FinishedCheck {
                    outcome: redacted(outcome.timed(took, check.slow_after), key),
                    status: Some(answer.status),
                    took,
                    phases: Some(answer.phases),
                    tls_not_after: answer.tls_not_after,
                }
            }
            Err(error) => {
                let outcome = redacted(error.outcome(), key);
                FinishedCheck { outcome, status: None, took, phases: None, tls_not_after: None }
            }
        }
    }

    /// Proves a key, or finds out why it cannot be proven.
    pub async fn test_key(
        &self,
        kind: ProviderType,
        base: &Url,
        key: Option<&str>,
        controls: Controls,
        limits: PhaseLimits,
    ) -> KeyTested {
        let began = Instant::now();
        let mut proof = Proof::new(kind, base, key, controls, Utc::now());
        let mut step = proof.next(None);
        let mut local = None;
        let mut report =
            KeyReport::from(KeyVerdict::Inconclusive { reason: "the test took too long".into() });
        let mut unanswered = None;
        for _ in 0..MAX_STEPS {
            let request = match step {
                Step::Done(done) => {
                    report = done;
                    break;
                }
                Step::Ask(_) if began.elapsed() >= MAX_TEST => break,
                Step::Ask(request) => request,
            };
            step = match self.send(&request, limits).await {
                Ok(answer) => proof.next(Some(answer.reply())),
                Err(ProbeError::Local { reason }) => {
                    report = KeyVerdict::Inconclusive { reason: reason.clone() }.into();
                    local = Some(reason);
                    break;
                }
                Err(ProbeError::Failed { reason, .. }) => {
                    unanswered = Some(reason);
                    proof.next(None)
                }
            };
        }
        // "No answer" alone would hide why.
        if let (KeyVerdict::Inconclusive { reason }, Some(why)) = (&mut report.verdict, unanswered)
            && local.is_none()
        {
            *reason = format!("{reason}: {why}");
        }
        report.verdict = report.verdict.redacted(key.unwrap_or_default());
        if let Some(quota) = &mut report.facts.quota {
            quota.unit = redact(&quota.unit, key.unwrap_or_default());
        }
        let local = local.map(|reason| redact(&reason, key.unwrap_or_default()));
        KeyTested { report, controls: proof.into_controls(), took: began.elapsed(), local }
    }

    /// Fetches the provider's own list of models, a connection for each page.
    pub async fn models(
        &self,
        kind: ProviderType,
        base: &Url,
        key: Option<&str>,
        limits: PhaseLimits,
    ) -> Result<Models, ListFailure> {
        list(self, kind, base, key, limits).await
    }
}

/// What carries a request to a provider, and its answer back.
pub(super) trait Carry: Sync {
    fn carry(
        &self,
        request: &Request,
        limits: PhaseLimits,
    ) -> impl Future<Output = Result<ProbeReply, ProbeError>> + Send;
}

impl Carry for Prober {
    async fn carry(&self, request: &Request, limits: PhaseLimits) -> Result<ProbeReply, ProbeError> {
        self.send(request, limits).await
    }
}

/// Fetches a list of models, page by page, over whatever carries requests.
pub(super) async fn list(
    over: &impl Carry,
    kind: ProviderType,
    base: &Url,
    key: Option<&str>,
    limits: PhaseLimits,
) -> Result<Models, ListFailure> {
    let mut list = ModelList::new(kind, base, key);
    let mut step = list.next(None);
    let mut unanswered = None;
    for _ in 0..MAX_STEPS {
        let request = match step {
            ListStep::Done(Ok(models)) => return Ok(models),
            ListStep::Done(Err(ListError::NoAnswer)) => {
                let unanswered = unanswered.map(|error| withheld(error, key.unwrap_or_default()));
                return Err(unanswered.map_or(ListFailure::List(ListError::NoAnswer), ListFailure::Probe));
            }
            ListStep::Done(Err(ListError::Refused(verdict))) => {
                let verdict = verdict.redacted(key.unwrap_or_default());
                return Err(ListFailure::List(ListError::Refused(verdict)));
            }
            ListStep::Done(Err(error)) => return Err(ListFailure::List(error)),
            ListStep::Ask(request) => request,
        };
        step = match over.carry(&request, limits).await {
            Ok(answer) => list.next(Some(answer.reply())),
            Err(error) => {
                unanswered = Some(error);
                list.next(None)
            }
        };
    }
    Err(ListFailure::List(ListError::NoAnswer))
}

/// Why there is no list of models.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ListFailure {
    #[error(transparent)]
    List(ListError),
    #[error("the list of models could not be fetched: {0}")]
    Probe(ProbeError),
}

/// The names in a certificate are the other side's words as well.
fn withheld(error: ProbeError, key: &str) -> ProbeError {
    match error {
        ProbeError::Local { reason } => ProbeError::Local { reason: redact(&reason, key) },
        ProbeError::Failed { reason, failure } => {
            ProbeError::Failed { reason: redact(&reason, key), failure }
        }
    }
}

fn redacted(mut outcome: CheckOutcome, key: &str) -> CheckOutcome {
    match &mut outcome {
        CheckOutcome::Ok | CheckOutcome::Slow => {}
        CheckOutcome::Soft { reason, .. }
        | CheckOutcome::Hard { reason, .. }
        | CheckOutcome::Auth { reason }
        | CheckOutcome::Local { reason } => *reason = redact(reason, key),
    }
    outcome
}
