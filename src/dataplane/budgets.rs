//! What is left of budgets: what manifests declare beside what nodes took.
//!
//! Not its job: leasing and enforcing. Invariant: what is shown as used is what the rows of usage sum up to; what gateways
//! took for requests under way, and for their next ones, is shown apart.

use std::collections::HashMap;

use chrono::{DateTime, TimeDelta, Utc};
use gateway::{
    limit::{BudgetWindow, LimitScope},
    picture::{BudgetPeriod, BudgetSpec, ConsumerInput, LimitSpec, TierInput},
};
use serde::Serialize;
use utoipa::ToSchema;

use catalog::{price::Money, serving::ObjectKind};

use super::leases::{budget_name, named_budget};
use crate::store::{BudgetTaken, Result, SpentSums, Store};

/// Windows that are looked at begin no longer ago than the longest one lasts.
const LONGEST: TimeDelta = TimeDelta::days(31);
/// Budgets of users that are looked at: those that used most.
const MOST: u32 = 1_000;

/// Limits and budgets of callers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct BudgetAnswer {
    /// Every budget of every consumer, and of each user of a tier who used some; the nearest to its end first.
    pub budgets: Vec<BudgetLine>,
    /// What else limits consumers and tiers.
    pub limits: Vec<LimitLine>,
}

/// One budget in its present window.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct BudgetLine {
    /// The consumer that it is for, or that the user asks through.
    pub consumer: String,
    /// Only where it is a budget of each user of a tier.
    pub tier: Option<String>,
    pub user: Option<String>,
    /// `day`, `week` or `month`.
    pub per: String,
    /// Exact, as a decimal number in a text; so are the others.
    pub limit_usd: String,
    /// By the rows of usage that are stored.
    pub used_usd: String,
    /// Beyond that, reserved by requests under way, or held by gateways for their next ones.
    pub held_usd: String,
    /// Neither used nor held.
    pub left_usd: String,
    pub used_percent: u32,
    pub window_start: DateTime<Utc>,
    pub window_end: DateTime<Utc>,
}

/// What limits a consumer, or each user of a tier.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct LimitLine {
    /// One of the two is there.
    pub consumer: Option<String>,
    pub tier: Option<String>,
    pub requests_per_minute: Option<u64>,
    pub tokens_per_minute: Option<u64>,
    /// Requests at once.
    pub concurrency: Option<u32>,
}

/// How many budgets have used so much.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct BudgetCounts {
    /// At least 80 %, those included that have used everything.
    pub at_80: usize,
    pub at_100: usize,
}

impl BudgetAnswer {
    pub fn counts(&self) -> BudgetCounts {
        let over = |percent| self.budgets.iter().filter(|line| line.used_percent >= percent).count();
        BudgetCounts { at_80: over(80), at_100: over(100) }
    }
}

/// Reads what is declared and what was taken.
///
/// # Errors
/// The database cannot be read.
pub async fn read(store: &Store, now: DateTime<Utc>) -> Result<BudgetAnswer> {
    let objects = store.gateway_objects().await?;
    let (mut consumers, mut tiers) = (Vec::new(), Vec::new());
    for object in objects {
        // What cannot be read is a problem of the picture, which says so.
        match object.kind {
            ObjectKind::Consumer => consumers.extend(super::picture::consumer(&object)),
            ObjectKind::Tier => tiers.extend(super::picture::tier(&object)),
            _ => {}
        }
    }
    let taken = store.budgets_taken(now - LONGEST, MOST).await?;
    let users: Vec<(String, String)> = taken
        .iter()
        .filter_map(|it| match scope_of(&it.budget)? {
            (_, LimitScope::User { consumer, user, .. }) => Some((consumer.to_owned(), user.to_owned())),
            (_, LimitScope::Consumer(_)) => None,
        })
        .collect();
    let begins = PERIODS
        .map(|per| DateTime::from_timestamp(BudgetWindow::of(per, now.timestamp()).start, 0).unwrap_or(now));
    let spent = store.spent_since(begins, &users).await?;
    Ok(answer(&consumers, &tiers, &taken, &spent, now))
}

/// In this order the store sums up what was spent.
const PERIODS: [BudgetPeriod; 3] = [BudgetPeriod::Day, BudgetPeriod::Week, BudgetPeriod::Month];

fn spent_of(spent: &[SpentSums], consumer: &str, user: Option<&str>, per: BudgetPeriod) -> i64 {
    let found = spent.iter().find(|it| it.consumer == consumer && it.user.as_deref() == user);
    let at = PERIODS.iter().position(|it| *it == per);
    found.zip(at).and_then(|(sums, at)| sums.units.get(at).copied()).unwrap_or(0)
}

fn answer(
    consumers: &[ConsumerInput],
    tiers: &[TierInput],
    taken: &[BudgetTaken],
    spent: &[SpentSums],
    now: DateTime<Utc>,
) -> BudgetAnswer {
    let units: HashMap<(&str, i64), i64> =
        taken.iter().map(|it| ((it.budget.as_str(), it.start.timestamp()), it.units)).collect();
    let mut budgets = Vec::new();
    for consumer in consumers {
        let key = LimitScope::Consumer(&consumer.name).key();
        for spec in &consumer.limits.budgets {
            let window = BudgetWindow::of(spec.per, now.timestamp());
            let name = budget_name(&key, spec.per.as_str());
            let took = units.get(&(name.as_str(), window.start)).copied().unwrap_or(0);
            let used = spent_of(spent, &consumer.name, None, spec.per);
            budgets.extend(line(consumer.name.clone(), None, spec, window, used, took));
        }
    }
    for it in taken {
        let Some((per, LimitScope::User { tier, consumer, user })) = scope_of(&it.budget) else { continue };
        let Some(declared) = tiers.iter().find(|it| it.name == tier) else { continue };
        let specs = declared.limits.budgets.iter().filter(|spec| spec.per.as_str() == per);
        for spec in specs {
            let window = BudgetWindow::of(spec.per, now.timestamp());
            if window.start == it.start.timestamp() {
                let used = spent_of(spent, consumer, Some(user), spec.per);
                let of_user = Some((tier.to_owned(), user.to_owned()));
                budgets.extend(line(consumer.to_owned(), of_user, spec, window, used, it.units));
            }
        }
    }
    budgets.sort_by(|a, b| {
        (b.used_percent, &a.consumer, &a.user, &a.per).cmp(&(a.used_percent, &b.consumer, &b.user, &b.per))
    });
    let limit = |consumer: Option<&String>, tier: Option<&String>, of: &LimitSpec| LimitLine {
        consumer: consumer.cloned(),
        tier: tier.cloned(),
        requests_per_minute: of.requests_per_minute,
        tokens_per_minute: of.tokens_per_minute,
        concurrency: of.concurrency,
    };
    let limits = consumers
        .iter()
        .map(|it| limit(Some(&it.name), None, &it.limits))
        .chain(tiers.iter().map(|it| limit(None, Some(&it.name), &it.limits)))
        .filter(|it| {
            it.requests_per_minute.is_some() || it.tokens_per_minute.is_some() || it.concurrency.is_some()
        });
    BudgetAnswer { budgets, limits: limits.collect() }
}

fn line(
    consumer: String,
    user: Option<(String, String)>,
    spec: &BudgetSpec,
    window: BudgetWindow,
    used: i64,
    took: i64,
) -> Option<BudgetLine> {
    let used = used.max(0);
    let held = took.saturating_sub(used).max(0);
    let percent = if spec.units <= 0 { 100 } else { i128::from(used) * 100 / i128::from(spec.units) };
    let (tier, user) = user.unzip();
    Some(BudgetLine {
        consumer,
        tier,
        user,
        per: spec.per.as_str().to_owned(),
        limit_usd: usd(spec.units),
        used_usd: usd(used),
        held_usd: usd(held),
        left_usd: usd(spec.units.saturating_sub(used).saturating_sub(held).max(0)),
        used_percent: u32::try_from(percent).unwrap_or(u32::MAX),
        window_start: DateTime::from_timestamp(window.start, 0)?,
        window_end: DateTime::from_timestamp(window.end, 0)?,
    })
}

fn usd(units: i64) -> String {
    Money::from_units(units).to_string()
}

/// Period and scope of a budget's name.
fn scope_of(name: &str) -> Option<(&str, LimitScope<'_>)> {
    let (per, key) = named_budget(name)?;
    Some((per, LimitScope::parse(key)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(usd: i64, per: BudgetPeriod) -> LimitSpec {
        LimitSpec {
            requests_per_minute: Some(60),
            budgets: vec![BudgetSpec { units: usd * 10_000_000_000, per }],
            ..LimitSpec::default()
        }
    }

    #[test]
    fn budgets_show_what_is_left_in_their_window() {
        let now: DateTime<Utc> = "2026-03-11T10:00:00Z".parse().unwrap();
        let consumers = [
            ConsumerInput {
                name: "web".into(),
                limits: spec(50, BudgetPeriod::Month),
                ..ConsumerInput::default()
            },
            ConsumerInput {
                name: "idle".into(),
                limits: spec(1, BudgetPeriod::Week),
                ..ConsumerInput::default()
            },
        ];
        let tiers = [TierInput { name: "free".into(), limits: spec(2, BudgetPeriod::Day) }];
        let scope = LimitScope::User { tier: "free", consumer: "web", user: "ada" };
        let taken = |key: &str, per: &str, start: &str, usd: i64| BudgetTaken {
            budget: budget_name(key, per),
            start: start.parse().unwrap(),
            units: usd * 10_000_000_000,
        };
        let web = LimitScope::Consumer("web").key();
        let rows = [
            taken(&web, "month", "2026-03-01T00:00:00Z", 41),
            // The month before counts no more, and neither does another period of another day.
            taken(&web, "month", "2026-02-01T00:00:00Z", 50),
            taken(&scope.key(), "day", "2026-03-11T00:00:00Z", 2),
            taken(&scope.key(), "day", "2026-03-10T00:00:00Z", 1),
            taken("user\u{1f}gone\u{1f}web\u{1f}ben", "day", "2026-03-11T00:00:00Z", 1),
        ];
        let sums = |user: Option<&str>, usd: [i64; 3]| SpentSums {
            consumer: "web".into(),
            user: user.map(str::to_owned),
            units: usd.map(|it| it * 10_000_000_000),
        };
        // The month's rows say 40 USD; one more is held.
        let spent = [sums(None, [3, 9, 40]), sums(Some("ada"), [2, 2, 2])];
        let found = answer(&consumers, &tiers, &rows, &spent, now);
        let shown: Vec<_> = found
            .budgets
            .iter()
            .map(|it| {
                (
                    it.consumer.as_str(),
                    it.user.as_deref(),
                    it.per.as_str(),
                    it.used_percent,
                    it.left_usd.as_str(),
                )
            })
            .collect();
        assert_eq!(
            shown,
            [
                ("web", Some("ada"), "day", 100, "0"),
                ("web", None, "month", 80, "9"),
                ("idle", None, "week", 0, "1")
            ]
        );
        assert_eq!(found.counts(), BudgetCounts { at_80: 2, at_100: 1 });
        assert_eq!(found.limits.len(), 3);
    }
}
