//! Readers of the three framings that streams come in, each resumable at any byte and bounded in memory.
//!
//! Not their job: what an event means. Invariant: the events read do not depend on how the bytes were cut.

mod aws;
mod ndjson;
mod sse;

pub use aws::{AwsFrame, AwsReader, crc32, write_frame};
pub use ndjson::LineReader;
pub use sse::{SseEvent, SseReader};

/// Longest event, in bytes. Events with images reach several MiB; beyond this an upstream only fills memory.
pub const EVENT_LIMIT: usize = 16 << 20;

/// Why bytes cannot be read as events.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// An event is longer than the bound.
    #[error("an event is longer than {0} bytes")]
    TooLong(usize),
    /// A frame's lengths contradict each other.
    #[error("the lengths of a frame are impossible")]
    Lengths,
    /// A frame's checksum is wrong.
    #[error("the checksum of a frame is wrong")]
    Checksum,
    /// A frame's headers cannot be read.
    #[error("the headers of a frame cannot be read")]
    Headers,
}
