//! Finding the manifests below a pinned root.
//!
//! Each real directory is walked once: real paths first, then symlinked directories in order of their names,
//! so that cycles and diamonds of symlinks end and the result does not depend on the order of entries.

use std::{
    collections::{BTreeMap, HashSet},
    ffi::OsStr,
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
};

use rustix::{
    fs::{self, Dir, FileType, OFlags},
    io::Errno,
};

use super::{
    FileState, Problem, names,
    read::{DirId, Root, dir_id},
};

/// More manifests than this are refused as a whole: a part of them would look like a removal of the rest.
pub const MAX_FILES: usize = 100_000;

/// Entries of any kind: bounds the time spent on a directory full of other things.
const MAX_ENTRIES: usize = 1_000_000;

/// Deeper trees are not walked. People nest three or four levels; PATH_MAX would end at about 2,000.
const MAX_DEPTH: usize = 64;

/// How a manifest was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EntryKind {
    /// A regular file, by its directory entry.
    File,
    /// A symlink, or of a type that the directory does not name.
    Link,
}

/// What a walk found.
#[derive(Debug, Default)]
pub struct FoundFiles {
    /// Paths relative to the root.
    pub files: Vec<(String, EntryKind)>,
    /// Entries that are reported although nothing can be read from them.
    pub refused: Vec<(String, FileState)>,
    /// Walked directories; the root is the empty path.
    pub dirs: BTreeMap<PathBuf, DirId>,
    /// Symlinks to directories, followed or (where their target has been walked already) not.
    pub linked_dirs: Vec<PathBuf>,
    /// Visible symlinks that lead to neither a manifest nor a directory inside, with the reason.
    pub ignored_links: Vec<(PathBuf, Errno)>,
    /// Directories that could not be looked into.
    pub bad: BTreeMap<PathBuf, Problem>,
    /// The walk was given up.
    pub overflow: Option<Problem>,
}

/// Walks everything below `start` (the empty path: the root itself).
pub fn walk(root: &Root, start: &Path) -> FoundFiles {
    let mut walker = Walker { root, found: FoundFiles::default(), entries: 0, links: Vec::new() };
    let mut stack = vec![start.to_owned()];
    walker.drain(&mut stack);
    // Links found while following links are appended and handled in the next round; each round walks at least
    // one directory not seen before, or ends.
    let mut seen: HashSet<DirId> = HashSet::new();
    while !walker.links.is_empty() && walker.found.overflow.is_none() {
        let mut links = std::mem::take(&mut walker.links);
        links.sort();
        seen.extend(walker.found.dirs.values().copied());
        for (path, id) in links {
            walker.found.linked_dirs.push(path.clone());
            if seen.insert(id) {
                stack.push(path);
                walker.drain(&mut stack);
                seen.extend(walker.found.dirs.values().copied());
            }
        }
    }
    walker.found
}

struct Walker<'a> {
    root: &'a Root,
    found: FoundFiles,
    entries: usize,
    /// Symlinks to directories, not yet followed.
    links: Vec<(PathBuf, DirId)>,
}

impl Walker<'_> {
    fn drain(&mut self, stack: &mut Vec<PathBuf>) {
        while let Some(dir) = stack.pop() {
            if self.found.overflow.is_some() {
                return;
            }
            self.directory(dir, stack);
        }
    }

    fn directory(&mut self, path: PathBuf, stack: &mut Vec<PathBuf>) {
        if path.components().count() > MAX_DEPTH {
            let reason = format!(
                "{} lies more than {MAX_DEPTH} directories deep and is not looked into; nothing is pruned meanwhile",
                shown(&path)
            );
            self.found.bad.insert(path, Problem { code: "directory-too-deep", reason });
            return;
        }
        match self.entries_of(&path, stack) {
            Ok(id) => {
                self.found.dirs.insert(path, id);
            }
            // Removed since its name was read.
            Err(Errno::NOENT | Errno::NOTDIR) if !path.as_os_str().is_empty() => {}
            Err(error) => {
                let reason = format!(
                    "the directory {} cannot be read: {error}; what it declares stays as it is and nothing is pruned (hint: the daemon's user needs r-x on it)",
                    shown(&path)
                );
                self.found.bad.insert(path, Problem { code: "subdirectory-unreadable", reason });
            }
        }
    }

    fn entries_of(&mut self, path: &Path, stack: &mut Vec<PathBuf>) -> Result<DirId, Errno> {
        let fd = self.root.open_beneath(path, OFlags::RDONLY | OFlags::DIRECTORY)?;
        let id = dir_id(&fs::fstat(&fd)?);
        for entry in Dir::new(fd)? {
            let entry = entry?;
            let bytes = entry.file_name().to_bytes();
            if names::is_hidden(bytes) {
                continue;
            }
            self.entries += 1;
            if self.entries > MAX_ENTRIES {
                self.overflow("too-many-entries", MAX_ENTRIES, "entries");
                break;
            }
            let mut kind = entry.file_type();
            let name = OsStr::from_bytes(bytes);
            if kind == FileType::Unknown {
                let stat = fs::statat(self.root.fd(), path.join(name), fs::AtFlags::SYMLINK_NOFOLLOW);
                let Ok(stat) = stat else { continue };
                kind = FileType::from_raw_mode(stat.st_mode);
            }
            let is_manifest = names::is_manifest(bytes);
            match kind {
                FileType::Directory => match name.to_str() {
                    Some(_) => stack.push(path.join(name)),
                    None => self.refuse_name(path, name),
                },
                FileType::RegularFile if !is_manifest => {}
                FileType::Symlink => self.symlink(path, name, is_manifest),
                FileType::RegularFile => self.file(path, name, EntryKind::File),
                _ if is_manifest => self.file(path, name, EntryKind::Link),
                _ => {}
            }
            if self.found.files.len() > MAX_FILES {
                self.overflow("too-many-files", MAX_FILES, "manifests");
            }
            if self.found.overflow.is_some() {
                break;
            }
        }
        Ok(id)
    }

    fn symlink(&mut self, dir: &Path, name: &OsStr, is_manifest: bool) {
        let path = dir.join(name);
        match self.root.open_beneath(&path, OFlags::PATH).and_then(|fd| fs::fstat(&fd)) {
            Ok(stat) if FileType::from_raw_mode(stat.st_mode) == FileType::Directory => match name.to_str() {
                Some(_) => self.links.push((path, dir_id(&stat))),
                None => self.refuse_name(dir, name),
            },
            // Reading it finds out what is wrong with it.
            _ if is_manifest => self.file(dir, name, EntryKind::Link),
            Ok(_) => {}
            Err(error) => self.found.ignored_links.push((path, error)),
        }
    }

    fn file(&mut self, dir: &Path, name: &OsStr, kind: EntryKind) {
        match (dir.to_str(), name.to_str()) {
            (Some(""), Some(name)) => self.found.files.push((name.to_owned(), kind)),
            (Some(dir), Some(name)) => self.found.files.push((format!("{dir}/{name}"), kind)),
            _ => self.refuse_name(dir, name),
        }
    }

    fn refuse_name(&mut self, dir: &Path, name: &OsStr) {
        let path = names::printable(dir.join(name).as_os_str());
        let reason = format!("the name {path} is not UTF-8 (hint: rename it)");
        self.found.refused.push((path, FileState::Unreadable { code: "name-not-utf8", reason }));
    }

    fn overflow(&mut self, code: &'static str, limit: usize, what: &str) {
        let reason = format!(
            "the manifest directory holds more than {limit} {what}; nothing is read or pruned until it holds fewer (hint: is it the right directory?)"
        );
        self.found.overflow = Some(Problem { code, reason });
    }
}

fn shown(path: &Path) -> String {
    if path.as_os_str().is_empty() {
        "of the manifests itself".to_owned()
    } else {
        path.display().to_string()
    }
}
