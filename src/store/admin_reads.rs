//! What the admin API shows of the tables, managed or not.
//!
//! Reads only. Invariant: whatever others wrote (NULLs, statuses of any text, a `config` that is no object) is read
//! without an error.

use chrono::{DateTime, Utc};
use serde_json::Value;
use sqlx::Row;
use uuid::Uuid;

use catalog::model::JsonMap;

use super::{Event, Result, Store, UsageTotals, events, query};

/// What `provider_status_rows` does not tell of a provider.
#[derive(Debug, Clone)]
pub struct ProviderRow {
    pub id: Uuid,
    pub priority: Option<i32>,
    pub config: JsonMap,
    /// Fernet tokens: `api_key_encrypted` and `encrypted_api_key`.
    pub tokens: [String; 2],
}

/// A model of any provider.
#[derive(Debug, Clone)]
pub struct ModelRow {
    pub id: Uuid,
    pub provider_id: Uuid,
    pub name: String,
    pub display_name: Option<String>,
    pub context_length: Option<i32>,
    pub cost_per_1m_input_tokens: Option<f64>,
    pub cost_per_1m_output_tokens: Option<f64>,
    pub avg_latency_ms: Option<f64>,
    pub enabled: bool,
}

/// A routing rule that points at a model.
#[derive(Debug, Clone)]
pub struct RuleRow {
    pub model_id: Uuid,
    pub power_level: String,
    pub user_tier: String,
    pub task_type: Option<String>,
    pub priority: i32,
    pub weight: i32,
    pub enabled: bool,
}

/// Outcomes of one provider's checks in one hour.
#[derive(Debug, Clone)]
pub struct HourRow {
    pub provider_id: Uuid,
    /// When it begins.
    pub at: DateTime<Utc>,
    pub ok: u32,
    pub slow: u32,
    pub soft: u32,
    pub hard: u32,
    pub auth: u32,
}

/// All rows of the catalog, as one transaction saw them.
#[derive(Debug, Clone, Default)]
pub struct CatalogRows {
    pub providers: Vec<ProviderRow>,
    /// By provider and name.
    pub models: Vec<ModelRow>,
    pub rules: Vec<RuleRow>,
}

/// Which events a page shows: the newest first, older than `before`.
#[derive(Debug, Clone, Default)]
pub struct EventQuery {
    pub provider: Option<String>,
    pub kind: Option<String>,
    pub since: Option<DateTime<Utc>>,
    pub before: Option<i64>,
    pub limit: u32,
}

/// Counting an audit trail of years takes seconds, and nobody reads that number to the last digit.
pub const COUNT_LIMIT: i64 = 100_000;

impl Store {
    /// Every provider, model and rule there is.
    pub async fn catalog_rows(&self) -> Result<CatalogRows> {
        if self.is_blank() {
            return Ok(CatalogRows::default());
        }
        let mut tx = self.read().await?;
        let mut found = CatalogRows::default();
        let rows = query(
            "SELECT id, priority, config, coalesce(api_key_encrypted, ''), coalesce(encrypted_api_key, '')
             FROM llm_providers",
        )
        .fetch_all(&mut *tx)
        .await?;
        for row in rows {
            let config: Option<Value> = row.try_get(2)?;
            found.providers.push(ProviderRow {
                id: row.try_get(0)?,
                priority: row.try_get(1)?,
                config: match config {
                    Some(Value::Object(map)) => map,
                    _ => JsonMap::new(),
                },
                tokens: [row.try_get(3)?, row.try_get(4)?],
            });
        }
        let rows = query(
            "SELECT id, provider_id, coalesce(name, model_name, '')::text, display_name::text,
                    CASE WHEN context_length BETWEEN 0 AND 2147483647 THEN context_length::integer END,
                    cost_per_1m_input_tokens::float8, cost_per_1m_output_tokens::float8, avg_latency_ms::float8,
                    coalesce(enabled, true)
             FROM llm_models WHERE provider_id IS NOT NULL ORDER BY provider_id, 3, id",
        )
        .fetch_all(&mut *tx)
        .await?;
        for row in rows {
            found.models.push(ModelRow {
                id: row.try_get(0)?,
                provider_id: row.try_get(1)?,
                name: row.try_get(2)?,
                display_name: row.try_get(3)?,
                context_length: row.try_get(4)?,
                cost_per_1m_input_tokens: finite(row.try_get(5)?),
                cost_per_1m_output_tokens: finite(row.try_get(6)?),
                avg_latency_ms: finite(row.try_get(7)?),
                enabled: row.try_get(8)?,
            });
        }
        let rows = query(
            "SELECT model_id, power_level::text, coalesce(user_tier, 'all')::text, task_type::text,
                    coalesce(priority, 100), coalesce(weight, 100), coalesce(is_active, true)
             FROM llm_routing_rules WHERE model_id IS NOT NULL AND power_level IS NOT NULL",
        )
        .fetch_all(&mut *tx)
        .await?;
        for row in rows {
            found.rules.push(RuleRow {
                model_id: row.try_get(0)?,
                power_level: row.try_get(1)?,
                user_tier: row.try_get(2)?,
                task_type: row.try_get(3)?,
                priority: row.try_get(4)?,
                weight: row.try_get(5)?,
                enabled: row.try_get(6)?,
            });
        }
        tx.rollback().await?;
        Ok(found)
    }

    /// Outcomes by the hour since `since`, of all providers.
    pub async fn hours(&self, since: DateTime<Utc>) -> Result<Vec<HourRow>> {
        let mut tx = self.read().await?;
        let rows = query(
            "SELECT provider_id, at, ok, slow, soft, hard, auth FROM providerd.rollups WHERE span = 'h' AND at >= $1",
        )
        .bind(since)
        .fetch_all(&mut *tx)
        .await?;
        tx.rollback().await?;
        let read = |row: &sqlx::postgres::PgRow| {
            let count = |index: usize| -> Result<u32> {
                Ok(u32::try_from(row.try_get::<i32, _>(index)?).unwrap_or_default())
            };
            Ok(HourRow {
                provider_id: row.try_get(0)?,
                at: row.try_get(1)?,
                ok: count(2)?,
                slow: count(3)?,
                soft: count(4)?,
                hard: count(5)?,
                auth: count(6)?,
            })
        };
        rows.iter().map(read).collect()
    }

    /// Usage of one provider since `since`; `None` if nothing was logged.
    pub async fn usage_of(&self, provider: Uuid, since: DateTime<Utc>) -> Result<Option<UsageTotals>> {
        let mut tx = self.read().await?;
        let row: (i64, i64, i64, i64, f64) = sqlx::query_as(
            "SELECT count(*), count(*) FILTER (WHERE NOT success), coalesce(sum(prompt_tokens), 0)::bigint,
                    coalesce(sum(completion_tokens), 0)::bigint, coalesce(sum(cost_total_usd), 0)::float8
             FROM llm_usage_logs WHERE provider_id = $1 AND created_at >= $2",
        )
        .persistent(false)
        .bind(provider)
        .bind(since.naive_utc())
        .fetch_one(&mut *tx)
        .await?;
        tx.rollback().await?;
        let (calls, failures, prompt_tokens, completion_tokens, cost_usd) = row;
        Ok((calls > 0).then_some(UsageTotals {
            provider_id: provider,
            calls,
            failures,
            prompt_tokens,
            completion_tokens,
            cost_usd,
        }))
    }

    /// One page of the audit trail, the newest first, and how many rows there are in all, counted up to
    /// [`COUNT_LIMIT`].
    pub async fn events_page(&self, wanted: &EventQuery) -> Result<(Vec<Event>, i64)> {
        let mut tx = self.read().await?;
        let rows = query(
            "SELECT id, at, kind, provider, provider_id, detail, reason, file, line, revision FROM providerd.events
             WHERE ($1::bigint IS NULL OR id < $1) AND ($2::text IS NULL OR provider = $2)
               AND ($3::text IS NULL OR kind = $3) AND ($4::timestamptz IS NULL OR at >= $4)
             ORDER BY id DESC LIMIT $5",
        )
        .bind(wanted.before)
        .bind(wanted.provider.as_deref())
        .bind(wanted.kind.as_deref())
        .bind(wanted.since)
        .bind(i64::from(wanted.limit))
        .fetch_all(&mut *tx)
        .await?;
        let total: i64 = sqlx::query_scalar(
            "SELECT count(*) FROM (SELECT FROM providerd.events
             WHERE ($1::text IS NULL OR provider = $1) AND ($2::text IS NULL OR kind = $2)
               AND ($3::timestamptz IS NULL OR at >= $3) LIMIT $4) q",
        )
        .persistent(false)
        .bind(wanted.provider.as_deref())
        .bind(wanted.kind.as_deref())
        .bind(wanted.since)
        .bind(COUNT_LIMIT)
        .fetch_one(&mut *tx)
        .await?;
        tx.rollback().await?;
        Ok((rows.iter().map(events::event).collect::<Result<_>>()?, total))
    }

    /// The number of the newest row of the audit trail; 0 if there is none.
    pub async fn events_newest(&self) -> Result<i64> {
        let mut tx = self.read().await?;
        let newest = sqlx::query_scalar("SELECT coalesce(max(id), 0) FROM providerd.events")
            .persistent(false)
            .fetch_one(&mut *tx)
            .await?;
        tx.rollback().await?;
        Ok(newest)
    }
}

/// JSON knows neither NaN nor infinity, which a `numeric` column can hold.
fn finite(number: Option<f64>) -> Option<f64> {
    number.filter(|number| number.is_finite())
}
