//! What discovery remembers: `providerd.discovered`, `providerd.discovery`.
//!
//! Rows of `llm_models` are created as those of any plan. Invariant: nothing here writes to a shared table.

use std::{collections::HashMap, sync::Arc};

use chrono::{DateTime, Utc};
use sqlx::Row;
use uuid::Uuid;

use catalog::plan::{DiscoveryDecision, DiscoveryMemory, ListEnd, ListState, SeenModel};

use super::{ReconcileTx, Result, Store, cells::Cells, query};

/// A provider that discovery remembers something of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiscoveryRow {
    pub provider_id: Uuid,
    /// `None` where the provider's row is gone.
    pub name: Option<Arc<str>>,
    /// What was asked for at the last look.
    pub policy: Option<String>,
}

/// Something about a provider's list that the operator should know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DiscoveryNotice {
    /// The last look did not end well.
    Trouble { provider: Arc<str>, ended: ListEnd, detail: String, since: DateTime<Utc> },
    /// The provider no longer offers a model. `routes`: the cells that it serves.
    Vanished { provider: Arc<str>, model: String, since: DateTime<Utc>, routes: Vec<String> },
}

impl Store {
    /// Every provider that discovery remembers something of.
    pub async fn discovery_rows(&self) -> Result<Vec<DiscoveryRow>> {
        let mut tx = self.read().await?;
        let rows = query(
            "SELECT q.provider_id, /*bytes*/(left(p.name::text, 4096))/*bytes*/, s.policy
             FROM (SELECT provider_id FROM providerd.discovery UNION SELECT provider_id FROM providerd.discovered) q
             LEFT JOIN providerd.discovery s USING (provider_id) LEFT JOIN llm_providers p ON p.id = q.provider_id",
        )
        .fetch_all(&mut *tx)
        .await?;
        tx.rollback().await?;
        let read = |row: &sqlx::postgres::PgRow| {
            let mut cells = Cells::of(row);
            let (provider_id, policy) = (cells.get(0, "provider_id")?, cells.text(2));
            Some(DiscoveryRow { provider_id, name: cells.text(1).map(Into::into), policy })
        };
        Ok(rows.iter().filter_map(read).collect())
    }

    /// The models, by row, that are marked as no longer offered: of one provider, or of all.
    pub async fn vanished(&self, provider: Option<Uuid>) -> Result<HashMap<Uuid, DateTime<Utc>>> {
        if self.is_blank() {
            return Ok(HashMap::new());
        }
        let mut tx = self.read().await?;
        let rows: Vec<(Uuid, DateTime<Utc>)> = sqlx::query_as(
            "SELECT model_id, vanished_at FROM providerd.discovered
             WHERE vanished_at IS NOT NULL AND ($1::uuid IS NULL OR provider_id = $1)",
        )
        .persistent(false)
        .bind(provider)
        .fetch_all(&mut *tx)
        .await?;
        tx.rollback().await?;
        Ok(rows.into_iter().collect())
    }
}

impl ReconcileTx {
    /// What is remembered of one provider.
    pub async fn discovery(&mut self, provider: Uuid) -> Result<DiscoveryMemory> {
        let state = query("SELECT state, since, policy FROM providerd.discovery WHERE provider_id = $1")
            .bind(provider)
            .fetch_optional(&mut *self.tx)
            .await?;
        let state = match state {
            Some(row) => {
                let (since, policy) = (row.try_get(1)?, row.try_get(2)?);
                ListEnd::parse(row.try_get(0)?).map(|ended| ListState { ended, since, policy })
            }
            None => None,
        };
        let rows = query(
            "SELECT model_id, name, created, vanished_at FROM providerd.discovered WHERE provider_id = $1
             ORDER BY name, model_id",
        )
        .bind(provider)
        .fetch_all(&mut *self.tx)
        .await?;
        let mut seen = Vec::with_capacity(rows.len());
        for row in rows {
            seen.push(SeenModel {
                model_id: row.try_get(0)?,
                name: row.try_get(1)?,
                created: row.try_get(2)?,
                vanished_at: row.try_get(3)?,
            });
        }
        Ok(DiscoveryMemory { state, seen })
    }

    /// Remembers a decision. The rows that it creates are not written here.
    pub async fn discovery_remember(&mut self, provider: Uuid, decision: &DiscoveryDecision) -> Result<()> {
        let now = decision.at;
        if let Some(state) = &decision.state {
            query(
                "INSERT INTO providerd.discovery (provider_id, policy, state, detail, since)
                 VALUES ($1, $2, $3, $4, $5)
                 ON CONFLICT (provider_id) DO UPDATE SET policy = excluded.policy, state = excluded.state,
                     detail = excluded.detail, since = excluded.since",
            )
            .bind(provider)
            .bind(&state.policy)
            .bind(state.ended.as_str())
            .bind(&decision.detail)
            .bind(state.since)
            .execute(&mut *self.tx)
            .await?;
        }
        if !decision.forget.is_empty() {
            query("DELETE FROM providerd.discovered WHERE model_id = ANY($1)")
                .bind(&decision.forget)
                .execute(&mut *self.tx)
                .await?;
        }
        if !decision.seen.is_empty() {
            query(
                "INSERT INTO providerd.discovered (model_id, provider_id, name, created, found_at)
                 SELECT id, $1, name, created, $5 FROM unnest($2::uuid[], $3::text[], $4::boolean[]) u (id, name, created)
                 ON CONFLICT (model_id) DO UPDATE SET provider_id = excluded.provider_id, name = excluded.name,
                     created = excluded.created, vanished_at = NULL",
            )
            .bind(provider)
            .bind(decision.seen.iter().map(|seen| seen.model_id).collect::<Vec<_>>())
            .bind(decision.seen.iter().map(|seen| seen.name.as_str()).collect::<Vec<_>>())
            .bind(decision.seen.iter().map(|seen| seen.created).collect::<Vec<_>>())
            .bind(now)
            .execute(&mut *self.tx)
            .await?;
        }
        let gone: Vec<Uuid> = decision.gone.iter().map(|gone| gone.model_id).collect();
        let back: Vec<Uuid> = decision.back.iter().map(|back| back.model_id).collect();
        for (ids, at) in [(gone, Some(now)), (back, None)] {
            if !ids.is_empty() {
                query("UPDATE providerd.discovered SET vanished_at = $2 WHERE model_id = ANY($1)")
                    .bind(ids)
                    .bind(at)
                    .execute(&mut *self.tx)
                    .await?;
            }
        }
        Ok(())
    }

    /// Forgets everything about these providers; their models stay as they are.
    pub async fn discovery_forget(&mut self, providers: &[Uuid]) -> Result<()> {
        for sql in [
            "DELETE FROM providerd.discovered WHERE provider_id = ANY($1)",
            "DELETE FROM providerd.discovery WHERE provider_id = ANY($1)",
        ] {
            query(sql).bind(providers).execute(&mut *self.tx).await?;
        }
        Ok(())
    }

    /// What the operator should know about the lists of all providers, by provider and model.
    pub async fn discovery_notices(&mut self) -> Result<Vec<DiscoveryNotice>> {
        if self.blank {
            return Ok(Vec::new());
        }
        let mut notices = Vec::new();
        let rows = query(
            "SELECT /*bytes*/(left(p.name::text, 4096))/*bytes*/, s.state, s.detail, s.since FROM providerd.discovery s
             JOIN llm_providers p ON p.id = s.provider_id WHERE s.state <> 'ok' ORDER BY 1",
        )
        .fetch_all(&mut *self.tx)
        .await?;
        for row in rows {
            let Some(ended) = ListEnd::parse(row.try_get(1)?) else { continue };
            let provider = Cells::of(&row).text(0).unwrap_or_default();
            let (detail, since) = (row.try_get(2)?, row.try_get(3)?);
            notices.push(DiscoveryNotice::Trouble { provider: provider.into(), ended, detail, since });
        }
        let rows = query(
            "SELECT /*bytes*/(left(p.name::text, 4096))/*bytes*/, d.name, d.vanished_at, ARRAY(
                 SELECT DISTINCT left(r.power_level::text, 64) || ' × ' || left(r.user_tier::text, 64) FROM llm_routing_rules r
                 WHERE r.model_id = m.id AND coalesce(r.is_active, true) AND coalesce(m.enabled, true)
                   AND coalesce(p.enabled, true) AND r.power_level IS NOT NULL AND r.user_tier IS NOT NULL
                 ORDER BY 1)
             FROM providerd.discovered d JOIN llm_models m ON m.id = d.model_id
             JOIN llm_providers p ON p.id = m.provider_id
             WHERE d.vanished_at IS NOT NULL ORDER BY 1, 2",
        )
        .fetch_all(&mut *self.tx)
        .await?;
        for row in rows {
            let provider = Cells::of(&row).text(0).unwrap_or_default();
            let (model, since, routes) = (row.try_get(1)?, row.try_get(2)?, row.try_get(3)?);
            notices.push(DiscoveryNotice::Vanished { provider: provider.into(), model, since, routes });
        }
        Ok(notices)
    }
}
