//! The life of the process: supervised tasks, signals, and notifications to systemd.
//!
//! Job: own every task; turn a task that ends early into a process that ends with a failure; stop all of
//! them in order when asked. Not its job: what the tasks do. Invariant: outside a shutdown no task ends
//! unnoticed, and this is the only module that calls `tokio::spawn`.

use std::{
    any::Any,
    borrow::Cow,
    collections::BTreeMap,
    fmt::Display,
    future::Future,
    io,
    panic::{AssertUnwindSafe, PanicHookInfo},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use futures_util::FutureExt as _;
use sd_notify::NotifyState;
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::oneshot,
    time::{Instant, MissedTickBehavior, interval, timeout},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{error, info, warn};

/// How long tasks may take to stop. The whole stop is promised within 5 s; the rest is for what stops
/// after the tasks, such as an embedded database.
pub const GRACE: Duration = Duration::from_secs(4);

/// How long a reload may take before systemd is notified that it is over; its work then goes on unobserved.
const RELOAD_LIMIT: Duration = Duration::from_secs(30);

/// A task's name: fixed words, or made from an identifier.
pub type TaskName = Cow<'static, str>;

/// Why the process has to end with a failure.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TaskFailure {
    #[error("task {0} ended although nothing asked it to")]
    Ended(TaskName),
    #[error("task {name} failed: {message}")]
    Failed { name: TaskName, message: String },
    #[error("task {0} panicked (a bug; the log line before this one says where)")]
    Panicked(TaskName),
    #[error("still running {} s after the stop: {}", GRACE.as_secs(), .0.join(", "))]
    Stuck(Vec<String>),
}

/// What a task may return: nothing, or a reason for its end.
pub trait TaskOutcome {
    /// The failure that this is, as a sentence; `None` for an orderly end.
    fn failure(self) -> Option<String>;
}

impl TaskOutcome for () {
    fn failure(self) -> Option<String> {
        None
    }
}

impl<E: Display> TaskOutcome for Result<(), E> {
    fn failure(self) -> Option<String> {
        // The alternate form prints the whole chain of an anyhow error.
        self.err().map(|error| format!("{error:#}"))
    }
}

/// Spawns tasks and ends them together. Clones share one group of tasks.
#[derive(Debug, Clone, Default)]
pub struct Supervisor {
    tracker: TaskTracker,
    token: CancellationToken,
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    next_id: u64,
    running: BTreeMap<u64, TaskName>,
    /// The first one; what fails after it is a consequence, or is logged.
    failure: Option<TaskFailure>,
}

/// Takes a task's name off the list however the task ends, also when its runtime drops it.
struct Running {
    supervisor: Supervisor,
    id: u64,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.supervisor.with(|state| state.running.remove(&self.id));
    }
}

impl Supervisor {
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Cancelled when the process is to stop; every task watches it.
    #[must_use]
    pub fn token(&self) -> CancellationToken {
        self.token.clone()
    }

    /// Starts a task that lives as long as the process. If it ends before a shutdown, in whatever way, the
    /// process shuts down and [`Supervisor::wait`] returns the failure.
    pub fn spawn<F>(&self, name: impl Into<TaskName>, future: F)
    where
        F: Future + Send + 'static,
        F::Output: TaskOutcome,
    {
        self.start(name.into(), future, true);
    }

    /// Starts a task that may end by itself, such as one check or one connection. Only a panic or an error
    /// ends the process.
    pub fn spawn_brief<F>(&self, name: impl Into<TaskName>, future: F)
    where
        F: Future + Send + 'static,
        F::Output: TaskOutcome,
    {
        self.start(name.into(), future, false);
    }

    #[expect(clippy::disallowed_methods, reason = "the one place where tasks are spawned")]
    fn start<F>(&self, name: TaskName, future: F, lasting: bool)
    where
        F: Future + Send + 'static,
        F::Output: TaskOutcome,
    {
        let id = self.with(|state| {
            state.next_id += 1;
            state.running.insert(state.next_id, name.clone());
            state.next_id
        });
        let running = Running { supervisor: self.clone(), id };
        let supervised = async move {
            // Unwind safety: nothing of the future is looked at after a panic, and the process ends.
            let end = AssertUnwindSafe(future).catch_unwind().await;
            let failure = match end.map(TaskOutcome::failure) {
                Err(_) => Some(TaskFailure::Panicked(name.clone())),
                Ok(Some(message)) => Some(TaskFailure::Failed { name: name.clone(), message }),
                Ok(None) if lasting => Some(TaskFailure::Ended(name.clone())),
                Ok(None) => None,
            };
            match failure {
                Some(failure) => running.supervisor.note(failure),
                None => tracing::trace!(task = %name, "task ended"),
            }
        };
        tokio::spawn(self.tracker.track_future(supervised));
    }

    fn note(&self, failure: TaskFailure) {
        if self.token.is_cancelled() {
            // An orderly end during the shutdown is what the task was asked for.
            if !matches!(failure, TaskFailure::Ended(_)) {
                warn!(error = %failure, "task failed while stopping");
            }
            return;
        }
        error!(error = %failure, "stopping: the process cannot go on without this task");
        self.with(|state| state.failure.get_or_insert(failure).clone());
        self.token.cancel();
    }

    fn with<T>(&self, act: impl FnOnce(&mut State) -> T) -> T {
        // Nothing panics under this lock; and if it did, names of tasks would not be worth dying for.
        act(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Begins the shutdown.
    pub fn shutdown(&self) {
        self.token.cancel();
    }

    /// Waits for the shutdown to begin and for all tasks to end, at most [`GRACE`] after its beginning.
    /// What still runs then ends with the runtime: drop it by `shutdown_background`, or exit.
    ///
    /// # Errors
    /// The first task that ended before the shutdown, else the names of those that did not end.
    pub async fn wait(&self) -> Result<(), TaskFailure> {
        self.token.cancelled().await;
        self.tracker.close();
        let all_ended = timeout(GRACE, self.tracker.wait()).await.is_ok();
        let (failure, running) = self.with(|state| {
            let names: Vec<String> = state.running.values().map(ToString::to_string).collect();
            (state.failure.take(), names)
        });
        match failure {
            Some(failure) => Err(failure),
            None if all_ended => Ok(()),
            None => Err(TaskFailure::Stuck(running)),
        }
    }

    /// Listens for signals from now on: the first SIGTERM or SIGINT begins the shutdown, the second one
    /// ends the process at once. SIGHUP is kept for [`Supervisor::serve_reloads`]. Call it before the
    /// start-up does anything that must be undone.
    ///
    /// # Errors
    /// When the handlers cannot be installed.
    pub fn install_signals(&self) -> io::Result<Hangups> {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let hangups = Hangups(signal(SignalKind::hangup())?);
        let token = self.token();
        self.spawn_brief("signals", async move {
            let name = next_of(&mut terminate, &mut interrupt).await;
            info!(signal = name, "stopping; a second signal ends the process at once");
            token.cancel();
            // This wait itself must not hold up the orderly end, so it is no task of the supervisor.
            abandon(async move {
                let name = next_of(&mut terminate, &mut interrupt).await;
                warn!(signal = name, "second signal: ending at once");
                std::process::exit(1);
            });
        });
        Ok(hangups)
    }

    /// Calls `reload` for every SIGHUP, with RELOADING and READY around it. Signals that arrive meanwhile
    /// become one more call.
    pub fn serve_reloads<F, R>(&self, mut hangups: Hangups, systemd: Systemd, mut reload: F)
    where
        F: FnMut() -> R + Send + 'static,
        R: Future<Output = ()> + Send,
    {
        let token = self.token();
        self.spawn("reloads", async move {
            while let Some(Some(())) = token.run_until_cancelled(hangups.0.recv()).await {
                info!(signal = "SIGHUP", "reloading");
                systemd.reloading();
                let done = token.run_until_cancelled(timeout(RELOAD_LIMIT, reload())).await;
                match done {
                    Some(Ok(())) => {}
                    Some(Err(_)) => warn!(limit_ms = RELOAD_LIMIT.as_millis(), "the reload takes long"),
                    None => break,
                }
                systemd.ready();
            }
        });
    }

    /// Notifies systemd's watchdog that the process is alive, at half its period, while `alive` holds. Does
    /// nothing without a watchdog.
    pub fn serve_watchdog(&self, systemd: Systemd, alive: impl Fn() -> bool + Send + 'static) {
        let Some(period) = sd_notify::watchdog_enabled().filter(|period| !period.is_zero()) else { return };
        let token = self.token();
        self.spawn("watchdog", async move {
            let mut ticks = interval(period / 2);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            let mut was_alive = true;
            while token.run_until_cancelled(ticks.tick()).await.is_some() {
                let is_alive = alive();
                if is_alive {
                    systemd.send(&[NotifyState::Watchdog]);
                }
                if was_alive && !is_alive {
                    error!("the main loop no longer moves; systemd's watchdog is not served");
                }
                was_alive = is_alive;
            }
        });
    }
}

#[expect(clippy::disallowed_methods, reason = "ends only with the process, which must not wait for it")]
fn abandon(future: impl Future<Output = ()> + Send + 'static) {
    tokio::spawn(future);
}

/// Runs something on a thread with a reactor of its own. Thousands of short connections wake their tasks all the time;
/// here that wakes no other thread, which costs more than the connections do.
///
/// # Errors
/// The thread cannot be started, or `work` panicked.
pub async fn on_a_thread(name: &str, work: impl Future<Output = ()> + Send + 'static) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (done, ended) = oneshot::channel();
    std::thread::Builder::new().name(name.to_owned()).spawn(move || {
        // As a task of its own: the future of `block_on` itself goes through the kernel each time it is woken.
        let result = runtime.block_on(runtime.spawn(work));
        // A lookup of a name may hang for long; nothing waits for it.
        runtime.shutdown_background();
        // The receiver may have gone.
        let _ = done.send(result);
    })?;
    Ok(ended.await??)
}

async fn next_of(terminate: &mut Signal, interrupt: &mut Signal) -> &'static str {
    tokio::select! {
        _ = terminate.recv() => "SIGTERM",
        _ = interrupt.recv() => "SIGINT",
    }
}

/// SIGHUPs that have arrived since [`Supervisor::install_signals`].
#[derive(Debug)]
pub struct Hangups(Signal);

/// Notifications to systemd; none, where it did not start this process.
///
/// A child process must not inherit `NOTIFY_SOCKET`: PostgreSQL, for one, would report for us.
#[derive(Debug, Clone, Copy, Default)]
pub struct Systemd;

impl Systemd {
    /// Start-up, or a reload, is over.
    pub fn ready(self) {
        self.send(&[NotifyState::Ready]);
    }

    /// A reload begins. The time stamp is what newer versions of systemd ask for.
    pub fn reloading(self) {
        match NotifyState::monotonic_usec_now() {
            Ok(now) => self.send(&[NotifyState::Reloading, now]),
            Err(_) => self.send(&[NotifyState::Reloading]),
        }
    }

    /// The shutdown begins.
    pub fn stopping(self) {
        self.send(&[NotifyState::Stopping]);
    }

    /// One line for `systemctl status`.
    pub fn status(self, line: &str) {
        // A line break would begin another assignment.
        let line = line.replace(['\n', '\r', '\0'], " ");
        self.send(&[NotifyState::Status(&line)]);
    }

    fn send(self, states: &[NotifyState<'_>]) {
        if let Err(error) = sd_notify::notify(states) {
            warn!(%error, "systemd could not be notified");
        }
    }
}

/// When the main loop last moved; shared between the loop and those who watch it.
#[derive(Debug, Clone)]
pub struct Heartbeat {
    start: Instant,
    /// Milliseconds since `start`.
    last: Arc<AtomicU64>,
}

impl Default for Heartbeat {
    fn default() -> Self {
        Self { start: Instant::now(), last: Arc::default() }
    }
}

impl Heartbeat {
    /// Begins with a beat.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    pub fn beat(&self) {
        self.last.store(self.millis(), Ordering::Relaxed);
    }

    /// Time since the last beat.
    #[must_use]
    pub fn age(&self) -> Duration {
        Duration::from_millis(self.millis().saturating_sub(self.last.load(Ordering::Relaxed)))
    }

    fn millis(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}

/// Asks for as many open files as the system grants: every check under way is a socket. The usual soft limit of 1024
/// is below what the caps on checks allow.
pub fn raise_file_limit() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let raised = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(_, hard)| setrlimit(Resource::RLIMIT_NOFILE, hard.min(MAX_FILES), hard));
    if let Err(error) = raised {
        tracing::debug!(%error, "the limit of open files stays as it is");
    }
}

/// Far above what the caps on checks can use; some systems grant a billion, which programs that close them all choke on.
const MAX_FILES: u64 = 65_536;

/// Logs a panic as one line, in the form of all other lines.
///
/// A message that was put together at run time may hold a secret and is left out; a literal cannot.
pub fn install_panic_hook() {
    std::panic::set_hook(Box::new(log_panic));
}

fn log_panic(info: &PanicHookInfo<'_>) {
    let location = info.location().map(ToString::to_string).unwrap_or_default();
    let thread = std::thread::current().name().unwrap_or("unnamed").to_owned();
    error!(%location, thread, message_text = literal(info.payload()), "panic: a bug in providerd");
}

fn literal(payload: &(dyn Any + Send)) -> &'static str {
    payload.downcast_ref::<&'static str>().copied().unwrap_or("(left out: it may hold a secret)")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::pending;

    async fn panics() {
        panic!("on purpose");
    }

    /// Runs `set_up` on a supervisor and returns what the process would end with.
    async fn check(set_up: impl FnOnce(&Supervisor), expected: Result<(), TaskFailure>) {
        let supervisor = Supervisor::new();
        set_up(&supervisor);
        assert_eq!(supervisor.wait().await, expected);
    }

    #[tokio::test(start_paused = true)]
    async fn an_early_end_ends_the_process() {
        let name = || TaskName::from("t");
        check(|s| s.spawn("t", async {}), Err(TaskFailure::Ended(name()))).await;
        check(
            |s| s.spawn("t", async { Err::<(), _>("no luck") }),
            Err(TaskFailure::Failed { name: name(), message: "no luck".into() }),
        )
        .await;
        check(|s| s.spawn("t", panics()), Err(TaskFailure::Panicked(name()))).await;
        check(|s| s.spawn_brief("t", panics()), Err(TaskFailure::Panicked(name()))).await;
    }

    #[tokio::test(start_paused = true)]
    async fn an_asked_end_is_fine() {
        check(
            |s| {
                let token = s.token();
                s.spawn("t", async move { token.cancelled().await });
                s.spawn_brief("b", async {});
                s.shutdown();
            },
            Ok(()),
        )
        .await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_failure_while_stopping_does_not_count() {
        check(
            |s| {
                let token = s.token();
                s.spawn("t", async move {
                    token.cancelled().await;
                    Err::<(), _>("connection closed")
                });
                s.shutdown();
            },
            Ok(()),
        )
        .await;
    }

    #[tokio::test(start_paused = true)]
    async fn who_does_not_stop_is_named() {
        let begin = Instant::now();
        check(
            |s| {
                s.spawn("deaf", pending::<()>());
                s.spawn("mute", pending::<()>());
                s.shutdown();
            },
            Err(TaskFailure::Stuck(vec!["deaf".into(), "mute".into()])),
        )
        .await;
        assert_eq!(begin.elapsed(), GRACE);
    }

    #[tokio::test(start_paused = true)]
    async fn the_first_failure_is_the_one_reported() {
        check(
            |s| {
                let token = s.token();
                s.spawn("second", async move {
                    token.cancelled().await;
                    Err::<(), _>("because of the first")
                });
                s.spawn("first", async { Err::<(), _>("cause") });
            },
            Err(TaskFailure::Failed { name: "first".into(), message: "cause".into() }),
        )
        .await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_heart_ages_between_beats() {
        let heart = Heartbeat::new();
        tokio::time::advance(Duration::from_secs(3)).await;
        assert_eq!(heart.age(), Duration::from_secs(3));
        heart.beat();
        assert_eq!(heart.age(), Duration::ZERO);
    }

    #[test]
    fn only_literals_of_a_panic_are_shown() {
        assert_eq!(literal(&"a literal"), "a literal");
        assert!(!literal(&String::from("sk-not-a-real-key")).contains("sk-"));
    }
}
