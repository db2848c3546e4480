//! Parts of budgets for this node: takes them when the gateway wishes, gives back what is not used.
//!
//! Not its job: enforcing. Invariant: the gateway never waits for this on the path of a request; while PostgreSQL is
//! away wishes stay unanswered, and budgets hold with what was leased.

use std::{sync::Arc, time::Duration};

use chrono::{DateTime, Utc};
use gateway::{
    limit::{LeaseReturn, LeaseWish},
    serve::Gateway,
};
use prometheus::{IntGauge, IntGaugeVec, Opts, Registry};
use tokio::{sync::mpsc, time::interval};
use tokio_util::sync::CancellationToken;
use tracing::debug;
use uuid::Uuid;

use super::{
    budgets::{self, BudgetCounts},
    keeper::unix,
};
use crate::store::{LeaseTake, Store};

/// Between two looks for leases that are idle or whose window is over.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// Between two looks at how much of all budgets is used.
const MEASURE_EVERY: Duration = Duration::from_secs(15);

/// Between two looks for budgets whose windows are long over.
const EXPIRE_EVERY: Duration = Duration::from_secs(3600);

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
    meters: BudgetMeters,
    stop: CancellationToken,
) {
    let mut tick = interval(LOOK_EVERY);
    let mut expire = interval(EXPIRE_EVERY);
    let mut measure = interval(MEASURE_EVERY);
    loop {
        tokio::select! {
            () = stop.cancelled() => break,
            Some(wished) = wishes.recv() => {
                for wish in wished {
                    take(&gateway, &store, node, &wish).await;
                }
            }
            _ = expire.tick() => {
                if let Err(error) = store.budgets_expire(Utc::now()).await {
                    debug!(%error, "old budgets are not deleted yet");
                }
            }
            _ = measure.tick() => match budgets::read(&store, Utc::now()).await {
                Ok(answer) => meters.show(answer.counts()),
                Err(error) => debug!(%error, "what is left of budgets is not known"),
            },
            _ = tick.tick() => {
                let returns = gateway.limits().give_back(None, false, gateway.now(), unix());
                give(&store, node, returns).await;
            }
        }
    }
    let returns = gateway.limits().give_back(None, true, gateway.now(), unix());
    give(&store, node, returns).await;
}

async fn take(gateway: &Gateway, store: &Store, node: Uuid, wish: &LeaseWish) {
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
        Ok(taken) => gateway.limits().grant(wish, taken.units, taken.dry, gateway.now()),
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

/// One budget of one scope. The amount is not part of it: a raised budget goes on where it was.
pub(super) fn budget_name(key: &str, per: &str) -> String {
    format!("{per}\u{1f}{key}")
}

fn at(seconds: i64) -> Option<DateTime<Utc>> {
    DateTime::from_timestamp(seconds, 0)
}
