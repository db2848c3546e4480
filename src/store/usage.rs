//! Writing usage: rows, roll-ups and the cursor in one transaction.
//!
//! Not its job: where rows come from, what they mean, when to write.
//! Invariants: a row is stored and summed exactly once, whichever process dies when: the cursor moves with it or not at all; a row
//! that the database refuses holds up no other; a provider or model that is gone leaves its name.

use std::collections::{HashMap, HashSet};

use catalog::price::Money;
use chrono::{DateTime, NaiveDateTime, Utc};
use sqlx::{Postgres, Row as _, postgres::PgArguments, query::Query};
use uuid::Uuid;

use super::{Result, Store, StoreError, Tx, query, query_built, usage_sums::add_sums};

/// One row of usage, ready to be written.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NewUsage<'a> {
    pub id: Uuid,
    pub at: DateTime<Utc>,
    pub user_id: &'a str,
    pub provider_id: Option<Uuid>,
    pub model_id: Option<Uuid>,
    pub provider: &'a str,
    pub model: &'a str,
    pub consumer: &'a str,
    pub request_id: &'a str,
    pub power_level: &'a str,
    /// All input tokens, cached and written ones included.
    pub input: u64,
    pub cached: u64,
    pub written: u64,
    /// All output tokens, reasoning included.
    pub output: u64,
    pub reasoning: u64,
    pub cost_input: Option<Money>,
    pub cost_output: Option<Money>,
    pub cost_total: Option<Money>,
    pub latency_ms: u32,
    pub ttft_ms: Option<u32>,
    pub status_code: Option<u16>,
    pub success: bool,
    pub error: &'a str,
    pub was_fallback: bool,
    /// A JSON object.
    pub metadata: String,
}

/// How far a spool is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct UsageCursor {
    pub segment: u64,
    pub offset: u64,
}

/// What is to be stored at once.
#[derive(Debug)]
pub struct UsageBatch<'a> {
    pub spool: Uuid,
    /// Whose usage it is; part of the key of sums, so that nodes never wait for each other.
    pub node: &'a str,
    /// Where the spool's cursor must stand, and where it goes.
    pub from: Option<UsageCursor>,
    pub to: UsageCursor,
    pub rows: &'a [NewUsage<'a>],
}

/// A batch that is written but not yet committed.
#[must_use]
pub struct UsageShipment {
    tx: Tx,
    stored: usize,
    rejected: Vec<(usize, String)>,
}

impl UsageShipment {
    /// Rows that were not there before.
    pub const fn stored(&self) -> usize {
        self.stored
    }

    /// Rows that the database refuses, by their place in the batch, and why. Set them aside before the commit.
    pub fn rejected(&self) -> &[(usize, String)] {
        &self.rejected
    }

    /// # Errors
    /// The database cannot be reached: whether the batch is stored says [`Store::usage_cursor`].
    pub async fn commit(self) -> Result<()> {
        Ok(self.tx.commit().await?)
    }
}

/// What `llm_usage_logs` is like here: programs of several generations may have made it.
#[derive(Debug, Clone)]
pub struct UsageTable {
    /// For rows that are not there yet, as all usually are.
    insert: String,
    /// For rows some of which may be there: passes over those, and gives the ids of the others.
    careful: String,
    /// Whether rows have our ids.
    own_ids: bool,
}

/// A column of ours, and what stands for it in the statement.
const COLUMNS: [(&str, &str, &str); 26] = [
    ("user_id", "nullif(x.user_id, '')", "x.consumer"),
    ("provider_id", "p.id", "p.id"),
    ("model_id", "m.id", "m.id"),
    ("model_name", "x.model", "''"),
    ("request_id", "x.request_id", "''"),
    ("power_level", "nullif(x.power_level, '')", "''"),
    ("prompt_tokens", "x.input", "0"),
    ("input_tokens", "x.input", "0"),
    ("request_tokens", "x.input", "0"),
    ("completion_tokens", "x.output", "0"),
    ("output_tokens", "x.output", "0"),
    ("response_tokens", "x.output", "0"),
    ("total_tokens", "x.total", "0"),
    ("cost_input_usd", "x.cost_input * 0.0000000001", "0"),
    ("cost_output_usd", "x.cost_output * 0.0000000001", "0"),
    ("cost_total_usd", "x.cost_total * 0.0000000001", "0"),
    ("cost", "x.cost_total * 0.0000000001", "0"),
    ("latency_ms", "x.latency_ms", "0"),
    ("status_code", "x.status_code", "0"),
    ("success", "x.success", "x.success"),
    ("status", "CASE WHEN x.success THEN 'success' ELSE 'error' END", "''"),
    ("error_message", "nullif(x.error, '')", "''"),
    ("was_fallback", "x.was_fallback", "x.was_fallback"),
    ("metadata", "x.metadata::jsonb", "'{}'"),
    ("created_at", "x.at", "x.at"),
    ("id", "x.id", "x.id"),
];

impl UsageTable {
    async fn of(tx: &mut Tx) -> Result<Self> {
        let rows = query(
            "SELECT a.attname::text, a.attnotnull, t.typname::text,
                    CASE WHEN t.typname IN ('varchar', 'bpchar') AND a.atttypmod > 4 THEN a.atttypmod - 4 END
             FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid
             WHERE a.attrelid = 'llm_usage_logs'::regclass AND a.attnum > 0 AND NOT a.attisdropped
               AND a.attgenerated = ''",
        )
        .fetch_all(&mut **tx)
        .await?;
        let mut here = HashMap::new();
        for row in &rows {
            let (name, not_null, kind, width): (String, bool, String, Option<i32>) =
                (row.try_get(0)?, row.try_get(1)?, row.try_get(2)?, row.try_get(3)?);
            here.insert(name, (not_null, kind, width));
        }
        let unique: Vec<Vec<String>> = sqlx::query_scalar(
            "SELECT ARRAY(SELECT a.attname::text FROM unnest(i.indkey::int2[]) WITH ORDINALITY k (num, at)
                          JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.num ORDER BY k.at)
             FROM pg_index i WHERE i.indrelid = 'llm_usage_logs'::regclass AND i.indisunique AND i.indpred IS NULL
               AND i.indexprs IS NULL AND i.indimmediate",
        )
        .persistent(false)
        .fetch_all(&mut **tx)
        .await?;
        let own_ids = here.get("id").is_some_and(|(_, kind, _)| kind == "uuid");
        let mut names = Vec::new();
        let mut values = Vec::new();
        for (name, value, otherwise) in COLUMNS {
            let Some((not_null, kind, width)) = here.get(name) else { continue };
            if name == "id" && !own_ids {
                continue;
            }
            let mut value = value.to_owned();
            if name == "metadata" && kind == "text" {
                "x.metadata".clone_into(&mut value);
            }
            if let Some(width) = width {
                value = format!("left({value}, {width})");
            }
            if *not_null {
                value = format!("coalesce({value}, {otherwise})");
            }
            names.push(format!("\"{name}\""));
            values.push(value);
        }
        // Only the key may meet itself; a unique rule that another program added refuses a row, it does not swallow it.
        let key = |wanted: &[&str]| unique.iter().any(|it| it == wanted);
        let conflict = if !own_ids {
            ""
        } else if key(&["id"]) {
            "ON CONFLICT (id) DO NOTHING"
        } else if key(&["id", "created_at"]) {
            "ON CONFLICT (id, created_at) DO NOTHING"
        } else {
            ""
        };
        let returning = if own_ids { "RETURNING id" } else { "" };
        let insert = format!(
            "INSERT INTO llm_usage_logs ({}) SELECT {}
             FROM unnest($1::uuid[], $2::timestamp[], $3::text[], $4::uuid[], $5::uuid[], $6::text[], $7::text[],
                         $8::text[], $9::text[], $10::int[], $11::int[], $12::int[], $13::bigint[], $14::bigint[],
                         $15::bigint[], $16::int[], $17::int[], $18::bool[], $19::text[], $20::bool[], $21::text[])
                  AS x (id, at, user_id, provider_id, model_id, model, consumer, request_id, power_level, input, output,
                        total, cost_input, cost_output, cost_total, latency_ms, status_code, success, error,
                        was_fallback, metadata)
             LEFT JOIN llm_providers p ON p.id = x.provider_id
             LEFT JOIN llm_models m ON m.id = x.model_id",
            names.join(", "),
            values.join(", ")
        );
        Ok(Self { careful: format!("{insert} {conflict} {returning}"), insert, own_ids })
    }
}

/// Tokens as the columns hold them.
pub(super) fn column(tokens: u64) -> i32 {
    i32::try_from(tokens).unwrap_or(i32::MAX)
}

fn wide(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

fn units(money: Option<Money>) -> Option<i64> {
    money.map(Money::units)
}

impl Store {
    /// How far a spool is stored; none: nothing of it is.
    pub async fn usage_cursor(&self, spool: Uuid) -> Result<Option<UsageCursor>> {
        let mut tx = self.read().await?;
        let row = query("SELECT segment, position FROM providerd.usage_cursor WHERE spool = $1")
            .bind(spool)
            .fetch_optional(&mut *tx)
            .await?;
        tx.rollback().await?;
        let number = |row: &sqlx::postgres::PgRow, at: usize| -> Result<u64> {
            Ok(u64::try_from(row.try_get::<i64, _>(at)?).unwrap_or_default())
        };
        row.map(|row| Ok(UsageCursor { segment: number(&row, 0)?, offset: number(&row, 1)? })).transpose()
    }

    /// Looks at the table of usage, for [`Self::usage_ship`].
    pub async fn usage_table(&self) -> Result<UsageTable> {
        let mut tx = self.read().await?;
        let table = UsageTable::of(&mut tx).await?;
        tx.rollback().await?;
        Ok(table)
    }

    /// Writes a batch, its sums and the cursor, without committing.
    ///
    /// # Errors
    /// [`StoreError::Conflict`] if the cursor does not stand where the batch begins: ask for it and read from there.
    pub async fn usage_ship(&self, table: &UsageTable, batch: &UsageBatch<'_>) -> Result<UsageShipment> {
        let mut tx = self.write().await?;
        // A deferred rule of another program speaks now, where the row that breaks it is still known.
        query("SET CONSTRAINTS ALL IMMEDIATE").execute(&mut *tx).await?;
        let from = batch.from.map(|it| (wide(it.segment), wide(it.offset)));
        let (segment, offset) = from.unwrap_or((-1, -1));
        // First, so that a second shipper of one spool waits here and then finds it moved.
        let moved = query(
            "INSERT INTO providerd.usage_cursor AS c (spool, node, segment, position, shipped)
             VALUES ($1, $2, $3, $4, $5)
             ON CONFLICT (spool) DO UPDATE SET segment = EXCLUDED.segment, position = EXCLUDED.position,
                 shipped = c.shipped + EXCLUDED.shipped, at = clock_timestamp()
             WHERE c.segment = $6 AND c.position = $7",
        )
        .bind(batch.spool)
        .bind(batch.node)
        .bind(wide(batch.to.segment))
        .bind(wide(batch.to.offset))
        .bind(wide(batch.rows.len() as u64))
        .bind(segment)
        .bind(offset)
        .execute(&mut *tx)
        .await?;
        if moved.rows_affected() == 0 {
            tx.rollback().await?;
            return Err(StoreError::Conflict(
                "the cursor of this spool was moved by another program".to_owned(),
            ));
        }
        let mut rejected = Vec::new();
        let fresh = insert(&mut tx, table, batch.rows, &mut rejected).await?;
        let refused: HashSet<usize> = rejected.iter().map(|(at, _)| *at).collect();
        let stored: Vec<&NewUsage<'_>> = batch
            .rows
            .iter()
            .enumerate()
            .filter(|(at, row)| !refused.contains(at) && fresh.as_ref().is_none_or(|it| it.contains(&row.id)))
            .map(|(_, row)| row)
            .collect();
        add_sums(&mut tx, batch.node, &stored).await?;
        if !rejected.is_empty() {
            query("UPDATE providerd.usage_cursor SET rejected = rejected + $2 WHERE spool = $1")
                .bind(batch.spool)
                .bind(wide(rejected.len() as u64))
                .execute(&mut *tx)
                .await?;
        }
        rejected.sort_unstable();
        Ok(UsageShipment { tx, stored: stored.len(), rejected })
    }
}

/// Inserts what can be inserted; gives the ids that were not there, or none if all were not.
async fn insert(
    tx: &mut Tx,
    table: &UsageTable,
    rows: &[NewUsage<'_>],
    rejected: &mut Vec<(usize, String)>,
) -> Result<Option<HashSet<Uuid>>> {
    // Looking for rows that are there already costs a seventh more; the cursor sees to it that there are none.
    query("SAVEPOINT usage").execute(&mut **tx).await?;
    match bind(&table.insert, rows).execute(&mut **tx).await.map_err(StoreError::from) {
        Ok(_) => {
            query("RELEASE SAVEPOINT usage").execute(&mut **tx).await?;
            return Ok(None);
        }
        Err(StoreError::Data { .. }) => {
            query("ROLLBACK TO SAVEPOINT usage").execute(&mut **tx).await?;
        }
        Err(error) => return Err(error),
    }
    let mut inserted = HashSet::new();
    let mut open = vec![(0, rows.len())];
    while let Some((start, end)) = open.pop() {
        let part = rows.get(start..end).unwrap_or_default();
        if part.is_empty() {
            continue;
        }
        query("SAVEPOINT usage").execute(&mut **tx).await?;
        match insert_careful(tx, table, part).await {
            Ok(ids) => {
                inserted.extend(ids);
                query("RELEASE SAVEPOINT usage").execute(&mut **tx).await?;
            }
            Err(StoreError::Data { message, .. }) => {
                query("ROLLBACK TO SAVEPOINT usage").execute(&mut **tx).await?;
                if let [_] = part {
                    rejected.push((start, message));
                } else {
                    let middle = start + part.len() / 2;
                    open.push((middle, end));
                    open.push((start, middle));
                }
            }
            Err(error) => return Err(error),
        }
    }
    Ok(table.own_ids.then_some(inserted))
}

async fn insert_careful(tx: &mut Tx, table: &UsageTable, rows: &[NewUsage<'_>]) -> Result<Vec<Uuid>> {
    let statement = bind(&table.careful, rows);
    if table.own_ids {
        let found = statement.fetch_all(&mut **tx).await?;
        found.iter().map(|row| Ok(row.try_get(0)?)).collect()
    } else {
        statement.execute(&mut **tx).await?;
        Ok(Vec::new())
    }
}

/// The statement with the columns of these rows.
fn bind(sql: &str, rows: &[NewUsage<'_>]) -> Query<'static, Postgres, PgArguments> {
    macro_rules! each {
        ($row:ident => $value:expr) => {
            rows.iter().map(|$row| $value).collect::<Vec<_>>()
        };
    }
    query_built(sql.to_owned())
        .bind(each!(row => row.id))
        .bind(each!(row => row.at.naive_utc()))
        .bind(each!(row => row.user_id.to_owned()))
        .bind(each!(row => row.provider_id))
        .bind(each!(row => row.model_id))
        .bind(each!(row => row.model.to_owned()))
        .bind(each!(row => row.consumer.to_owned()))
        .bind(each!(row => row.request_id.to_owned()))
        .bind(each!(row => row.power_level.to_owned()))
        .bind(each!(row => column(row.input)))
        .bind(each!(row => column(row.output)))
        .bind(each!(row => column(u64::from(column(row.input).unsigned_abs()) + u64::from(column(row.output).unsigned_abs()))))
        .bind(each!(row => units(row.cost_input)))
        .bind(each!(row => units(row.cost_output)))
        .bind(each!(row => units(row.cost_total)))
        .bind(each!(row => column(u64::from(row.latency_ms))))
        .bind(each!(row => row.status_code.map(i32::from)))
        .bind(each!(row => row.success))
        .bind(each!(row => row.error.to_owned()))
        .bind(each!(row => row.was_fallback))
        .bind(each!(row => row.metadata.clone()))
}

/// Microseconds since 1970 as a time; beyond what fits, the nearest that does.
pub fn from_micros(at: i64) -> DateTime<Utc> {
    DateTime::from_timestamp_micros(at)
        .filter(|it| it.naive_utc() < NaiveDateTime::MAX && (0..10_000).contains(&chrono::Datelike::year(it)))
        .unwrap_or_default()
}
