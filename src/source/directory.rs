//! What the manifest directory holds, and what of it is new.
//!
//! Remembers for every file a stamp (device, inode, size, times) and a hash of what was last handed out, so
//! that a look costs one `stat` per file that did not change and hands out nothing twice.
//!
//! Not its job: when to look (`watch`). Invariant: a file is only reported as removed when its directory was
//! really read and did not hold it.

use std::{
    collections::{BTreeMap, BTreeSet},
    hash::{BuildHasher, RandomState},
    ops::Bound,
    path::{Component, Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::SystemTime,
};

use rayon::prelude::*;
use rustix::{
    fs::{self, AtFlags, FileType, OFlags},
    io::Errno,
};

use catalog::model::ManifestPath;

use super::{
    FileState, Problem, Scan, names,
    read::{self, DirId, FileReading, Root, Stamp},
    walk::{self, EntryKind, FoundFiles},
};

/// A file that was modified this shortly before it was read may be modified again within the same tick of
/// the file system's clock, invisibly to its stamp: it is read again at the next look. Ticks are 1 to 10 ms.
const RACY_NANOS: i128 = 50_000_000;

/// How often a scan starts over because the root was swapped under it. A further swap is a further event.
const SCAN_ATTEMPTS: usize = 3;

/// What all manifests may hold together: 100,000 objects take some 40 MB, and a scan holds the texts at once.
const MAX_TOTAL_BYTES: u64 = 256 * 1024 * 1024;

/// Up to this many files are read in place: handing them to other threads costs more than it saves.
const SERIAL_FILES: usize = 8;

/// The manifest directory and what was last seen in it. Its methods block: call them off the async threads.
#[derive(Debug)]
pub struct Directory {
    root: PathBuf,
    files: BTreeMap<ManifestPath, Entry>,
    dirs: BTreeMap<PathBuf, DirId>,
    linked_dirs: bool,
    /// Directories that cannot be looked into, with why.
    bad: BTreeMap<PathBuf, Problem>,
    /// The last look at the whole directory failed.
    blind: Option<Problem>,
    root_id: Option<DirId>,
    generation: u64,
    hasher: RandomState,
    unfinished: BTreeSet<PathBuf>,
    /// Links already complained about.
    ignored_links: BTreeSet<PathBuf>,
}

#[derive(Debug)]
struct Entry {
    /// Absent: it must be looked into every time.
    stamp: Option<Stamp>,
    /// Of what was handed out.
    hash: u64,
    generation: u64,
}

/// One file to look at.
struct Candidate {
    path: ManifestPath,
    kind: EntryKind,
    known: Option<Stamp>,
}

impl Directory {
    /// Remembers the path; nothing is looked at yet.
    pub fn open(root: impl Into<PathBuf>) -> Self {
        Self {
            root: root.into(),
            files: BTreeMap::new(),
            dirs: BTreeMap::new(),
            linked_dirs: false,
            bad: BTreeMap::new(),
            blind: None,
            root_id: None,
            generation: 0,
            hasher: RandomState::new(),
            unfinished: BTreeSet::new(),
            ignored_links: BTreeSet::new(),
        }
    }

    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Files (relative paths) that are still being written: until another set is given, scans leave them as
    /// they were last seen.
    pub fn set_unfinished(&mut self, files: BTreeSet<PathBuf>) {
        self.unfinished = files;
    }

    /// The text of one manifest as it stands now; `None` for all that a scan would refuse.
    pub fn text(&self, path: &str) -> Option<String> {
        let root = Root::open(&self.root).ok()?;
        match root.read_carefully(Path::new(path), None) {
            FileReading::State(FileState::Text(text), _) => Some(text),
            _ => None,
        }
    }

    /// Looks at the whole directory and reads what differs from the last look.
    pub fn scan_all(&mut self) -> Scan {
        let mut attempt = 1;
        loop {
            let root = match Root::open(&self.root) {
                Ok(root) => root,
                Err(problem) => return self.blinded(problem),
            };
            let mut found = walk::walk(&root, Path::new(""));
            if let Some(problem) = found.overflow.take() {
                return self.blinded(problem);
            }
            if let Some(problem) = found.bad.remove(Path::new("")) {
                return self.blinded(Problem { code: "directory-unreadable", ..problem });
            }
            let candidates = self.candidates(std::mem::take(&mut found.files));
            if candidates.is_empty() && found.refused.is_empty() && found.bad.is_empty() {
                return self.blinded(empty(&self.root));
            }
            let readings = match look(&root, &candidates) {
                Ok(readings) => readings,
                Err(problem) => return self.blinded(problem),
            };
            if attempt < SCAN_ATTEMPTS && !root.is_current(&self.root) {
                attempt += 1;
                continue;
            }
            self.blind = None;
            self.root_id = Some(root.id);
            return self.merge(&root, None, found, candidates, readings);
        }
    }

    /// Looks only at these files and subtrees (relative to the root, or absolute below it). Where they alone
    /// cannot say what changed, this is [`Self::scan_all`].
    pub fn scan_paths(&mut self, hints: &BTreeSet<PathBuf>) -> Scan {
        if self.blind.is_some() || self.root_id.is_none() {
            return self.scan_all();
        }
        let root = match Root::open(&self.root) {
            Ok(root) => root,
            Err(problem) => return self.blinded(problem),
        };
        if self.root_id != Some(root.id) {
            return self.scan_all();
        }
        let Some(targets) = self.targets(hints) else { return self.scan_all() };

        let mut found = FoundFiles::default();
        let mut missing: Vec<PathBuf> = Vec::new();
        let mut trees: Vec<PathBuf> = Vec::new();
        for path in targets {
            let was_dir = self.dirs.contains_key(&path) || self.bad.contains_key(&path);
            let kind = match fs::statat(root.fd(), &path, AtFlags::SYMLINK_NOFOLLOW) {
                Ok(stat) => Some(FileType::from_raw_mode(stat.st_mode)),
                Err(Errno::NOENT | Errno::NOTDIR) => None,
                Err(_) => return self.scan_all(),
            };
            // Where directories have several names, one of them says nothing about the others.
            if (was_dir || kind == Some(FileType::Directory)) && self.linked_dirs {
                return self.scan_all();
            }
            match kind {
                None => {
                    if was_dir {
                        trees.push(path.clone());
                    }
                    missing.push(path);
                }
                Some(FileType::Directory) => {
                    let mut below = walk::walk(&root, &path);
                    if !below.linked_dirs.is_empty() || below.overflow.is_some() {
                        return self.scan_all();
                    }
                    found.files.append(&mut below.files);
                    found.refused.append(&mut below.refused);
                    found.dirs.append(&mut below.dirs);
                    found.bad.append(&mut below.bad);
                    trees.push(path);
                }
                Some(_) if was_dir => return self.scan_all(),
                Some(kind) => {
                    let Some(text) = path.to_str() else { return self.scan_all() };
                    let is_manifest = names::is_manifest(read::last_name(&path));
                    if kind == FileType::Symlink {
                        let target = root.open_beneath(&path, OFlags::PATH).and_then(|fd| fs::fstat(&fd));
                        if target
                            .is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Directory)
                        {
                            return self.scan_all();
                        }
                    }
                    if is_manifest {
                        let kind =
                            if kind == FileType::RegularFile { EntryKind::File } else { EntryKind::Link };
                        found.files.push((text.to_owned(), kind));
                    }
                }
            }
        }
        let mut candidates = self.candidates(std::mem::take(&mut found.files));
        candidates.dedup_by(|a, b| a.path == b.path);
        if self.files.len() + candidates.len() > walk::MAX_FILES {
            // Near the limit only a whole count is exact.
            return self.scan_all();
        }
        let scope = Scope { missing, trees };
        if candidates.is_empty() && self.would_empty(&scope) {
            // The last manifest went: the whole look judges it, with the memory of what was there.
            return self.scan_all();
        }
        let readings = match look(&root, &candidates) {
            Ok(readings) => readings,
            Err(problem) => return self.blinded(problem),
        };
        self.merge(&root, Some(scope), found, candidates, readings)
    }

    /// Whether nothing is left when everything in the scope is gone.
    fn would_empty(&self, scope: &Scope) -> bool {
        self.files.keys().all(|path| {
            let path = Path::new(&**path);
            scope.missing.iter().chain(&scope.trees).any(|gone| path.starts_with(gone))
        })
    }

    /// Hints as clean relative paths; a directory that is not known yet stands for all below it.
    /// `None`: they need a whole look.
    fn targets(&self, hints: &BTreeSet<PathBuf>) -> Option<BTreeSet<PathBuf>> {
        let mut targets = BTreeSet::new();
        for hint in hints {
            let relative = if hint.is_absolute() {
                let Ok(relative) = hint.strip_prefix(&self.root) else { return None };
                relative
            } else {
                hint.as_path()
            };
            let clean: PathBuf = relative.components().filter(|part| *part != Component::CurDir).collect();
            if clean.as_os_str().is_empty() || clean.to_str().is_none() {
                return None;
            }
            if !names::is_visible(&clean) {
                continue;
            }
            let unknown = clean
                .ancestors()
                .skip(1)
                .filter(|dir| !dir.as_os_str().is_empty() && !self.dirs.contains_key(*dir))
                .last();
            targets.insert(unknown.map_or_else(|| clean.clone(), Path::to_owned));
        }
        Some(targets)
    }

    fn candidates(&self, mut files: Vec<(String, EntryKind)>) -> Vec<Candidate> {
        files.sort_by(|a, b| a.0.cmp(&b.0));
        files
            .into_iter()
            .map(|(path, kind)| match self.files.get_key_value(path.as_str()) {
                Some((path, entry)) => Candidate { path: Arc::clone(path), kind, known: entry.stamp },
                None => Candidate { path: path.into(), kind, known: None },
            })
            .collect()
    }

    /// The whole directory is out of sight: nothing is known to have changed, and what was known is kept, so
    /// that its return costs one look.
    fn blinded(&mut self, problem: Problem) -> Scan {
        self.blind = Some(problem.clone());
        Scan { total: self.files.len(), problem: Some(problem), ..Scan::default() }
    }

    /// Takes in what was found. Without a scope, what was not found is gone; with one, only within it.
    fn merge(
        &mut self,
        root: &Root,
        scope: Option<Scope>,
        found: FoundFiles,
        candidates: Vec<Candidate>,
        readings: Vec<FileReading>,
    ) -> Scan {
        self.generation += 1;
        let generation = self.generation;
        let now = SystemTime::now()
            .duration_since(SystemTime::UNIX_EPOCH)
            .map_or(0, |since| i128::try_from(since.as_nanos()).unwrap_or(i128::MAX));
        let mut changed = Vec::new();

        match &scope {
            None => {
                self.dirs = found.dirs;
                self.bad = found.bad;
                self.linked_dirs = !found.linked_dirs.is_empty();
                for (path, error) in found.ignored_links {
                    if self.ignored_links.len() < 1000 && self.ignored_links.insert(path.clone()) {
                        tracing::warn!(path = %path.display(), %error, "a symlink is not followed: it leads out of the manifest directory or nowhere");
                    }
                }
            }
            Some(scope) => {
                for tree in &scope.trees {
                    self.dirs.retain(|dir, _| !dir.starts_with(tree));
                    self.bad.retain(|dir, _| !dir.starts_with(tree));
                }
                self.dirs.extend(found.dirs);
                self.bad.extend(found.bad);
            }
        }

        let refused = found.refused.into_iter().map(|(path, state)| {
            let path = self
                .files
                .get_key_value(path.as_str())
                .map_or_else(|| path.into(), |(path, _)| Arc::clone(path));
            (path, FileReading::State(state, None), EntryKind::Link)
        });
        let refused: Vec<_> = refused.collect();
        let read =
            candidates.into_iter().zip(readings).map(|(file, reading)| (file.path, reading, file.kind));
        for (path, reading, kind) in read.chain(refused) {
            let (state, stamp) = match reading {
                _ if self.unfinished.contains(Path::new(&*path)) => {
                    if let Some(entry) = self.files.get_mut(&path) {
                        entry.generation = generation;
                        entry.stamp = None;
                    }
                    continue;
                }
                FileReading::Same => {
                    if let Some(entry) = self.files.get_mut(&path) {
                        entry.generation = generation;
                    }
                    continue;
                }
                FileReading::Changing => match self.files.get_mut(&path) {
                    Some(entry) => {
                        entry.generation = generation;
                        entry.stamp = None;
                        continue;
                    }
                    None => (read::changing(Path::new(&*path)), None),
                },
                FileReading::Gone if kind == EntryKind::Link && is_symlink(root, &path) => {
                    (read::dangling(Path::new(&*path)), None)
                }
                FileReading::Gone => continue,
                FileReading::State(state, stamp) => (state, stamp),
            };
            let stamp = stamp.filter(|stamp| stamp.ctime.max(stamp.mtime) < now - RACY_NANOS);
            let hash = self.hash(&state);
            let entry = Entry { stamp, hash, generation };
            let before = self.files.insert(Arc::clone(&path), entry);
            if before.is_none_or(|before| before.hash != hash) {
                changed.push((path, state));
            }
        }
        let removed = self.sweep(scope, generation);
        changed.sort_by(|a, b| a.0.cmp(&b.0));
        Scan { changed, removed, total: self.files.len(), problem: self.bad.values().next().cloned() }
    }

    /// Drops the entries that this look did not meet although it looked where they were.
    fn sweep(&mut self, scope: Option<Scope>, generation: u64) -> Vec<ManifestPath> {
        let mut removed = Vec::new();
        let hidden = |bad: &BTreeMap<PathBuf, Problem>, path: &str| {
            !bad.is_empty() && Path::new(path).ancestors().any(|dir| bad.contains_key(dir))
        };
        match scope {
            None => {
                let bad = &self.bad;
                self.files.retain(|path, entry| {
                    let keep = entry.generation == generation || hidden(bad, path);
                    if !keep {
                        removed.push(Arc::clone(path));
                    }
                    keep
                });
            }
            Some(scope) => {
                for path in &scope.missing {
                    if let Some((path, _)) = path.to_str().and_then(|path| self.files.remove_entry(path)) {
                        removed.push(path);
                    }
                }
                for tree in scope.trees.iter().filter_map(|tree| tree.to_str()) {
                    let prefix = format!("{tree}/");
                    let below: Vec<ManifestPath> = self
                        .files
                        .range::<str, _>((Bound::Included(prefix.as_str()), Bound::Unbounded))
                        .take_while(|(path, _)| path.starts_with(&prefix))
                        .filter(|(path, entry)| entry.generation != generation && !hidden(&self.bad, path))
                        .map(|(path, _)| Arc::clone(path))
                        .collect();
                    for path in below {
                        self.files.remove(&path);
                        removed.push(path);
                    }
                }
            }
        }
        removed.sort();
        removed
    }

    fn hash(&self, state: &FileState) -> u64 {
        match state {
            FileState::Text(text) => self.hasher.hash_one((0_u8, text)),
            FileState::Unreadable { code, reason } => self.hasher.hash_one((1_u8, code, reason)),
        }
    }
}

/// Where a partial look may conclude that something is gone.
struct Scope {
    missing: Vec<PathBuf>,
    trees: Vec<PathBuf>,
}

fn empty(root: &Path) -> Problem {
    let reason = format!(
        "the manifest directory {} holds no manifest; nothing is changed or pruned (hint: check the mount, or whether the files end in .toml)",
        root.display()
    );
    Problem { code: "directory-empty", reason }
}

/// Reads what differs; refuses everything as soon as it is too much.
fn look(root: &Root, candidates: &[Candidate]) -> Result<Vec<FileReading>, Problem> {
    let total = AtomicU64::new(0);
    let one = |file: &Candidate| {
        if total.load(Ordering::Relaxed) > MAX_TOTAL_BYTES {
            return FileReading::Same;
        }
        let reading = look_at(root, file);
        let size = match &reading {
            FileReading::State(FileState::Text(text), _) => text.len() as u64,
            FileReading::Same => file.known.map_or(0, |known| known.size),
            _ => 0,
        };
        total.fetch_add(size, Ordering::Relaxed);
        reading
    };
    let readings = if candidates.len() <= SERIAL_FILES {
        candidates.iter().map(one).collect()
    } else {
        candidates.par_iter().with_min_len(SERIAL_FILES).map(one).collect()
    };
    if total.into_inner() > MAX_TOTAL_BYTES {
        let reason = format!(
            "the manifests in {} hold more than {MAX_TOTAL_BYTES} bytes together; nothing is changed or pruned until they hold less (hint: is it the right directory?)",
            root.shown()
        );
        return Err(Problem { code: "too-many-bytes", reason });
    }
    Ok(readings)
}

fn look_at(root: &Root, file: &Candidate) -> FileReading {
    let path = Path::new(&*file.path);
    match file.kind {
        EntryKind::File => {
            // A stat costs a third of an open, a stat and a close.
            if let Some(known) = file.known
                && fs::statat(root.fd(), path, AtFlags::SYMLINK_NOFOLLOW)
                    .is_ok_and(|stat| Stamp::of(&stat) == known)
            {
                return FileReading::Same;
            }
            root.read(path, file.known)
        }
        // Opening a device can do things; what it is is found out without opening it.
        EntryKind::Link => root.read_carefully(path, file.known),
    }
}

fn is_symlink(root: &Root, path: &str) -> bool {
    fs::statat(root.fd(), path, AtFlags::SYMLINK_NOFOLLOW)
        .is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Symlink)
}
