//! Keeping the log of usage: days made ahead, old ones dropped, an adopted table turned into one of days.
//!
//! Not its job: when.
//! Invariants: what is dropped is older than asked, whole days only; a plain table is deleted from in small steps; an
//! adopted table is only ever turned by [`Store::usage_partition`], whole or not at all, and no row of it is rewritten.

use chrono::{DateTime, NaiveDate, Utc};
use sqlx::Row as _;

use super::{Result, Store, StoreError, Tx, identifier, query, query_built, usage_sums::sum_tables};

/// Days that are there before they come: a week of standing still costs nothing but a larger rest.
const DAYS_AHEAD: i32 = 7;

/// Pages looked through per transaction where a plain table is deleted from: about 50,000 rows.
const PAGES: i64 = 1_000;

/// Advisory lock for making days; the bytes of "provusag".
const UPKEEP_LOCK: i64 = 0x7072_6f76_7573_6167;

/// What [`Store::usage_maintain`] did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct UsageUpkeep {
    /// Partitions made.
    pub made: i32,
    /// Partitions dropped, by name.
    pub dropped: Vec<String>,
    /// Rows deleted from a plain table, or from the rest.
    pub deleted: u64,
    /// Whether columns had changed and the mirroring was made for them.
    pub mirrored: bool,
}

/// What turning an adopted table into days would mean.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UsagePartitionPlan {
    pub rows: i64,
    pub bytes: i64,
    pub newest: Option<NaiveDate>,
    /// Why it cannot be done; nothing else matters then.
    pub obstacles: Vec<String>,
    /// Whether it is one of days already.
    pub done: bool,
}

impl Store {
    /// Makes days ahead, follows changed columns, and lets go of what is older than `before`.
    pub async fn usage_maintain(
        &self,
        before: Option<DateTime<Utc>>,
        sums_before: Option<DateTime<Utc>>,
    ) -> Result<UsageUpkeep> {
        let mut done = UsageUpkeep::default();
        let mut tx = self.write().await?;
        // Daemons that share the database do this at the same minute.
        query("SELECT pg_advisory_xact_lock($1)").bind(UPKEEP_LOCK).execute(&mut *tx).await?;
        done.made = sqlx::query_scalar("SELECT providerd.usage_days_ahead($1)")
            .persistent(false)
            .bind(DAYS_AHEAD)
            .fetch_one(&mut *tx)
            .await?;
        done.mirrored = sqlx::query_scalar("SELECT providerd.mirror_usage()")
            .persistent(false)
            .fetch_one(&mut *tx)
            .await?;
        tx.commit().await?;
        if let Some(before) = before {
            self.drop_days(before, &mut done).await?;
            self.delete_rows(before, &mut done).await?;
        }
        if let Some(before) = sums_before {
            let mut tx = self.write().await?;
            for (table, span) in sum_tables() {
                // A month goes when its last day does.
                query_built(format!("DELETE FROM providerd.{table} WHERE at < $1"))
                    .bind(span.begin(before))
                    .execute(&mut *tx)
                    .await?;
            }
            // A spool that wrote nothing for so long is gone, or restored from an image as old as that.
            query("DELETE FROM providerd.usage_cursor WHERE at < $1").bind(before).execute(&mut *tx).await?;
            tx.commit().await?;
        }
        Ok(done)
    }

    /// Drops the partitions whose whole range is before.
    async fn drop_days(&self, before: DateTime<Utc>, done: &mut UsageUpkeep) -> Result<()> {
        let mut tx = self.read().await?;
        let rows = query(
            "SELECT i.inhrelid::regclass::text, c.relname::text
             FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid,
                  LATERAL (SELECT substring(pg_get_expr(c.relpartbound, c.oid) FROM $q$ TO \\('([^']+)'\\)$q$) AS upper) b
             WHERE i.inhparent = 'llm_usage_logs'::regclass AND b.upper::timestamp <= $1
             ORDER BY b.upper",
        )
        .bind(before.naive_utc())
        .fetch_all(&mut *tx)
        .await?;
        tx.rollback().await?;
        for row in &rows {
            let (table, name): (String, String) = (row.try_get(0)?, row.try_get(1)?);
            // One at a time: each needs the log to itself for a moment.
            let mut tx = self.write().await?;
            query_built(format!("DROP TABLE {table}")).execute(&mut *tx).await?;
            tx.commit().await?;
            done.dropped.push(name);
        }
        Ok(())
    }

    /// Deletes old rows where no partition holds them alone.
    async fn delete_rows(&self, before: DateTime<Utc>, done: &mut UsageUpkeep) -> Result<()> {
        let mut tx = self.read().await?;
        let table: Option<String> = sqlx::query_scalar(
            "SELECT CASE WHEN c.relkind = 'r' THEN c.oid::regclass::text ELSE
                 (SELECT i.inhrelid::regclass::text FROM pg_inherits i JOIN pg_class r ON r.oid = i.inhrelid
                  WHERE i.inhparent = c.oid AND pg_get_expr(r.relpartbound, r.oid) = 'DEFAULT') END
             FROM pg_class c WHERE c.oid = 'llm_usage_logs'::regclass",
        )
        .persistent(false)
        .fetch_one(&mut *tx)
        .await?;
        tx.rollback().await?;
        let Some(table) = table else { return Ok(()) };
        let mut page = 0_i64;
        loop {
            let mut tx = self.write().await?;
            let pages: i64 = sqlx::query_scalar(
                "SELECT pg_relation_size($1::regclass) / current_setting('block_size')::bigint",
            )
            .persistent(false)
            .bind(&table)
            .fetch_one(&mut *tx)
            .await?;
            if page >= pages {
                return Ok(tx.rollback().await?);
            }
            let gone = query_built(format!(
                "DELETE FROM {table} WHERE ctid >= format('(%s,0)', $1::bigint)::tid
                 AND ctid < format('(%s,0)', $2::bigint)::tid AND created_at < $3"
            ))
            .bind(page)
            .bind(page + PAGES)
            .bind(before.naive_utc())
            .execute(&mut *tx)
            .await?;
            tx.commit().await?;
            done.deleted += gone.rows_affected();
            page += PAGES;
        }
    }

    /// What [`Self::usage_partition`] would find.
    pub async fn usage_partition_plan(&self) -> Result<UsagePartitionPlan> {
        let mut tx = self.read().await?;
        let plan = plan(&mut tx).await?;
        tx.rollback().await?;
        Ok(plan)
    }

    /// Turns a plain log into one of days: the table as it is becomes the oldest partition. Writers and readers wait
    /// meanwhile: for as long as it takes to read the table once, and to make an index of it.
    ///
    /// # Errors
    /// [`StoreError::ForeignLayout`] where the plan names an obstacle; nothing was changed then.
    pub async fn usage_partition(&self) -> Result<UsagePartitionPlan> {
        let mut tx = self.write_ddl().await?;
        query("SET LOCAL providerd.applying TO 'on'").execute(&mut *tx).await?;
        query("LOCK TABLE llm_usage_logs IN ACCESS EXCLUSIVE MODE").execute(&mut *tx).await?;
        let plan = plan(&mut tx).await?;
        if plan.done {
            tx.rollback().await?;
            return Ok(plan);
        }
        if !plan.obstacles.is_empty() {
            tx.rollback().await?;
            return Err(StoreError::ForeignLayout(format!("llm_usage_logs: {}", plan.obstacles.join("; "))));
        }
        let schema = self.quoted.as_ref();
        let indexes: Vec<(String, String)> = sqlx::query_as(
            "SELECT c.relname::text, pg_get_indexdef(c.oid) FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid
             WHERE i.indrelid = 'llm_usage_logs'::regclass AND NOT i.indisunique",
        )
        .persistent(false)
        .fetch_all(&mut *tx)
        .await?;
        let triggers: Vec<(String, String)> = sqlx::query_as(
            "SELECT tgname::text, pg_get_triggerdef(oid) FROM pg_trigger
             WHERE tgrelid = 'llm_usage_logs'::regclass AND NOT tgisinternal",
        )
        .persistent(false)
        .fetch_all(&mut *tx)
        .await?;
        let keys: Vec<(String, String)> = sqlx::query_as(
            "SELECT conname::text, pg_get_constraintdef(oid) FROM pg_constraint
             WHERE conrelid = 'llm_usage_logs'::regclass AND contype IN ('f', 'c')",
        )
        .persistent(false)
        .fetch_all(&mut *tx)
        .await?;
        let sequences: Vec<(String, String)> = sqlx::query_as(
            "SELECT d.objid::regclass::text, a.attname::text FROM pg_depend d
             JOIN pg_attribute a ON a.attrelid = d.refobjid AND a.attnum = d.refobjsubid
             JOIN pg_class c ON c.oid = d.objid AND c.relkind = 'S'
             WHERE d.refobjid = 'llm_usage_logs'::regclass AND d.deptype = 'a'",
        )
        .persistent(false)
        .fetch_all(&mut *tx)
        .await?;
        let grants: Vec<(String, String)> = sqlx::query_as(
            "SELECT x.privilege_type::text, CASE WHEN x.grantee = 0 THEN 'PUBLIC' ELSE quote_ident(r.rolname) END
             FROM pg_class c, LATERAL aclexplode(c.relacl) x LEFT JOIN pg_roles r ON r.oid = x.grantee
             WHERE c.oid = 'llm_usage_logs'::regclass AND x.grantee <> c.relowner",
        )
        .persistent(false)
        .fetch_all(&mut *tx)
        .await?;
        // Tomorrow: rows of today go on into the old table, and nothing has to move.
        let upper: NaiveDate = sqlx::query_scalar(
            "SELECT greatest(timezone('utc', now())::date, max(created_at)::date) + 1 FROM llm_usage_logs",
        )
        .persistent(false)
        .fetch_one(&mut *tx)
        .await?;
        let run = async |tx: &mut Tx, sql: String| -> Result<()> {
            query_built(sql).execute(&mut **tx).await?;
            Ok(())
        };
        for (name, _) in &triggers {
            run(&mut tx, format!("DROP TRIGGER {} ON llm_usage_logs", identifier(name))).await?;
        }
        for (name, _) in &indexes {
            let old: String = format!("{}_old", name.chars().take(55).collect::<String>());
            run(&mut tx, format!("ALTER INDEX {schema}.{} RENAME TO {}", identifier(name), identifier(&old)))
                .await?;
        }
        run(&mut tx, "ALTER TABLE llm_usage_logs RENAME TO \"llm_usage_logs_before\"".to_owned()).await?;
        run(
            &mut tx,
            "ALTER TABLE llm_usage_logs_before ALTER created_at SET NOT NULL, ALTER id SET NOT NULL"
                .to_owned(),
        )
        .await?;
        run(
            &mut tx,
            format!(
                "CREATE TABLE {schema}.llm_usage_logs (LIKE {schema}.llm_usage_logs_before INCLUDING DEFAULTS
                     INCLUDING GENERATED INCLUDING COMMENTS) PARTITION BY RANGE (created_at)"
            ),
        )
        .await?;
        // Not a primary key: the old table has one of its own, and a partition may have no second.
        run(&mut tx, "ALTER TABLE llm_usage_logs ADD UNIQUE (id, created_at)".to_owned()).await?;
        for (name, definition) in &keys {
            run(
                &mut tx,
                format!("ALTER TABLE llm_usage_logs ADD CONSTRAINT {} {definition}", identifier(name)),
            )
            .await?;
        }
        for (sequence, column) in &sequences {
            // Else it would go with the oldest partition.
            run(&mut tx, format!("ALTER SEQUENCE {sequence} OWNED BY llm_usage_logs.{}", identifier(column)))
                .await?;
        }
        for (_, definition) in &indexes {
            run(&mut tx, definition.clone()).await?;
        }
        // The old key is unique by itself; as a partition the table needs the one with the time beside it.
        run(&mut tx, "CREATE UNIQUE INDEX ON llm_usage_logs_before (id, created_at)".to_owned()).await?;
        run(
            &mut tx,
            format!("ALTER TABLE llm_usage_logs ATTACH PARTITION llm_usage_logs_before FOR VALUES FROM (MINVALUE) TO ('{upper}')"),
        )
        .await?;
        run(
            &mut tx,
            format!("CREATE TABLE {schema}.llm_usage_logs_rest PARTITION OF llm_usage_logs DEFAULT"),
        )
        .await?;
        for (_, definition) in &triggers {
            run(&mut tx, definition.clone()).await?;
        }
        for (privilege, who) in &grants {
            run(&mut tx, format!("GRANT {privilege} ON llm_usage_logs TO {who}")).await?;
        }
        query("SELECT providerd.usage_days_ahead($1)").bind(DAYS_AHEAD).execute(&mut *tx).await?;
        tx.commit().await?;
        Ok(plan)
    }
}

async fn plan(tx: &mut Tx) -> Result<UsagePartitionPlan> {
    let row = query(
        "SELECT c.relkind = 'p', pg_total_relation_size(c.oid), c.reltuples::bigint,
                (SELECT max(created_at)::date FROM llm_usage_logs)
         FROM pg_class c WHERE c.oid = 'llm_usage_logs'::regclass",
    )
    .fetch_one(&mut **tx)
    .await?;
    let mut plan = UsagePartitionPlan {
        done: row.try_get(0)?,
        bytes: row.try_get(1)?,
        rows: row.try_get::<i64, _>(2)?.max(0),
        newest: row.try_get(3)?,
        obstacles: Vec::new(),
    };
    if plan.done {
        return Ok(plan);
    }
    let found: Vec<String> = sqlx::query_scalar(
        "SELECT 'rows without created_at; hint: give them a time' WHERE EXISTS (SELECT FROM llm_usage_logs WHERE created_at IS NULL)
         UNION ALL SELECT 'rows without id; hint: give them one' WHERE EXISTS (SELECT FROM llm_usage_logs WHERE id IS NULL)
         UNION ALL SELECT 'a column created_at of type ' || format_type(a.atttypid, a.atttypmod)
             FROM pg_attribute a WHERE a.attrelid = 'llm_usage_logs'::regclass AND a.attname = 'created_at'
             AND a.atttypid NOT IN ('timestamp'::regtype, 'timestamptz'::regtype)
         UNION ALL SELECT 'the constraint ' || conname || ' of ' || conrelid::regclass || ' points to it; hint: drop it'
             FROM pg_constraint WHERE confrelid = 'llm_usage_logs'::regclass
         UNION ALL SELECT DISTINCT 'the view ' || r.ev_class::regclass || ' reads it and would go on reading the old part alone; hint: drop it before and make it again after'
             FROM pg_depend d JOIN pg_rewrite r ON r.oid = d.objid
             WHERE d.classid = 'pg_rewrite'::regclass AND d.refobjid = 'llm_usage_logs'::regclass
         UNION ALL SELECT 'another table inherits from it' WHERE EXISTS (
             SELECT FROM pg_inherits WHERE inhparent = 'llm_usage_logs'::regclass OR inhrelid = 'llm_usage_logs'::regclass)
         UNION ALL SELECT 'a table named ' || n || ' is there already; hint: rename it'
             FROM unnest(ARRAY['llm_usage_logs_before', 'llm_usage_logs_rest']) n
             WHERE EXISTS (SELECT FROM pg_class k JOIN pg_class l ON l.relnamespace = k.relnamespace
                           WHERE l.oid = 'llm_usage_logs'::regclass AND k.relname = n)
         UNION ALL SELECT 'the unique rule ' || c.relname || ' would hold for each day alone; hint: drop it'
             FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid
             WHERE i.indrelid = 'llm_usage_logs'::regclass AND i.indisunique AND NOT i.indisprimary
             AND NOT EXISTS (SELECT FROM pg_attribute a WHERE a.attrelid = i.indrelid AND a.attname = 'created_at'
                             AND a.attnum = ANY (i.indkey::int2[]))
         UNION ALL SELECT 'row security is on; hint: it has to be made again by hand'
             FROM pg_class WHERE oid = 'llm_usage_logs'::regclass AND relrowsecurity",
    )
    .persistent(false)
    .fetch_all(&mut **tx)
    .await?;
    plan.obstacles = found;
    Ok(plan)
}
