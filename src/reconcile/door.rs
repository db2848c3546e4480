//! The door: the one way of a plan into the database, for passes and for what discovery adds.
//!
//! Not its job: beginning, committing, or deciding what is written. Invariant: what goes through holds the lock of
//! passes (the transaction does) and, as a daemon, the lease; the catalog's number has advanced.

use std::{collections::HashMap, sync::Arc};

use uuid::Uuid;

use catalog::{model::Revision, plan::ProviderPlan};

use super::ReconcileError;
use crate::store::{Lease, ReconcileTx, StoreError};

/// Proves that no other daemon may be writing, in the transaction that is about to write, and returns the number that
/// this state of the database gets. `digest` names what is applied.
///
/// # Errors
/// [`ReconcileError::NotLeader`], or the database failed.
pub async fn fence(
    tx: &mut ReconcileTx,
    lease: Option<&Lease>,
    revision: Option<&Revision>,
    digest: &str,
) -> Result<i64, ReconcileError> {
    if let Some(lease) = lease
        && !tx.lease_check(lease).await?
    {
        return Err(ReconcileError::NotLeader);
    }
    let seq = tx.fence_read().await?;
    let holder = lease.map_or(Uuid::nil(), |lease| lease.holder);
    Ok(tx.fence_advance(seq, revision, digest, holder).await?)
}

/// Writes the rows of plans, and wakes the gateways that read them. `tokens`: of the keys that plans set, by provider.
///
/// # Errors
/// The database failed, or refuses a value.
pub async fn carry_out(
    tx: &mut ReconcileTx,
    plans: &[ProviderPlan],
    tokens: &HashMap<Arc<str>, String>,
    revision: Option<&Revision>,
) -> Result<(), StoreError> {
    tx.apply(plans, tokens, revision).await?;
    if !plans.is_empty() {
        tx.tell_gateways().await?;
    }
    Ok(())
}
