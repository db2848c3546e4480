//! Limits and budgets of callers: what is taken before a request, and set right after it.
//!
//! Its job: requests and tokens per minute, requests at once, and money against leases, all held locally and changed
//! by compare-and-swap; the windows of budgets; a node's share of a limit. Not its job: getting leases and shares from
//! the database (it says what it wants, as values), prices, and who the caller is. Invariants: what is reserved and
//! spent never exceeds what was leased, except by answers that cost more than they were reserved for; what one
//! refusal took is given back; a bucket that is not full is never forgotten, which would refill it.

mod lease;
mod rate;
mod window;

use std::{
    collections::{HashMap, hash_map::Entry},
    hash::{BuildHasher, RandomState},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
    time::Duration,
};

use catalog::price::Money;
use provider::words;

pub use lease::{BudgetLease, BudgetSpend, LeaseReturn, LeaseWish};
pub(crate) use rate::decimal;
pub use rate::{NodeShare, RateView};
use rate::{RateGauge, WHOLE, cost, take};
pub use window::BudgetWindow;
use window::DAY;

use crate::{
    error::{ErrorCode, GatewayError},
    picture::{BudgetSpec, LimitSpec},
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

/// What limits hold for.
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

/// Between the parts of a scope's text: a character that no name holds.
pub const SCOPE_PARTS: &str = "\u{1f}";

impl<'a> LimitScope<'a> {
    /// One text per scope, the same on every node: what a lease is kept under.
    pub fn key(&self) -> String {
        match self {
            Self::Consumer(name) => ["consumer", name].join(SCOPE_PARTS),
            Self::User { tier, consumer, user } => ["user", tier, consumer, user].join(SCOPE_PARTS),
        }
    }

    /// The scope of a text of [`Self::key`]; `None`: it is none.
    pub fn parse(key: &'a str) -> Option<Self> {
        let (kind, rest) = key.split_once(SCOPE_PARTS)?;
        if kind == "consumer" {
            return Some(Self::Consumer(rest));
        }
        let mut parts = rest.splitn(3, SCOPE_PARTS);
        let (tier, consumer, user) = (parts.next()?, parts.next()?, parts.next()?);
        (kind == "user").then_some(Self::User { tier, consumer, user })
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
    /// Requests that came under a limit, since they were last asked for.
    demand: AtomicU64,
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
    /// Nothing is reserved. These leases would have to grow first; the database may grant more.
    Wanting(Vec<LeaseWish>),
}

impl LimitBook {
    fn with_room(most: usize) -> Self {
        Self {
            shards: (0..SHARDS).map(|_| Mutex::default()).collect(),
            hasher: RandomState::new(),
            most,
            share: AtomicU32::new(WHOLE),
            demand: AtomicU64::new(0),
        }
    }

    /// From now on this node enforces that part of each limit.
    pub fn set_share(&self, share: NodeShare) {
        self.share.store(share.millionths(), Ordering::Release);
    }

    /// The part of each limit that this node enforces.
    pub fn share(&self) -> NodeShare {
        NodeShare::of_millionths(self.share.load(Ordering::Acquire))
    }

    /// Requests that came under a limit, let in or not, since the last call: what shares are made from.
    pub fn take_demand(&self) -> u64 {
        self.demand.swap(0, Ordering::AcqRel)
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
        if scopes.iter().any(|(_, spec)| spec.is_shared()) {
            self.demand.fetch_add(1, Ordering::Relaxed);
        }
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
                let here = share.of_count(most);
                let taken = hold.gauges.at_once.fetch_update(Ordering::AcqRel, Ordering::Acquire, |flying| {
                    (flying < here).then(|| flying.saturating_add(1))
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
            lease.used(now);
            lease.grant(units);
            lease.dry_until(if dry { now.after(DRY_HOLDS) } else { Tick(0) });
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
                    let idle = lease.last_used().after(IDLE_LEASE) <= now;
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
                    !(idle || over) || lease.reserved() > 0 || lease.has_news()
                });
            }
        }
        returns
    }

    /// What was spent of each lease since the last call. A report that does not arrive is put back by
    /// [`Self::unreported`].
    pub fn spends(&self) -> Vec<BudgetSpend> {
        let mut spends = Vec::new();
        for shard in &self.shards {
            let scopes: Vec<_> = locked(shard).scopes.values().cloned().collect();
            for scope in scopes {
                for lease in locked(&scope.leases).iter() {
                    let units = lease.take_news();
                    if units != 0 {
                        let (key, spec, window) = (scope.key.clone(), lease.spec, lease.window);
                        spends.push(BudgetSpend { key, spec, window, units });
                    }
                }
            }
        }
        spends
    }

    /// A report of [`Self::spends`] did not arrive: the next one says it again.
    pub fn unreported(&self, spend: &BudgetSpend, now: Tick) {
        if let Some(scope) = self.scope(&spend.key, now) {
            scope.lease(spend.spec, spend.window).put_news_back(spend.units);
        }
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
                lease.used(now);
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
mod tests;
