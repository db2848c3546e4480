//! The one way to wake the reconcile loop: look at everything again, for a reason.
//!
//! Invariant: a wake carries no data.

use std::{
    collections::BTreeSet,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
};

use tokio::sync::Notify;

use super::Handle;

/// The trigger of the periodic look.
pub const RESYNC: &str = "resync";

/// Wakes the loop from elsewhere.
#[derive(Clone)]
pub struct Wake {
    handle: Handle,
    /// Asks for a look at the Git repository.
    pull: Arc<Notify>,
    trigger: Arc<Mutex<&'static str>>,
}

impl Wake {
    pub fn new(handle: Handle, pull: Arc<Notify>) -> Self {
        Self { handle, pull, trigger: Arc::new(Mutex::new("start")) }
    }

    /// Looks at everything again, for the reason `trigger`.
    pub fn poke(&self, trigger: &'static str) {
        *self.trigger.lock().unwrap_or_else(PoisonError::into_inner) = trigger;
        // Pulling has a clock of its own.
        if trigger != RESYNC {
            self.pull.notify_one();
        }
        self.handle.poke();
    }

    /// Files of secrets, whose changes are a reason to look again, too.
    pub fn watch_secrets(&self, files: BTreeSet<PathBuf>) {
        self.handle.watch_secrets(files);
    }

    /// The reason of the last call, given once; a file event afterwards.
    pub fn take_trigger(&self) -> &'static str {
        std::mem::replace(&mut *self.trigger.lock().unwrap_or_else(PoisonError::into_inner), "file")
    }
}
