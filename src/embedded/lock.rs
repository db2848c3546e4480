//! File locks that the kernel releases when their process ends, however it ends.

use std::{
    fs,
    os::{
        fd::{AsRawFd as _, BorrowedFd},
        unix::process::CommandExt as _,
    },
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::{Duration, Instant},
};

use rustix::fs::{FlockOperation, flock};

use super::{EmbeddedError, place::ClusterPlace};

/// How long to wait for another process that starts or stops the same server: longer than it may take.
const PATIENCE: Duration = Duration::from_secs(150);
/// Pause between two attempts.
const PAUSE: Duration = Duration::from_millis(10);

/// A held lock; dropping it releases it.
#[derive(Debug)]
pub struct Lock {
    file: fs::File,
    path: PathBuf,
}

impl Lock {
    /// Waits for an exclusive lock.
    pub fn exclusive(place: &ClusterPlace, path: &Path) -> Result<Self, EmbeddedError> {
        let lock = Self::open(place, path)?;
        lock.wait(FlockOperation::NonBlockingLockExclusive)?;
        Ok(lock)
    }

    /// An exclusive lock, if no other process holds it.
    pub fn try_exclusive(place: &ClusterPlace, path: &Path) -> Result<Option<Self>, EmbeddedError> {
        let lock = Self::open(place, path)?;
        match flock(&lock.file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Some(lock)),
            Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
            Err(errno) => Err(EmbeddedError::io("lock", path)(errno.into())),
        }
    }

    /// Lets a child process and its children hold the lock, for as long as one of them lives.
    pub fn inherit(&self, command: &mut Command) {
        let descriptor = self.file.as_raw_fd();
        // SAFETY: between fork and exec only fcntl is called, which is async-signal-safe, on a descriptor
        // that is open: the lock outlives the spawning of the command, or the call fails.
        unsafe {
            command.pre_exec(move || {
                let descriptor = BorrowedFd::borrow_raw(descriptor);
                rustix::io::fcntl_setfd(descriptor, rustix::io::FdFlags::empty())?;
                Ok(())
            });
        }
    }

    /// Waits for a shared lock.
    pub fn shared(place: &ClusterPlace, path: &Path) -> Result<Self, EmbeddedError> {
        let lock = Self::open(place, path)?;
        lock.wait(FlockOperation::NonBlockingLockShared)?;
        Ok(lock)
    }

    /// Makes a shared lock exclusive if no other process holds it. If one does, this lock may be lost: the
    /// kernel gives no promise.
    pub fn try_upgrade(&self) -> bool {
        flock(&self.file, FlockOperation::NonBlockingLockExclusive).is_ok()
    }

    /// Makes an exclusive lock shared, or takes a lost one back.
    pub fn share(&self) -> Result<(), EmbeddedError> {
        self.wait(FlockOperation::NonBlockingLockShared)
    }

    fn open(place: &ClusterPlace, path: &Path) -> Result<Self, EmbeddedError> {
        let file = place.open_private(path).map_err(EmbeddedError::io("open the lock file", path))?;
        Ok(Self { file, path: path.to_owned() })
    }

    fn wait(&self, operation: FlockOperation) -> Result<(), EmbeddedError> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            match flock(&self.file, operation) {
                Ok(()) => return Ok(()),
                Err(rustix::io::Errno::WOULDBLOCK | rustix::io::Errno::INTR) if Instant::now() < deadline => {
                    thread::sleep(PAUSE);
                }
                Err(rustix::io::Errno::WOULDBLOCK) => {
                    return Err(EmbeddedError::Busy { path: self.path.clone(), seconds: PATIENCE.as_secs() });
                }
                Err(errno) => return Err(EmbeddedError::io("lock", &self.path)(errno.into())),
            }
        }
    }
}
