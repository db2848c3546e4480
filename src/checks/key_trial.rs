//! Trials of declared keys: what their providers say before such a key replaces one that works.
//!
//! Not its job: deciding what follows (that is `plan`). Invariants: a key counts as rejected only after two definite
//! rejections a moment apart; a verdict is forgotten after a while, so that a key which its provider comes to accept
//! is applied without a change of a manifest.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use futures_util::{StreamExt as _, stream};
use tokio::time::Instant;
use tracing::info;

use catalog::plan::{Fingerprint, KeyTrial};
use net::probe::Prober;
use provider::{Controls, Evidence};

use crate::checks::monitor::CheckTarget;

/// How long a verdict is believed.
const BELIEVED: Duration = Duration::from_secs(300);
/// Between the two rejections: long enough for another of the provider's machines to answer.
const AGAIN_AFTER: Duration = Duration::from_secs(1);
/// Trials at once.
const AT_ONCE: usize = 16;

type Of = (Arc<str>, Fingerprint);

/// A declared key to be tried at its provider.
#[derive(Debug, Clone)]
pub struct Trial {
    pub fingerprint: Fingerprint,
    /// The declared provider with the declared key.
    pub target: Arc<CheckTarget>,
}

impl Trial {
    fn of(&self) -> Of {
        (self.target.name.clone(), self.fingerprint.clone())
    }
}

/// Verdicts of trials, and which trials are under way.
#[derive(Default)]
pub struct Trials {
    verdicts: Mutex<HashMap<Of, (KeyTrial, Instant)>>,
    under_way: Mutex<HashSet<Of>>,
}

impl Trials {
    /// The verdicts that are still believed.
    pub fn verdicts(&self) -> HashMap<Of, KeyTrial> {
        let mut verdicts = self.verdicts.lock().unwrap_or_else(PoisonError::into_inner);
        verdicts.retain(|_, (_, at)| at.elapsed() < BELIEVED);
        verdicts.iter().map(|(of, (verdict, _))| (of.clone(), *verdict)).collect()
    }

    /// Carries out those trials that are not under way already; the names of their providers.
    pub async fn run(&self, prober: &Prober, trials: Vec<Trial>) -> Vec<Arc<str>> {
        let fresh: Vec<Trial> = {
            let mut under_way = self.under_way.lock().unwrap_or_else(PoisonError::into_inner);
            trials.into_iter().filter(|trial| under_way.insert(trial.of())).collect()
        };
        let mut running = stream::iter(fresh.into_iter().map(|trial| async move {
            let verdict = carry_out(prober, &trial.target).await;
            (trial.of(), verdict)
        }))
        .buffer_unordered(AT_ONCE);
        let mut names = Vec::new();
        while let Some((of, verdict)) = running.next().await {
            info!(provider = %of.0, key = %of.1, ?verdict, "tried the declared key");
            self.under_way.lock().unwrap_or_else(PoisonError::into_inner).remove(&of);
            names.push(of.0.clone());
            self.verdicts
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .insert(of, (verdict, Instant::now()));
        }
        names
    }
}

async fn carry_out(prober: &Prober, target: &CheckTarget) -> KeyTrial {
    let key = target.sent_key();
    let mut controls = Controls::default();
    for last in [false, true] {
        let tested = prober.test_key(target.kind, &target.base, key, controls, target.limits).await;
        match tested.report.verdict.evidence() {
            Evidence::Proof => return KeyTrial::Works,
            Evidence::Nothing => return KeyTrial::Unclear,
            Evidence::Rejection if last => return KeyTrial::Rejected,
            Evidence::Rejection => tokio::time::sleep(AGAIN_AFTER).await,
        }
        controls = tested.controls;
    }
    KeyTrial::Unclear
}
