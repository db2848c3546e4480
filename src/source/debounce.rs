//! When a burst of file events is worth a look.
//!
//! PURE but for the clock's type: every method takes the time. An event is one of three things: *complete*
//! (closed after writing, renamed, removed), *being written* (a process still has it open), or *everything*
//! (the kernel lost track, or a look was asked for). What is complete is announced after a moment of quiet; what is
//! being written is held until it is complete, so that half a file is never taken for a whole one.
//!
//! Invariants: no stream of events, however long, delays what is complete by more than [`PATIENCE`], nor
//! settling by more than [`RESTLESS_SETTLES`] settle times; memory is bounded by [`MAX_PATHS`] and
//! [`MAX_WRITING`].

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    time::{Duration, Instant},
};

use super::{Activation, LookScope};

/// A tool that writes several files does so within less; an operator does not notice it.
const QUIET: Duration = Duration::from_millis(2);

/// The longest wait of a complete file for others that keep coming.
const PATIENCE: Duration = Duration::from_millis(20);

/// A writer that has neither written nor closed for this long is taken to be done (or dead).
pub const WRITER_QUIET: Duration = Duration::from_secs(1);

/// More paths than this cost as much as a look at everything, which needs no list.
const MAX_PATHS: usize = 1000;

/// More files than the directory may hold cannot be in writing.
const MAX_WRITING: usize = 100_000;

/// After this many settle times without rest, what is missing is believed to be removed all the same: no
/// move of a file takes that long, and a file that is rewritten for ever must not stop pruning for ever.
const RESTLESS_SETTLES: u32 = 20;

/// Something that can change by itself.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum WatchedItem {
    /// Relative to the manifest directory.
    Manifest(PathBuf),
    /// As the secret was asked to be watched.
    Secret(PathBuf),
}

/// Collected paths, or "too many to list".
#[derive(Debug, Default)]
struct Places {
    everything: bool,
    items: BTreeSet<WatchedItem>,
}

impl Places {
    fn add(&mut self, item: WatchedItem) {
        if !self.everything {
            self.items.insert(item);
            if self.items.len() > MAX_PATHS {
                self.add_everything();
            }
        }
    }

    fn add_everything(&mut self) {
        self.everything = true;
        self.items.clear();
    }

    fn absorb(&mut self, other: Self) {
        if other.everything {
            self.add_everything();
        }
        other.items.into_iter().for_each(|item| self.add(item));
    }

    fn look(&self) -> LookScope {
        if self.everything {
            return LookScope::Everything;
        }
        let (mut manifests, mut secrets) = (BTreeSet::new(), BTreeSet::new());
        for item in &self.items {
            match item {
                WatchedItem::Manifest(path) => manifests.insert(path.clone()),
                WatchedItem::Secret(path) => secrets.insert(path.clone()),
            };
        }
        LookScope::Paths { manifests, secrets }
    }
}

/// The state of the current burst.
#[derive(Debug)]
pub struct Debounce {
    settle: Duration,
    /// Complete and not yet announced.
    ready: Places,
    /// First and last moment at which something became ready.
    burst: Option<(Instant, Instant)>,
    /// Until when each file in writing is waited for.
    writing: BTreeMap<WatchedItem, Instant>,
    /// Announced since things last settled.
    recent: Places,
    /// First and last event since things last settled.
    restless: Option<(Instant, Instant)>,
}

impl Debounce {
    pub fn new(settle: Duration) -> Self {
        Self {
            settle,
            ready: Places::default(),
            burst: None,
            writing: BTreeMap::new(),
            recent: Places::default(),
            restless: None,
        }
    }

    /// The item is whole (or gone).
    pub fn complete(&mut self, item: WatchedItem, now: Instant) {
        self.writing.remove(&item);
        self.ready.add(item);
        self.ready_at(now);
    }

    /// The item is being written; if nothing more is heard, it is taken to be whole after `quiet`.
    pub fn writing(&mut self, item: WatchedItem, now: Instant, quiet: Duration) {
        if self.writing.len() < MAX_WRITING || self.writing.contains_key(&item) {
            self.writing.insert(item, now + quiet);
            self.event(now);
        } else {
            self.complete(item, now);
        }
    }

    pub fn is_writing(&self, item: &WatchedItem) -> bool {
        self.writing.contains_key(item)
    }

    /// Nothing is known about where.
    pub fn everything(&mut self, now: Instant) {
        self.ready.add_everything();
        self.ready_at(now);
    }

    /// As [`Self::everything`], without waiting for quiet.
    pub fn everything_now(&mut self, now: Instant) {
        self.everything(now);
        if let (Some((first, _)), Some(past)) = (&mut self.burst, now.checked_sub(PATIENCE)) {
            *first = (*first).min(past);
        }
    }

    /// Something else is going on (a checkout): it is too early to settle.
    pub fn event(&mut self, now: Instant) {
        self.restless = Some(self.restless.map_or((now, now), |(first, _)| (first, now)));
    }

    fn ready_at(&mut self, now: Instant) {
        self.burst = Some(self.burst.map_or((now, now), |(first, _)| (first, now)));
        self.event(now);
    }

    /// Files that were waited for long enough become ready.
    fn release(&mut self, now: Instant) {
        let due: Vec<WatchedItem> =
            self.writing.iter().filter(|(_, until)| **until <= now).map(|(item, _)| item.clone()).collect();
        due.into_iter().for_each(|item| self.complete(item, now));
    }

    fn flush_at(&self) -> Option<Instant> {
        self.burst.map(|(first, last)| (last + QUIET).min(first + PATIENCE))
    }

    fn settle_at(&self) -> Option<Instant> {
        self.restless.map(|(first, last)| {
            (last + self.settle).min(first + self.settle.saturating_mul(RESTLESS_SETTLES))
        })
    }

    /// When [`Self::take`] next has something to give, if nothing else happens.
    pub fn deadline(&self) -> Option<Instant> {
        [self.flush_at(), self.settle_at(), self.writing.values().min().copied()].into_iter().flatten().min()
    }

    /// Whether [`Self::take`] would give something now.
    pub fn is_due(&mut self, now: Instant) -> bool {
        self.release(now);
        [self.flush_at(), self.settle_at()].into_iter().flatten().any(|at| at <= now)
    }

    /// What is worth announcing now.
    pub fn take(&mut self, now: Instant) -> Option<Activation> {
        if !self.is_due(now) {
            return None;
        }
        let settled = self.settle_at().is_some_and(|at| at <= now);
        self.burst = None;
        let ready = std::mem::take(&mut self.ready);
        let look = if settled {
            self.recent.absorb(ready);
            self.restless = None;
            std::mem::take(&mut self.recent).look()
        } else {
            let look = ready.look();
            self.recent.absorb(ready);
            look
        };
        let unfinished = self.writing.keys().filter_map(|item| match item {
            WatchedItem::Manifest(path) => Some(path.clone()),
            WatchedItem::Secret(_) => None,
        });
        Some(Activation { look, settled, unfinished: unfinished.collect() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SETTLE: Duration = Duration::from_millis(1500);

    fn ms(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    fn manifest(path: &str) -> WatchedItem {
        WatchedItem::Manifest(path.into())
    }

    /// What to do, and when (milliseconds since the start).
    enum Step {
        Complete(&'static str),
        Write(&'static str),
        Everything,
        Poke,
    }

    /// Plays the steps in order and lists the activations up to the end, as `time look settled unfinished`.
    fn check(steps: &[(u64, Step)], until: u64, expected: &[&str]) {
        let start = Instant::now() + Duration::from_secs(3600);
        let mut debounce = Debounce::new(SETTLE);
        let mut seen = Vec::new();
        let mut steps = steps.iter().peekable();
        for at in 0..=until {
            let now = start + ms(at);
            while let Some((_, step)) = steps.next_if(|(when, _)| *when == at) {
                match step {
                    Complete(path) => debounce.complete(manifest(path), now),
                    Write(path) => debounce.writing(manifest(path), now, WRITER_QUIET),
                    Everything => debounce.everything(now),
                    Poke => debounce.everything_now(now),
                }
            }
            while let Some(activation) = debounce.take(now) {
                let look = match &activation.look {
                    LookScope::Everything => "*".to_owned(),
                    LookScope::Paths { manifests, .. } => join(manifests),
                };
                let settled = if activation.settled { " settled" } else { "" };
                let unfinished = match join(&activation.unfinished) {
                    paths if paths.is_empty() => paths,
                    paths => format!(" unfinished {paths}"),
                };
                seen.push(format!("{at} {look}{settled}{unfinished}"));
            }
        }
        assert_eq!(seen, expected);
    }

    fn join(paths: &BTreeSet<PathBuf>) -> String {
        paths.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(",")
    }

    use Step::{Complete, Everything, Poke, Write};

    #[test]
    fn a_complete_file_is_announced_after_quiet_and_again_when_settled() {
        check(&[(0, Complete("a"))], 4000, &["2 a", "1500 a settled"]);
        check(&[(0, Complete("a")), (1, Complete("b"))], 4000, &["3 a,b", "1501 a,b settled"]);
    }

    #[test]
    fn a_file_in_writing_is_held_until_it_is_closed() {
        check(&[(0, Write("a")), (500, Write("a")), (900, Complete("a"))], 900 + 1499, &["902 a"]);
    }

    #[test]
    fn a_writer_that_never_closes_is_waited_for_one_second() {
        check(&[(0, Write("a")), (500, Write("a"))], 2000, &["1502 a"]);
    }

    #[test]
    fn a_file_in_writing_holds_nobody_else_back() {
        let mut steps: Vec<_> = (0..300).map(|at| (at, Write("slow"))).collect();
        steps.insert(100, (99, Complete("fast")));
        check(&steps, 310, &["101 fast unfinished slow"]);
    }

    #[test]
    fn a_stream_of_complete_files_is_announced_every_20_ms() {
        let steps: Vec<_> = (0..50).map(|at| (at, Complete("a"))).collect();
        check(&steps, 60, &["20 a", "41 a", "51 a"]);
    }

    #[test]
    fn restlessness_delays_settling_only_so_long() {
        let steps: Vec<_> = (0..40_000).step_by(1000).map(|at| (at, Complete("a"))).collect();
        let start = Instant::now();
        let mut debounce = Debounce::new(SETTLE);
        let mut settled = Vec::new();
        for (at, _) in &steps {
            debounce.complete(manifest("a"), start + ms(*at));
            for wait in [2, 999] {
                if debounce.take(start + ms(at + wait)).is_some_and(|activation| activation.settled) {
                    settled.push(at + wait);
                }
            }
        }
        assert_eq!(settled, [30_002]);
    }

    #[test]
    fn everything_swallows_the_list_and_a_poke_waits_for_nobody() {
        check(&[(0, Complete("a")), (1, Everything)], 1600, &["3 *", "1501 * settled"]);
        check(&[(5, Poke)], 1600, &["5 *", "1505 * settled"]);
    }

    #[test]
    fn more_than_a_thousand_paths_are_everything() {
        let now = Instant::now();
        let mut debounce = Debounce::new(SETTLE);
        for index in 0..=MAX_PATHS {
            debounce.complete(manifest(&index.to_string()), now);
        }
        assert_eq!(
            debounce.take(now + PATIENCE).map(|activation| activation.look),
            Some(LookScope::Everything)
        );
    }
}
