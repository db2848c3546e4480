//! Carrying a plan out: as many statements as there are kinds of change, not as there are objects.
//!
//! New rows go in by COPY (measured: a quarter of the time of INSERT … SELECT FROM unnest), changed rows by
//! UPDATE … FROM unnest. Invariant: only columns that the plan names are written, and the time of the change.

use std::{collections::HashMap, fmt::Write as _, sync::Arc};

use serde_json::Value;
use sqlx::Row;
use uuid::Uuid;

use super::{NewEvent, ReconcileTx, Result};
use crate::{
    model::JsonMap,
    plan::{Action, Change, FieldChange, KeyAction, Kind, Managed, ProviderPlan},
};

/// Bytes of COPY text sent at once.
const COPY_CHUNK: usize = 256 * 1024;
/// Rows changed by one statement.
const CHUNK: usize = 1000;

impl ReconcileTx {
    /// Writes what the plans say, with `tokens` for the keys that they set, and the audit rows.
    pub async fn apply(
        &mut self,
        plans: &[ProviderPlan],
        tokens: &HashMap<Arc<str>, String>,
        events: &[NewEvent],
    ) -> Result<()> {
        let now: String = sqlx::query("SELECT (now() AT TIME ZONE 'utc')::text")
            .fetch_one(&mut *self.tx)
            .await?
            .try_get(0)?;
        let changes = || plans.iter().flat_map(|plan| &plan.changes);
        let of =
            |kind: Kind, action: Action| changes().filter(move |it| it.kind == kind && it.action == action);

        self.delete("DELETE FROM llm_routing_rules WHERE id = ANY($1)", of(Kind::Route, Action::Delete))
            .await?;
        self.delete("DELETE FROM llm_models WHERE id = ANY($1)", of(Kind::Model, Action::Delete)).await?;
        self.delete("DELETE FROM llm_providers WHERE id = ANY($1)", of(Kind::Provider, Action::Delete))
            .await?;

        // Renames free names before rows are created under them.
        let updated = |kind| {
            let updates = |it: &&Change| {
                matches!(it.action, Action::Adopt | Action::Update | Action::Retire) && !it.fields.is_empty()
            };
            changes().filter(move |it| it.kind == kind).filter(updates).collect::<Vec<_>>()
        };
        for chunk in updated(Kind::Provider).chunks(CHUNK) {
            self.update_providers(chunk).await?;
        }
        for chunk in updated(Kind::Model).chunks(CHUNK) {
            self.update_models(chunk).await?;
        }
        for chunk in updated(Kind::Route).chunks(CHUNK) {
            self.update_rules(chunk).await?;
        }
        self.create_providers(plans, tokens, &now).await?;
        self.create_models(of(Kind::Model, Action::Create), &now).await?;
        self.create_rules(of(Kind::Route, Action::Create), &now).await?;
        self.keys(plans, tokens).await?;
        self.records(plans).await?;
        self.events(events).await
    }

    async fn delete(&mut self, sql: &'static str, changes: impl Iterator<Item = &Change>) -> Result<()> {
        let ids: Vec<Uuid> = changes.map(|change| change.id).collect();
        if !ids.is_empty() {
            sqlx::query(sql).bind(ids).execute(&mut *self.tx).await?;
        }
        Ok(())
    }

    async fn update_providers(&mut self, changes: &[&Change]) -> Result<()> {
        let rows: Vec<Patch<'_>> = changes.iter().map(|change| Patch::new(change, "config.")).collect();
        sqlx::query(
            "UPDATE llm_providers t SET name = coalesce(u.name, t.name), type = coalesce(u.type, t.type), \
             enabled = coalesce(u.enabled, t.enabled), priority = coalesce(u.priority, t.priority), \
             api_base_url = coalesce(u.api_base_url, t.api_base_url), api_key_source = coalesce(u.api_key_source, t.api_key_source), \
             config = CASE WHEN u.config IS NULL THEN t.config \
                      ELSE CASE WHEN jsonb_typeof(t.config) = 'object' THEN t.config ELSE '{}' END || u.config::jsonb END, \
             updated_at = now() AT TIME ZONE 'utc' \
             FROM unnest($1::uuid[], $2::text[], $3::text[], $4::bool[], $5::int[], $6::text[], $7::text[], $8::text[]) \
             AS u(id, name, type, enabled, priority, api_base_url, api_key_source, config) WHERE t.id = u.id",
        )
        .bind(ids(changes))
        .bind(texts(&rows, "name"))
        .bind(texts(&rows, "type"))
        .bind(bools(&rows, "enabled"))
        .bind(ints(&rows, "priority"))
        .bind(texts(&rows, "api_base_url"))
        .bind(texts(&rows, "api_key_source"))
        .bind(patches(&rows))
        .execute(&mut *self.tx)
        .await?;
        Ok(())
    }

    async fn update_models(&mut self, changes: &[&Change]) -> Result<()> {
        let rows: Vec<Patch<'_>> = changes.iter().map(|change| Patch::new(change, "metadata.")).collect();
        sqlx::query(
            "UPDATE llm_models t SET name = coalesce(u.name, t.name), display_name = coalesce(u.display_name, t.display_name), \
             context_length = coalesce(u.context_length, t.context_length), \
             cost_per_1m_tokens = coalesce(u.cost::numeric, t.cost_per_1m_tokens), \
             cost_per_1m_input_tokens = coalesce(u.input::numeric, t.cost_per_1m_input_tokens), \
             cost_per_1m_output_tokens = coalesce(u.output::numeric, t.cost_per_1m_output_tokens), \
             enabled = coalesce(u.enabled, t.enabled), \
             metadata = CASE WHEN u.metadata IS NULL THEN t.metadata \
                        ELSE CASE WHEN jsonb_typeof(t.metadata) = 'object' THEN t.metadata ELSE '{}' END || u.metadata::jsonb END, \
             updated_at = now() AT TIME ZONE 'utc' \
             FROM unnest($1::uuid[], $2::text[], $3::text[], $4::int[], $5::float8[], $6::float8[], $7::float8[], $8::bool[], $9::text[]) \
             AS u(id, name, display_name, context_length, cost, input, output, enabled, metadata) WHERE t.id = u.id",
        )
        .bind(ids(changes))
        .bind(texts(&rows, "name"))
        .bind(texts(&rows, "display_name"))
        .bind(ints(&rows, "context_length"))
        .bind(floats(&rows, "cost_per_1m_tokens"))
        .bind(floats(&rows, "cost_per_1m_input_tokens"))
        .bind(floats(&rows, "cost_per_1m_output_tokens"))
        .bind(bools(&rows, "enabled"))
        .bind(patches(&rows))
        .execute(&mut *self.tx)
        .await?;
        Ok(())
    }

    async fn update_rules(&mut self, changes: &[&Change]) -> Result<()> {
        let rows: Vec<Patch<'_>> = changes.iter().map(|change| Patch::new(change, "\0")).collect();
        sqlx::query(
            "UPDATE llm_routing_rules t SET power_level = coalesce(u.power_level, t.power_level), \
             user_tier = coalesce(u.user_tier, t.user_tier), task_type = coalesce(u.task_type, t.task_type), \
             priority = coalesce(u.priority, t.priority), weight = coalesce(u.weight, t.weight), \
             is_active = coalesce(u.is_active, t.is_active), updated_at = now() AT TIME ZONE 'utc' \
             FROM unnest($1::uuid[], $2::text[], $3::text[], $4::text[], $5::int[], $6::int[], $7::bool[]) \
             AS u(id, power_level, user_tier, task_type, priority, weight, is_active) WHERE t.id = u.id",
        )
        .bind(ids(changes))
        .bind(texts(&rows, "power_level"))
        .bind(texts(&rows, "user_tier"))
        .bind(texts(&rows, "task_type"))
        .bind(ints(&rows, "priority"))
        .bind(ints(&rows, "weight"))
        .bind(bools(&rows, "is_active"))
        .execute(&mut *self.tx)
        .await?;
        Ok(())
    }

    async fn create_providers(
        &mut self,
        plans: &[ProviderPlan],
        tokens: &HashMap<Arc<str>, String>,
        now: &str,
    ) -> Result<()> {
        let mut copy = Copy::default();
        for plan in plans {
            for change in
                plan.changes.iter().filter(|it| it.kind == Kind::Provider && it.action == Action::Create)
            {
                let row = Patch::new(change, "config.");
                let token = tokens.get(&plan.name).map(String::as_str);
                copy.display(change.id).text(&change.name).value(row.get("type"));
                copy.text(token.unwrap_or_default()).text(token.unwrap_or_default());
                copy.value(row.get("api_key_source"))
                    .option(token.map(|_| now))
                    .option(token.map(|_| "pending"));
                copy.value(row.get("api_base_url")).value(row.get("enabled")).value(row.get("priority"));
                copy.json(&row.keys).text("unknown").text(now).text(now).end();
            }
        }
        self.copy(
            "COPY llm_providers (id, name, type, api_key_encrypted, encrypted_api_key, api_key_source, api_key_updated_at, \
             api_key_test_status, api_base_url, enabled, priority, config, health_status, created_at, updated_at) FROM STDIN",
            copy,
        )
        .await
    }

    async fn create_models(&mut self, changes: impl Iterator<Item = &Change>, now: &str) -> Result<()> {
        let mut copy = Copy::default();
        for change in changes {
            let row = Patch::new(change, "metadata.");
            let name = change.name.split_once('/').map_or(change.name.as_str(), |(_, model)| model);
            copy.display(change.id)
                .display(change.parent)
                .text(name)
                .text(name)
                .value(row.get("display_name"));
            copy.value(row.get("context_length")).value(row.get("cost_per_1m_tokens"));
            copy.value(row.get("cost_per_1m_input_tokens")).value(row.get("cost_per_1m_output_tokens"));
            copy.value(row.get("enabled")).json(&row.keys).text(now).text(now).end();
        }
        self.copy(
            "COPY llm_models (id, provider_id, name, model_name, display_name, context_length, cost_per_1m_tokens, \
             cost_per_1m_input_tokens, cost_per_1m_output_tokens, enabled, metadata, created_at, updated_at) FROM STDIN",
            copy,
        )
        .await
    }

    async fn create_rules(&mut self, changes: impl Iterator<Item = &Change>, now: &str) -> Result<()> {
        let mut copy = Copy::default();
        for change in changes {
            let row = Patch::new(change, "\0");
            copy.display(change.id)
                .display(change.parent)
                .value(row.get("power_level"))
                .value(row.get("user_tier"));
            copy.value(row.get("task_type")).value(row.get("priority")).value(row.get("weight"));
            copy.value(row.get("is_active")).text(now).text(now).end();
        }
        self.copy(
            "COPY llm_routing_rules (id, model_id, power_level, user_tier, task_type, priority, weight, is_active, \
             created_at, updated_at) FROM STDIN",
            copy,
        )
        .await
    }

    /// Key columns of rows that exist; those of new rows were written with them.
    async fn keys(&mut self, plans: &[ProviderPlan], tokens: &HashMap<Arc<str>, String>) -> Result<()> {
        let (mut set, mut values, mut wipe, mut pending, mut align) =
            (vec![], vec![], vec![], vec![], vec![]);
        for plan in plans {
            let Some(key) = &plan.key else { continue };
            let is_new =
                plan.changes.iter().any(|it| it.kind == Kind::Provider && it.action == Action::Create);
            match (key.action, tokens.get(&plan.name)) {
                (KeyAction::Set, Some(token)) if !is_new => {
                    set.push(plan.id);
                    values.push(token.as_str());
                }
                (KeyAction::Set, _) => {}
                (KeyAction::Wipe, _) => wipe.push(plan.id),
                (KeyAction::Pending, _) => pending.push(plan.id),
                (KeyAction::Align, _) => align.push(plan.id),
            }
        }
        if !set.is_empty() {
            sqlx::query(
                "UPDATE llm_providers t SET api_key_encrypted = u.token, encrypted_api_key = u.token, \
                 api_key_updated_at = now() AT TIME ZONE 'utc', api_key_test_status = 'pending', updated_at = now() AT TIME ZONE 'utc' \
                 FROM unnest($1::uuid[], $2::text[]) AS u(id, token) WHERE t.id = u.id",
            )
            .bind(set)
            .bind(values)
            .execute(&mut *self.tx)
            .await?;
        }
        let wiped = "UPDATE llm_providers SET api_key_encrypted = '', encrypted_api_key = '', api_key_test_status = NULL, \
                     api_key_updated_at = now() AT TIME ZONE 'utc', updated_at = now() AT TIME ZONE 'utc' WHERE id = ANY($1)";
        let marked = "UPDATE llm_providers SET api_key_test_status = 'pending' WHERE id = ANY($1) \
                      AND api_key_test_status IS DISTINCT FROM 'pending'";
        // The column that the newer programs know is the one that they change.
        let aligned = "UPDATE llm_providers SET encrypted_api_key = api_key_encrypted WHERE id = ANY($1)";
        for (sql, ids) in [(wiped, wipe), (marked, pending), (aligned, align)] {
            if !ids.is_empty() {
                sqlx::query(sql).bind(ids).execute(&mut *self.tx).await?;
            }
        }
        Ok(())
    }

    async fn records(&mut self, plans: &[ProviderPlan]) -> Result<()> {
        let forget: Vec<&str> = plans.iter().filter(|plan| plan.forget).map(|plan| &*plan.name).collect();
        if !forget.is_empty() {
            sqlx::query("DELETE FROM providerd.managed WHERE name = ANY($1)")
                .bind(forget)
                .execute(&mut *self.tx)
                .await?;
        }
        let (fresh, known): (Vec<_>, Vec<_>) =
            plans.iter().filter_map(|plan| Some((plan, plan.record.as_ref()?))).partition(|(plan, _)| {
                plan.changes.iter().any(|it| it.kind == Kind::Provider && it.action == Action::Create)
            });
        // A provider whose row somebody deleted is created again, and may have a record.
        let names: Vec<&str> = fresh.iter().map(|(_, record)| &*record.name).collect();
        if !names.is_empty() {
            sqlx::query("DELETE FROM providerd.managed WHERE name = ANY($1)")
                .bind(names)
                .execute(&mut *self.tx)
                .await?;
        }
        let mut copy = Copy::default();
        for (_, record) in fresh {
            copy.text(&record.name)
                .display(record.provider_id)
                .display(format_args!("\\\\x{}", record.digest));
            copy.text(&record.origin.file).display(record.origin.line).text(&record.record).end();
        }
        self.copy("COPY providerd.managed (name, provider_id, digest, file, line, record) FROM STDIN", copy)
            .await?;
        let known: Vec<&Managed> = known.into_iter().map(|(_, record)| record).collect();
        for chunk in known.chunks(CHUNK) {
            sqlx::query(
                "INSERT INTO providerd.managed (name, provider_id, digest, file, line, record) \
                 SELECT * FROM unnest($1::text[], $2::uuid[], $3::bytea[], $4::text[], $5::int[], $6::text[]) \
                 ON CONFLICT (name) DO UPDATE SET provider_id = excluded.provider_id, digest = excluded.digest, \
                 file = excluded.file, line = excluded.line, record = excluded.record",
            )
            .bind(chunk.iter().map(|it| &*it.name).collect::<Vec<_>>())
            .bind(chunk.iter().map(|it| it.provider_id).collect::<Vec<_>>())
            .bind(chunk.iter().map(|it| it.digest.0.as_slice()).collect::<Vec<_>>())
            .bind(chunk.iter().map(|it| &*it.origin.file).collect::<Vec<_>>())
            .bind(chunk.iter().map(|it| i32::try_from(it.origin.line).unwrap_or(i32::MAX)).collect::<Vec<_>>())
            .bind(chunk.iter().map(|it| &*it.record).collect::<Vec<_>>())
            .execute(&mut *self.tx)
            .await?;
        }
        Ok(())
    }

    async fn events(&mut self, events: &[NewEvent]) -> Result<()> {
        let mut copy = Copy::default();
        for NewEvent { entry, revision } in events {
            copy.text(entry.kind.as_str()).option(entry.provider.as_deref());
            match entry.provider_id {
                Some(id) => copy.display(id),
                None => copy.option(None),
            };
            copy.text(&entry.detail.to_string()).text(&entry.reason);
            copy.option(entry.origin.as_ref().map(|origin| &*origin.file));
            match &entry.origin {
                Some(origin) => copy.display(origin.line),
                None => copy.option(None),
            };
            copy.option(revision.as_ref().map(ToString::to_string).as_deref()).end();
        }
        let sql = "COPY providerd.events (kind, provider, provider_id, detail, reason, file, line, revision) FROM STDIN";
        self.copy(sql, copy).await
    }

    async fn copy(&mut self, sql: &'static str, copy: Copy) -> Result<()> {
        if copy.text.is_empty() {
            return Ok(());
        }
        let mut sink = self.tx.copy_in_raw(sql).await?;
        for chunk in copy.text.as_bytes().chunks(COPY_CHUNK) {
            if let Err(error) = sink.send(chunk).await {
                // The server's own words come with the abort.
                return Err(match sink.abort("").await {
                    Err(sqlx::Error::Database(refused)) => sqlx::Error::Database(refused).into(),
                    _ => error.into(),
                });
            }
        }
        sink.finish().await?;
        Ok(())
    }
}

/// The fields of a change by column, with the keys of its JSON column gathered.
struct Patch<'a> {
    fields: &'a [FieldChange],
    keys: JsonMap,
}

impl<'a> Patch<'a> {
    fn new(change: &'a Change, prefix: &str) -> Self {
        let keys = change
            .fields
            .iter()
            .filter_map(|it| Some((it.field.strip_prefix(prefix)?.to_owned(), it.new.clone())));
        Self { fields: &change.fields, keys: keys.collect() }
    }

    fn get(&self, column: &str) -> Option<&'a Value> {
        self.fields.iter().find(|it| it.field == column).map(|it| &it.new)
    }
}

fn ids(changes: &[&Change]) -> Vec<Uuid> {
    changes.iter().map(|change| change.id).collect()
}

fn texts<'a>(rows: &[Patch<'a>], column: &str) -> Vec<Option<&'a str>> {
    rows.iter().map(|row| row.get(column).and_then(Value::as_str)).collect()
}

fn bools(rows: &[Patch<'_>], column: &str) -> Vec<Option<bool>> {
    rows.iter().map(|row| row.get(column).and_then(Value::as_bool)).collect()
}

fn ints(rows: &[Patch<'_>], column: &str) -> Vec<Option<i32>> {
    rows.iter()
        .map(|row| row.get(column).and_then(Value::as_i64).and_then(|it| i32::try_from(it).ok()))
        .collect()
}

fn floats(rows: &[Patch<'_>], column: &str) -> Vec<Option<f64>> {
    rows.iter().map(|row| row.get(column).and_then(Value::as_f64)).collect()
}

fn patches(rows: &[Patch<'_>]) -> Vec<Option<String>> {
    rows.iter()
        .map(|row| (!row.keys.is_empty()).then(|| Value::Object(row.keys.clone()).to_string()))
        .collect()
}

/// Rows in COPY's text format.
#[derive(Default)]
struct Copy {
    text: String,
    /// The current line has a column already.
    open: bool,
}

impl Copy {
    fn separate(&mut self) {
        if self.open {
            self.text.push('\t');
        }
        self.open = true;
    }

    /// A value whose text needs no escaping.
    fn display(&mut self, value: impl std::fmt::Display) -> &mut Self {
        self.separate();
        // Writing into a string cannot fail.
        let _ = write!(self.text, "{value}");
        self
    }

    fn text(&mut self, value: &str) -> &mut Self {
        self.separate();
        let mut rest = value;
        while let Some(at) = rest.find(['\\', '\t', '\n', '\r']) {
            let (plain, special) = rest.split_at(at);
            self.text.push_str(plain);
            self.text.push_str(match special.as_bytes().first() {
                Some(b'\\') => "\\\\",
                Some(b'\t') => "\\t",
                Some(b'\n') => "\\n",
                _ => "\\r",
            });
            rest = special.get(1..).unwrap_or_default();
        }
        self.text.push_str(rest);
        self
    }

    fn option(&mut self, value: Option<&str>) -> &mut Self {
        match value {
            Some(value) => self.text(value),
            None => self.display("\\N"),
        }
    }

    /// A plain value of a column that is not JSON.
    fn value(&mut self, value: Option<&Value>) -> &mut Self {
        match value {
            None | Some(Value::Null) => self.display("\\N"),
            Some(Value::String(text)) => self.text(text),
            Some(other) => self.text(&other.to_string()),
        }
    }

    fn json(&mut self, keys: &JsonMap) -> &mut Self {
        if keys.is_empty() {
            return self.text("{}");
        }
        // Serializing a map with string keys cannot fail.
        self.text(&serde_json::to_string(keys).unwrap_or_else(|_| "{}".into()))
    }

    fn end(&mut self) {
        self.text.push('\n');
        self.open = false;
    }
}
