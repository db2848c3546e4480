//! Sums of many checks: what is kept of them for weeks.
//!
//! PURE. A roll-up is small, adds up with others, and yields percentiles of latency as finely as its bounds are.
//! Not its job: which span of time it covers.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::Outcome;

/// Upper bounds of latency in milliseconds; the last class holds what is above them all. Fine where people look
/// (50 ms to 1 s), coarse where only "too slow" counts.
pub const BOUNDS_MS: [u64; 19] =
    [5, 10, 25, 50, 75, 100, 150, 200, 300, 400, 500, 750, 1000, 1500, 2000, 3000, 5000, 7500, 10_000];
/// Classes of latency.
pub const CLASSES: usize = BOUNDS_MS.len() + 1;

/// Outcomes and latencies of the checks of one provider in one span. Local failures are not in it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rollup {
    pub ok: u32,
    pub slow: u32,
    pub soft: u32,
    pub hard: u32,
    pub auth: u32,
    /// Checks that were answered, by class of latency.
    pub latency: [u32; CLASSES],
}

impl Rollup {
    /// Takes one check in.
    pub fn add(&mut self, outcome: &Outcome, took: Duration) {
        let count = match outcome {
            Outcome::Ok => &mut self.ok,
            Outcome::Slow => &mut self.slow,
            Outcome::Soft { .. } => &mut self.soft,
            Outcome::Hard { .. } => &mut self.hard,
            Outcome::Auth { .. } => &mut self.auth,
            Outcome::Local { .. } => return,
        };
        *count = count.saturating_add(1);
        if matches!(outcome, Outcome::Hard { .. }) {
            // How long a failure took says how long we waited, not how fast the provider is.
            return;
        }
        let took = u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
        let class = BOUNDS_MS.partition_point(|bound| *bound < took);
        if let Some(class) = self.latency.get_mut(class) {
            *class = class.saturating_add(1);
        }
    }

    pub fn merge(&mut self, other: &Self) {
        for (mine, more) in [
            (&mut self.ok, other.ok),
            (&mut self.slow, other.slow),
            (&mut self.soft, other.soft),
            (&mut self.hard, other.hard),
            (&mut self.auth, other.auth),
        ] {
            *mine = mine.saturating_add(more);
        }
        for (mine, more) in self.latency.iter_mut().zip(other.latency) {
            *mine = mine.saturating_add(more);
        }
    }

    pub fn is_empty(&self) -> bool {
        self.total() == 0
    }

    /// All checks that counted.
    pub fn total(&self) -> u64 {
        [self.ok, self.slow, self.soft, self.hard, self.auth].into_iter().map(u64::from).sum()
    }

    /// The latency in milliseconds below which the share `quantile` (0 to 1) of the answers stayed; linear within
    /// a class. `None` without answers.
    pub fn percentile_ms(&self, quantile: f64) -> Option<u64> {
        let total: u64 = self.latency.iter().copied().map(u64::from).sum();
        if total == 0 {
            return None;
        }
        let wanted = quantile.clamp(0.0, 1.0) * total as f64;
        let mut below = 0_u64;
        let mut floor = 0_u64;
        for (index, count) in self.latency.iter().copied().map(u64::from).enumerate() {
            let ceiling = BOUNDS_MS.get(index).copied().unwrap_or(floor);
            if count > 0 && (below + count) as f64 >= wanted {
                let share = ((wanted - below as f64) / count as f64).clamp(0.0, 1.0);
                return Some(floor + ((ceiling - floor) as f64 * share).round() as u64);
            }
            below += count;
            floor = ceiling;
        }
        Some(floor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(latencies_ms: &[u64]) -> Rollup {
        let mut rollup = Rollup::default();
        for ms in latencies_ms {
            rollup.add(&Outcome::Ok, Duration::from_millis(*ms));
        }
        rollup
    }

    #[test]
    fn percentiles_lie_within_the_class() {
        #[track_caller]
        fn check(latencies_ms: &[u64], quantile: f64, expected: Option<u64>) {
            assert_eq!(of(latencies_ms).percentile_ms(quantile), expected, "{latencies_ms:?} at {quantile}");
        }
        check(&[], 0.5, None);
        check(&[5], 1.0, Some(5));
        check(&[5], 0.0, Some(0));
        check(&[80; 100], 0.5, Some(88));
        check(&[1, 1, 1, 9000], 0.5, Some(3));
        check(&[1, 1, 1, 9000], 0.95, Some(9500));
        check(&[60_000], 0.5, Some(10_000));
    }

    #[test]
    fn what_was_merged_counts_twice_and_failures_have_no_latency() {
        let mut one = of(&[1, 20, 300]);
        let hard =
            Outcome::Hard { failure: crate::Failure::Timeout, reason: String::new(), retry_after: None };
        one.add(&hard, Duration::from_secs(10));
        one.add(&Outcome::Local { reason: String::new() }, Duration::ZERO);
        let mut two = one.clone();
        two.merge(&one);
        assert_eq!((two.ok, two.hard, two.total()), (6, 2, 8));
        assert_eq!(two.latency.iter().sum::<u32>(), 6);
        assert!(Rollup::default().is_empty());
    }
}
