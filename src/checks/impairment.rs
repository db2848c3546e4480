//! Suspects ourselves: when over half of all hosts begin to fail at once, the fault is more likely on our side.
//!
//! PURE. Time is a [`Duration`] on a clock that never goes back. A host answers as long as one of its providers does,
//! and its last answer counts until its next turn, however far that is put off. Not its job: asking the canary, and
//! what a verdict is.
//! Invariants: an answer is never doubted; nothing freezes before every host was asked once; without a canary results
//! are doubted for five minutes at most; and an outage that was once found to be real freezes nothing again: its hosts
//! are *known* to fail and have no say until they answer steadily.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    sync::Arc,
    time::Duration,
};

use chrono::{DateTime, Utc};

use catalog::model::HealthStatus;
use provider::CheckOutcome;

use super::state::{HealthMachine, Transition, Trust};

/// Fewer hosts than this say nothing about ourselves.
const MIN_HOSTS: usize = 5;
/// One host that fails alone is no outage of ours, however few others are left that are not known to fail.
const MIN_SUSPECTS: usize = 2;
/// A freeze ends by itself when no more than this part of the hosts that are not known to fail does: far below the half
/// at which it began, so that it does not come and go with one host.
const ENDS_AT: usize = 4;
/// The longest freeze without a canary.
const MAX_FREEZE: Duration = Duration::from_secs(300);
/// A freeze that begins sooner than this after the last one continues it, as to how long it may last.
const CALM: Duration = Duration::from_secs(600);
/// Good results in a row after which a host is no longer known to fail.
const STEADY: u8 = 5;
/// A host that has changed so often between failing and answering within its last twenty results flaps, and has no say
/// either. An outage of our own is two changes.
const FLAPS: u32 = 5;
/// The last twenty results, as changes between them.
const LAST_CHANGES: u32 = (1 << 19) - 1;
/// A new host holds up a freeze no longer than this beyond an interval: one that is checked once a day must not.
const FIRST_TURN: Duration = Duration::from_secs(60);
/// What fails within this time beyond two intervals after a freeze has ended as real, and was not asked meanwhile,
/// belongs to the same outage. More than the longest pause of a failing provider (2 min).
const SETTLES: Duration = Duration::from_secs(150);
/// How much longer than an interval a first failure waits for other hosts: the time that their checks may take.
const MARGIN: Duration = Duration::from_secs(10);
/// Answers within this time are remembered as one.
const GRAIN: Duration = Duration::from_millis(250);
/// Results that are remembered at most: 64 of them a second, over five minutes.
const MAX_TALLIES: usize = 19_200;

/// What changed about our own trustworthiness.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Impaired {
    Began { failing: usize, hosts: usize },
    Ended { reason: &'static str },
}

/// What became of a check's outcome.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Judgement {
    pub change: Option<Impaired>,
    pub trust: Trust,
    /// It failed, and that is held to be our own fault.
    pub disbelieved: bool,
    pub transition: Option<Transition>,
}

/// What is known of one provider.
#[derive(Debug)]
struct Member {
    host: Arc<str>,
    /// Of its last check; none before the first.
    failed: Option<bool>,
    /// Its first failure since its last answer.
    failing_since: Option<Duration>,
}

#[derive(Debug)]
struct Host {
    members: usize,
    /// Members that were asked, and of them those whose last check failed.
    asked: usize,
    failing: usize,
    /// Its failures were believed: it has no say.
    known: bool,
    /// It has answered since they were.
    recovering: bool,
    /// Answers since it failed last.
    steady: u8,
    /// After each result whether it failed, the newest in the lowest bit.
    history: u32,
    since: Duration,
    last_asked: Option<Duration>,
}

/// How a host counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Standing {
    Unasked,
    Sound,
    Suspect,
    /// Known to fail or to flap, or to have done so until lately.
    Known,
}

impl Host {
    const fn fails(&self) -> bool {
        self.asked > 0 && self.failing == self.asked
    }

    /// Its failures are believed from now on, if it fails.
    const fn believe(&mut self) {
        if self.fails() {
            self.known = true;
            self.recovering = false;
        }
    }

    const fn flaps(&self) -> bool {
        ((self.history ^ self.history >> 1) & LAST_CHANGES).count_ones() >= FLAPS
    }

    const fn standing(&self) -> Standing {
        if self.asked == 0 {
            Standing::Unasked
        } else if self.known || self.flaps() {
            Standing::Known
        } else if self.fails() {
            Standing::Suspect
        } else {
            Standing::Sound
        }
    }
}

/// How many answers and first failures there were up to a moment.
#[derive(Debug, Clone, Copy, Default)]
struct Tally {
    at: Duration,
    answers: u64,
    failures: u64,
    /// Of a failure: exact, since others are counted from here.
    closed: bool,
}

/// Whether the results of checks can be believed.
#[derive(Debug)]
pub struct Impairment {
    window: Duration,
    has_canary: bool,
    members: HashMap<Arc<str>, Member>,
    hosts: HashMap<Arc<str>, Host>,
    /// Hosts by standing.
    unasked: HashSet<Arc<str>>,
    sound: usize,
    suspects: usize,
    known: usize,
    /// Suspects, and those known to fail that do so now.
    failing: usize,
    /// The last results, by age; no older than an interval and a bit.
    recent: VecDeque<Tally>,
    total: Tally,
    frozen_since: Option<Duration>,
    /// How long freezes have lasted that this one continues, and when the last of them ended.
    used: Duration,
    ended: Option<Duration>,
    /// Until when those that still failed at the end of a freeze are given time to recover.
    grace: Duration,
    /// Hosts that were not asked during a freeze that ended as real, and until when that counts.
    settling: HashSet<Arc<str>>,
    settles: Duration,
}

impl Impairment {
    /// `window` is the usual interval of checks.
    pub fn new(window: Duration, has_canary: bool) -> Self {
        Self {
            window,
            has_canary,
            members: HashMap::new(),
            hosts: HashMap::new(),
            unasked: HashSet::new(),
            sound: 0,
            suspects: 0,
            known: 0,
            failing: 0,
            recent: VecDeque::new(),
            total: Tally::default(),
            frozen_since: None,
            used: Duration::ZERO,
            ended: None,
            grace: Duration::ZERO,
            settling: HashSet::new(),
            settles: Duration::ZERO,
        }
    }

    pub const fn is_frozen(&self) -> bool {
        self.frozen_since.is_some()
    }

    /// How many hosts fail now, and of how many that were asked.
    pub const fn failing(&self) -> (usize, usize) {
        (self.failing, self.sound + self.suspects + self.known)
    }

    /// A provider that is checked from now on, or at another host. `known_to_fail` is one that was found unhealthy
    /// before a restart.
    pub fn add(&mut self, now: Duration, provider: &Arc<str>, host: &Arc<str>, known_to_fail: bool) {
        if self.members.get(provider).is_some_and(|member| member.host == *host) {
            return;
        }
        self.remove(provider);
        self.members
            .insert(provider.clone(), Member { host: host.clone(), failed: None, failing_since: None });
        self.change(host, Some(now), |host| {
            host.members += 1;
            host.known |= known_to_fail && host.asked == 0;
        });
    }

    /// A provider that is no longer checked.
    pub fn remove(&mut self, provider: &str) {
        let Some(member) = self.members.remove(provider) else { return };
        self.change(&member.host, None, |host| {
            host.members -= 1;
            host.asked -= usize::from(member.failed.is_some());
            host.failing -= usize::from(member.failed == Some(true));
        });
    }

    /// Takes the result of a check: hard and local failures count as failed. To be called before the result is shown
    /// to any machine.
    pub fn observe(&mut self, now: Duration, provider: &str, failed: bool) -> Option<Impaired> {
        let Some(member) = self.members.get_mut(provider) else { return self.tick(now) };
        let (host, before) = (member.host.clone(), member.failed.replace(failed));
        let first = failed && member.failing_since.is_none();
        if failed {
            member.failing_since.get_or_insert(now);
        } else {
            member.failing_since = None;
        }
        self.count(now, failed, first);
        let belongs = self.belongs(now, &host);
        self.change(&host, None, |host| {
            host.last_asked = Some(now);
            host.asked += usize::from(before.is_none());
            host.failing += usize::from(failed);
            host.failing -= usize::from(before == Some(true));
            host.history = host.history << 1 | u32::from(host.fails());
            if host.fails() {
                host.steady = 0;
                if belongs {
                    host.believe();
                }
            } else if !failed {
                host.recovering = true;
                host.steady = host.steady.saturating_add(1);
                host.known &= host.steady < STEADY;
            }
        });
        if !failed {
            self.settling.remove(&host);
        }
        if self.begins(now) {
            let calm = self.ended.is_none_or(|ended| now.saturating_sub(ended) > CALM);
            if calm {
                self.used = Duration::ZERO;
            }
            self.frozen_since = Some(now);
            let (failing, hosts) = self.failing();
            return Some(Impaired::Began { failing, hosts });
        }
        self.tick(now)
    }

    /// Ends a freeze whose time is over, or whose cause is.
    pub fn tick(&mut self, now: Duration) -> Option<Impaired> {
        let since = self.frozen_since?;
        if self.suspects * ENDS_AT <= self.suspects + self.sound {
            self.used += now.saturating_sub(since);
            self.end(now);
            self.grace = now + self.window * 2;
            return Some(Impaired::Ended { reason: "most hosts answer again" });
        }
        if !self.has_canary && self.used + now.saturating_sub(since) >= MAX_FREEZE {
            self.end_as_real(now, since);
            return Some(Impaired::Ended { reason: "it lasted 5 minutes and no canary is set to decide" });
        }
        None
    }

    /// Takes the canary's result: if it answers, our own side works and the failures are real.
    pub fn canary(&mut self, now: Duration, answered: bool) -> Option<Impaired> {
        let since = self.frozen_since.filter(|_| answered)?;
        self.end_as_real(now, since);
        Some(Impaired::Ended { reason: "the canary answers" })
    }

    /// Whether a verdict to worse about this provider would be believed now that a check of it has failed which `began`
    /// then. One that has just begun to fail waits until
    /// more hosts have answered since than have begun to fail, for an interval at most: in an outage of our own it would
    /// be found guilty moments before the freeze.
    fn believes_worse(&self, now: Duration, began: Duration, provider: &str) -> bool {
        if self.is_frozen() {
            return false;
        }
        let Some(member) = self.members.get(provider) else { return true };
        let Some(since) = member.failing_since else { return true };
        let all = self.unasked.len() + self.sound + self.suspects + self.known;
        if all < MIN_HOSTS {
            return true;
        }
        // What was believed once needs no second hearing, unless the host has answered meanwhile.
        if self.hosts.get(&member.host).is_some_and(|host| host.known && !host.recovering) {
            return true;
        }
        // The last ones to recover from an outage of our own.
        if now < self.grace && self.ended.is_some_and(|ended| since <= ended) {
            return false;
        }
        // Only what was seen before the check began proves that our side worked then.
        let (then, began) = (self.tally(since), self.tally(began.saturating_sub(GRAIN)));
        let answers = began.answers.saturating_sub(then.answers);
        let failures = self.total.failures.saturating_sub(then.failures);
        if answers > failures {
            return true;
        }
        let waited = now.saturating_sub(since);
        if waited < self.window + MARGIN.min(self.window) {
            return false;
        }
        // Where a freeze only waits for hosts that were not asked yet, so does this; and so do several that fail while
        // nothing answers, since the others are asked more rarely.
        !(self.most_fail() && self.is_starting(now)) && (answers > 0 || failures == 0 || waited >= MAX_FREEZE)
    }

    /// Takes a check's outcome and shows the provider's machine as much of it as is believed. Where a freeze begins, the
    /// caller lets every machine [forgive](HealthMachine::forgive): what failed moments before waits with the others.
    pub fn judge(
        &mut self,
        (now, wall): (Duration, DateTime<Utc>),
        provider: &str,
        health: &mut HealthMachine,
        outcome: &CheckOutcome,
        took: Duration,
    ) -> Judgement {
        let failed = matches!(outcome, CheckOutcome::Hard { .. } | CheckOutcome::Local { .. });
        let change = self.observe(now, provider, failed);
        if matches!(change, Some(Impaired::Began { .. })) {
            health.forgive();
        }
        let trust = if self.is_frozen() {
            Trust::Frozen
        } else if self.believes_worse(now, now.saturating_sub(took), provider) {
            Trust::Full
        } else {
            Trust::NotWorse
        };
        let transition = health.take(wall, outcome, trust);
        if transition.as_ref().is_some_and(|transition| transition.to == HealthStatus::Unhealthy) {
            self.convicted(provider);
        }
        Judgement { change, trust, disbelieved: failed && trust == Trust::Frozen, transition }
    }

    /// This provider was found unhealthy, and that was believed.
    fn convicted(&mut self, provider: &str) {
        let Some(host) = self.members.get(provider).map(|member| member.host.clone()) else { return };
        self.change(&host, None, Host::believe);
    }

    /// What had been counted by this moment; where that is forgotten, by the first that is not.
    fn tally(&self, at: Duration) -> Tally {
        let index = self.recent.partition_point(|tally| tally.at <= at).saturating_sub(1);
        self.recent.get(index).copied().unwrap_or_default()
    }

    fn begins(&self, now: Duration) -> bool {
        !self.is_frozen() && self.most_fail() && !self.is_starting(now)
    }

    /// Over half of all hosts fail, and over half of those that were not known to.
    const fn most_fail(&self) -> bool {
        let (failing, hosts) = self.failing();
        hosts >= MIN_HOSTS
            && failing * 2 > hosts
            && self.suspects >= MIN_SUSPECTS
            && self.suspects * 2 > self.suspects + self.sound
    }

    /// Whether some host is still to be asked for the first time.
    fn is_starting(&self, now: Duration) -> bool {
        let recent = |host: &Host| now.saturating_sub(host.since) < self.window + FIRST_TURN;
        self.unasked.iter().any(|host| self.hosts.get(host).is_some_and(recent))
    }

    /// Whether a failure of this host is part of the outage that was found to be real last.
    fn belongs(&mut self, now: Duration, host: &str) -> bool {
        if now > self.settles && !self.settling.is_empty() {
            self.settling.clear();
        }
        self.settling.contains(host)
    }

    fn end(&mut self, now: Duration) {
        self.frozen_since = None;
        self.ended = Some(now);
    }

    fn end_as_real(&mut self, now: Duration, since: Duration) {
        self.end(now);
        self.used = Duration::ZERO;
        self.grace = Duration::ZERO;
        self.settles = now + self.window * 2 + SETTLES;
        self.settling.clear();
        let names: Vec<Arc<str>> = self.hosts.keys().cloned().collect();
        for name in names {
            let Some(host) = self.hosts.get(&name) else { continue };
            match host.standing() {
                Standing::Suspect => self.change(&name, None, Host::believe),
                Standing::Sound if host.last_asked.is_none_or(|asked| asked < since) => {
                    self.settling.insert(name);
                }
                Standing::Sound | Standing::Known | Standing::Unasked => {}
            }
        }
    }

    fn count(&mut self, now: Duration, failed: bool, first: bool) {
        self.total.answers += u64::from(!failed);
        self.total.failures += u64::from(first);
        let tally = Tally { at: now, closed: first, ..self.total };
        match self.recent.back_mut() {
            _ if failed && !first => {}
            // Answers that come together are one entry.
            Some(last) if !failed && !last.closed && now.saturating_sub(last.at) < GRAIN => {
                last.answers = tally.answers;
            }
            _ => self.recent.push_back(tally),
        }
        let keeps = ((self.window + MARGIN) * 2).max(MAX_FREEZE);
        while self.recent.len() > MAX_TALLIES
            || self.recent.get(1).is_some_and(|tally| now.saturating_sub(tally.at) > keeps)
        {
            self.recent.pop_front();
        }
    }

    /// Changes a host and keeps the sums; `since` makes one that is not there, and one without members is forgotten.
    fn change(&mut self, name: &Arc<str>, since: Option<Duration>, change: impl FnOnce(&mut Host)) {
        let before = self.hosts.get(name).map(Host::standing);
        self.failing -= usize::from(self.hosts.get(name).is_some_and(Host::fails));
        let host = match (self.hosts.get_mut(name), since) {
            (Some(host), _) => host,
            (None, Some(since)) => self.hosts.entry(name.clone()).or_insert(Host {
                members: 0,
                asked: 0,
                failing: 0,
                known: false,
                recovering: false,
                steady: 0,
                history: 0,
                since,
                last_asked: None,
            }),
            (None, None) => return,
        };
        change(host);
        let after = (host.members > 0).then(|| host.standing());
        self.failing += usize::from(host.members > 0 && host.fails());
        if after.is_none() {
            self.hosts.remove(name);
            self.settling.remove(name);
        }
        if before == after {
            return;
        }
        match before {
            Some(Standing::Unasked) => {
                self.unasked.remove(name);
            }
            Some(Standing::Sound) => self.sound -= 1,
            Some(Standing::Suspect) => self.suspects -= 1,
            Some(Standing::Known) => self.known -= 1,
            None => {}
        }
        match after {
            Some(Standing::Unasked) => {
                self.unasked.insert(name.clone());
            }
            Some(Standing::Sound) => self.sound += 1,
            Some(Standing::Suspect) => self.suspects += 1,
            Some(Standing::Known) => self.known += 1,
            None => {}
        }
    }
}
