//! The local spool of usage: what a request was about to cost is written before it leaves, what it did cost once it has
//! ended, both in about a microsecond, and the task that ships the rows reads them from here at its own pace.
//!
//! Not its job: what a row means, where rows go, SQL.
//!
//! Invariants
//! - What [`Spool::intent`] and [`Spool::outcome`] have returned survives the end of this process; what
//!   [`Spool::settled`] has returned for survives a power cut.
//! - Each intent has at most one outcome, and exactly one after [`Spool::recover`].
//! - Only what is synced is handed out, and nothing is deleted before it was said to be stored elsewhere.
//!
//! A spool is a directory, owned by one process at a time (`lock`). Each process that opens it writes segments of its own
//! under an id of its own: the directory of a restored machine image can go on without a row being taken for another.
//! Segments have rising numbers and are deleted from the front only, so the outcome of an intent never goes before it.

mod reader;
mod record;
mod recover;
mod segment;
mod writer;

use std::{path::PathBuf, time::Duration};

use uuid::Uuid;

pub use self::{
    reader::{SpoolBatch, SpoolOffset},
    record::{
        HEAD, MAX_PAYLOAD, RequestFacts, SpoolCut, SpoolFrame, SpoolRecord, SpoolText, UsageAttempt,
        UsageIntent, UsageRow, UsageSource, decode, encode, examine, frame,
    },
    recover::SpoolRecovery,
    writer::{Spool, SpoolTicket},
};

/// What happens to requests while the spool is full.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum WhenFull {
    /// They are refused: nothing goes unmetered.
    #[default]
    Refuse,
    /// They are served without a row, and counted.
    Serve,
}

#[derive(Debug, Clone)]
pub struct SpoolSettings {
    pub dir: PathBuf,
    /// Bytes of records that may wait, what was set aside included. Outcomes of requests under way are still taken above it.
    pub max_bytes: u64,
    /// Bytes of one file, allocated at once.
    pub segment_bytes: u64,
    /// How often records are synced: what a power cut may cost.
    pub sync_interval: Duration,
    pub when_full: WhenFull,
    /// Whether [`Spool::settled`] waits for the disk.
    pub strict: bool,
}

impl SpoolSettings {
    /// About 25 million requests, and 100 ms of loss by a power cut.
    pub const fn new(dir: PathBuf) -> Self {
        Self {
            dir,
            max_bytes: 10 << 30,
            // 100,000 requests: rotation is rare, and deletion soon enough.
            segment_bytes: 64 << 20,
            sync_interval: Duration::from_millis(100),
            when_full: WhenFull::Refuse,
            strict: false,
        }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum SpoolError {
    #[error(
        "the spool {0} belongs to another process; hint: end it, or give this one a state directory of its own"
    )]
    InUse(PathBuf),
    /// Only for intents, and only with [`WhenFull::Refuse`].
    #[error("the spool of usage is full; hint: see why rows are not shipped, or raise usage.spool_max_mib")]
    Full,
    #[error("the spool of usage: {0}")]
    Io(#[from] std::io::Error),
}

/// What the spool says about itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SpoolStats {
    /// Bytes of records that wait or were set aside.
    pub bytes: u64,
    pub segments: usize,
    /// Intents without an outcome yet.
    pub open: usize,
    /// Requests served without a row.
    pub lost: u64,
    /// Rows set aside.
    pub rejected: u64,
    /// Records that could not be read any more.
    pub damaged: u64,
    /// Syncs that failed.
    pub sync_failures: u64,
}

/// The segments of one process that wrote to a spool.
pub type SpoolId = Uuid;
