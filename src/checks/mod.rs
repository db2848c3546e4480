//! The checks of this daemon: which providers are its share, what is found out about them, and writing that down.
//!
//! Three tasks: the monitor checks (`health`), one keeps its targets in step with the database and this daemon's
//! share, one takes its events in and writes them. Not their job: what an answer means. Invariants: only what
//! manifests manage is checked and written; a daemon whose lease has run out writes nothing; while the database is
//! away, checks and metrics go on and what is to be written waits.

pub mod export;
pub mod impairment;
pub mod key_trial;
mod ledger;
pub mod monitor;
pub mod once;
pub mod recent;
pub mod schedule;
pub mod share;
pub mod state;
mod targets;
mod writer;

use std::{
    collections::{BTreeSet, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError, atomic::AtomicBool},
    time::Duration,
};

use chrono::Utc;
use tokio::{
    sync::{Notify, mpsc, watch},
    time::Instant,
};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};
use uuid::Uuid;

pub use self::ledger::{CheckLedger, Kept, LedgerProvider};
use self::targets::{Checkable, SharedCatalog};
use crate::destination::{Declared, is_undecryptable};
use crate::{
    checks::{
        monitor::{MonitorCommand, MonitorConfig},
        share::Share,
    },
    metrics::Metrics,
    process::lifecycle::{self, Supervisor},
    secret::Keyring,
    store::{CheckRow, CheckWrite, Lease, NewStatus, StatusWrite, Store, StoreError},
};
use catalog::{
    manifest::{Build, Changed},
    model::{HealthPolicy, HealthStatus, KeyStatus},
};
use net::probe::Prober;

/// Each daemon that checks holds a lease of this name and its own id.
pub const MEMBER: &str = "checks:";
/// A dead daemon's share is taken over within this time plus one beat (below).
const MEMBER_TTL: Duration = Duration::from_secs(7);
/// How often the lease is renewed and the others are looked at; three tries fit into its time.
const BEAT: Duration = Duration::from_secs(2);
/// How often everything is read again, for what no hint announced: not the number of the last applied catalog, which is looked
/// at with every beat, and not a notice of drift.
const READ_EVERY: Duration = Duration::from_secs(120);
/// A burst of changes is read once.
const READ_APART: Duration = Duration::from_millis(200);
/// Commands and events that may wait for their reader.
const CHANNEL: usize = 1024;

/// What the checks need.
pub struct CheckParts {
    pub store: Store,
    pub keyring: Arc<Keyring>,
    pub prober: Arc<Prober>,
    pub monitor: MonitorConfig,
    /// How providers are checked of which the manifests say nothing else.
    pub policy: HealthPolicy,
    pub metrics: Arc<Metrics>,
    /// Identifies this daemon among others.
    pub holder: Uuid,
}

struct Inner {
    ledger: Mutex<CheckLedger>,
    /// What there is to look at again.
    wanted: Mutex<Changed>,
    wake: Notify,
    catalog: Mutex<SharedCatalog>,
    commands: mpsc::Sender<MonitorCommand>,
    prober: Arc<Prober>,
    policy: Mutex<HealthPolicy>,
    /// Notified after news were written.
    news: Arc<Notify>,
}

/// The running checks. Cheap to clone.
#[derive(Clone)]
pub struct Checks(Arc<Inner>);

impl Checks {
    /// Starts the tasks.
    pub fn start(parts: CheckParts, supervisor: &Supervisor) -> Self {
        parts.metrics.expect_transitions();
        let (commands, orders) = mpsc::channel(CHANNEL);
        let (events, heard) = mpsc::channel(CHANNEL);
        let (leased, lease) = watch::channel(None);
        let inner = Inner {
            ledger: Mutex::default(),
            wanted: Mutex::new(Changed::All),
            wake: Notify::new(),
            catalog: Mutex::default(),
            commands,
            prober: parts.prober.clone(),
            policy: Mutex::new(parts.policy.clone()),
            news: Arc::default(),
        };
        let checks = Self(Arc::new(inner));
        let stop = supervisor.token();
        let (waiting, ended) = (Arc::new(Notify::new()), CancellationToken::new());
        let monitor = monitor::run(parts.prober.clone(), parts.monitor.clone(), orders, events, stop.clone());
        let taking = writer::take_in(checks.clone(), parts.metrics.clone(), heard, waiting.clone());
        let done = ended.clone();
        supervisor.spawn("monitor", async move {
            let result = lifecycle::on_a_thread("checks", async {
                tokio::join!(monitor, taking);
            })
            .await;
            done.cancel();
            result
        });
        let writer = writer::CheckWriter {
            checks: checks.clone(),
            store: parts.store.clone(),
            metrics: parts.metrics.clone(),
            lease,
            waiting,
            careful: AtomicBool::new(false),
        };
        supervisor.spawn("verdicts", writer.run(ended));
        let keeper = Keeper {
            checks: checks.clone(),
            share: Share::new(parts.holder, []),
            parts,
            known: HashMap::new(),
            has_read: false,
            lease: None,
            leased,
            seq: None,
            pause_ends: None,
        };
        supervisor.spawn("targets", keeper.run(stop));
        checks
    }

    /// Looks at providers again: their rows or how they are checked may have changed.
    pub fn look(&self, at: Changed) {
        lock(&self.0.wanted).add(at);
        self.0.wake.notify_one();
    }

    /// Takes the newest catalog, for how to check.
    pub fn catalog(&self, build: Arc<Build>) {
        *lock(&self.0.catalog) = Some(build);
    }

    /// Checks providers of which the manifests say nothing else like this from now on.
    pub fn set_policy(&self, policy: HealthPolicy) {
        *lock(&self.0.policy) = policy;
        self.look(Changed::All);
    }

    /// Checks and tests one provider now; `false` if it is not this daemon's.
    pub async fn now(&self, name: &str) -> bool {
        let Some(name) = lock(&self.0.ledger).get(name).map(|live| live.target.name.clone()) else {
            return false;
        };
        self.0.commands.send(MonitorCommand::Now(name)).await.is_ok()
    }

    /// The gateway saw something: looks at this provider again, if it is this daemon's. Never waits; where the queue is
    /// full, the provider's next turn does.
    pub fn look_again(&self, provider: Uuid) {
        let name = lock(&self.0.ledger)
            .iter()
            .find(|live| live.target.label.id == provider)
            .map(|live| live.target.name.clone());
        if let Some(name) = name {
            let _ = self.0.commands.try_send(MonitorCommand::Now(name));
        }
    }

    /// What is known now. Do not hold it across an await.
    pub fn ledger(&self) -> MutexGuard<'_, CheckLedger> {
        lock(&self.0.ledger)
    }

    /// The newest catalog.
    pub fn build(&self) -> Option<Arc<Build>> {
        lock(&self.0.catalog).clone()
    }

    /// Wakes one who waits after each write that held a transition or a verdict about a key.
    pub fn news(&self) -> Arc<Notify> {
        self.0.news.clone()
    }

    pub fn prober(&self) -> &Arc<Prober> {
        &self.0.prober
    }

    /// The series that carry a provider's name, in Prometheus's text format, and the sums over statuses.
    pub fn encode(&self, text: &mut Vec<u8>, per_provider: bool) {
        export::encode(&self.ledger(), text, per_provider);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Keeps the monitor's targets in step with the database and with this daemon's share.
struct Keeper {
    checks: Checks,
    parts: CheckParts,
    share: Share,
    /// What each target was made from.
    known: HashMap<Arc<str>, u64>,
    /// All rows were read once.
    has_read: bool,
    lease: Option<Lease>,
    leased: watch::Sender<Option<Lease>>,
    /// The last applied catalog's number, as seen at the last beat.
    seq: Option<i64>,
    /// When the next maintenance ends.
    pause_ends: Option<Instant>,
}

impl Keeper {
    async fn run(mut self, stop: CancellationToken) {
        if let Err(error) = self.parts.store.lease_forget(MEMBER).await {
            debug!(%error, "old leases could not be removed");
        }
        let (mut beat_at, mut read_at) = (Instant::now(), Instant::now());
        let mut read_all_at = Instant::now() + READ_EVERY;
        loop {
            let checks = self.checks.clone();
            let wanted = !lock(&checks.0.wanted).is_none();
            // Nothing is checked before this daemon knows who else is there.
            let may_read = self.lease.is_some();
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep_until(beat_at) => {
                    beat_at = Instant::now() + BEAT;
                    self.beat().await;
                }
                () = tokio::time::sleep_until(read_at), if wanted && may_read => {
                    self.read().await;
                    read_at = Instant::now() + READ_APART;
                    // No notification announces the end of a maintenance window.
                    read_all_at = self.pause_ends.take().map_or(read_all_at, |end| end.min(read_all_at));
                }
                () = tokio::time::sleep_until(read_all_at) => {
                    read_all_at = Instant::now() + READ_EVERY;
                    self.checks.look(Changed::All);
                }
                () = checks.0.wake.notified() => {}
            }
        }
    }

    /// Renews the lease and looks who else is there and whether a catalog was applied.
    async fn beat(&mut self) {
        let held = match self.renew().await {
            Ok(held) => held,
            Err(error) => {
                // What runs goes on: while the database is away, other daemons cannot be seen.
                debug!(%error, "the lease of the checks could not be renewed");
                return;
            }
        };
        let lost = self.lease.is_some() && self.lease != held;
        let gained = held.is_some() && self.lease.is_none();
        if self.lease != held {
            let leases = i64::from(held.is_some()) - i64::from(self.lease.is_some());
            self.parts.metrics.leases_held.add(leases);
            self.lease.clone_from(&held);
            self.leased.send_replace(held);
        }
        let Ok((members, seq)) = self.parts.store.lease_holders(MEMBER).await else { return };
        let share = Share::new(self.parts.holder, members);
        if self.share != share || gained || lost {
            if self.share != share {
                info!(alone = share.is_alone(), "the checks are shared again");
            }
            if lost && !share.is_alone() {
                // Another daemon has gone on meanwhile and knows better.
                self.drop_all().await;
            }
            self.share = share;
            self.checks.look(Changed::All);
        }
        if self.seq.replace(seq) != Some(seq) {
            self.checks.look(Changed::All);
        }
    }

    async fn renew(&mut self) -> Result<Option<Lease>, StoreError> {
        let store = &self.parts.store;
        if let Some(held) = &self.lease
            && store.lease_renew(held, MEMBER_TTL).await?
        {
            return Ok(self.lease.clone());
        }
        let name = format!("{MEMBER}{}", self.parts.holder);
        store.lease_acquire(&name, self.parts.holder, MEMBER_TTL).await
    }

    async fn drop_all(&mut self) {
        let names: Vec<Arc<str>> = self.known.drain().map(|(name, _)| name).collect();
        *self.checks.ledger() = CheckLedger::default();
        for name in names {
            let _ = self.checks.0.commands.send(MonitorCommand::Remove(name)).await;
        }
    }

    /// The rows that are checked, and which of them hold another row's key.
    async fn rows(
        &self,
        names: Option<&[String]>,
        declared: &[&str],
        build: Option<&Build>,
    ) -> crate::store::Result<(Vec<CheckRow>, HashMap<Uuid, Arc<str>>)> {
        let rows = self.parts.store.check_rows(names, declared).await?;
        let copied = targets::copied(&rows, &self.parts.store, build, &self.parts.keyring).await?;
        Ok((rows, copied))
    }

    /// Reads the rows that may have changed and sends commands to the monitor.
    async fn read(&mut self) {
        let wanted = std::mem::replace(&mut *lock(&self.checks.0.wanted), Changed::NONE);
        let names: Option<Vec<String>> =
            wanted.names().map(|names| names.iter().map(ToString::to_string).collect());
        let build = lock(&self.checks.0.catalog).clone();
        let declared: Vec<&str> =
            build.iter().flat_map(|build| build.catalog.providers.keys().map(|name| &**name)).collect();
        let (rows, copied) = match self.rows(names.as_deref(), &declared, build.as_deref()).await {
            Ok(found) => found,
            Err(error) => {
                debug!(%error, "the providers could not be read; the next beat tries again");
                self.checks.look(Changed::All);
                tokio::time::sleep(BEAT).await;
                return;
            }
        };
        let paused = self.parts.store.suspended().await.unwrap_or_default().checks;
        let now = Utc::now();
        let ends = paused.values().filter_map(|pause| pause.until).filter(|until| now < *until).min();
        let wait = ends.and_then(|end| (end - now).to_std().ok());
        self.pause_ends = wait.map(|wait| Instant::now() + wait.min(READ_EVERY));
        let is_paused = |name: &Arc<str>| {
            paused.get(name).is_some_and(|pause| pause.until.is_none_or(|until| now < until))
        };
        let mut gone: BTreeSet<Arc<str>> =
            wanted.names().cloned().unwrap_or_else(|| self.known.keys().cloned().collect());
        let outer = lock(&self.checks.0.policy).clone();
        let mut corrections = Vec::new();
        for row in &rows {
            if !self.share.owns(&row.name) || is_paused(&row.name) {
                continue;
            }
            let last = || match self.checks.ledger().get(&row.name) {
                Some(live) => live.kept.policy.as_deref().cloned().unwrap_or_default(),
                None => targets::recorded_policy(row),
            };
            let declared = targets::policy(build.as_deref(), &row.name, last);
            let policy = declared.clone().or(&outer);
            let place = Declared::of(build.as_deref(), &row.name, &row.place);
            let owner = copied.get(&row.id);
            let digest = targets::digest(row, place.as_ref(), &policy, owner);
            if self.known.get(&row.name) == Some(&digest) {
                gone.remove(&row.name);
                continue;
            }
            match targets::target(row, place.as_ref(), policy, &self.parts.keyring, owner) {
                Checkable::Yes(target) => {
                    if let Some(why) = target.withheld.as_ref().filter(|_| target.key.is_some()) {
                        warn!(provider = %row.name, why, "its key goes nowhere");
                    }
                    gone.remove(&row.name);
                    self.set(row, *target, declared).await;
                    self.known.insert(row.name.clone(), digest);
                }
                Checkable::No(why) => corrections.extend(unchecked(row, &why)),
            }
            if is_undecryptable(&row.tokens, &self.parts.keyring.byok) {
                corrections.extend(undecryptable(row));
            }
        }
        self.has_read |= wanted == Changed::All;
        for name in gone {
            if self.known.remove(&name).is_some() {
                self.checks.ledger().remove(&name);
                let _ = self.checks.0.commands.send(MonitorCommand::Remove(name)).await;
            }
        }
        if !corrections.is_empty()
            && let Err(error) = self.parts.store.checks_write(self.lease.as_ref(), &corrections).await
        {
            warn!(%error, "statuses of providers that are not checked could not be written");
        }
    }

    async fn set(&self, row: &CheckRow, target: monitor::CheckTarget, declared: HealthPolicy) {
        let known = self.checks.ledger().get(&row.name).is_some();
        let kept = (!known).then(|| remembered(row, &target)).flatten();
        let memory = kept.as_ref().map(|kept| kept.memory.clone());
        // The first daemon after a while has all the time; one that comes later takes over from others.
        let taken = kept.is_some() && (self.has_read || !self.share.is_alone());
        self.checks.ledger().set(Arc::new(target.clone()), declared, kept);
        // The monitor outlives this task except in a shutdown.
        let _ = self
            .checks
            .0
            .commands
            .send(MonitorCommand::Set { target: Box::new(target), memory, taken })
            .await;
    }
}

/// What is remembered of a provider from before, as far as it is still about the same key.
fn remembered(row: &CheckRow, target: &monitor::CheckTarget) -> Option<Kept> {
    let mut kept = Kept::parse(row.memory.as_deref()?)?;
    let pending = row.key_status.as_deref() == Some(KeyStatus::Pending.as_str());
    if kept.key_fingerprint != target.label.key_fingerprint || pending {
        Arc::make_mut(&mut kept.memory).key = state::KeyMachine::default();
        kept.facts = provider::Facts::default();
    }
    let shown = row.health_status.as_deref().unwrap_or(HealthStatus::Unknown.as_str());
    if shown == HealthStatus::Unknown.as_str() {
        // It was not checked for a while, for instance since it was disabled.
        Arc::make_mut(&mut kept.memory).health = state::HealthMachine::default();
    }
    Some(kept)
}

fn correction(row: &CheckRow) -> StatusWrite {
    StatusWrite {
        id: row.id,
        health_status: None,
        last_health_check: None,
        key_status: None,
        key_last_tested: None,
        key_updated_at: row.key_updated_at,
    }
}

/// A provider that is not checked has no health that could be known.
fn unchecked(row: &CheckRow, why: &str) -> Option<CheckWrite> {
    let from = HealthStatus::parse(row.health_status.as_deref()?)?;
    if from == HealthStatus::Unknown {
        return None;
    }
    let to = HealthStatus::Unknown;
    let event = ledger::row_event(
        catalog::plan::EventKind::Health,
        row,
        serde_json::json!({ "from": from, "to": to }),
        format!("not checked: {why}"),
    );
    let status = StatusWrite { health_status: Some(to), ..correction(row) };
    Some(CheckWrite {
        status,
        transitions: vec![(NewStatus::Health(to), event)],
        memory: None,
        rollups: Vec::new(),
    })
}

/// A key that does not open cannot be tested.
fn undecryptable(row: &CheckRow) -> Option<CheckWrite> {
    let to = KeyStatus::Error;
    if row.key_status.as_deref() == Some(to.as_str()) {
        return None;
    }
    let event = ledger::row_event(
        catalog::plan::EventKind::KeyTest,
        row,
        serde_json::json!({ "from": row.key_status, "to": to }),
        "the stored key does not open with the BYOK key".to_owned(),
    );
    let status = StatusWrite { key_status: Some(to), key_last_tested: Some(Utc::now()), ..correction(row) };
    Some(CheckWrite {
        status,
        transitions: vec![(NewStatus::Key(to), event)],
        memory: None,
        rollups: Vec::new(),
    })
}
