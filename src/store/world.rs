//! Reading what the planner compares with: live rows and bookkeeping.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    sync::Arc,
};

use futures_util::TryStreamExt as _;
use sqlx::{Row, postgres::PgRow, types::Json};
use uuid::Uuid;

use super::{ReconcileTx, Result, Store, StoreError};
use crate::{
    model::{JsonMap, Origin},
    plan::{Digest, LiveKey, LiveModel, LiveProvider, LiveRule, Managed, World},
};

/// Which providers to read.
#[derive(Debug, Clone)]
pub enum Scope {
    /// These, and every managed one.
    All {
        declared: Vec<Arc<str>>,
    },
    Providers(Vec<Arc<str>>),
}

/// Opens a stored token, as far as knowing its fingerprint.
pub type Open<'a> = dyn Fn(&str) -> LiveKey + Sync + 'a;

impl Store {
    /// As [`ReconcileTx::world`], in a snapshot of its own.
    pub async fn read_world(&self, scope: &Scope, open: &Open<'_>) -> Result<World> {
        self.look_begin().await?.world(scope, open).await
    }
}

/// A JSON column; others may have written something that is no object, which has no fields.
fn map(row: &PgRow, at: usize) -> Result<JsonMap, sqlx::Error> {
    Ok(match row.try_get::<Option<Json<serde_json::Value>>, _>(at)? {
        Some(Json(serde_json::Value::Object(map))) => map,
        _ => JsonMap::new(),
    })
}

impl ReconcileTx {
    /// The live rows and the bookkeeping of everything in scope, a renamed provider under its new name.
    pub async fn world(&mut self, scope: &Scope, open: &Open<'_>) -> Result<World> {
        let (all, names) = match scope {
            Scope::All { declared } => (true, declared),
            Scope::Providers(names) => (false, names),
        };
        let names: Vec<&str> = names.iter().map(|name| &**name).collect();
        let (managed, managed_total) = self.managed(all, &names).await?;
        let ids: Vec<Uuid> = managed.values().map(|managed| managed.provider_id).collect();
        let mut live = self.providers(&names, &ids, open).await?;
        let (models, place) = self.models(&live).await?;
        for (provider, models) in models {
            if let Some(live) = live.get_mut(&provider) {
                live.models = models;
            }
        }
        self.rules(&mut live, &place).await?;
        let live = live.into_values().map(|live| (live.name.clone(), live)).collect();
        Ok(World { live, managed, managed_total })
    }

    async fn managed(&mut self, all: bool, names: &[&str]) -> Result<(BTreeMap<Arc<str>, Managed>, usize)> {
        let mut managed = BTreeMap::new();
        let mut rows = sqlx::query(
            "SELECT name, provider_id, digest, file, line, record FROM providerd.managed WHERE $1 OR name = ANY($2)",
        )
        .bind(all)
        .bind(names)
        .fetch(&mut *self.tx);
        while let Some(row) = rows.try_next().await? {
            let name: Arc<str> = row.try_get::<&str, _>(0)?.into();
            // A digest of another length is one of another version: it differs from every digest.
            let digest = Digest(row.try_get::<&[u8], _>(2)?.try_into().unwrap_or_default());
            let line: i32 = row.try_get(4)?;
            let origin = Origin { file: row.try_get::<&str, _>(3)?.into(), line: line.unsigned_abs() };
            let (provider_id, record) = (row.try_get(1)?, row.try_get::<&str, _>(5)?.into());
            managed.insert(name.clone(), Managed { name, provider_id, digest, origin, record });
        }
        drop(rows);
        if all {
            let total = managed.len();
            return Ok((managed, total));
        }
        let total: i64 = sqlx::query("SELECT count(*) FROM providerd.managed")
            .fetch_one(&mut *self.tx)
            .await?
            .try_get(0)?;
        Ok((managed, usize::try_from(total).unwrap_or(usize::MAX)))
    }

    async fn providers(
        &mut self,
        names: &[&str],
        ids: &[Uuid],
        open: &Open<'_>,
    ) -> Result<HashMap<Uuid, LiveProvider>> {
        let mut live = HashMap::new();
        let mut rows = sqlx::query(
            "SELECT id, name, type, enabled, priority::int, api_base_url, api_key_source, api_key_encrypted, \
             encrypted_api_key, api_key_test_status, health_status, config \
             FROM llm_providers WHERE name = ANY($1) OR id = ANY($2)",
        )
        .bind(names)
        .bind(ids)
        .fetch(&mut *self.tx);
        while let Some(row) = rows.try_next().await? {
            let id: Uuid = row.try_get(0)?;
            let key = key(row.try_get(7)?, row.try_get(8)?, open);
            live.insert(
                id,
                LiveProvider {
                    id,
                    name: row.try_get::<&str, _>(1)?.into(),
                    kind: row.try_get(2)?,
                    enabled: row.try_get(3)?,
                    priority: row.try_get(4)?,
                    api_base_url: row.try_get(5)?,
                    api_key_source: row.try_get(6)?,
                    key,
                    key_test_status: row.try_get(9)?,
                    health_status: row.try_get(10)?,
                    config: map(&row, 11)?,
                    models: Vec::new(),
                },
            );
        }
        Ok(live)
    }

    /// Models by provider, and where each stands in its provider's list.
    #[allow(clippy::type_complexity)]
    async fn models(
        &mut self,
        live: &HashMap<Uuid, LiveProvider>,
    ) -> Result<(HashMap<Uuid, Vec<LiveModel>>, HashMap<Uuid, (Uuid, usize)>)> {
        let ids: Vec<Uuid> = live.keys().copied().collect();
        let mut models: HashMap<Uuid, Vec<LiveModel>> = HashMap::with_capacity(ids.len());
        let mut place = HashMap::new();
        if ids.is_empty() {
            return Ok((models, place));
        }
        // Older tables have wider integers and costs of any scale; what does not fit is not ours to judge.
        let mut rows = sqlx::query(
            "SELECT id, provider_id, coalesce(name, model_name, ''), display_name, \
             least(context_length, 2147483647)::int, cost_per_1m_tokens::float8, cost_per_1m_input_tokens::float8, \
             cost_per_1m_output_tokens::float8, enabled, metadata FROM llm_models WHERE provider_id = ANY($1)",
        )
        .bind(&ids)
        .fetch(&mut *self.tx);
        while let Some(row) = rows.try_next().await? {
            let (id, provider): (Uuid, Uuid) = (row.try_get(0)?, row.try_get(1)?);
            let list = models.entry(provider).or_default();
            place.insert(id, (provider, list.len()));
            list.push(LiveModel {
                id,
                name: row.try_get(2)?,
                display_name: row.try_get(3)?,
                context_length: row.try_get(4)?,
                cost_per_1m_tokens: row.try_get(5)?,
                cost_per_1m_input_tokens: row.try_get(6)?,
                cost_per_1m_output_tokens: row.try_get(7)?,
                enabled: row.try_get(8)?,
                metadata: map(&row, 9)?,
                rules: Vec::new(),
            });
        }
        Ok((models, place))
    }

    async fn rules(
        &mut self,
        live: &mut HashMap<Uuid, LiveProvider>,
        place: &HashMap<Uuid, (Uuid, usize)>,
    ) -> Result<()> {
        let ids: Vec<Uuid> = live.keys().copied().collect();
        if place.is_empty() {
            return Ok(());
        }
        let mut rows = sqlx::query(
            "SELECT r.id, r.model_id, r.power_level, r.user_tier, r.task_type, r.priority::int, r.weight::int, r.is_active \
             FROM llm_routing_rules r JOIN llm_models m ON m.id = r.model_id WHERE m.provider_id = ANY($1)",
        )
        .bind(&ids)
        .fetch(&mut *self.tx);
        while let Some(row) = rows.try_next().await? {
            let rule = LiveRule {
                id: row.try_get(0)?,
                power_level: row.try_get(2)?,
                user_tier: row.try_get(3)?,
                task_type: row.try_get(4)?,
                priority: row.try_get(5)?,
                weight: row.try_get(6)?,
                is_active: row.try_get(7)?,
            };
            let Some((provider, index)) = place.get(&row.try_get::<Uuid, _>(1)?) else { continue };
            if let Some(model) = live.get_mut(provider).and_then(|live| live.models.get_mut(*index)) {
                model.rules.push(rule);
            }
        }
        Ok(())
    }

    /// Those of the providers that have usage history.
    pub async fn with_usage(&mut self, ids: &[Uuid]) -> Result<HashSet<Uuid>> {
        let rows = sqlx::query(
            "SELECT id FROM unnest($1::uuid[]) AS q(id) WHERE EXISTS (SELECT 1 FROM llm_usage_logs l WHERE l.provider_id = q.id)",
        )
        .bind(ids)
        .fetch_all(&mut *self.tx)
        .await?;
        rows.iter().map(|row| Ok(row.try_get(0)?)).collect()
    }

    /// Those of the cells (power level, user tier) that keep a usable model when these rules are gone.
    pub async fn cells_served_elsewhere(
        &mut self,
        cells: &[(String, String)],
        without: &[Uuid],
    ) -> Result<BTreeSet<(String, String)>, StoreError> {
        let (powers, tiers): (Vec<&str>, Vec<&str>) =
            cells.iter().map(|(power, tier)| (power.as_str(), tier.as_str())).unzip();
        let rows = sqlx::query(
            "SELECT power, tier FROM unnest($1::text[], $2::text[]) AS q(power, tier) WHERE EXISTS (\
             SELECT 1 FROM llm_routing_rules r JOIN llm_models m ON m.id = r.model_id JOIN llm_providers p ON p.id = m.provider_id \
             WHERE r.power_level = q.power AND r.user_tier = q.tier AND r.id <> ALL($3) \
             AND r.is_active IS NOT FALSE AND m.enabled IS NOT FALSE AND p.enabled IS NOT FALSE)",
        )
        .bind(powers)
        .bind(tiers)
        .bind(without)
        .fetch_all(&mut *self.tx)
        .await?;
        rows.iter().map(|row| Ok((row.try_get(0)?, row.try_get(1)?))).collect()
    }
}

/// Both key columns as one: the first that opens is the key.
fn key(first: Option<&str>, second: Option<&str>, open: &Open<'_>) -> LiveKey {
    let (first, second) = (first.unwrap_or_default(), second.unwrap_or_default());
    let agree = first == second;
    let mut found = LiveKey::Absent;
    for token in [first, second] {
        if token.is_empty() {
            continue;
        }
        match open(token) {
            LiveKey::Known { fingerprint, .. } => {
                return LiveKey::Known { fingerprint, columns_agree: agree };
            }
            other => found = other,
        }
        if agree {
            break;
        }
    }
    found
}
