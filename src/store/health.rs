//! What checks write and remember: statuses, `providerd.health` and `providerd.rollups`.
//!
//! Not its job: knowing what a memory means; it is a text here. Invariants: statuses, memories, sums and the
//! transitions among them are one transaction, which a daemon whose lease has run out cannot commit; a transition
//! that the database already shows is not recorded a second time.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
};

use chrono::{DateTime, DurationRound, TimeDelta, Utc};
use serde::Serialize;
use sqlx::Row;
use uuid::Uuid;

use catalog::model::{HealthStatus, KeyStatus};
use provider::rollup::Rollup;

use super::{
    Lease, NewEvent, Result, StatusWrite, Store, StoreError, Tx, cells::Cells, events, leases, query, status,
};

/// One provider as it is to be checked. Only what manifests manage is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CheckRow {
    pub id: Uuid,
    pub name: Arc<str>,
    pub enabled: bool,
    pub place: RowPlace,
    /// `api_key_encrypted` and `encrypted_api_key`; empty where there is none.
    pub tokens: [String; 2],
    /// Fingerprint of the key that was applied last.
    pub applied_key: Option<Box<str>>,
    pub key_updated_at: Option<DateTime<Utc>>,
    pub health_status: Option<String>,
    pub key_status: Option<String>,
    /// What was remembered of it.
    pub memory: Option<String>,
}

/// The new status of a transition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NewStatus {
    Health(HealthStatus),
    Key(KeyStatus),
}

/// What is to be written of one provider.
#[derive(Debug, Clone)]
pub struct CheckWrite {
    pub status: StatusWrite,
    /// In order of time, with the audit row of each.
    pub transitions: Vec<(NewStatus, NewEvent)>,
    pub memory: Option<String>,
    /// Sums by the begin of their hour, to be added to what is stored.
    pub rollups: Vec<(DateTime<Utc>, Rollup)>,
}

/// How long sums cover.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Span {
    Hour,
    Day,
}

impl Span {
    const fn word(self) -> &'static str {
        match self {
            Self::Hour => "h",
            Self::Day => "d",
        }
    }

    /// Where the span begins that `at` lies in.
    pub fn begin(self, at: DateTime<Utc>) -> DateTime<Utc> {
        let length = TimeDelta::hours(if self == Self::Hour { 1 } else { 24 });
        at.duration_trunc(length).unwrap_or(at)
    }
}

/// What a row says about where its provider is. URLs are cut at 4096 characters.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct RowPlace {
    pub kind: Option<String>,
    pub api_base_url: Option<String>,
    /// `config.base_url`
    pub config_base_url: Option<String>,
    /// Some URL stands in `config`.
    pub any_url: bool,
    /// What manifests said when it was applied last; `None` where that was not asked for, or nothing was.
    pub applied: Option<RecordedPlace>,
}

/// What is on record of a managed provider's place.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct RecordedPlace {
    pub kind: Option<String>,
    /// `None`: the type's own.
    pub base_url: Option<String>,
    /// Fingerprint of the key; `None`: none was declared.
    pub key: Option<Box<str>>,
}

/// One row that holds a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyRow {
    pub id: Uuid,
    pub name: Arc<str>,
    pub managed: bool,
    pub place: RowPlace,
    /// `api_key_encrypted` and `encrypted_api_key`; empty where there is none.
    pub tokens: [String; 2],
}

/// The columns of [`RowPlace`] of a provider `p`, and those of [`RecordedPlace`] by its bookkeeping `g`.
macro_rules! with_place {
    ($columns:literal, $from:literal) => {
        concat!(
            "SELECT ",
            $columns,
            ", /*bytes*/(left(p.type::text, 255))/*bytes*/, /*bytes*/(left(p.api_base_url, 4096))/*bytes*/, /*bytes*/(left(p.config->>'base_url', 4096))/*bytes*/,
               coalesce(p.config::text LIKE '%://%', false),
               g.record::jsonb->'provider'->>'type', g.record::jsonb->'provider'->>'api_base_url', g.record::jsonb->>'key' ",
            $from
        )
    };
}

fn place(cells: &mut Cells<'_>, at: usize) -> RowPlace {
    RowPlace {
        kind: cells.text(at),
        api_base_url: cells.text(at + 1),
        config_base_url: cells.text(at + 2),
        // Where that is not known, there may be one.
        any_url: cells.get(at + 3, "config").unwrap_or(true),
        applied: None,
    }
}

fn applied(cells: &mut Cells<'_>, at: usize) -> Option<RecordedPlace> {
    let kind = cells.text(at)?;
    Some(RecordedPlace {
        kind: Some(kind),
        base_url: cells.text(at + 1),
        key: cells.text(at + 2).map(Into::into),
    })
}

impl Store {
    /// The row of this name and, if `all` is wanted, every row that holds a key; with what was applied of those that are
    /// managed.
    pub async fn key_rows(&self, name: &str, all: bool) -> Result<Vec<KeyRow>> {
        if self.is_blank() {
            return Ok(Vec::new());
        }
        let mut tx = self.read().await?;
        let rows = query(with_place!(
            "p.id, /*bytes*/(left(p.name::text, 4096))/*bytes*/, g.provider_id IS NOT NULL,
             /*bytes*/(coalesce(left(p.api_key_encrypted, 65536), ''))/*bytes*/, /*bytes*/(coalesce(left(p.encrypted_api_key, 65536), ''))/*bytes*/",
            "FROM llm_providers p LEFT JOIN providerd.managed g ON g.provider_id = p.id
             WHERE p.name::text = $1
                OR $2 AND (coalesce(p.api_key_encrypted, '') <> '' OR coalesce(p.encrypted_api_key, '') <> '')
             ORDER BY g.provider_id IS NULL LIMIT 100000"
        ))
        .bind(name)
        .bind(all)
        .fetch_all(&mut *tx)
        .await?;
        tx.rollback().await?;
        let read = |row: &sqlx::postgres::PgRow| {
            let mut cells = Cells::of(row);
            let mut place = place(&mut cells, 5);
            place.applied = applied(&mut cells, 9);
            Some(KeyRow {
                id: cells.get(0, "id")?,
                name: cells.text(1).unwrap_or_default().into(),
                managed: cells.get(2, "id").unwrap_or_default(),
                place,
                tokens: [cells.text(3).unwrap_or_default(), cells.text(4).unwrap_or_default()],
            })
        };
        Ok(rows.iter().filter_map(read).collect())
    }

    /// The managed providers of these names, or all of them, by name; with what is on record of the place of those
    /// that are not `declared`.
    pub async fn check_rows(&self, names: Option<&[String]>, declared: &[&str]) -> Result<Vec<CheckRow>> {
        if self.is_blank() {
            return Ok(Vec::new());
        }
        let mut tx = self.read().await?;
        let rows = query(with_place!(
            "p.id, /*bytes*/(left(p.name::text, 4096))/*bytes*/, coalesce(p.enabled, true),
             /*bytes*/(coalesce(left(p.api_key_encrypted, 65536), ''))/*bytes*/, /*bytes*/(coalesce(left(p.encrypted_api_key, 65536), ''))/*bytes*/,
             CASE WHEN isfinite(p.api_key_updated_at)
                   AND p.api_key_updated_at BETWEEN '0001-01-01' AND '9999-12-31'
                  THEN p.api_key_updated_at::timestamp END,
             /*bytes*/(left(p.health_status::text, 255))/*bytes*/, /*bytes*/(left(p.api_key_test_status::text, 255))/*bytes*/, h.memory, m.record::json->>'key'",
            "FROM llm_providers p
             JOIN providerd.managed m ON m.provider_id = p.id
             LEFT JOIN providerd.managed g ON g.provider_id = p.id AND p.name::text <> ALL($2)
             LEFT JOIN providerd.health h ON h.provider_id = p.id
             WHERE $1::text[] IS NULL OR p.name = ANY($1)
             ORDER BY p.name"
        ))
        .bind(names)
        .bind(declared)
        .fetch_all(&mut *tx)
        .await?;
        tx.rollback().await?;
        let read = |row: &sqlx::postgres::PgRow| {
            let mut cells = Cells::of(row);
            let mut place = place(&mut cells, 10);
            place.applied = applied(&mut cells, 14);
            Some(CheckRow {
                id: cells.get(0, "id")?,
                name: cells.text(1).unwrap_or_default().into(),
                enabled: cells.get(2, "enabled").unwrap_or(true),
                place,
                tokens: [cells.text(3).unwrap_or_default(), cells.text(4).unwrap_or_default()],
                key_updated_at: cells.time(5, "api_key_updated_at"),
                health_status: cells.text(6),
                key_status: cells.text(7),
                memory: cells.text(8),
                applied_key: cells.text(9).map(Into::into),
            })
        };
        Ok(rows.iter().filter_map(read).collect())
    }

    /// Writes what checks found out. Returns how many transitions were news.
    ///
    /// # Errors
    /// [`StoreError::Fenced`] if the lease is not held any more; nothing was written then.
    pub async fn checks_write(&self, lease: Option<&Lease>, writes: &[CheckWrite]) -> Result<usize> {
        if writes.is_empty() {
            return Ok(0);
        }
        let mut tx = self.write().await?;
        if let Some(lease) = lease
            && !leases::is_held(&mut tx, lease).await?
        {
            tx.rollback().await?;
            return Err(StoreError::Fenced);
        }
        let news = news(&mut tx, writes).await?;
        let statuses: Vec<&StatusWrite> = writes.iter().map(|write| &write.status).collect();
        status::write(&mut tx, &statuses).await?;
        if !news.is_empty() {
            events::insert(&mut tx, &news).await?;
        }
        remember(&mut tx, writes).await?;
        add_up(&mut tx, writes).await?;
        latencies(&mut tx, writes).await?;
        tx.commit().await?;
        Ok(news.len())
    }

    /// Which of these providers' rows no other session keeps locked, models included; nothing stays locked.
    pub async fn checks_free(&self, ids: &[Uuid]) -> Result<HashSet<Uuid>> {
        let mut tx = self.write().await?;
        let rows = query("SELECT id FROM llm_providers WHERE id = ANY($1) FOR NO KEY UPDATE SKIP LOCKED")
            .bind(ids)
            .fetch_all(&mut *tx)
            .await?;
        let mut free: HashSet<Uuid> = rows.iter().map(|row| row.try_get(0)).collect::<Result<_, _>>()?;
        let mut models: HashMap<Uuid, Uuid> = HashMap::new();
        for row in query("SELECT id, provider_id FROM llm_models WHERE provider_id = ANY($1)")
            .bind(ids)
            .fetch_all(&mut *tx)
            .await?
        {
            models.insert(row.try_get(0)?, row.try_get(1)?);
        }
        let rows =
            query("SELECT id FROM llm_models WHERE provider_id = ANY($1) FOR NO KEY UPDATE SKIP LOCKED")
                .bind(ids)
                .fetch_all(&mut *tx)
                .await?;
        for row in &rows {
            models.remove(&row.try_get(0)?);
        }
        tx.rollback().await?;
        let locked: HashSet<Uuid> = models.into_values().collect();
        free.retain(|id| !locked.contains(id));
        Ok(free)
    }

    /// Sums of the checks of these providers since `since`, or of all, by provider and time.
    pub async fn rollups(
        &self,
        providers: Option<&[Uuid]>,
        span: Span,
        since: DateTime<Utc>,
    ) -> Result<Vec<(Uuid, DateTime<Utc>, Rollup)>> {
        if self.is_blank() {
            return Ok(Vec::new());
        }
        let mut tx = self.read().await?;
        let rows = query(
            "SELECT provider_id, at, ok, slow, soft, hard, auth, latency FROM providerd.rollups
             WHERE span = $1::\"char\" AND at >= $2 AND ($3::uuid[] IS NULL OR provider_id = ANY($3))
             ORDER BY provider_id, at",
        )
        .bind(span.word())
        .bind(since)
        .bind(providers)
        .fetch_all(&mut *tx)
        .await?;
        tx.rollback().await?;
        let read = |row: &sqlx::postgres::PgRow| {
            let count = |index: usize| -> Result<u32> {
                Ok(u32::try_from(row.try_get::<i32, _>(index)?).unwrap_or_default())
            };
            let stored: Vec<Option<i32>> = row.try_get(7)?;
            let mut sums = Rollup {
                ok: count(2)?,
                slow: count(3)?,
                soft: count(4)?,
                hard: count(5)?,
                auth: count(6)?,
                ..Rollup::default()
            };
            sums.take_stored(&stored);
            Ok((row.try_get(0)?, row.try_get(1)?, sums))
        };
        rows.iter().map(read).collect()
    }

    /// Deletes sums that are too old, and whatever is remembered of providers that are gone.
    pub async fn health_expire(
        &self,
        hours_before: DateTime<Utc>,
        days_before: DateTime<Utc>,
    ) -> Result<u64> {
        let mut tx = self.write().await?;
        let mut deleted = 0;
        for (span, before) in [(Span::Hour, hours_before), (Span::Day, days_before)] {
            let done = query("DELETE FROM providerd.rollups WHERE span = $1::\"char\" AND at < $2")
                .bind(span.word())
                .bind(before)
                .execute(&mut *tx)
                .await?;
            deleted += done.rows_affected();
        }
        for sql in [
            "DELETE FROM providerd.health t WHERE NOT EXISTS (SELECT FROM llm_providers p WHERE p.id = t.provider_id)",
            "DELETE FROM providerd.rollups t WHERE NOT EXISTS (SELECT FROM llm_providers p WHERE p.id = t.provider_id)",
        ] {
            deleted += query(sql).execute(&mut *tx).await?.rows_affected();
        }
        tx.commit().await?;
        Ok(deleted)
    }
}

/// The transitions that the database does not show already. Locks the rows they are about.
async fn news(tx: &mut Tx, writes: &[CheckWrite]) -> Result<Vec<NewEvent>> {
    let changing: Vec<Uuid> =
        writes.iter().filter(|write| !write.transitions.is_empty()).map(|write| write.status.id).collect();
    if changing.is_empty() {
        return Ok(Vec::new());
    }
    let rows = query(
        "SELECT id, /*bytes*/(left(health_status::text, 255))/*bytes*/, /*bytes*/(left(api_key_test_status::text, 255))/*bytes*/
         FROM llm_providers WHERE id = ANY($1)
         ORDER BY id FOR NO KEY UPDATE",
    )
    .bind(&changing)
    .fetch_all(&mut **tx)
    .await?;
    let mut shown: HashMap<Uuid, (Option<String>, Option<String>)> = rows
        .iter()
        .filter_map(|row| {
            let mut cells = Cells::of(row);
            Some((cells.get(0, "id")?, (cells.text(1), cells.text(2))))
        })
        .collect();
    let mut news = Vec::new();
    for write in writes {
        let Some((health, key)) = shown.get_mut(&write.status.id) else { continue };
        for (to, event) in &write.transitions {
            let (now, word) = match to {
                NewStatus::Health(to) => (&mut *health, to.as_str()),
                NewStatus::Key(to) => (&mut *key, to.as_str()),
            };
            if now.as_deref() != Some(word) {
                *now = Some(word.to_owned());
                news.push(event.clone());
            }
        }
    }
    Ok(news)
}

async fn remember(tx: &mut Tx, writes: &[CheckWrite]) -> Result<()> {
    let (ids, memories): (Vec<Uuid>, Vec<&str>) =
        writes.iter().filter_map(|write| Some((write.status.id, write.memory.as_deref()?))).unzip();
    if ids.is_empty() {
        return Ok(());
    }
    query(
        "INSERT INTO providerd.health (provider_id, memory)
         SELECT u.id, u.memory FROM unnest($1::uuid[], $2::text[]) AS u (id, memory) JOIN llm_providers p ON p.id = u.id
         ON CONFLICT (provider_id) DO UPDATE SET memory = excluded.memory
         WHERE providerd.health.memory <> excluded.memory",
    )
    .bind(ids)
    .bind(memories)
    .execute(&mut **tx)
    .await?;
    Ok(())
}

async fn add_up(tx: &mut Tx, writes: &[CheckWrite]) -> Result<()> {
    for span in [Span::Hour, Span::Day] {
        let mut sums: BTreeMap<(Uuid, DateTime<Utc>), Rollup> = BTreeMap::new();
        for write in writes {
            for (at, more) in write.rollups.iter().filter(|(_, more)| !more.is_empty()) {
                sums.entry((write.status.id, span.begin(*at))).or_default().merge(more);
            }
        }
        if sums.is_empty() {
            return Ok(());
        }
        let of = |count: fn(&Rollup) -> u32| -> Vec<i32> {
            sums.values().map(|sums| i32::try_from(count(sums)).unwrap_or(i32::MAX)).collect()
        };
        // PostgreSQL's unnest takes nested arrays apart, so the classes travel as one text each.
        let latency = sums.values().map(|sums| {
            let word =
                |count: Option<i32>| count.map_or_else(|| "NULL".to_owned(), |count| count.to_string());
            let words: Vec<String> = sums.stored().into_iter().map(word).collect();
            format!("{{{}}}", words.join(","))
        });
        query(
            "INSERT INTO providerd.rollups AS r (provider_id, span, at, ok, slow, soft, hard, auth, latency)
             SELECT u.id, $1::\"char\", at, ok, slow, soft, hard, auth, latency::int[]
             FROM unnest($2::uuid[], $3::timestamptz[], $4::int[], $5::int[], $6::int[], $7::int[], $8::int[], $9::text[])
                  AS u (id, at, ok, slow, soft, hard, auth, latency) JOIN llm_providers p ON p.id = u.id
             ON CONFLICT (provider_id, span, at) DO UPDATE SET ok = r.ok + excluded.ok, slow = r.slow + excluded.slow,
                 soft = r.soft + excluded.soft, hard = r.hard + excluded.hard, auth = r.auth + excluded.auth,
                 latency = ARRAY(SELECT nullif(coalesce(a, 0) + coalesce(b, 0), 0)
                                 FROM unnest(r.latency, excluded.latency) WITH ORDINALITY AS t (a, b, n) ORDER BY n)",
        )
        .bind(span.word())
        .bind(sums.keys().map(|(id, _)| *id).collect::<Vec<_>>())
        .bind(sums.keys().map(|(_, at)| *at).collect::<Vec<_>>())
        .bind(of(|sums| sums.ok))
        .bind(of(|sums| sums.slow))
        .bind(of(|sums| sums.soft))
        .bind(of(|sums| sums.hard))
        .bind(of(|sums| sums.auth))
        .bind(latency.collect::<Vec<_>>())
        .execute(&mut **tx)
        .await?;
    }
    Ok(())
}

/// `avg_latency_ms` of the managed models: the median of their provider's checks since the last sums. Small changes
/// are not worth a row version.
async fn latencies(tx: &mut Tx, writes: &[CheckWrite]) -> Result<()> {
    let median = |write: &CheckWrite| {
        let mut all = Rollup::default();
        write.rollups.iter().for_each(|(_, sums)| all.merge(sums));
        Some((write.status.id, i32::try_from(all.percentile_ms(0.5)?).ok()?))
    };
    let (ids, medians): (Vec<Uuid>, Vec<i32>) = writes.iter().filter_map(median).unzip();
    if ids.is_empty() {
        return Ok(());
    }
    query(
        "UPDATE llm_models m SET avg_latency_ms = u.ms
         FROM unnest($1::uuid[], $2::int[]) AS u (id, ms)
         JOIN providerd.managed g ON g.provider_id = u.id
         WHERE m.provider_id = u.id
           AND m.name IN (SELECT jsonb_object_keys(coalesce(g.record::jsonb->'models', '{}')))
           AND (m.avg_latency_ms IS NULL OR abs(m.avg_latency_ms::bigint - u.ms) > greatest(5, m.avg_latency_ms / 10))",
    )
    .bind(ids)
    .bind(medians)
    .execute(&mut **tx)
    .await?;
    Ok(())
}
