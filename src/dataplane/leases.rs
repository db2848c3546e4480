//! Parts of budgets for this node: takes them when the gateway wishes, gives back what is not used.
//!
//! Not its job: enforcing. Invariant: the gateway never waits for this on the path of a request; while PostgreSQL is
//! away wishes stay unanswered, and budgets hold with what was leased.

use std::{collections::HashMap, sync::Arc, time::Duration};

use chrono::{DateTime, Utc};
use gateway::{
    limit::{LeaseReturn, LeaseWish, SCOPE_PARTS},
    serve::Gateway,
};
use prometheus::{IntGauge, IntGaugeVec, Opts, Registry};
use tokio::{
    sync::mpsc,
    time::{Instant, interval},
};
use tokio_util::sync::CancellationToken;
use tracing::debug;
use uuid::Uuid;

use super::{
    budgets::{self, BudgetCounts},
    keeper::unix,
};
use crate::store::{LeaseTake, Store, wanted_budget};

/// Between two looks for leases that are idle or whose window is over, and two reports of what was spent.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// Between two looks at how much of all budgets is used.
const MEASURE_EVERY: Duration = Duration::from_secs(15);

/// Between two looks for budgets whose windows are long over.
const EXPIRE_EVERY: Duration = Duration::from_secs(3600);

/// Wishes that are answered together: all that wait for one lease get it by one statement.
const AT_ONCE: usize = 256;

/// However many wait, they ask for this share of a budget at once: the others want some, too.
const AT_MOST: i64 = 20;

/// How long other nodes have to give back what they do not use: as long as a request waits for its part.
const OTHERS_WITHIN: Duration = Duration::from_millis(250);

/// How many budgets are nearly used, for Prometheus; a caller is never a label.
pub struct BudgetMeters {
    at_80: IntGauge,
    at_100: IntGauge,
}

impl BudgetMeters {
    /// # Errors
    /// The name is taken in this registry.
    pub fn register(registry: &Registry) -> Result<Self, prometheus::Error> {
        let used = IntGaugeVec::new(
            Opts::new(
                "providerd_usage_budgets_used",
                "Budgets of consumers and users of which at least so many per cent are used in the present window",
            ),
            &["percent"],
        )?;
        registry.register(Box::new(used.clone()))?;
        Ok(Self { at_80: used.with_label_values(&["80"]), at_100: used.with_label_values(&["100"]) })
    }

    fn show(&self, counts: BudgetCounts) {
        self.at_80.set(i64::try_from(counts.at_80).unwrap_or(i64::MAX));
        self.at_100.set(i64::try_from(counts.at_100).unwrap_or(i64::MAX));
    }
}

/// Answers wishes until `stop`, then gives everything back.
pub async fn serve_wishes(
    gateway: Arc<Gateway>,
    store: Store,
    node: Uuid,
    mut wishes: mpsc::Receiver<Vec<LeaseWish>>,
    stop: CancellationToken,
) {
    let mut tick = interval(LOOK_EVERY);
    let mut heard = store.listen_budgets();
    let mut wished = Vec::with_capacity(AT_ONCE);
    let mut asked = HashMap::new();
    loop {
        tokio::select! {
            () = stop.cancelled() => break,
            count = wishes.recv_many(&mut wished, AT_ONCE), if !wishes.is_closed() => {
                if count > 0 {
                    for wish in together(wished.drain(..).flatten()) {
                        take(&gateway, &store, node, &wish, &mut asked).await;
                    }
                }
            }
            notice = heard.notice() => {
                let budget = notice.as_deref().and_then(|notice| wanted_budget(notice, node));
                if let Some((_, key)) = budget.and_then(named_budget) {
                    report(&gateway, &store, node).await;
                    let returns = gateway.limits().give_back(Some(key), false, gateway.now(), unix());
                    give(&store, node, returns).await;
                }
            }
            _ = tick.tick() => {
                asked.retain(|_, at: &mut Instant| at.elapsed() < LOOK_EVERY);
                report(&gateway, &store, node).await;
                let returns = gateway.limits().give_back(None, false, gateway.now(), unix());
                give(&store, node, returns).await;
            }
        }
    }
    report(&gateway, &store, node).await;
    let returns = gateway.limits().give_back(None, true, gateway.now(), unix());
    give(&store, node, returns).await;
}

/// Counts budgets that are nearly used and forgets old ones, until `stop`. Apart from the wishes, which may not wait for it.
pub async fn look_after_budgets(store: Store, meters: BudgetMeters, stop: CancellationToken) {
    let mut expire = interval(EXPIRE_EVERY);
    let mut measure = interval(MEASURE_EVERY);
    let looking = async {
        loop {
            tokio::select! {
                _ = expire.tick() => {
                    if let Err(error) = store.budgets_expire(Utc::now()).await {
                        debug!(%error, "old budgets are not deleted yet");
                    }
                }
                _ = measure.tick() => match budgets::read(&store, Utc::now()).await {
                    Ok(answer) => meters.show(answer.counts()),
                    Err(error) => debug!(%error, "what is left of budgets is not known"),
                },
            }
        }
    };
    stop.run_until_cancelled(looking).await;
}

/// One wish for each lease: what all that wait for it need.
fn together(wishes: impl Iterator<Item = LeaseWish>) -> Vec<LeaseWish> {
    let mut merged: Vec<LeaseWish> = Vec::new();
    for wish in wishes {
        let same = |known: &&mut LeaseWish| {
            known.key == wish.key && known.spec == wish.spec && known.window == wish.window
        };
        match merged.iter_mut().find(same) {
            Some(known) if known.urgent && wish.urgent => {
                let most = (wish.spec.units / AT_MOST).max(wish.units);
                known.units = known.units.saturating_add(wish.units).min(most);
            }
            Some(known) if known.urgent || !wish.urgent => {}
            Some(known) => *known = wish,
            None => merged.push(wish),
        }
    }
    merged
}

/// When other nodes were asked for a budget.
type AskedOthers = HashMap<String, Instant>;

async fn take(gateway: &Gateway, store: &Store, node: Uuid, wish: &LeaseWish, asked: &mut AskedOthers) {
    let (Some(window_start), Some(window_end)) = (at(wish.window.start), at(wish.window.end)) else { return };
    let budget = budget_name(&wish.key, wish.spec.per.as_str());
    let taken = store
        .budget_take(&LeaseTake {
            budget: &budget,
            window_start,
            window_end,
            node,
            limit: wish.spec.units,
            least: wish.units,
        })
        .await;
    match taken {
        Ok(taken) => {
            // What others give back comes within moments; what they still hold after that, they use.
            if taken.units > 0 {
                asked.remove(&budget);
            }
            let waiting = taken.asked_others
                && asked.entry(budget).or_insert_with(Instant::now).elapsed() < OTHERS_WITHIN;
            gateway.limits().grant(wish, taken.units, taken.dry && !waiting, gateway.now());
        }
        Err(error) => debug!(%error, "no part of a budget could be taken"),
    }
}

async fn give(store: &Store, node: Uuid, returns: Vec<LeaseReturn>) {
    for back in returns {
        let Some(window_start) = at(back.window.start) else { continue };
        let budget = budget_name(&back.key, back.spec.per.as_str());
        if let Err(error) = store.budget_return(&budget, window_start, node, back.units).await {
            debug!(%error, "a part of a budget could not be given back; it counts as spent");
        }
    }
}

/// Says what was spent, so that the database knows it before the window is over.
async fn report(gateway: &Gateway, store: &Store, node: Uuid) {
    for spend in gateway.limits().spends() {
        let Some(window_start) = at(spend.window.start) else { continue };
        let budget = budget_name(&spend.key, spend.spec.per.as_str());
        if let Err(error) = store.budget_spent(&budget, window_start, node, spend.units).await {
            debug!(%error, "what was spent of a budget could not be reported yet");
            gateway.limits().unreported(&spend, gateway.now());
        }
    }
}

/// One budget of one scope. The amount is not part of it: a raised budget goes on where it was.
pub(super) fn budget_name(key: &str, per: &str) -> String {
    format!("{per}{SCOPE_PARTS}{key}")
}

/// Period and scope of [`budget_name`].
pub(super) fn named_budget(name: &str) -> Option<(&str, &str)> {
    name.split_once(SCOPE_PARTS)
}

fn at(seconds: i64) -> Option<DateTime<Utc>> {
    DateTime::from_timestamp(seconds, 0)
}
