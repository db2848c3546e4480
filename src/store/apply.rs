//! Carrying plans out: batches whose number does not depend on the number of objects.
//!
//! Rows are created by COPY straight into the tables; rows change by one UPDATE per set of changed columns, joined to
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

use super::{NewEvent, ReconcileTx, Result, StoreError, Tx, events, query, query_built};
use crate::plan::{Action, Cause, Change, FieldChange, KeyAction, Kind, Managed, ProviderPlan};

/// Rows per UPDATE: the arrays stay below a megabyte, and the planner still joins by hash.
const CHUNK: usize = 5_000;

/// Bytes handed to the connection at a time.
const COPY_BLOCK: usize = 256 * 1024;

/// Column → value as text (`None`: NULL). Text, because COPY and one array type per column need no table of types; the
/// database casts.
type Columns = BTreeMap<&'static str, Option<String>>;

/// A row to create or change, and whose it is.
struct Write {
    id: Uuid,
    provider: Arc<str>,
    columns: Columns,
}

/// What a set of plans comes to, by table.
#[derive(Default)]
struct Batches {
    create: [Vec<Write>; 3],
    update: [Vec<Write>; 3],
    delete: [Vec<Uuid>; 3],
}

impl ReconcileTx {
    /// Carries out `plans` and records `events`. `tokens`: the Fernet token of each provider whose key is set.
    ///
    /// # Errors
    /// [`StoreError::Data`] if the database refuses a value (names the provider where it can): roll back to the
    /// savepoint and leave that one out; [`StoreError::Conflict`] after a race with another writer.
    pub async fn apply(&mut self, plans: &[ProviderPlan], tokens: &HashMap<Arc<str>, String>) -> Result<()> {
        let now = Utc::now().naive_utc();
        let mut batches = self.sort(plans, tokens, now)?;
        let before_global = self.before_global(&batches, now).await?;
        for write in batches.create[ROUTE].iter_mut().chain(&mut batches.update[ROUTE]) {
            for (column, limit) in [("created_at", before_global.0), ("updated_at", before_global.1)] {
                if let (Some(limit), Some(value)) = (limit, write.columns.get_mut(column)) {
                    *value = Some(limit.to_string());
                }
            }
        }
        self.delete(&batches).await?;
        for kind in [PROVIDER, MODEL, ROUTE] {
            create(&mut self.tx, kind, &batches.create[kind]).await?;
        }
        for kind in [PROVIDER, MODEL, ROUTE] {
            update(&mut self.tx, kind, &batches.update[kind]).await?;
        }
        // Freeing the columns of ten thousand providers takes as long as a statement: beside the server's work.
        drop(tokio::task::spawn_blocking(move || drop(batches)));
        self.bookkeeping(plans).await
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
            all.create.iter_mut().zip(part.create).for_each(|(all, part)| all.extend(part));
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
                let kind = table(change.kind);
                let mut columns = columns(change.kind, &change.fields).map_err(|message| {
                    StoreError::Data { provider: Some(Arc::clone(&plan.name)), message }
                })?;
                let provider = Arc::clone(&plan.name);
                match change.action {
                    Action::Delete => batches.delete[kind].push(change.id),
                    Action::Release => {}
                    Action::Create => {
                        start(change, &plan.name, &mut columns, &at);
                        if kind == PROVIDER {
                            columns.extend(std::mem::take(&mut key));
                        }
                        batches.create[kind].push(Write { id: change.id, provider, columns });
                    }
                    Action::Adopt | Action::Update | Action::Retire => {
                        if change.action == Action::Retire {
                            columns.insert("enabled", Some("false".to_owned()));
                            columns.extend(wiped(&at));
                        }
                        if kind == PROVIDER {
                            columns.extend(std::mem::take(&mut key));
                        }
                        if !columns.is_empty() {
                            columns.insert("updated_at", Some(at.clone()));
                            batches.update[kind].push(Write { id: change.id, provider, columns });
                        }
                    }
                }
            }
            // A key may change where nothing else does.
            if !key.is_empty() && !plan.changes.iter().any(is_delete) {
                key.insert("updated_at", Some(at.clone()));
                batches.update[PROVIDER].push(Write {
                    id: plan.id,
                    provider: Arc::clone(&plan.name),
                    columns: key,
                });
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

    /// Dates that keep the global strategy row the newest: just before its own. `None` where there is no such row, or
    /// where it is newer anyway.
    async fn before_global(
        &mut self,
        batches: &Batches,
        now: NaiveDateTime,
    ) -> Result<(Option<NaiveDateTime>, Option<NaiveDateTime>)> {
        if batches.create[ROUTE].is_empty() && batches.update[ROUTE].is_empty() {
            return Ok((None, None));
        }
        let row = query(
            "SELECT max(created_at)::timestamp - interval '1 microsecond',
                    max(updated_at)::timestamp - interval '1 microsecond'
             FROM llm_routing_rules WHERE model_id IS NULL",
        )
        .fetch_one(&mut *self.tx)
        .await?;
        let limit = |time: Option<NaiveDateTime>| time.filter(|time| *time < now);
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

    async fn bookkeeping(&mut self, plans: &[ProviderPlan]) -> Result<()> {
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
            let mut copy = Copy::default();
            for record in &new {
                copy.text(&record.name);
                copy.uuid(record.provider_id);
                copy.text(&format!("\\x{}", record.digest));
                copy.text(&record.origin.file);
                copy.text(&record.origin.line.to_string());
                copy.text(&record.record);
                copy.end_row();
            }
            copy.send(
                &mut self.tx,
                "COPY providerd.managed (name, provider_id, digest, file, line, record) FROM STDIN",
            )
            .await?;
        }
        for records in present.chunks(CHUNK) {
            query(
                "INSERT INTO providerd.managed (name, provider_id, digest, file, line, record)
                 SELECT * FROM unnest($1::text[], $2::uuid[], $3::bytea[], $4::text[], $5::integer[], $6::text[])
                 ON CONFLICT (name) DO UPDATE SET provider_id = excluded.provider_id, digest = excluded.digest,
                     file = excluded.file, line = excluded.line, record = excluded.record",
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

const PROVIDER: usize = 0;
const MODEL: usize = 1;
const ROUTE: usize = 2;
const TABLES: [&str; 3] = ["llm_providers", "llm_models", "llm_routing_rules"];

const fn table(kind: Kind) -> usize {
    match kind {
        Kind::Provider => PROVIDER,
        Kind::Model => MODEL,
        Kind::Route => ROUTE,
    }
}

fn is_delete(change: &Change) -> bool {
    change.kind == Kind::Provider && change.action == Action::Delete
}

fn wiped(at: &str) -> Columns {
    Columns::from([
        ("api_key_encrypted", Some(String::new())),
        ("encrypted_api_key", Some(String::new())),
        ("api_key_updated_at", Some(at.to_owned())),
        ("api_key_test_status", None),
    ])
}

/// Columns that a plan may name, with the type to cast to. The JSON ones take a patch.
const COLUMNS: [&[(&str, &str)]; 3] = [
    &[
        ("name", "text"),
        ("type", "text"),
        ("enabled", "boolean"),
        ("priority", "integer"),
        ("api_base_url", "text"),
        ("api_key_source", "text"),
        ("config", "jsonb"),
        ("api_key_encrypted", "text"),
        ("encrypted_api_key", "text"),
        ("api_key_updated_at", "timestamp"),
        ("api_key_test_status", "text"),
        ("health_status", "text"),
        ("created_at", "timestamp"),
        ("updated_at", "timestamp"),
    ],
    &[
        ("provider_id", "uuid"),
        ("name", "text"),
        ("model_name", "text"),
        ("display_name", "text"),
        ("context_length", "integer"),
        ("cost_per_1m_tokens", "numeric"),
        ("cost_per_1m_input_tokens", "numeric"),
        ("cost_per_1m_output_tokens", "numeric"),
        ("enabled", "boolean"),
        ("metadata", "jsonb"),
        ("created_at", "timestamp"),
        ("updated_at", "timestamp"),
    ],
    &[
        ("model_id", "uuid"),
        ("power_level", "text"),
        ("user_tier", "text"),
        ("task_type", "text"),
        ("priority", "integer"),
        ("weight", "integer"),
        ("is_active", "boolean"),
        ("created_at", "timestamp"),
        ("updated_at", "timestamp"),
    ],
];

fn column_type(kind: usize, column: &str) -> Option<(&'static str, &'static str)> {
    COLUMNS[kind].iter().find(|(name, _)| *name == column).copied()
}

/// The columns that these field changes set; the keys of a JSON column come together as one patch.
fn columns(kind: Kind, fields: &[FieldChange]) -> Result<Columns, String> {
    let kind = table(kind);
    let mut columns = Columns::new();
    let mut patches: BTreeMap<&'static str, serde_json::Map<String, Value>> = BTreeMap::new();
    for change in fields.iter().filter(|change| change.cause != Cause::Released) {
        let unknown = || format!("the field {} has no column", change.field);
        match change.field.split_once('.') {
            Some((column, key)) => {
                let (column, kind) = column_type(kind, column).ok_or_else(unknown)?;
                if kind != "jsonb" {
                    return Err(unknown());
                }
                patches.entry(column).or_default().insert(key.to_owned(), change.new.clone());
            }
            None => {
                let (column, _) = column_type(kind, &change.field).ok_or_else(unknown)?;
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

/// What a new row holds beside what is declared. Named here instead of left to the table's defaults, because an
/// existing installation's table may have others or none.
fn start(change: &Change, provider: &str, columns: &mut Columns, at: &str) {
    let mut set = |column: &'static str, value: &str| {
        columns.entry(column).or_insert_with(|| Some(value.to_owned()));
    };
    set("created_at", at);
    set("updated_at", at);
    match change.kind {
        Kind::Provider => {
            set("name", provider);
            set("enabled", "true");
            set("priority", "0");
            set("config", "{}");
            set("health_status", "unknown");
            set("api_key_encrypted", "");
            set("encrypted_api_key", "");
        }
        Kind::Model => {
            let name = change.name.strip_prefix(provider).and_then(|rest| rest.strip_prefix('/'));
            set("provider_id", &change.parent.to_string());
            set("name", name.unwrap_or(&change.name));
            set("model_name", name.unwrap_or(&change.name));
            set("enabled", "true");
            set("metadata", "{}");
        }
        Kind::Route => {
            set("model_id", &change.parent.to_string());
            set("priority", "100");
            set("weight", "100");
            set("is_active", "true");
        }
    }
}

/// Rows of one set of columns together.
fn groups(writes: &[Write]) -> BTreeMap<Vec<&'static str>, Vec<&Write>> {
    let mut groups: BTreeMap<Vec<&'static str>, Vec<&Write>> = BTreeMap::new();
    for write in writes {
        groups.entry(write.columns.keys().copied().collect()).or_default().push(write);
    }
    groups
}

async fn create(tx: &mut Tx, kind: usize, writes: &[Write]) -> Result<()> {
    for (names, rows) in groups(writes) {
        let mut copy = Copy::default();
        for row in &rows {
            copy.uuid(row.id);
            for value in row.columns.values() {
                copy.option(value.as_deref());
            }
            copy.end_row();
        }
        let statement = format!("COPY {} (id, {}) FROM STDIN", TABLES[kind], names.join(", "));
        copy.send(tx, &statement).await.map_err(|error| name_the_row(error, &rows))?;
    }
    Ok(())
}

/// PostgreSQL says "COPY llm_models, line 17, …": the provider that the row belongs to.
fn name_the_row(error: StoreError, rows: &[&Write]) -> StoreError {
    match error {
        StoreError::Data { provider: None, message } => {
            let line = message
                .split_once(", line ")
                .and_then(|(_, rest)| rest.split(|c: char| !c.is_ascii_digit()).next())
                .and_then(|digits| digits.parse::<usize>().ok());
            let row = line.and_then(|line| rows.get(line.checked_sub(1)?));
            StoreError::Data { provider: row.map(|row| Arc::clone(&row.provider)), message }
        }
        other => other,
    }
}

async fn update(tx: &mut Tx, kind: usize, writes: &[Write]) -> Result<()> {
    for (names, rows) in groups(writes) {
        let mut set = Vec::with_capacity(names.len());
        let mut arrays = Vec::with_capacity(names.len());
        for (index, name) in names.iter().enumerate() {
            let cast = column_type(kind, name).map_or("text", |(_, cast)| cast);
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

/// Rows in COPY's text format.
#[derive(Default)]
pub(super) struct Copy {
    buffer: Vec<u8>,
}

impl Copy {
    pub(super) fn text(&mut self, value: &str) {
        for &byte in value.as_bytes() {
            match byte {
                b'\\' => self.buffer.extend_from_slice(b"\\\\"),
                b'\n' => self.buffer.extend_from_slice(b"\\n"),
                b'\r' => self.buffer.extend_from_slice(b"\\r"),
                b'\t' => self.buffer.extend_from_slice(b"\\t"),
                byte => self.buffer.push(byte),
            }
        }
        self.buffer.push(b'\t');
    }

    pub(super) fn option(&mut self, value: Option<&str>) {
        match value {
            Some(value) => self.text(value),
            None => self.buffer.extend_from_slice(b"\\N\t"),
        }
    }

    pub(super) fn uuid(&mut self, value: Uuid) {
        let mut text = Uuid::encode_buffer();
        self.buffer.extend_from_slice(value.hyphenated().encode_lower(&mut text).as_bytes());
        self.buffer.push(b'\t');
    }

    pub(super) fn end_row(&mut self) {
        if let Some(last) = self.buffer.last_mut() {
            *last = b'\n';
        }
    }

    pub(super) async fn send(self, tx: &mut Tx, statement: &str) -> Result<()> {
        let mut copy = tx.copy_in_raw(statement).await?;
        for block in self.buffer.chunks(COPY_BLOCK) {
            copy.send(block).await.map_err(copy_error)?;
        }
        copy.finish().await.map_err(copy_error)?;
        Ok(())
    }
}

/// Keeps the context line, which names the row of a COPY but, unlike DETAIL, also the refused value: only the part up
/// to the line number is kept.
fn copy_error(error: sqlx::Error) -> StoreError {
    let place = error
        .as_database_error()
        .and_then(|error| error.try_downcast_ref::<sqlx::postgres::PgDatabaseError>())
        .and_then(|error| error.r#where())
        .and_then(|place| place.split(['\n', ':']).next())
        .map(|place| {
            let mut parts = place.splitn(3, ", ");
            format!("{}, {}", parts.next().unwrap_or_default(), parts.next().unwrap_or_default())
        });
    match (error.into(), place) {
        (StoreError::Data { provider, message }, Some(place)) => {
            StoreError::Data { provider, message: format!("{message}, {place}") }
        }
        (error, _) => error,
    }
}
