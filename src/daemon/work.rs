//! The loop that every wake-up goes through: load what changed, reconcile, report what was found.
//!
//! Not its job: deciding what a pass does (`reconcile`). Invariants: the newest catalog pre-empts retries of an older
//! one; a pass that fails changes nothing and is tried again.

use std::{
    collections::BTreeSet,
    path::PathBuf,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use anyhow::Context as _;
use tokio::{
    sync::{Notify, mpsc, watch},
    time::Instant,
};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use catalog::{
    manifest::{Build, Changed, Severity, render},
    model::SecretRef,
    plan::{HoldKind, NoticeKind},
};
use net::probe::Prober;

use super::{
    Arrival, BEAT, GatewayArrival, Greeting, Main, RETRY,
    lease::{Leader, Leadership},
};
use crate::{
    admin::Fresh,
    checks::{Checks, key_trial::Trials},
    discover::schedule::AppliedCatalog,
    loader::Loader,
    process::{
        lifecycle::{Supervisor, Systemd},
        memory,
    },
    reconcile::{Pass, PassOutcome, ReconcileError, Reconciler, RefusedObject},
    source::{LookScope, RevisionTracker, Wake, Watcher},
    status::{Board, SeenByLoop, TurnFound},
    store::StoreError,
};

/// Longest time that a stream of events may delay a prune.
const DEFER_LIMIT: Duration = Duration::from_secs(10);
/// From so many providers on, a pass over all of them leaves enough behind to be worth giving back.
const LARGE: usize = 500;
/// How soon what another session keeps locked is looked at again.
const LOCKED_RETRY: Duration = Duration::from_secs(2);
/// Of the 5 s that a stop may take, what a pass under way gets to come to its end.
const PASS_GRACE: Duration = Duration::from_secs(2);
/// Batches of tried keys that may wait for the loop.
const TRIED: usize = 16;

/// The longest pause after a pass that other sessions were in the way of: they go away without a notification.
const CONTENDED_RETRY: Duration = Duration::from_millis(500);

/// How long after so many failed passes in a row the next one is tried.
fn retry_pause(failures: u32, contended: bool) -> Duration {
    let longest = if contended { CONTENDED_RETRY } else { RETRY.1 };
    (RETRY.0 * 2u32.saturating_pow(failures.min(10))).min(longest)
}

fn is_file(reference: &SecretRef) -> bool {
    matches!(reference, SecretRef::File(_) | SecretRef::Credential(_))
}

/// Names of providers.
type Names = BTreeSet<Arc<str>>;

/// What the loop works with.
pub(super) struct LoopParts {
    pub reconciler: Reconciler,
    /// Where declared keys are tried, and who asks.
    pub trials: Option<(Arc<Trials>, Arc<Prober>)>,
    pub supervisor: Supervisor,
    pub checks: Option<Checks>,
    pub revisions: Arc<RevisionTracker>,
    pub leadership: Leadership,
    pub resync_interval: watch::Receiver<Duration>,
    pub wake: Wake,
    /// Other programs changed rows.
    pub drift: Arc<Notify>,
    /// Wakes the keeper of the gateway's picture.
    pub picture: Option<Arc<Notify>>,
    pub gateway: Option<GatewayArrival>,
    pub greeting: Option<Greeting>,
    /// What discovery goes by.
    pub applied: watch::Sender<AppliedCatalog>,
    pub board: Board,
}

pub(super) struct Loop {
    main: Main,
    loader: Loader,
    parts: LoopParts,
    /// Providers whose declared keys have been tried.
    tried: (mpsc::Sender<Names>, mpsc::Receiver<Names>),
    build: Option<Arc<Build>>,
    /// What is still to be looked at.
    wanted: Changed,
    settled: bool,
    deferred_since: Option<Instant>,
    failures: u32,
    retry_at: Option<Instant>,
    drift_not_before: Instant,
    ready: bool,
    suspended: bool,
    /// The number of the last applied catalog, as far as known.
    seq: Option<i64>,
    /// What the last pass says about how the rows stand; `None` where it came to no end.
    found: Option<TurnFound>,
    /// What the checks have not been given yet.
    for_checks: Changed,
    /// What the database refused in the last pass.
    refused: Vec<RefusedObject>,
    /// What waited in the last pass.
    waiting: BTreeSet<String>,
}

/// What a pass over `wanted` says about how the rows stand to the manifests.
fn found_by(outcome: &PassOutcome, wanted: &Changed) -> TurnFound {
    if outcome.is_whole_reading {
        return TurnFound::Everything(outcome.plan.clone());
    }
    let mut changed = wanted.clone();
    let planned = outcome.plan.providers.iter().map(|provider| provider.name.clone());
    changed.add(Changed::providers(planned.collect()));
    TurnFound::Maybe(changed)
}

impl Loop {
    pub fn new(main: Main, loader: Loader, parts: LoopParts) -> Self {
        Self {
            main,
            loader,
            parts,
            tried: mpsc::channel(TRIED),
            build: None,
            wanted: Changed::All,
            settled: false,
            deferred_since: None,
            failures: 0,
            retry_at: None,
            drift_not_before: Instant::now(),
            ready: false,
            suspended: false,
            seq: None,
            found: None,
            for_checks: Changed::NONE,
            refused: Vec::new(),
            waiting: BTreeSet::new(),
        }
    }

    pub async fn run(mut self, mut watcher: Watcher, stop: &CancellationToken) -> anyhow::Result<()> {
        self.settled = true;
        self.load(&LookScope::Everything, BTreeSet::new()).await;
        if !self.turn(stop, "start").await? {
            return Ok(());
        }
        // Should the task that wakes this loop ever be late, this look is not.
        let mut resync_at = Instant::now() + *self.parts.resync_interval.borrow() * 2;
        loop {
            self.main.heartbeat.beat();
            let retry_at = self.retry_at.unwrap_or(resync_at);
            let trigger = tokio::select! {
                () = stop.cancelled() => return Ok(()),
                activation = watcher.next() => {
                    self.settled = activation.settled;
                    self.load(&activation.look, activation.unfinished).await;
                    self.parts.wake.take_trigger()
                }
                () = self.parts.drift.notified() => {
                    self.wanted = Changed::All;
                    if Instant::now() < self.drift_not_before {
                        if let Some(checks) = &self.parts.checks {
                            // The pass is a while off.
                            checks.look(Changed::All);
                        }
                        self.retry_at = Some(self.retry_at.map_or(self.drift_not_before, |at| at.min(self.drift_not_before)));
                        continue;
                    }
                    self.for_checks = Changed::All;
                    "drift"
                }
                changed = self.parts.leadership.changed() => {
                    changed.context("the lease task is gone")?;
                    let leader = self.parts.leadership.borrow().clone();
                    let leads = i64::from(leader.lease().is_some());
                    self.main.metrics.leases_held.add(leads - self.main.metrics.leader.get());
                    self.main.metrics.leader.set(leads);
                    self.main.database_up(leader != Leader::Unknown);
                    self.wanted = Changed::All;
                    "leader"
                }
                Some(names) = self.tried.1.recv() => {
                    self.wanted.add(Changed::providers(names));
                    "key"
                }
                () = tokio::time::sleep_until(retry_at) => {
                    if self.retry_at.take().is_none() {
                        self.wanted = Changed::All;
                    }
                    "retry"
                }
                () = tokio::time::sleep(BEAT) => {
                    if self.another_applied().await {
                        self.wanted = Changed::All;
                        "apply"
                    } else if self.suspended {
                        // Another program may have resumed; its notice can be lost.
                        "resume"
                    } else {
                        continue;
                    }
                }
            };
            if self.wanted == Changed::All {
                resync_at = Instant::now() + *self.parts.resync_interval.borrow() * 2;
            }
            if !self.turn(stop, trigger).await? {
                return Ok(());
            }
        }
    }

    /// A pass, after which the checks look once at what it, the manifests and other programs may have changed for them.
    async fn turn(&mut self, stop: &CancellationToken, trigger: &'static str) -> anyhow::Result<bool> {
        let goes_on = self.pass_until(stop, trigger).await?;
        if let Some(checks) = &self.parts.checks
            && !self.for_checks.is_none()
        {
            checks.look(std::mem::replace(&mut self.for_checks, Changed::NONE));
        }
        self.saw();
        Ok(goes_on)
    }

    /// A pass, which a stop lets come to its end if that is near; `false`: it did not, and the database rolls it back.
    async fn pass_until(&mut self, stop: &CancellationToken, trigger: &'static str) -> anyhow::Result<bool> {
        let readiness = self.main.readiness.clone();
        readiness.pass_began();
        let late = async {
            stop.cancelled().await;
            tokio::time::sleep(PASS_GRACE).await;
        };
        let done = tokio::select! {
            done = self.pass(trigger) => Some(done),
            () = late => None,
        };
        readiness.pass_ended();
        done.map_or(Ok(false), |done| done.map(|()| true))
    }

    /// Shows what this turn of the loop has seen to the admin API.
    fn saw(&mut self) {
        if let Some(picture) = &self.parts.picture {
            picture.notify_one();
        }
        let seen = SeenByLoop {
            build: self.build.clone(),
            revision: self.parts.revisions.current().map(|revision| revision.to_string()),
            refused: self.refused.clone(),
            problem: self.loader.problem().map(str::to_owned),
        };
        self.parts.board.saw(seen, self.found.take().unwrap_or(TurnFound::Maybe(Changed::All)));
    }

    /// Reads what changed and notes which providers it concerns.
    async fn load(&mut self, look: &LookScope, unfinished: BTreeSet<PathBuf>) {
        self.loader.set_unfinished(unfinished);
        let build = match look {
            LookScope::Everything => {
                self.wanted = Changed::All;
                tokio::task::block_in_place(|| self.loader.load(self.settled))
            }
            LookScope::Paths { manifests, secrets } => {
                if !secrets.is_empty() {
                    self.wanted.add(self.keys_from_files());
                }
                if manifests.is_empty() {
                    return;
                }
                tokio::task::block_in_place(|| self.loader.load_paths(manifests, self.settled))
            }
        };
        // At rest there is time to ask whether an edit was taken back.
        match self.settled && self.build.is_some() {
            true => self.parts.revisions.refresh().await,
            false => self.parts.revisions.latest().await,
        };
        self.report(&build);
        self.wanted.add(build.changed.clone());
        let build = Arc::new(build);
        if self.concerns_key_files(&build) {
            let references = build.catalog.providers.values().filter_map(|it| it.api_key.as_ref());
            let files =
                references.filter_map(|reference| self.parts.reconciler.watched_path(reference)).collect();
            self.parts.wake.watch_secrets(files);
        }
        if let Some(checks) = &self.parts.checks {
            checks.catalog(build.clone());
            self.for_checks.add(self.wanted.clone());
        }
        self.build = Some(build);
    }

    /// Whether a command applied a catalog since this daemon did, for instance a confirmed prune: what is held back and
    /// shown may be another then.
    async fn another_applied(&mut self) -> bool {
        if self.parts.leadership.borrow().lease().is_none() {
            return false;
        }
        let Ok(seq) = self.main.store.applied_seq().await else { return false };
        self.seq.replace(seq).is_some_and(|known| known != seq)
    }

    /// Whether the set of watched key files may differ from the previous build's.
    fn concerns_key_files(&self, build: &Arc<Build>) -> bool {
        let (Changed::Some { providers: names, .. }, Some(before)) = (&build.changed, &self.build) else {
            return true;
        };
        let mut of_both =
            names.iter().flat_map(|name| [before, build].map(|it| it.catalog.providers.get(name)));
        of_both.any(|provider| provider.and_then(|it| it.api_key.as_ref()).is_some_and(is_file))
    }

    /// Providers whose key may be another one because a file changed.
    fn keys_from_files(&self) -> Changed {
        let providers = self.build.iter().flat_map(|build| build.catalog.providers.values());
        let named = providers.filter(|it| it.api_key.as_ref().is_some_and(is_file)).map(|it| it.name.clone());
        Changed::providers(named.collect())
    }

    /// Each problem of the manifests once, in the log and in the metrics.
    fn report(&self, build: &Build) {
        let metrics = &self.main.metrics;
        let files = &build.files;
        for (state, count) in
            [("valid", files.valid), ("invalid", files.invalid), ("unreadable", files.unreadable)]
        {
            metrics.manifest_files.with_label_values(&[state]).set(i64::try_from(count).unwrap_or(i64::MAX));
        }
        let errors = build.diagnostics.iter().filter(|it| it.severity == Severity::Error).count();
        let good = errors == 0 && self.loader.problem().is_none();
        metrics.manifest_last_reload_successful.set(good.into());
        if good {
            metrics.manifest_last_success.set(chrono::Utc::now().timestamp() as f64);
        }
        let before = self.build.as_ref().map(|build| &build.diagnostics);
        if before != Some(&build.diagnostics) {
            for problem in &build.diagnostics {
                if before.is_none_or(|before| !before.contains(problem)) {
                    let place = format!("{}:{}:{}", problem.path, problem.line, problem.column);
                    match problem.severity {
                        Severity::Error => {
                            error!(%place, code = problem.code, "{}", render::one_line(problem))
                        }
                        Severity::Warning => {
                            warn!(%place, code = problem.code, "{}", render::one_line(problem))
                        }
                    }
                }
            }
        }
        if let Some(problem) = self.loader.problem() {
            error!(reason = problem, "the manifest directory cannot be believed; nothing is pruned");
        }
    }

    /// One pass over what is wanted, if this daemon leads.
    async fn pass(&mut self, trigger: &'static str) -> anyhow::Result<()> {
        let Some(build) = self.build.clone() else { return Ok(()) };
        let leader = self.parts.leadership.borrow().clone();
        let lease = match leader {
            Leader::Us(lease) => lease,
            Leader::Unknown => return Ok(()),
            Leader::Another => {
                // This daemon is ready to take over.
                if self.main.readiness.database.load(Ordering::Relaxed) {
                    self.is_ready();
                }
                return Ok(());
            }
        };
        let started = Instant::now();
        let waited = self.deferred_since.is_some_and(|since| since.elapsed() >= DEFER_LIMIT);
        if self.wanted.is_none() {
            return Ok(());
        }
        let providers = self.wanted.names();
        let pass = Pass {
            build: &build,
            providers,
            objects: self.wanted.objects(),
            settled: self.settled || waited,
            confirmed: None,
            revision: self.parts.revisions.current(),
            lease: Some(&lease),
        };
        let whole = providers.is_none();
        let metrics = &self.main.metrics;
        metrics.reconcile_runs.with_label_values(&[trigger]).inc();
        let result = self.parts.reconciler.reconcile(&pass).await;
        metrics.reconcile_duration.observe(started.elapsed().as_secs_f64());
        match result {
            Ok(outcome) => {
                self.main.database_up(true);
                self.failures = 0;
                self.retry_at = None;
                self.found = Some(found_by(&outcome, &self.wanted));
                self.took(&outcome, whole, started.elapsed());
                self.is_ready();
                self.greet().await;
                Ok(())
            }
            Err(error) => self.failed(&error),
        }
    }

    fn failed(&mut self, error: &ReconcileError) -> anyhow::Result<()> {
        self.main.metrics.reconcile_failures.with_label_values(&[error.reason()]).inc();
        if let ReconcileError::Store(error) = error
            && (error.is_unreachable() || matches!(error, StoreError::Denied(_) | StoreError::Locked(_)))
        {
            self.main.readiness.trouble(error.cause());
            self.main.database_up(false);
        }
        let wait = retry_pause(self.failures, error.is_contended());
        self.failures = self.failures.saturating_add(1);
        self.retry_at = Some(Instant::now() + wait);
        warn!(error = %error, reason = error.reason(), retry_in = ?wait, "the pass failed; nothing was applied");
        Ok(())
    }

    /// Notes what a pass did: metrics, what is left to do, what the operator should know.
    fn took(&mut self, outcome: &PassOutcome, whole: bool, time: Duration) {
        if outcome.deferred {
            self.deferred_since.get_or_insert_with(Instant::now);
            // What could not wait is applied.
            self.seq = outcome.seq.or(self.seq);
            self.main.metrics.events.inc_by(outcome.events as u64);
            self.retry_at = Some(Instant::now() + DEFER_LIMIT);
            return;
        }
        self.deferred_since = None;
        self.refused.clone_from(&outcome.refused);
        self.suspended = outcome.suspended;
        if outcome.suspended {
            // `resume` wakes the loop; what is wanted stays wanted.
            return;
        }
        self.for_checks.add(self.wanted.clone());
        self.try_keys(outcome);
        self.wanted = Changed::NONE;
        self.waits(outcome);
        let metrics = &self.main.metrics;
        self.seq = outcome.seq.or(self.seq);
        if outcome.applied {
            for ((kind, action), count) in &outcome.plan.summary().rows {
                let labels = [kind.as_str(), action.as_str()];
                metrics.reconcile_changes.with_label_values(&labels).inc_by(*count as u64);
            }
            for ((kind, action), count) in &outcome.plan.summary().objects {
                let labels = [kind.counted(), action.as_str()];
                metrics.reconcile_changes.with_label_values(&labels).inc_by(*count as u64);
            }
            metrics.drift_detected.inc_by(outcome.plan.summary().drifted_fields as u64);
            metrics.events.inc_by(outcome.events as u64);
        }
        if let Some(build) = &self.build {
            self.parts.applied.send_replace(Some((build.catalog.clone(), self.parts.revisions.current())));
        }
        if let Some(revision) = self.parts.revisions.current() {
            metrics.applied_revision.reset();
            metrics.applied_revision.with_label_values(&[&revision.to_string()]).set(1);
        }
        if !whole {
            return;
        }
        if self.build.as_ref().is_some_and(|build| build.catalog.providers.len() >= LARGE) {
            memory::give_back();
        }
        // A pass over everything knows the totals; writing foreign databases must not make it a busy loop.
        self.drift_not_before = Instant::now() + time * 4;
        let held = |kind| {
            outcome
                .plan
                .held
                .iter()
                .filter(move |it| it.kind == kind)
                .map(|it| it.objects.len())
                .sum::<usize>()
        };
        let notices = |kind| outcome.plan.notices.iter().filter(|it| it.kind == kind).count();
        let set =
            |gauge: &prometheus::IntGauge, count: usize| gauge.set(i64::try_from(count).unwrap_or(i64::MAX));
        set(&metrics.prune_held, held(HoldKind::Prune));
        set(&metrics.route_cells_held, held(HoldKind::Route));
        set(&metrics.refused_providers, outcome.refused.len());
        set(&metrics.undecryptable_keys, notices(NoticeKind::KeyUndecryptable));
        set(&metrics.unresolved_keys, notices(NoticeKind::KeyUnresolved));
        for hold in &outcome.plan.held {
            warn!(kind = ?hold.kind, objects = hold.objects.len(), digest = hold.digest, "held back: {}", hold.reason);
        }
        if !self.ready {
            for notice in outcome.plan.notices.iter().filter(|it| it.kind == NoticeKind::KeyUnresolved) {
                warn!(provider = %notice.provider, "{}", notice.message);
            }
        }
    }

    /// Says what waits, once, and comes back for what is locked.
    fn waits(&mut self, outcome: &PassOutcome) {
        let waiting: BTreeSet<String> = outcome
            .plan
            .notices
            .iter()
            .filter(|it| matches!(it.kind, NoticeKind::Locked | NoticeKind::Unreadable))
            .map(|it| format!("{}: {}", it.provider, it.message))
            .collect();
        // How long a lock is held changes with every look.
        let steady = |text: &String| text.split(", held by ").next().unwrap_or_default().to_owned();
        let known: BTreeSet<String> = self.waiting.iter().map(steady).collect();
        for text in waiting.iter().filter(|text| !known.contains(&steady(text))) {
            warn!("waits: {text}");
        }
        self.waiting = waiting;
        let locked = outcome.locked();
        if !locked.is_empty() {
            self.wanted.add(Changed::providers(locked));
            self.retry_at = Some(Instant::now() + LOCKED_RETRY);
        }
    }

    /// Asks providers about declared keys that would replace working ones; the pass after goes by what they say.
    fn try_keys(&self, outcome: &PassOutcome) {
        let Some((trials, prober)) = self.parts.trials.clone().filter(|_| !outcome.trials.is_empty()) else {
            return;
        };
        let (wanted, answers) = (outcome.trials.clone(), self.tried.0.clone());
        let stop = self.parts.supervisor.token();
        self.parts.supervisor.spawn_brief("trials", async move {
            let tried = stop.run_until_cancelled(trials.run(&prober, wanted)).await;
            let names: Names = tried.into_iter().flatten().collect();
            if !names.is_empty() {
                // The loop is gone only in a shutdown.
                let _ = answers.send(names).await;
            }
        });
    }

    /// Says on the terminal where everything is, once.
    async fn greet(&mut self) {
        let Some(greeting) = self.parts.greeting.take() else { return };
        if let Ok(providers) = self.main.store.provider_status_rows(None).await {
            let manifests = self.main.settings.manifests.path.clone();
            let (database, listen) = (self.main.database.clone(), self.main.listen.clone());
            let fresh = self.main.fresh.take();
            if let Some(Err(error)) = fresh.as_ref().map(Fresh::remember) {
                warn!(%error, "the admin token cannot be kept; the next start makes another one");
            }
            let admin_token = fresh.map(|fresh| fresh.token);
            let gateway = self.parts.gateway.take();
            greeting(Arrival { manifests, database, listen, admin_token, providers, gateway });
        }
    }

    fn is_ready(&mut self) {
        self.main.readiness.reconciled.store(true, Ordering::Relaxed);
        if !std::mem::replace(&mut self.ready, true) {
            info!("ready");
            Systemd.ready();
            Systemd.status("reconciling");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_outage_is_left_in_peace_and_a_lock_is_not() {
        let millis = |failures, contended| retry_pause(failures, contended).as_millis();
        assert_eq!(
            [0, 1, 2, 6, 99].map(|failures| millis(failures, false)),
            [250, 500, 1000, 15_000, 15_000]
        );
        assert_eq!([0, 1, 2, 99].map(|failures| millis(failures, true)), [250, 500, 500, 500]);
    }
}
