//! Which directories are watched, and what an event in one of them means.
//!
//! Watched are: every walked directory of the manifests; the directory of every name on which the root's path,
//! a symlinked manifest or a secret depends (so that `..data`, git-sync's link or a re-created directory is
//! noticed); and the Git directory, for its lock. Not its job: timing (`debounce`).
//!
//! Invariants: a directory is walked again after it was armed, so nothing slips in between; each is watched
//! under its path without symlinks, so that one event never goes by another name; where an event and the file
//! system differ, the file system is right.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    ffi::OsStr,
    fs::Metadata,
    io::ErrorKind,
    os::unix::{ffi::OsStrExt, fs::MetadataExt},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use super::{
    debounce::{Debounce, WRITER_QUIET, WatchedItem},
    events::{FileEvent, FileEvents, WatchDepth, WatchStart, What},
    git, names,
    read::Root,
    trace::trace,
    walk,
};

/// How long a file that was written just before its directory was armed is given to show that its writer is
/// not done: its earlier events went unseen.
const FRESH: Duration = Duration::from_millis(100);

/// Walks until a walk finds no directory that is not armed; a tree that grows faster sends events anyway.
const ARM_ROUNDS: usize = 5;

/// All watches of one watcher.
#[derive(Debug)]
pub struct Watches {
    /// Absent where the kernel grants none, or it was not wanted.
    pub events: Option<FileEvents>,
    notify: bool,
    /// Why it is absent.
    silent: Option<String>,
    /// Absolute.
    root: PathBuf,
    /// What the root led to when it was last armed.
    pinned: Option<(Root, PathBuf)>,
    /// The walked directories, relative to the root, and where they really are.
    dirs: BTreeMap<PathBuf, PathBuf>,
    /// The same the other way round.
    trees: HashMap<PathBuf, PathBuf>,
    /// Directories in the tree that are not watched.
    unseen: BTreeSet<PathBuf>,
    /// Other directories that matter.
    sides: BTreeSet<PathBuf>,
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
        let (events, silent) = listen(notify);
        Self {
            events,
            notify,
            silent,
            root: std::path::absolute(root).unwrap_or_else(|_| root.to_owned()),
            pinned: None,
            dirs: BTreeMap::new(),
            trees: HashMap::new(),
            unseen: BTreeSet::new(),
            sides: BTreeSet::new(),
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
        if self.notify && self.events.is_none() {
            (self.events, self.silent) = listen(self.notify);
        }
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
        added.into_iter().for_each(|secret| debounce.complete(WatchedItem::Secret(secret), now));
    }

    /// Watches the walked directories below `start` and, where they hold symlinks, what those depend on.
    fn arm_tree(&mut self, start: &Path, debounce: &mut Debounce, now: Instant) {
        let Some((root, canonical)) = self.pinned.take() else { return };
        for _ in 0..ARM_ROUNDS {
            let found = walk::walk(&root, start);
            let mut fresh = BTreeSet::new();
            let mut unwatched = BTreeSet::new();
            let links = found.files.iter().filter(|(_, kind)| *kind == walk::EntryKind::Link);
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
            self.unseen.retain(|dir| !dir.starts_with(start));
            self.unseen.extend(found.bad.keys().cloned());
            for (dir, id) in &found.dirs {
                // Replaced since; there is an event about that.
                let Some(path) = self.real(&root, &canonical, dir) else { continue };
                let held = self.events.as_mut().map(|events| events.hold(&path, WatchDepth::Contents, *id));
                match held {
                    Some(WatchStart::Failed(error)) if is_gone(&error) => {}
                    Some(WatchStart::Failed(error)) => {
                        unwatched.insert(dir.clone());
                        self.fail(&path, &error);
                    }
                    Some(result) => {
                        let before = self.dirs.insert(dir.clone(), path.clone());
                        self.trees.insert(path.clone(), dir.clone());
                        if before.as_ref() == Some(&path) && matches!(result, WatchStart::Already) {
                            continue;
                        }
                        fresh.insert(dir.clone());
                        if let Some(old) = before.filter(|old| *old != path) {
                            self.leave(dir, &old);
                        }
                    }
                    None => {
                        unwatched.insert(dir.clone());
                    }
                }
            }
            self.unseen.extend(unwatched.iter().cloned());
            for (file, _) in &found.files {
                let file = Path::new(file);
                let dir = file.parent().unwrap_or(Path::new(""));
                let (young, quiet) = match (fresh.contains(dir), unwatched.contains(dir)) {
                    (true, _) => (FRESH, FRESH),
                    (_, true) => (WRITER_QUIET, WRITER_QUIET),
                    _ => continue,
                };
                if root.age(file).is_some_and(|age| age < young) {
                    debounce.writing(WatchedItem::Manifest(file.to_owned()), now, quiet);
                }
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
            if let Some(path) = self.dirs.remove(&dir) {
                self.leave(&dir, &path);
            }
        }
    }

    /// The directory is no longer found under this name.
    fn leave(&mut self, dir: &Path, path: &Path) {
        if self.trees.get(path).is_some_and(|name| name == dir) {
            self.trees.remove(path);
            if !self.sides.contains(path) {
                self.release(path);
            }
        }
    }

    fn release(&mut self, path: &Path) {
        if let Some(events) = &mut self.events {
            events.release(path);
        }
    }

    /// Where a walked directory really is. `None`: it changed since it was walked.
    fn real(&self, root: &Root, canonical: &Path, dir: &Path) -> Option<PathBuf> {
        // `join` of nothing would add a slash.
        if dir.as_os_str().is_empty() {
            return Some(canonical.to_owned());
        }
        if self.links.is_empty() || !dir.ancestors().any(|part| self.links.contains(part)) {
            return Some(canonical.join(dir));
        }
        let beneath = root.resolve(dir, &mut |_| {}).ok()?;
        Some(if beneath.as_os_str().is_empty() { canonical.to_owned() } else { canonical.join(beneath) })
    }

    /// Watches what the names that matter stand in.
    fn arm_sides(&mut self, debounce: &mut Debounce, now: Instant) {
        let mut wanted: BTreeMap<PathBuf, WatchDepth> = BTreeMap::new();
        let mut want = |dir: &Path, depth: WatchDepth| {
            let entry = wanted.entry(dir.to_owned()).or_insert(depth);
            *entry = depth.max(*entry);
        };
        let parent = |name: &Path| name.parent().unwrap_or(Path::new("/")).to_owned();
        for name in &self.root_names {
            want(&parent(name), WatchDepth::Names);
        }
        trace(&self.root).dirs.iter().for_each(|dir| want(dir, WatchDepth::Place));
        for name in self.link_names.keys() {
            want(&parent(name), WatchDepth::Contents);
        }
        if let Some(lock) = &self.lock {
            want(&parent(lock), WatchDepth::Names);
        }
        self.secret_names.clear();
        for secret in &self.secrets {
            let way = trace(&std::path::absolute(secret).unwrap_or_else(|_| secret.clone()));
            way.dirs.iter().for_each(|dir| want(dir, WatchDepth::Place));
            for name in way.names {
                want(&parent(&name), WatchDepth::Contents);
                self.secret_names.entry(name).or_default().insert(secret.clone());
            }
        }

        let outdated: Vec<PathBuf> =
            self.sides.iter().filter(|dir| !wanted.contains_key(*dir)).cloned().collect();
        for dir in outdated {
            self.sides.remove(&dir);
            if !self.trees.contains_key(&dir) {
                self.release(&dir);
            }
        }
        for (dir, depth) in wanted {
            let Some(meta) = std::fs::symlink_metadata(&dir).ok().filter(Metadata::is_dir) else { continue };
            let Some(events) = &mut self.events else { return };
            let all = if self.trees.contains_key(&dir) { WatchDepth::Contents } else { depth };
            match events.hold(&dir, all, (meta.dev(), meta.ino())) {
                // A directory that may be passed but not read cannot be watched; the resync looks behind it.
                WatchStart::Failed(error)
                    if is_gone(&error) || is_io(&error, ErrorKind::PermissionDenied) => {}
                WatchStart::Failed(error) => self.fail(&dir, &error),
                result => {
                    if matches!(result, WatchStart::Replaced) {
                        debounce.everything(now);
                    }
                    self.sides.insert(dir);
                }
            }
        }
    }

    fn fail(&mut self, path: &Path, error: &notify::Error) {
        let path = path.display();
        self.failure.get_or_insert_with(|| match &error.kind {
            notify::ErrorKind::MaxFilesWatch => format!(
                "{path} cannot be watched: the limit of inotify watches is reached (hint: raise fs.inotify.max_user_watches)"
            ),
            notify::ErrorKind::Io(error) => format!("{path} cannot be watched: {error}"),
            error => format!("{path} cannot be watched: {error:?}"),
        });
    }

    /// At most `limit` events that have happened, oldest first. Where some were lost, everything starts again.
    pub fn take_events(&mut self, limit: usize, debounce: &mut Debounce, now: Instant) -> Vec<FileEvent> {
        let Some(events) = &self.events else { return Vec::new() };
        events.take(limit).unwrap_or_else(|| {
            tracing::info!("too many file events at once: looking at everything");
            // What is still watched is not known: begin again.
            self.dirs.clear();
            self.trees.clear();
            self.sides.clear();
            drop(self.events.take());
            (self.events, self.silent) = listen(self.notify);
            self.stale = true;
            debounce.everything(now);
            Vec::new()
        })
    }

    /// Takes in one event.
    pub fn event(&mut self, event: &FileEvent, debounce: &mut Debounce, now: Instant) {
        let FileEvent { what, path } = event;
        let tree = self.trees.get(path).cloned();
        if matches!(what, What::Went | What::Unmounted)
            && self.events.as_ref().is_some_and(|events| events.is_held(path))
        {
            self.lost(*what, path, tree.as_deref(), debounce, now);
        }
        self.side_event(path, *what, debounce, now);
        if *what == What::Touched && tree.as_ref().is_some_and(|dir| dir.as_os_str().is_empty()) {
            self.stale = true;
            debounce.everything(now);
        }
        if let (Some(parent), Some(name)) = (path.parent(), path.file_name())
            && let Some(dir) = self.trees.get(parent)
        {
            let relative = dir.join(name);
            self.tree_event(relative, *what, event, tree.is_some(), debounce, now);
        }
    }

    /// A watched directory itself is gone or elsewhere, or was, before another took its place.
    fn lost(&mut self, what: What, path: &Path, tree: Option<&Path>, debounce: &mut Debounce, now: Instant) {
        let is_side = self.sides.remove(path);
        match tree {
            Some(dir) => self.disarm(dir),
            None => self.release(path),
        }
        // Of a subdirectory, its parent reports; only an unmount is silent there.
        if is_side || what == What::Unmounted || tree.is_some_and(|dir| dir.as_os_str().is_empty()) {
            if let Some(events) = &mut self.events {
                // What lay above may be gone, too, and the kernel does not say so at this depth.
                events.release_all(WatchDepth::Place);
            }
            self.stale = true;
            debounce.everything(now);
            for secret in &self.secrets {
                debounce.complete(WatchedItem::Secret(secret.clone()), now);
            }
        }
    }

    /// Something happened to a name on which the root, a symlink or a secret may depend.
    fn side_event(&mut self, name: &Path, what: What, debounce: &mut Debounce, now: Instant) {
        let named = matches!(what, What::Created | What::Folder | What::Came | What::Went | What::Unmounted);
        if named && self.root_names.contains(name) {
            self.stale = true;
            debounce.everything(now);
        }
        let whole = || is_whole(what, || std::fs::symlink_metadata(name).ok());
        if let Some(links) = self.link_names.get(name) {
            if named {
                self.stale = true;
                debounce.everything(now);
            }
            for link in links {
                note(debounce, WatchedItem::Manifest(link.clone()), what, whole(), now);
            }
        }
        if let Some(secrets) = self.secret_names.get(name) {
            self.stale |= named;
            for secret in secrets {
                note(debounce, WatchedItem::Secret(secret.clone()), what, whole(), now);
            }
        }
    }

    /// Something happened to `path` (relative) in a walked directory, which itself was one if `was_dir`.
    fn tree_event(
        &mut self,
        path: PathBuf,
        what: What,
        event: &FileEvent,
        was_dir: bool,
        debounce: &mut Debounce,
        now: Instant,
    ) {
        let name = path.file_name().map(OsStr::as_bytes).unwrap_or_default();
        if names::is_hidden(name) {
            return;
        }
        let comes = matches!(what, What::Created | What::Came);
        let goes = matches!(what, What::Went | What::Unmounted);
        // What was written to or closed is a file, and not a new one.
        let meta = if comes || goes || what == What::Touched {
            std::fs::symlink_metadata(&event.path).ok()
        } else {
            None
        };
        let link = if goes { self.links.contains(&path) } else { comes && is(&meta, Metadata::is_symlink) };
        self.stale |= link;
        let is_dir = is(&meta, Metadata::is_dir);
        let is_folder = what == What::Folder || is_dir || (goes && (was_dir || self.unseen.contains(&path)));
        if is_folder && !link {
            if goes {
                self.disarm(&path);
                self.unseen.remove(&path);
            }
            // Created, moved here, with other permissions, or gone and back by now.
            if what == What::Folder || is_dir {
                let links = self.links.len();
                self.arm_tree(&path, debounce, now);
                self.stale |= self.links.len() != links;
            }
            debounce.complete(WatchedItem::Manifest(path), now);
        } else if names::is_manifest(name) {
            note(debounce, WatchedItem::Manifest(path), what, is_whole(what, || meta), now);
        } else if link {
            // It may lead to a directory of manifests.
            debounce.everything(now);
        }
    }
}

/// Something that hears the kernel's events, or why there is nothing.
fn listen(notify: bool) -> (Option<FileEvents>, Option<String>) {
    if !notify {
        return (None, Some("file events are switched off".to_owned()));
    }
    match FileEvents::new() {
        Ok(events) => (Some(events), None),
        Err(error) => {
            let hint = "raise fs.inotify.max_user_instances";
            (None, Some(format!("the kernel offers no file events: {error} (hint: {hint})")))
        }
    }
}

fn is(meta: &Option<Metadata>, kind: impl FnOnce(&Metadata) -> bool) -> bool {
    meta.as_ref().is_some_and(kind)
}

fn is_io(error: &notify::Error, kind: ErrorKind) -> bool {
    matches!(&error.kind, notify::ErrorKind::Io(error) if error.kind() == kind)
}

/// Its parent reports.
fn is_gone(error: &notify::Error) -> bool {
    matches!(error.kind, notify::ErrorKind::PathNotFound)
        || is_io(error, ErrorKind::NotFound)
        || is_io(error, ErrorKind::NotADirectory)
}

fn note(debounce: &mut Debounce, item: WatchedItem, what: What, whole: bool, now: Instant) {
    if !whole {
        debounce.writing(item, now, WRITER_QUIET);
    } else if what != What::Touched || !debounce.is_writing(&item) {
        debounce.complete(item, now);
    }
}

/// Whether the file is complete after this event, or a process has it open for writing.
fn is_whole(what: What, metadata: impl FnOnce() -> Option<Metadata>) -> bool {
    match what {
        What::Written => false,
        // A new symlink, device or further hard link comes whole; a new file is open and about to be written.
        What::Created => metadata().is_none_or(|meta| !meta.is_file() || meta.nlink() > 1),
        _ => true,
    }
}
