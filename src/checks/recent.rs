//! The last checks of a provider, one by one, for who wants to see them; sums of all are kept elsewhere.
//!
//! PURE. Invariant: at most [`KEPT`] are remembered, and equal reasons in a row share one text.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use chrono::{DateTime, Utc};
use provider::CheckOutcome;

/// Half an hour at the usual interval. A check takes about 40 bytes: 12 MB for 5,000 providers.
const KEPT: usize = 60;

/// One check that has ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecentCheck {
    pub at: DateTime<Utc>,
    /// `ok`, `slow`, `soft`, `hard`, `auth` or `local`.
    pub outcome: &'static str,
    pub took: Duration,
    /// Why it was not ok.
    pub reason: Option<Arc<str>>,
}

/// The last checks, the oldest first.
#[derive(Debug, Clone, Default)]
pub struct RecentChecks(VecDeque<RecentCheck>);

impl RecentChecks {
    /// Takes in one that ended just now.
    pub fn add(&mut self, at: DateTime<Utc>, outcome: &CheckOutcome, took: Duration) {
        let reason = match outcome {
            CheckOutcome::Ok | CheckOutcome::Slow => None,
            CheckOutcome::Soft { reason, .. }
            | CheckOutcome::Hard { reason, .. }
            | CheckOutcome::Auth { reason }
            | CheckOutcome::Local { reason } => Some(self.text(reason)),
        };
        if self.0.len() >= KEPT {
            self.0.pop_front();
        }
        self.0.push_back(RecentCheck { at, outcome: outcome.word(), took, reason });
    }

    fn text(&self, reason: &str) -> Arc<str> {
        let last = self.0.back().and_then(|check| check.reason.clone());
        last.filter(|last| **last == *reason).unwrap_or_else(|| reason.into())
    }

    pub fn iter(&self) -> impl Iterator<Item = &RecentCheck> {
        self.0.iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_last_are_kept_and_reasons_are_shared() {
        let mut recent = RecentChecks::default();
        let at = |second: i64| DateTime::from_timestamp(second, 0).unwrap();
        let auth = || CheckOutcome::Auth { reason: "refused".into() };
        recent.add(at(0), &CheckOutcome::Ok, Duration::from_millis(5));
        for second in 1..=KEPT as i64 {
            recent.add(at(second), &auth(), Duration::from_millis(7));
        }
        let all: Vec<_> = recent.iter().collect();
        assert_eq!((all.len(), all[0].at), (KEPT, at(1)));
        let texts: Vec<_> = all.iter().map(|it| it.reason.clone().unwrap()).collect();
        assert!(texts.windows(2).all(|two| Arc::ptr_eq(&two[0], &two[1])));
        recent.add(at(99), &CheckOutcome::Slow, Duration::from_secs(4));
        let last = recent.iter().last().unwrap();
        assert_eq!((last.outcome, &last.reason), ("slow", &None));
    }
}
