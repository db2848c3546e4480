//! The kernel's file events, read without blocking and without a thread.
//!
//! Uses the system calls directly because the mask matters: a watcher that also hears of files being opened
//! fills its queue with its owner's own reading. The kernel's queue is the only buffer: it is bounded, and its
//! overflow is an event.

use std::{
    ffi::{OsStr, OsString},
    io,
    mem::MaybeUninit,
    os::{fd::OwnedFd, unix::ffi::OsStrExt},
    path::Path,
};

use rustix::{
    fs::inotify::{self, CreateFlags, Reader},
    io::Errno,
};
use tokio::io::unix::AsyncFd;

pub use rustix::fs::inotify::{ReadFlags, WatchFlags};

/// One event; `name` is empty where it is about the watched directory itself.
#[derive(Debug)]
pub struct Event {
    pub wd: i32,
    pub flags: ReadFlags,
    pub name: OsString,
}

/// An inotify instance within a tokio runtime.
#[derive(Debug)]
pub struct Inotify {
    fd: AsyncFd<OwnedFd>,
}

impl Inotify {
    /// Fails with EMFILE where `fs.inotify.max_user_instances` is exhausted.
    pub fn new() -> io::Result<Self> {
        let fd = inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC)?;
        #[allow(
            deprecated,
            reason = "its objection is to types that may change or close their descriptor; an OwnedFd keeps it"
        )]
        Ok(Self { fd: AsyncFd::new(fd)? })
    }

    /// Watches a directory, adding to the mask if it is watched already. Fails with ENOSPC where
    /// `fs.inotify.max_user_watches` is exhausted.
    pub fn add(&self, path: &Path, mask: WatchFlags) -> Result<i32, Errno> {
        inotify::add_watch(self.fd.get_ref(), path, mask | WatchFlags::ONLYDIR | WatchFlags::MASK_ADD)
    }

    pub fn remove(&self, wd: i32) {
        // It fails only when the directory, and with it the watch, is gone already.
        let _ = inotify::remove_watch(self.fd.get_ref(), wd);
    }

    /// Takes at most about `limit` waiting events. `true`: there may be more.
    pub fn drain(&self, limit: usize, mut take: impl FnMut(Event)) -> bool {
        // Room for some hundred events at a time; one event needs at most 16 + 256 bytes.
        let mut buffer = [MaybeUninit::uninit(); 16 * 1024];
        let mut reader = Reader::new(self.fd.get_ref(), &mut buffer);
        let mut taken = 0;
        loop {
            if taken >= limit && reader.is_buffer_empty() {
                return true;
            }
            match reader.next() {
                Ok(event) => {
                    taken += 1;
                    let name =
                        event.file_name().map_or(OsStr::new(""), |name| OsStr::from_bytes(name.to_bytes()));
                    take(Event { wd: event.wd(), flags: event.events(), name: name.to_owned() });
                }
                Err(Errno::INTR) => {}
                // Nothing waits (or the descriptor is unusable, which the periodic resync makes up for).
                Err(_) => return false,
            }
        }
    }

    /// Until events wait. Cancel safe.
    pub async fn readable(&self) {
        match self.fd.readable().await {
            // Cleared before reading: an event in between only wakes once too often.
            Ok(mut guard) => guard.clear_ready(),
            Err(_) => std::future::pending().await,
        }
    }
}
