//! Which directories are watched, and what an event in one of them means.
//!
//! Watched are: every walked directory of the manifests; the directory of every name on which the root's path,
//! a symlinked manifest or a secret depends (so that `..data`, git-sync's link or a re-created directory is
//! noticed); and the Git directory, for its lock. Not its job: timing (`debounce`).
//!
//! Invariant: a directory is walked again after it was armed, so nothing slips in between.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    ffi::OsStr,
    fs::Metadata,
    os::unix::{ffi::OsStrExt, fs::MetadataExt},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use rustix::io::Errno;

use super::{
    debounce::{Debounce, Item, WRITER_QUIET},
    git,
    inotify::{Event, Inotify, ReadFlags, WatchFlags},
    names,
    read::Root,
    trace::trace,
    walk,
};

/// How long a file that was written just before its directory was armed is given to show that its writer is
/// not done: its earlier events went unseen.
const FRESH: Duration = Duration::from_millis(100);

/// Walks until a walk finds no directory that is not armed; a tree that grows faster sends events anyway.
const ARM_ROUNDS: usize = 5;

/// Everything that can happen to the files and directories of a walked directory.
const TREE: WatchFlags = WatchFlags::CREATE
    .union(WatchFlags::MODIFY)
    .union(WatchFlags::CLOSE_WRITE)
    .union(WatchFlags::MOVED_FROM)
    .union(WatchFlags::MOVED_TO)
    .union(WatchFlags::DELETE)
    .union(WatchFlags::ATTRIB)
    .union(SELF);

/// The directory itself goes elsewhere.
const SELF: WatchFlags = WatchFlags::DELETE_SELF.union(WatchFlags::MOVE_SELF);

/// Names come, go or are replaced.
const NAMES: WatchFlags = WatchFlags::CREATE
    .union(WatchFlags::MOVED_FROM)
    .union(WatchFlags::MOVED_TO)
    .union(WatchFlags::DELETE)
    .union(SELF);

/// As [`NAMES`], and the files behind them are written.
const CONTENTS: WatchFlags = NAMES.union(WatchFlags::MODIFY).union(WatchFlags::CLOSE_WRITE);

/// One watched inode; it may serve several ends.
#[derive(Debug, Default)]
struct Watched {
    /// Its path below the root, if it is one of the walked directories.
    tree: Option<PathBuf>,
    /// The absolute paths under which names in it (or itself) matter.
    sides: BTreeSet<PathBuf>,
}

/// All watches of one watcher.
#[derive(Debug)]
pub struct Watches {
    /// Absent where the kernel grants none, or it was not wanted.
    pub inotify: Option<Inotify>,
    /// Why it is absent.
    silent: Option<String>,
    /// Absolute.
    root: PathBuf,
    /// What the root led to when it was last armed.
    pinned: Option<(Root, PathBuf)>,
    by_wd: HashMap<i32, Watched>,
    dirs: BTreeMap<PathBuf, i32>,
    sides: HashMap<PathBuf, i32>,
    /// Names on which the root depends.
    root_names: HashSet<PathBuf>,
    /// Hidden or distant names behind symlinks of the tree, with the symlinks (relative).
    link_names: HashMap<PathBuf, BTreeSet<PathBuf>>,
    /// Visible symlinks, relative.
    links: HashSet<PathBuf>,
    secrets: BTreeSet<PathBuf>,
    secret_names: HashMap<PathBuf, BTreeSet<PathBuf>>,
    /// `index.lock` of the work tree around the root.
    pub lock: Option<PathBuf>,
    /// What is watched no longer is what the paths lead to: arm again before the next announcement.
    pub stale: bool,
    /// Why something is not watched that should be.
    pub failure: Option<String>,
}

impl Watches {
    /// Nothing is watched yet. Without `notify`, nothing ever is, and `failure` says why.
    pub fn new(root: &Path, notify: bool) -> Self {
        let root = if root.as_os_str().is_empty() { Path::new(".") } else { root };
        let (inotify, silent) = match notify.then(Inotify::new) {
            Some(Ok(inotify)) => (Some(inotify), None),
            Some(Err(error)) => {
                let hint = "raise fs.inotify.max_user_instances";
                (None, Some(format!("the kernel offers no file events: {error} (hint: {hint})")))
            }
            None => (None, Some("file events are switched off".to_owned())),
        };
        Self {
            inotify,
            silent,
            root: std::path::absolute(root).unwrap_or_else(|_| root.to_owned()),
            pinned: None,
            by_wd: HashMap::new(),
            dirs: BTreeMap::new(),
            sides: HashMap::new(),
            root_names: HashSet::new(),
            link_names: HashMap::new(),
            links: HashSet::new(),
            secrets: BTreeSet::new(),
            secret_names: HashMap::new(),
            lock: None,
            stale: true,
            failure: None,
        }
    }

    /// Watches what the root's path and its symlinks lead to now.
    pub fn arm(&mut self, debounce: &mut Debounce, now: Instant) {
        self.stale = false;
        self.failure.clone_from(&self.silent);
        let way = trace(&self.root);
        let canonical = way.names.last().cloned().unwrap_or_else(|| self.root.clone());
        // Armed before the root is opened: whatever replaces it afterwards is an event.
        self.root_names = way.names.into_iter().collect();
        self.lock = git::git_dir(&self.root).map(|dir| dir.join("index.lock"));
        self.arm_sides(debounce, now);

        let opened = Root::open(&self.root).ok();
        let moved = match (&opened, &self.pinned) {
            (Some(new), Some((old, path))) => new.id != old.id || *path != canonical,
            (None, None) => false,
            _ => true,
        };
        if moved {
            self.disarm(Path::new(""));
        }
        if let Some(root) = opened.as_ref().filter(|root| root.is_remote()) {
            self.failure.get_or_insert_with(|| {
                let path = root.shown();
                format!(
                    "{path} lies on a network file system, which sends no events for changes made elsewhere"
                )
            });
        }
        self.pinned = opened.map(|root| (root, canonical));
        self.links.clear();
        self.link_names.clear();
        self.arm_tree(Path::new(""), debounce, now);
        if !self.link_names.is_empty() {
            self.arm_sides(debounce, now);
        }
    }

    /// Replaces the set of secrets. Those that are new are announced: they may have changed unseen.
    pub fn set_secrets(&mut self, secrets: BTreeSet<PathBuf>, debounce: &mut Debounce, now: Instant) {
        let added: Vec<PathBuf> = secrets.difference(&self.secrets).cloned().collect();
        self.secrets = secrets;
        self.arm_sides(debounce, now);
        added.into_iter().for_each(|secret| debounce.complete(Item::Secret(secret), now));
    }

    /// Watches the walked directories below `start` and, where they hold symlinks, what those depend on.
    fn arm_tree(&mut self, start: &Path, debounce: &mut Debounce, now: Instant) {
        let Some((root, canonical)) = self.pinned.take() else { return };
        for _ in 0..ARM_ROUNDS {
            let found = walk::walk(&root, start);
            let mut fresh = BTreeSet::new();
            let mut unwatched = BTreeSet::new();
            for dir in found.dirs.keys() {
                // `join` of nothing would add a slash.
                let path = if dir.as_os_str().is_empty() { canonical.clone() } else { canonical.join(dir) };
                match self.add(&path, TREE) {
                    Ok(wd) => {
                        let before = self.dirs.insert(dir.clone(), wd);
                        if before == Some(wd) {
                            continue;
                        }
                        if let Some(old) = before {
                            self.release(old, |watched| watched.tree = None);
                        }
                        fresh.insert(dir.clone());
                        self.by_wd.entry(wd).or_default().tree = Some(dir.clone());
                    }
                    // Gone since; its parent tells.
                    Err(Errno::NOENT | Errno::NOTDIR) => {}
                    Err(error) => {
                        unwatched.insert(dir.clone());
                        self.fail(&path, error);
                    }
                }
            }
            for (file, _) in &found.files {
                let file = Path::new(file);
                let dir = file.parent().unwrap_or(Path::new(""));
                let (young, quiet) = match (fresh.contains(dir), unwatched.contains(dir)) {
                    (true, _) => (FRESH, FRESH),
                    (_, true) => (WRITER_QUIET, WRITER_QUIET),
                    _ => continue,
                };
                if root.age(file).is_some_and(|age| age < young) {
                    debounce.writing(Item::Manifest(file.to_owned()), now, quiet);
                }
            }
            let links = found.files.iter().filter(|(_, kind)| *kind == walk::Kind::Link);
            let links =
                links.map(|(path, _)| Path::new(path)).chain(found.linked_dirs.iter().map(PathBuf::as_path));
            let links = links.chain(found.ignored_links.iter().map(|(path, _)| path.as_path()));
            for link in links {
                self.links.insert(link.to_owned());
                // Where it leaves the tree, it is refused, so that what lies outside does not matter.
                let _ = root.resolve(link, &mut |name| {
                    if name != link {
                        self.link_names.entry(canonical.join(name)).or_default().insert(link.to_owned());
                    }
                });
            }
            if start.as_os_str().is_empty() {
                // Left behind where events were lost.
                let gone: Vec<PathBuf> =
                    self.dirs.keys().filter(|dir| !found.dirs.contains_key(*dir)).cloned().collect();
                gone.iter().for_each(|dir| self.disarm(dir));
            }
            if fresh.is_empty() {
                break;
            }
        }
        self.pinned = Some((root, canonical));
    }

    /// Stops watching the walked directories at and below `start`.
    fn disarm(&mut self, start: &Path) {
        let below: Vec<PathBuf> = self
            .dirs
            .range(start.to_owned()..)
            .map(|(dir, _)| dir)
            .take_while(|dir| dir.starts_with(start))
            .cloned()
            .collect();
        for dir in below {
            if let Some(wd) = self.dirs.remove(&dir) {
                self.release(wd, |watched| watched.tree = None);
            }
        }
    }

    /// Watches what the names that matter stand in.
    fn arm_sides(&mut self, debounce: &mut Debounce, now: Instant) {
        let mut wanted: BTreeMap<PathBuf, WatchFlags> = BTreeMap::new();
        let mut want = |dir: &Path, mask: WatchFlags| {
            let entry = wanted.entry(dir.to_owned()).or_insert(WatchFlags::empty());
            *entry = entry.union(mask);
        };
        let parent = |name: &Path| name.parent().unwrap_or(Path::new("/")).to_owned();
        for name in &self.root_names {
            want(&parent(name), NAMES);
        }
        trace(&self.root).dirs.iter().for_each(|dir| want(dir, SELF));
        for name in self.link_names.keys() {
            want(&parent(name), CONTENTS);
        }
        if let Some(lock) = &self.lock {
            want(&parent(lock), NAMES);
        }
        self.secret_names.clear();
        for secret in &self.secrets {
            let way = trace(&std::path::absolute(secret).unwrap_or_else(|_| secret.clone()));
            way.dirs.iter().for_each(|dir| want(dir, SELF));
            for name in way.names {
                want(&parent(&name), CONTENTS);
                self.secret_names.entry(name).or_default().insert(secret.clone());
            }
        }

        let outdated: Vec<PathBuf> =
            self.sides.keys().filter(|dir| !wanted.contains_key(*dir)).cloned().collect();
        for dir in outdated {
            if let Some(wd) = self.sides.remove(&dir) {
                self.release(wd, |watched| {
                    watched.sides.remove(&dir);
                });
            }
        }
        for (dir, mask) in wanted {
            match self.add(&dir, mask) {
                Ok(wd) => {
                    let before = self.sides.insert(dir.clone(), wd);
                    if let Some(old) = before.filter(|old| *old != wd) {
                        self.release(old, |watched| {
                            watched.sides.remove(&dir);
                        });
                        // It was another directory until now.
                        debounce.everything(now);
                    }
                    self.by_wd.entry(wd).or_default().sides.insert(dir);
                }
                // A directory that may be passed but not read cannot be watched; the resync looks behind it.
                Err(Errno::NOENT | Errno::NOTDIR | Errno::ACCESS) => {}
                Err(error) => self.fail(&dir, error),
            }
        }
    }

    fn add(&self, dir: &Path, mask: WatchFlags) -> Result<i32, Errno> {
        self.inotify.as_ref().map_or(Err(Errno::NOSYS), |inotify| inotify.add(dir, mask))
    }

    fn release(&mut self, wd: i32, change: impl FnOnce(&mut Watched)) {
        let Some(watched) = self.by_wd.get_mut(&wd) else { return };
        change(watched);
        if watched.tree.is_none() && watched.sides.is_empty() {
            self.by_wd.remove(&wd);
            if let Some(inotify) = &self.inotify {
                inotify.remove(wd);
            }
        }
    }

    fn fail(&mut self, path: &Path, error: Errno) {
        let path = path.display();
        self.failure.get_or_insert_with(|| match error {
            Errno::NOSPC => format!(
                "{path} cannot be watched: the limit of inotify watches is reached (hint: raise fs.inotify.max_user_watches)"
            ),
            error => format!("{path} cannot be watched: {error}"),
        });
    }

    /// Takes in one event.
    pub fn event(&mut self, event: &Event, debounce: &mut Debounce, now: Instant) {
        let flags = event.flags;
        if flags.contains(ReadFlags::QUEUE_OVERFLOW) {
            tracing::info!("too many file events at once: looking at everything");
            self.stale = true;
            debounce.everything(now);
            return;
        }
        let Some(watched) = self.by_wd.get(&event.wd) else { return };
        let tree = watched.tree.clone();
        if flags.intersects(
            ReadFlags::IGNORED | ReadFlags::DELETE_SELF | ReadFlags::MOVE_SELF | ReadFlags::UNMOUNT,
        ) {
            self.lost(event.wd, flags, debounce, now);
            return;
        }
        // Cloned only where sides exist: the common event is in a directory of the tree alone.
        let sides: Vec<PathBuf> = watched.sides.iter().map(|dir| dir.join(&event.name)).collect();
        for name in sides {
            self.side_event(&name, flags, debounce, now);
        }
        if let Some(dir) = tree {
            self.tree_event(&dir, &event.name, flags, debounce, now);
        }
    }

    /// A watched directory itself is gone or elsewhere.
    fn lost(&mut self, wd: i32, flags: ReadFlags, debounce: &mut Debounce, now: Instant) {
        let Some(watched) = self.by_wd.get(&wd) else { return };
        let is_root = watched.tree.as_deref().is_some_and(|dir| dir.as_os_str().is_empty());
        let is_side = !watched.sides.is_empty();
        if flags.contains(ReadFlags::IGNORED)
            && let Some(watched) = self.by_wd.remove(&wd)
        {
            if let Some(dir) = watched.tree.filter(|dir| self.dirs.get(dir) == Some(&wd)) {
                self.dirs.remove(&dir);
            }
            for dir in watched.sides {
                if self.sides.get(&dir) == Some(&wd) {
                    self.sides.remove(&dir);
                }
            }
        }
        // Of a subdirectory, its parent tells; only an unmount is silent there.
        if is_root || is_side || flags.contains(ReadFlags::UNMOUNT) {
            self.stale = true;
            debounce.everything(now);
            for secret in &self.secrets {
                debounce.complete(Item::Secret(secret.clone()), now);
            }
        }
    }

    /// Something happened to a name on which the root, a symlink or a secret may depend.
    fn side_event(&mut self, name: &Path, flags: ReadFlags, debounce: &mut Debounce, now: Instant) {
        let named = flags
            .intersects(ReadFlags::CREATE | ReadFlags::DELETE | ReadFlags::MOVED_FROM | ReadFlags::MOVED_TO);
        if named && self.root_names.contains(name) {
            self.stale = true;
            debounce.everything(now);
        }
        let whole = |flags: ReadFlags| is_whole(flags, || std::fs::symlink_metadata(name).ok());
        if let Some(links) = self.link_names.get(name) {
            if named {
                self.stale = true;
                debounce.everything(now);
            }
            for link in links {
                note(debounce, Item::Manifest(link.clone()), whole(flags), now);
            }
        }
        if let Some(secrets) = self.secret_names.get(name).cloned() {
            if named {
                self.stale = true;
            }
            for secret in secrets {
                note(debounce, Item::Secret(secret), whole(flags), now);
            }
        }
    }

    /// Something happened in a walked directory.
    fn tree_event(
        &mut self,
        dir: &Path,
        name: &OsStr,
        flags: ReadFlags,
        debounce: &mut Debounce,
        now: Instant,
    ) {
        if name.is_empty() {
            // The directory itself: its parent tells, unless it is the root.
            if dir.as_os_str().is_empty() {
                self.stale = true;
                debounce.everything(now);
            }
            return;
        }
        if names::is_hidden(name.as_bytes()) {
            return;
        }
        let path = dir.join(name);
        if flags.contains(ReadFlags::ISDIR) {
            if flags.contains(ReadFlags::MOVED_FROM) {
                self.disarm(&path);
            } else if !flags.contains(ReadFlags::DELETE) {
                // Created, moved here, or with other permissions.
                let links = self.links.len();
                self.arm_tree(&path, debounce, now);
                self.stale |= self.links.len() != links;
            }
            debounce.complete(Item::Manifest(path), now);
            return;
        }
        let comes = flags.intersects(ReadFlags::CREATE | ReadFlags::MOVED_TO);
        let goes = flags.intersects(ReadFlags::DELETE | ReadFlags::MOVED_FROM);
        let meta = if comes { self.metadata(&path) } else { None };
        let link = (goes && self.links.contains(&path)) || meta.as_ref().is_some_and(Metadata::is_symlink);
        self.stale |= link;
        if names::is_manifest(name.as_bytes()) {
            let item = Item::Manifest(path);
            if flags.contains(ReadFlags::ATTRIB) && debounce.is_writing(&item) {
                return;
            }
            note(debounce, item, is_whole(flags, || meta), now);
        } else if link {
            // It may lead to a directory of manifests.
            debounce.everything(now);
        }
    }

    fn metadata(&self, relative: &Path) -> Option<Metadata> {
        let (_, canonical) = self.pinned.as_ref()?;
        std::fs::symlink_metadata(canonical.join(relative)).ok()
    }
}

fn note(debounce: &mut Debounce, item: Item, whole: bool, now: Instant) {
    if whole {
        debounce.complete(item, now);
    } else {
        debounce.writing(item, now, WRITER_QUIET);
    }
}

/// Whether the file is complete after this event, or somebody has it open for writing.
fn is_whole(flags: ReadFlags, metadata: impl FnOnce() -> Option<Metadata>) -> bool {
    if flags.contains(ReadFlags::MODIFY) {
        return false;
    }
    if !flags.contains(ReadFlags::CREATE) {
        return true;
    }
    // A new symlink, device or further hard link comes whole; a new file is open and about to be written.
    metadata().is_none_or(|meta| !meta.is_file() || meta.nlink() > 1)
}
