//! Leases: who may do what, by the database's clock alone.

use std::time::Duration;

use sqlx::Row;
use uuid::Uuid;

use super::{ReconcileTx, Result, Store};

/// A lease that was held when it was last asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lease {
    pub name: String,
    pub holder: Uuid,
    /// Grows with every new holder: an old holder's number is never good again.
    pub token: i64,
}

impl Store {
    /// The lease, if it is free or has run out.
    pub async fn lease_acquire(&self, name: &str, holder: Uuid, ttl: Duration) -> Result<Option<Lease>> {
        let row = sqlx::query(
            "INSERT INTO providerd.lease AS l (name, holder, token, expires_at) \
             VALUES ($1, $2, nextval('providerd.lease_token'), clock_timestamp() + $3 * interval '1 ms') \
             ON CONFLICT (name) DO UPDATE SET holder = excluded.holder, token = excluded.token, expires_at = excluded.expires_at \
             WHERE l.expires_at < clock_timestamp() RETURNING token",
        )
        .bind(name)
        .bind(holder)
        .bind(millis(ttl))
        .fetch_optional(&self.pool)
        .await?;
        row.map(|row| Ok(Lease { name: name.to_owned(), holder, token: row.try_get(0)? })).transpose()
    }

    /// The lease for another `ttl`; `None` if somebody else has it now.
    pub async fn lease_renew(&self, lease: &Lease, ttl: Duration) -> Result<Option<Lease>> {
        let renewed = sqlx::query(
            "UPDATE providerd.lease SET expires_at = clock_timestamp() + $4 * interval '1 ms' \
             WHERE name = $1 AND holder = $2 AND token = $3",
        )
        .bind(&lease.name)
        .bind(lease.holder)
        .bind(lease.token)
        .bind(millis(ttl))
        .execute(&self.pool)
        .await?;
        Ok((renewed.rows_affected() > 0).then(|| lease.clone()))
    }

    /// Gives the lease back, so that a successor need not wait.
    pub async fn lease_release(&self, lease: &Lease) -> Result<()> {
        sqlx::query("DELETE FROM providerd.lease WHERE name = $1 AND holder = $2 AND token = $3")
            .bind(&lease.name)
            .bind(lease.holder)
            .bind(lease.token)
            .execute(&self.pool)
            .await?;
        Ok(())
    }
}

fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}

impl ReconcileTx {
    /// Whether the lease is still held; if so, nobody else gets it before this transaction ends.
    pub async fn lease_check(&mut self, lease: &Lease) -> Result<bool> {
        let row = sqlx::query(
            "SELECT 1 FROM providerd.lease WHERE name = $1 AND holder = $2 AND token = $3 AND expires_at > clock_timestamp() FOR UPDATE",
        )
        .bind(&lease.name)
        .bind(lease.holder)
        .bind(lease.token)
        .fetch_optional(&mut *self.tx)
        .await?;
        Ok(row.is_some())
    }
}
