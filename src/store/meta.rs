//! Small facts: the canary and keys of `providerd.meta`, the fence, what is suspended.

use std::sync::Arc;

use sqlx::Row;

use super::{ReconcileTx, Result, Store};
use crate::model::Revision;

/// What an operator suspended.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Suspension {
    pub all: bool,
    pub providers: Vec<Arc<str>>,
}

/// What an apply leaves behind in the fence.
pub struct Fence {
    pub revision: Option<Revision>,
}

impl Store {
    /// The value under `key`, which becomes `value` if there is none. Writes nothing if there is one.
    pub async fn meta_set_if_absent(&self, key: &str, value: &str) -> Result<String> {
        let mut tx = self.begin().await?;
        let select = "SELECT value FROM providerd.meta WHERE key = $1";
        if let Some(row) = sqlx::query(select).bind(key).fetch_optional(&mut *tx).await? {
            return Ok(row.try_get(0)?);
        }
        sqlx::query("INSERT INTO providerd.meta (key, value) VALUES ($1, $2) ON CONFLICT DO NOTHING")
            .bind(key)
            .bind(value)
            .execute(&mut *tx)
            .await?;
        let value = sqlx::query(select).bind(key).fetch_one(&mut *tx).await?.try_get(0)?;
        tx.commit().await?;
        Ok(value)
    }

    pub async fn suspension(&self) -> Result<Suspension> {
        let mut tx = self.look_begin().await?;
        tx.suspension().await
    }

    /// Stops applying to one provider, or to everything.
    pub async fn suspend(&self, provider: Option<&str>, reason: &str) -> Result<()> {
        let mut tx = self.begin().await?;
        sqlx::query(
            "INSERT INTO providerd.suspended (provider, reason) VALUES ($1, $2) \
             ON CONFLICT (provider) DO UPDATE SET reason = excluded.reason",
        )
        .bind(provider.unwrap_or_default())
        .bind(reason)
        .execute(&mut *tx)
        .await?;
        suspension_event(&mut tx, provider, "suspended", reason).await?;
        Ok(tx.commit().await?)
    }

    /// Starts applying again and wakes the daemons; whether anything was suspended.
    pub async fn resume(&self, provider: Option<&str>) -> Result<bool> {
        let mut tx = self.begin().await?;
        let deleted = sqlx::query("DELETE FROM providerd.suspended WHERE provider = $1")
            .bind(provider.unwrap_or_default())
            .execute(&mut *tx)
            .await?;
        let was = deleted.rows_affected() > 0;
        if was {
            suspension_event(&mut tx, provider, "resumed", "resumed").await?;
            sqlx::query("SELECT pg_notify('providerd_drift', 'resume')").execute(&mut *tx).await?;
        }
        tx.commit().await?;
        Ok(was)
    }
}

async fn suspension_event(
    tx: &mut sqlx::Transaction<'static, sqlx::Postgres>,
    provider: Option<&str>,
    what: &str,
    reason: &str,
) -> Result<()> {
    sqlx::query("INSERT INTO providerd.events (kind, provider, detail, reason) VALUES ('suspension', $1, jsonb_build_object('state', $2::text), $3)")
        .bind(provider)
        .bind(what)
        .bind(reason)
        .execute(&mut **tx)
        .await?;
    Ok(())
}

impl ReconcileTx {
    pub async fn suspension(&mut self) -> Result<Suspension> {
        let rows = sqlx::query("SELECT provider FROM providerd.suspended").fetch_all(&mut *self.tx).await?;
        let mut suspension = Suspension::default();
        for row in rows {
            match row.try_get::<&str, _>(0)? {
                "" => suspension.all = true,
                name => suspension.providers.push(name.into()),
            }
        }
        Ok(suspension)
    }

    pub async fn meta_get(&mut self, key: &str) -> Result<Option<String>> {
        let row = sqlx::query("SELECT value FROM providerd.meta WHERE key = $1")
            .bind(key)
            .fetch_optional(&mut *self.tx)
            .await?;
        Ok(row.map(|row| row.try_get(0)).transpose()?)
    }

    pub async fn meta_set(&mut self, key: &str, value: &str) -> Result<()> {
        sqlx::query(
            "INSERT INTO providerd.meta (key, value) VALUES ($1, $2) ON CONFLICT (key) DO UPDATE SET value = excluded.value",
        )
        .bind(key)
        .bind(value)
        .execute(&mut *self.tx)
        .await?;
        Ok(())
    }

    /// Records that something is applied now, and from which commit.
    pub async fn fence_advance(&mut self, fence: &Fence) -> Result<()> {
        sqlx::query("UPDATE providerd.applied SET seq = seq + 1, at = now(), revision = $1, dirty = $2")
            .bind(fence.revision.as_ref().map(|it| &it.commit))
            .bind(fence.revision.as_ref().map(|it| it.dirty))
            .execute(&mut *self.tx)
            .await?;
        Ok(())
    }
}
