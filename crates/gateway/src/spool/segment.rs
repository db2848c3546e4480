//! One file of the spool: its name, its header, and a walk over its records.
//!
//! Not its job: which segments there are and who writes to which.
//! Invariant: reading never goes behind the end that it is given, and holds one chunk in memory.

use std::{
    fs::{File, OpenOptions},
    io,
    os::unix::fs::{FileExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use uuid::Uuid;

use super::record::{HEAD, MAX_PAYLOAD, SpoolFrame, frame};

/// Bytes before the first record.
pub const HEADER: u64 = 64;

const MAGIC: &[u8; 8] = b"pdspool1";

/// Read at once. Larger than any record, so that each chunk holds at least one.
const CHUNK: usize = 1 << 20;
const _: () = assert!(CHUNK > HEAD + MAX_PAYLOAD);

const SUFFIX: &str = ".seg";

pub fn path(dir: &Path, number: u64, spool: Uuid) -> PathBuf {
    dir.join(format!("{number:016x}-{spool}{SUFFIX}"))
}

/// Number and spool of a segment, by its name.
pub fn parse_name(name: &str) -> Option<(u64, Uuid)> {
    let (number, spool) = name.strip_suffix(SUFFIX)?.split_once('-')?;
    (number.len() == 16).then_some(())?;
    Some((u64::from_str_radix(number, 16).ok()?, spool.parse().ok()?))
}

/// Makes a segment of `size` bytes. They are allocated at once: a disk that fills up is noticed here, not by a request.
///
/// # Errors
/// The file cannot be made; nothing is left of it then.
pub fn create(dir: &Path, number: u64, spool: Uuid, size: u64) -> io::Result<File> {
    let path = path(dir, number, spool);
    let file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(&path)?;
    let made = allocate(&file, size).and_then(|()| {
        let mut header = Vec::with_capacity(HEADER as usize);
        header.extend_from_slice(MAGIC);
        header.extend_from_slice(&number.to_le_bytes());
        header.extend_from_slice(spool.as_bytes());
        header.resize(HEADER as usize, 0);
        file.write_all_at(&header, 0)?;
        // The name must survive a power cut too.
        File::open(dir)?.sync_all()
    });
    if let Err(error) = made {
        let _ = std::fs::remove_file(&path);
        return Err(error);
    }
    Ok(file)
}

fn allocate(file: &File, size: u64) -> io::Result<()> {
    match rustix::fs::fallocate(file, rustix::fs::FallocateFlags::empty(), 0, size) {
        Ok(()) => Ok(()),
        // Some file systems cannot; the length alone still marks where nothing was written.
        Err(rustix::io::Errno::OPNOTSUPP) => file.set_len(size),
        Err(error) => Err(error.into()),
    }
}

/// Gives the room behind `end` back to the disk. For a segment to which nothing is appended any more.
///
/// # Errors
/// The file cannot be changed; it stays as it is.
pub fn shorten(path: &Path, end: u64) -> io::Result<()> {
    let file = OpenOptions::new().write(true).open(path)?;
    if file.metadata()?.len() > end { file.set_len(end) } else { Ok(()) }
}

/// Whether a file begins as a segment of that number and spool.
pub fn has_header(file: &File, number: u64, spool: Uuid) -> io::Result<bool> {
    let mut header = [0; HEADER as usize];
    match file.read_exact_at(&mut header, 0) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(false),
        Err(error) => return Err(error),
    }
    Ok(header.starts_with(MAGIC)
        && header.get(8..16) == Some(&number.to_le_bytes())
        && header.get(16..32) == Some(spool.as_bytes()))
}

/// A walk over the records of one segment.
pub struct SegmentWalk<'a> {
    file: &'a File,
    /// Where `buffer` begins in the file.
    base: u64,
    end: u64,
    buffer: Vec<u8>,
    /// Where the next record begins in `buffer`.
    at: usize,
}

pub enum WalkStep<'a> {
    Record(&'a [u8]),
    /// Nothing was written from here on.
    End {
        offset: u64,
    },
    /// What stands here is no whole record.
    Torn {
        offset: u64,
    },
}

impl<'a> SegmentWalk<'a> {
    /// From `start` to at most `end`, both offsets in the file.
    pub const fn new(file: &'a File, start: u64, end: u64) -> Self {
        Self { file, base: start, end, buffer: Vec::new(), at: 0 }
    }

    pub const fn offset(&self) -> u64 {
        self.base + self.at as u64
    }

    /// # Errors
    /// The file cannot be read.
    pub fn step(&mut self) -> io::Result<WalkStep<'_>> {
        let mut found = self.look();
        if found == Found::Short && self.fill()? {
            found = self.look();
        }
        let offset = self.offset();
        Ok(match found {
            Found::Whole(length) => {
                let from = self.at + HEAD;
                self.at = from + length;
                WalkStep::Record(self.buffer.get(from..self.at).unwrap_or_default())
            }
            Found::End => WalkStep::End { offset },
            // Fewer bytes than a head are left, or a record would reach behind the end.
            Found::Short if self.rest().iter().all(|it| *it == 0) => WalkStep::End { offset },
            Found::Short | Found::Torn => WalkStep::Torn { offset },
        })
    }

    /// Goes on behind a torn record, if its length leads to a whole one or to the end of what was written.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn skip_torn(&mut self) -> io::Result<bool> {
        self.fill()?;
        let SpoolFrame::Torn { skip } = frame(self.rest()) else { return Ok(false) };
        if skip == 0 {
            return Ok(false);
        }
        let behind = self.rest().get(skip..).unwrap_or_default();
        if !matches!(frame(behind), SpoolFrame::Whole(_)) {
            return Ok(false);
        }
        self.at += skip;
        Ok(true)
    }

    fn rest(&self) -> &[u8] {
        self.buffer.get(self.at..).unwrap_or_default()
    }

    fn look(&self) -> Found {
        match frame(self.rest()) {
            SpoolFrame::Whole(payload) => Found::Whole(payload.len()),
            SpoolFrame::End => Found::End,
            SpoolFrame::Short => Found::Short,
            SpoolFrame::Torn { .. } => Found::Torn,
        }
    }

    /// Reads a chunk that begins with the next record; whether there is more than before.
    fn fill(&mut self) -> io::Result<bool> {
        let before = self.rest().len();
        self.base = self.offset();
        self.at = 0;
        let want = usize::try_from(self.end.saturating_sub(self.base)).unwrap_or(CHUNK).min(CHUNK);
        self.buffer.resize(want, 0);
        let mut have = 0;
        while have < want {
            let Some(rest) = self.buffer.get_mut(have..) else { break };
            match self.file.read_at(rest, self.base + have as u64) {
                Ok(0) => break,
                Ok(read) => have += read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        self.buffer.truncate(have);
        Ok(have > before)
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Found {
    Whole(usize),
    End,
    Short,
    Torn,
}
