//! Reading what the database holds: the live rows, the bookkeeping, and what a plan must know before it deletes.
//!
//! Plain ordered SELECTs, decoded row by row. Invariant: whatever others wrote (JSON that no parser takes, a status of any
//! text, NULLs, names twice, rows without number) concerns its own object only, which waits and is named.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
};

use futures_util::TryStreamExt;
use sqlx::{
    Postgres, Row,
    postgres::{PgArguments, PgRow},
    query::Query,
};
use uuid::Uuid;

use catalog::{
    model::Origin,
    plan::{
        Digest, Fingerprint, LiveKey, LiveModel, LiveProvider, LiveRule, Managed, NoticeKind, UnreadableRow,
        Wait, World,
    },
};

use super::{
    ReconcileTx, Result, Store, Tx,
    cells::{Bad, Cells, cut, integer, json, number, token},
    query,
    unmigrated::Tables,
};

/// Rows of one table that hang on one provider and that are read beyond those on record: what others add, and what
/// discovery finds. Far more than any provider lists.
const STRANGERS: usize = 20_000;

/// No row on record takes fewer bytes there.
const RECORDED_BYTES: usize = 64;

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

/// The fingerprint of the key behind a stored token; `None` for one that does not open.
pub type Opener<'a> = &'a (dyn Fn(&str) -> Option<Fingerprint> + Sync);

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
    let select = tables.query(concat!(
        "SELECT p.id, ",
        cut!("p.name"),
        ", ",
        cut!("p.type"),
        ", p.enabled, ",
        integer!("p.priority"),
        ", ",
        cut!("p.api_base_url"),
        ", ",
        cut!("p.api_key_source"),
        ", ",
        token!("p.api_key_encrypted"),
        ", ",
        token!("p.encrypted_api_key"),
        ", ",
        cut!("p.api_key_test_status"),
        ", ",
        cut!("p.health_status"),
        ", ",
        json!("p.config"),
        " FROM llm_providers p WHERE $1 OR p.name::text = ANY($2) OR p.id = ANY($3)"
    ));
    each(tx, select.bind(everything).bind(&names).bind(&owned), |row| {
        let mut cells = Cells::of(row);
        let Some(id) = cells.get(0, "id") else { return Ok(()) };
        let (provider, token) = provider(&mut cells, id, open);
        let name = provider.name.to_string();
        unreadable(&mut world, "llm_providers", id, &provider.name, &name, &cells.bad);
        if let Some(token) = token {
            align.insert(provider.id, token);
        }
        places.insert(id, provider);
        Ok(())
    })
    .await?;

    let ids: Vec<Uuid> = places.keys().copied().collect();
    let recorded: HashMap<Uuid, usize> = world
        .managed
        .values()
        .map(|managed| (managed.provider_id, managed.record.len() / RECORDED_BYTES))
        .collect();
    let most = |provider: &Uuid| STRANGERS + recorded.get(provider).copied().unwrap_or_default();
    let mut counts: HashMap<Uuid, usize> = HashMap::new();
    let mut flooded: BTreeMap<Uuid, &'static str> = BTreeMap::new();
    let mut rules: HashMap<Uuid, Vec<LiveRule>> = HashMap::new();
    let select = tables.query(concat!(
        "SELECT r.id, r.model_id, ",
        cut!("r.power_level"),
        ", ",
        cut!("r.user_tier"),
        ", ",
        cut!("r.task_type"),
        ", ",
        integer!("r.priority"),
        ", ",
        integer!("r.weight"),
        ", r.is_active, m.provider_id
         FROM llm_routing_rules r JOIN llm_models m ON m.id = r.model_id
         WHERE $1 OR m.provider_id = ANY($2) ORDER BY r.model_id, r.id"
    ));
    each(tx, select.bind(everything).bind(&ids), |row| {
        let mut cells = Cells::of(row);
        let (Some(id), Some(model), Some(provider)) =
            (cells.get(0, "id"), cells.get(1, "model_id"), cells.get(8, "provider_id"))
        else {
            return Ok(());
        };
        let count = counts.entry(provider).or_default();
        *count += 1;
        if *count > most(&provider) {
            flooded.insert(provider, "llm_routing_rules");
        } else {
            rules.entry(model).or_default().push(rule(&mut cells, id));
        }
        Ok(())
    })
    .await?;

    counts.clear();
    let select = tables.query(concat!(
        "SELECT m.id, m.provider_id, /*bytes*/(left(coalesce(m.name, m.model_name, '')::text, 4096))/*bytes*/, ",
        cut!("m.display_name"),
        ", CASE WHEN m.context_length BETWEEN 0 AND 2147483647 THEN m.context_length::integer END, ",
        number!("m.cost_per_1m_tokens"),
        ", ",
        number!("m.cost_per_1m_input_tokens"),
        ", ",
        number!("m.cost_per_1m_output_tokens"),
        ", m.enabled, ",
        json!("m.metadata"),
        " FROM llm_models m WHERE $1 OR m.provider_id = ANY($2) ORDER BY m.provider_id, m.name, m.id"
    ));
    each(tx, select.bind(everything).bind(&ids), |row| {
        let mut cells = Cells::of(row);
        let (Some(id), Some(owner)) = (cells.get(0, "id"), cells.get::<Uuid>(1, "provider_id")) else {
            return Ok(());
        };
        let Some(provider) = places.get_mut(&owner) else { return Ok(()) };
        let count = counts.entry(owner).or_default();
        *count += 1;
        if *count > most(&owner) {
            flooded.insert(owner, "llm_models");
            return Ok(());
        }
        let model = model(&mut cells, id, rules.remove(&id).unwrap_or_default());
        if !cells.bad.is_empty() {
            let name = format!("{}/{}", provider.name, model.name);
            unreadable(&mut world, "llm_models", id, &provider.name, &name, &cells.bad);
        }
        provider.models.push(model);
        Ok(())
    })
    .await?;
    for (id, table) in flooded {
        if let Some(provider) = places.get_mut(&id) {
            let why = format!("more than {} rows of {table} hang on it", most(&id));
            let bad = [Bad { column: "id", why }];
            let name = provider.name.to_string();
            unreadable(&mut world, "llm_providers", id, &provider.name, &name, &bad);
        }
    }
    by_name(places, &mut world);
    copied_keys(tx, &mut world).await?;
    Ok(world)
}

/// Notes which managed providers hold a key that was applied to another. Nothing is asked while each holds its own.
async fn copied_keys(tx: &mut Tx, world: &mut World) -> Result<()> {
    let (mut ids, mut keys) = (Vec::new(), Vec::new());
    for live in world.live.values() {
        let LiveKey::Known { fingerprint, .. } = &live.key else { continue };
        let Some(managed) = world.managed.get(&live.name).filter(|managed| managed.provider_id == live.id)
        else {
            continue;
        };
        let (own, none) = (format!("\"key\":\"{}\"", fingerprint.0), "\"key\":null");
        if !managed.record.contains(&own) && !managed.record.contains(none) {
            ids.push(live.id);
            keys.push(fingerprint.0.to_string());
        }
    }
    if ids.is_empty() {
        return Ok(());
    }
    let select = query(
        "WITH g AS MATERIALIZED (
             SELECT provider_id, name, record::json->>'key' AS key, record::json->'provider'->>'type' AS type,
                    record::json->'provider'->>'api_base_url' AS url FROM providerd.managed)
         SELECT DISTINCT m.name FROM unnest($1::uuid[], $2::text[]) AS u (id, key)
         JOIN g m ON m.provider_id = u.id JOIN g o ON o.key = u.key AND o.provider_id <> m.provider_id
         WHERE (o.type, o.url) IS DISTINCT FROM (m.type, m.url)",
    );
    each(tx, select.bind(ids).bind(keys), |row| {
        world.copied_keys.insert(row.try_get::<String, _>(0)?.into());
        Ok(())
    })
    .await
}

/// Notes values that cannot be read, so that their object waits.
fn unreadable(
    world: &mut World,
    table: &'static str,
    id: Uuid,
    provider: &Arc<str>,
    object: &str,
    bad: &[Bad],
) {
    for Bad { column, why } in bad {
        let row = UnreadableRow { table, id, column, provider: provider.clone(), why: why.clone() };
        let wait = Wait { kind: NoticeKind::Unreadable, message: format!("{row}; it is left as it is") };
        world.waits.insert(object.to_owned(), wait);
        world.unreadable.push(row);
    }
}

/// Finds each name its row. Of several, the one that is on record is meant; where none is, nothing is done.
fn by_name(places: HashMap<Uuid, LiveProvider>, world: &mut World) {
    let mut rows: Vec<LiveProvider> = places.into_values().collect();
    rows.sort_by_key(|row| row.id);
    for row in rows {
        let name = row.name.clone();
        let Some(other) = world.live.get(&name) else {
            world.live.insert(name, row);
            continue;
        };
        let on_record = world.managed.get(&name).map(|managed| managed.provider_id);
        let meant = [row.id, other.id].into_iter().find(|id| Some(*id) == on_record);
        let stranger = if meant == Some(row.id) { other.id } else { row.id };
        let why = match meant {
            Some(meant) => format!("another row is called so too; the one that is managed is {meant}"),
            None => format!("several rows are called so, {} is another (hint: rename all but one)", other.id),
        };
        let found = UnreadableRow {
            table: "llm_providers",
            id: stranger,
            column: "name",
            provider: name.clone(),
            why,
        };
        if meant.is_none() {
            let wait =
                Wait { kind: NoticeKind::Unreadable, message: format!("{found}; nothing is applied to it") };
            world.waits.insert(name.to_string(), wait);
        }
        world.unreadable.push(found);
        if meant == Some(row.id) {
            world.live.insert(name, row);
        }
    }
}

/// A provider without its models, and, where its key columns disagree, the token that opens.
fn provider(cells: &mut Cells<'_>, id: Uuid, open: Opener<'_>) -> (LiveProvider, Option<String>) {
    let (first, second) = (cells.text(7).unwrap_or_default(), cells.text(8).unwrap_or_default());
    let (key, token) = LiveKey::of_columns([&first, &second], open);
    let token = token.filter(|_| matches!(key, LiveKey::Known { columns_agree: false, .. }));
    let provider = LiveProvider {
        id,
        name: cells.text(1).unwrap_or_default().into(),
        kind: cells.text(2),
        enabled: cells.get(3, "enabled"),
        priority: cells.get(4, "priority"),
        api_base_url: cells.text(5),
        api_key_source: cells.text(6),
        key,
        key_test_status: cells.text(9),
        health_status: cells.text(10),
        config: cells.object(11, "config"),
        models: Vec::new(),
    };
    (provider, token.map(str::to_owned))
}

fn model(cells: &mut Cells<'_>, id: Uuid, rules: Vec<LiveRule>) -> LiveModel {
    LiveModel {
        id,
        name: cells.text(2).unwrap_or_default(),
        display_name: cells.text(3),
        context_length: cells.get(4, "context_length"),
        cost_per_1m_tokens: cells.get(5, "cost_per_1m_tokens"),
        cost_per_1m_input_tokens: cells.get(6, "cost_per_1m_input_tokens"),
        cost_per_1m_output_tokens: cells.get(7, "cost_per_1m_output_tokens"),
        enabled: cells.get(8, "enabled"),
        metadata: cells.object(9, "metadata"),
        rules,
    }
}

fn rule(cells: &mut Cells<'_>, id: Uuid) -> LiveRule {
    LiveRule {
        id,
        power_level: cells.text(2),
        user_tier: cells.text(3),
        task_type: cells.text(4),
        priority: cells.get(5, "priority"),
        weight: cells.get(6, "weight"),
        is_active: cells.get(7, "is_active"),
    }
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
