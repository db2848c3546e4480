//! What `notify` hears, collected for a consumer that takes it when it has time.
//!
//! Not its job: what an event means (`watches`). Invariants: no thread of `notify` ever waits for a consumer;
//! what waits is bounded, and whatever is lost (here or in the kernel) is known to be lost; being opened or read
//! is no event, so that our own reading raises none; after [`FileEvents::catch_up`], what happened before it waits.

use std::{
    collections::{HashMap, VecDeque},
    mem::ManuallyDrop,
    os::fd::{AsRawFd, OwnedFd},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use notify::{
    Config, EventKindMask, RecommendedWatcher, RecursiveMode, WatchPathConfig, Watcher,
    event::{AccessKind, CreateKind, EventKind, ModifyKind, RemoveKind, RenameMode},
};
use rustix::fs::{MemfdFlags, Timespec, Timestamps, UTIME_NOW};
use tokio::sync::Notify;

use super::read::DirId;

/// As many as the kernel itself queues by default; more cost more to list than to look at everything.
const MAX_WAITING: usize = 16_384;

/// Some 1,000 times as long as a thread that is free takes to read its events; then it is being flooded.
const CATCH_UP: Duration = Duration::from_millis(50);

const NOW: Timestamps = Timestamps {
    last_access: Timespec { tv_sec: 0, tv_nsec: UTIME_NOW },
    last_modification: Timespec { tv_sec: 0, tv_nsec: UTIME_NOW },
};

/// What happened to a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum What {
    /// A new entry that is no directory.
    Created,
    /// A new directory.
    Folder,
    /// Written to by a process that still has it open.
    Written,
    /// Closed by a process that could write.
    Closed,
    /// Other permissions, owner, times or number of links.
    Touched,
    /// Renamed to this.
    Came,
    /// Removed, or renamed to something else.
    Went,
    /// The file system with it is gone.
    Unmounted,
}

/// One event; the path is absolute, and of the watched directory itself or of an entry in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileEvent {
    pub what: What,
    pub path: PathBuf,
}

/// How much of a directory matters. Each level is a watcher of its own, because `notify` asks the kernel for the
/// same events in all directories of one: the directories above the manifests are busy with other people's files.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum WatchDepth {
    /// That it stays where it is.
    Place,
    /// Also which names it holds.
    Names,
    /// Also what is behind them.
    Contents,
}

impl WatchDepth {
    const ALL: [Self; 3] = [Self::Place, Self::Names, Self::Contents];

    fn mask(self) -> EventKindMask {
        let names = EventKindMask::CREATE | EventKindMask::REMOVE | EventKindMask::MODIFY_NAME;
        match self {
            Self::Place => EventKindMask::MODIFY_NAME,
            Self::Names => names,
            Self::Contents => {
                names | EventKindMask::MODIFY_DATA | EventKindMask::MODIFY_META | EventKindMask::ACCESS_CLOSE
            }
        }
    }
}

/// What came of the wish to watch a directory.
#[derive(Debug)]
pub enum WatchStart {
    /// It was watched like that before.
    Already,
    New,
    /// Another directory was watched under this path until now.
    Replaced,
    Failed(notify::Error),
}

#[derive(Debug, Default)]
struct Queue {
    waiting: Mutex<Waiting>,
    wake: Notify,
    /// Everything before a mark has been taken in.
    marked: Notify,
}

#[derive(Debug, Default)]
struct Waiting {
    events: VecDeque<FileEvent>,
    lost: bool,
    /// The path whose events are marks.
    marker: PathBuf,
}

impl Queue {
    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take_in(&self, event: notify::Result<notify::Event>) {
        match event {
            Ok(event) if event.need_rescan() => self.lose(),
            Ok(event) => {
                if let Some(event) = translate(event) {
                    self.push(event);
                }
            }
            Err(error) => {
                tracing::debug!(%error, "file events cannot be read");
                self.lose();
            }
        }
    }

    fn push(&self, event: FileEvent) {
        let mut waiting = self.waiting();
        if event.path == waiting.marker {
            return self.marked.notify_waiters();
        }
        // A writer of many small pieces says the same again and again.
        if waiting.lost || waiting.events.back() == Some(&event) {
            return;
        }
        if waiting.events.len() >= MAX_WAITING {
            drop(waiting);
            return self.lose();
        }
        waiting.events.push_back(event);
        drop(waiting);
        self.wake.notify_one();
    }

    fn lose(&self) {
        let mut waiting = self.waiting();
        waiting.lost = true;
        waiting.events = VecDeque::new();
        drop(waiting);
        self.wake.notify_one();
        // The mark may be among what is lost.
        self.marked.notify_waiters();
    }
}

fn translate(event: notify::Event) -> Option<FileEvent> {
    let what = match event.kind {
        EventKind::Create(CreateKind::Folder) => What::Folder,
        EventKind::Create(_) => What::Created,
        EventKind::Remove(RemoveKind::Other) => What::Unmounted,
        EventKind::Remove(_) => What::Went,
        EventKind::Modify(ModifyKind::Data(_)) => What::Written,
        // Its two halves come as well.
        EventKind::Modify(ModifyKind::Name(RenameMode::Both)) => return None,
        EventKind::Modify(ModifyKind::Name(RenameMode::To)) => What::Came,
        EventKind::Modify(ModifyKind::Name(_)) => What::Went,
        EventKind::Modify(_) => What::Touched,
        EventKind::Access(AccessKind::Close(_)) => What::Closed,
        EventKind::Access(_) | EventKind::Any | EventKind::Other => return None,
    };
    event.paths.into_iter().next().map(|path| FileEvent { what, path })
}

/// One of `notify`'s watchers.
#[derive(Debug)]
struct Lane(Option<RecommendedWatcher>);

impl Lane {
    fn new(depth: WatchDepth, queue: &Arc<Queue>) -> notify::Result<Self> {
        let queue = Arc::clone(queue);
        let config = Config::default().with_event_kinds(depth.mask()).with_follow_symlinks(false);
        let watcher = RecommendedWatcher::new(move |event| queue.take_in(event), config)?;
        let lane = Self(Some(watcher));
        // Whether its thread could be started is not said before it is asked something.
        if let Some(watcher) = &lane.0 {
            watcher.watched_paths()?;
        }
        Ok(lane)
    }

    fn watch(&mut self, path: &Path, links: bool) -> notify::Result<()> {
        let config = WatchPathConfig::new(RecursiveMode::NonRecursive).with_dereference_symlinks(links);
        self.0
            .as_mut()
            .map_or_else(|| Err(notify::Error::watch_not_found()), |watcher| watcher.watch_with(path, config))
    }

    fn unwatch(&mut self, path: &Path) {
        if let Some(watcher) = &mut self.0 {
            // It fails only when the directory, and with it the watch, is gone already.
            let _ = watcher.unwatch(path);
        }
    }
}

impl Drop for Lane {
    fn drop(&mut self) {
        // The watcher's own end panics where its thread has ended before.
        if let Some(watcher) = self.0.take()
            && watcher.watched_paths().is_err()
        {
            let _ = ManuallyDrop::new(watcher);
        }
    }
}

/// Everything that is watched, and what has happened there.
#[derive(Debug)]
pub struct FileEvents {
    queue: Arc<Queue>,
    /// In order of [`WatchDepth::ALL`].
    lanes: [Lane; 3],
    held: HashMap<PathBuf, (WatchDepth, DirId)>,
    /// Absent where `/proc` is: then nothing waits for the thread that reads the events.
    marker: Option<OwnedFd>,
}

impl FileEvents {
    /// Fails where `fs.inotify.max_user_instances` (or the limit of descriptors or threads) is exhausted.
    pub fn new() -> notify::Result<Self> {
        let queue = Arc::new(Queue::default());
        let [place, names, contents] = WatchDepth::ALL.map(|depth| Lane::new(depth, &queue));
        let mut contents = contents?;
        let marker = rustix::fs::memfd_create("file-events", MemfdFlags::CLOEXEC).ok().filter(|file| {
            let path = PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()));
            queue.waiting().marker.clone_from(&path);
            contents.watch(&path, true).is_ok()
        });
        Ok(Self { queue, lanes: [place?, names?, contents], held: HashMap::new(), marker })
    }

    /// Waits until everything that has happened to contents by now waits here, or is lost. Cancel safe.
    pub async fn catch_up(&self) {
        let Some(marker) = &self.marker else { return };
        let mut seen = std::pin::pin!(self.queue.marked.notified());
        seen.as_mut().enable();
        // The kernel keeps the order: this event comes after all those. Writing would raise none, because newer
        // kernels exempt files without a name from it; but not their times.
        if rustix::fs::futimens(marker, &NOW).is_ok() {
            let _ = tokio::time::timeout(CATCH_UP, seen).await;
        }
    }

    /// Watches a directory (by an absolute path without symlinks, which led to the directory `id`). Blocks for
    /// some microseconds.
    pub fn hold(&mut self, path: &Path, depth: WatchDepth, id: DirId) -> WatchStart {
        let before = self.held.get(path).copied();
        if before == Some((depth, id)) {
            return WatchStart::Already;
        }
        let other = before.is_some_and(|(_, old)| old != id);
        if other {
            self.release(path);
        }
        if let Err(error) = self.lane(depth).watch(path, false) {
            return WatchStart::Failed(error);
        }
        // Only now, so that nothing is missed in between.
        self.release(path);
        self.held.insert(path.to_owned(), (depth, id));
        match before {
            _ if other => WatchStart::Replaced,
            Some((old, _)) if old > depth => WatchStart::Already,
            _ => WatchStart::New,
        }
    }

    /// Watches a directory no more, whether or not it still is what it was.
    pub fn release(&mut self, path: &Path) {
        if let Some((depth, _)) = self.held.remove(path) {
            self.lane(depth).unwatch(path);
        }
    }

    fn lane(&mut self, depth: WatchDepth) -> &mut Lane {
        let [place, names, contents] = &mut self.lanes;
        match depth {
            WatchDepth::Place => place,
            WatchDepth::Names => names,
            WatchDepth::Contents => contents,
        }
    }

    /// Watches none of the directories of this depth any more.
    pub fn release_all(&mut self, depth: WatchDepth) {
        let paths: Vec<PathBuf> =
            self.held.iter().filter(|(_, (at, _))| *at == depth).map(|(path, _)| path.clone()).collect();
        paths.iter().for_each(|path| self.release(path));
    }

    pub fn is_held(&self, path: &Path) -> bool {
        self.held.contains_key(path)
    }

    /// At most `limit` waiting events, oldest first. `None`: some are lost, and what is held may be held no more;
    /// only new [`FileEvents`] can be relied on.
    pub fn take(&self, limit: usize) -> Option<Vec<FileEvent>> {
        let mut waiting = self.queue.waiting();
        if waiting.lost {
            return None;
        }
        let count = waiting.events.len().min(limit);
        Some(waiting.events.drain(..count).collect())
    }

    /// Until events wait (or seem to). Cancel safe.
    pub async fn readable(&self) {
        self.queue.wake.notified().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(number: usize) -> FileEvent {
        FileEvent { what: What::Closed, path: PathBuf::from(number.to_string()) }
    }

    #[test]
    fn what_waits_is_bounded_and_what_is_lost_is_known() {
        let queue = Queue::default();
        for _ in 0..2 * MAX_WAITING {
            queue.push(event(0));
        }
        assert_eq!(queue.waiting().events.len(), 1, "repetitions are one event");
        for number in 1..MAX_WAITING {
            queue.push(event(number));
        }
        assert!(!queue.waiting().lost);
        queue.push(event(MAX_WAITING));
        assert!(queue.waiting().lost);
        assert!(queue.waiting().events.is_empty());
        queue.push(event(0));
        assert!(queue.waiting().events.is_empty(), "one look finds them all");
    }

    #[tokio::test]
    async fn what_happened_before_is_caught_up_with() -> Result<(), Box<dyn std::error::Error>> {
        let base = tempfile::tempdir()?;
        let root = base.path().canonicalize()?;
        let mut events = FileEvents::new()?;
        assert!(matches!(events.hold(&root, WatchDepth::Contents, (1, 1)), WatchStart::New));
        assert!(matches!(events.hold(&root, WatchDepth::Contents, (1, 1)), WatchStart::Already));
        let mut late = 0;
        for round in 0..50 {
            let path = root.join(round.to_string());
            std::fs::write(&path, "x")?;
            let start = std::time::Instant::now();
            events.catch_up().await;
            late += usize::from(start.elapsed() >= CATCH_UP);
            let seen = events.take(100).unwrap_or_default();
            if start.elapsed() < CATCH_UP {
                assert!(seen.contains(&FileEvent { what: What::Closed, path }), "{seen:?}");
            }
        }
        assert!(late < 25, "the mark is seen, unless the machine is very busy");
        Ok(())
    }

    /// What is heard of a directory in which a file is written and which is then renamed.
    async fn check(depth: WatchDepth, expected: &[What]) -> Result<(), Box<dyn std::error::Error>> {
        let base = tempfile::tempdir()?;
        let dir = base.path().canonicalize()?.join("dir");
        std::fs::create_dir(&dir)?;
        let mut events = FileEvents::new()?;
        assert!(matches!(events.hold(&dir, depth, (1, 1)), WatchStart::New));
        std::fs::write(dir.join("file"), "text")?;
        assert_eq!(std::fs::read_to_string(dir.join("file"))?, "text");
        std::fs::rename(&dir, base.path().join("elsewhere"))?;
        let mut seen = Vec::new();
        while seen.last() != Some(&What::Went) {
            tokio::time::timeout(Duration::from_secs(20), events.readable()).await?;
            seen.extend(events.take(100).unwrap_or_default().iter().map(|event| event.what));
        }
        assert_eq!(seen, expected, "{depth:?}");
        Ok(())
    }

    #[tokio::test]
    async fn only_as_much_is_heard_as_matters() -> Result<(), Box<dyn std::error::Error>> {
        check(WatchDepth::Place, &[What::Went]).await?;
        check(WatchDepth::Names, &[What::Created, What::Went]).await?;
        check(WatchDepth::Contents, &[What::Created, What::Written, What::Closed, What::Went]).await
    }

    #[test]
    fn an_overflow_in_the_kernel_is_known() {
        let queue = Queue::default();
        queue.take_in(Ok(notify::Event::new(EventKind::Other).set_flag(notify::event::Flag::Rescan)));
        assert!(queue.waiting().lost);
    }
}
