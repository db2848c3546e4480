//! The audit trail: `providerd.events`.

use std::sync::Arc;

use chrono::{DateTime, Utc};
use serde::Serialize;
use serde_json::Value;
use sqlx::Row;
use uuid::Uuid;

use catalog::{
    model::{Origin, Revision},
    plan::{AuditEntry, EventKind, ProviderPlan, audit},
};

use super::{
    Result, Store, Tx,
    copy::{Copy, CopyFormat, Rows},
    query,
};

/// An event to be recorded. `detail` holds fields and fingerprints, never a key.
#[derive(Debug, Clone)]
pub struct NewEvent {
    pub kind: EventKind,
    pub provider: Option<Arc<str>>,
    pub provider_id: Option<Uuid>,
    pub detail: Value,
    pub reason: String,
    pub origin: Option<Origin>,
    pub revision: Option<Revision>,
}

impl NewEvent {
    /// What a plan or a decision says about itself, with the commit that it comes from.
    pub fn of(entry: AuditEntry, revision: Option<&Revision>) -> Self {
        let AuditEntry { kind, provider, provider_id, detail, reason, origin } = entry;
        Self { kind, provider, provider_id, detail, reason, origin, revision: revision.cloned() }
    }

    /// An event that comes from no manifest, about a provider where `provider` names one.
    pub fn about(
        kind: EventKind,
        provider: Option<Arc<str>>,
        provider_id: Option<Uuid>,
        detail: Value,
        reason: impl Into<String>,
    ) -> Self {
        Self { kind, provider, provider_id, detail, reason: reason.into(), origin: None, revision: None }
    }
}

/// A recorded event.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct EventRow {
    pub id: i64,
    pub at: DateTime<Utc>,
    pub kind: String,
    pub provider: Option<String>,
    pub provider_id: Option<Uuid>,
    pub detail: Value,
    pub reason: String,
    pub origin: Option<Origin>,
    pub revision: Option<String>,
}

/// Which events to read. With `after_id`: the oldest after it, in order; without: the newest, in order.
#[derive(Debug, Clone, Default)]
pub struct EventFilter {
    pub provider: Option<String>,
    pub since: Option<DateTime<Utc>>,
    pub after_id: Option<i64>,
    /// 0 stands for 100; at most 10,000.
    pub limit: u32,
}

impl Store {
    /// Reads events, oldest first.
    pub async fn events(&self, filter: EventFilter) -> Result<Vec<EventRow>> {
        if self.is_blank() {
            return Ok(Vec::new());
        }
        let limit = match filter.limit {
            0 => 100,
            limit => i64::from(limit.min(10_000)),
        };
        let mut tx = self.read().await?;
        let sql = if filter.after_id.is_some() { FORWARD } else { BACKWARD };
        let rows = query(sql)
            .bind(filter.after_id)
            .bind(filter.provider)
            .bind(filter.since)
            .bind(limit)
            .fetch_all(&mut *tx)
            .await?;
        tx.rollback().await?;
        let mut events = rows.iter().map(event).collect::<Result<Vec<_>>>()?;
        if filter.after_id.is_none() {
            events.reverse();
        }
        Ok(events)
    }

    /// Records events outside a reconcile (health transitions, key operations).
    pub async fn record(&self, events: &[NewEvent]) -> Result<()> {
        if events.is_empty() {
            return Ok(());
        }
        let mut tx = self.write().await?;
        insert(&mut tx, events).await?;
        Ok(tx.commit().await?)
    }

    /// Deletes events older than `before`; returns how many.
    pub async fn events_expire(&self, before: DateTime<Utc>) -> Result<u64> {
        let mut tx = self.write().await?;
        let done = query("DELETE FROM providerd.events WHERE at < $1").bind(before).execute(&mut *tx).await?;
        tx.commit().await?;
        Ok(done.rows_affected())
    }
}

/// A row of the columns that [`FORWARD`] names.
pub(super) fn event(row: &sqlx::postgres::PgRow) -> Result<EventRow> {
    let file: Option<String> = row.try_get(7)?;
    let line: Option<i32> = row.try_get(8)?;
    Ok(EventRow {
        id: row.try_get(0)?,
        at: row.try_get(1)?,
        kind: row.try_get(2)?,
        provider: row.try_get(3)?,
        provider_id: row.try_get(4)?,
        detail: row.try_get(5)?,
        reason: row.try_get(6)?,
        origin: file.map(|file| Origin {
            file: file.into(),
            line: u32::try_from(line.unwrap_or_default()).unwrap_or_default(),
        }),
        revision: row.try_get(9)?,
    })
}

const FORWARD: &str = "SELECT id, at, kind, provider, provider_id, detail, reason, file, line, revision
    FROM providerd.events
    WHERE id > $1 AND ($2::text IS NULL OR provider = $2) AND ($3::timestamptz IS NULL OR at >= $3)
    ORDER BY id LIMIT $4";
const BACKWARD: &str = "SELECT id, at, kind, provider, provider_id, detail, reason, file, line, revision
    FROM providerd.events
    WHERE $1::bigint IS NULL AND ($2::text IS NULL OR provider = $2) AND ($3::timestamptz IS NULL OR at >= $3)
    ORDER BY id DESC LIMIT $4";

/// Where events are written to, and how many columns these are.
const TARGET: (&str, CopyFormat) = (
    "providerd.events (kind, provider, provider_id, detail, reason, file, line, revision)",
    CopyFormat::Binary(8),
);

/// Writes any number of events in one round trip.
pub(super) async fn insert(tx: &mut Tx, events: &[NewEvent]) -> Result<()> {
    let mut copy = Copy::begin(tx, TARGET.0, TARGET.1).await?;
    for event in events {
        let revision = event.revision.as_ref().map(ToString::to_string);
        copy.row(|to| {
            to.text(event.kind.as_str());
            to.option(event.provider.as_deref());
            match event.provider_id {
                Some(id) => to.uuid(id),
                None => to.null(),
            }
            to.json(&event.detail);
            rest(to, &event.reason, event.origin.as_ref(), revision.as_deref());
        })
        .await?;
    }
    copy.finish().await
}

/// Writes what the audit trail says about these plans; how many rows that are.
pub(super) async fn insert_plans(
    tx: &mut Tx,
    plans: &[ProviderPlan],
    revision: Option<&Revision>,
) -> Result<usize> {
    if plans.iter().all(|plan| audit(plan).next().is_none()) {
        return Ok(0);
    }
    let revision = revision.map(ToString::to_string);
    let mut written = 0;
    let mut copy = Copy::begin(tx, TARGET.0, TARGET.1).await?;
    for row in plans.iter().flat_map(audit) {
        copy.row(|to| {
            to.text(row.kind.as_str());
            to.text(&row.provider.name);
            to.uuid(row.provider.id);
            to.json(&row);
            rest(to, row.reason, row.origin, revision.as_deref());
        })
        .await?;
        written += 1;
    }
    copy.finish().await?;
    Ok(written)
}

fn rest(to: &mut Rows, reason: &str, origin: Option<&Origin>, revision: Option<&str>) {
    to.text(reason);
    match origin {
        Some(origin) => {
            to.text(&origin.file);
            to.integer(i32::try_from(origin.line).unwrap_or(i32::MAX));
        }
        None => {
            to.null();
            to.null();
        }
    }
    to.option(revision);
}
