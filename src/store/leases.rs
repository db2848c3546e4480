//! Small state shared by daemons: leases, the fence, key-value pairs, suspensions.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use catalog::{model::Revision, plan::EventKind};

use super::{NewEvent, ReconcileTx, Result, Store, StoreError, Tx, events, query};

/// A right to do something alone until it expires.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lease {
    pub name: String,
    pub holder: Uuid,
    /// Grows with every change of holder.
    pub token: i64,
}

/// That applying, or checking, is stopped, and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Suspension {
    pub at: DateTime<Utc>,
    pub reason: String,
    /// When it ends by itself; applying only ends when an operator says so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<DateTime<Utc>>,
}

/// What is stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stopped<'a> {
    /// All applying.
    Everything,
    /// Applying to one provider.
    Provider(&'a str),
    /// Health checks and key tests of one provider: maintenance.
    Checks(&'a str),
}

impl<'a> Stopped<'a> {
    fn key(self) -> String {
        match self {
            Self::Everything => "suspended".to_owned(),
            Self::Provider(name) => format!("suspended:{name}"),
            Self::Checks(name) => format!("maintenance:{name}"),
        }
    }

    const fn provider(self) -> Option<&'a str> {
        match self {
            Self::Everything => None,
            Self::Provider(name) | Self::Checks(name) => Some(name),
        }
    }

    fn detail(self) -> serde_json::Value {
        serde_json::json!({ "what": if matches!(self, Self::Checks(_)) { "checks" } else { "applying" } })
    }
}

/// What is suspended.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Suspended {
    pub all: Option<Suspension>,
    pub providers: BTreeMap<Arc<str>, Suspension>,
    /// Providers that are not checked for now.
    pub checks: BTreeMap<Arc<str>, Suspension>,
}

impl Store {
    pub async fn meta_get(&self, key: &str) -> Result<Option<String>> {
        let mut tx = self.read().await?;
        let value = sqlx::query_scalar("SELECT value FROM providerd.meta WHERE key = $1")
            .persistent(false)
            .bind(key)
            .fetch_optional(&mut *tx)
            .await?;
        tx.rollback().await?;
        Ok(value)
    }

    /// Stores `value` unless something is stored already; returns what is stored now.
    pub async fn meta_set_if_absent(&self, key: &str, value: &str) -> Result<String> {
        if let Some(present) = self.meta_get(key).await? {
            return Ok(present);
        }
        let mut tx = self.write().await?;
        query("INSERT INTO providerd.meta (key, value) VALUES ($1, $2) ON CONFLICT DO NOTHING")
            .bind(key)
            .bind(value)
            .execute(&mut *tx)
            .await?;
        let present = sqlx::query_scalar("SELECT value FROM providerd.meta WHERE key = $1")
            .persistent(false)
            .bind(key)
            .fetch_one(&mut *tx)
            .await?;
        tx.commit().await?;
        Ok(present)
    }

    pub async fn meta_set(&self, key: &str, value: &str) -> Result<()> {
        let mut tx = self.write().await?;
        query(META_SET).bind(key).bind(value).execute(&mut *tx).await?;
        Ok(tx.commit().await?)
    }

    /// Says why the checks of this daemon doubt their results, or that they do not. What daemons that are gone have
    /// said is removed.
    pub async fn impaired_set(&self, holder: Uuid, reason: Option<&str>) -> Result<()> {
        let mut tx = self.write().await?;
        query(
            "DELETE FROM providerd.meta m WHERE m.key LIKE 'impaired:%' AND NOT EXISTS (SELECT FROM providerd.lease l
             WHERE l.name = 'checks:' || substr(m.key, 10) AND l.expires_at > clock_timestamp())",
        )
        .execute(&mut *tx)
        .await?;
        let key = format!("impaired:{holder}");
        match reason {
            Some(reason) => query(META_SET).bind(key).bind(reason).execute(&mut *tx).await?,
            None => query("DELETE FROM providerd.meta WHERE key = $1").bind(key).execute(&mut *tx).await?,
        };
        Ok(tx.commit().await?)
    }

    /// Why the checks of daemons that are alive doubt their results.
    pub async fn impaired(&self) -> Result<Vec<String>> {
        if self.is_blank() {
            return Ok(Vec::new());
        }
        let mut tx = self.read().await?;
        let reasons = sqlx::query_scalar(
            "SELECT left(m.value, 500) FROM providerd.meta m JOIN providerd.lease l
                ON l.name = 'checks:' || substr(m.key, 10) AND l.expires_at > clock_timestamp()
             WHERE m.key LIKE 'impaired:%' ORDER BY m.key",
        )
        .persistent(false)
        .fetch_all(&mut *tx)
        .await?;
        tx.rollback().await?;
        Ok(reasons)
    }

    /// Takes the lease if it is free, expired or ours. Looking at a lease that another one holds writes nothing.
    pub async fn lease_acquire(&self, name: &str, holder: Uuid, ttl: Duration) -> Result<Option<Lease>> {
        let mut tx = self.write().await?;
        let taken: bool = sqlx::query_scalar(
            "SELECT EXISTS (SELECT FROM providerd.lease
             WHERE name = $1 AND holder <> $2 AND expires_at > clock_timestamp())",
        )
        .persistent(false)
        .bind(name)
        .bind(holder)
        .fetch_one(&mut *tx)
        .await?;
        if taken {
            tx.rollback().await?;
            return Ok(None);
        }
        // Its holder may have let it run out in the middle of a pass, which must end first.
        let (there, free): (bool, bool) = sqlx::query_as(
            "WITH free AS (SELECT FROM providerd.lease WHERE name = $1 FOR UPDATE SKIP LOCKED)
             SELECT EXISTS (SELECT FROM providerd.lease WHERE name = $1), EXISTS (SELECT FROM free)",
        )
        .persistent(false)
        .bind(name)
        .fetch_one(&mut *tx)
        .await?;
        if there && !free {
            tx.rollback().await?;
            return Ok(None);
        }
        let token: Option<i64> = sqlx::query_scalar(
            "INSERT INTO providerd.lease AS l (name, holder, token, expires_at)
             VALUES ($1, $2, 1, clock_timestamp() + $3 * interval '1 second')
             ON CONFLICT (name) DO UPDATE SET token = l.token + 1, holder = excluded.holder,
                 expires_at = excluded.expires_at
             WHERE l.holder = excluded.holder OR l.expires_at <= clock_timestamp()
             RETURNING token",
        )
        .persistent(false)
        .bind(name)
        .bind(holder)
        .bind(ttl.as_secs_f64())
        .fetch_optional(&mut *tx)
        .await?;
        tx.commit().await?;
        Ok(token.map(|token| Lease { name: name.to_owned(), holder, token }))
    }

    /// Extends a lease that is still ours; `false` if it expired or another daemon holds it.
    pub async fn lease_renew(&self, lease: &Lease, ttl: Duration) -> Result<bool> {
        let mut tx = self.write().await?;
        let done = query(
            "UPDATE providerd.lease SET expires_at = clock_timestamp() + $4 * interval '1 second'
             WHERE name = $1 AND holder = $2 AND token = $3 AND expires_at > clock_timestamp()",
        )
        .bind(&lease.name)
        .bind(lease.holder)
        .bind(lease.token)
        .bind(ttl.as_secs_f64())
        .execute(&mut *tx)
        .await?;
        tx.commit().await?;
        Ok(done.rows_affected() == 1)
    }

    /// Gives a lease back at once; its row stays, so that tokens go on growing.
    pub async fn lease_release(&self, lease: &Lease) -> Result<()> {
        let mut tx = self.write().await?;
        query(
            "UPDATE providerd.lease SET expires_at = '-infinity' WHERE name = $1 AND holder = $2 AND token = $3",
        )
        .bind(&lease.name)
        .bind(lease.holder)
        .bind(lease.token)
        .execute(&mut *tx)
        .await?;
        Ok(tx.commit().await?)
    }

    /// Holders of the leases whose names begin with `prefix` and have not run out, and the number of the last applied
    /// catalog: whether there is something to look at.
    pub async fn lease_holders(&self, prefix: &str) -> Result<(Vec<Uuid>, i64)> {
        if self.is_blank() {
            return Ok((Vec::new(), 0));
        }
        let mut tx = self.read().await?;
        let found = sqlx::query_as(
            "SELECT (SELECT coalesce(array_agg(holder), '{}') FROM providerd.lease
                     WHERE starts_with(name, $1) AND expires_at > clock_timestamp()), seq
             FROM providerd.applied",
        )
        .persistent(false)
        .bind(prefix)
        .fetch_one(&mut *tx)
        .await?;
        tx.rollback().await?;
        Ok(found)
    }

    /// The number of the last applied catalog.
    pub async fn applied_seq(&self) -> Result<i64> {
        let mut tx = self.read().await?;
        let seq = sqlx::query_scalar("SELECT seq FROM providerd.applied")
            .persistent(false)
            .fetch_one(&mut *tx)
            .await?;
        tx.rollback().await?;
        Ok(seq)
    }

    /// Deletes leases whose names begin with `prefix` and that ran out long ago: their holders will not come back.
    pub async fn lease_forget(&self, prefix: &str) -> Result<()> {
        let mut tx = self.write().await?;
        query(
            "DELETE FROM providerd.lease WHERE starts_with(name, $1) AND expires_at < clock_timestamp() - interval '1 hour'",
        )
        .bind(prefix)
        .execute(&mut *tx)
        .await?;
        Ok(tx.commit().await?)
    }

    /// What is suspended now.
    pub async fn suspended(&self) -> Result<Suspended> {
        if self.is_blank() {
            return Ok(Suspended::default());
        }
        let mut tx = self.read().await?;
        let suspended = suspended(&mut tx).await?;
        tx.rollback().await?;
        Ok(suspended)
    }

    /// Stops something.
    pub async fn suspend(&self, what: Stopped<'_>, suspension: &Suspension) -> Result<()> {
        let value =
            serde_json::to_string(suspension).map_err(|error| StoreError::Other(error.to_string()))?;
        let mut tx = self.write().await?;
        query(META_SET).bind(what.key()).bind(value).execute(&mut *tx).await?;
        events::insert(&mut tx, &[suspension_event(EventKind::Suspend, what, &suspension.reason)]).await?;
        query(LOOK_AGAIN).execute(&mut *tx).await?;
        Ok(tx.commit().await?)
    }

    /// Starts it again; `false` if it was not stopped.
    pub async fn resume(&self, what: Stopped<'_>, reason: &str) -> Result<bool> {
        let mut tx = self.write().await?;
        let done =
            query("DELETE FROM providerd.meta WHERE key = $1").bind(what.key()).execute(&mut *tx).await?;
        let was = done.rows_affected() > 0;
        if was {
            events::insert(&mut tx, &[suspension_event(EventKind::Resume, what, reason)]).await?;
            query(LOOK_AGAIN).execute(&mut *tx).await?;
        }
        tx.commit().await?;
        Ok(was)
    }
}

/// Daemons have something to catch up with.
const LOOK_AGAIN: &str = "SELECT pg_notify('providerd_drift', 'suspension')";

/// As [`ReconcileTx::lease_check`]. Renewing it goes on meanwhile; taking it over waits for the end.
pub(super) async fn is_held(tx: &mut Tx, lease: &Lease) -> Result<bool> {
    let found = query(
        "SELECT FROM providerd.lease
         WHERE name = $1 AND holder = $2 AND token = $3 AND expires_at > clock_timestamp() FOR KEY SHARE",
    )
    .bind(&lease.name)
    .bind(lease.holder)
    .bind(lease.token)
    .fetch_optional(&mut **tx)
    .await?;
    Ok(found.is_some())
}

async fn suspended(tx: &mut Tx) -> Result<Suspended> {
    let rows: Vec<(String, String)> = sqlx::query_as(
        "SELECT key, value FROM providerd.meta WHERE key = 'suspended' OR key LIKE 'suspended:%' OR key LIKE 'maintenance:%'",
    )
    .persistent(false)
    .fetch_all(&mut **tx)
    .await?;
    let mut suspended = Suspended::default();
    for (key, value) in rows {
        // A damaged value still means "suspended": the safe reading.
        let suspension = serde_json::from_str(&value).unwrap_or(Suspension {
            at: DateTime::<Utc>::UNIX_EPOCH,
            reason: "unreadable".to_owned(),
            until: None,
        });
        match key.split_once(':') {
            Some(("suspended", name)) => drop(suspended.providers.insert(name.into(), suspension)),
            Some((_, name)) => drop(suspended.checks.insert(name.into(), suspension)),
            None => suspended.all = Some(suspension),
        }
    }
    Ok(suspended)
}

const META_SET: &str = "INSERT INTO providerd.meta (key, value) VALUES ($1, $2)
    ON CONFLICT (key) DO UPDATE SET value = excluded.value";

fn suspension_event(kind: EventKind, what: Stopped<'_>, reason: &str) -> NewEvent {
    NewEvent::about(kind, what.provider().map(Into::into), None, what.detail(), reason)
}

impl ReconcileTx {
    /// What is suspended, as this transaction sees it.
    pub async fn suspended(&mut self) -> Result<Suspended> {
        if self.blank {
            return Ok(Suspended::default());
        }
        suspended(&mut self.tx).await
    }

    pub async fn meta_get(&mut self, key: &str) -> Result<Option<String>> {
        let value =
            sqlx::query_scalar("SELECT value FROM providerd.meta WHERE key = $1").persistent(false).bind(key);
        Ok(value.fetch_optional(&mut *self.tx).await?)
    }

    pub async fn meta_set(&mut self, key: &str, value: &str) -> Result<()> {
        query(META_SET).bind(key).bind(value).execute(&mut *self.tx).await?;
        Ok(())
    }

    /// Whether the lease is still ours; locks it until the end of the transaction. Writes, so call it only when
    /// something will be written.
    pub async fn lease_check(&mut self, lease: &Lease) -> Result<bool> {
        is_held(&mut self.tx, lease).await
    }

    /// The number of the last applied catalog.
    pub async fn fence_read(&mut self) -> Result<i64> {
        Ok(sqlx::query_scalar("SELECT seq FROM providerd.applied")
            .persistent(false)
            .fetch_one(&mut *self.tx)
            .await?)
    }

    /// Numbers this catalog; returns the new number.
    ///
    /// # Errors
    /// [`StoreError::Fenced`] if the last number is not `expected`.
    pub async fn fence_advance(
        &mut self,
        expected: i64,
        revision: Option<&Revision>,
        digest: &str,
        holder: Uuid,
    ) -> Result<i64> {
        let advanced: Option<i64> = sqlx::query_scalar(
            "UPDATE providerd.applied SET seq = seq + 1, at = clock_timestamp(), revision = $2, dirty = $3,
                 digest = $4, holder = $5
             WHERE seq = $1 RETURNING seq",
        )
        .persistent(false)
        .bind(expected)
        .bind(revision.map(|revision| revision.commit.as_str()))
        .bind(revision.map(|revision| revision.dirty))
        .bind(digest)
        .bind(holder)
        .fetch_optional(&mut *self.tx)
        .await?;
        if let Some(seq) = advanced {
            return Ok(seq);
        }
        if self.fence_read().await? == expected {
            return Err(StoreError::Denied(
                "providerd.applied cannot be changed: row-level security hides its row".to_owned(),
            ));
        }
        Err(StoreError::Fenced)
    }
}
