//! Bringing a database to the layout that this program needs, in one transaction, adding only.
//!
//! An own runner instead of sqlx's: the bookkeeping table must live in the schema `providerd`, and the schema of the
//! shared tables is a setting.
//! Invariant: a layout that cannot be joined is found by reading, before the first statement that writes.

use std::{borrow::Cow, fmt::Write as _};

use sqlx::{AssertSqlSafe, Row};

use super::{Result, Store, StoreError, Tx, identifier, query};

/// In order; a version, once released, is never edited.
const MIGRATIONS: &[(i32, &str, &str)] = &[
    (1, "bookkeeping", include_str!("../../migrations/0001_bookkeeping.sql")),
    (2, "catalog", include_str!("../../migrations/0002_catalog.sql")),
    (3, "generations", include_str!("../../migrations/0003_generations.sql")),
    (4, "health", include_str!("../../migrations/0004_health.sql")),
    (5, "discovery", include_str!("../../migrations/0005_discovery.sql")),
    (6, "event_detail", include_str!("../../migrations/0006_event_detail.sql")),
    (7, "quiet_checks", include_str!("../../migrations/0007_quiet_checks.sql")),
    (8, "revision", include_str!("../../migrations/0008_revision.sql")),
    (9, "usage", include_str!("../../migrations/0009_usage.sql")),
    (10, "comments", include_str!("../../migrations/0010_comments.sql")),
    (11, "gateway", include_str!("../../migrations/0011_gateway.sql")),
    (12, "own_path", include_str!("../../migrations/0012_own_path.sql")),
    (13, "gateway_nodes", include_str!("../../migrations/0013_gateway_nodes.sql")),
    (14, "usage_series", include_str!("../../migrations/0014_usage_series.sql")),
];

/// Daemons that start at the same time on an empty database wait for each other so often.
const MIGRATE_TRIES: u32 = 10;

/// Pages of `llm_usage_logs` brought up to date per transaction: about 50,000 rows, well under a second.
const FILL_PAGES: i64 = 1_000;

/// What [`Store::migrate`] did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MigrationReport {
    /// Names of the steps carried out now; empty if the database was up to date.
    pub applied: Vec<&'static str>,
    pub version: i32,
}

/// What a database holds of the tables that this program needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    /// Never migrated; tables of an installation that can be joined may be there.
    Absent,
    /// All of it.
    Current,
}

impl Store {
    /// Looks, and writes nothing.
    ///
    /// # Errors
    /// [`StoreError::ForeignLayout`] if the tables cannot be joined, [`StoreError::NotMigrated`] if an older program
    /// migrated them.
    pub async fn layout(&self) -> Result<Layout> {
        let mut tx = self.read().await?;
        refuse_foreign(&mut tx, &self.schema).await?;
        let have = version(&mut tx).await?;
        tx.rollback().await?;
        match have {
            0 => Ok(Layout::Absent),
            have if have >= newest() => Ok(Layout::Current),
            _ => Err(StoreError::NotMigrated),
        }
    }

    /// Whether every migration that this program knows has been carried out.
    pub async fn migrated(&self) -> Result<bool> {
        let mut tx = self.read().await?;
        let done = version(&mut tx).await? >= newest() && !usage_fill_pending(&mut tx).await?;
        tx.rollback().await?;
        Ok(done)
    }

    /// Adds what is missing. Safe to call at every start and by several daemons at once.
    ///
    /// # Errors
    /// [`StoreError::ForeignLayout`] if the tables cannot be joined; nothing was touched then.
    pub async fn migrate(&self) -> Result<MigrationReport> {
        let mut report = MigrationReport::default();
        let mut tries = MIGRATE_TRIES;
        while !self.migrated().await? {
            match self.migrate_now(&mut report).await {
                Ok(()) => self.fill_usage().await?,
                // Another daemon was just making the same.
                Err(StoreError::Conflict(what)) if tries > 0 => {
                    tracing::debug!(%what, "another daemon migrates the database");
                    report.applied.clear();
                    tries -= 1;
                }
                Err(error) => return Err(error),
            }
        }
        report.version = newest();
        Ok(report)
    }

    async fn migrate_now(&self, report: &mut MigrationReport) -> Result<()> {
        let mut tx = self.write_ddl().await?;
        // One daemon migrates at a time. The first one makes the schema, and who makes it too waits for that.
        let exists: bool = sqlx::query_scalar("SELECT to_regclass('providerd.migrations') IS NOT NULL")
            .persistent(false)
            .fetch_one(&mut *tx)
            .await?;
        if exists {
            query("LOCK TABLE providerd.migrations IN SHARE ROW EXCLUSIVE MODE").execute(&mut *tx).await?;
        }
        refuse_foreign(&mut tx, &self.schema).await?;

        let have = version(&mut tx).await?;
        if have >= newest() {
            tx.rollback().await?;
            return Ok(());
        }
        let mut setup = String::new();
        for schema in [self.schema.as_ref(), "providerd"] {
            // CREATE SCHEMA wants a right even where the schema exists.
            let exists: bool =
                sqlx::query_scalar("SELECT EXISTS (SELECT FROM pg_namespace WHERE nspname = $1)")
                    .persistent(false)
                    .bind(schema)
                    .fetch_one(&mut *tx)
                    .await?;
            if !exists {
                let _ = writeln!(setup, "CREATE SCHEMA {};", identifier(schema));
            }
        }
        setup.push_str(
            "CREATE TABLE IF NOT EXISTS providerd.migrations (
                version integer PRIMARY KEY, name text NOT NULL, at timestamptz NOT NULL DEFAULT clock_timestamp());
             SET LOCAL providerd.applying TO 'on';",
        );
        sqlx::raw_sql(AssertSqlSafe(setup)).execute(&mut *tx).await.map_err(|error| {
            let code = error.as_database_error().and_then(|error| error.code().map(Cow::into_owned));
            match code.as_deref() {
                // duplicate_schema, duplicate_table, unique_violation in the system's own tables
                Some("42P06" | "42P07" | "23505") => StoreError::Conflict("it exists by now".to_owned()),
                _ => error.into(),
            }
        })?;
        // A log that these migrations make may be partitioned; one that is there already stays what it is.
        query(
            "SELECT set_config('providerd.fresh_usage', CASE WHEN to_regclass('llm_usage_logs') IS NULL THEN 'on' ELSE 'off' END, true)",
        )
        .execute(&mut *tx)
        .await?;
        for (number, name, sql) in MIGRATIONS.iter().filter(|(number, ..)| *number > have) {
            let sql = sql.replace("__SCHEMA__", &identifier(&self.schema));
            sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut *tx).await.map_err(|error| {
                match error.into() {
                    StoreError::Other(text) => {
                        StoreError::Other(format!("migration {number} ({name}): {text}"))
                    }
                    StoreError::Locked(text) => StoreError::Locked(format!(
                        "migration {number} ({name}): {text}; hint: end the session that holds it (pg_locks)"
                    )),
                    other => other,
                }
            })?;
            query("INSERT INTO providerd.migrations (version, name) VALUES ($1, $2)")
                .bind(number)
                .bind(name)
                .execute(&mut *tx)
                .await?;
            report.applied.push(name);
        }
        query(
            "INSERT INTO providerd.meta (key, value)
             SELECT 'usage_fill_page', '0' WHERE EXISTS (
                 SELECT FROM pg_trigger WHERE tgname = 'providerd_usage' AND tgrelid = 'llm_usage_logs'::regclass)
             ON CONFLICT DO NOTHING",
        )
        .execute(&mut *tx)
        .await?;
        Ok(tx.commit().await?)
    }

    /// Lets the usage trigger copy the counters of rows that were there before it, some pages per transaction: a log
    /// may hold millions of rows, and its writers must not wait for all of them. Goes on where it was interrupted.
    async fn fill_usage(&self) -> Result<()> {
        loop {
            let mut tx = self.write().await?;
            let page: Option<i64> = sqlx::query_scalar(
                "SELECT value::bigint FROM providerd.meta WHERE key = 'usage_fill_page' FOR UPDATE",
            )
            .persistent(false)
            .fetch_optional(&mut *tx)
            .await?;
            let Some(page) = page else { return Ok(tx.rollback().await?) };
            // Rewritten rows move behind the end as it was; looking at them once more finds nothing to do.
            let pages: i64 = sqlx::query_scalar(
                "SELECT pg_relation_size('llm_usage_logs'::regclass) / current_setting('block_size')::bigint",
            )
            .persistent(false)
            .fetch_one(&mut *tx)
            .await?;
            if page >= pages {
                query("DELETE FROM providerd.meta WHERE key = 'usage_fill_page'").execute(&mut *tx).await?;
                return Ok(tx.commit().await?);
            }
            let next = page + FILL_PAGES;
            query(
                "UPDATE llm_usage_logs SET model_name = model_name
                 WHERE ctid >= format('(%s,0)', $1::bigint)::tid AND ctid < format('(%s,0)', $2::bigint)::tid
                   AND (prompt_tokens IS NULL OR completion_tokens IS NULL OR cost_total_usd IS NULL
                        OR input_tokens IS NULL OR output_tokens IS NULL OR request_tokens IS NULL
                        OR response_tokens IS NULL OR cost IS NULL OR status IS NULL OR total_tokens IS NULL)",
            )
            .bind(page)
            .bind(next)
            .execute(&mut *tx)
            .await?;
            query("UPDATE providerd.meta SET value = $1 WHERE key = 'usage_fill_page'")
                .bind(next.to_string())
                .execute(&mut *tx)
                .await?;
            tx.commit().await?;
        }
    }
}

const fn newest() -> i32 {
    MIGRATIONS[MIGRATIONS.len() - 1].0
}

/// The newest migration carried out; 0 for none.
async fn version(tx: &mut Tx) -> Result<i32> {
    let exists: bool = sqlx::query_scalar("SELECT to_regclass('providerd.migrations') IS NOT NULL")
        .persistent(false)
        .fetch_one(&mut **tx)
        .await?;
    if !exists {
        return Ok(0);
    }
    Ok(sqlx::query_scalar("SELECT coalesce(max(version), 0) FROM providerd.migrations")
        .persistent(false)
        .fetch_one(&mut **tx)
        .await?)
}

async fn usage_fill_pending(tx: &mut Tx) -> Result<bool> {
    Ok(sqlx::query_scalar("SELECT EXISTS (SELECT FROM providerd.meta WHERE key = 'usage_fill_page')")
        .persistent(false)
        .fetch_one(&mut **tx)
        .await?)
}

/// Refuses tables that share a name with ours and nothing else, by reading only.
async fn refuse_foreign(tx: &mut Tx, schema: &str) -> Result<()> {
    let columns = query(
        "SELECT c.relname::text AS tab, c.relkind::text AS kind, a.attname::text AS col, t.typname::text AS typ
         FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
         LEFT JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
              AND a.attname IN ('id', 'provider_id', 'model_id', 'name')
         LEFT JOIN pg_type t ON t.oid = a.atttypid
         WHERE n.nspname = $1
           AND c.relname IN ('llm_providers', 'llm_models', 'llm_routing_rules', 'llm_usage_logs')
         ORDER BY 1, 3",
    )
    .bind(schema)
    .fetch_all(&mut **tx)
    .await?;
    let mut ids = 0;
    let mut tables = std::collections::BTreeSet::new();
    for row in &columns {
        let (table, kind): (String, String) = (row.try_get("tab")?, row.try_get("kind")?);
        if !matches!(kind.as_str(), "r" | "p") {
            return Err(StoreError::ForeignLayout(format!("{schema}.{table} is not a table")));
        }
        let column: Option<String> = row.try_get("col")?;
        let typ: Option<String> = row.try_get("typ")?;
        tables.insert(table.clone());
        let (Some(column), Some(typ)) = (column, typ) else { continue };
        // Who uses the logs, and how they are numbered, does not matter here.
        if table == "llm_usage_logs" && column == "id" {
            ids += 1;
            continue;
        }
        ids += usize::from(column == "id");
        if column != "name" && typ != "uuid" {
            return Err(StoreError::ForeignLayout(format!(
                "{schema}.{table}.{column} is of type {typ}, not uuid: the table belongs to another program; \
                 hint: give providerd a database or a schema (database.schema) of its own"
            )));
        }
    }
    if ids < tables.len() {
        return Err(StoreError::ForeignLayout(format!(
            "one of the llm_ tables in schema {schema} has no column id"
        )));
    }
    Ok(())
}
