//! Checks every provider and tests every key when their turn comes, and reports what changed.
//!
//! One task owns the schedule and all machines; it takes commands and sends events. Not its job: remembering
//! beyond its own life (events carry what is to be stored, [`Memory`] brings it back) and deciding which daemon
//! checks what. Invariants: a result is never credited to a provider or key that has been replaced meanwhile; while the
//! prober suspects itself no machine sees a failure; and only the monotonic clock decides when and how old, whatever
//! the wall clock does.

mod clock;
mod target;

use clock::SteadyClock;
pub use clock::Wall;
pub use target::{CheckTarget, Label, Rhythm, TargetError};

use std::{
    collections::{BTreeSet, HashMap},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use chrono::{DateTime, TimeDelta, Utc};
use futures_util::{FutureExt as _, StreamExt as _, future::BoxFuture, stream::FuturesUnordered};
use serde::{Deserialize, Serialize};
use tokio::{
    sync::mpsc,
    time::{Instant, MissedTickBehavior, interval, sleep_until},
};
use tokio_util::sync::CancellationToken;
use tracing::warn;
use url::Url;

use crate::checks::{
    impairment::{Impaired, Impairment},
    schedule::{Caps, CheckTurn, Dues, Job, NextTurn, TurnSchedule, jittered, place, unit},
    state::{HealthMachine, KeyMachine, KeyTransition, Transition, Trust},
};
use catalog::model::{HealthStatus, KeyStatus};
use net::{
    PhaseLimits,
    probe::{FinishedCheck, HealthCheck, KeyTested, Prober},
};
use provider::{CheckOutcome, Controls, Evidence, KeyReport};

/// Turns start at multiples of this, so that thousands of checks wake the thread for a handful at a time.
const TICK: Duration = Duration::from_millis(20);
/// How often ages are looked at: stale results, lingering turns, the canary.
const HOUSEKEEPING: Duration = Duration::from_millis(500);
/// How often all are looked at for results that have gone stale, after three intervals or more.
const SWEEP: Duration = Duration::from_secs(1);
/// A turn that takes longer than this makes room for others.
const LINGERS: Duration = Duration::from_secs(1);
/// How much longer a result may count while turns wait for each other.
const MAX_WAIT: Duration = Duration::from_secs(120);
/// How often the canary is asked while frozen.
const CANARY_EVERY: Duration = Duration::from_secs(5);
/// First checks are spread over no more than this, so that a new provider is soon known.
const FIRST_WITHIN: Duration = Duration::from_secs(30);
/// What another daemon has left is checked within this: its death has cost an interval or more already.
const TAKEN_WITHIN: Duration = Duration::from_secs(3);
/// A new key is tested at once; of many at once each waits so long for the one before, so that they do not take the turns
/// of all checks.
const FIRST_TESTS_APART: Duration = Duration::from_millis(10);
/// Overdue key tests after a restart are spread over this.
const TESTS_WITHIN: Duration = Duration::from_secs(60);

/// What outlives the process.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Memory {
    pub health: HealthMachine,
    pub key: KeyMachine,
    /// Shared: it changes with a key test, and a memory is handed on with every check.
    pub controls: Arc<Controls>,
}

impl Memory {
    fn shift(&mut self, jump: TimeDelta) {
        self.health.shift(jump);
        self.key.shift(jump);
    }

    /// The same, if it was written while the clock was ahead: as if that had been now.
    fn not_after(mut self, now: DateTime<Utc>) -> Self {
        let ahead = |at: Option<DateTime<Utc>>| at.filter(|at| now < *at).map(|at| now - at);
        if let Some(back) = ahead(self.health.last_result()) {
            self.health.shift(back);
        }
        if let Some(back) = ahead(self.key.last_test()) {
            self.key.shift(back);
        }
        self
    }
}

/// What the monitor is asked to do.
#[derive(Debug)]
pub enum MonitorCommand {
    /// Check this provider, or check it differently. The rest counts only where the provider is new here.
    Set {
        target: Box<CheckTarget>,
        memory: Option<Arc<Memory>>,
        /// Another daemon has checked it so far: what is overdue is checked within moments.
        taken: bool,
    },
    Remove(Arc<str>),
    /// Check and test at once; answered by the next events of this provider.
    Now(Arc<str>),
}

/// What the monitor reports. Texts are redacted. `target` is what the event is about: its label says which row and
/// which key, however often the provider has been set again since.
#[derive(Debug)]
pub enum CheckEvent {
    Checked {
        target: Arc<CheckTarget>,
        checked: FinishedCheck,
        transition: Option<Transition>,
        /// It failed, and that was not believed, since the prober suspects itself.
        frozen: bool,
        lag: Duration,
        memory: Arc<Memory>,
    },
    KeyTested {
        target: Arc<CheckTarget>,
        report: KeyReport,
        took: Duration,
        transition: Option<KeyTransition>,
        memory: Arc<Memory>,
    },
    /// A status changed without a check: it went stale, or the key was replaced.
    Health {
        target: Arc<CheckTarget>,
        transition: Transition,
        memory: Arc<Memory>,
    },
    Key {
        target: Arc<CheckTarget>,
        transition: KeyTransition,
        memory: Arc<Memory>,
    },
    Impaired(Impaired),
}

/// How the monitor works.
#[derive(Debug, Clone)]
pub struct MonitorConfig {
    pub caps: Caps,
    /// The usual interval of checks: what "at once" means when hosts fail together.
    pub interval: Duration,
    /// Asked whether our own side works, when it is in doubt.
    pub canary: Option<Url>,
    /// Kept at the number of turns under way, for showing.
    pub in_flight: Arc<AtomicUsize>,
    /// What the wall clock says, for times that are stored.
    pub wall: Wall,
}

impl MonitorConfig {
    /// How many checks at once, and which host is asked when everything seems dead.
    pub fn of(health: &crate::config::Health) -> Self {
        let count = |number: std::num::NonZeroU32| usize::try_from(number.get()).unwrap_or(usize::MAX);
        let total = count(health.max_in_flight);
        let canary = health.canary.as_deref().and_then(|canary| {
            // `host:port` is asked whether it opens a connection.
            let url = if canary.contains("://") { canary.to_owned() } else { format!("http://{canary}") };
            Url::parse(&url).ok()
        });
        Self {
            caps: Caps {
                origin_in_flight: count(health.per_origin_in_flight),
                origin_per_second: f64::from(health.per_origin_rate.get()),
                total,
                suspects: (total / 2).max(1),
                lingering: total.saturating_mul(8),
            },
            interval: health.interval,
            canary,
            ..Self::default()
        }
    }
}

impl Default for MonitorConfig {
    fn default() -> Self {
        Self {
            caps: Caps::default(),
            interval: Duration::from_secs(30),
            canary: None,
            in_flight: Arc::default(),
            wall: Wall::default(),
        }
    }
}

struct Watched {
    target: Arc<CheckTarget>,
    /// The ledger holds the same, until the next result.
    memory: Arc<Memory>,
    /// Turns taken; varies the jitter.
    turns: u64,
    /// No check since the last good one was refused: the first refusal of a valid key is news, and worth a test.
    accepted: bool,
}

enum Finished {
    Check { target: Arc<CheckTarget>, checked: FinishedCheck, lag: Duration },
    Key { target: Arc<CheckTarget>, tested: KeyTested },
    Canary { answered: bool },
}

struct Monitor {
    prober: Arc<Prober>,
    config: MonitorConfig,
    epoch: Instant,
    clock: SteadyClock,
    schedule: TurnSchedule,
    watched: HashMap<Arc<str>, Watched>,
    impairment: Impairment,
    running: FuturesUnordered<BoxFuture<'static, Finished>>,
    /// Turns by their start, to see which linger.
    started: BTreeSet<(Duration, Arc<str>)>,
    canary_asked: Option<Instant>,
    /// When all were last looked at for stale results.
    swept: Option<Instant>,
    /// When the next new key may be tested.
    first_test: Duration,
    events: mpsc::Sender<CheckEvent>,
}

/// Runs until `stop`, or until the other end of commands or events is gone. The receiver of the events
/// must keep receiving: a full channel halts all checks rather than lose a transition.
pub async fn run(
    prober: Arc<Prober>,
    config: MonitorConfig,
    mut commands: mpsc::Receiver<MonitorCommand>,
    events: mpsc::Sender<CheckEvent>,
    stop: CancellationToken,
) {
    let impairment = Impairment::new(config.interval, config.canary.is_some());
    let schedule = TurnSchedule::new(config.caps);
    let mut monitor = Monitor {
        prober,
        clock: SteadyClock::new(config.wall.clone()),
        config,
        epoch: Instant::now(),
        schedule,
        watched: HashMap::new(),
        impairment,
        running: FuturesUnordered::new(),
        started: BTreeSet::new(),
        canary_asked: None,
        swept: None,
        first_test: Duration::ZERO,
        events,
    };
    let mut housekeeping = interval(HOUSEKEEPING);
    housekeeping.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let wake = monitor.start_turns();
        monitor.config.in_flight.store(monitor.running.len(), Ordering::Relaxed);
        let news = tokio::select! {
            biased;
            () = stop.cancelled() => break,
            () = monitor.events.closed() => break,
            command = commands.recv() => match command {
                Some(command) => monitor.obey(command),
                None => break,
            },
            Some(finished) = monitor.running.next() => monitor.finish(finished),
            _ = housekeeping.tick() => monitor.keep_house(),
            () = sleep_until(wake.unwrap_or_else(Instant::now)), if wake.is_some() => Vec::new(),
        };
        for event in news {
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                sent = monitor.events.send(event) => if sent.is_err() { return },
            }
        }
    }
}

impl Monitor {
    fn now(&self) -> Duration {
        self.epoch.elapsed()
    }

    /// What time it is, for what is stored; goes on evenly between two looks at the wall clock.
    fn wall(&self) -> DateTime<Utc> {
        self.clock.now()
    }

    /// Starts whatever may start now, and says when to look again.
    fn start_turns(&mut self) -> Option<Instant> {
        loop {
            let now = self.now();
            match self.schedule.next(floor(now)) {
                NextTurn::Run(turn) => self.start(turn, now),
                NextTurn::At(at) => return Some(self.epoch + ceil(at)),
                NextTurn::Wait => return None,
            }
        }
    }

    fn start(&mut self, turn: CheckTurn, now: Duration) {
        let Some(watched) = self.watched.get_mut(&turn.provider) else {
            self.schedule.remove(&turn.provider);
            return;
        };
        watched.turns += 1;
        let (target, prober) = (watched.target.clone(), self.prober.clone());
        self.started.insert((now, turn.provider));
        self.running.push(match turn.job {
            Job::Check => async move {
                let checked = prober.check(target.health_check()).await;
                Finished::Check { target, checked, lag: turn.lag }
            }
            .boxed(),
            Job::KeyTest => {
                let controls = Controls::clone(&watched.memory.controls);
                async move {
                    let key = target.sent_key();
                    let tested =
                        prober.test_key(target.kind, &target.base, key, controls, target.limits).await;
                    Finished::Key { target, tested }
                }
                .boxed()
            }
        });
    }

    fn obey(&mut self, command: MonitorCommand) -> Vec<CheckEvent> {
        match command {
            MonitorCommand::Set { target, memory, taken } => self.set(*target, memory, taken),
            MonitorCommand::Remove(name) => {
                self.schedule.remove(&name);
                self.watched.remove(&name);
                self.impairment.remove(&name);
                Vec::new()
            }
            MonitorCommand::Now(name) => {
                let now = self.now();
                if let Some(watched) = self.watched.get(&name) {
                    let key_test = watched.target.sent_key().map(|_| now);
                    let dues = Dues { check: Some(now), key_test, suspect: is_suspect(watched) };
                    self.schedule.set(&name, &watched.target.origin, dues);
                }
                Vec::new()
            }
        }
    }

    fn set(&mut self, target: CheckTarget, memory: Option<Arc<Memory>>, taken: bool) -> Vec<CheckEvent> {
        let (name, wall) = (target.name.clone(), self.wall());
        let mut news = Vec::new();
        let old = self.watched.remove(&name);
        let same_place =
            old.as_ref().is_some_and(|old| old.target.kind == target.kind && old.target.base == target.base);
        let same_key = old.as_ref().is_some_and(|old| old.target.has_key_of(&target));
        let known = old.is_some();
        let turns = old.as_ref().map_or(0, |old| old.turns);
        let mut memory = match old {
            Some(old) => old.memory,
            None => memory.map(|memory| Arc::new(Memory::clone(&memory).not_after(wall))).unwrap_or_default(),
        };
        let mut key_changed = None;
        if known && !(same_place && same_key) {
            // Another place may know another key; either way the old verdict says nothing about this pair.
            key_changed = Arc::make_mut(&mut memory).key.key_changed(wall);
        }
        if known && !same_place {
            Arc::make_mut(&mut memory).health = HealthMachine::default();
        }
        let watched = Watched { target: Arc::new(target), memory, turns, accepted: true };
        if let Some(transition) = key_changed {
            news.push(CheckEvent::Key {
                target: watched.target.clone(),
                transition,
                memory: watched.memory.clone(),
            });
        }
        if known && !same_place {
            // A check of the old place may still run; it must not stand in the way of the first one here.
            self.schedule.remove(&name);
        }
        if !same_place {
            let known_to_fail = watched.memory.health.status() == HealthStatus::Unhealthy;
            self.impairment.remove(&name);
            self.impairment.add(self.now(), &name, &watched.target.origin, known_to_fail);
        }
        let within = if taken && !known { TAKEN_WITHIN } else { FIRST_WITHIN };
        let (check, key_test) = (Some(self.check_due(&watched, within)), self.key_due(&watched));
        let dues = Dues { check, key_test, suspect: is_suspect(&watched) };
        self.schedule.set(&name, &watched.target.origin, dues);
        self.watched.insert(name, watched);
        news
    }

    /// Where nothing is known, or it is overdue, its turn comes `within` this time.
    fn check_due(&self, watched: &Watched, within: Duration) -> Duration {
        let (wall, now, name) = (self.wall(), self.now(), &watched.target.name);
        let health = &watched.memory.health;
        let regular = watched.target.rhythm.regular(health.last_result().unwrap_or(wall));
        let Some(last) = health.last_result() else {
            return now
                + match &watched.target.rhythm {
                    Rhythm::Every(every) => place(name, within.min(*every), wall),
                    Rhythm::Cron(_) => place(name, within, wall),
                };
        };
        let delay = health.delay(wall, regular);
        // A cron expression means its very moment.
        let exact = matches!(watched.target.rhythm, Rhythm::Cron(_)) && delay == regular;
        let delay = if exact { delay } else { jittered(delay, name, watched.turns).max(delay.mul_f64(0.95)) };
        match (last + delay - wall).to_std() {
            // A wall clock that was set back must not silence checks.
            Ok(wait) => now + wait.min(delay),
            // Overdue from before a restart: back to its own place.
            Err(_) => now + place(name, regular.min(within), wall),
        }
    }

    fn key_due(&mut self, watched: &Watched) -> Option<Duration> {
        watched.target.sent_key()?;
        let (wall, now, name) = (self.wall(), self.now(), &watched.target.name);
        let key = &watched.memory.key;
        if key.last_test().is_none() {
            let at = self.first_test.max(now);
            self.first_test = at + FIRST_TESTS_APART;
            return Some(at);
        }
        Some(match (key.next_test(wall, unit(name, watched.turns)) - wall).to_std() {
            Ok(wait) => now + wait.min(key.delay().mul_f64(1.1)),
            Err(_) => now + place(name, TESTS_WITHIN, wall),
        })
    }

    fn finish(&mut self, finished: Finished) -> Vec<CheckEvent> {
        match finished {
            Finished::Check { target, checked, lag } => self.finish_check(&target, checked, lag),
            Finished::Key { target, tested } => self.finish_key(&target, tested),
            Finished::Canary { answered } => {
                self.impairment.canary(self.now(), answered).map(CheckEvent::Impaired).into_iter().collect()
            }
        }
    }

    fn finish_check(
        &mut self,
        target: &Arc<CheckTarget>,
        checked: FinishedCheck,
        lag: Duration,
    ) -> Vec<CheckEvent> {
        let (now, wall) = (self.now(), self.wall());
        let mut news = Vec::new();
        let name = &target.name;
        let Some(mut watched) = self.watched.remove(name) else { return news };
        if watched.target.kind == target.kind && watched.target.base == target.base {
            let health = &mut Arc::make_mut(&mut watched.memory).health;
            let judged = self.impairment.judge((now, wall), name, health, &checked.outcome, checked.took);
            if matches!(judged.change, Some(Impaired::Began { .. })) {
                self.watched
                    .values_mut()
                    .for_each(|watched| Arc::make_mut(&mut watched.memory).health.forgive());
            }
            news.extend(judged.change.map(CheckEvent::Impaired));
            let (transition, frozen) = (judged.transition, judged.disbelieved);
            let doubted = judged.trust != Trust::Frozen && doubts_key(&mut watched, &checked.outcome);
            let memory = watched.memory.clone();
            let target = watched.target.clone();
            news.push(CheckEvent::Checked { target, checked, transition, frozen, lag, memory });
            // A local failure, or one that was not believed, leaves no time to count from.
            let due = match watched.memory.health.last_result() {
                Some(last) if last >= wall => self.check_due(&watched, FIRST_WITHIN),
                _ => {
                    let health = &watched.memory.health;
                    now + jittered(
                        health.delay(wall, watched.target.rhythm.regular(wall)),
                        name,
                        watched.turns,
                    )
                }
            };
            self.schedule.done(name, Job::Check, Some(due), is_suspect(&watched));
            if doubted {
                let dues =
                    Dues { check: Some(due), key_test: Some(self.now()), suspect: is_suspect(&watched) };
                self.schedule.set(name, &watched.target.origin, dues);
            }
        }
        self.watched.insert(name.clone(), watched);
        news
    }

    fn finish_key(&mut self, target: &Arc<CheckTarget>, tested: KeyTested) -> Vec<CheckEvent> {
        let wall = self.wall();
        let name = &target.name;
        let Some(mut watched) = self.watched.remove(name) else { return Vec::new() };
        let mut news = Vec::new();
        let same_place = watched.target.kind == target.kind && watched.target.base == target.base;
        let due = if same_place && watched.target.has_key_of(target) {
            Arc::make_mut(&mut watched.memory).controls = Arc::new(tested.controls);
            let report = tested.report;
            // A proof proves our side as well.
            let believed = tested.local.is_none()
                && target.withheld.is_none()
                && (!self.impairment.is_frozen() || report.verdict.evidence() == Evidence::Proof);
            if believed {
                let wait = report.facts.retry_after;
                let transition = Arc::make_mut(&mut watched.memory).key.observe(wall, &report.verdict, wait);
                let memory = watched.memory.clone();
                let (target, took) = (watched.target.clone(), tested.took);
                news.push(CheckEvent::KeyTested { target, report, took, transition, memory });
                self.key_due(&watched)
            } else {
                Some(self.now() + jittered(Duration::from_secs(60), name, watched.turns))
            }
        } else {
            // It was the old key; the new one is due.
            self.key_due(&watched)
        };
        if same_place {
            self.schedule.done(name, Job::KeyTest, due, is_suspect(&watched));
        }
        self.watched.insert(name.clone(), watched);
        news
    }

    fn keep_house(&mut self) -> Vec<CheckEvent> {
        let mut news = Vec::new();
        if let Some(jump) = self.clock.look() {
            self.shift(jump);
        }
        let (now, wall) = (self.now(), self.wall());
        while let Some((started, name)) =
            self.started.first().filter(|(at, _)| now.saturating_sub(*at) >= LINGERS).cloned()
        {
            self.started.remove(&(started, name.clone()));
            self.schedule.linger(&name);
        }
        news.extend(self.impairment.tick(now).map(CheckEvent::Impaired));
        if self.impairment.is_frozen() {
            self.ask_canary();
            for watched in self.watched.values_mut() {
                Arc::make_mut(&mut watched.memory).health.hold(wall);
            }
            return news;
        }
        if self.swept.is_some_and(|at| at.elapsed() < SWEEP) {
            return news;
        }
        self.swept = Some(Instant::now());
        let mut waits = None;
        for watched in self.watched.values_mut() {
            if watched.memory.health.status() == HealthStatus::Unknown {
                continue;
            }
            let last = watched.memory.health.last_result().unwrap_or(wall);
            let regular = watched.target.rhythm.regular(last);
            // Most are fresh, and that is seen without looking anything up.
            if (wall - last).to_std().is_ok_and(|age| age <= regular * 2) {
                continue;
            }
            let regular = self.schedule.stretched(&watched.target.origin, regular);
            // A turn that is under way may take as long as it may, and one that our caps hold up makes nothing stale.
            let waits = *waits.get_or_insert_with(|| self.schedule.lag(now).min(MAX_WAIT));
            if let Some(transition) = Arc::make_mut(&mut watched.memory)
                .health
                .expire(wall, regular + watched.target.limits.total + waits)
            {
                let memory = watched.memory.clone();
                news.push(CheckEvent::Health { target: watched.target.clone(), transition, memory });
            }
        }
        news
    }

    /// The wall clock was set: what is remembered moves with it, so that all stays as old as it was.
    fn shift(&mut self, jump: TimeDelta) {
        warn!(seconds = jump.num_seconds(), "the wall clock has jumped; ages and turns stay as they were");
        let mut moved = Vec::new();
        for (name, watched) in &mut self.watched {
            Arc::make_mut(&mut watched.memory).shift(jump);
            // These mean a time of day.
            if matches!(watched.target.rhythm, Rhythm::Cron(_)) {
                moved.push(name.clone());
            }
        }
        for name in moved {
            let Some(watched) = self.watched.get(&name) else { continue };
            // Without dues it takes a turn now, and counts from its end.
            let Some(dues) = self.schedule.dues(&name).filter(|dues| dues.check.is_some()) else { continue };
            let dues = Dues { check: Some(self.check_due(watched, FIRST_WITHIN)), ..dues };
            self.schedule.set(&name, &watched.target.origin, dues);
        }
    }

    fn ask_canary(&mut self) {
        let Some(canary) = self.config.canary.clone() else { return };
        if self.canary_asked.is_some_and(|asked| asked.elapsed() < CANARY_EVERY) {
            return;
        }
        self.canary_asked = Some(Instant::now());
        let prober = self.prober.clone();
        self.running.push(
            async move {
                Finished::Canary { answered: prober.reach(&canary, PhaseLimits::default()).await.is_ok() }
            }
            .boxed(),
        );
    }
}

/// The last tick not after a time.
const fn floor(at: Duration) -> Duration {
    Duration::from_nanos_u128(at.as_nanos() / TICK.as_nanos() * TICK.as_nanos())
}

/// The first tick not before a time.
const fn ceil(at: Duration) -> Duration {
    Duration::from_nanos_u128(at.as_nanos().div_ceil(TICK.as_nanos()) * TICK.as_nanos())
}

/// Whether a check speaks against a key that was proven: a revoked key should not wait for its next regular test. Only
/// the first refusal after a good check does, or an endpoint that refuses every key would be tested all the time.
fn doubts_key(watched: &mut Watched, outcome: &CheckOutcome) -> bool {
    match outcome {
        CheckOutcome::Auth { .. } => {
            let was_accepted = std::mem::replace(&mut watched.accepted, false);
            was_accepted
                && watched.target.sent_key().is_some()
                && watched.memory.key.status() == KeyStatus::Valid
        }
        CheckOutcome::Ok | CheckOutcome::Slow => {
            watched.accepted = true;
            false
        }
        _ => false,
    }
}

/// Failing, or about to be: its turns come out of the smaller share.
fn is_suspect(watched: &Watched) -> bool {
    watched.memory.health.is_pending() || watched.memory.health.status() == HealthStatus::Unhealthy
}

impl CheckTarget {
    /// What is asked to find out about its health.
    pub fn health_check(&self) -> HealthCheck<'_> {
        HealthCheck {
            kind: self.kind,
            base: &self.base,
            key: self.sent_key(),
            path: self.path.as_deref(),
            expect_status: self.expect_status.as_deref(),
            slow_after: self.slow_after,
            limits: self.limits,
        }
    }
}
