//! What live outcomes say of providers and models, here and now: who cools, who may be tried, who is full.
//!
//! Its job: outcome → cooldown, one trial at a time after it, requests in flight, the retry budget of each origin, and
//! the wish to have a provider looked at again. Not its job: verdicts about health and keys: an outcome never makes
//! one. Invariants: what a caller did wrong and what is wrong on our side cools no provider; of two cooldowns the longer
//! holds; a trial ends with its request, however that ends; the time is an argument.

use std::{
    collections::HashMap,
    fmt,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering},
    },
    time::Duration,
};

use uuid::Uuid;

use crate::{
    course::{AttemptOutcome, Clock, RetryAllowance, RetryBudget},
    decide::{PulseView, Standing},
    picture::Picture,
    tick::Tick,
};

/// Hard failures in a row that cool.
const ROW: u8 = 3;

/// Outcomes that are remembered, and how many hard ones among them cool.
const WINDOW: u32 = 20;
const BAD_OF_WINDOW: u32 = WINDOW / 2;

/// The first cooldown; each failed trial doubles it.
const BASE: Duration = Duration::from_secs(2);
const LONGEST: Duration = Duration::from_secs(60);

/// A rate limit that names no end.
const RATE_LIMITED: Duration = Duration::from_secs(5);

/// A rate limit that names a later end than this is looked at again then.
const LONGEST_RATE_LIMIT: Duration = Duration::from_secs(600);

/// A model that a provider does not know: it may be deployed at any time, and asking costs nothing but a round trip.
const MODEL_GONE: Duration = Duration::from_secs(60);

/// A provider is named for another look at most this often.
const LOOK_AGAIN: Duration = Duration::from_secs(5);

/// Cooldowns are ignored where half of at least so many origins cool: then it is rather us.
const PANIC_FROM: usize = 5;

/// How long an answer to "do half of them cool?" holds, in milliseconds.
const PANIC_HOLDS: u64 = 100;

/// What an outcome says about who was asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Blame {
    /// It works.
    Good,
    /// It fails.
    Hard,
    /// It refuses the key, the account or the permission.
    Refused,
    /// It limits the rate, of this model.
    RateLimited(Option<Duration>),
    /// It does not know the model.
    ModelGone,
    /// Nothing.
    Nothing,
}

impl AttemptOutcome {
    /// What this outcome says about who was asked.
    pub const fn blame(self) -> Blame {
        match self {
            Self::Content | Self::Finished => Blame::Good,
            // A request may be longer than it may take without anything being wrong.
            Self::TimedOut(Clock::Total) => Blame::Nothing,
            Self::ConnectFailed | Self::TimedOut(_) | Self::BrokenOff | Self::Garbage => Blame::Hard,
            Self::Busy
            | Self::Unfit
            | Self::ContextOverflow
            | Self::CallerLeft
            | Self::OwnFault
            | Self::Stopping => Blame::Nothing,
            Self::InBand { status: None, .. } => Blame::Hard,
            Self::Status { status, retry_after } | Self::InBand { status: Some(status), retry_after } => {
                match status {
                    429 => Blame::RateLimited(retry_after),
                    404 => Blame::ModelGone,
                    401..=403 => Blame::Refused,
                    500..=599 => Blame::Hard,
                    _ => Blame::Nothing,
                }
            }
        }
    }
}

/// The memory of one provider: a value, stepped by outcomes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Beat {
    /// Failures in a row.
    row: u8,
    /// The last outcomes, the newest lowest; a set bit is a hard failure.
    history: u32,
    /// Cooldowns since it last worked.
    cooldowns: u32,
    cooling: Option<Cooldown>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Cooldown {
    since: Tick,
    until: Tick,
}

impl Beat {
    /// What follows an outcome of an attempt that began at `began`; `trial` if it was the one that a cooldown allows
    /// at its end.
    fn step(self, blame: Blame, began: Tick, trial: bool, now: Tick) -> Self {
        match (self.cooling, blame) {
            (_, Blame::RateLimited(_) | Blame::ModelGone | Blame::Nothing) => self,
            // It works again.
            (Some(_), Blame::Good) if trial => Self::default(),
            (Some(_), Blame::Hard | Blame::Refused) if trial => self.cool(now),
            // Begun before the cooldown, or in spite of it: what it says is known.
            (Some(cooling), _) if began < cooling.until => self,
            // After the cooldown, and not the trial: it can only be a late witness of the same.
            (Some(_), Blame::Good) => Self::default(),
            (Some(_), _) => self,
            (None, Blame::Good) => Self { row: 0, history: self.push(false), ..self },
            (None, Blame::Hard | Blame::Refused) => {
                let row = self.row.saturating_add(1);
                // A refusal of the key says nothing of failures, but three of them are enough not to ask at once again.
                let history = if blame == Blame::Hard { self.push(true) } else { self.history };
                let next = Self { row, history, ..self };
                if row >= ROW || history.count_ones() >= BAD_OF_WINDOW { next.cool(now) } else { next }
            }
        }
    }

    const fn push(&self, bad: bool) -> u32 {
        ((self.history << 1) | bad as u32) & ((1 << WINDOW) - 1)
    }

    fn cool(self, now: Tick) -> Self {
        let length = BASE.saturating_mul(1 << self.cooldowns.min(16)).min(LONGEST);
        let until = self.cooling.map_or(now, |cooling| cooling.until).max(now.after(length));
        Self {
            row: 0,
            history: 0,
            cooldowns: self.cooldowns.saturating_add(1),
            cooling: Some(Cooldown { since: now, until }),
        }
    }
}

/// What is shared by all cells of one pulse.
#[derive(Debug, Default)]
struct Common {
    /// The end of the latest cooldown of a provider: after it no origin cools.
    latest: AtomicU64,
    /// Counts cooldowns, so that a kept answer is known to be old.
    changes: AtomicU32,
    cooldowns: AtomicU64,
}

/// One provider's live state.
#[derive(Debug)]
struct UpstreamPulse {
    beat: Mutex<Beat>,
    /// End of its cooldown, for readers; 0: none. It stays when the time has come, until a trial ends it.
    until: AtomicU64,
    trial: AtomicBool,
    in_flight: AtomicU32,
    /// When it was last named for another look, plus one; 0: never.
    named: AtomicU64,
    origin: Arc<OriginPulse>,
    common: Arc<Common>,
}

impl UpstreamPulse {
    fn new(origin: Arc<OriginPulse>, common: Arc<Common>) -> Self {
        Self {
            beat: Mutex::default(),
            until: AtomicU64::new(0),
            trial: AtomicBool::new(false),
            in_flight: AtomicU32::new(0),
            named: AtomicU64::new(0),
            origin,
            common,
        }
    }

    fn cools(&self, now: Tick) -> bool {
        self.until.load(Ordering::Acquire) > now.0
    }

    /// Steps the memory; whether a cooldown began.
    fn step(&self, blame: Blame, began: Tick, trial: bool, now: Tick) -> bool {
        let mut beat = locked(&self.beat);
        let next = beat.step(blame, began, trial, now);
        let before = std::mem::replace(&mut *beat, next);
        if before.cooling == next.cooling {
            return false;
        }
        let until = next.cooling.map_or(0, |cooling| cooling.until.0.max(1));
        self.until.store(until, Ordering::Release);
        self.common.latest.fetch_max(until, Ordering::AcqRel);
        self.common.changes.fetch_add(1, Ordering::AcqRel);
        next.cooling.is_some()
    }
}

/// One model's live state: until when it cools.
#[derive(Debug, Default)]
struct ModelPulse(AtomicU64);

/// What an origin's upstreams share.
#[derive(Debug, Default)]
struct OriginPulse {
    budget: Mutex<RetryBudget>,
}

/// A thread that panics while it holds the lock leaves a value behind, which is a whole one.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Live states over all pictures; each picture gets a [`Pulse`] of it.
#[derive(Debug, Default)]
pub struct PulseBook {
    upstreams: HashMap<(Uuid, Box<str>), Arc<UpstreamPulse>>,
    models: HashMap<(Uuid, Box<str>), Arc<ModelPulse>>,
    origins: HashMap<Box<str>, Arc<OriginPulse>>,
    common: Arc<Common>,
}

impl PulseBook {
    /// The pulse of a picture: who was known stays known, who is gone is forgotten. A provider at another origin is
    /// another one.
    pub fn bind(&mut self, picture: &Picture) -> Pulse {
        let mut origins = HashMap::with_capacity(picture.origins().len());
        for origin in picture.origins() {
            origins.insert(origin.clone(), self.origins.remove(origin).unwrap_or_default());
        }
        let mut upstreams = HashMap::with_capacity(picture.upstreams().len());
        let mut seats = Vec::with_capacity(picture.upstreams().len());
        let mut counted = vec![false; picture.origins().len()];
        for upstream in picture.upstreams() {
            let serves = upstream.enabled && (upstream.managed || picture.rules.unmanaged);
            if let Some(counted) = counted.get_mut(upstream.origin_at as usize) {
                *counted |= serves;
            }
            let key = (upstream.id, upstream.origin.clone());
            let known = upstreams.get(&key).cloned().or_else(|| self.upstreams.remove(&key));
            let pulse = known.unwrap_or_else(|| {
                let origin = origins.entry(upstream.origin.clone()).or_default().clone();
                Arc::new(UpstreamPulse::new(origin, self.common.clone()))
            });
            upstreams.insert(key, pulse.clone());
            seats.push(Seat {
                pulse,
                most: upstream.max_in_flight.unwrap_or(u32::MAX),
                origin: upstream.origin_at as usize,
                serves,
            });
        }
        let mut models = HashMap::with_capacity(picture.offers().len());
        let mut offers = Vec::with_capacity(picture.offers().len());
        for offer in picture.offers() {
            let provider = picture.upstream(offer.upstream).map(|upstream| upstream.id).unwrap_or_default();
            let key = (provider, offer.name.clone());
            let pulse: Arc<ModelPulse> = self.models.remove(&key).unwrap_or_default();
            models.insert(key, pulse.clone());
            offers.push(pulse);
        }
        (self.upstreams, self.models, self.origins) = (upstreams, models, origins);
        Pulse {
            seats,
            offers,
            origins: counted.len(),
            counted: counted.into_iter().filter(|counted| *counted).count(),
            common: self.common.clone(),
            panic: AtomicU64::new(0),
        }
    }
}

#[derive(Debug)]
struct Seat {
    pulse: Arc<UpstreamPulse>,
    /// Requests at once.
    most: u32,
    origin: usize,
    serves: bool,
}

/// The live states of one picture's providers and models, by its indexes.
pub struct Pulse {
    seats: Vec<Seat>,
    offers: Vec<Arc<ModelPulse>>,
    origins: usize,
    /// Origins that may serve.
    counted: usize,
    common: Arc<Common>,
    /// The kept answer to "panic?": changes (24 bits), moment (39 bits), answer (1 bit).
    panic: AtomicU64,
}

impl fmt::Debug for Pulse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pulse").field("upstreams", &self.seats.len()).finish_non_exhaustive()
    }
}

impl Pulse {
    /// Takes a seat for one attempt. `first`: the request's first attempt, by which the retry budget is measured.
    ///
    /// # Errors
    /// It has begun to cool, its trial is under way, or it is full.
    pub fn begin(
        &self,
        upstream: u32,
        offer: Option<u32>,
        first: bool,
        now: Tick,
    ) -> Result<Flight, Standing> {
        let Some(seat) = self.seats.get(upstream as usize) else { return Err(Standing::Full) };
        let model = offer.and_then(|offer| self.offers.get(offer as usize)).cloned();
        if let Some(until) = model.as_ref().and_then(|model| cooling(&model.0, now)) {
            return Err(Standing::Cooling { until });
        }
        let pulse = seat.pulse.clone();
        let until = pulse.until.load(Ordering::Acquire);
        let mut trial = false;
        if until != 0 && !self.panic(now) {
            if until > now.0 {
                return Err(Standing::Cooling { until: Tick(until) });
            }
            if pulse.trial.swap(true, Ordering::AcqRel) {
                return Err(Standing::Cooling { until: now });
            }
            trial = true;
        }
        let taken = pulse.in_flight.fetch_update(Ordering::AcqRel, Ordering::Acquire, |flying| {
            (flying < seat.most).then(|| flying.saturating_add(1))
        });
        if taken.is_err() {
            if trial {
                pulse.trial.store(false, Ordering::Release);
            }
            return Err(Standing::Full);
        }
        if first {
            locked(&pulse.origin.budget).first(now);
        }
        Ok(Flight { pulse, model, began: now, trial })
    }

    /// Half of at least five origins cool: it is rather us, and cooldowns of providers are ignored. Those of models
    /// are not: they are the providers' own words.
    pub fn panic(&self, now: Tick) -> bool {
        if self.counted < PANIC_FROM || self.common.latest.load(Ordering::Acquire) <= now.0 {
            return false;
        }
        let changes = u64::from(self.common.changes.load(Ordering::Acquire)) & 0xff_ffff;
        let moment = (now.0 / PANIC_HOLDS + 1) & 0x7f_ffff_ffff;
        let key = changes << 39 | moment;
        let kept = self.panic.load(Ordering::Acquire);
        if kept >> 1 == key {
            return kept & 1 == 1;
        }
        let mut cool = vec![false; self.origins];
        for seat in self.seats.iter().filter(|seat| seat.serves && seat.pulse.cools(now)) {
            if let Some(cool) = cool.get_mut(seat.origin) {
                *cool = true;
            }
        }
        let panic = cool.into_iter().filter(|cool| *cool).count() * 2 >= self.counted;
        self.panic.store(key << 1 | u64::from(panic), Ordering::Release);
        panic
    }

    /// Requests in flight to a provider.
    pub fn in_flight(&self, upstream: u32) -> u32 {
        self.seats.get(upstream as usize).map_or(0, |seat| seat.pulse.in_flight.load(Ordering::Acquire))
    }

    /// Providers that cool now, by index.
    pub fn cooling(&self, now: Tick) -> impl Iterator<Item = u32> {
        (0..).zip(&self.seats).filter(move |(_, seat)| seat.pulse.cools(now)).map(|(at, _)| at)
    }

    /// Cooldowns so far, of providers and models.
    pub fn cooldowns(&self) -> u64 {
        self.common.cooldowns.load(Ordering::Acquire)
    }
}

/// The moment until which a model cools.
fn cooling(until: &AtomicU64, now: Tick) -> Option<Tick> {
    let until = until.load(Ordering::Acquire);
    (until > now.0).then_some(Tick(until))
}

impl PulseView for Pulse {
    fn standing(&self, upstream: u32, offer: Option<u32>, now: Tick) -> Standing {
        let Some(seat) = self.seats.get(upstream as usize) else { return Standing::Full };
        let model = offer.and_then(|offer| self.offers.get(offer as usize));
        let model = model.and_then(|model| cooling(&model.0, now));
        let until = seat.pulse.until.load(Ordering::Acquire);
        let upstream = if until == 0 || self.panic(now) {
            None
        } else if until > now.0 {
            Some(Tick(until))
        } else {
            seat.pulse.trial.load(Ordering::Acquire).then_some(now)
        };
        match upstream.max(model) {
            Some(until) => Standing::Cooling { until },
            None if seat.pulse.in_flight.load(Ordering::Acquire) >= seat.most => Standing::Full,
            None => Standing::Ready,
        }
    }
}

impl RetryAllowance for Pulse {
    fn take(&self, failed: u32, now: Tick) -> bool {
        self.seats.get(failed as usize).is_some_and(|seat| locked(&seat.pulse.origin.budget).take(now))
    }
}

/// What an outcome brought about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Heard {
    /// A cooldown began, by this reason.
    pub cooled: Option<&'static str>,
    /// The checks shall look at this provider again. Carries nothing: an outcome is no verdict.
    pub look_again: bool,
}

/// One attempt under way: a seat at a provider, given back when it ends, by whichever way.
#[derive(Debug)]
pub struct Flight {
    pulse: Arc<UpstreamPulse>,
    model: Option<Arc<ModelPulse>>,
    began: Tick,
    trial: bool,
}

impl Flight {
    /// Takes in an outcome. Several may follow each other: content, then a break.
    pub fn hear(&mut self, outcome: AttemptOutcome, now: Tick) -> Heard {
        let blame = outcome.blame();
        let mut heard = Heard::default();
        match blame {
            Blame::Good => {}
            Blame::Hard | Blame::Refused => heard.look_again = self.look_again(now),
            Blame::RateLimited(after) => {
                let length = after.unwrap_or(RATE_LIMITED).min(LONGEST_RATE_LIMIT);
                heard.cooled = self.cool_model(length, now).then_some("rate_limited");
            }
            Blame::ModelGone => {
                heard.cooled = self.cool_model(MODEL_GONE, now).then_some("model_not_found");
                heard.look_again = self.look_again(now);
            }
            Blame::Nothing => return heard,
        }
        if self.pulse.step(blame, self.began, self.trial, now) {
            heard.cooled = Some(if blame == Blame::Refused { "refused" } else { "failures" });
        }
        if heard.cooled.is_some() {
            self.pulse.common.cooldowns.fetch_add(1, Ordering::AcqRel);
        }
        // Any answer ends the trial; one that says nothing of the provider lets the next request be the trial.
        self.end_trial();
        heard
    }

    /// Whether this is the one attempt that the end of a cooldown allows.
    pub const fn is_trial(&self) -> bool {
        self.trial
    }

    fn end_trial(&mut self) {
        if std::mem::take(&mut self.trial) {
            self.pulse.trial.store(false, Ordering::Release);
        }
    }

    /// The longer cooldown holds; whether this one is longer.
    fn cool_model(&self, length: Duration, now: Tick) -> bool {
        let until = now.after(length).0;
        self.model.as_ref().is_some_and(|model| model.0.fetch_max(until, Ordering::AcqRel) < until)
    }

    /// True at most once in five seconds.
    fn look_again(&self, now: Tick) -> bool {
        let due = |named: u64| named == 0 || Tick(named - 1).after(LOOK_AGAIN) <= now;
        let now = now.0.saturating_add(1);
        let named = self.pulse.named.load(Ordering::Acquire);
        due(named)
            && self.pulse.named.compare_exchange(named, now, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }
}

impl Drop for Flight {
    fn drop(&mut self) {
        self.end_trial();
        self.pulse.in_flight.fetch_sub(1, Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::picture::{
        PictureInput,
        tests::{picture, provider},
    };

    const HARD: AttemptOutcome = AttemptOutcome::ConnectFailed;
    const GOOD: AttemptOutcome = AttemptOutcome::Content;

    fn status(status: u16) -> AttemptOutcome {
        AttemptOutcome::Status { status, retry_after: None }
    }

    /// Providers p0, p1, … with a model `m` each.
    fn many(count: usize) -> Picture {
        let providers = (0..count).map(|at| provider(&format!("p{at}"), &["m"])).collect();
        picture(&PictureInput { providers, ..PictureInput::default() })
    }

    fn one() -> Pulse {
        PulseBook::default().bind(&many(1))
    }

    /// One attempt at the first provider, with its outcome.
    fn attempt(pulse: &Pulse, outcome: AttemptOutcome, now: u64) -> Heard {
        pulse.begin(0, Some(0), true, Tick(now)).expect("a seat").hear(outcome, Tick(now))
    }

    fn until(pulse: &Pulse, now: u64) -> Option<u64> {
        match pulse.standing(0, Some(0), Tick(now)) {
            Standing::Ready => None,
            Standing::Cooling { until } => Some(until.0),
            Standing::Full => panic!("full"),
        }
    }

    #[test]
    fn three_hard_failures_in_a_row_cool_and_trials_double() {
        let pulse = one();
        attempt(&pulse, HARD, 0);
        attempt(&pulse, HARD, 1);
        attempt(&pulse, GOOD, 2);
        attempt(&pulse, HARD, 3);
        attempt(&pulse, status(400), 4);
        attempt(&pulse, status(500), 5);
        assert_eq!(until(&pulse, 6), None);
        assert_eq!(attempt(&pulse, AttemptOutcome::TimedOut(Clock::Idle), 10).cooled, Some("failures"));
        let mut now = 10;
        for length in [2, 4, 8, 16, 32, 60, 60] {
            assert_eq!(until(&pulse, now), Some(now + length * 1_000));
            assert!(pulse.begin(0, Some(0), true, Tick(now + length * 1_000 - 1)).is_err());
            now += length * 1_000;
            assert_eq!(until(&pulse, now), None);
            attempt(&pulse, HARD, now);
        }
        now += 60_000;
        attempt(&pulse, GOOD, now);
        assert_eq!(until(&pulse, now), None);
        // It begins at the start again.
        for _ in 0..3 {
            attempt(&pulse, HARD, now);
        }
        assert_eq!(until(&pulse, now), Some(now + 2_000));
    }

    #[test]
    fn half_of_the_last_twenty_cool() {
        let pulse = one();
        for at in 0..19 {
            attempt(&pulse, if at % 2 == 0 { HARD } else { GOOD }, at);
            assert_eq!(until(&pulse, at).is_some(), at == 18, "{at}");
        }
    }

    #[test]
    fn one_trial_at_a_time() {
        let pulse = one();
        for _ in 0..3 {
            attempt(&pulse, HARD, 0);
        }
        let mut trial = pulse.begin(0, None, true, Tick(2_000)).unwrap();
        assert!(trial.is_trial());
        assert_eq!(
            pulse.begin(0, None, true, Tick(2_000)).unwrap_err(),
            Standing::Cooling { until: Tick(2_000) }
        );
        assert_eq!(until(&pulse, 2_000), Some(2_000));
        // A caller's mistake is no answer to the question: the next request is the trial.
        trial.hear(status(422), Tick(2_001));
        drop(trial);
        let left = pulse.begin(0, None, true, Tick(2_002)).unwrap();
        assert!(left.is_trial());
        drop(left);
        let mut trial = pulse.begin(0, None, true, Tick(2_003)).unwrap();
        trial.hear(GOOD, Tick(2_004));
        assert!(pulse.begin(0, None, true, Tick(2_005)).is_ok(), "a stream that flows is no trial any more");
    }

    #[test]
    fn attempts_from_before_a_cooldown_do_not_lengthen_it() {
        let pulse = one();
        let mut old: Vec<_> = (0..10).map(|_| pulse.begin(0, None, true, Tick(0)).unwrap()).collect();
        for flight in &mut old {
            flight.hear(HARD, Tick(100));
        }
        assert_eq!(until(&pulse, 100), Some(2_100));
        let mut late = pulse.begin(0, None, true, Tick(2_100)).unwrap();
        late.hear(HARD, Tick(2_200));
        assert_eq!(until(&pulse, 2_200), Some(6_200), "the second cooldown, not the eighth");
    }

    #[test]
    fn limits_and_missing_models_cool_the_model() {
        let check = |outcome: AttemptOutcome, expected: Option<u64>| {
            let pulse = one();
            attempt(&pulse, outcome, 0);
            assert_eq!(until(&pulse, 0), expected, "{outcome:?}");
            assert_eq!(
                pulse.standing(0, None, Tick(0)),
                Standing::Ready,
                "the provider itself does not cool"
            );
        };
        let limited =
            |secs| AttemptOutcome::Status { status: 429, retry_after: Some(Duration::from_secs(secs)) };
        check(status(429), Some(5_000));
        check(limited(90), Some(90_000));
        check(limited(100_000), Some(600_000));
        check(status(404), Some(60_000));
        for own in [status(400), status(413), status(422), status(408), AttemptOutcome::ContextOverflow] {
            check(own, None);
        }
        let pulse = one();
        let mut first = pulse.begin(0, Some(0), true, Tick(0)).unwrap();
        let mut second = pulse.begin(0, Some(0), true, Tick(0)).unwrap();
        first.hear(limited(90), Tick(0));
        second.hear(limited(3), Tick(1));
        assert_eq!(until(&pulse, 1), Some(90_000), "the longest wins");
    }

    #[test]
    fn callers_and_our_own_faults_cool_nobody() {
        let pulse = one();
        for outcome in [400, 413, 422, 409].map(status).into_iter().chain([
            AttemptOutcome::CallerLeft,
            AttemptOutcome::OwnFault,
            AttemptOutcome::Stopping,
            AttemptOutcome::ContextOverflow,
            AttemptOutcome::TimedOut(Clock::Total),
        ]) {
            for at in 0..100 {
                assert_eq!(attempt(&pulse, outcome, at), Heard::default());
            }
        }
        assert_eq!((until(&pulse, 100), pulse.cooldowns()), (None, 0));
    }

    #[test]
    fn refusals_of_the_key_wait_a_moment_and_ask_for_a_look() {
        let pulse = one();
        assert!(attempt(&pulse, status(401), 0).look_again);
        assert!(!attempt(&pulse, status(401), 4_999).look_again);
        let heard = attempt(&pulse, status(403), 5_000);
        assert_eq!(heard, Heard { cooled: Some("refused"), look_again: true });
        let pulse = one();
        for at in 0..100 {
            attempt(&pulse, if at % 2 == 0 { status(403) } else { GOOD }, at);
        }
        assert_eq!(until(&pulse, 100), None, "between answers they say nothing");
    }

    #[test]
    fn seats_are_bounded_and_given_back() {
        let mut limited = provider("p", &["m"]);
        limited.max_in_flight = Some(2);
        let picture = picture(&PictureInput { providers: vec![limited], ..PictureInput::default() });
        let pulse = PulseBook::default().bind(&picture);
        let seats: Vec<_> = (0..2).map(|_| pulse.begin(0, None, true, Tick(0)).unwrap()).collect();
        assert_eq!(pulse.begin(0, None, true, Tick(0)).unwrap_err(), Standing::Full);
        assert_eq!(pulse.standing(0, None, Tick(0)), Standing::Full);
        drop(seats);
        assert_eq!((pulse.in_flight(0), pulse.standing(0, None, Tick(0))), (0, Standing::Ready));
    }

    #[test]
    fn cooldowns_are_ignored_where_half_of_five_origins_cool() {
        let check = |origins: usize, cool: u32, panic: bool| {
            let picture = many(origins);
            let pulse = PulseBook::default().bind(&picture);
            for upstream in 0..cool {
                for _ in 0..3 {
                    if let Ok(mut flight) = pulse.begin(upstream, None, true, Tick(0)) {
                        flight.hear(HARD, Tick(0));
                    }
                }
            }
            assert_eq!(pulse.panic(Tick(1)), panic, "{cool} of {origins}");
            let open = pulse.standing(0, None, Tick(1)) == Standing::Ready;
            assert_eq!(open, panic);
            assert_eq!(pulse.begin(0, None, true, Tick(1)).is_ok(), panic);
            assert!(!pulse.panic(Tick(2_000)), "it ends with the cooldowns");
        };
        check(4, 4, false);
        check(5, 2, false);
        check(5, 3, true);
        check(6, 3, true);
        check(10, 4, false);
        check(10, 5, true);
    }

    #[test]
    fn a_new_picture_keeps_what_is_known() {
        let mut book = PulseBook::default();
        let old = book.bind(&many(2));
        for _ in 0..3 {
            attempt(&old, HARD, 0);
        }
        let flight = old.begin(1, None, true, Tick(0)).unwrap();
        // Turned round, and one more.
        let mut turned: Vec<_> = (0..3).map(|at| provider(&format!("p{at}"), &["m"])).collect();
        turned.reverse();
        let new = book.bind(&picture(&PictureInput { providers: turned.clone(), ..PictureInput::default() }));
        assert!(matches!(new.standing(2, None, Tick(1)), Standing::Cooling { .. }));
        assert_eq!((new.in_flight(1), new.standing(0, None, Tick(1))), (1, Standing::Ready));
        drop(flight);
        assert_eq!(new.in_flight(1), 0);
        turned[2].base_url = "https://elsewhere.test".into();
        let moved = book.bind(&picture(&PictureInput { providers: turned, ..PictureInput::default() }));
        assert_eq!(moved.standing(2, None, Tick(1)), Standing::Ready);
    }

    #[test]
    fn the_retry_budget_belongs_to_the_origin() {
        let mut providers: Vec<_> = (0..3).map(|at| provider(&format!("p{at}"), &["m"])).collect();
        providers[1].base_url = "https://p0.test/other".into();
        let pulse =
            PulseBook::default().bind(&picture(&PictureInput { providers, ..PictureInput::default() }));
        for _ in 0..100 {
            drop(pulse.begin(0, None, true, Tick(0)));
            drop(pulse.begin(0, None, false, Tick(0)));
        }
        let taken = |upstream| (0..100).filter(|_| pulse.take(upstream, Tick(0))).count();
        assert_eq!((taken(1), taken(0), taken(2)), (20, 0, 10));
    }

    fn blame() -> impl Strategy<Value = Blame> {
        prop_oneof![
            Just(Blame::Good),
            Just(Blame::Hard),
            Just(Blame::Refused),
            Just(Blame::RateLimited(None)),
            Just(Blame::ModelGone),
            Just(Blame::Nothing),
        ]
    }

    proptest! {
        #[test]
        fn a_cooldown_is_never_shortened_but_by_a_trial(
            steps in prop::collection::vec((blame(), 0..3_000_u64, 0..5_000_u64, any::<bool>()), 0..200),
        ) {
            let (mut beat, mut now) = (Beat::default(), 10_000);
            for (blame, passed, ago, trial) in steps {
                now += passed;
                let ready = beat.cooling.is_none_or(|cooling| cooling.until.0 <= now);
                let trial = trial && ready && beat.cooling.is_some();
                let began = if trial { now } else { now.saturating_sub(ago) };
                let next = beat.step(blame, Tick(began), trial, Tick(now));
                if let (Some(before), Some(after)) = (beat.cooling, next.cooling) {
                    prop_assert!(after.until >= before.until);
                }
                if let Some(cooling) = next.cooling {
                    prop_assert!(cooling.until.since(cooling.since) <= LONGEST);
                    prop_assert!(cooling.until.since(cooling.since) >= BASE);
                }
                if beat.cooling.is_some() && next.cooling.is_none() {
                    prop_assert!(blame == Blame::Good && ready);
                }
                if beat.cooling.is_none() && next.cooling.is_some() {
                    prop_assert!(matches!(blame, Blame::Hard | Blame::Refused));
                }
                beat = next;
            }
        }
    }

    #[test]
    fn threads_share_one_trial_and_lose_no_seat() {
        let pulse = one();
        for _ in 0..3 {
            attempt(&pulse, HARD, 0);
        }
        let trials = AtomicU32::new(0);
        let held = std::sync::Barrier::new(8);
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    held.wait();
                    let flight = pulse.begin(0, None, true, Tick(2_000));
                    held.wait();
                    trials.fetch_add(u32::from(flight.is_ok()), Ordering::AcqRel);
                });
            }
        });
        assert_eq!((trials.load(Ordering::Acquire), pulse.in_flight(0)), (1, 0));
    }
}
