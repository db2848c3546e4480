//! Which gateways there are, and this one's part of the limits.
//!
//! Not its job: enforcing limits. Invariants: while PostgreSQL is away the last part holds, so that nodes together allow
//! no more than before; a node that is alone holds the whole.

use std::{sync::Arc, time::Duration};

use gateway::{limit::NodeShare, serve::Gateway};
use tokio::time::{Instant, MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;
use tracing::debug;
use uuid::Uuid;

use crate::store::Store;

/// Between two looks: by so much shares may lag behind demand.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// A node that was not heard of for so long is gone.
const LIVES: Duration = Duration::from_secs(7);

/// A node that is alone says so this often.
const BEAT_ALONE: Duration = Duration::from_secs(3);

/// Demand is averaged over about so many looks.
const SMOOTH: u64 = 4;

/// Keeps this node's share of limits until `stop`, then leaves.
pub async fn share_limits(gateway: Arc<Gateway>, store: Store, node: Uuid, stop: CancellationToken) {
    let mut tick = interval(LOOK_EVERY);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut demand = 0;
    let mut beaten: Option<Instant> = None;
    let mut alone = false;
    while stop.run_until_cancelled(tick.tick()).await.is_some() {
        // Requests a minute.
        let now = gateway.limits().take_demand().saturating_mul(60);
        demand = (demand * (SMOOTH - 1)).saturating_add(now) / SMOOTH;
        let due = !alone || beaten.is_none_or(|at| at.elapsed() >= BEAT_ALONE);
        match look(&store, node, demand, due).await {
            Ok(share) => {
                if due {
                    beaten = Some(Instant::now());
                }
                alone = share == NodeShare::ALL;
                gateway.limits().set_share(share);
            }
            Err(error) => {
                debug!(%error, "the other gateways are not known now; this one keeps its share of limits")
            }
        }
    }
    if let Err(error) = store.gateway_leave(node).await {
        debug!(%error, "the other gateways learn late that this one ended");
    }
}

/// Says that this node lives, and how much of the limits is its part.
async fn look(store: &Store, node: Uuid, demand: u64, beat: bool) -> crate::store::Result<NodeShare> {
    if beat {
        store.gateway_beat(node, i64::try_from(demand).unwrap_or(i64::MAX), LIVES).await?;
    }
    let nodes = store.gateway_nodes().await?;
    let others = nodes.iter().filter(|(other, _)| *other != node).map(|(_, demand)| (*demand).unsigned_abs());
    let demands: Vec<u64> = std::iter::once(demand).chain(others).collect();
    Ok(NodeShare::of(&demands, 0))
}
