//! Migrations: embedded, versioned, additive, each once, all in one transaction.
//!
//! They are templates, because the shared tables may live in any schema, and PostgreSQL has no parameters there.

use sha2::{Digest, Sha256};
use sqlx::{Postgres, Row, Transaction};

use super::{ADVISORY_LOCK, Result, Store, StoreError};

/// Version, name and text, in order. A migration that has landed is never edited: add another one.
const MIGRATIONS: &[(i32, &str, &str)] = &[
    (1, "shared tables", include_str!("../../migrations/0001_shared_tables.sql")),
    (2, "shared defaults", include_str!("../../migrations/0002_shared_defaults.sql")),
    (3, "bookkeeping", include_str!("../../migrations/0003_bookkeeping.sql")),
    (4, "triggers", include_str!("../../migrations/0004_triggers.sql")),
];

/// What [`Store::migrate`] did.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct MigrationReport {
    /// Versions that were applied just now.
    pub applied: Vec<i32>,
}

impl Store {
    /// Brings the tables up to date. Writes nothing where they are. Several daemons may do it at once.
    ///
    /// # Errors
    /// [`StoreError::ForeignLayout`] and [`StoreError::Data`] leave the database exactly as it was.
    pub async fn migrate(&self) -> Result<MigrationReport> {
        let mut tx = self.begin().await?;
        if !self.pending(&mut tx).await?.is_empty() {
            sqlx::query("SELECT pg_advisory_xact_lock($1)").bind(ADVISORY_LOCK).execute(&mut *tx).await?;
            // Somebody may have migrated while this one waited.
            let pending = self.pending(&mut tx).await?;
            return self.apply_migrations(tx, &pending).await;
        }
        tx.rollback().await?;
        Ok(MigrationReport::default())
    }

    async fn pending(&self, tx: &mut Transaction<'static, Postgres>) -> Result<Vec<i32>> {
        let exists: bool = sqlx::query("SELECT to_regclass('providerd.migrations') IS NOT NULL")
            .fetch_one(&mut **tx)
            .await?
            .try_get(0)?;
        let done: Vec<i32> = if exists {
            let rows = sqlx::query("SELECT version FROM providerd.migrations").fetch_all(&mut **tx).await?;
            rows.iter().map(|row| row.try_get(0)).collect::<Result<_, _>>()?
        } else {
            Vec::new()
        };
        if let Some(newer) =
            done.iter().find(|version| MIGRATIONS.iter().all(|(known, ..)| known != *version))
        {
            return Err(StoreError::ForeignLayout(format!(
                "the database was migrated by a newer providerd (migration {newer})\nhint: run that version, or a later one"
            )));
        }
        Ok(MIGRATIONS
            .iter()
            .map(|(version, ..)| *version)
            .filter(|version| !done.contains(version))
            .collect())
    }

    async fn apply_migrations(
        &self,
        mut tx: Transaction<'static, Postgres>,
        pending: &[i32],
    ) -> Result<MigrationReport> {
        self.refuse_foreign(&mut tx).await?;
        sqlx::query("SELECT set_config('providerd.applying', 'on', true)").execute(&mut *tx).await?;
        let quoted = format!("\"{}\"", self.schema);
        let create = format!(
            "CREATE SCHEMA IF NOT EXISTS {quoted}; CREATE SCHEMA IF NOT EXISTS providerd; \
             CREATE TABLE IF NOT EXISTS providerd.migrations (version integer PRIMARY KEY, name text NOT NULL, \
             digest text NOT NULL, applied_at timestamptz NOT NULL DEFAULT now())"
        );
        sqlx::raw_sql(sqlx::AssertSqlSafe(create)).execute(&mut *tx).await?;
        for (version, name, text) in MIGRATIONS.iter().filter(|(version, ..)| pending.contains(version)) {
            // The settings admit plain lower-case identifiers only, so quoting is all that is needed.
            let sql =
                text.replace("{schema_text}", &format!("'{}'", self.schema)).replace("{schema}", &quoted);
            sqlx::raw_sql(sqlx::AssertSqlSafe(sql)).execute(&mut *tx).await?;
            let digest: String =
                Sha256::digest(text.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect();
            sqlx::query("INSERT INTO providerd.migrations (version, name, digest) VALUES ($1, $2, $3)")
                .bind(version)
                .bind(name)
                .bind(digest)
                .execute(&mut *tx)
                .await?;
        }
        tx.commit().await?;
        Ok(MigrationReport { applied: pending.to_vec() })
    }

    /// Tables of these names whose ids are no UUIDs belong to another program.
    async fn refuse_foreign(&self, tx: &mut Transaction<'static, Postgres>) -> Result<()> {
        let rows = sqlx::query(
            "SELECT table_name::text, column_name::text, data_type::text FROM information_schema.columns \
             WHERE table_schema = $1 AND data_type <> 'uuid' AND (table_name, column_name) IN \
             (('llm_providers', 'id'), ('llm_models', 'id'), ('llm_models', 'provider_id'), ('llm_routing_rules', 'id'))",
        )
        .bind(&self.schema)
        .fetch_all(&mut **tx)
        .await?;
        let Some(row) = rows.first() else { return Ok(()) };
        let (table, column, kind): (String, String, String) =
            (row.try_get(0)?, row.try_get(1)?, row.try_get(2)?);
        Err(StoreError::ForeignLayout(format!(
            "{}.{table} belongs to another program: its {column} is {kind}, not uuid. Nothing was changed.\n\
             hint: use another database, or set `database.schema` to a schema of its own",
            self.schema
        )))
    }
}
