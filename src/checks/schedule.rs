//! Whose turn it is: every provider once per interval, evenly spread, gently to each origin.
//!
//! PURE. Time is a [`Duration`] on a clock that never goes back; the caller runs what it is handed and reports
//! the end. Invariants: no two jobs of one provider at once; never more in flight, or per second, than the caps
//! say; and within one origin the longest overdue goes first, so that where a cap does not fit the interval, the
//! interval stretches for all of that origin alike.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
    time::Duration,
};

use chrono::{DateTime, Utc};

/// How far a check may be moved, so that providers of equal interval do not march in step.
const JITTER: f64 = 0.05;

/// What may run at once.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Caps {
    /// To one origin (scheme, host, port).
    pub origin_in_flight: usize,
    /// Starts to one origin; 0 is no limit.
    pub origin_per_second: f64,
    pub total: usize,
    /// Of `total`, for providers that are failing. An outage makes checks last as long as they may; this keeps
    /// it, and the fast re-checks it causes, from taking the turns of all that work.
    pub suspects: usize,
    /// Beside `total`, for turns that have already taken long; a quarter of it is kept for those that an outage
    /// catches unawares.
    pub lingering: usize,
}

impl Default for Caps {
    fn default() -> Self {
        Self { origin_in_flight: 4, origin_per_second: 20.0, total: 256, suspects: 128, lingering: 2048 }
    }
}

/// What is to be done for a provider.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Job {
    Check,
    KeyTest,
}

/// A job whose turn has come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CheckTurn {
    pub provider: Arc<str>,
    pub job: Job,
    /// How long after it was due.
    pub lag: Duration,
}

/// What to do now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NextTurn {
    Run(CheckTurn),
    /// Nothing before this moment, unless something ends or changes.
    At(Duration),
    /// Nothing until something ends or changes.
    Wait,
}

/// When a provider's jobs are due; `None` is never.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Dues {
    pub check: Option<Duration>,
    pub key_test: Option<Duration>,
    /// It is failing: its turns come out of the smaller share.
    pub suspect: bool,
}

impl Dues {
    fn first(self) -> Option<(Duration, Job)> {
        let check = self.check.map(|due| (due, Job::Check));
        let test = self.key_test.map(|due| (due, Job::KeyTest));
        check.into_iter().chain(test).min()
    }
}

#[derive(Debug)]
struct Entry {
    origin: Arc<str>,
    dues: Dues,
    /// Whether it takes a turn now, and out of which share.
    running: Option<Share>,
}

/// Which cap a running turn counts against.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Share {
    Ordinary,
    Suspect,
    Lingering,
}

#[derive(Debug, Default)]
struct Origin {
    /// Waiting providers by due time: the ordinary, the suspects.
    waiting: [BTreeSet<(Duration, Arc<str>)>; 2],
    in_flight: usize,
    /// Before this nothing may start, for the rate.
    not_before: Duration,
    /// Its places in the index.
    indexed: [Option<Duration>; 2],
    providers: usize,
}

/// All providers and their turns.
#[derive(Debug)]
pub struct TurnSchedule {
    caps: Caps,
    gap: Duration,
    entries: HashMap<Arc<str>, Entry>,
    origins: HashMap<Arc<str>, Origin>,
    /// Origins that could start something, by the moment from which they could; one index per share.
    index: [BTreeSet<(Duration, Arc<str>)>; 2],
    in_flight: usize,
    suspects_in_flight: usize,
    lingering: usize,
}

impl TurnSchedule {
    pub fn new(caps: Caps) -> Self {
        let gap = if caps.origin_per_second > 0.0 && caps.origin_per_second.is_finite() {
            Duration::from_secs_f64((1.0 / caps.origin_per_second).min(3600.0))
        } else {
            Duration::ZERO
        };
        Self {
            caps,
            gap,
            entries: HashMap::new(),
            origins: HashMap::new(),
            index: Default::default(),
            in_flight: 0,
            suspects_in_flight: 0,
            lingering: 0,
        }
    }

    pub fn len(&self) -> usize {
        self.entries.len()
    }

    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Turns that are being taken, lingering ones included.
    pub const fn in_flight(&self) -> usize {
        self.in_flight + self.lingering
    }

    pub fn dues(&self, provider: &str) -> Option<Dues> {
        self.entries.get(provider).map(|entry| entry.dues)
    }

    /// Adds a provider or changes its dues and origin. A running turn goes on; the new dues count after it.
    pub fn set(&mut self, provider: &Arc<str>, origin: &Arc<str>, dues: Dues) {
        let running = self.entries.get(provider).and_then(|entry| entry.running);
        if running.is_some() && self.entries.get(provider).is_some_and(|entry| entry.origin == *origin) {
            if let Some(entry) = self.entries.get_mut(provider) {
                entry.dues = dues;
            }
            return;
        }
        self.remove(provider);
        self.entries.insert(provider.clone(), Entry { origin: origin.clone(), dues, running: None });
        self.origins.entry(origin.clone()).or_default().providers += 1;
        self.enqueue(provider);
    }

    /// Forgets a provider; a turn that it still takes is counted as ended.
    pub fn remove(&mut self, provider: &str) {
        self.dequeue(provider);
        let Some(entry) = self.entries.remove(provider) else { return };
        if let Some(share) = entry.running {
            self.release(&entry.origin, share);
        }
        if let Some(origin) = self.origins.get_mut(&entry.origin) {
            origin.providers -= 1;
            if origin.providers == 0 && origin.in_flight == 0 {
                self.unindex(&entry.origin);
                self.origins.remove(&entry.origin);
                return;
            }
        }
        self.reindex(&entry.origin);
    }

    /// Hands out the next turn, if one may be taken now. Every turn must be given back with [`done`](Self::done).
    pub fn next(&mut self, now: Duration) -> NextTurn {
        if self.in_flight >= self.caps.total {
            return NextTurn::Wait;
        }
        let open = [true, self.suspects_in_flight < self.caps.suspects];
        let first = (0..2)
            .filter(|share| open[*share])
            .filter_map(|share| {
                self.index[share].first().map(|(ready, origin)| (*ready, share, origin.clone()))
            })
            .min();
        let Some((ready, share, origin)) = first else { return NextTurn::Wait };
        if ready > now {
            return NextTurn::At(ready);
        }
        let found = self.origins.get_mut(&origin).and_then(|found| {
            let (due, provider) = found.waiting[share].pop_first()?;
            found.in_flight += 1;
            found.not_before = now + self.gap;
            Some((due, provider))
        });
        self.reindex(&origin);
        let Some((due, provider)) = found else { return NextTurn::Wait };
        self.in_flight += 1;
        self.suspects_in_flight += share;
        let mut job = Job::Check;
        if let Some(entry) = self.entries.get_mut(&provider) {
            entry.running = Some(if share == 0 { Share::Ordinary } else { Share::Suspect });
            if let Some((_, first)) = entry.dues.first() {
                job = first;
            }
            // It is due again when the caller says so.
            match job {
                Job::Check => entry.dues.check = None,
                Job::KeyTest => entry.dues.key_test = None,
            }
        }
        NextTurn::Run(CheckTurn { provider, job, lag: now.saturating_sub(due) })
    }

    /// Notes that a turn has taken long already (say, 1 s). It then makes room for others, as long as there is room
    /// for lingering ones; its origin stays occupied.
    pub fn linger(&mut self, provider: &str) {
        let Some(entry) = self.entries.get_mut(provider) else { return };
        let room = match entry.running {
            Some(Share::Ordinary) => self.caps.lingering,
            // Some room is left for those that the next outage hits.
            Some(Share::Suspect) => self.caps.lingering / 4 * 3,
            Some(Share::Lingering) | None => return,
        };
        if self.lingering >= room {
            return;
        }
        self.suspects_in_flight -= usize::from(entry.running == Some(Share::Suspect));
        entry.running = Some(Share::Lingering);
        self.in_flight -= 1;
        self.lingering += 1;
    }

    /// Ends a turn. `due` is when this job comes next (`None`: never), unless it was set again meanwhile.
    pub fn done(&mut self, provider: &str, job: Job, due: Option<Duration>, suspect: bool) {
        let Some(entry) = self.entries.get_mut(provider) else { return };
        let Some(share) = entry.running.take() else { return };
        let place = match job {
            Job::Check => &mut entry.dues.check,
            Job::KeyTest => &mut entry.dues.key_test,
        };
        *place = (*place).or(due);
        entry.dues.suspect = suspect;
        let origin = entry.origin.clone();
        self.release(&origin, share);
        if let Some((name, _)) = self.entries.get_key_value(provider) {
            let name = name.clone();
            self.enqueue(&name);
        }
        self.reindex(&origin);
    }

    /// How long the longest overdue provider has been waiting.
    pub fn lag(&self, now: Duration) -> Duration {
        let firsts =
            self.origins.values().flat_map(|origin| origin.waiting.iter().filter_map(BTreeSet::first));
        firsts.map(|(due, _)| now.saturating_sub(*due)).max().unwrap_or_default()
    }

    /// The shortest interval that the rate cap leaves to each provider of an origin.
    pub fn stretched(&self, origin: &str, interval: Duration) -> Duration {
        let providers = self.origins.get(origin).map_or(0, |origin| origin.providers);
        interval.max(self.gap.saturating_mul(u32::try_from(providers).unwrap_or(u32::MAX)))
    }

    fn release(&mut self, origin: &Arc<str>, share: Share) {
        match share {
            Share::Lingering => self.lingering -= 1,
            Share::Ordinary => self.in_flight -= 1,
            Share::Suspect => {
                self.in_flight -= 1;
                self.suspects_in_flight -= 1;
            }
        }
        if let Some(origin) = self.origins.get_mut(origin) {
            origin.in_flight = origin.in_flight.saturating_sub(1);
        }
    }

    fn enqueue(&mut self, provider: &Arc<str>) {
        let Some(entry) = self.entries.get(provider).filter(|entry| entry.running.is_none()) else { return };
        let origin = entry.origin.clone();
        if let (Some((due, _)), Some(found)) = (entry.dues.first(), self.origins.get_mut(&origin)) {
            found.waiting[usize::from(entry.dues.suspect)].insert((due, provider.clone()));
        }
        self.reindex(&origin);
    }

    fn dequeue(&mut self, provider: &str) {
        let Some((name, entry)) = self.entries.get_key_value(provider) else { return };
        if entry.running.is_none()
            && let (Some((due, _)), Some(found)) = (entry.dues.first(), self.origins.get_mut(&entry.origin))
        {
            found.waiting[usize::from(entry.dues.suspect)].remove(&(due, name.clone()));
        }
    }

    fn unindex(&mut self, origin: &Arc<str>) {
        let Some(found) = self.origins.get_mut(origin) else { return };
        for (index, place) in self.index.iter_mut().zip(&mut found.indexed) {
            if let Some(ready) = place.take() {
                index.remove(&(ready, origin.clone()));
            }
        }
    }

    fn reindex(&mut self, origin: &Arc<str>) {
        self.unindex(origin);
        let Some(found) = self.origins.get_mut(origin) else { return };
        if found.in_flight >= self.caps.origin_in_flight {
            return;
        }
        for ((index, place), waiting) in self.index.iter_mut().zip(&mut found.indexed).zip(&found.waiting) {
            if let Some((due, _)) = waiting.first() {
                let ready = (*due).max(found.not_before);
                index.insert((ready, origin.clone()));
                *place = Some(ready);
            }
        }
    }
}

/// How long to wait for a provider's own place within the interval. The place depends on the name and the wall
/// clock alone, so that neither a restart nor a second daemon causes a burst.
pub fn place(name: &str, interval: Duration, now: DateTime<Utc>) -> Duration {
    let interval_ms = u64::try_from(interval.as_millis()).unwrap_or(u64::MAX).max(1);
    let offset = hash_of(name, 0) % interval_ms;
    let now_ms = u64::try_from(now.timestamp_millis()).unwrap_or(0) % interval_ms;
    Duration::from_millis((offset + interval_ms - now_ms) % interval_ms)
}

/// A delay moved by up to 5 % either way, differently for each name and turn.
pub fn jittered(delay: Duration, name: &str, turn: u64) -> Duration {
    delay.mul_f64(1.0 + JITTER * unit(name, turn))
}

/// From -1 to 1, evenly spread over names and turns.
pub fn unit(name: &str, turn: u64) -> f64 {
    (hash_of(name, turn.wrapping_add(1)) >> 11) as f64 / (1_u64 << 52) as f64 - 1.0
}

/// FNV-1a with a final mix: stable between versions and machines, unlike the standard library's hasher.
pub(super) fn hash_of(name: &str, turn: u64) -> u64 {
    let bytes = name.bytes().chain(turn.to_le_bytes());
    let mut hash = bytes.fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    hash = (hash ^ hash >> 33).wrapping_mul(0xff51_afd7_ed55_8ccd);
    hash = (hash ^ hash >> 33).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    hash ^ hash >> 33
}
