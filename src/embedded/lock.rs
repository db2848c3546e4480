//! File locks that the kernel releases when their process ends, however it ends.

use std::{
    fs,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use rustix::fs::{FlockOperation, flock};

use super::{EmbeddedError, place::Place};

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
    pub fn exclusive(place: &Place, path: &Path) -> Result<Self, EmbeddedError> {
        let lock = Self::open(place, path)?;
        lock.wait(FlockOperation::NonBlockingLockExclusive)?;
        Ok(lock)
    }

    /// Waits for a shared lock.
    pub fn shared(place: &Place, path: &Path) -> Result<Self, EmbeddedError> {
        let lock = Self::open(place, path)?;
        lock.wait(FlockOperation::NonBlockingLockShared)?;
        Ok(lock)
    }

    /// Makes a shared lock exclusive if nobody else holds it. If somebody does, this lock may be lost: the
    /// kernel gives no promise.
    pub fn try_upgrade(&self) -> bool {
        flock(&self.file, FlockOperation::NonBlockingLockExclusive).is_ok()
    }

    /// Makes an exclusive lock shared, or takes a lost one back.
    pub fn share(&self) -> Result<(), EmbeddedError> {
        self.wait(FlockOperation::NonBlockingLockShared)
    }

    fn open(place: &Place, path: &Path) -> Result<Self, EmbeddedError> {
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
