//! Limits and budgets of callers: what is taken before a request, and set right after it.
//!
//! Its job: requests and tokens per minute, requests at once, and money against leases, all held locally and changed
//! by compare-and-swap; the windows of budgets; a node's share of a limit. Not its job: getting leases and shares from
//! the database (it says what it wants, as values), prices, and who the caller is. Invariants: what is reserved and
//! spent never exceeds what was leased, except by answers that cost more than they were reserved for; what one
//! refusal took is given back; a bucket that is not full is never forgotten, which would refill it.

use std::{
    collections::{HashMap, hash_map::Entry},
    hash::{BuildHasher, RandomState},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicI64, AtomicU32, AtomicU64, Ordering},
    },
    time::Duration,
};

use catalog::price::Money;
use provider::words;

use crate::{
    error::{ErrorCode, GatewayError},
    picture::{BudgetPeriod, BudgetSpec, LimitSpec},
    tick::Tick,
};

words! {
    /// Which limit refused: the label of `limited_total`, and the error's `param`.
    LimitWord {
        Requests = "requests_per_minute",
        Tokens = "tokens_per_minute",
        Concurrency = "concurrency",
        Budget = "budget",
    }
}

/// A node's part of the limits, in millionths.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NodeShare(u32);

/// The whole, in millionths.
const WHOLE: u32 = 1_000_000;

impl NodeShare {
    /// A node alone.
    pub const ALL: Self = Self(WHOLE);

    /// The share of node `mine` by the recent demand of all nodes. Each node is counted with a twentieth of the
    /// average on top, so that a quiet one can begin at once; all shares together are at most the whole.
    pub fn of(demands: &[u64], mine: usize) -> Self {
        let nodes = demands.len() as u128;
        let Some(own) = demands.get(mine) else { return Self::ALL };
        let sum: u128 = demands.iter().map(|demand| u128::from(*demand)).sum();
        let floor = (sum / (nodes * 20)).max(1);
        let part = (u128::from(*own) + floor) * u128::from(WHOLE) / (sum + nodes * floor);
        Self(u32::try_from(part).unwrap_or(WHOLE).clamp(1, WHOLE))
    }

    pub const fn millionths(self) -> u32 {
        self.0
    }
}

/// Nanoseconds in a minute: the capacity of a bucket, whatever it holds.
const MINUTE: u64 = 60_000_000_000;

/// A bucket that fills in a minute. It holds one number: when it will be full. Taking moves that moment away, giving
/// back moves it nearer, and time does the rest.
#[derive(Debug, Default)]
struct RateGauge(AtomicU64);

/// What a rate limit shows to its caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RateView {
    pub limit: u64,
    pub remaining: u64,
    /// Until it is full again.
    pub reset: Duration,
}

impl RateView {
    /// `6m0s`, `1.5s`, `20ms`: as OpenAI writes it.
    pub fn reset_text(&self) -> String {
        let millis = self.reset.as_millis();
        let (minutes, millis) = (millis / 60_000, millis % 60_000);
        match (minutes, millis / 1_000, millis % 1_000) {
            (0, 0, millis) => format!("{millis}ms"),
            (0, secs, 0) => format!("{secs}s"),
            (0, secs, millis) => format!("{secs}.{millis:03}s"),
            (minutes, secs, _) => format!("{minutes}m{secs}s"),
        }
    }
}

fn nanos(now: Tick) -> u64 {
    now.0.saturating_mul(1_000_000)
}

/// Nanoseconds of filling that `count` takes at so many a minute; `None`: at that rate nothing is allowed.
fn cost(count: u64, per_minute: u64, share: NodeShare) -> Option<u64> {
    let rate = u128::from(per_minute) * u128::from(share.0);
    let cost = (u128::from(count) * u128::from(MINUTE) * u128::from(WHOLE)).checked_div(rate)?;
    // A thousand minutes of debt are as good as any more, and cannot overflow.
    Some(u64::try_from(cost).unwrap_or(u64::MAX).min(MINUTE * 1_000))
}

impl RateGauge {
    /// Takes `cost`, or says after how long it would do. What is larger than the bucket passes when it is full.
    fn take(&self, cost: u64, now: Tick) -> Result<(), Duration> {
        let now = nanos(now);
        let fits = now.saturating_add(MINUTE - cost.min(MINUTE));
        let taken = self.0.fetch_update(Ordering::AcqRel, Ordering::Acquire, |full_at| {
            let full_at = full_at.max(now);
            (full_at <= fits).then(|| full_at.saturating_add(cost))
        });
        taken.map(|_| ()).map_err(|full_at| Duration::from_nanos(full_at.saturating_sub(fits)))
    }

    /// Takes without asking: what was delivered already.
    fn charge(&self, cost: u64, now: Tick) {
        let now = nanos(now);
        let add = |full_at: u64| Some(full_at.max(now).saturating_add(cost));
        let _ = self.0.fetch_update(Ordering::AcqRel, Ordering::Acquire, add);
    }

    fn give_back(&self, cost: u64) {
        let sub = |full_at: u64| Some(full_at.saturating_sub(cost));
        let _ = self.0.fetch_update(Ordering::AcqRel, Ordering::Acquire, sub);
    }

    fn until_full(&self, now: Tick) -> Duration {
        Duration::from_nanos(self.0.load(Ordering::Acquire).saturating_sub(nanos(now)))
    }

    fn view(&self, limit: u64, share: NodeShare, now: Tick) -> RateView {
        let reset = self.until_full(now);
        let free = u128::from(MINUTE).saturating_sub(reset.as_nanos());
        let remaining =
            free * u128::from(limit) * u128::from(share.0) / (u128::from(MINUTE) * u128::from(WHOLE));
        RateView { limit, remaining: u64::try_from(remaining).unwrap_or(u64::MAX), reset }
    }
}

/// One window of a budget, in Unix seconds: from `start` until before `end`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BudgetWindow {
    pub start: i64,
    pub end: i64,
}

const DAY: i64 = 86_400;

impl BudgetWindow {
    /// The window that `now` (Unix seconds) lies in; UTC, weeks from Monday.
    pub fn of(period: BudgetPeriod, now: i64) -> Self {
        // Beyond the years that a calendar here has to know, arithmetic must still not overflow.
        let day = now.clamp(-LATEST, LATEST).div_euclid(DAY);
        let (start, end) = match period {
            BudgetPeriod::Day => (day, day + 1),
            BudgetPeriod::Week => {
                // The first of January 1970 was a Thursday.
                let monday = day - (day + 3).rem_euclid(7);
                (monday, monday + 7)
            }
            BudgetPeriod::Month => {
                let (year, month) = month_of(day);
                let next = if month == 12 { (year + 1, 1) } else { (year, month + 1) };
                (first_of(year, month), first_of(next.0, next.1))
            }
        };
        Self { start: start * DAY, end: end * DAY }
    }
}

/// The end of the year 9999, in Unix seconds.
const LATEST: i64 = 253_402_300_799;

/// Year and month of a day since 1970, in the proleptic Gregorian calendar: years are counted from March, so that the
/// leap day is the last one, and in eras of 400 years, which all have equally many days.
const fn month_of(day: i64) -> (i64, i64) {
    let day = day + 719_468;
    let (era, of_era) = (day.div_euclid(146_097), day.rem_euclid(146_097));
    let year = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let from_march = (5 * of_year + 2) / 153;
    let month = if from_march < 10 { from_march + 3 } else { from_march - 9 };
    (era * 400 + year + (month <= 2) as i64, month)
}

/// The first day of a month, in days since 1970.
const fn first_of(year: i64, month: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let (era, of_era) = (year.div_euclid(400), year.rem_euclid(400));
    let of_year = (153 * ((month + 9) % 12) + 2) / 5;
    era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719_468
}

/// A part of a budget that this node may spend within one window; units of 1e-10 USD.
#[derive(Debug)]
pub struct BudgetLease {
    pub spec: BudgetSpec,
    pub window: BudgetWindow,
    /// Neither reserved nor spent; below zero where answers cost more than was reserved.
    left: AtomicI64,
    granted: AtomicI64,
    reserved: AtomicI64,
    spent: AtomicI64,
    /// Until when the database needs not be asked for more: it had none.
    dry_until: AtomicU64,
    /// When it was used last.
    used: AtomicU64,
}

impl BudgetLease {
    fn new(spec: BudgetSpec, window: BudgetWindow) -> Self {
        Self {
            spec,
            window,
            left: AtomicI64::new(0),
            granted: AtomicI64::new(0),
            reserved: AtomicI64::new(0),
            spent: AtomicI64::new(0),
            dry_until: AtomicU64::new(0),
            used: AtomicU64::new(0),
        }
    }

    /// Reserves, if so much is left. Where nothing is left nothing passes, not even what costs nothing.
    fn reserve(&self, units: i64) -> bool {
        let units = units.max(0);
        // Counted first: whoever gives the lease back in between sees that it is in use.
        self.reserved.fetch_add(units, Ordering::AcqRel);
        let taken = self.left.fetch_update(Ordering::AcqRel, Ordering::Acquire, |left| {
            (left >= units.max(1)).then(|| left - units)
        });
        if taken.is_err() {
            self.reserved.fetch_sub(units, Ordering::AcqRel);
        }
        taken.is_ok()
    }

    /// Puts what was really spent in place of what was reserved.
    fn settle(&self, reserved: i64, spent: i64) {
        let (reserved, spent) = (reserved.max(0), spent.max(0));
        self.spent.fetch_add(spent, Ordering::AcqRel);
        self.left.fetch_add(reserved.saturating_sub(spent), Ordering::AcqRel);
        self.reserved.fetch_sub(reserved, Ordering::AcqRel);
    }

    fn grant(&self, units: i64) {
        self.granted.fetch_add(units.max(0), Ordering::AcqRel);
        self.left.fetch_add(units.max(0), Ordering::AcqRel);
    }

    /// Takes out what is neither reserved nor spent; below zero: what was spent beyond it.
    fn give_back(&self) -> i64 {
        let taken = self.left.swap(0, Ordering::AcqRel);
        self.granted.fetch_sub(taken, Ordering::AcqRel);
        taken
    }

    fn is_dry(&self, now: Tick) -> bool {
        self.dry_until.load(Ordering::Acquire) > now.0
    }

    /// Less than a quarter of what was granted is left: time to ask for more, before a request has to wait.
    fn low(&self, now: Tick) -> bool {
        !self.is_dry(now) && self.left.load(Ordering::Acquire) < self.granted.load(Ordering::Acquire) / 4
    }

    pub fn left(&self) -> i64 {
        self.left.load(Ordering::Acquire)
    }

    pub fn spent(&self) -> i64 {
        self.spent.load(Ordering::Acquire)
    }

    pub fn reserved(&self) -> i64 {
        self.reserved.load(Ordering::Acquire)
    }
}

/// Part of a budget that this node wants.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeaseWish {
    /// Whose budget: [`LimitScope::key`].
    pub key: Arc<str>,
    pub spec: BudgetSpec,
    pub window: BudgetWindow,
    /// At least so much, in units of 1e-10 USD; more saves asking again.
    pub units: i64,
    /// A request waits for it.
    pub urgent: bool,
}

/// Part of a budget that this node gives back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeaseReturn {
    pub key: Arc<str>,
    pub spec: BudgetSpec,
    pub window: BudgetWindow,
    /// Units that were neither reserved nor spent; below zero: spent beyond what was granted.
    pub units: i64,
}

/// For whom limits hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LimitScope<'a> {
    Consumer(&'a str),
    /// One user of a tier; `user` is the consumer's own name where it speaks for no other.
    User {
        tier: &'a str,
        consumer: &'a str,
        user: &'a str,
    },
}

impl LimitScope<'_> {
    /// One text per scope, the same on every node: what a lease is kept under. Parts are told apart by a character
    /// that no name holds.
    pub fn key(&self) -> String {
        match self {
            Self::Consumer(name) => format!("consumer\u{1f}{name}"),
            Self::User { tier, consumer, user } => format!("user\u{1f}{tier}\u{1f}{consumer}\u{1f}{user}"),
        }
    }
}

/// The live state of one scope.
#[derive(Debug)]
struct ScopeGauges {
    key: Arc<str>,
    requests: RateGauge,
    tokens: RateGauge,
    at_once: AtomicU32,
    leases: Mutex<Vec<Arc<BudgetLease>>>,
}

impl ScopeGauges {
    fn new(key: Arc<str>) -> Self {
        Self {
            key,
            requests: RateGauge::default(),
            tokens: RateGauge::default(),
            at_once: AtomicU32::new(0),
            leases: Mutex::default(),
        }
    }

    /// As good as new: to forget it changes nothing.
    fn is_blank(&self, now: Tick) -> bool {
        self.at_once.load(Ordering::Acquire) == 0
            && self.requests.until_full(now).is_zero()
            && self.tokens.until_full(now).is_zero()
            && locked(&self.leases).is_empty()
    }

    fn lease(&self, spec: BudgetSpec, window: BudgetWindow) -> Arc<BudgetLease> {
        let mut leases = locked(&self.leases);
        let known = leases.iter().find(|lease| lease.spec == spec && lease.window == window);
        if let Some(lease) = known {
            return lease.clone();
        }
        let lease = Arc::new(BudgetLease::new(spec, window));
        leases.push(lease.clone());
        lease
    }
}

/// A thread that panics while it holds the lock leaves a whole value behind.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Parts of the map, so that callers seldom wait for each other.
const SHARDS: usize = 16;

/// Scopes that are remembered at once: about 30 MB.
const MOST_SCOPES: usize = 100_000;

/// A full part is searched for blank scopes at most this often.
const SWEEP_EVERY: Duration = Duration::from_secs(1);

/// How long it is believed that a budget is spent: other nodes may give back what they did not need.
const DRY_HOLDS: Duration = Duration::from_secs(5);

/// A lease that is not used for so long is given back.
const IDLE_LEASE: Duration = Duration::from_secs(60);

#[derive(Debug, Default)]
struct Shard {
    scopes: HashMap<Arc<str>, Arc<ScopeGauges>>,
    swept: Option<Tick>,
}

/// The live state of all callers of this node.
#[derive(Debug)]
pub struct LimitBook {
    shards: Vec<Mutex<Shard>>,
    hasher: RandomState,
    most: usize,
    share: AtomicU32,
}

impl Default for LimitBook {
    fn default() -> Self {
        Self::with_room(MOST_SCOPES)
    }
}

/// What a reservation came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reserved {
    /// It is made. What runs low is wished for ahead of need.
    Made(Vec<LeaseWish>),
    /// Nothing is reserved. These leases would have to grow first; more may be had from the database.
    Wanting(Vec<LeaseWish>),
}

impl LimitBook {
    fn with_room(most: usize) -> Self {
        Self {
            shards: (0..SHARDS).map(|_| Mutex::default()).collect(),
            hasher: RandomState::new(),
            most,
            share: AtomicU32::new(WHOLE),
        }
    }

    /// From now on this node enforces that part of each limit.
    pub fn set_share(&self, share: NodeShare) {
        self.share.store(share.0, Ordering::Release);
    }

    fn share(&self) -> NodeShare {
        NodeShare(self.share.load(Ordering::Acquire))
    }

    fn shard(&self, key: &str) -> Option<&Mutex<Shard>> {
        let at = usize::try_from(self.hasher.hash_one(key) % SHARDS as u64).unwrap_or(0);
        self.shards.get(at)
    }

    /// The state of a scope; `None` where no more can be remembered.
    fn scope(&self, key: &str, now: Tick) -> Option<Arc<ScopeGauges>> {
        let mut shard = locked(self.shard(key)?);
        if let Some(scope) = shard.scopes.get(key) {
            return Some(scope.clone());
        }
        if shard.scopes.len() >= self.most.div_ceil(SHARDS) {
            if shard.swept.is_some_and(|swept| swept.after(SWEEP_EVERY) > now) {
                return None;
            }
            shard.swept = Some(now);
            // One that a request holds is in use, whatever its buckets say.
            shard.scopes.retain(|_, scope| Arc::strong_count(scope) > 1 || !scope.is_blank(now));
            if shard.scopes.len() >= self.most.div_ceil(SHARDS) {
                return None;
            }
        }
        let key: Arc<str> = key.into();
        match shard.scopes.entry(key.clone()) {
            Entry::Occupied(known) => Some(known.get().clone()),
            Entry::Vacant(place) => Some(place.insert(Arc::new(ScopeGauges::new(key))).clone()),
        }
    }

    /// Lets a request in, by its number and by how many there are at once. Scopes without limits cost nothing.
    ///
    /// # Errors
    /// A limit is reached (nothing is taken then), or no more callers can be remembered.
    pub fn enter(
        &self,
        scopes: &[(LimitScope<'_>, &LimitSpec)],
        now: Tick,
    ) -> Result<Admission, GatewayError> {
        let share = self.share();
        let mut admission = Admission { holds: Vec::with_capacity(scopes.len()), share };
        for (scope, spec) in scopes.iter().filter(|(_, spec)| !spec.is_empty()) {
            let Some(gauges) = self.scope(&scope.key(), now) else {
                let message = "too many callers at once to keep account of";
                return Err(
                    admission.refuse(GatewayError::new(ErrorCode::Overloaded, message).retry_after(SECOND))
                );
            };
            let mut hold = Hold {
                gauges,
                spec: (*spec).clone(),
                at_once: false,
                request: 0,
                tokens: 0,
                money: Vec::new(),
            };
            if let Some(most) = spec.concurrency {
                let taken = hold.gauges.at_once.fetch_update(Ordering::AcqRel, Ordering::Acquire, |flying| {
                    (flying < most).then(|| flying.saturating_add(1))
                });
                if taken.is_err() {
                    let message = format!("{most} requests at once are allowed; hint: wait for one to end");
                    let error = GatewayError::new(ErrorCode::ConcurrencyExceeded, message);
                    return Err(
                        admission.refuse(error.param(LimitWord::Concurrency.as_str()).retry_after(SECOND))
                    );
                }
                hold.at_once = true;
            }
            if let Some(limit) = spec.requests_per_minute {
                match take(&hold.gauges.requests, 1, limit, share, now, LimitWord::Requests) {
                    Ok(cost) => hold.request = cost,
                    Err(error) => {
                        admission.holds.push(hold);
                        return Err(admission.refuse(error));
                    }
                }
            }
            admission.holds.push(hold);
        }
        Ok(admission)
    }

    /// More of a budget for this node. `dry`: the database has no more, and requests need not wait for any.
    pub fn grant(&self, wish: &LeaseWish, units: i64, dry: bool, now: Tick) {
        if let Some(scope) = self.scope(&wish.key, now) {
            let lease = scope.lease(wish.spec, wish.window);
            lease.used.fetch_max(now.0, Ordering::AcqRel);
            lease.grant(units);
            let until = if dry { now.after(DRY_HOLDS).0 } else { 0 };
            lease.dry_until.store(until, Ordering::Release);
        }
    }

    /// Gives back leases whose window is over or that are idle, and, of the rest, what is not reserved: of one scope
    /// (`only`) when another node wants it, of all at a stop (`all`). A lease with a reservation stays until that is
    /// settled.
    pub fn give_back(&self, only: Option<&str>, all: bool, now: Tick, unix: i64) -> Vec<LeaseReturn> {
        let mut returns = Vec::new();
        for shard in &self.shards {
            let scopes: Vec<_> = locked(shard)
                .scopes
                .values()
                .filter(|scope| only.is_none_or(|only| *scope.key == *only))
                .cloned()
                .collect();
            for scope in scopes {
                locked(&scope.leases).retain(|lease| {
                    let idle = Tick(lease.used.load(Ordering::Acquire)).after(IDLE_LEASE) <= now;
                    let over = lease.window.end <= unix;
                    if !(all || only.is_some() || idle || over) {
                        return true;
                    }
                    let units = lease.give_back();
                    if units != 0 {
                        let (key, spec, window) = (scope.key.clone(), lease.spec, lease.window);
                        returns.push(LeaseReturn { key, spec, window, units });
                    }
                    // Who waits for a reservation's end holds the lease itself.
                    !(idle || over) || lease.reserved() > 0
                });
            }
        }
        returns
    }

    /// Scopes that are remembered.
    pub fn len(&self) -> usize {
        self.shards.iter().map(|shard| locked(shard).scopes.len()).sum()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// What a scope has of its budgets in their present windows on this node.
    pub fn leases(&self, scope: &LimitScope<'_>, unix: i64) -> Vec<Arc<BudgetLease>> {
        let key = scope.key();
        let Some(shard) = self.shard(&key) else { return Vec::new() };
        let Some(gauges) = locked(shard).scopes.get(&*key).cloned() else { return Vec::new() };
        let leases = locked(&gauges.leases);
        leases
            .iter()
            .filter(|lease| lease.window == BudgetWindow::of(lease.spec.per, unix))
            .cloned()
            .collect()
    }
}

const SECOND: Duration = Duration::from_secs(1);

/// Takes from a bucket, and says what it cost.
fn take(
    gauge: &RateGauge,
    count: u64,
    limit: u64,
    share: NodeShare,
    now: Tick,
    word: LimitWord,
) -> Result<u64, GatewayError> {
    let what = if word == LimitWord::Tokens { "tokens" } else { "requests" };
    let message = format!("{limit} {what} a minute are allowed");
    let error = || GatewayError::new(ErrorCode::RateLimitExceeded, &*message).param(word.as_str());
    let Some(cost) = cost(count, limit, share) else { return Err(error().exhausted()) };
    gauge.take(cost, now).map(|()| cost).map_err(|wait| error().retry_after(wait))
}

/// One scope's part of an admission.
#[derive(Debug)]
struct Hold {
    gauges: Arc<ScopeGauges>,
    spec: LimitSpec,
    at_once: bool,
    /// Nanoseconds taken from the bucket of requests.
    request: u64,
    /// Tokens reserved.
    tokens: u64,
    /// Money reserved, by lease.
    money: Vec<(Arc<BudgetLease>, i64)>,
}

impl Hold {
    fn release_reservation(&mut self, share: NodeShare) {
        let tokens = std::mem::take(&mut self.tokens);
        if let Some(cost) = self.spec.tokens_per_minute.and_then(|limit| cost(tokens, limit, share)) {
            self.gauges.tokens.give_back(cost);
        }
        for (lease, units) in self.money.drain(..) {
            lease.settle(units, 0);
        }
    }
}

/// A request that was let in. Dropped without [`Admission::settle`], it gives back what it reserved; its place among
/// the requests at once it gives back in any case.
#[derive(Debug)]
pub struct Admission {
    holds: Vec<Hold>,
    /// Of the moment of entering: what is taken and given back is measured alike.
    share: NodeShare,
}

impl Admission {
    /// Undoes what was taken so far.
    fn refuse(self, error: GatewayError) -> GatewayError {
        for hold in &self.holds {
            hold.gauges.requests.give_back(hold.request);
        }
        error
    }

    /// Reserves tokens, and money in units of 1e-10 USD (0 where the price is unknown), in all scopes or in none.
    ///
    /// # Errors
    /// The limit of tokens is reached, or a budget is spent.
    pub fn reserve(
        &mut self,
        tokens: u64,
        units: i64,
        now: Tick,
        unix: i64,
    ) -> Result<Reserved, GatewayError> {
        let made = self.try_reserve(tokens, units, now, unix);
        if !matches!(made, Ok(Reserved::Made(_))) {
            self.holds.iter_mut().for_each(|hold| hold.release_reservation(self.share));
        }
        made
    }

    fn try_reserve(
        &mut self,
        tokens: u64,
        units: i64,
        now: Tick,
        unix: i64,
    ) -> Result<Reserved, GatewayError> {
        let (mut wanting, mut low) = (Vec::new(), Vec::new());
        for hold in &mut self.holds {
            if let Some(limit) = hold.spec.tokens_per_minute {
                take(&hold.gauges.tokens, tokens, limit, self.share, now, LimitWord::Tokens)?;
                hold.tokens = tokens;
            }
            for spec in &hold.spec.budgets {
                let window = BudgetWindow::of(spec.per, unix);
                let lease = hold.gauges.lease(*spec, window);
                lease.used.fetch_max(now.0, Ordering::AcqRel);
                let wish = |urgent| LeaseWish {
                    key: hold.gauges.key.clone(),
                    spec: *spec,
                    window,
                    units: units.max(1),
                    urgent,
                };
                if lease.reserve(units) {
                    if lease.low(now) {
                        low.push(wish(false));
                    }
                    hold.money.push((lease, units));
                } else if lease.is_dry(now) {
                    let message = format!(
                        "the budget of {} USD a {} does not cover this request; it begins again in {}",
                        Money::from_units(spec.units),
                        spec.per,
                        rough(window.end - unix)
                    );
                    return Err(GatewayError::new(ErrorCode::BudgetExceeded, message)
                        .param(LimitWord::Budget.as_str()));
                } else {
                    wanting.push(wish(true));
                }
            }
        }
        Ok(if wanting.is_empty() { Reserved::Made(low) } else { Reserved::Wanting(wanting) })
    }

    /// Puts what was really used in place of what was reserved. `units`: what it cost; `None`: unknown.
    pub fn settle(mut self, tokens: u64, units: Option<i64>, now: Tick) {
        for hold in &mut self.holds {
            let reserved = std::mem::take(&mut hold.tokens);
            if let Some(limit) = hold.spec.tokens_per_minute {
                let of = |count| cost(count, limit, self.share).unwrap_or(0);
                if tokens > reserved {
                    hold.gauges.tokens.charge(of(tokens - reserved), now);
                } else {
                    hold.gauges.tokens.give_back(of(reserved - tokens));
                }
            }
            for (lease, reserved) in hold.money.drain(..) {
                lease.settle(reserved, units.unwrap_or(0));
            }
        }
    }

    /// The caller's tightest limits of requests and of tokens: `x-ratelimit-*`.
    pub fn rates(&self, now: Tick) -> (Option<RateView>, Option<RateView>) {
        let tightest = |view: &dyn Fn(&Hold) -> Option<RateView>| {
            self.holds.iter().filter_map(view).min_by_key(|view| view.remaining)
        };
        let requests =
            |hold: &Hold| Some(hold.gauges.requests.view(hold.spec.requests_per_minute?, self.share, now));
        let tokens =
            |hold: &Hold| Some(hold.gauges.tokens.view(hold.spec.tokens_per_minute?, self.share, now));
        (tightest(&requests), tightest(&tokens))
    }

    /// Response headers of [`Admission::rates`].
    pub fn headers(&self, now: Tick) -> Vec<(&'static str, String)> {
        const NAMES: [[&str; 3]; 2] = [
            ["x-ratelimit-limit-requests", "x-ratelimit-remaining-requests", "x-ratelimit-reset-requests"],
            ["x-ratelimit-limit-tokens", "x-ratelimit-remaining-tokens", "x-ratelimit-reset-tokens"],
        ];
        let (requests, tokens) = self.rates(now);
        let mut headers = Vec::new();
        for ([limit, remaining, reset], view) in NAMES.into_iter().zip([requests, tokens]) {
            if let Some(view) = view {
                headers.push((limit, view.limit.to_string()));
                headers.push((remaining, view.remaining.to_string()));
                headers.push((reset, view.reset_text()));
            }
        }
        headers
    }
}

impl Drop for Admission {
    fn drop(&mut self) {
        for hold in &mut self.holds {
            hold.release_reservation(self.share);
            if hold.at_once {
                hold.gauges.at_once.fetch_sub(1, Ordering::AcqRel);
            }
        }
    }
}

/// Seconds as people say them.
fn rough(secs: i64) -> String {
    match secs.max(0) {
        secs @ 0..120 => format!("{secs} s"),
        secs @ 120..7_200 => format!("{} min", secs / 60),
        secs @ 7_200..172_800 => format!("{} h", secs / 3_600),
        secs => format!("{} days", secs / DAY),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SCOPE: LimitScope<'static> = LimitScope::Consumer("web");

    fn requests(limit: u64) -> LimitSpec {
        LimitSpec { requests_per_minute: Some(limit), ..LimitSpec::default() }
    }

    fn budget(units: i64, per: BudgetPeriod) -> LimitSpec {
        LimitSpec { budgets: vec![BudgetSpec { units, per }], ..LimitSpec::default() }
    }

    fn enter(book: &LimitBook, spec: &LimitSpec, now: u64) -> Result<Admission, GatewayError> {
        book.enter(&[(SCOPE, spec)], Tick(now))
    }

    #[test]
    fn requests_a_minute_are_counted_and_come_back_with_time() {
        let (book, spec) = (LimitBook::default(), requests(60));
        for left in (0..60).rev() {
            let admission = enter(&book, &spec, 1_000).unwrap();
            assert_eq!(admission.rates(Tick(1_000)).0.unwrap().remaining, left);
        }
        let error = enter(&book, &spec, 1_000).unwrap_err();
        assert_eq!((error.code, error.retry_after_secs()), (ErrorCode::RateLimitExceeded, Some(1)));
        assert_eq!(error.param.as_deref(), Some("requests_per_minute"));
        assert!(enter(&book, &spec, 1_999).is_err());
        let admission = enter(&book, &spec, 2_000).unwrap();
        let headers = admission.headers(Tick(2_000));
        let expected = [
            ("x-ratelimit-limit-requests", "60"),
            ("x-ratelimit-remaining-requests", "0"),
            ("x-ratelimit-reset-requests", "1m0s"),
        ];
        let headers: Vec<_> = headers.iter().map(|(name, value)| (*name, value.as_str())).collect();
        assert_eq!(headers, expected);
        // It holds no more than a minute's worth, however long nothing came.
        let free = (0..100).filter(|_| enter(&book, &spec, 10_000_000).is_ok()).count();
        assert_eq!(free, 60);
        assert!(enter(&LimitBook::default(), &requests(0), 0).is_err());
    }

    #[test]
    fn resets_are_written_as_clients_read_them() {
        let check = |millis, expected: &str| {
            let view = RateView { limit: 1, remaining: 0, reset: Duration::from_millis(millis) };
            assert_eq!(view.reset_text(), expected);
        };
        check(0, "0ms");
        check(20, "20ms");
        check(1_000, "1s");
        check(1_500, "1.500s");
        check(360_000, "6m0s");
    }

    #[test]
    fn tokens_are_reserved_and_settled() {
        let book = LimitBook::default();
        let spec = LimitSpec { tokens_per_minute: Some(6_000), ..LimitSpec::default() };
        let left = |admission: &Admission| admission.rates(Tick(0)).1.unwrap().remaining;
        let mut first = enter(&book, &spec, 0).unwrap();
        first.reserve(5_000, 0, Tick(0), 0).unwrap();
        let mut second = enter(&book, &spec, 0).unwrap();
        assert_eq!(left(&second), 1_000);
        let error = second.reserve(2_000, 0, Tick(0), 0).unwrap_err();
        assert_eq!((error.param.as_deref(), error.retry_after_secs()), (Some("tokens_per_minute"), Some(10)));
        first.settle(1_000, None, Tick(0));
        assert_eq!(left(&second), 5_000);
        second.reserve(2_000, 0, Tick(0), 0).unwrap();
        second.settle(2_500, None, Tick(0));
        let mut third = enter(&book, &spec, 0).unwrap();
        assert_eq!(left(&third), 2_500);
        third.reserve(2_500, 0, Tick(0), 0).unwrap();
        drop(third);
        let mut all = enter(&book, &spec, 60_000).unwrap();
        // What is larger than the bucket passes when it is full, and is paid off.
        all.reserve(60_000, 0, Tick(60_000), 0).unwrap();
        all.settle(60_000, None, Tick(60_000));
        let mut late = enter(&book, &spec, 60_000).unwrap();
        assert_eq!(late.reserve(1, 0, Tick(60_000), 0).unwrap_err().retry_after_secs(), Some(541));
    }

    #[test]
    fn requests_at_once_are_counted_and_given_back() {
        let book = LimitBook::default();
        let spec = LimitSpec { concurrency: Some(2), ..LimitSpec::default() };
        let held: Vec<_> = (0..2).map(|_| enter(&book, &spec, 0).unwrap()).collect();
        assert_eq!(enter(&book, &spec, 0).unwrap_err().code, ErrorCode::ConcurrencyExceeded);
        drop(held);
        enter(&book, &spec, 0).unwrap().settle(0, None, Tick(0));
        let again: Vec<_> = (0..2).map(|_| enter(&book, &spec, 0)).collect();
        assert!(again.iter().all(Result::is_ok));
    }

    #[test]
    fn a_refusal_takes_nothing_from_the_other_scopes() {
        let book = LimitBook::default();
        let (wide, narrow) = (requests(100), requests(1));
        let user = LimitScope::User { tier: "free", consumer: "web", user: "u" };
        let both = || book.enter(&[(SCOPE, &wide), (user, &narrow)], Tick(0));
        both().unwrap();
        for _ in 0..10 {
            assert!(both().is_err());
        }
        let admission = book.enter(&[(SCOPE, &wide)], Tick(0)).unwrap();
        assert_eq!(admission.rates(Tick(0)).0.unwrap().remaining, 98);
        assert_eq!(book.enter(&[(user, &LimitSpec::default())], Tick(0)).unwrap().holds.len(), 0);
    }

    #[test]
    fn budgets_want_leases_and_settle_what_was_spent() {
        let (book, spec) = (LimitBook::default(), budget(1_000, BudgetPeriod::Day));
        let mut admission = enter(&book, &spec, 0).unwrap();
        let Ok(Reserved::Wanting(wishes)) = admission.reserve(0, 100, Tick(0), 0) else { panic!() };
        assert_eq!(
            (wishes[0].units, wishes[0].urgent, wishes[0].window),
            (100, true, BudgetWindow { start: 0, end: DAY })
        );
        book.grant(&wishes[0], 400, false, Tick(0));
        assert_eq!(admission.reserve(0, 100, Tick(0), 0), Ok(Reserved::Made(vec![])));
        let lease = book.leases(&SCOPE, 0).remove(0);
        assert_eq!((lease.left(), lease.reserved(), lease.spent()), (300, 100, 0));
        admission.settle(0, Some(70), Tick(0));
        assert_eq!((lease.left(), lease.reserved(), lease.spent()), (330, 0, 70));
        let mut admission = enter(&book, &spec, 0).unwrap();
        let Ok(Reserved::Made(low)) = admission.reserve(0, 300, Tick(0), 0) else { panic!() };
        assert_eq!((low[0].urgent, low.len()), (false, 1));
        drop(admission);
        assert_eq!(lease.left(), 330);
        // The database has no more: that is an answer at once, believed for a while.
        let mut admission = enter(&book, &spec, 0).unwrap();
        book.grant(&wishes[0], 0, true, Tick(0));
        let error = admission.reserve(0, 500, Tick(0), 3_600).unwrap_err();
        assert_eq!((error.status, error.should_retry), (402, Some(false)));
        assert_eq!(
            &*error.message,
            "the budget of 0.0000001 USD a day does not cover this request; it begins again in 23 h"
        );
        assert!(matches!(admission.reserve(0, 500, Tick(5_000), 0), Ok(Reserved::Wanting(_))));
        // The next day is another lease.
        assert!(matches!(admission.reserve(0, 1, Tick(0), DAY), Ok(Reserved::Wanting(_))));
    }

    #[test]
    fn a_spent_budget_lets_nothing_pass() {
        let (book, spec) = (LimitBook::default(), budget(100, BudgetPeriod::Month));
        let mut admission = enter(&book, &spec, 0).unwrap();
        let Ok(Reserved::Wanting(wishes)) = admission.reserve(0, 100, Tick(0), 0) else { panic!() };
        book.grant(&wishes[0], 100, true, Tick(0));
        admission.reserve(0, 100, Tick(0), 0).unwrap();
        // It cost more than it was reserved for.
        admission.settle(0, Some(130), Tick(0));
        let mut free = enter(&book, &spec, 0).unwrap();
        assert_eq!(free.reserve(0, 0, Tick(0), 0).unwrap_err().code, ErrorCode::BudgetExceeded);
        drop(free);
        let returns = book.give_back(None, true, Tick(0), 0);
        assert_eq!(returns.iter().map(|it| it.units).collect::<Vec<_>>(), [-30], "the overrun is said");
    }

    #[test]
    fn leases_go_back_when_idle_over_or_wanted() {
        let spec = budget(1_000, BudgetPeriod::Day);
        let check = |only: Option<&str>, all: bool, now: u64, unix: i64, units: &[i64], kept: usize| {
            let book = LimitBook::default();
            let mut busy = enter(&book, &spec, 0).unwrap();
            let Ok(Reserved::Wanting(wishes)) = busy.reserve(0, 100, Tick(0), 0) else { panic!() };
            book.grant(&wishes[0], 400, false, Tick(0));
            busy.reserve(0, 100, Tick(0), 0).unwrap();
            let given: Vec<_> =
                book.give_back(only, all, Tick(now), unix).iter().map(|it| it.units).collect();
            assert_eq!(given, units);
            busy.settle(0, Some(40), Tick(now));
            // What was reserved is not lost: it goes back with the next turn.
            let later = book.give_back(None, true, Tick(u64::MAX), unix);
            assert_eq!(later.iter().map(|it| it.units).sum::<i64>(), 360 - units.iter().sum::<i64>());
            assert_eq!(book.leases(&SCOPE, 0).len(), kept);
        };
        check(None, false, 10, 0, &[], 0);
        check(Some("consumer\u{1f}web"), false, 10, 0, &[300], 0);
        check(Some("consumer\u{1f}other"), false, 10, 0, &[], 0);
        check(None, true, 10, 0, &[300], 0);
        check(None, false, 60_000, 0, &[300], 0);
        check(None, false, 10, DAY, &[300], 0);
    }

    #[test]
    fn only_blank_scopes_are_forgotten() {
        let book = LimitBook::with_room(SHARDS);
        let spec = requests(60);
        let user = |at: u64| format!("u{at}");
        let enter = |at: u64, now: u64| {
            let user = user(at);
            book.enter(&[(LimitScope::User { tier: "t", consumer: "c", user: &user }, &spec)], Tick(now))
        };
        let let_in: Vec<u64> = (0..1_000).filter(|at| enter(*at, 0).is_ok()).collect();
        assert!(let_in.len() <= SHARDS && book.len() == let_in.len());
        let error = (0..1_000).find_map(|at| enter(at, 0).err()).unwrap();
        assert_eq!(error.code, ErrorCode::Overloaded);
        // Their buckets are full again after a second, and others may take their places.
        assert!((0..1_000).filter(|at| enter(1_000 + at, 1_000).is_ok()).count() > 0);
        assert!(book.len() <= SHARDS);
    }

    #[test]
    fn windows_are_those_of_the_calendar() {
        let check = |period, now: i64, start: i64, end: i64| {
            assert_eq!(BudgetWindow::of(period, now), BudgetWindow { start, end }, "{period} {now}");
        };
        // 2024-02-29T12:00:00Z, a Thursday.
        let leap = 1_709_208_000;
        check(BudgetPeriod::Day, leap, 1_709_164_800, 1_709_251_200);
        check(BudgetPeriod::Week, leap, 1_708_905_600, 1_709_510_400);
        check(BudgetPeriod::Month, leap, 1_706_745_600, 1_709_251_200);
        // The last second of 2026, a Thursday, and the first of 2027.
        check(BudgetPeriod::Month, 1_798_761_599, 1_796_083_200, 1_798_761_600);
        check(BudgetPeriod::Month, 1_798_761_600, 1_798_761_600, 1_801_440_000);
        // Monday begins a week.
        check(BudgetPeriod::Week, 4 * DAY, 4 * DAY, 11 * DAY);
        check(BudgetPeriod::Week, 4 * DAY - 1, -3 * DAY, 4 * DAY);
        check(BudgetPeriod::Day, -1, -DAY, 0);
    }

    #[test]
    fn a_quiet_node_can_begin_and_a_busy_one_has_the_most() {
        let shares = |demands: &[u64]| {
            (0..demands.len()).map(|at| NodeShare::of(demands, at).millionths()).collect::<Vec<_>>()
        };
        assert_eq!(shares(&[5]), [1_000_000]);
        assert_eq!(shares(&[0, 0]), [500_000, 500_000]);
        assert!(shares(&[1_000, 0])[0] > 950_000 && shares(&[1_000, 0])[1] > 20_000);
    }

    proptest! {
        #[test]
        fn shares_are_never_more_than_the_whole(demands in prop::collection::vec(any::<u64>(), 1..20)) {
            let shares: Vec<_> = (0..demands.len()).map(|at| NodeShare::of(&demands, at).millionths()).collect();
            prop_assert!(shares.iter().all(|share| *share > 0));
            prop_assert!(shares.iter().sum::<u32>() <= WHOLE);
        }

        #[test]
        fn windows_hold_their_moment_and_follow_each_other(now in -70_000_000_000..LATEST) {
            for period in BudgetPeriod::ALL {
                let window = BudgetWindow::of(*period, now);
                prop_assert!(window.start <= now && now < window.end);
                let days = (window.end - window.start) / DAY;
                let expected = match period {
                    BudgetPeriod::Day => 1..=1,
                    BudgetPeriod::Week => 7..=7,
                    BudgetPeriod::Month => 28..=31,
                };
                prop_assert!(expected.contains(&days));
                prop_assert_eq!(BudgetWindow::of(*period, window.end).start, window.end);
                prop_assert_eq!(BudgetWindow::of(*period, window.end - 1), window);
            }
            let _ = BudgetWindow::of(BudgetPeriod::Month, i64::MAX);
            let _ = BudgetWindow::of(BudgetPeriod::Week, i64::MIN);
        }

        #[test]
        fn never_more_than_the_bucket_and_its_refill(
            limit in 1..500_u64,
            steps in prop::collection::vec((0..3_000_u64, 1..40_u64), 1..200),
        ) {
            let gauge = RateGauge::default();
            let (mut now, mut taken) = (0, 0);
            for (passed, count) in steps {
                now += passed;
                let cost = cost(count, limit, NodeShare::ALL).unwrap();
                if count <= limit && gauge.take(cost, Tick(now)).is_ok() {
                    taken += count;
                }
                // One more for rounding down each cost to nanoseconds.
                prop_assert!(taken <= limit + limit * now / 60_000 + 1);
            }
        }
    }

    #[test]
    fn two_hundred_threads_never_spend_more_than_the_lease() {
        const THREADS: usize = 200;
        const GRANTED: i64 = 10_000;
        let (book, spec) = (LimitBook::default(), budget(GRANTED, BudgetPeriod::Day));
        let wish = {
            let mut admission = enter(&book, &spec, 0).unwrap();
            let Ok(Reserved::Wanting(mut wishes)) = admission.reserve(0, 1, Tick(0), 0) else { panic!() };
            wishes.remove(0)
        };
        book.grant(&wish, GRANTED, true, Tick(0));
        let spent = AtomicI64::new(0);
        let barrier = std::sync::Barrier::new(THREADS);
        std::thread::scope(|scope| {
            for thread in 0..THREADS {
                let (book, spec, spent, barrier) = (&book, &spec, &spent, &barrier);
                scope.spawn(move || {
                    barrier.wait();
                    for at in 0..40 {
                        let mut admission = enter(book, spec, 0).unwrap();
                        let units = i64::try_from((thread * 7 + at * 13) % 97 + 1).unwrap();
                        if admission.reserve(0, units, Tick(0), 0).is_err() {
                            continue;
                        }
                        match at % 3 {
                            0 => drop(admission),
                            1 => {
                                admission.settle(0, Some(units / 2), Tick(0));
                                spent.fetch_add(units / 2, Ordering::AcqRel);
                            }
                            _ => {
                                admission.settle(0, Some(units), Tick(0));
                                spent.fetch_add(units, Ordering::AcqRel);
                            }
                        }
                    }
                });
            }
        });
        let lease = book.leases(&SCOPE, 0).remove(0);
        let spent = spent.load(Ordering::Acquire);
        assert!(spent <= GRANTED, "{spent}");
        assert_eq!((lease.spent(), lease.reserved(), lease.left()), (spent, 0, GRANTED - spent));
        assert!(GRANTED - spent < 97, "what was left was refused: {spent}");
    }

    #[test]
    fn two_hundred_threads_pass_no_more_than_the_limit() {
        let (book, spec) = (LimitBook::default(), LimitSpec { concurrency: Some(50), ..requests(1_000) });
        let (passed, peak, flying) = (AtomicU32::new(0), AtomicU32::new(0), AtomicU32::new(0));
        let barrier = std::sync::Barrier::new(200);
        std::thread::scope(|scope| {
            for _ in 0..200 {
                scope.spawn(|| {
                    barrier.wait();
                    for _ in 0..20 {
                        if let Ok(admission) = enter(&book, &spec, 0) {
                            peak.fetch_max(flying.fetch_add(1, Ordering::AcqRel) + 1, Ordering::AcqRel);
                            passed.fetch_add(1, Ordering::AcqRel);
                            std::thread::yield_now();
                            flying.fetch_sub(1, Ordering::AcqRel);
                            drop(admission);
                        }
                    }
                });
            }
        });
        assert!(passed.load(Ordering::Acquire) <= 1_000);
        assert!(peak.load(Ordering::Acquire) <= 50);
        assert!(passed.load(Ordering::Acquire) >= 50, "it lets pass what is allowed");
    }
}
