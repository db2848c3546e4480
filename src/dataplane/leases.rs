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
use tokio::{sync::mpsc, time::interval};
use tokio_util::sync::CancellationToken;
use tracing::debug;
use uuid::Uuid;

use super::keeper::unix;
use crate::store::{LeaseTake, Store};

/// Between two looks for leases that are idle or whose window is over.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// Between two looks for budgets whose windows are long over.
const EXPIRE_EVERY: Duration = Duration::from_secs(3600);

/// Answers wishes until `stop`, then gives everything back.
pub async fn serve_wishes(
    gateway: Arc<Gateway>,
    store: Store,
    node: Uuid,
    mut wishes: mpsc::Receiver<Vec<LeaseWish>>,
    stop: CancellationToken,
) {
    let mut tick = interval(LOOK_EVERY);
    let mut expire = interval(EXPIRE_EVERY);
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
    let budget = budget_name(&wish.key, wish.spec.per.as_str(), wish.spec.units);
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
        let budget = budget_name(&back.key, back.spec.per.as_str(), back.spec.units);
        if let Err(error) = store.budget_return(&budget, window_start, node, back.units).await {
            debug!(%error, "a part of a budget could not be given back; it counts as spent");
        }
    }
}

/// One budget of one scope. The amount is not part of it: a raised budget goes on where it was.
fn budget_name(key: &str, per: &str, _units: i64) -> String {
    format!("{per}\u{1f}{key}")
}

fn at(seconds: i64) -> Option<DateTime<Utc>> {
    DateTime::from_timestamp(seconds, 0)
}
