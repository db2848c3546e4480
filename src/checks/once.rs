//! One look at providers on demand: for the command line and the admin API. Remembers and writes nothing.

use std::{collections::HashSet, sync::Arc};

use futures_util::{StreamExt as _, stream};
use serde::Serialize;

use catalog::{manifest::Build, model::HealthPolicy};
use net::probe::Prober;
use provider::{CheckOutcome, Controls, KeyReport, Quota};

use super::targets::{self, Checkable};
use crate::destination::{Declared, is_undecryptable};
use crate::{
    checks::monitor::CheckTarget,
    secret::{Keyring, Resolver},
    store::{Store, StoreError},
};

/// How many providers are asked at once: quick for dozens, gentle with thousands.
const AT_ONCE: usize = 32;

/// What a key test on demand found.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct KeyFinding {
    /// `valid`, `invalid`, `restricted`, `quota`, `rate`, `overload`, `inconclusive` or `untestable`.
    pub verdict: &'static str,
    /// The provider's words, redacted; empty for a plainly valid key.
    pub reason: String,
    /// `false`: the key is real, yet completions will be refused.
    pub can_serve: Option<bool>,
    pub quota: Option<Quota>,
    pub latency_ms: u64,
}

/// What one look found.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct CheckFinding {
    pub provider: Arc<str>,
    /// `ok`, `slow`, `soft`, `hard`, `auth` or `local`; `skipped` where nothing could be asked.
    pub outcome: &'static str,
    /// Why it was not `ok`, redacted.
    pub reason: String,
    pub status: Option<u16>,
    pub latency_ms: u64,
    pub has_key: bool,
    /// `None`: there is no key, or nothing could be asked.
    pub key: Option<KeyFinding>,
    /// `None`: the list could not be fetched.
    pub models_found: Option<usize>,
    /// Why the daemon's own checks doubt their results now; not there where they do not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub impaired: Option<Arc<str>>,
}

impl CheckFinding {
    fn skipped(provider: Arc<str>, reason: String) -> Self {
        let (outcome, status, latency_ms) = ("skipped", None, 0);
        let (has_key, key, models_found, impaired) = (false, None, None, None);
        Self { provider, outcome, reason, status, latency_ms, has_key, key, models_found, impaired }
    }

    /// Whether the provider answers and does not refuse its key.
    pub fn is_good(&self) -> bool {
        matches!(self.outcome, "ok" | "slow" | "auth")
            && self.key.as_ref().is_none_or(|key| !matches!(key.verdict, "invalid" | "undecryptable"))
    }

    /// Whether the fault is on this side, so that nothing was learned.
    pub fn is_local(&self) -> bool {
        self.outcome == "local"
    }
}

/// What there is to look at: a target, or a provider with the reason why it cannot be asked.
pub type Candidate = Result<Box<CheckTarget>, (Arc<str>, String)>;

/// The providers of the database and, where nothing was applied yet, of the manifests; by name. Keys come from the
/// database where it has the provider.
///
/// # Errors
/// The database cannot be read.
pub async fn candidates(
    store: &Store,
    keyring: &Keyring,
    resolver: &Resolver,
    build: &Build,
    outer: &HealthPolicy,
) -> Result<Vec<Candidate>, StoreError> {
    let mut found: Vec<(Arc<str>, Candidate)> = Vec::new();
    let declared: Vec<&str> = build.catalog.providers.keys().map(|name| &**name).collect();
    let rows = store.check_rows(None, &declared).await?;
    let copied = targets::copied(&rows, store, Some(build), keyring).await?;
    for row in rows {
        let policy = targets::policy(Some(build), &row.name, || targets::recorded_policy(&row)).or(outer);
        let name = row.name.clone();
        let candidate = if is_undecryptable(&row.tokens, &keyring.byok) {
            Err((name.clone(), "the stored key does not open with the BYOK key".to_owned()))
        } else {
            let declared = Declared::of(Some(build), &row.name, &row.place);
            match targets::target(&row, declared.as_ref(), policy, keyring, copied.get(&row.id)) {
                Checkable::Yes(target) => Ok(target),
                Checkable::No(why) => Err((name.clone(), why)),
            }
        };
        found.push((name, candidate));
    }
    let applied: HashSet<Arc<str>> = found.iter().map(|(name, _)| name.clone()).collect();
    for (name, provider) in &build.catalog.providers {
        if applied.contains(name) {
            continue;
        }
        let key = provider.api_key.as_ref().map(|reference| resolver.resolve(reference));
        let candidate = match key.transpose() {
            Err(error) => Err((name.clone(), error.to_string())),
            Ok(key) => {
                let key = key.map(|key| key.expose().into());
                let policy = build.catalog.health(provider).or(outer);
                let base_url = provider.base_url.as_deref();
                CheckTarget::from_parts(name.clone(), provider.kind, base_url, policy, key)
                    .map(Box::new)
                    .map_err(|error| (name.clone(), error.to_string()))
            }
        };
        found.push((name.clone(), candidate));
    }
    found.sort_by(|(a, _), (b, _)| a.cmp(b));
    Ok(found.into_iter().map(|(_, candidate)| candidate).collect())
}

/// Looks at all of them, some at a time, and passes on each finding as it comes.
pub async fn look(
    prober: &Prober,
    candidates: Vec<Candidate>,
    mut pass_on: impl FnMut(&CheckFinding),
) -> Vec<CheckFinding> {
    let looks = candidates.into_iter().map(|candidate| async move {
        match candidate {
            Ok(target) => look_at(prober, &target).await,
            Err((name, why)) => CheckFinding::skipped(name, why),
        }
    });
    let mut looks = stream::iter(looks).buffer_unordered(AT_ONCE);
    let mut found = Vec::new();
    while let Some(finding) = looks.next().await {
        pass_on(&finding);
        found.push(finding);
    }
    found.sort_by(|a, b| a.provider.cmp(&b.provider));
    found
}

/// A check, a key test and, where they leave hope, the list of models.
pub async fn look_at(prober: &Prober, target: &CheckTarget) -> CheckFinding {
    let checked = prober.check(target.health_check()).await;
    let mut finding = CheckFinding {
        provider: target.name.clone(),
        outcome: checked.outcome.word(),
        reason: checked.outcome.reason().to_owned(),
        status: checked.status,
        latency_ms: millis(checked.took),
        has_key: target.key.is_some(),
        key: None,
        models_found: None,
        impaired: None,
    };
    let answered = !matches!(checked.outcome, CheckOutcome::Hard { .. } | CheckOutcome::Local { .. });
    if !answered {
        return finding;
    }
    if target.key.is_some() {
        finding.key = Some(test_key(prober, target).await.0);
    }
    if finding.is_good() {
        finding.models_found = models_found(prober, target).await;
    }
    finding
}

/// Proves the target's key; also whether our own side failed.
pub async fn test_key(prober: &Prober, target: &CheckTarget) -> (KeyFinding, Option<String>) {
    if let Some(why) = &target.withheld {
        let (verdict, reason) = ("untestable", why.to_string());
        return (KeyFinding { verdict, reason, can_serve: None, quota: None, latency_ms: 0 }, None);
    }
    let key = target.sent_key();
    let tested = prober.test_key(target.kind, &target.base, key, Controls::default(), target.limits).await;
    let KeyReport { verdict, facts } = tested.report;
    let finding = KeyFinding {
        verdict: verdict.word(),
        reason: verdict.reason().to_owned(),
        can_serve: facts.can_serve,
        quota: facts.quota,
        latency_ms: millis(tested.took),
    };
    (finding, tested.local)
}

/// How many models the provider lists.
pub async fn models_found(prober: &Prober, target: &CheckTarget) -> Option<usize> {
    let key = target.sent_key();
    let models = prober.models(target.kind, &target.base, key, target.limits).await;
    models.ok().map(|models| models.models.len())
}

fn millis(took: std::time::Duration) -> u64 {
    u64::try_from(took.as_millis()).unwrap_or(u64::MAX)
}
