//! Appending, syncing, rotating, deleting.
//!
//! Not its job: reading records back.
//! Invariants: one lock orders all records; it is never held over a sync; after a sync that failed nothing of what it
//! should have covered is trusted: it is written again into a new segment.

use std::{
    collections::{BTreeMap, HashMap},
    fs::{self, File, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::{DirBuilderExt as _, FileExt as _, OpenOptionsExt as _},
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    thread::JoinHandle,
    time::Duration,
};

use tokio::sync::watch;
use uuid::Uuid;

use super::{
    SpoolCut, SpoolError, SpoolId, SpoolOffset, SpoolRecord, SpoolSettings, SpoolStats, UsageAttempt,
    UsageIntent, UsageRow, WhenFull,
    record::{self, HEAD, SpoolFrame},
    segment,
};

/// Unsynced records kept in memory, so that they can be written again: what a disk may fall behind by before requests
/// are refused. At 20,000 requests a second this is five seconds.
const MAX_UNSYNCED: usize = 64 << 20;

/// After a failed sync the disk gets time; requests go on in the page cache meanwhile.
const RETRY: Duration = Duration::from_secs(1);

/// Room that is kept for unsynced records between two syncs.
const SPARE_MAX: usize = 4 << 20;

/// Usual length of a record.
const USUAL: usize = 512;

/// An intent that was written. Give it back with the outcome; dropped, the intent counts as one without an outcome
/// from the next start on.
#[derive(Debug)]
#[must_use]
pub struct SpoolTicket {
    /// None: served without a row.
    id: Option<Uuid>,
    sequence: u64,
}

impl SpoolTicket {
    /// For [`Spool::settled`].
    pub const fn sequence(&self) -> u64 {
        self.sequence
    }
}

/// The spool, open for writing and reading. Closed when dropped.
pub struct Spool {
    pub(super) shared: Arc<SpoolShared>,
    thread: Option<JoinHandle<()>>,
}

pub(super) struct SpoolShared {
    pub settings: SpoolSettings,
    pub id: SpoolId,
    pub inner: Mutex<Inner>,
    kick: Condvar,
    synced: watch::Sender<u64>,
    lost: AtomicU64,
    pub rejected: AtomicU64,
    pub damaged: AtomicU64,
    sync_failures: AtomicU64,
    sync: SyncFile,
    /// Locked for as long as the spool is open.
    owned: File,
    /// One sync at a time: a file says only once that a sync of it failed, and the order of what is synced counts.
    syncing: Mutex<()>,
    /// One look at what earlier processes left at a time.
    pub recovering: Mutex<()>,
}

/// How a file is synced; tests let it fail.
pub(super) type SyncFile = Box<dyn Fn(&File) -> io::Result<()> + Send + Sync>;

/// A segment as readers see it.
#[derive(Debug, Clone)]
pub(super) struct Segment {
    pub spool: SpoolId,
    /// How far it may be read; none before recovery has looked at it.
    pub readable: Option<u64>,
    /// Nothing will be appended to it.
    pub finished: bool,
    /// Everything readable in it is stored elsewhere.
    pub delivered: u64,
    /// Bytes of records.
    pub bytes: u64,
}

/// Records that were written and not yet synced.
struct Unsynced {
    number: u64,
    file: Arc<File>,
    from: u64,
    end: u64,
    sealed: bool,
    bytes: Vec<u8>,
}

pub(super) struct Inner {
    pub segments: BTreeMap<u64, Segment>,
    pub number: u64,
    file: Arc<File>,
    offset: u64,
    /// From where on the current segment is not synced; those bytes.
    from: u64,
    unsynced: Vec<u8>,
    /// Room of records that were synced, for the next ones.
    spare: Vec<u8>,
    sealing: Vec<Unsynced>,
    sealing_bytes: usize,
    next: Option<(u64, File)>,
    next_number: u64,
    /// No further segment could be made.
    no_room: bool,
    /// A sync failed, and what it should have covered was not yet written again.
    suspect: bool,
    /// Requests under way, and the segment of their intent.
    pub open: HashMap<Uuid, u64>,
    /// Bytes ever appended.
    written: u64,
    /// Bytes of records in all segments.
    pub used: u64,
    pub rejected_bytes: u64,
    want_sync: bool,
    closing: bool,
}

impl Spool {
    /// Opens or makes a spool. What an earlier process left is not looked at before [`Self::recover`].
    ///
    /// # Errors
    /// Another process has it, or the directory cannot be written.
    pub fn open(settings: SpoolSettings) -> Result<Self, SpoolError> {
        Self::open_with(settings, Box::new(File::sync_data))
    }

    pub(super) fn open_with(settings: SpoolSettings, sync: SyncFile) -> Result<Self, SpoolError> {
        let dir = &settings.dir;
        for dir in [dir, &dir.join("rejected")] {
            fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
        }
        let lock =
            OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(dir.join("lock"))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(fs::TryLockError::WouldBlock) => return Err(SpoolError::InUse(dir.clone())),
            Err(fs::TryLockError::Error(error)) => return Err(error.into()),
        }
        let mut segments = BTreeMap::new();
        let mut used = 0;
        for entry in fs::read_dir(dir)? {
            let entry = entry?;
            let Some((number, spool)) = entry.file_name().to_str().and_then(segment::parse_name) else {
                continue;
            };
            let bytes = entry.metadata()?.len();
            used += bytes;
            segments.insert(
                number,
                Segment { spool, readable: None, finished: true, delivered: segment::HEADER, bytes },
            );
        }
        let mut rejected_bytes = 0;
        for entry in fs::read_dir(dir.join("rejected"))? {
            rejected_bytes += entry?.metadata()?.len();
        }
        let id = Uuid::new_v4();
        let number = segments.last_key_value().map_or(0, |(number, _)| number + 1);
        let file = Arc::new(segment::create(dir, number, id, settings.segment_bytes)?);
        segments.insert(
            number,
            Segment {
                spool: id,
                readable: Some(segment::HEADER),
                finished: false,
                delivered: segment::HEADER,
                bytes: 0,
            },
        );
        let shared = Arc::new(SpoolShared {
            settings,
            id,
            inner: Mutex::new(Inner {
                segments,
                number,
                file,
                offset: segment::HEADER,
                from: segment::HEADER,
                unsynced: Vec::new(),
                spare: Vec::new(),
                sealing: Vec::new(),
                sealing_bytes: 0,
                next: None,
                next_number: number + 1,
                no_room: false,
                suspect: false,
                open: HashMap::new(),
                written: 0,
                used,
                rejected_bytes,
                want_sync: false,
                closing: false,
            }),
            kick: Condvar::new(),
            synced: watch::Sender::new(0),
            lost: AtomicU64::new(0),
            rejected: AtomicU64::new(0),
            damaged: AtomicU64::new(0),
            sync_failures: AtomicU64::new(0),
            sync,
            owned: lock,
            syncing: Mutex::new(()),
            recovering: Mutex::new(()),
        });
        let thread = {
            let shared = Arc::clone(&shared);
            std::thread::Builder::new().name("usage-sync".to_owned()).spawn(move || shared.run())?
        };
        Ok(Self { shared, thread: Some(thread) })
    }

    /// Writes down that a request is about to leave.
    ///
    /// # Errors
    /// [`SpoolError::Full`], or the disk refuses: the request must not leave.
    pub fn intent(&self, intent: &UsageIntent<'_>) -> Result<SpoolTicket, SpoolError> {
        let mut bytes = Vec::with_capacity(USUAL);
        record::encode_intent(intent, &mut bytes);
        let shared = &*self.shared;
        let mut inner = shared.lock();
        let appended = if inner.is_full(&shared.settings, bytes.len() as u64) {
            Err(SpoolError::Full)
        } else {
            inner.append(shared, &bytes).map_err(SpoolError::from)
        };
        match appended {
            Ok(()) => {
                let number = inner.number;
                inner.open.insert(intent.facts.id, number);
                Ok(SpoolTicket { id: Some(intent.facts.id), sequence: inner.written })
            }
            Err(_) if shared.settings.when_full == WhenFull::Serve => {
                shared.lost.fetch_add(1, Relaxed);
                Ok(SpoolTicket { id: None, sequence: 0 })
            }
            Err(error) => Err(error),
        }
    }

    /// Writes down that a request goes to a further candidate. Gives the sequence for [`Self::settled`].
    ///
    /// # Errors
    /// The disk refuses.
    pub fn attempt(&self, ticket: &SpoolTicket, attempt: &UsageAttempt<'_>) -> Result<u64, SpoolError> {
        if ticket.id.is_none() {
            return Ok(0);
        }
        let mut bytes = Vec::with_capacity(USUAL);
        record::encode_attempt(attempt, &mut bytes);
        let mut inner = self.shared.lock();
        inner.append(&self.shared, &bytes)?;
        Ok(inner.written)
    }

    /// Writes down how a request ended. Gives the sequence for [`Self::settled`].
    ///
    /// # Errors
    /// The disk refuses; the intent counts as one without an outcome from the next start on.
    pub fn outcome(&self, ticket: SpoolTicket, row: &UsageRow<'_>) -> Result<u64, SpoolError> {
        let Some(id) = ticket.id else { return Ok(0) };
        let mut bytes = Vec::with_capacity(USUAL);
        record::encode_outcome(row, &mut bytes);
        let mut inner = self.shared.lock();
        inner.append(&self.shared, &bytes)?;
        inner.open.remove(&id);
        Ok(inner.written)
    }

    /// With `strict`, waits until everything up to a sequence would survive a power cut; else returns at once.
    pub async fn settled(&self, sequence: u64) {
        if self.shared.settings.strict {
            self.synced(sequence).await;
        }
    }

    /// Waits until everything up to a sequence is synced, and can be read.
    pub async fn synced(&self, sequence: u64) {
        let mut synced = self.shared.synced.subscribe();
        if *synced.borrow() < sequence {
            self.shared.ask_for_sync();
            // The sender lives as long as this spool.
            let _ = synced.wait_for(|it| *it >= sequence).await;
        }
    }

    /// Syncs now, in this thread, and makes what was written readable.
    ///
    /// # Errors
    /// The sync failed; the records will be written again.
    pub fn sync_now(&self) -> Result<(), SpoolError> {
        Ok(self.shared.sync_once()?)
    }

    /// The id under which this process writes.
    pub fn id(&self) -> SpoolId {
        self.shared.id
    }

    pub fn stats(&self) -> SpoolStats {
        let shared = &*self.shared;
        let inner = shared.lock();
        SpoolStats {
            bytes: inner.used + inner.rejected_bytes,
            segments: inner.segments.len(),
            open: inner.open.len(),
            lost: shared.lost.load(Relaxed),
            rejected: shared.rejected.load(Relaxed),
            damaged: shared.damaged.load(Relaxed),
            sync_failures: shared.sync_failures.load(Relaxed),
        }
    }

    /// Says that everything of `spool` before `upto` is stored elsewhere: segments that are not needed any more go.
    ///
    /// # Errors
    /// The disk refuses.
    pub fn release(&self, spool: SpoolId, upto: SpoolOffset) -> Result<(), SpoolError> {
        let shared = &*self.shared;
        {
            let mut inner = shared.lock();
            for (number, it) in inner.segments.range_mut(..=upto.segment) {
                if it.spool == spool {
                    it.delivered =
                        if *number < upto.segment { u64::MAX } else { it.delivered.max(upto.offset) };
                }
            }
        }
        loop {
            let (number, first) = {
                let inner = shared.lock();
                let Some((number, first)) = inner.segments.first_key_value() else { return Ok(()) };
                let done = first.finished && first.readable.is_some_and(|it| it <= first.delivered);
                if !done {
                    return Ok(());
                }
                (*number, first.clone())
            };
            self.carry(number, first.spool)?;
            fs::remove_file(segment::path(&shared.settings.dir, number, first.spool))?;
            let mut inner = shared.lock();
            inner.segments.remove(&number);
            inner.used = inner.used.saturating_sub(first.bytes);
        }
    }

    /// Writes the intents of a segment that have no outcome yet into the current one.
    fn carry(&self, number: u64, spool: SpoolId) -> Result<(), SpoolError> {
        let shared = &*self.shared;
        if !shared.lock().open.values().any(|it| *it == number) {
            return Ok(());
        }
        let file = File::open(segment::path(&shared.settings.dir, number, spool))?;
        let mut walk = segment::SegmentWalk::new(&file, segment::HEADER, u64::MAX);
        let mut carried = std::collections::HashSet::new();
        loop {
            match walk.step()? {
                segment::WalkStep::Record(payload) => {
                    let Some((kind @ (1 | 2), id)) = record::peek(payload) else { continue };
                    let mut inner = shared.lock();
                    // An attempt goes with its intent, if that is still open.
                    let wanted = match inner.open.get(&id) {
                        Some(at) if kind == 1 => *at == number,
                        Some(_) => carried.contains(&id),
                        None => false,
                    };
                    if wanted {
                        let mut bytes = Vec::with_capacity(USUAL);
                        record::reframe(payload, &mut bytes);
                        inner.append(shared, &bytes)?;
                        let now = inner.number;
                        inner.open.insert(id, now);
                        carried.insert(id);
                    }
                }
                segment::WalkStep::End { .. } => break,
                segment::WalkStep::Torn { .. } => {
                    if !walk.skip_torn()? {
                        break;
                    }
                }
            }
        }
        if !carried.is_empty() {
            shared.sync_once()?;
        }
        Ok(())
    }

    /// Sets a row aside that its destination refuses, as one line of JSON. Written and synced when this returns; may hold a
    /// line twice if the process ends before the row's offset is released.
    ///
    /// # Errors
    /// The disk refuses.
    pub fn reject(&self, spool: SpoolId, segment: u64, line: &str) -> Result<(), SpoolError> {
        let shared = &*self.shared;
        let path = shared.settings.dir.join("rejected").join(format!("{segment:016x}-{spool}.jsonl"));
        let mut file = OpenOptions::new().create(true).append(true).mode(0o600).open(path)?;
        let line = format!("{}\n", line.replace('\n', " "));
        file.write_all(line.as_bytes())?;
        file.sync_data()?;
        shared.rejected.fetch_add(1, Relaxed);
        shared.lock().rejected_bytes += line.len() as u64;
        Ok(())
    }
}

impl std::fmt::Debug for Spool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Spool").field("dir", &self.shared.settings.dir).finish_non_exhaustive()
    }
}

impl Drop for Spool {
    /// Syncs what was written.
    fn drop(&mut self) {
        self.shared.lock().closing = true;
        self.shared.kick.notify_all();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        // Closing alone would leave it to a child that was just forked, for as long as that takes to begin its program.
        let _ = self.shared.owned.unlock();
    }
}

impl Inner {
    fn is_full(&self, settings: &SpoolSettings, more: u64) -> bool {
        // Without a further segment, the last quarter of this one is for outcomes.
        let no_room = self.no_room && self.offset + more > settings.segment_bytes / 4 * 3;
        no_room
            || self.used + self.rejected_bytes + more > settings.max_bytes
            || self.unsynced.len() + self.sealing_bytes > MAX_UNSYNCED
    }

    pub(super) fn append(&mut self, shared: &SpoolShared, record: &[u8]) -> io::Result<()> {
        if self.offset + record.len() as u64 > shared.settings.segment_bytes {
            self.rotate(shared)?;
        }
        if self.file.write_all_at(record, self.offset).is_err() {
            // What stands there now is unknown.
            let cut = SpoolCut { segment: self.number, end: self.offset };
            self.rotate(shared)?;
            let mut bytes = Vec::new();
            record::encode(&SpoolRecord::Cut(cut), &mut bytes);
            bytes.extend_from_slice(record);
            self.file.write_all_at(&bytes, self.offset)?;
            self.wrote(&bytes);
            return Ok(());
        }
        self.wrote(record);
        Ok(())
    }

    fn wrote(&mut self, bytes: &[u8]) {
        let length = bytes.len() as u64;
        self.offset += length;
        self.written += length;
        self.used += length;
        self.unsynced.extend_from_slice(bytes);
        if let Some(segment) = self.segments.get_mut(&self.number) {
            segment.bytes += length;
        }
    }

    /// Goes on in a further segment.
    fn rotate(&mut self, shared: &SpoolShared) -> io::Result<()> {
        let (number, file) = match self.next.take() {
            Some(next) => next,
            None => {
                let number = self.next_number;
                self.next_number += 1;
                let made =
                    segment::create(&shared.settings.dir, number, shared.id, shared.settings.segment_bytes);
                self.no_room = made.is_err();
                (number, made?)
            }
        };
        let chunk = self.take_current(true);
        self.sealing_bytes += chunk.bytes.len();
        self.sealing.push(chunk);
        self.number = number;
        self.file = Arc::new(file);
        self.offset = segment::HEADER;
        self.from = segment::HEADER;
        self.segments.insert(
            number,
            Segment {
                spool: shared.id,
                readable: Some(segment::HEADER),
                finished: false,
                delivered: segment::HEADER,
                bytes: 0,
            },
        );
        Ok(())
    }

    fn take_current(&mut self, sealed: bool) -> Unsynced {
        let chunk = Unsynced {
            number: self.number,
            file: Arc::clone(&self.file),
            from: self.from,
            end: self.offset,
            sealed,
            bytes: std::mem::replace(&mut self.unsynced, std::mem::take(&mut self.spare)),
        };
        self.from = self.offset;
        chunk
    }

    /// Writes all that is not synced again, into a new segment, and cuts the old ones.
    fn rewrite(&mut self, shared: &SpoolShared, failed: Vec<Unsynced>) -> io::Result<()> {
        let mut chunks = failed;
        chunks.append(&mut self.sealing);
        self.sealing = chunks;
        self.sealing_bytes = self.sealing.iter().map(|it| it.bytes.len()).sum();
        self.suspect = true;
        // Pushes the current one to the others.
        self.rotate(shared)?;
        let chunks = std::mem::take(&mut self.sealing);
        self.sealing_bytes = 0;
        let mut cuts = BTreeMap::new();
        for chunk in &chunks {
            let end = cuts.entry(chunk.number).or_insert(chunk.from);
            *end = (*end).min(chunk.from);
        }
        let mut bytes = Vec::new();
        for (number, end) in &cuts {
            record::encode(&SpoolRecord::Cut(SpoolCut { segment: *number, end: *end }), &mut bytes);
        }
        for chunk in &chunks {
            bytes.extend_from_slice(&chunk.bytes);
        }
        let first = self.number;
        let mut rest = bytes.as_slice();
        while let SpoolFrame::Whole(payload) = record::frame(rest) {
            let (record, behind) = rest.split_at(HEAD + payload.len());
            if let Err(error) = self.append(shared, record) {
                self.undo(shared, first, chunks);
                return Err(error);
            }
            if let Some((1, id)) = record::peek(payload)
                && let Some(at) = self.open.get_mut(&id)
            {
                *at = self.number;
            }
            rest = behind;
        }
        for chunk in &chunks {
            let end = cuts.get(&chunk.number).copied().unwrap_or(chunk.from);
            if let Some(segment) = self.segments.get_mut(&chunk.number) {
                segment.readable = Some(end);
                segment.finished = true;
            }
            // The cut says it too; this only spares the next start from looking.
            let _ = chunk.file.set_len(end);
        }
        self.suspect = false;
        Ok(())
    }
}

impl Inner {
    /// Forgets what [`Self::rewrite`] wrote from segment `first` on: it will begin again with the same chunks.
    fn undo(&mut self, shared: &SpoolShared, first: u64, chunks: Vec<Unsynced>) {
        let current = self.empty_chunk();
        self.sealing.push(current);
        let mut partial = std::mem::replace(&mut self.sealing, chunks);
        partial.retain(|it| it.number >= first);
        for mut chunk in partial {
            chunk.from = segment::HEADER;
            chunk.end = segment::HEADER;
            chunk.bytes = Vec::new();
            self.sealing.push(chunk);
        }
        self.sealing_bytes = self.sealing.iter().map(|it| it.bytes.len()).sum();
        self.unsynced.clear();
        self.offset = segment::HEADER;
        self.from = segment::HEADER;
        // Nothing of the first try may be read behind what comes now.
        let _ = self
            .file
            .set_len(segment::HEADER)
            .and_then(|()| self.file.set_len(shared.settings.segment_bytes));
    }

    fn empty_chunk(&self) -> Unsynced {
        Unsynced {
            number: self.number,
            file: Arc::clone(&self.file),
            from: segment::HEADER,
            end: segment::HEADER,
            sealed: true,
            bytes: Vec::new(),
        }
    }
}

impl SpoolShared {
    pub(super) fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn ask_for_sync(&self) {
        self.lock().want_sync = true;
        self.kick.notify_all();
    }

    fn run(&self) {
        loop {
            let failed = self.sync_once().is_err();
            self.prepare();
            let mut inner = self.lock();
            if inner.closing {
                break;
            }
            let pause = if failed { RETRY } else { self.settings.sync_interval };
            let waiting = |inner: &mut Inner| !inner.closing && (failed || !inner.want_sync);
            inner =
                self.kick.wait_timeout_while(inner, pause, waiting).unwrap_or_else(PoisonError::into_inner).0;
            inner.want_sync = false;
        }
        let _ = self.sync_once();
        // Room that was only kept ready.
        let mut inner = self.lock();
        if let Some((number, _)) = inner.next.take() {
            let _ = fs::remove_file(segment::path(&self.settings.dir, number, self.id));
        }
        if inner.unsynced.is_empty() {
            let _ = inner.file.set_len(inner.offset);
        }
    }

    /// Syncs all that was written before this call, and makes it readable.
    pub(super) fn sync_once(&self) -> io::Result<()> {
        let _one = self.syncing.lock().unwrap_or_else(PoisonError::into_inner);
        let (chunks, written) = {
            let mut inner = self.lock();
            if inner.suspect {
                inner.rewrite(self, Vec::new())?;
            }
            let mut chunks = std::mem::take(&mut inner.sealing);
            inner.sealing_bytes = 0;
            if !inner.unsynced.is_empty() {
                let chunk = inner.take_current(false);
                chunks.push(chunk);
            }
            (chunks, inner.written)
        };
        for chunk in &chunks {
            if chunk.from == chunk.end {
                continue;
            }
            if let Err(error) = (self.sync)(&chunk.file) {
                self.sync_failures.fetch_add(1, Relaxed);
                self.lock().rewrite(self, chunks)?;
                return Err(error);
            }
        }
        let mut inner = self.lock();
        for mut chunk in chunks {
            if let Some(segment) = inner.segments.get_mut(&chunk.number) {
                segment.readable = segment.readable.max(Some(chunk.end));
                segment.finished |= chunk.sealed;
            }
            // Twice what one interval needed at a usual peak; a rare larger one goes back to the system.
            if chunk.bytes.capacity() <= SPARE_MAX {
                chunk.bytes.clear();
                inner.spare = chunk.bytes;
            }
        }
        drop(inner);
        self.synced.send_if_modified(|it| {
            let more = *it < written;
            *it = written.max(*it);
            more
        });
        Ok(())
    }

    /// Keeps a further segment ready, so that no request waits for one.
    fn prepare(&self) {
        let number = {
            let mut inner = self.lock();
            if inner.next.is_some() || inner.closing || inner.offset < self.settings.segment_bytes / 4 {
                return;
            }
            inner.next_number += 1;
            inner.next_number - 1
        };
        let made = segment::create(&self.settings.dir, number, self.id, self.settings.segment_bytes);
        let mut inner = self.lock();
        inner.no_room = made.is_err();
        let Ok(file) = made else { return };
        if inner.number < number {
            inner.next = Some((number, file));
        } else {
            // A request was faster and took a later number; numbers rise.
            let _ = fs::remove_file(segment::path(&self.settings.dir, number, self.id));
        }
    }
}

#[cfg(test)]
mod tests;
