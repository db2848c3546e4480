//! Parts of budgets that this node may spend.

use std::sync::{
    Arc,
    atomic::{AtomicI64, AtomicU64, Ordering},
};

use super::BudgetWindow;
use crate::{picture::BudgetSpec, tick::Tick};

/// A part of a budget that this node may spend within one window; units of 1e-10 USD.
#[derive(Debug)]
pub struct BudgetLease {
    pub spec: BudgetSpec,
    pub window: BudgetWindow,
    /// Neither reserved nor spent; below zero where answers cost more than was reserved.
    left: AtomicI64,
    /// The last grant that gave anything.
    quantum: AtomicI64,
    reserved: AtomicI64,
    spent: AtomicI64,
    /// Of what was spent, what was reported.
    reported: AtomicI64,
    /// Until when the database needs not be asked for more: it had none.
    dry_until: AtomicU64,
    /// When it was used last.
    used: AtomicU64,
}

impl BudgetLease {
    pub(super) fn new(spec: BudgetSpec, window: BudgetWindow) -> Self {
        Self {
            spec,
            window,
            left: AtomicI64::new(0),
            quantum: AtomicI64::new(0),
            reserved: AtomicI64::new(0),
            spent: AtomicI64::new(0),
            reported: AtomicI64::new(0),
            dry_until: AtomicU64::new(0),
            used: AtomicU64::new(0),
        }
    }

    /// Reserves, if so much is left. Where nothing is left nothing passes, not even what costs nothing.
    pub(super) fn reserve(&self, units: i64) -> bool {
        let units = units.max(0);
        // Counted first: a task that gives the lease back in between sees that it is in use.
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
    pub(super) fn settle(&self, reserved: i64, spent: i64) {
        let (reserved, spent) = (reserved.max(0), spent.max(0));
        self.spent.fetch_add(spent, Ordering::AcqRel);
        self.left.fetch_add(reserved.saturating_sub(spent), Ordering::AcqRel);
        self.reserved.fetch_sub(reserved, Ordering::AcqRel);
    }

    pub(super) fn grant(&self, units: i64) {
        if units > 0 {
            self.quantum.store(units, Ordering::Release);
            self.left.fetch_add(units, Ordering::AcqRel);
        }
    }

    /// Takes out what is neither reserved nor spent; below zero: what was spent beyond it.
    pub(super) fn give_back(&self) -> i64 {
        self.left.swap(0, Ordering::AcqRel)
    }

    /// What was spent and not yet reported.
    pub(super) fn take_news(&self) -> i64 {
        let spent = self.spent();
        spent - self.reported.swap(spent, Ordering::AcqRel)
    }

    pub(super) fn put_news_back(&self, units: i64) {
        self.reported.fetch_sub(units, Ordering::AcqRel);
    }

    pub(super) fn has_news(&self) -> bool {
        self.spent() != self.reported.load(Ordering::Acquire)
    }

    /// More was granted, or the database has none until then.
    pub(super) fn dry_until(&self, until: Tick) {
        self.dry_until.store(until.0, Ordering::Release);
    }

    pub(super) fn used(&self, now: Tick) {
        self.used.fetch_max(now.0, Ordering::AcqRel);
    }

    pub(super) fn last_used(&self) -> Tick {
        Tick(self.used.load(Ordering::Acquire))
    }

    pub(super) fn is_dry(&self, now: Tick) -> bool {
        self.dry_until.load(Ordering::Acquire) > now.0
    }

    /// Less than a quarter of the last grant is left: time to ask for more, before a request has to wait. A node that
    /// dies takes no more than about one grant along.
    pub(super) fn low(&self, now: Tick) -> bool {
        !self.is_dry(now) && self.left.load(Ordering::Acquire) < self.quantum.load(Ordering::Acquire) / 4
    }

    /// Neither reserved nor spent, in units of 1e-10 USD; below zero where answers cost more than was reserved.
    pub fn left(&self) -> i64 {
        self.left.load(Ordering::Acquire)
    }

    /// Spent, in units of 1e-10 USD.
    pub fn spent(&self) -> i64 {
        self.spent.load(Ordering::Acquire)
    }

    /// Reserved by requests under way, in units of 1e-10 USD.
    pub fn reserved(&self) -> i64 {
        self.reserved.load(Ordering::Acquire)
    }
}

/// Part of a budget that this node wants.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeaseWish {
    /// Whose budget: [`super::LimitScope::key`].
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

/// What this node spent of a budget since it last said so.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BudgetSpend {
    /// Whose budget: [`super::LimitScope::key`].
    pub key: Arc<str>,
    pub spec: BudgetSpec,
    pub window: BudgetWindow,
    /// In units of 1e-10 USD.
    pub units: i64,
}
