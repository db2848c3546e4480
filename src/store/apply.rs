//! Carrying plans out: batches whose number does not depend on the number of objects.
//!
//! Rows are created by COPY straight into the tables (`create`); rows change by one UPDATE per set of changed columns, joined to
//! arrays, so that a row has one new version however many of its fields change. Deleting goes first (a name may come
//! back under another id), children before parents.
//! Invariant: nothing is written to a column that no plan names, except those a new row starts with, the dates, and
//! the key columns of a retired provider.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use chrono::{NaiveDateTime, Utc};
use rayon::prelude::*;
use serde_json::Value;
use sqlx::Row;
use uuid::Uuid;

use catalog::{
    model::Revision,
    plan::{Action, Cause, Change, ChangedTable, FieldChange, KeyAction, Managed, ProviderPlan},
};

use super::{
    NewEvent, ReconcileTx, Result, StoreError, Tx,
    columns::{MODEL, PROVIDER, ROUTE, TABLES, named, table},
    copy::{Copy, CopyFormat},
    create::Creations,
    events, query, query_built,
};

/// Rows per UPDATE: the arrays stay below a megabyte, and the planner still joins by hash.
const CHUNK: usize = 5_000;

/// Column → value as text (`None`: NULL). Text, because one array type per column needs no table of types; the database
/// casts.
type Columns = BTreeMap<&'static str, Option<String>>;

/// A row to change.
struct Write {
    id: Uuid,
    columns: Columns,
}

/// What a set of plans changes and deletes, by table.
#[derive(Default)]
struct Batches {
    update: [Vec<Write>; 3],
    delete: [Vec<Uuid>; 3],
}

impl ReconcileTx {
    /// Carries out `plans`, which come from `revision`. `tokens`: the Fernet token of each provider whose key is set.
    ///
    /// # Errors
    /// [`StoreError::Data`] if the database refuses a value (names the provider where it can): roll back to the
    /// savepoint and leave that one out; [`StoreError::Conflict`] after a race with another writer.
    pub async fn apply(
        &mut self,
        plans: &[ProviderPlan],
        tokens: &HashMap<Arc<str>, String>,
        revision: Option<&Revision>,
    ) -> Result<()> {
        let now = Utc::now().naive_utc();
        let mut creations = Creations::of(plans, tokens, &now.to_string())?;
        let mut batches = self.sort(plans, tokens, now)?;
        if creations.has_routes() || !batches.update[ROUTE].is_empty() {
            let (created, updated) = self.before_global(now).await?;
            for write in &mut batches.update[ROUTE] {
                if let (Some(limit), Some(value)) = (&updated, write.columns.get_mut("updated_at")) {
                    *value = Some(limit.clone());
                }
            }
            creations.date_routes(created, updated);
        }
        self.delete(&batches).await?;
        creations.write(&mut self.tx).await?;
        for kind in [PROVIDER, MODEL, ROUTE] {
            update(&mut self.tx, kind, &batches.update[kind]).await?;
        }
        self.bookkeeping(plans, revision).await
    }

    /// Records in the audit trail what these plans do; how many rows that are.
    ///
    /// # Errors
    /// The database failed or refused one.
    pub async fn record_plans(
        &mut self,
        plans: &[ProviderPlan],
        revision: Option<&Revision>,
    ) -> Result<usize> {
        events::insert_plans(&mut self.tx, plans, revision).await
    }

    /// Writes rows of the audit trail.
    ///
    /// # Errors
    /// The database failed or refused one.
    pub async fn record(&mut self, events: &[NewEvent]) -> Result<()> {
        if events.is_empty() { Ok(()) } else { events::insert(&mut self.tx, events).await }
    }

    fn sort(
        &self,
        plans: &[ProviderPlan],
        tokens: &HashMap<Arc<str>, String>,
        now: NaiveDateTime,
    ) -> Result<Batches> {
        let parts: Vec<Result<Batches>> =
            plans.par_chunks(CHUNK).map(|plans| self.sort_some(plans, tokens, now)).collect();
        let mut all = Batches::default();
        for part in parts {
            let part = part?;
            all.update.iter_mut().zip(part.update).for_each(|(all, part)| all.extend(part));
            all.delete.iter_mut().zip(part.delete).for_each(|(all, part)| all.extend(part));
        }
        Ok(all)
    }

    fn sort_some(
        &self,
        plans: &[ProviderPlan],
        tokens: &HashMap<Arc<str>, String>,
        now: NaiveDateTime,
    ) -> Result<Batches> {
        let mut batches = Batches::default();
        let at = now.to_string();
        for plan in plans {
            let mut key = self.key_columns(plan, tokens, &at)?;
            for change in &plan.changes {
                if change.action == Action::Create {
                    if change.kind == ChangedTable::Provider {
                        key.clear();
                    }
                    continue;
                }
                let kind = table(change.kind);
                let mut columns = columns(change.kind, &change.fields).map_err(|message| {
                    StoreError::Data { provider: Some(Arc::clone(&plan.name)), message }
                })?;
                match change.action {
                    Action::Delete => batches.delete[kind].push(change.id),
                    Action::Release | Action::Create => {}
                    Action::Adopt | Action::Update | Action::Retire => {
                        if change.action == Action::Retire {
                            columns.insert("enabled", Some("false".to_owned()));
                            if kind == PROVIDER {
                                columns.extend(wiped(&at));
                            }
                        }
                        if kind == PROVIDER {
                            columns.extend(std::mem::take(&mut key));
                        }
                        if !columns.is_empty() {
                            columns.insert("updated_at", Some(at.clone()));
                            batches.update[kind].push(Write { id: change.id, columns });
                        }
                    }
                }
            }
            // A key may change where nothing else does.
            if !key.is_empty() && !plan.changes.iter().any(is_delete) {
                key.insert("updated_at", Some(at.clone()));
                batches.update[PROVIDER].push(Write { id: plan.id, columns: key });
            }
        }
        Ok(batches)
    }

    fn key_columns(
        &self,
        plan: &ProviderPlan,
        tokens: &HashMap<Arc<str>, String>,
        at: &str,
    ) -> Result<Columns> {
        let Some(key) = &plan.key else { return Ok(Columns::new()) };
        let missing = || StoreError::Data {
            provider: Some(Arc::clone(&plan.name)),
            message: "the key to store was not handed over".to_owned(),
        };
        let both = |token: &str| {
            [("api_key_encrypted", Some(token.to_owned())), ("encrypted_api_key", Some(token.to_owned()))]
        };
        Ok(match key.action {
            KeyAction::Set => {
                let token = tokens.get(&plan.name).ok_or_else(missing)?;
                let mut columns = Columns::from(both(token));
                columns.insert("api_key_updated_at", Some(at.to_owned()));
                columns.insert("api_key_test_status", Some("pending".to_owned()));
                columns
            }
            KeyAction::Wipe => wiped(at),
            KeyAction::Pending => Columns::from([("api_key_test_status", Some("pending".to_owned()))]),
            KeyAction::Align => {
                let token =
                    self.align.get(&plan.id).or_else(|| tokens.get(&plan.name)).ok_or_else(missing)?;
                Columns::from(both(token))
            }
        })
    }

    /// Dates that keep the global strategy row the newest: just before its own; `None` where it is newer anyway. Where
    /// there is no such row, one is made: programs take the newest rule for it, and make one themselves only while there
    /// are no rules at all.
    async fn before_global(&mut self, now: NaiveDateTime) -> Result<(Option<String>, Option<String>)> {
        query(
            r#"INSERT INTO llm_routing_rules (strategy, fallback_providers, model_aliases, config, created_at, updated_at)
             SELECT 'balanced', '{}', '{}', '{"cost_weight": 0.4, "latency_weight": 0.4, "quality_weight": 0.2,
                    "max_retries": 3, "retry_delay_ms": 500}', $1, $1
             WHERE NOT EXISTS (SELECT FROM llm_routing_rules WHERE model_id IS NULL)"#,
        )
        .bind(now)
        .execute(&mut *self.tx)
        .await?;
        let row = query(
            // Dates at the ends of the calendar have no neighbours.
            "SELECT max(created_at) FILTER (WHERE created_at BETWEEN '0001-01-01' AND '9999-12-31')::timestamp
                        - interval '1 microsecond',
                    max(updated_at) FILTER (WHERE updated_at BETWEEN '0001-01-01' AND '9999-12-31')::timestamp
                        - interval '1 microsecond'
             FROM llm_routing_rules WHERE model_id IS NULL",
        )
        .fetch_one(&mut *self.tx)
        .await?;
        let limit =
            |time: Option<NaiveDateTime>| time.filter(|time| *time < now).map(|time| time.to_string());
        Ok((limit(row.try_get(0)?), limit(row.try_get(1)?)))
    }

    async fn delete(&mut self, batches: &Batches) -> Result<()> {
        let [providers, models, rules] = &batches.delete;
        // An existing installation's foreign keys may not cascade, so children are deleted by name of their parent.
        let steps: [(&'static str, &[Uuid]); 6] = [
            ("DELETE FROM llm_routing_rules WHERE id = ANY($1)", rules),
            ("DELETE FROM llm_routing_rules WHERE model_id = ANY($1)", models),
            ("DELETE FROM llm_models WHERE id = ANY($1)", models),
            (
                "DELETE FROM llm_routing_rules r USING llm_models m WHERE r.model_id = m.id AND m.provider_id = ANY($1)",
                providers,
            ),
            ("DELETE FROM llm_models WHERE provider_id = ANY($1)", providers),
            ("DELETE FROM llm_providers WHERE id = ANY($1)", providers),
        ];
        for (sql, ids) in steps {
            if !ids.is_empty() {
                query(sql).bind(ids).execute(&mut *self.tx).await?;
            }
        }
        Ok(())
    }

    async fn bookkeeping(&mut self, plans: &[ProviderPlan], revision: Option<&Revision>) -> Result<()> {
        let revision = revision.map(ToString::to_string);
        let gone: Vec<&str> =
            plans.iter().filter(|plan| plan.forget).map(|plan| plan.name.as_ref()).collect();
        if !gone.is_empty() {
            query("DELETE FROM providerd.managed WHERE name = ANY($1)")
                .bind(&gone)
                .execute(&mut *self.tx)
                .await?;
        }
        let records = plans.iter().filter(|plan| !plan.forget).filter_map(|plan| plan.record.as_ref());
        let (new, present): (Vec<&Managed>, Vec<&Managed>) =
            records.partition(|record| self.known_all && !self.known.contains(&record.name));
        if !new.is_empty() {
            let target = "providerd.managed (name, provider_id, digest, file, line, record, revision)";
            let mut copy = Copy::begin(&mut self.tx, target, CopyFormat::Binary(7)).await?;
            for record in &new {
                copy.row(|to| {
                    to.text(&record.name);
                    to.uuid(record.provider_id);
                    to.bytes(&record.digest.0);
                    to.text(&record.origin.file);
                    to.integer(i32::try_from(record.origin.line).unwrap_or(i32::MAX));
                    to.text(&record.record);
                    to.option(revision.as_deref());
                })
                .await?;
            }
            copy.finish().await?;
        }
        for records in present.chunks(CHUNK) {
            query(
                "INSERT INTO providerd.managed (name, provider_id, digest, file, line, record, revision)
                 SELECT *, $7 FROM unnest($1::text[], $2::uuid[], $3::bytea[], $4::text[], $5::integer[], $6::text[])
                 ON CONFLICT (name) DO UPDATE SET provider_id = excluded.provider_id, digest = excluded.digest,
                     file = excluded.file, line = excluded.line, record = excluded.record,
                     revision = excluded.revision",
            )
            .bind(records.iter().map(|record| record.name.as_ref()).collect::<Vec<&str>>())
            .bind(records.iter().map(|record| record.provider_id).collect::<Vec<_>>())
            .bind(records.iter().map(|record| record.digest.0.as_slice()).collect::<Vec<_>>())
            .bind(records.iter().map(|record| record.origin.file.as_ref()).collect::<Vec<&str>>())
            .bind(
                records
                    .iter()
                    .map(|record| i32::try_from(record.origin.line).unwrap_or(i32::MAX))
                    .collect::<Vec<_>>(),
            )
            .bind(records.iter().map(|record| record.record.as_ref()).collect::<Vec<&str>>())
            .bind(revision.as_deref())
            .execute(&mut *self.tx)
            .await?;
        }
        for name in gone {
            self.known.remove(name);
        }
        self.known.extend(new.iter().chain(&present).map(|record| Arc::clone(&record.name)));
        Ok(())
    }
}

fn is_delete(change: &Change) -> bool {
    change.kind == ChangedTable::Provider && change.action == Action::Delete
}

fn wiped(at: &str) -> Columns {
    Columns::from([
        ("api_key_encrypted", Some(String::new())),
        ("encrypted_api_key", Some(String::new())),
        ("api_key_updated_at", Some(at.to_owned())),
        ("api_key_test_status", None),
    ])
}

/// The columns that these field changes set; the keys of a JSON column come together as one patch.
fn columns(kind: ChangedTable, fields: &[FieldChange]) -> Result<Columns, String> {
    let kind = table(kind);
    let mut columns = Columns::new();
    let mut patches: BTreeMap<&'static str, serde_json::Map<String, Value>> = BTreeMap::new();
    for change in fields.iter().filter(|change| change.cause != Cause::Released) {
        let unknown = || format!("the field {} has no column", change.field);
        match change.field.split_once('.') {
            Some((column, key)) => {
                let column = named(kind, column).ok_or_else(unknown)?;
                if column.cast != "jsonb" {
                    return Err(unknown());
                }
                patches.entry(column.name).or_default().insert(key.to_owned(), change.new.clone());
            }
            None => {
                let column = named(kind, &change.field).ok_or_else(unknown)?.name;
                columns.insert(
                    column,
                    match &change.new {
                        Value::Null => None,
                        Value::String(text) => Some(text.clone()),
                        other => Some(other.to_string()),
                    },
                );
                // The two names of a model are one value.
                if kind == MODEL && column == "name" {
                    columns.insert("model_name", columns.get(column).cloned().flatten());
                }
            }
        }
    }
    for (column, patch) in patches {
        columns.insert(column, Some(Value::Object(patch).to_string()));
    }
    Ok(columns)
}

/// Rows of one set of columns together.
fn groups(writes: &[Write]) -> BTreeMap<Vec<&'static str>, Vec<&Write>> {
    let mut groups: BTreeMap<Vec<&'static str>, Vec<&Write>> = BTreeMap::new();
    for write in writes {
        groups.entry(write.columns.keys().copied().collect()).or_default().push(write);
    }
    groups
}

async fn update(tx: &mut Tx, kind: usize, writes: &[Write]) -> Result<()> {
    for (names, rows) in groups(writes) {
        let mut set = Vec::with_capacity(names.len());
        let mut arrays = Vec::with_capacity(names.len());
        for (index, name) in names.iter().enumerate() {
            let cast = named(kind, name).map_or("text", |column| column.cast);
            set.push(match cast {
                "jsonb" => format!(
                    "{name} = CASE WHEN jsonb_typeof(t.{name}) = 'object' THEN t.{name} ELSE '{{}}' END \
                     || u.c{index}::jsonb"
                ),
                _ => format!("{name} = u.c{index}::{cast}"),
            });
            arrays.push(format!("${}::text[]", index + 2));
        }
        let aliases: Vec<String> = (0..names.len()).map(|index| format!("c{index}")).collect();
        let statement = format!(
            "UPDATE {} t SET {} FROM unnest($1::uuid[], {}) AS u (id, {}) WHERE t.id = u.id",
            TABLES[kind],
            set.join(", "),
            arrays.join(", "),
            aliases.join(", ")
        );
        for chunk in rows.chunks(CHUNK) {
            let mut bound =
                query_built(statement.clone()).bind(chunk.iter().map(|row| row.id).collect::<Vec<_>>());
            for name in &names {
                bound = bound.bind(
                    chunk
                        .iter()
                        .map(|row| row.columns.get(name).and_then(Option::as_deref))
                        .collect::<Vec<Option<&str>>>(),
                );
            }
            let done = bound.execute(&mut **tx).await?;
            if done.rows_affected() != chunk.len() as u64 {
                return Err(StoreError::Conflict("a row to change is gone".to_owned()));
            }
        }
    }
    Ok(())
}
