//! What the admin API shows of the tables, managed or not.
//!
//! Reads only. Invariant: whatever others wrote (NULLs, statuses of any text, a `config` that is no object) is read
//! without an error.

use chrono::{DateTime, Utc};
use sqlx::Row;
use uuid::Uuid;

use catalog::{model::JsonMap, routing::DEFAULT_SHARE};

use super::{
    EventRow, Result, Store, Tx, UsageTotals,
    cells::{Bad, Cells, cut, integer, json, number, token},
    events, query,
};

/// What `provider_status_rows` does not read of a provider.
#[derive(Debug, Clone)]
pub struct ProviderRow {
    pub id: Uuid,
    pub priority: Option<i32>,
    pub config: JsonMap,
    /// Fernet tokens: `api_key_encrypted` and `encrypted_api_key`.
    pub tokens: [String; 2],
    /// Values of the row that cannot be read, in words.
    pub odd: Vec<String>,
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
    /// There are more rows than are shown: others filled the tables.
    pub more: bool,
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

/// Counting an audit trail of years takes seconds, and that number is not read to the last digit.
pub const COUNT_LIMIT: i64 = 100_000;

/// Rows of one table that are shown; those that manifests manage come first, and there are fewer of them.
const SHOWN: i64 = 250_000;

impl Store {
    /// Every provider, model and rule there is.
    pub async fn catalog_rows(&self) -> Result<CatalogRows> {
        if self.is_blank() {
            return Ok(CatalogRows::default());
        }
        let mut tx = self.read().await?;
        let mut found = CatalogRows::default();
        let rows = query(concat!(
            "SELECT p.id, ",
            integer!("p.priority"),
            ", ",
            json!("p.config"),
            ", ",
            token!("p.api_key_encrypted"),
            ", ",
            token!("p.encrypted_api_key"),
            " FROM llm_providers p LEFT JOIN providerd.managed g ON g.provider_id = p.id
             ORDER BY g.provider_id IS NULL LIMIT $1"
        ))
        .bind(SHOWN)
        .fetch_all(&mut *tx)
        .await?;
        for row in &rows {
            let mut cells = Cells::of(row);
            let Some(id) = cells.get(0, "id") else { continue };
            let mut provider = ProviderRow {
                id,
                priority: cells.get(1, "priority"),
                config: cells.object(2, "config"),
                tokens: [cells.text(3).unwrap_or_default(), cells.text(4).unwrap_or_default()],
                odd: Vec::new(),
            };
            let odd = |bad: &Bad| format!("llm_providers, row {id}, column {}: {}", bad.column, bad.why);
            provider.odd = cells.bad.iter().map(odd).collect();
            found.providers.push(provider);
        }
        drop(rows);
        let rows = query(concat!(
            "SELECT m.id, m.provider_id, /*bytes*/(left(coalesce(m.name, m.model_name, '')::text, 4096))/*bytes*/, ",
            cut!("m.display_name"),
            ", CASE WHEN m.context_length BETWEEN 0 AND 2147483647 THEN m.context_length::integer END, ",
            number!("m.cost_per_1m_input_tokens"),
            ", ",
            number!("m.cost_per_1m_output_tokens"),
            ", ",
            number!("m.avg_latency_ms"),
            ", coalesce(m.enabled, true)
             FROM llm_models m LEFT JOIN providerd.managed g ON g.provider_id = m.provider_id
             WHERE m.provider_id IS NOT NULL ORDER BY g.provider_id IS NULL, m.provider_id, 3, m.id LIMIT $1"
        ))
        .bind(SHOWN)
        .fetch_all(&mut *tx)
        .await?;
        for row in &rows {
            let mut cells = Cells::of(row);
            let (Some(id), Some(provider_id)) = (cells.get(0, "id"), cells.get(1, "provider_id")) else {
                continue;
            };
            found.models.push(ModelRow {
                id,
                provider_id,
                name: cells.text(2).unwrap_or_default(),
                display_name: cells.text(3),
                context_length: cells.get(4, "context_length"),
                cost_per_1m_input_tokens: cells.get(5, "cost_per_1m_input_tokens"),
                cost_per_1m_output_tokens: cells.get(6, "cost_per_1m_output_tokens"),
                avg_latency_ms: cells.get(7, "avg_latency_ms"),
                enabled: cells.get(8, "enabled").unwrap_or(true),
            });
        }
        drop(rows);
        found.models.sort_by(|a, b| (a.provider_id, &a.name, a.id).cmp(&(b.provider_id, &b.name, b.id)));
        let rows = query(concat!(
            "SELECT r.model_id, ",
            cut!("r.power_level"),
            ", /*bytes*/(left(coalesce(r.user_tier, 'all')::text, 4096))/*bytes*/, ",
            cut!("r.task_type"),
            ", ",
            integer!("r.priority"),
            ", ",
            integer!("r.weight"),
            ", coalesce(r.is_active, true)
             FROM llm_routing_rules r JOIN llm_models m ON m.id = r.model_id
             LEFT JOIN providerd.managed g ON g.provider_id = m.provider_id
             WHERE r.power_level IS NOT NULL ORDER BY g.provider_id IS NULL LIMIT $1"
        ))
        .bind(SHOWN)
        .fetch_all(&mut *tx)
        .await?;
        for row in &rows {
            let mut cells = Cells::of(row);
            let (Some(model_id), Some(power_level)) = (cells.get(0, "model_id"), cells.text(1)) else {
                continue;
            };
            found.rules.push(RuleRow {
                model_id,
                power_level,
                user_tier: cells.text(2).unwrap_or_default(),
                task_type: cells.text(3),
                priority: cells.get(4, "priority").unwrap_or(DEFAULT_SHARE),
                weight: cells.get(5, "weight").unwrap_or(DEFAULT_SHARE),
                enabled: cells.get(6, "is_active").unwrap_or(true),
            });
        }
        drop(rows);
        let all = usize::try_from(SHOWN).unwrap_or(usize::MAX);
        found.more = found.providers.len() >= all || found.models.len() >= all || found.rules.len() >= all;
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

    /// Usage of one provider since the begin of the day of `since`; `None` if nothing was logged. Sums of the gateway, which
    /// answer at once; of a provider that the gateway never asked, the rows that other programs logged.
    pub async fn usage_of(
        &self,
        provider: Uuid,
        name: &str,
        since: DateTime<Utc>,
    ) -> Result<Option<UsageTotals>> {
        let mut tx = self.read().await?;
        let sums: (i64, i64, i64, i64, f64) = sqlx::query_as(
            "SELECT coalesce(sum(requests), 0)::bigint, coalesce(sum(errors), 0)::bigint, coalesce(sum(input), 0)::bigint,
                    coalesce(sum(output), 0)::bigint, coalesce(sum(cost), 0)::float8
             FROM providerd.usage_series_daily WHERE kind = 'provider' AND name = $1 AND at >= date_trunc('day', $2::timestamptz)",
        )
        .persistent(false)
        .bind(name)
        .bind(since)
        .fetch_one(&mut *tx)
        .await?;
        let sums = if sums.0 > 0 { sums } else { logged(&mut tx, provider, since).await? };
        tx.rollback().await?;
        let (calls, failures, prompt_tokens, completion_tokens, cost_usd) = sums;
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
    pub async fn events_page(&self, wanted: &EventQuery) -> Result<(Vec<EventRow>, i64)> {
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

/// What other programs logged of a provider: calls, failures, tokens of both directions, USD.
async fn logged(tx: &mut Tx, provider: Uuid, since: DateTime<Utc>) -> Result<(i64, i64, i64, i64, f64)> {
    let sums = sqlx::query_as(
        // What no request can have cost or taken was written by a program that meant harm, or none.
        "SELECT count(*), count(*) FILTER (WHERE NOT success),
                least(coalesce(sum(prompt_tokens::numeric), 0), 9e18)::bigint,
                least(coalesce(sum(completion_tokens::numeric), 0), 9e18)::bigint,
                coalesce(sum(cost_total_usd::numeric) FILTER (WHERE cost_total_usd BETWEEN -1e12 AND 1e12), 0)::float8
         FROM llm_usage_logs WHERE provider_id = $1 AND created_at >= $2",
    )
    .persistent(false)
    .bind(provider)
    .bind(since.naive_utc())
    .fetch_one(&mut **tx)
    .await?;
    Ok(sums)
}
