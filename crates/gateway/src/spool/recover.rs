//! What earlier processes left: where their records end, and which of their requests have no outcome.
//!
//! Not its job: what this process writes.
//! Invariant: nothing of an earlier process is handed out before its unfinished requests have an outcome on disk.

use std::{
    collections::{BTreeMap, HashMap},
    fs::{self, File},
    io,
    sync::{PoisonError, atomic::Ordering::Relaxed},
};

use uuid::Uuid;

use super::{
    Spool, SpoolError, SpoolId, UsageRow,
    record::{self, SpoolRecord, decode, peek},
    segment::{self, SegmentWalk, WalkStep},
};

/// What was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SpoolRecovery {
    pub segments: usize,
    /// Intents that were given an outcome now.
    pub abandoned: usize,
    /// Places where records broke off.
    pub torn: usize,
}

/// A request without an outcome so far: payloads.
struct Unfinished {
    intent: Vec<u8>,
    last: Option<Vec<u8>>,
    attempts: u8,
}

impl Spool {
    /// Looks through the segments of earlier processes, gives their unfinished requests an outcome, and gives back the room
    /// behind their last records: a process that is restarted again and again must not fill the spool with room that was
    /// only set aside. Takes about a second per GiB; requests go on meanwhile. To be called before reading, and again if
    /// it fails; once it has succeeded, there is nothing to do.
    ///
    /// # Errors
    /// The disk refuses; nothing of the earlier processes can be read then.
    pub fn recover(&self) -> Result<SpoolRecovery, SpoolError> {
        let shared = &*self.shared;
        // Two that run at once would give the same request two outcomes.
        let _one = shared.recovering.lock().unwrap_or_else(PoisonError::into_inner);
        let old: Vec<(u64, SpoolId)> = shared
            .lock()
            .segments
            .iter()
            .filter(|(_, it)| it.readable.is_none())
            .map(|(number, it)| (*number, it.spool))
            .collect();
        let mut found = SpoolRecovery { segments: old.len(), ..SpoolRecovery::default() };
        let mut files = Vec::new();
        let mut kept = Vec::new();
        let mut cuts = BTreeMap::new();
        for (number, spool) in old {
            match self.open_old(number, spool, &mut cuts) {
                Ok(Some(file)) => {
                    files.push((number, file));
                    kept.push((number, spool));
                }
                Ok(None) | Err(_) => self.put_aside(number, spool)?,
            }
        }
        let mut open = HashMap::new();
        let mut ends = Vec::new();
        for (number, file) in &files {
            let limit = cuts.get(number).copied().unwrap_or(u64::MAX);
            ends.push((*number, scan(file, limit, &mut open, &mut found)?));
        }
        for it in open.values() {
            let Some(SpoolRecord::Intent(intent)) = decode(&it.intent) else { continue };
            let last = it.last.as_deref().and_then(decode).and_then(|it| match it {
                SpoolRecord::Attempt(it) => Some(it),
                SpoolRecord::Intent(_) | SpoolRecord::Outcome(_) | SpoolRecord::Cut(_) => None,
            });
            let mut bytes = Vec::new();
            record::encode_outcome(&UsageRow::abandoned(intent, last, it.attempts), &mut bytes);
            shared.lock().append(shared, &bytes)?;
            found.abandoned += 1;
        }
        shared.sync_once()?;
        for ((number, spool), (_, end)) in kept.iter().zip(&ends) {
            // What cannot be shortened still counts as what it holds.
            let _ = segment::shorten(&segment::path(&shared.settings.dir, *number, *spool), *end);
        }
        let mut inner = shared.lock();
        for (number, end) in ends {
            if let Some(segment) = inner.segments.get_mut(&number) {
                let bytes = end.saturating_sub(segment::HEADER);
                let before = std::mem::replace(&mut segment.bytes, bytes);
                segment.readable = Some(end);
                inner.used = inner.used.saturating_sub(before) + bytes;
            }
        }
        Ok(found)
    }

    /// Opens a segment and reads the cuts with which it begins; none: it is no segment.
    fn open_old(
        &self,
        number: u64,
        spool: SpoolId,
        cuts: &mut BTreeMap<u64, u64>,
    ) -> io::Result<Option<File>> {
        let file = File::open(segment::path(&self.shared.settings.dir, number, spool))?;
        if !segment::has_header(&file, number, spool)? {
            return Ok(None);
        }
        let mut walk = SegmentWalk::new(&file, segment::HEADER, u64::MAX);
        while let WalkStep::Record(payload) = walk.step()? {
            let Some(SpoolRecord::Cut(cut)) = decode(payload) else { break };
            let end = cuts.entry(cut.segment).or_insert(cut.end);
            *end = cut.end.min(*end);
        }
        Ok(Some(file))
    }

    /// Moves away what cannot be read at all; a segment that was never written to just goes.
    fn put_aside(&self, number: u64, spool: SpoolId) -> io::Result<()> {
        let shared = &*self.shared;
        let path = segment::path(&shared.settings.dir, number, spool);
        let mut head = [0; segment::HEADER as usize];
        let blank = File::open(&path)
            .and_then(|file| std::os::unix::fs::FileExt::read_at(&file, &mut head, 0))
            .is_ok_and(|_| head.iter().all(|it| *it == 0));
        if blank {
            fs::remove_file(&path)?;
        } else {
            let name = path.file_name().unwrap_or_default();
            fs::rename(&path, shared.settings.dir.join("rejected").join(name))?;
            shared.damaged.fetch_add(1, Relaxed);
        }
        let mut inner = shared.lock();
        if let Some(gone) = inner.segments.remove(&number) {
            inner.used = inner.used.saturating_sub(gone.bytes);
            if !blank {
                inner.rejected_bytes += gone.bytes;
            }
        }
        Ok(())
    }
}

/// Follows the requests of one segment; gives where its records end.
fn scan(
    file: &File,
    limit: u64,
    open: &mut HashMap<Uuid, Unfinished>,
    found: &mut SpoolRecovery,
) -> io::Result<u64> {
    let mut walk = SegmentWalk::new(file, segment::HEADER, limit);
    loop {
        match walk.step()? {
            WalkStep::Record(payload) => match peek(payload) {
                Some((1, id)) => {
                    open.insert(id, Unfinished { intent: payload.to_vec(), last: None, attempts: 1 });
                }
                Some((2, id)) => {
                    if let Some(it) = open.get_mut(&id) {
                        it.last = Some(payload.to_vec());
                        it.attempts = it.attempts.saturating_add(1);
                    }
                }
                Some((_, id)) => {
                    open.remove(&id);
                }
                None => {}
            },
            WalkStep::End { offset } => return Ok(offset),
            WalkStep::Torn { offset } => {
                found.torn += 1;
                if !walk.skip_torn()? {
                    return Ok(offset);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spool::{RequestFacts, SpoolSettings, UsageIntent};

    /// A process that is killed soon after each start leaves a segment each time: what counts is what it wrote.
    #[test]
    fn starts_and_kills_do_not_fill_the_spool_with_empty_room() {
        let dir = tempfile::tempdir().unwrap();
        let settings = || SpoolSettings {
            segment_bytes: 64 << 10,
            max_bytes: 512 << 10,
            ..SpoolSettings::new(dir.path().to_owned())
        };
        for number in 0..40_u128 {
            let spool = Spool::open(settings()).unwrap();
            let found = spool.recover().unwrap();
            assert_eq!(found.abandoned, usize::from(number > 0));
            assert_eq!(spool.recover().unwrap(), SpoolRecovery::default(), "once is enough");
            let facts = RequestFacts { id: Uuid::from_u128(number), ..RequestFacts::default() };
            let ticket =
                spool.intent(&UsageIntent { facts, ..UsageIntent::default() }).expect("there is room");
            drop(ticket);
            spool.sync_now().unwrap();
        }
        let spool = Spool::open(settings()).unwrap();
        spool.recover().unwrap();
        assert!(spool.stats().bytes < 64 << 10, "{:?}", spool.stats());
        let rows: usize =
            spool.spools().into_iter().map(|id| spool.read(id, None, usize::MAX).unwrap().len()).sum();
        assert_eq!(rows, 40);
        let lengths = fs::read_dir(dir.path()).unwrap().map(|it| it.unwrap().metadata().unwrap().len());
        assert!(lengths.sum::<u64>() < 512 << 10);
    }
}
