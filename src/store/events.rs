//! The audit trail.

use std::time::Duration;

use chrono::{DateTime, Utc};
use serde::Serialize;
use sqlx::Row;

use super::{Result, Store};
use crate::{model::Revision, plan::AuditEntry};

/// Rows deleted in one statement, so that nobody waits for a year's worth.
const PRUNE_BATCH: i64 = 10_000;

/// A row to be written.
#[derive(Debug, Clone)]
pub struct NewEvent {
    pub entry: AuditEntry,
    pub revision: Option<Revision>,
}

/// A row that was written.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Event {
    pub id: i64,
    pub at: DateTime<Utc>,
    pub kind: String,
    pub provider: Option<String>,
    pub provider_id: Option<uuid::Uuid>,
    pub reason: String,
    pub file: Option<String>,
    pub line: Option<i32>,
    pub revision: Option<String>,
    pub detail: serde_json::Value,
}

/// Which rows to read.
#[derive(Debug, Clone, Default)]
pub struct EventFilter {
    pub provider: Option<String>,
    pub since: Option<DateTime<Utc>>,
    /// Only rows after this one, oldest first; without it the newest rows.
    pub after_id: Option<i64>,
    pub limit: u32,
}

impl Store {
    /// Rows in the order in which they were written.
    pub async fn events(&self, filter: &EventFilter) -> Result<Vec<Event>> {
        let mut tx = self.begin().await?;
        let newest_first = filter.after_id.is_none();
        let rows = sqlx::query(
            "SELECT id, at, kind, provider, provider_id, reason, file, line, revision, detail FROM providerd.events \
             WHERE ($1::text IS NULL OR provider = $1) AND ($2::timestamptz IS NULL OR at >= $2) AND id > $3 \
             ORDER BY CASE WHEN $4 THEN -id ELSE id END LIMIT $5",
        )
        .bind(&filter.provider)
        .bind(filter.since)
        .bind(filter.after_id.unwrap_or(0))
        .bind(newest_first)
        .bind(i64::from(filter.limit))
        .fetch_all(&mut *tx)
        .await?;
        let mut events = Vec::with_capacity(rows.len());
        for row in rows {
            events.push(Event {
                id: row.try_get(0)?,
                at: row.try_get(1)?,
                kind: row.try_get(2)?,
                provider: row.try_get(3)?,
                provider_id: row.try_get(4)?,
                reason: row.try_get(5)?,
                file: row.try_get(6)?,
                line: row.try_get(7)?,
                revision: row.try_get(8)?,
                detail: row.try_get(9)?,
            });
        }
        if newest_first {
            events.reverse();
        }
        Ok(events)
    }

    /// Deletes rows older than `keep`; how many they were.
    pub async fn events_prune(&self, keep: Duration) -> Result<u64> {
        let mut deleted = 0;
        loop {
            let batch = sqlx::query(
                "DELETE FROM providerd.events WHERE id IN (SELECT id FROM providerd.events \
                 WHERE at < now() - $1 * interval '1 second' ORDER BY id LIMIT $2)",
            )
            .bind(keep.as_secs_f64())
            .bind(PRUNE_BATCH)
            .execute(&self.pool)
            .await?
            .rows_affected();
            deleted += batch;
            if batch < PRUNE_BATCH as u64 {
                return Ok(deleted);
            }
        }
    }
}
