//! Waiting for the directory to change.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::sync::Notify;

use super::{Activation, Look};

/// How the watcher behaves.
#[derive(Debug, Clone)]
pub struct Options {
    /// After this long without an event, what is missing may be believed to be removed.
    pub settle: Duration,
    /// How often to look where the kernel cannot notify.
    pub poll: Duration,
    /// Secret files watched from the start.
    pub secrets: BTreeSet<PathBuf>,
}

impl Default for Options {
    fn default() -> Self {
        Self { settle: Duration::from_millis(1500), poll: Duration::from_secs(2), secrets: BTreeSet::new() }
    }
}

/// Wishes of other tasks.
#[derive(Debug, Default)]
struct Shared {
    wishes: Mutex<Wishes>,
    wake: Notify,
}

#[derive(Debug, Default)]
struct Wishes {
    poked: bool,
    secrets: Option<BTreeSet<PathBuf>>,
    degraded: Option<String>,
}

/// Talks to a [`Watcher`] from any task or thread.
#[derive(Debug, Clone)]
pub struct Handle {
    shared: Arc<Shared>,
}

impl Handle {
    /// Look at everything again.
    pub fn poke(&self) {
        self.shared.wishes.lock().unwrap_or_else(PoisonError::into_inner).poked = true;
        self.shared.wake.notify_one();
    }

    /// Replaces the set of watched secret files (absolute paths). A file that is new in the set is announced
    /// once, because it may have changed between its reading and its watching.
    pub fn watch_secrets(&self, files: BTreeSet<PathBuf>) {
        self.shared.wishes.lock().unwrap_or_else(PoisonError::into_inner).secrets = Some(files);
        self.shared.wake.notify_one();
    }

    /// Why the watcher polls instead of being notified, if it does.
    pub fn degraded(&self) -> Option<String> {
        self.shared.wishes.lock().unwrap_or_else(PoisonError::into_inner).degraded.clone()
    }
}

/// Says when and where to look again.
#[derive(Debug)]
pub struct Watcher {
    shared: Arc<Shared>,
    poll: Duration,
    started: bool,
}

impl Watcher {
    /// Starts watching. The first activation is [`Look::Everything`], at once. Must be called within a tokio
    /// runtime.
    pub fn start(_root: &Path, options: Options) -> Self {
        Self { shared: Arc::default(), poll: options.poll, started: false }
    }

    pub fn handle(&self) -> Handle {
        Handle { shared: Arc::clone(&self.shared) }
    }

    /// The next reason to look. Cancel safe.
    pub async fn next(&mut self) -> Activation {
        if std::mem::replace(&mut self.started, true) {
            tokio::select! {
                () = self.shared.wake.notified() => {}
                () = tokio::time::sleep(self.poll) => {}
            }
        }
        Activation { look: Look::Everything, settled: true, unfinished: BTreeSet::new() }
    }
}
