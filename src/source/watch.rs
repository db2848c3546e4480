//! Waiting for the directory (or a secret) to change.
//!
//! Joins the kernel's events (`watches`), the wishes of other tasks ([`Handle`]) and the clock (`debounce`)
//! into one stream of activations. Where the kernel cannot notify, it polls and says so.
//!
//! Invariants: an activation carries no data; watches are armed before the look they ask for; nothing is
//! announced in the middle of a Git checkout.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use tokio::{
    runtime::{Handle as Runtime, RuntimeFlavor},
    sync::Notify,
};

use super::{Activation, debounce::Debounce, events::What, git, watches::Watches};

/// No checkout of a directory of manifests takes longer; a lock older than this was left behind.
const LOCK_AGE: Duration = Duration::from_secs(60);

/// The lock's removal is an event; this is for file systems that send none.
const LOCK_RECHECK: Duration = Duration::from_millis(50);

/// Events taken between two looks at the clock: some milliseconds' work.
const DRAIN: usize = 4096;

/// Events that are taken in without telling the runtime: well below a millisecond's work.
const FEW: usize = 64;

/// How the watcher behaves.
#[derive(Debug, Clone)]
pub struct WatchOptions {
    /// After this long without an event, what is missing may be believed to be removed.
    pub settle: Duration,
    /// How often to look where the kernel cannot notify; at least 5/4 of `settle`.
    pub poll: Duration,
    /// Secret files watched from the start.
    pub secrets: BTreeSet<PathBuf>,
    /// Whether to use the kernel's events at all. Without them it polls, and only sees by a file's age
    /// (one second) that it is not being written any more.
    pub notify: bool,
}

impl Default for WatchOptions {
    fn default() -> Self {
        Self {
            settle: Duration::from_millis(1500),
            poll: Duration::from_secs(2),
            secrets: BTreeSet::new(),
            notify: true,
        }
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

impl Shared {
    fn wishes(&self) -> MutexGuard<'_, Wishes> {
        self.wishes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Talks to a [`Watcher`] from any task or thread.
#[derive(Debug, Clone)]
pub struct Handle {
    shared: Arc<Shared>,
}

impl Handle {
    /// Look at everything again.
    pub fn poke(&self) {
        self.shared.wishes().poked = true;
        self.shared.wake.notify_one();
    }

    /// Replaces the set of watched secret files (absolute paths). A file that is new in the set is announced
    /// once, because it may have changed between its reading and its watching.
    pub fn watch_secrets(&self, files: BTreeSet<PathBuf>) {
        self.shared.wishes().secrets = Some(files);
        self.shared.wake.notify_one();
    }

    /// Why the watcher polls instead of being notified, if it does.
    pub fn degraded(&self) -> Option<String> {
        self.shared.wishes().degraded.clone()
    }
}

/// Says when and where to look again.
#[derive(Debug)]
pub struct Watcher {
    shared: Arc<Shared>,
    poll: Duration,
    watches: Watches,
    debounce: Debounce,
    /// Why it polls, and when next.
    polling: Option<(String, Instant)>,
    /// Since when a Git lock holds announcements back.
    locked: Option<Instant>,
}

impl Watcher {
    /// Starts watching. The first activation is [`super::LookScope::Everything`], at once. Must be called within a tokio
    /// runtime.
    pub fn start(root: &Path, options: WatchOptions) -> Self {
        let now = Instant::now();
        let shared = Arc::new(Shared::default());
        let mut debounce = Debounce::new(options.settle);
        debounce.everything_now(now);
        let mut watches = Watches::new(root, options.notify);
        watches.set_secrets(options.secrets, &mut debounce, now);
        // Polling faster than things settle would keep them from ever settling.
        let poll = options.poll.max(options.settle.saturating_mul(5) / 4);
        Self { shared, poll, watches, debounce, polling: None, locked: None }
    }

    pub fn handle(&self) -> Handle {
        Handle { shared: Arc::clone(&self.shared) }
    }

    /// The next reason to look. Cancel safe.
    pub async fn next(&mut self) -> Activation {
        // Whether the events of the moment at which something was due are known.
        let mut caught_up = false;
        loop {
            self.grant_wishes();
            let more = self.drain();
            let now = Instant::now();
            if self.polling.as_ref().is_some_and(|(_, at)| *at <= now) {
                self.poll_now(now);
            }
            let mut deadline = None;
            if self.debounce.is_due(now) {
                if self.is_locked(now) {
                    self.debounce.event(now);
                    deadline = Some(now + LOCK_RECHECK);
                } else if !caught_up && let Some(events) = &self.watches.events {
                    events.catch_up().await;
                    caught_up = true;
                    continue;
                } else {
                    // Only arming looks at the files' age, and without events nothing else shows that one is
                    // being written.
                    self.watches.stale |= self.polling.is_some();
                    self.arm_if_stale(now);
                    // Arming may have found files that are being written; they are in this activation then.
                    if let Some(activation) = self.debounce.take(now) {
                        return activation;
                    }
                }
            }
            if more {
                tokio::task::yield_now().await;
                continue;
            }
            caught_up = false;
            let deadline = deadline.or_else(|| self.debounce.deadline());
            let polling = self.polling.as_ref().map(|(_, at)| *at);
            self.wait(deadline.into_iter().chain(polling).min()).await;
        }
    }

    async fn wait(&self, until: Option<Instant>) {
        let events = async {
            match &self.watches.events {
                Some(events) => events.readable().await,
                None => std::future::pending().await,
            }
        };
        let time = async {
            match until {
                Some(at) => tokio::time::sleep_until(at.into()).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = self.shared.wake.notified() => {}
            () = events => {}
            () = time => {}
        }
    }

    fn grant_wishes(&mut self) {
        let now = Instant::now();
        let (poked, secrets) = {
            let mut wishes = self.shared.wishes();
            (std::mem::take(&mut wishes.poked), wishes.secrets.take())
        };
        if poked {
            // A wish to look again includes what could not be watched before.
            self.watches.stale = true;
            self.debounce.everything_now(now);
        }
        if let Some(secrets) = secrets {
            blocking(|| self.watches.set_secrets(secrets, &mut self.debounce, now));
            if self.polling.is_none() && self.watches.failure.is_some() {
                self.set_polling(self.watches.failure.clone(), now);
            }
        }
    }

    /// `true`: there may be more events.
    fn drain(&mut self) -> bool {
        let now = Instant::now();
        let Self { watches, debounce, .. } = self;
        let events = watches.take_events(DRAIN, debounce, now);
        let mut handle = || events.iter().for_each(|event| watches.event(event, debounce, now));
        // A new directory is walked, and who knows how large it is.
        if events.len() > FEW || events.iter().any(|event| event.what == What::Folder) {
            blocking(handle);
        } else {
            handle();
        }
        events.len() >= DRAIN
    }

    fn arm_if_stale(&mut self, now: Instant) {
        if self.watches.stale {
            blocking(|| self.watches.arm(&mut self.debounce, now));
            self.set_polling(self.watches.failure.clone(), now);
        }
    }

    fn poll_now(&mut self, now: Instant) {
        self.debounce.everything(now);
        self.watches.stale = true;
        if let Some((_, at)) = &mut self.polling {
            *at = now + self.poll;
        }
    }

    fn set_polling(&mut self, failure: Option<String>, now: Instant) {
        match (&failure, &self.polling) {
            (Some(reason), None) => tracing::warn!(reason, every = ?self.poll, "polling for changes"),
            (None, Some(_)) => tracing::info!("watching for changes again"),
            _ => {}
        }
        self.shared.wishes().degraded.clone_from(&failure);
        let next = self.polling.as_ref().map_or(now + self.poll, |(_, at)| *at);
        self.polling = failure.map(|reason| (reason, next));
    }

    /// Whether Git is in the middle of changing the work tree. A lock that is old, or that has held for too
    /// long, belongs to a process that died.
    fn is_locked(&mut self, now: Instant) -> bool {
        if !self.watches.lock.as_deref().is_some_and(|lock| git::is_recent(lock, LOCK_AGE)) {
            self.locked = None;
            return false;
        }
        let since = *self.locked.get_or_insert(now);
        now.duration_since(since) < LOCK_AGE
    }
}

/// Runs what walks directories; a runtime of several threads goes on with its other tasks meanwhile.
fn blocking<T>(work: impl FnOnce() -> T) -> T {
    match Runtime::try_current().map(|runtime| runtime.runtime_flavor()) {
        Ok(RuntimeFlavor::MultiThread) => tokio::task::block_in_place(work),
        _ => work(),
    }
}
