//! The manifest directory as an untrusted input: finding, reading and watching its files, and the Git
//! revision it stands at.
//!
//! Not its job: what the texts mean (`manifest`), and whether a missing file may delete anything (the
//! reconciler decides, from [`Scan::problem`] and [`Activation::settled`]).
//!
//! Invariants: nothing outside the directory is ever read through it, nothing in it can block, exhaust memory
//! or panic, and an event carries no data: it only says where to look again.

mod debounce;
mod directory;
mod events;
mod git;
mod names;
mod notice;
pub mod pull;
mod read;
mod trace;
mod wake;
mod walk;
mod watch;
mod watches;

use std::{collections::BTreeSet, fmt, path::PathBuf};

pub use self::{
    directory::Directory,
    git::{RevisionTracker, manifests_at, manifests_in, revision},
    notice::watch_file,
    wake::{RESYNC, Wake},
    watch::{Handle, WatchOptions, Watcher},
};
use catalog::model::ManifestPath;

/// What one manifest file turned out to hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FileState {
    Text(String),
    /// `code` is one stable word (`too-large`, `symlink-escape`, …); `reason` is a sentence with a hint.
    Unreadable {
        code: &'static str,
        reason: String,
    },
}

/// What differs from the scan before.
#[derive(Debug, Default)]
pub struct Scan {
    /// New files and files whose content (or reason for being unreadable) is another one, sorted by path.
    pub changed: Vec<(ManifestPath, FileState)>,
    /// Files that were there and are not. Never contains what a [`Problem`] hides from view.
    pub removed: Vec<ManifestPath>,
    /// Manifest files known after this scan, readable or not.
    pub total: usize,
    /// Why the view is incomplete. While it stands, nothing may be pruned.
    pub problem: Option<Problem>,
}

impl Scan {
    /// Neither a change, nor a removal, nor a problem.
    pub fn is_unchanged(&self) -> bool {
        self.changed.is_empty() && self.removed.is_empty() && self.problem.is_none()
    }
}

/// Why the directory, or a part of it, cannot be seen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// `directory-missing`, `directory-empty`, `not-a-directory`, `directory-unreadable`,
    /// `subdirectory-unreadable`, `directory-too-deep`, `too-many-files`, `too-many-entries` or `too-many-bytes`.
    pub code: &'static str,
    pub reason: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.reason)
    }
}

/// "Look again": where, and what else is known about the moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Activation {
    pub look: LookScope,
    /// Nothing has changed for the settle time: what is missing now may be believed to be removed.
    pub settled: bool,
    /// Files that a process has open and is writing right now, relative to the directory: give them to
    /// [`Directory::set_unfinished`] before scanning, so that half a file is never taken for a whole one.
    pub unfinished: BTreeSet<PathBuf>,
}

/// Where to look.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LookScope {
    /// The whole directory, and all secrets.
    Everything,
    /// Files or subtrees relative to the directory, and secret files (as they were given to
    /// [`Handle::watch_secrets`]). Both may be empty in a settled activation.
    Paths { manifests: BTreeSet<PathBuf>, secrets: BTreeSet<PathBuf> },
}
