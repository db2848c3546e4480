//! What the checks of this daemon know and have not written yet.
//!
//! The database is a minute behind in dates and ten in sums; for this daemon's own share the picture is not.

use std::{collections::HashMap, sync::Arc};

use chrono::{DateTime, TimeDelta, Utc};
use uuid::Uuid;

use super::view::Bucket;
use crate::{
    checks::{CheckLedger, monitor::Memory},
    store::{HourRow, Span},
};

/// Hours of a strip.
const HOURS: usize = 24;

/// One provider of this daemon's share.
pub(super) struct SeenProvider {
    /// The ledger's own.
    pub memory: Arc<Memory>,
    pub latency_ms: Option<u64>,
    pub last_check: Option<DateTime<Utc>>,
    pub next_check: Option<DateTime<Utc>>,
    pub hours: Vec<(DateTime<Utc>, Bucket)>,
}

/// Everything that the ledger knows.
#[derive(Default)]
pub(super) struct LedgerView {
    pub providers: HashMap<Arc<str>, SeenProvider>,
    pub impaired: Option<String>,
}

impl LedgerView {
    pub fn of(ledger: &CheckLedger, now: DateTime<Utc>) -> Self {
        let seen = |live: &crate::checks::LedgerProvider| {
            let (name, memory) = (live.target.name.clone(), &live.kept.memory);
            let regular = live.last_check.map(|at| live.target.rhythm.regular(at));
            let seen = SeenProvider {
                memory: memory.clone(),
                latency_ms: live.kept.latency_ms,
                last_check: live.last_check,
                next_check: regular.map(|regular| memory.health.next_check(now, regular)),
                hours: ledger.unwritten(&name).map(|(at, sums)| (at, Bucket::from(sums))).collect(),
            };
            (name, seen)
        };
        Self { providers: ledger.iter().map(seen).collect(), impaired: ledger.impaired().map(str::to_owned) }
    }
}

/// Outcomes of the last hours by provider, the oldest first.
#[derive(Default)]
pub(super) struct Strips {
    /// The hour that the last place stands for.
    last: DateTime<Utc>,
    written: HashMap<Uuid, [Option<Bucket>; HOURS]>,
}

impl Strips {
    /// From when on rows are wanted.
    pub fn since(now: DateTime<Utc>) -> DateTime<Utc> {
        Span::Hour.begin(now) - TimeDelta::hours(HOURS as i64 - 1)
    }

    pub fn new(now: DateTime<Utc>, rows: Vec<HourRow>) -> Self {
        let mut strips = Self { last: Span::Hour.begin(now), written: HashMap::new() };
        for row in rows {
            let Some(place) = strips.place(row.at) else { continue };
            let more = Bucket {
                ok: row.ok.saturating_add(row.auth),
                slow: row.slow.saturating_add(row.soft),
                bad: row.hard,
            };
            if let Some(bucket) = strips.written.entry(row.provider_id).or_default().get_mut(place) {
                add(bucket, more);
            }
        }
        strips
    }

    /// The strip of one provider with what is not written yet; `None` if nothing was checked.
    pub fn of(&self, id: Uuid, unwritten: &[(DateTime<Utc>, Bucket)]) -> Option<Vec<Option<Bucket>>> {
        let mut strip = self.written.get(&id).copied().unwrap_or_default();
        for (at, more) in unwritten {
            if let Some(bucket) = self.place(*at).and_then(|place| strip.get_mut(place)) {
                add(bucket, *more);
            }
        }
        strip.iter().any(Option::is_some).then(|| strip.to_vec())
    }

    fn place(&self, at: DateTime<Utc>) -> Option<usize> {
        let ago = usize::try_from((self.last - at).num_hours()).ok()?;
        (HOURS - 1).checked_sub(ago)
    }
}

fn add(bucket: &mut Option<Bucket>, more: Bucket) {
    let sum = bucket.get_or_insert(Bucket { ok: 0, slow: 0, bad: 0 });
    sum.ok = sum.ok.saturating_add(more.ok);
    sum.slow = sum.slow.saturating_add(more.slow);
    sum.bad = sum.bad.saturating_add(more.bad);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hours_stand_in_their_places() {
        let now: DateTime<Utc> = "2026-01-02T10:30:00Z".parse().unwrap();
        let id = Uuid::nil();
        let row = |at: &str, ok, hard| HourRow {
            provider_id: id,
            at: at.parse().unwrap(),
            ok,
            slow: 0,
            soft: 1,
            hard,
            auth: 2,
        };
        assert_eq!(Strips::since(now), "2026-01-01T11:00:00Z".parse::<DateTime<Utc>>().unwrap());
        let rows = vec![
            row("2026-01-02T10:00:00Z", 5, 0),
            row("2026-01-01T11:00:00Z", 0, 3),
            row("2026-01-01T10:00:00Z", 9, 9),
        ];
        let strips = Strips::new(now, rows);
        let unwritten = [("2026-01-02T10:00:00Z".parse().unwrap(), Bucket { ok: 1, slow: 0, bad: 1 })];
        let strip = strips.of(id, &unwritten).unwrap();
        assert_eq!(strip.len(), HOURS);
        assert_eq!(strip.first().unwrap(), &Some(Bucket { ok: 2, slow: 1, bad: 3 }));
        assert_eq!(strip.last().unwrap(), &Some(Bucket { ok: 8, slow: 1, bad: 1 }));
        assert_eq!(strip.iter().flatten().count(), 2);
        assert_eq!(strips.of(Uuid::max(), &[]), None);
    }
}
