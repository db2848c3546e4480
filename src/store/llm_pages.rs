//! What Ops-Center's pages ask of the shared tables: providers with their models counted, models by filters, the global
//! routing row; and the one write that they may do here.
//!
//! Not its job: the shapes of answers, and who may ask. Invariants: rows that no manifest manages are read like others;
//! whatever other programs wrote into a row, the rows after it are read; no answer has more rows than its limit.

use std::collections::HashMap;

use chrono::{DateTime, Utc};
use serde_json::Value;
use sqlx::postgres::PgRow;
use uuid::Uuid;

use catalog::{
    model::{JsonMap, Origin},
    plan::Record,
};

use super::{
    Result, Store,
    cells::{Cells, cut, integer, json, number, time},
    query, query_built,
};

/// Providers that one answer lists; those that manifests manage come first.
const PROVIDERS: i64 = 10_000;
/// Names of models that an answer about all providers lists.
const NAMES: i64 = 50_000;
/// Rules that are read for the words about power levels.
const RULES: i64 = 300;

/// A provider as the pages list it.
#[derive(Debug, Clone, PartialEq)]
pub struct PageProvider {
    pub id: Uuid,
    pub name: String,
    pub kind: Option<String>,
    pub enabled: bool,
    pub priority: Option<i32>,
    pub health_status: Option<String>,
    pub last_health_check: Option<DateTime<Utc>>,
    /// Models, enabled or not.
    pub models: i64,
    /// USD per million tokens: the mean over models of the mean of input and output.
    pub average_cost: Option<f64>,
    /// Names.
    pub enabled_models: Vec<String>,
}

/// A model as the pages list it.
#[derive(Debug, Clone, PartialEq)]
pub struct PageModel {
    pub id: Uuid,
    pub name: String,
    pub display_name: Option<String>,
    pub provider_id: Uuid,
    pub provider: String,
    /// USD per million tokens.
    pub input: Option<f64>,
    /// USD per million tokens.
    pub output: Option<f64>,
    /// Tokens.
    pub context_length: Option<i32>,
    pub enabled: bool,
    pub average_latency_ms: Option<f64>,
}

/// In which order models are listed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum PageModelSort {
    /// The cheapest first; those without a price last.
    #[default]
    Cost,
    /// The fastest first.
    Latency,
    Name,
    /// The longest first.
    Context,
}

impl PageModelSort {
    const fn order(self) -> &'static str {
        match self {
            Self::Cost => {
                "(m.cost_per_1m_input_tokens + m.cost_per_1m_output_tokens) ASC NULLS LAST, 2, m.id"
            }
            Self::Latency => "m.avg_latency_ms ASC NULLS LAST, 2, m.id",
            Self::Name => "2, m.id",
            Self::Context => "m.context_length DESC NULLS LAST, 2, m.id",
        }
    }
}

/// Which models; `None` is any.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct PageModelFilter {
    pub provider: Option<Uuid>,
    /// Model and provider are both switched on.
    pub enabled_only: bool,
    /// Part of the name or of the display name; case does not matter.
    pub search: Option<String>,
    /// USD per million tokens, of the mean of input and output.
    pub min_cost: Option<f64>,
    pub max_cost: Option<f64>,
    /// Tokens.
    pub min_context: Option<i64>,
    pub max_context: Option<i64>,
    pub sort: PageModelSort,
    pub limit: i64,
    pub offset: i64,
}

/// The row of `llm_routing_rules` that belongs to no model: the strategy of everything.
#[derive(Debug, Clone, PartialEq)]
pub struct PageStrategy {
    pub id: Option<Uuid>,
    pub strategy: Option<String>,
    /// A list of ids.
    pub fallback_providers: Value,
    pub model_aliases: JsonMap,
    pub config: JsonMap,
}

/// A model that serves a power level for all tiers, the first to be tried first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PageRule {
    pub power_level: String,
    pub provider: String,
    pub model: String,
}

/// A model that a page wants to switch.
#[derive(Debug, Clone, PartialEq)]
pub struct PageModelOwner {
    pub id: Uuid,
    pub name: String,
    pub provider_id: Uuid,
    pub provider: String,
    pub enabled: bool,
    /// The manifest that says whether it is enabled.
    pub owner: Option<Origin>,
}

/// How many there are.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PageCounts {
    pub providers: i64,
    /// Switched on, of providers that are switched on.
    pub active_models: i64,
}

impl Store {
    /// Every provider, or every one that is switched on: by descending priority and name.
    pub async fn page_providers(&self, enabled_only: bool) -> Result<Vec<PageProvider>> {
        let mut tx = self.read().await?;
        let rows = query(concat!(
            "SELECT p.id, ",
            cut!("p.name"),
            ", ",
            cut!("p.type"),
            ", coalesce(p.enabled, true), ",
            integer!("p.priority"),
            ", ",
            cut!("p.health_status"),
            ", ",
            time!("p.last_health_check"),
            ", coalesce(m.n, 0), m.cost
             FROM llm_providers p
             LEFT JOIN (SELECT provider_id, count(*) AS n,
                        avg((cost_per_1m_input_tokens::numeric + cost_per_1m_output_tokens::numeric) / 2)
                        FILTER (WHERE cost_per_1m_input_tokens BETWEEN 0 AND 1e12
                                AND cost_per_1m_output_tokens BETWEEN 0 AND 1e12)::float8 AS cost
                        FROM llm_models GROUP BY provider_id) m ON m.provider_id = p.id
             LEFT JOIN providerd.managed g ON g.provider_id = p.id
             WHERE NOT $1 OR coalesce(p.enabled, true) ORDER BY g.provider_id IS NULL LIMIT $2"
        ))
        .bind(enabled_only)
        .bind(PROVIDERS)
        .fetch_all(&mut *tx)
        .await?;
        let mut found = Vec::with_capacity(rows.len());
        for row in &rows {
            let mut cells = Cells::of(row);
            let Some(id) = cells.get(0, "id") else { continue };
            found.push(PageProvider {
                id,
                name: cells.text(1).unwrap_or_default(),
                kind: cells.text(2),
                enabled: cells.get(3, "enabled").unwrap_or(true),
                priority: cells.get(4, "priority"),
                health_status: cells.text(5),
                last_health_check: cells.time(6, "last_health_check"),
                models: cells.get(7, "models").unwrap_or_default(),
                average_cost: cells.get(8, "cost"),
                enabled_models: Vec::new(),
            });
        }
        drop(rows);
        let rows = query(
            "SELECT m.provider_id, /*bytes*/(left(coalesce(m.name, m.model_name, '')::text, 4096))/*bytes*/
             FROM llm_models m LEFT JOIN providerd.managed g ON g.provider_id = m.provider_id
             WHERE coalesce(m.enabled, true) AND m.provider_id IS NOT NULL
             ORDER BY g.provider_id IS NULL, m.provider_id, 2, m.id LIMIT $1",
        )
        .bind(NAMES)
        .fetch_all(&mut *tx)
        .await?;
        let mut names: HashMap<Uuid, Vec<String>> = HashMap::new();
        for row in &rows {
            let mut cells = Cells::of(row);
            if let (Some(provider), Some(name)) = (cells.get::<Uuid>(0, "provider_id"), cells.text(1)) {
                names.entry(provider).or_default().push(name);
            }
        }
        drop(rows);
        tx.rollback().await?;
        for provider in &mut found {
            provider.enabled_models = names.remove(&provider.id).unwrap_or_default();
        }
        found.sort_by(|a, b| b.priority.cmp(&a.priority).then_with(|| a.name.cmp(&b.name)));
        Ok(found)
    }

    /// One page of models, and how many there are on all pages.
    pub async fn page_models(&self, wanted: &PageModelFilter) -> Result<(Vec<PageModel>, i64)> {
        // PostgreSQL's texts hold no NUL, so nothing fits it.
        if wanted.search.as_ref().is_some_and(|text| text.contains('\0')) {
            return Ok((Vec::new(), 0));
        }
        const FROM: &str = "FROM llm_models m JOIN llm_providers p ON p.id = m.provider_id
             WHERE ($1::uuid IS NULL OR m.provider_id = $1)
               AND (NOT $2 OR coalesce(m.enabled, true) AND coalesce(p.enabled, true))
               AND ($3::text IS NULL OR position(lower($3) IN lower(coalesce(m.name, m.model_name, ''))) > 0
                    OR position(lower($3) IN lower(coalesce(m.display_name, ''))) > 0)
               AND ($4::float8 IS NULL OR (m.cost_per_1m_input_tokens + m.cost_per_1m_output_tokens) / 2 >= $4)
               AND ($5::float8 IS NULL OR (m.cost_per_1m_input_tokens + m.cost_per_1m_output_tokens) / 2 <= $5)
               AND ($6::bigint IS NULL OR m.context_length >= $6)
               AND ($7::bigint IS NULL OR m.context_length <= $7)";
        let columns = concat!(
            "SELECT m.id, /*bytes*/(left(coalesce(m.name, m.model_name, '')::text, 4096))/*bytes*/, ",
            cut!("m.display_name"),
            ", m.provider_id, ",
            cut!("p.name"),
            ", ",
            number!("m.cost_per_1m_input_tokens"),
            ", ",
            number!("m.cost_per_1m_output_tokens"),
            ", ",
            integer!("m.context_length"),
            ", coalesce(m.enabled, true), ",
            number!("m.avg_latency_ms"),
            " "
        );
        let order = wanted.sort.order();
        let mut tx = self.read().await?;
        // $1 to $7.
        let filtered = |sql: String| {
            query_built(sql)
                .bind(wanted.provider)
                .bind(wanted.enabled_only)
                .bind(wanted.search.clone())
                .bind(wanted.min_cost)
                .bind(wanted.max_cost)
                .bind(wanted.min_context)
                .bind(wanted.max_context)
        };
        let rows = filtered(format!("{columns} {FROM} ORDER BY {order} LIMIT $8 OFFSET $9"))
            .bind(wanted.limit)
            .bind(wanted.offset)
            .fetch_all(&mut *tx)
            .await?;
        let mut found = Vec::with_capacity(rows.len());
        for row in &rows {
            let mut cells = Cells::of(row);
            let (Some(id), Some(provider_id)) = (cells.get(0, "id"), cells.get(3, "provider_id")) else {
                continue;
            };
            found.push(PageModel {
                id,
                name: cells.text(1).unwrap_or_default(),
                display_name: cells.text(2),
                provider_id,
                provider: cells.text(4).unwrap_or_default(),
                input: cells.get(5, "cost_per_1m_input_tokens"),
                output: cells.get(6, "cost_per_1m_output_tokens"),
                context_length: cells.get(7, "context_length"),
                enabled: cells.get(8, "enabled").unwrap_or(true),
                average_latency_ms: cells.get(9, "avg_latency_ms"),
            });
        }
        drop(rows);
        let counted = filtered(format!("SELECT count(*) {FROM}")).fetch_one(&mut *tx).await?;
        let total = Cells::of(&counted).get(0, "count").unwrap_or_default();
        tx.rollback().await?;
        Ok((found, total))
    }

    /// The name of the provider of this id.
    pub async fn page_provider_name(&self, id: Uuid) -> Result<Option<String>> {
        let mut tx = self.read().await?;
        let row = query(concat!("SELECT ", cut!("p.name"), " FROM llm_providers p WHERE p.id = $1"))
            .bind(id)
            .fetch_optional(&mut *tx)
            .await?;
        tx.rollback().await?;
        Ok(row.and_then(|row| Cells::of(&row).text(0)))
    }

    /// Ids of providers by name; at most 10,000, those that manifests manage first.
    pub async fn page_provider_ids(&self) -> Result<HashMap<String, Uuid>> {
        let mut tx = self.read().await?;
        let rows = query(concat!(
            "SELECT p.id, ",
            cut!("p.name"),
            " FROM llm_providers p LEFT JOIN providerd.managed g ON g.provider_id = p.id
             ORDER BY g.provider_id IS NULL LIMIT $1"
        ))
        .bind(PROVIDERS)
        .fetch_all(&mut *tx)
        .await?;
        let read = |row: &PgRow| {
            let mut cells = Cells::of(row);
            Some((cells.text(1)?, cells.get(0, "id")?))
        };
        let ids = rows.iter().filter_map(read).collect();
        drop(rows);
        tx.rollback().await?;
        Ok(ids)
    }

    /// How many providers and models there are.
    pub async fn page_counts(&self) -> Result<PageCounts> {
        let mut tx = self.read().await?;
        let row = query(
            "SELECT (SELECT count(*) FROM llm_providers),
                    (SELECT count(*) FROM llm_models m JOIN llm_providers p ON p.id = m.provider_id
                     WHERE coalesce(m.enabled, true) AND coalesce(p.enabled, true))",
        )
        .fetch_one(&mut *tx)
        .await?;
        tx.rollback().await?;
        let mut cells = Cells::of(&row);
        Ok(PageCounts {
            providers: cells.get(0, "providers").unwrap_or_default(),
            active_models: cells.get(1, "active_models").unwrap_or_default(),
        })
    }

    /// The newest row of the global strategy, where there is one, and what serves each power level for all tiers.
    pub async fn page_strategy(&self) -> Result<(Option<PageStrategy>, Vec<PageRule>)> {
        let mut tx = self.read().await?;
        let row = query(concat!(
            "SELECT r.id, ",
            cut!("r.strategy"),
            ", ",
            json!("to_jsonb(r.fallback_providers)"),
            ", ",
            json!("to_jsonb(r.model_aliases)"),
            ", ",
            json!("to_jsonb(r.config)"),
            " FROM llm_routing_rules r WHERE r.model_id IS NULL
              ORDER BY r.created_at DESC NULLS LAST, r.updated_at DESC NULLS LAST LIMIT 1"
        ))
        .fetch_optional(&mut *tx)
        .await?;
        let strategy = row.as_ref().map(|row| {
            let mut cells = Cells::of(row);
            let list = cells.text(2).and_then(|text| serde_json::from_str(&text).ok());
            PageStrategy {
                id: cells.get(0, "id"),
                strategy: cells.text(1),
                fallback_providers: list.filter(Value::is_array).unwrap_or_else(|| Value::Array(Vec::new())),
                model_aliases: cells.object(3, "model_aliases"),
                config: cells.object(4, "config"),
            }
        });
        drop(row);
        let rows = query(concat!(
            "SELECT ",
            cut!("r.power_level"),
            ", ",
            cut!("p.name"),
            ", /*bytes*/(left(coalesce(m.name, m.model_name, '')::text, 4096))/*bytes*/
             FROM llm_routing_rules r JOIN llm_models m ON m.id = r.model_id
             JOIN llm_providers p ON p.id = m.provider_id
             WHERE r.power_level IS NOT NULL AND coalesce(r.user_tier, 'all') = 'all' AND coalesce(r.is_active, true)
               AND coalesce(m.enabled, true) AND coalesce(p.enabled, true)
             ORDER BY coalesce(r.priority, 100) DESC, coalesce(p.priority, 0) DESC, coalesce(r.weight, 100) DESC, 2, 3
             LIMIT $1"
        ))
        .bind(RULES)
        .fetch_all(&mut *tx)
        .await?;
        let rules = rows.iter().map(|row| {
            let cells = &mut Cells::of(row);
            let mut text = |at| cells.text(at).unwrap_or_default();
            PageRule { power_level: text(0), provider: text(1), model: text(2) }
        });
        let rules = rules.collect();
        drop(rows);
        tx.rollback().await?;
        Ok((strategy, rules))
    }

    /// The models of this id or name, two at most, and the manifest that says whether each is enabled.
    pub async fn page_model_owners(&self, wanted: &str) -> Result<Vec<PageModelOwner>> {
        if wanted.contains('\0') {
            return Ok(Vec::new());
        }
        let mut tx = self.read().await?;
        let rows = query(concat!(
            "SELECT m.id, /*bytes*/(left(coalesce(m.name, m.model_name, '')::text, 4096))/*bytes*/, m.provider_id, ",
            cut!("p.name"),
            ", coalesce(m.enabled, true), g.file, g.line, g.record
             FROM llm_models m JOIN llm_providers p ON p.id = m.provider_id
             LEFT JOIN providerd.managed g ON g.provider_id = m.provider_id
             WHERE m.id = $1 OR $1 IS NULL AND coalesce(m.name, m.model_name) = $2 LIMIT 2"
        ))
        .bind(wanted.parse::<Uuid>().ok())
        .bind(wanted)
        .fetch_all(&mut *tx)
        .await?;
        tx.rollback().await?;
        let mut found = Vec::new();
        for row in &rows {
            let mut cells = Cells::of(row);
            let (Some(id), Some(provider_id)) = (cells.get::<Uuid>(0, "id"), cells.get(2, "provider_id"))
            else {
                continue;
            };
            let record = cells.text(7).and_then(|text| serde_json::from_str::<Record>(&text).ok());
            let owned = record.is_some_and(|record| {
                record.models.values().any(|model| model.id == id && model.fields.contains_key("enabled"))
            });
            let (file, line) = (cells.text(5), cells.get::<i32>(6, "line"));
            let origin = file.map(|file| Origin {
                file: file.as_str().into(),
                line: line.and_then(|line| u32::try_from(line).ok()).unwrap_or_default(),
            });
            found.push(PageModelOwner {
                id,
                name: cells.text(1).unwrap_or_default(),
                provider_id,
                provider: cells.text(3).unwrap_or_default(),
                enabled: cells.get(4, "enabled").unwrap_or(true),
                owner: origin.filter(|_| owned),
            });
        }
        Ok(found)
    }

    /// Switches one model; whether there was one.
    pub async fn page_model_switch(&self, id: Uuid, enabled: bool) -> Result<bool> {
        let mut tx = self.write().await?;
        let done =
            query("UPDATE llm_models SET enabled = $2, updated_at = timezone('utc', now()) WHERE id = $1")
                .bind(id)
                .bind(enabled)
                .execute(&mut *tx)
                .await?;
        tx.commit().await?;
        Ok(done.rows_affected() > 0)
    }
}
