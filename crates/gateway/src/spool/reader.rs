//! Handing out rows from the caller's position.
//!
//! Not its job: remembering how far a caller has read, or deleting.
//! Invariant: rows come in the order in which they were written, each from an offset that comes after all before it; a
//! batch holds what its limit allows and no more.

use std::{fs::File, ops::Range, sync::atomic::Ordering::Relaxed};

use super::{
    Spool, SpoolError, SpoolId, UsageRow,
    record::{SpoolRecord, decode, is_outcome},
    segment::{self, SegmentWalk, WalkStep},
};

/// A place in the segments of one [`SpoolId`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SpoolOffset {
    pub segment: u64,
    pub offset: u64,
}

/// Rows read at once.
#[derive(Debug, Default)]
pub struct SpoolBatch {
    bytes: Vec<u8>,
    rows: Vec<(u64, Range<usize>)>,
    next: Option<SpoolOffset>,
    last: bool,
}

impl SpoolBatch {
    pub const fn len(&self) -> usize {
        self.rows.len()
    }

    pub const fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// Each row with the number of its segment.
    pub fn rows(&self) -> impl Iterator<Item = (u64, UsageRow<'_>)> {
        self.rows.iter().filter_map(|(segment, range)| match decode(self.bytes.get(range.clone())?)? {
            SpoolRecord::Outcome(row) => Some((*segment, row)),
            SpoolRecord::Intent(_) | SpoolRecord::Attempt(_) | SpoolRecord::Cut(_) => None,
        })
    }

    /// Where to go on; none if there is nothing at all.
    pub const fn next(&self) -> Option<SpoolOffset> {
        self.next
    }

    /// Whether this was all that there is for now.
    pub const fn is_last(&self) -> bool {
        self.last
    }
}

impl Spool {
    /// Whose segments can be read, the oldest first; the own ones last.
    pub fn spools(&self) -> Vec<SpoolId> {
        let mut found = Vec::new();
        for segment in self.shared.lock().segments.values() {
            if segment.readable.is_some() && !found.contains(&segment.spool) {
                found.push(segment.spool);
            }
        }
        found
    }

    /// Reads at most `max_rows` rows (at least one) of `spool` behind `after`; none: from its beginning.
    ///
    /// # Errors
    /// The disk refuses.
    pub fn read(
        &self,
        spool: SpoolId,
        after: Option<SpoolOffset>,
        max_rows: usize,
    ) -> Result<SpoolBatch, SpoolError> {
        let shared = &*self.shared;
        let from = after.unwrap_or(SpoolOffset { segment: 0, offset: 0 });
        let segments: Vec<(u64, u64)> = shared
            .lock()
            .segments
            .range(from.segment..)
            .filter(|(_, it)| it.spool == spool)
            .map_while(|(number, it)| Some((*number, it.readable?)))
            .collect();
        let mut batch = SpoolBatch { next: after, ..SpoolBatch::default() };
        for (number, end) in segments {
            let start = if number == from.segment { from.offset } else { 0 }.max(segment::HEADER);
            if start < end {
                let file = File::open(segment::path(&shared.settings.dir, number, spool))?;
                let mut walk = SegmentWalk::new(&file, start, end);
                loop {
                    if batch.rows.len() >= max_rows.max(1) {
                        batch.next = Some(SpoolOffset { segment: number, offset: walk.offset() });
                        return Ok(batch);
                    }
                    match walk.step()? {
                        WalkStep::Record(payload) => {
                            if is_outcome(payload) {
                                let at = batch.bytes.len();
                                batch.bytes.extend_from_slice(payload);
                                batch.rows.push((number, at..batch.bytes.len()));
                            }
                        }
                        WalkStep::End { .. } => break,
                        WalkStep::Torn { .. } => {
                            shared.damaged.fetch_add(1, Relaxed);
                            if !walk.skip_torn()? {
                                break;
                            }
                        }
                    }
                }
            }
            batch.next = Some(SpoolOffset { segment: number, offset: end.max(start) });
        }
        batch.last = true;
        Ok(batch)
    }
}
