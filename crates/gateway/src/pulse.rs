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
    learned::TokenRatios,
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

/// One model's live state: until when it cools, and how its texts become tokens.
#[derive(Debug, Default)]
struct ModelPulse(AtomicU64, Arc<TokenRatios>);

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
    /// What was learned of a model.
    pub(crate) fn ratios(&self, offer: Option<u32>) -> Option<&Arc<TokenRatios>> {
        self.offers.get(offer? as usize).map(|model| &model.1)
    }

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
mod tests;
