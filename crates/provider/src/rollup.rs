//! Sums of many checks: what is kept of them for weeks.
//!
//! PURE. A roll-up is small, adds up with others, and yields percentiles of latency. Not its job: which span of time it
//! covers. Invariant: a percentile is off by five in a hundred at most, against the latencies in whole milliseconds that
//! went in.

use std::time::Duration;

use crate::CheckOutcome;

/// No check takes longer than its own limit; what does all the same counts as this.
const LONGEST_MS: u64 = 120_000;
/// Each bound is a tenth above the one before, and a millisecond at least: the middle of a class is then within 5 % of
/// everything in it.
const fn next(bound: u64) -> u64 {
    let tenth = bound * 11 / 10;
    if tenth > bound { tenth } else { bound + 1 }
}

/// Classes of latency: one for each millisecond up to 10, then a tenth wider each.
pub const CLASSES: usize = {
    let (mut bound, mut count) = (0, 1);
    while bound < LONGEST_MS {
        bound = next(bound);
        count += 1;
    }
    count
};

/// The largest whole millisecond of each class.
const BOUNDS_MS: [u64; CLASSES] = {
    let mut bounds = [0; CLASSES];
    let mut index = 1;
    while index < CLASSES {
        bounds[index] = next(bounds[index - 1]);
        index += 1;
    }
    bounds
};

/// Upper bounds of the classes of the first layout; one more class held what was above them all.
const FIRST_BOUNDS_MS: [u64; 19] =
    [5, 10, 25, 50, 75, 100, 150, 200, 300, 400, 500, 750, 1000, 1500, 2000, 3000, 5000, 7500, 10_000];
/// Where the present classes begin in what is stored: those of the first layout stand before them, so that rows of
/// either can be added up place by place, and each row says which it is.
const STORED_FROM: usize = FIRST_BOUNDS_MS.len() + 1;

/// Outcomes and latencies of the checks of one provider in one span. Local failures are not in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rollup {
    pub ok: u32,
    pub slow: u32,
    pub soft: u32,
    pub hard: u32,
    pub auth: u32,
    /// Checks that were answered, by class of latency.
    pub latency: [u32; CLASSES],
}

impl Default for Rollup {
    fn default() -> Self {
        Self { ok: 0, slow: 0, soft: 0, hard: 0, auth: 0, latency: [0; CLASSES] }
    }
}

impl Rollup {
    /// Takes one check in.
    pub fn add(&mut self, outcome: &CheckOutcome, took: Duration) {
        let count = match outcome {
            CheckOutcome::Ok => &mut self.ok,
            CheckOutcome::Slow => &mut self.slow,
            CheckOutcome::Soft { .. } => &mut self.soft,
            CheckOutcome::Hard { .. } => &mut self.hard,
            CheckOutcome::Auth { .. } => &mut self.auth,
            CheckOutcome::Local { .. } => return,
        };
        *count = count.saturating_add(1);
        if matches!(outcome, CheckOutcome::Hard { .. }) {
            // How long a failure took says how long we waited, not how fast the provider is.
            return;
        }
        self.count(u64::try_from(took.as_millis()).unwrap_or(u64::MAX), 1);
    }

    fn count(&mut self, ms: u64, more: u32) {
        let class = BOUNDS_MS.partition_point(|bound| *bound < ms).min(CLASSES - 1);
        if let Some(class) = self.latency.get_mut(class) {
            *class = class.saturating_add(more);
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

    /// The latency in milliseconds that the share `quantile` (0 to 1) of the answers did not exceed: the nearest rank,
    /// as the middle of its class. `None` without answers.
    pub fn percentile_ms(&self, quantile: f64) -> Option<u64> {
        let total: u64 = self.latency.iter().copied().map(u64::from).sum();
        if total == 0 {
            return None;
        }
        let rank = ((quantile.clamp(0.0, 1.0) * total as f64).ceil() as u64).clamp(1, total);
        let mut below = 0_u64;
        let mut floor = None;
        for (count, bound) in self.latency.iter().copied().map(u64::from).zip(BOUNDS_MS) {
            below += count;
            if below >= rank {
                return Some(middle(floor.map_or(0, |floor: u64| floor + 1), bound));
            }
            floor = Some(bound);
        }
        floor
    }

    /// The classes as they are stored: none for an empty one, which costs a bit, and nothing after the last that counts.
    pub fn stored(&self) -> Vec<Option<i32>> {
        let used = self.latency.iter().rposition(|count| *count > 0).map_or(0, |last| last + 1);
        let count = |count: &u32| (*count > 0).then(|| i32::try_from(*count).unwrap_or(i32::MAX));
        let present = self.latency.iter().take(used).map(count);
        std::iter::repeat_n(None, if used == 0 { 0 } else { STORED_FROM }).chain(present).collect()
    }

    /// Takes in classes as they are stored, in either layout or both.
    pub fn take_stored(&mut self, stored: &[Option<i32>]) {
        let count =
            |count: &Option<i32>| count.and_then(|count| u32::try_from(count).ok()).unwrap_or_default();
        for (mine, more) in self.latency.iter_mut().zip(stored.iter().skip(STORED_FROM)) {
            *mine = mine.saturating_add(count(more));
        }
        let mut floor = 0;
        for (index, first) in stored.iter().take(STORED_FROM).enumerate() {
            let bound = FIRST_BOUNDS_MS.get(index).copied();
            self.spread(floor, bound.unwrap_or(floor + 1), count(first));
            floor = bound.unwrap_or(floor);
        }
    }

    /// Counts answers of which only the class of the first layout is known: evenly over the present classes within.
    fn spread(&mut self, floor: u64, bound: u64, count: u32) {
        let (mut done, mut from) = (0_u64, floor);
        while done < u64::from(count) && from < bound {
            let class = BOUNDS_MS.partition_point(|bound| *bound <= from);
            let upto = BOUNDS_MS.get(class).copied().unwrap_or(bound).min(bound);
            let due = u64::from(count) * (upto - floor) / (bound - floor).max(1);
            self.count(upto, u32::try_from(due - done).unwrap_or(u32::MAX));
            (done, from) = (due, upto);
        }
    }
}

/// What is least off, in proportion, from both ends of a class, in whole milliseconds.
const fn middle(first: u64, last: u64) -> u64 {
    if last == 0 { 0 } else { (2 * first * last + (first + last) / 2) / (first + last) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn of(latencies_ms: &[u64]) -> Rollup {
        let mut rollup = Rollup::default();
        for ms in latencies_ms {
            rollup.add(&CheckOutcome::Ok, Duration::from_millis(*ms));
        }
        rollup
    }

    fn off(found: u64, exact: u64) -> f64 {
        (found as f64 - exact as f64).abs() / (exact as f64).max(1.0)
    }

    #[test]
    fn every_latency_is_told_within_five_percent() {
        assert!((60..160).contains(&CLASSES), "{CLASSES}");
        for ms in 0..=LONGEST_MS {
            let found = of(&[ms]).percentile_ms(0.5).unwrap();
            assert!(off(found, ms) <= 0.05, "{ms} is shown as {found}");
        }
        assert_eq!(of(&[]).percentile_ms(0.5), None);
        assert_eq!(of(&[3_600_000]).percentile_ms(0.5).map(|ms| ms > 110_000), Some(true));
        // The newcomer's two.
        assert!(off(of(&[3000; 40]).percentile_ms(0.95).unwrap(), 3000) <= 0.05);
        assert!(off(of(&[12; 40]).percentile_ms(0.5).unwrap(), 12) <= 0.05);
    }

    proptest! {
        #[test]
        fn percentiles_are_those_of_the_latencies(
            mut all in proptest::collection::vec(prop_oneof![0u64..40, 0u64..2000, 0u64..120_000], 1..300),
            quantile in 0.0f64..=1.0
        ) {
            let rollup = of(&all);
            all.sort_unstable();
            let rank = ((quantile * all.len() as f64).ceil() as usize).clamp(1, all.len());
            let (found, exact) = (rollup.percentile_ms(quantile).unwrap(), all[rank - 1]);
            prop_assert!(off(found, exact) <= 0.05, "{found} for {exact}");
            // What was stored comes back.
            let mut back = Rollup { ok: rollup.ok, ..Rollup::default() };
            back.take_stored(&rollup.stored());
            prop_assert_eq!(back, rollup);
        }

        #[test]
        fn rows_of_the_first_layout_are_read(
            counts in proptest::collection::vec(0i32..500, 0..=20), more in proptest::collection::vec(0u64..9000, 0..20)
        ) {
            let new = of(&more);
            let mut stored = new.stored();
            stored.resize(stored.len().max(counts.len()), None);
            for (place, count) in stored.iter_mut().zip(&counts) {
                *place = Some(*count);
            }
            let mut read = Rollup::default();
            read.take_stored(&stored);
            let total: u32 = read.latency.iter().sum();
            prop_assert_eq!(i64::from(total), counts.iter().map(|it| i64::from(*it)).sum::<i64>() + more.len() as i64);
            // Where all were in one class, so is what is shown.
            for (index, bound) in FIRST_BOUNDS_MS.iter().enumerate() {
                let mut one = vec![None; STORED_FROM];
                one[index] = Some(100);
                let mut read = Rollup::default();
                read.take_stored(&one);
                let floor = if index == 0 { 0 } else { FIRST_BOUNDS_MS[index - 1] };
                let shown = read.percentile_ms(0.5).unwrap();
                prop_assert!((floor..=bound * 21 / 20).contains(&shown), "{floor}..{bound}: {shown}");
            }
        }
    }

    #[test]
    fn what_was_merged_counts_twice_and_failures_have_no_latency() {
        let mut one = of(&[1, 20, 300]);
        let hard =
            CheckOutcome::Hard { failure: crate::Failure::Timeout, reason: String::new(), retry_after: None };
        one.add(&hard, Duration::from_secs(10));
        one.add(&CheckOutcome::Local { reason: String::new() }, Duration::ZERO);
        let mut two = one.clone();
        two.merge(&one);
        assert_eq!((two.ok, two.hard, two.total()), (6, 2, 8));
        assert_eq!(two.latency.iter().sum::<u32>(), 6);
        assert!(Rollup::default().is_empty());
    }
}
