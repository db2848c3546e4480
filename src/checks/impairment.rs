//! Suspects ourselves: when over half of all hosts fail at once, the fault is more likely on our side.
//!
//! PURE. While impaired, the caller takes no results into its machines (it calls `hold` on them) and asks the
//! canary, where there is one. Invariant: without a canary, a freeze ends by itself after five minutes, and the
//! same outage does not freeze twice.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
};

use chrono::{DateTime, TimeDelta, Utc};

/// Fewer hosts than this say nothing about ourselves.
const MIN_HOSTS: usize = 5;
/// The longest freeze without a canary.
const MAX_FREEZE: TimeDelta = TimeDelta::minutes(5);

/// What changed about our own trustworthiness.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Impaired {
    Began { failing: usize, hosts: usize },
    Ended { reason: &'static str },
}

/// Whether the results of checks can be believed.
#[derive(Debug)]
pub struct Impairment {
    window: TimeDelta,
    has_canary: bool,
    /// The latest result of each host within the window; true is a failure.
    hosts: HashMap<Arc<str>, (DateTime<Utc>, bool)>,
    /// The same, by age; entries that were overtaken are skipped.
    ages: VecDeque<(DateTime<Utc>, Arc<str>)>,
    failing: usize,
    frozen_since: Option<DateTime<Utc>>,
    /// A freeze has ended while most hosts still failed: the outage is real until it recedes.
    spent: bool,
}

impl Impairment {
    /// `window` is the interval of checks.
    pub fn new(window: std::time::Duration, has_canary: bool) -> Self {
        Self {
            window: TimeDelta::from_std(window).unwrap_or(TimeDelta::MAX),
            has_canary,
            hosts: HashMap::new(),
            ages: VecDeque::new(),
            failing: 0,
            frozen_since: None,
            spent: false,
        }
    }

    pub const fn is_frozen(&self) -> bool {
        self.frozen_since.is_some()
    }

    pub const fn frozen_since(&self) -> Option<DateTime<Utc>> {
        self.frozen_since
    }

    /// Takes the result of a check of one host: hard and local failures count as failed. To be called before the
    /// result is shown to any machine.
    pub fn observe(&mut self, now: DateTime<Utc>, host: &Arc<str>, failed: bool) -> Option<Impaired> {
        self.forget_old(now);
        if let Some((_, was)) = self.hosts.insert(host.clone(), (now, failed)) {
            self.failing -= usize::from(was);
        }
        self.failing += usize::from(failed);
        self.ages.push_back((now, host.clone()));
        // A host that is checked often leaves overtaken entries behind; they may not outgrow the hosts.
        if self.ages.len() > 64 + 8 * self.hosts.len() {
            let hosts = &self.hosts;
            self.ages.retain(|(at, host)| hosts.get(host).is_some_and(|(latest, _)| latest == at));
        }
        let most_fail = self.most_fail();
        self.spent &= most_fail;
        if most_fail && !self.spent && self.frozen_since.is_none() {
            self.frozen_since = Some(now);
            return Some(Impaired::Began { failing: self.failing, hosts: self.hosts.len() });
        }
        self.tick(now)
    }

    /// Ends a freeze whose time is over, or whose cause is.
    pub fn tick(&mut self, now: DateTime<Utc>) -> Option<Impaired> {
        let since = self.frozen_since?;
        if !self.most_fail() && self.hosts.len() >= MIN_HOSTS {
            self.frozen_since = None;
            return Some(Impaired::Ended { reason: "most hosts answer again" });
        }
        if !self.has_canary && now - since >= MAX_FREEZE {
            self.frozen_since = None;
            self.spent = true;
            return Some(Impaired::Ended { reason: "it lasted 5 minutes and no canary is set to decide" });
        }
        None
    }

    /// Takes the canary's result: if it answers, our own side works and the failures are real.
    pub fn canary(&mut self, answered: bool) -> Option<Impaired> {
        if !answered || self.frozen_since.take().is_none() {
            return None;
        }
        self.spent = true;
        Some(Impaired::Ended { reason: "the canary answers" })
    }

    /// A host that is no longer checked.
    pub fn remove(&mut self, host: &str) {
        if let Some((_, failed)) = self.hosts.remove(host) {
            self.failing -= usize::from(failed);
        }
    }

    fn most_fail(&self) -> bool {
        self.hosts.len() >= MIN_HOSTS && self.failing * 2 > self.hosts.len()
    }

    fn forget_old(&mut self, now: DateTime<Utc>) {
        while let Some((at, host)) = self.ages.front() {
            if now - *at <= self.window {
                break;
            }
            if let Some((latest, failed)) = self.hosts.get(host).copied()
                && latest == *at
            {
                self.hosts.remove(host);
                self.failing -= usize::from(failed);
            }
            self.ages.pop_front();
        }
    }
}
