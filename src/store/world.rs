//! Reading what the database holds: the live rows, the bookkeeping, and what a plan must know before it deletes.
//!
//! Plain ordered SELECTs, decoded row by row. Invariant: whatever others wrote (a `config` that is no object, a status
//! of any text, NULLs) is read without an error.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
};

use futures_util::TryStreamExt;
use serde_json::Value;
use sqlx::{
    Postgres, Row,
    postgres::{PgArguments, PgRow},
    query::Query,
};
use uuid::Uuid;

use catalog::{
    model::{JsonMap, Origin},
    plan::{Digest, LiveKey, LiveModel, LiveProvider, LiveRule, Managed, World},
};

use super::{ReconcileTx, Result, Store, Tx, query, unmigrated::Tables};

/// Which providers a reading is about. Managed providers are always found by their id too, whatever their name is now.
#[derive(Debug, Clone)]
pub enum Scope {
    /// Every managed provider, and the live rows of these names.
    All { declared: Vec<Arc<str>> },
    /// Only these names.
    Providers(Vec<Arc<str>>),
    /// Every row there is, managed or not (for `import`).
    Everything,
}

/// Says what a stored token is.
pub type Opener<'a> = &'a (dyn Fn(&str) -> LiveKey + Sync);

impl Store {
    /// Reads the world without a lock, for `status`, `doctor` and `import`.
    pub async fn read_world(&self, scope: &Scope, open: Opener<'_>) -> Result<World> {
        if self.is_blank() {
            return Ok(World::default());
        }
        let mut tx = self.read().await?;
        let tables = Tables::of(&mut tx, false).await?;
        let world = read(&mut tx, scope, &tables, open, &mut HashMap::new()).await?;
        tx.rollback().await?;
        Ok(world)
    }
}

impl ReconcileTx {
    /// Reads the world inside the reconcile's own transaction; before a migration, as it will be after it.
    pub async fn world(&mut self, scope: &Scope, open: Opener<'_>) -> Result<World> {
        let tables = Tables::of(&mut self.tx, self.blank).await?;
        let world = read(&mut self.tx, scope, &tables, open, &mut self.align).await?;
        self.known.extend(world.managed.keys().cloned());
        self.known_all |= !matches!(scope, Scope::Providers(_));
        Ok(world)
    }

    /// How many providers are managed in all. Counts rows, so it is asked only where a prune depends on it.
    pub async fn managed_total(&mut self) -> Result<usize> {
        let total: i64 = sqlx::query_scalar("SELECT count(*) FROM providerd.managed")
            .persistent(false)
            .fetch_one(&mut *self.tx)
            .await?;
        Ok(usize::try_from(total).unwrap_or_default())
    }

    /// Which of these providers have usage history.
    pub async fn with_usage(&mut self, ids: &[Uuid]) -> Result<HashSet<Uuid>> {
        if ids.is_empty() {
            return Ok(HashSet::new());
        }
        let found: Vec<Uuid> = sqlx::query_scalar(
            "SELECT x FROM unnest($1::uuid[]) x WHERE EXISTS (SELECT FROM llm_usage_logs u WHERE u.provider_id = x)",
        )
        .persistent(false)
        .bind(ids)
        .fetch_all(&mut *self.tx)
        .await?;
        Ok(found.into_iter().collect())
    }

    /// Which of these (power level, user tier) cells keep a usable rule (active, of an enabled model of an enabled
    /// provider) when the named models and rules are gone.
    pub async fn cells_served_elsewhere(
        &mut self,
        cells: &[(String, String)],
        without_models: &[Uuid],
        without_rules: &[Uuid],
    ) -> Result<HashSet<(String, String)>> {
        if cells.is_empty() {
            return Ok(HashSet::new());
        }
        let (levels, tiers): (Vec<&str>, Vec<&str>) =
            cells.iter().map(|(level, tier)| (level.as_str(), tier.as_str())).unzip();
        let tables = Tables::of(&mut self.tx, self.blank).await?;
        let select = tables.query(
            "SELECT c.power, c.tier FROM unnest($1::text[], $2::text[]) AS c (power, tier)
             WHERE EXISTS (
                 SELECT FROM llm_routing_rules r
                 JOIN llm_models m ON m.id = r.model_id
                 JOIN llm_providers p ON p.id = m.provider_id
                 WHERE r.power_level::text = c.power AND coalesce(r.user_tier::text, 'all') = c.tier
                   AND coalesce(r.is_active, true) AND coalesce(m.enabled, true) AND coalesce(p.enabled, true)
                   AND NOT EXISTS (SELECT FROM unnest($3::uuid[]) x WHERE x = m.id)
                   AND NOT EXISTS (SELECT FROM unnest($4::uuid[]) x WHERE x = r.id))",
        );
        let select = select.bind(levels).bind(tiers).bind(without_models).bind(without_rules);
        let mut served = HashSet::new();
        each(&mut self.tx, select, |row| {
            served.insert((row.try_get(0)?, row.try_get(1)?));
            Ok(())
        })
        .await?;
        Ok(served)
    }
}

/// Hands over one row after the other.
async fn each(
    tx: &mut Tx,
    query: Query<'_, Postgres, PgArguments>,
    mut take: impl FnMut(&PgRow) -> Result<()>,
) -> Result<()> {
    let mut rows = query.fetch(&mut **tx);
    while let Some(row) = rows.try_next().await? {
        take(&row)?;
    }
    Ok(())
}

async fn read(
    tx: &mut Tx,
    scope: &Scope,
    tables: &Tables,
    open: Opener<'_>,
    align: &mut HashMap<Uuid, String>,
) -> Result<World> {
    let mut world = World::default();
    let (everything, all, names): (bool, bool, &[Arc<str>]) = match scope {
        Scope::All { declared } => (false, true, declared),
        Scope::Providers(names) => (false, false, names),
        Scope::Everything => (true, true, &[]),
    };
    let names: Vec<&str> = names.iter().map(AsRef::as_ref).collect();

    if tables.are_ours() {
        let select = query(
            "SELECT name, provider_id, digest, file, line, record FROM providerd.managed
             WHERE $1 OR name = ANY($2)",
        );
        each(tx, select.bind(all).bind(&names), |row| {
            let managed = managed(row)?;
            world.managed.insert(Arc::clone(&managed.name), managed);
            Ok(())
        })
        .await?;
    }
    world.managed_total = if all { world.managed.len() } else { usize::MAX };

    let owned: Vec<Uuid> = world.managed.values().map(|managed| managed.provider_id).collect();
    let mut places: HashMap<Uuid, LiveProvider> = HashMap::new();
    let select = tables.query(
        "SELECT p.id, p.name::text, p.type::text, p.enabled, p.priority, p.api_base_url, p.api_key_source::text,
                coalesce(p.api_key_encrypted, ''), coalesce(p.encrypted_api_key, ''), p.api_key_test_status::text,
                p.health_status::text, p.config
         FROM llm_providers p WHERE $1 OR p.name = ANY($2) OR p.id = ANY($3)",
    );
    each(tx, select.bind(everything).bind(&names).bind(&owned), |row| {
        let (provider, token) = provider(row, open)?;
        if let Some(token) = token {
            align.insert(provider.id, token.to_owned());
        }
        places.insert(provider.id, provider);
        Ok(())
    })
    .await?;

    let ids: Vec<Uuid> = places.keys().copied().collect();
    let mut rules: HashMap<Uuid, Vec<LiveRule>> = HashMap::new();
    let select = tables.query(
        "SELECT r.id, r.model_id, r.power_level::text, r.user_tier::text, r.task_type::text, r.priority, r.weight,
                r.is_active
         FROM llm_routing_rules r JOIN llm_models m ON m.id = r.model_id
         WHERE $1 OR m.provider_id = ANY($2) ORDER BY r.model_id, r.id",
    );
    each(tx, select.bind(everything).bind(&ids), |row| {
        rules.entry(row.try_get(1)?).or_default().push(rule(row)?);
        Ok(())
    })
    .await?;

    let select = tables.query(
        "SELECT m.id, m.provider_id, coalesce(m.name, m.model_name, '')::text, m.display_name::text,
                CASE WHEN m.context_length BETWEEN 0 AND 2147483647 THEN m.context_length::integer END,
                m.cost_per_1m_tokens::float8, m.cost_per_1m_input_tokens::float8,
                m.cost_per_1m_output_tokens::float8, m.enabled, m.metadata
         FROM llm_models m WHERE $1 OR m.provider_id = ANY($2) ORDER BY m.provider_id, m.name, m.id",
    );
    each(tx, select.bind(everything).bind(&ids), |row| {
        let provider: Option<Uuid> = row.try_get(1)?;
        if let Some(provider) = provider.and_then(|provider| places.get_mut(&provider)) {
            let id = row.try_get(0)?;
            provider.models.push(model(row, id, rules.remove(&id).unwrap_or_default())?);
        }
        Ok(())
    })
    .await?;
    world.live = places
        .into_values()
        .map(|provider| (Arc::clone(&provider.name), provider))
        .collect::<BTreeMap<_, _>>();
    Ok(world)
}

/// A provider without its models, and, where its key columns disagree, the token that opens.
fn provider<'r>(row: &'r PgRow, open: Opener<'_>) -> Result<(LiveProvider, Option<&'r str>)> {
    let (key, token) = live_key(row.try_get(7)?, row.try_get(8)?, open);
    let name: Option<&str> = row.try_get(1)?;
    let provider = LiveProvider {
        id: row.try_get(0)?,
        name: name.unwrap_or_default().into(),
        kind: row.try_get(2)?,
        enabled: row.try_get(3)?,
        priority: row.try_get(4)?,
        api_base_url: row.try_get(5)?,
        api_key_source: row.try_get(6)?,
        key,
        key_test_status: row.try_get(9)?,
        health_status: row.try_get(10)?,
        config: object(row.try_get(11)?),
        models: Vec::new(),
    };
    Ok((provider, token))
}

fn model(row: &PgRow, id: Uuid, rules: Vec<LiveRule>) -> Result<LiveModel> {
    Ok(LiveModel {
        id,
        name: row.try_get(2)?,
        display_name: row.try_get(3)?,
        context_length: row.try_get(4)?,
        cost_per_1m_tokens: row.try_get(5)?,
        cost_per_1m_input_tokens: row.try_get(6)?,
        cost_per_1m_output_tokens: row.try_get(7)?,
        enabled: row.try_get(8)?,
        metadata: object(row.try_get(9)?),
        rules,
    })
}

fn rule(row: &PgRow) -> Result<LiveRule> {
    Ok(LiveRule {
        id: row.try_get(0)?,
        power_level: row.try_get(2)?,
        user_tier: row.try_get(3)?,
        task_type: row.try_get(4)?,
        priority: row.try_get(5)?,
        weight: row.try_get(6)?,
        is_active: row.try_get(7)?,
    })
}

fn managed(row: &PgRow) -> Result<Managed> {
    let name: &str = row.try_get(0)?;
    let digest: &[u8] = row.try_get(2)?;
    let file: &str = row.try_get(3)?;
    let line: i32 = row.try_get(4)?;
    let record: String = row.try_get(5)?;
    Ok(Managed {
        name: name.into(),
        provider_id: row.try_get(1)?,
        // A digest of another length equals none, so the provider is looked at in full.
        digest: Digest(digest.try_into().unwrap_or_default()),
        origin: Origin { file: file.into(), line: u32::try_from(line).unwrap_or_default() },
        record: record.into_boxed_str(),
    })
}

/// A JSON column as a map; anything else that somebody stored there reads as an empty one.
fn object(value: Option<Value>) -> JsonMap {
    match value {
        Some(Value::Object(map)) => map,
        _ => JsonMap::new(),
    }
}

/// What the two key columns hold, and, where they disagree, the token that opens.
fn live_key<'a>(first: &'a str, second: &'a str, open: Opener<'_>) -> (LiveKey, Option<&'a str>) {
    if first.is_empty() && second.is_empty() {
        return (LiveKey::Absent, None);
    }
    if first == second {
        return (open(first), None);
    }
    // The first column is what programs read to use the key, so it is believed if it opens.
    for token in [first, second] {
        if token.is_empty() {
            continue;
        }
        if let LiveKey::Known { fingerprint, .. } = open(token) {
            return (LiveKey::Known { fingerprint, columns_agree: false }, Some(token));
        }
    }
    (LiveKey::Undecryptable, None)
}

#[cfg(test)]
mod tests {
    use super::*;
    use catalog::plan::Fingerprint;

    #[test]
    fn the_column_that_opens_is_the_key() {
        let open = |token: &str| match token.strip_prefix("good-") {
            Some(rest) => LiveKey::Known { fingerprint: Fingerprint(rest.into()), columns_agree: true },
            None => LiveKey::Undecryptable,
        };
        let known = |print: &str, columns_agree| LiveKey::Known {
            fingerprint: Fingerprint(print.into()),
            columns_agree,
        };
        let check = |first, second, key, token| assert_eq!(live_key(first, second, &open), (key, token));
        check("", "", LiveKey::Absent, None);
        check("good-a", "good-a", known("a", true), None);
        check("good-a", "", known("a", false), Some("good-a"));
        check("", "good-a", known("a", false), Some("good-a"));
        check("good-a", "good-b", known("a", false), Some("good-a"));
        check("bad", "good-b", known("b", false), Some("good-b"));
        check("bad", "worse", LiveKey::Undecryptable, None);
        check("bad", "bad", LiveKey::Undecryptable, None);
    }
}
