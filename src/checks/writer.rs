//! Takes the monitor's events in and writes what they found: news at once, the rest in batches.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use chrono::Utc;
use tokio::{
    sync::{Notify, mpsc, watch},
    time::{Instant, sleep_until, timeout},
};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};
use uuid::Uuid;

use provider::CheckOutcome;

use super::{
    Checks,
    ledger::{Batch, WriteDepth},
};
use crate::{
    checks::{impairment::Impaired, monitor::CheckEvent},
    metrics::Metrics,
    store::{Lease, Store, StoreError},
};

/// News that come together are written together.
const GATHER: Duration = Duration::from_millis(20);
/// `last_health_check` is never further behind than this.
const HEARTBEAT: Duration = Duration::from_secs(60);
/// Memories and sums; what a crash costs of them is this much history. With many providers less often: they are most
/// of what is written.
const DEEP_OF_FEW: Duration = Duration::from_secs(60);
const DEEP_OF_MANY: Duration = Duration::from_secs(1200);
const MANY: usize = 500;
/// Providers per transaction.
const BATCH: usize = 2000;
/// First and longest wait before a failed write is tried again.
const RETRY: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(10));

/// Takes in what the monitor reports, beside it on the same thread: no event crosses to another one.
pub(super) async fn take_in(
    checks: Checks,
    metrics: Arc<Metrics>,
    mut events: mpsc::Receiver<CheckEvent>,
    waiting: Arc<Notify>,
) {
    while let Some(event) = events.recv().await {
        count(&metrics, &event);
        if checks.ledger().absorb(event, Utc::now()) {
            waiting.notify_one();
        }
    }
}

/// Writes down what the monitor found.
pub(super) struct CheckWriter {
    pub checks: Checks,
    pub store: Store,
    pub metrics: Arc<Metrics>,
    pub lease: watch::Receiver<Option<Lease>>,
    /// Notified when something is worth writing at once.
    pub waiting: Arc<Notify>,
    /// The last write met rows that another session keeps locked: the next one looks before it writes.
    pub careful: AtomicBool,
}

/// Of the 5 s that a stop may take, what the last verdicts get.
const LAST: Duration = Duration::from_millis(2500);

impl CheckWriter {
    /// Runs until the monitor has `ended`; then writes everything once more and gives the lease back.
    pub async fn run(self, ended: CancellationToken) {
        let mut news_at: Option<Instant> = None;
        let mut heartbeat_at = Instant::now() + HEARTBEAT;
        let mut deep_at = Instant::now();
        let mut retry = RETRY.0;
        loop {
            let next = news_at.map_or(heartbeat_at, |at| at.min(heartbeat_at));
            tokio::select! {
                () = ended.cancelled() => break,
                // While the database is away, the pause goes on.
                () = self.waiting.notified(), if news_at.is_none() => {
                    news_at = Some(Instant::now() + GATHER);
                    continue;
                }
                () = sleep_until(next) => {}
            }
            let now = Instant::now();
            let depth = if now >= heartbeat_at && now >= deep_at {
                WriteDepth::All
            } else if now >= heartbeat_at {
                WriteDepth::Heartbeats
            } else {
                WriteDepth::News
            };
            match self.write(depth).await {
                Ok(()) => {
                    retry = RETRY.0;
                    if news_at.is_some_and(|at| at <= now) {
                        news_at = None;
                    }
                    if depth != WriteDepth::News {
                        heartbeat_at = now + HEARTBEAT;
                    }
                    if depth == WriteDepth::All {
                        deep_at =
                            now + if self.checks.ledger().len() > MANY { DEEP_OF_MANY } else { DEEP_OF_FEW };
                    }
                }
                Err(error) => {
                    debug!(%error, retry_in = ?retry, "verdicts wait for the database");
                    news_at = Some(Instant::now() + retry);
                    heartbeat_at = heartbeat_at.max(Instant::now() + retry);
                    retry = (retry * 2).min(RETRY.1);
                }
            }
        }
        match timeout(LAST, self.write(WriteDepth::All)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => warn!(%error, "the last verdicts could not be written"),
            Err(_) => warn!("the last verdicts could not be written: the database does not answer"),
        }
        let held = self.lease.borrow().clone();
        if let Some(held) = held {
            // A lease that cannot be given back runs out by itself.
            let _ = timeout(Duration::from_secs(1), self.store.lease_release(&held)).await;
        }
    }

    /// Writes all that `depth` calls for.
    async fn write(&self, depth: WriteDepth) -> Result<(), StoreError> {
        loop {
            let held = self.lease.borrow().clone();
            // Without a lease nothing may be written; the verdicts wait.
            let Some(held) = held else { return Err(StoreError::Fenced) };
            let mut batch: Batch = self.checks.ledger().take(depth, BATCH);
            if batch.is_empty() {
                return Ok(());
            }
            let last = batch.writes.len() < BATCH;
            let mut locked = None;
            if self.careful.load(Ordering::Relaxed) {
                locked = match self.leave_locked(&mut batch).await {
                    Ok(locked) => locked,
                    Err(error) => {
                        self.checks.ledger().give_back(batch);
                        return Err(error);
                    }
                };
            }
            let written = async {
                let news = self.store.checks_write(Some(&held), &batch.writes).await?;
                self.store.record(&batch.own).await?;
                if let Some(impaired) = &batch.impaired {
                    self.store.impaired_set(held.holder, impaired.as_deref()).await?;
                }
                Ok(news + batch.own.len())
            };
            match written.await {
                Ok(news) => {
                    self.metrics.events.inc_by(news as u64);
                    self.checks.ledger().written(batch);
                    if news > 0 || depth == WriteDepth::News {
                        self.checks.0.news.notify_one();
                    }
                }
                Err(error) => {
                    self.checks.ledger().give_back(batch);
                    if matches!(error, StoreError::Locked(_)) && !self.careful.swap(true, Ordering::Relaxed) {
                        continue;
                    }
                    return Err(error);
                }
            }
            // The rest is written; this comes when its rows are free.
            if let Some(locked) = locked {
                return Err(locked);
            }
            if last {
                return Ok(());
            }
        }
    }

    /// Gives back what is about rows that another session keeps locked, and says so.
    async fn leave_locked(&self, batch: &mut Batch) -> Result<Option<StoreError>, StoreError> {
        let ids: Vec<Uuid> = batch.writes.iter().map(|write| write.status.id).collect();
        let free = self.store.checks_free(&ids).await?;
        let rest = batch.without(&free);
        if rest.is_empty() {
            self.careful.store(false, Ordering::Relaxed);
            return Ok(None);
        }
        let text = format!("rows of {} providers", rest.writes.len());
        self.checks.ledger().give_back(rest);
        Ok(Some(StoreError::Locked(text)))
    }
}

fn count(metrics: &Metrics, event: &CheckEvent) {
    match event {
        CheckEvent::Checked { target, checked, transition, frozen, lag, .. } => {
            metrics.probes.with_label_values(&["health"]).inc();
            metrics.probe_duration.with_label_values(&["health"]).observe(checked.took.as_secs_f64());
            metrics.probe_schedule_lag.observe(lag.as_secs_f64());
            if let Some(phases) = checked.phases {
                for (phase, took) in [
                    ("dns", phases.dns),
                    ("connect", phases.connect),
                    ("tls", phases.tls),
                    ("first_byte", phases.first_byte),
                    ("body", phases.body),
                ] {
                    metrics.probe_phase_duration.with_label_values(&[phase]).observe(took.as_secs_f64());
                }
            }
            match &checked.outcome {
                CheckOutcome::Local { reason } => {
                    metrics.probes_skipped.with_label_values(&["local"]).inc();
                    debug!(provider = %target.name, reason, "the check failed on this side; it says nothing");
                }
                _ if *frozen => metrics.probes_skipped.with_label_values(&["impaired"]).inc(),
                _ => {}
            }
            if let Some(reason) = checked.outcome.failure_word() {
                metrics.probe_failures.with_label_values(&["health", reason]).inc();
            }
            if let Some(to) = transition {
                metrics.health_transitions.with_label_values(&[to.from.as_str(), to.to.as_str()]).inc();
                info!(provider = %target.name, from = %to.from, to = %to.to, reason = to.reason, "health changed");
            }
        }
        CheckEvent::Health { target, transition: to, .. } => {
            metrics.health_transitions.with_label_values(&[to.from.as_str(), to.to.as_str()]).inc();
            info!(provider = %target.name, from = %to.from, to = %to.to, reason = to.reason, "health changed");
        }
        CheckEvent::KeyTested { target, report, took, transition, .. } => {
            metrics.probes.with_label_values(&["key"]).inc();
            metrics.probe_duration.with_label_values(&["key"]).observe(took.as_secs_f64());
            let word = report.verdict.word();
            if word != "valid" {
                metrics.probe_failures.with_label_values(&["key", word]).inc();
            }
            if let Some(to) = transition {
                metrics.api_key_transitions.with_label_values(&[to.from.as_str(), to.to.as_str()]).inc();
                info!(provider = %target.name, from = %to.from, to = %to.to, reason = to.reason, "key status changed");
            }
        }
        CheckEvent::Key { target, transition: to, .. } => {
            metrics.api_key_transitions.with_label_values(&[to.from.as_str(), to.to.as_str()]).inc();
            info!(provider = %target.name, from = %to.from, to = %to.to, reason = to.reason, "key status changed");
        }
        CheckEvent::Impaired(change) => {
            metrics.prober_impaired.set(matches!(change, Impaired::Began { .. }).into());
            match change {
                Impaired::Began { failing, hosts } => {
                    warn!(
                        failing,
                        hosts,
                        "most hosts fail at once; failures change no status until this side is sure of itself"
                    );
                }
                Impaired::Ended { reason } => info!(reason, "failed checks are believed again"),
            }
        }
    }
}
