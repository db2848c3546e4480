//! Where pulled things lie, and the one step in which a new tree takes the place of the old one.
//!
//! ```text
//! STATE/git/ID/.providerd-git     marks what is ours
//!              lock               held by the daemon that pulls
//!              mirror-RANDOM      a bare repository; disposable
//!              tmp-RANDOM         what is being checked out
//!              checkout-COMMIT    a whole tree, once it has this name
//!              current, previous  links to checkouts
//! ```
//! ID stands for address, branch or tag, and path: a tree of other settings is never taken for one of these.
//! Invariant: a directory gets the name `checkout-…` only when it is whole and on the disk.

use std::{
    fs::{self, DirBuilder, File},
    io,
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _, symlink},
    path::{Path, PathBuf},
    sync::Arc,
};

use rustix::fs::FlockOperation;
use sha2::{Digest as _, Sha256};
use uuid::Uuid;

use super::{PullError, PullOptions};

const MARKER: &str = ".providerd-git";
const CHECKOUT: &str = "checkout-";
const MIRROR: &str = "mirror-";
const TEMPORARY: &str = "tmp-";

/// The directory of one source.
#[derive(Debug, Clone)]
pub struct MirrorPlace {
    dir: PathBuf,
    mirror: PathBuf,
    /// Held for as long as the daemon runs.
    lock: Option<Arc<File>>,
}

/// The commit that a directory of manifests is a checkout of; `None` if it is not one of ours.
pub fn commit_of(manifests: &Path) -> Option<String> {
    let real = fs::canonicalize(manifests).ok()?;
    let commit = real.file_name()?.to_str()?.strip_prefix(CHECKOUT)?;
    (is_commit(commit) && real.parent()?.join(MARKER).is_file()).then(|| commit.to_owned())
}

/// An id of either kind of hash.
pub fn is_commit(text: &str) -> bool {
    matches!(text.len(), 40 | 64) && text.bytes().all(|digit| digit.is_ascii_hexdigit())
}

impl MirrorPlace {
    pub fn of(options: &PullOptions) -> Self {
        let mut hash = Sha256::new();
        for part in [&options.url, &options.reference.full(), &*options.path.to_string_lossy()] {
            hash.update(part);
            hash.update([0]);
        }
        let id: String = hash.finalize().iter().take(8).map(|byte| format!("{byte:02x}")).collect();
        let dir = options.state.join(id);
        Self { mirror: dir.join("mirror"), dir, lock: None }
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// A bare repository, if it is there.
    pub fn mirror(&self) -> &Path {
        &self.mirror
    }

    /// The repository that a daemon pulls into at present.
    pub fn mirror_in_use(&self) -> Option<PathBuf> {
        let entries = fs::read_dir(&self.dir).ok()?.flatten();
        let mirrors = entries.filter(|it| it.file_name().to_str().is_some_and(|it| it.starts_with(MIRROR)));
        mirrors.max_by_key(|it| it.metadata().and_then(|meta| meta.modified()).ok()).map(|it| it.path())
    }

    pub fn current(&self) -> PathBuf {
        self.dir.join("current")
    }

    pub fn checkout(&self, commit: &str) -> PathBuf {
        self.dir.join(format!("{CHECKOUT}{commit}"))
    }

    /// A name that is not in use.
    pub fn temporary(&self) -> PathBuf {
        self.dir.join(format!("{TEMPORARY}{}", Uuid::new_v4().simple()))
    }

    pub fn is_ours(&self) -> bool {
        self.lock.is_some()
    }

    pub fn has_current(&self) -> bool {
        commit_of(&self.current()).is_some()
    }

    /// Takes the directory over: makes it, locks it, and clears away what a crash left.
    ///
    /// The mirror gets another name: a git that outlived its daemon writes to the old one, and so nowhere.
    ///
    /// # Errors
    /// [`PullError::Busy`], [`PullError::Io`].
    pub fn take(mut self) -> Result<Self, PullError> {
        let dir = self.dir.clone();
        self.lock = None;
        // A command run by root must not leave files that the daemon cannot write.
        let existing = dir.ancestors().take(3).find_map(|path| Some((path, fs::metadata(path).ok()?)));
        if let Some((path, meta)) = existing
            && meta.uid() != rustix::process::geteuid().as_raw()
        {
            return Err(PullError::Owner { path: path.to_owned(), owner: meta.uid() });
        }
        DirBuilder::new().recursive(true).mode(0o700).create(&dir).map_err(PullError::io(&dir))?;
        let path = dir.join("lock");
        let lock = File::options().create(true).append(true).open(&path).map_err(PullError::io(&path))?;
        match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => return Err(PullError::Busy(dir)),
            Err(errno) => return Err(PullError::Io { path, source: errno.into() }),
        }
        let marker = dir.join(MARKER);
        fs::write(&marker, "").map_err(PullError::io(&marker))?;
        let mirror = dir.join(format!("{MIRROR}{}", Uuid::new_v4().simple()));
        for (name, path) in self.entries()? {
            if name.starts_with(MIRROR) && !mirror.exists() {
                fs::rename(&path, &mirror).map_err(PullError::io(&path))?;
            } else if name.starts_with(MIRROR) || name.starts_with(TEMPORARY) {
                remove(&path)?;
            }
        }
        self.mirror = mirror;
        self.lock = Some(Arc::new(lock));
        self.sweep();
        Ok(self)
    }

    fn entries(&self) -> Result<Vec<(String, PathBuf)>, PullError> {
        let entries = fs::read_dir(&self.dir).map_err(PullError::io(&self.dir))?;
        let named = entries.flatten().filter_map(|it| Some((it.file_name().into_string().ok()?, it.path())));
        Ok(named.collect())
    }

    /// Removes what a killed git leaves in the mirror: locks that would hold up the next one, and half packs.
    pub fn sweep(&self) {
        let leftovers = |dir: &str, is: fn(&str) -> bool| {
            let Ok(entries) = fs::read_dir(self.mirror.join(dir)) else { return };
            for entry in entries.flatten().filter(|it| it.file_name().to_str().is_some_and(is)) {
                let _ = fs::remove_file(entry.path());
            }
        };
        for dir in ["", "refs/providerd", "objects/info"] {
            leftovers(dir, |name| name.ends_with(".lock"));
        }
        leftovers("objects/pack", |name| name.starts_with("tmp_") || name.starts_with(".tmp"));
    }

    /// Another mirror takes the place of this one.
    pub fn replace_mirror(&self, fresh: &Path) -> Result<(), PullError> {
        remove(&self.mirror)?;
        fs::rename(fresh, &self.mirror).map_err(PullError::io(&self.mirror))
    }

    /// Bytes of what is fetched.
    pub fn packs(&self) -> PathBuf {
        self.mirror.join("objects/pack")
    }

    /// Gives what was checked out its name. It is on the disk before it has it.
    pub fn keep(&self, tree: &Path, commit: &str) -> Result<(), PullError> {
        let open = File::open(tree).map_err(PullError::io(tree))?;
        rustix::fs::syncfs(&open).map_err(|errno| PullError::io(tree)(errno.into()))?;
        let checkout = self.checkout(commit);
        fs::rename(tree, &checkout).map_err(PullError::io(&checkout))
    }

    /// Lets `current` lead to the checkout of `commit`, from one instant to the next.
    pub fn switch(&self, commit: &str) -> Result<(), PullError> {
        let target = PathBuf::from(format!("{CHECKOUT}{commit}"));
        if let Ok(before) = fs::read_link(self.current())
            && before != target
        {
            self.link("previous", &before)?;
        }
        self.link("current", &target)?;
        let synced = File::open(&self.dir).and_then(|dir| dir.sync_all());
        synced.map_err(PullError::io(&self.dir))
    }

    fn link(&self, name: &str, target: &Path) -> Result<(), PullError> {
        let path = self.dir.join(name);
        let new = self.dir.join(format!("{name}.new"));
        let linked = match fs::remove_file(&new) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => symlink(target, &new).and_then(|()| fs::rename(&new, &path)),
        };
        linked.map_err(PullError::io(&path))
    }

    /// The tree must not be used.
    pub fn forget_current(&self) {
        let _ = fs::remove_file(self.current());
    }

    /// Removes checkouts other than the current and the previous one, and sources that are not followed any more.
    pub fn tidy(&self) -> Result<(), PullError> {
        let kept = ["current", "previous"].map(|name| fs::read_link(self.dir.join(name)).ok());
        for (name, path) in self.entries()? {
            let is_kept = kept.iter().flatten().any(|target| target.as_os_str() == name.as_str());
            if (name.starts_with(CHECKOUT) && !is_kept) || name.starts_with(TEMPORARY) {
                remove(&path)?;
            }
        }
        let Some(all) = self.dir.parent() else { return Ok(()) };
        let entries = fs::read_dir(all).map_err(PullError::io(all))?;
        for other in entries.flatten().map(|entry| entry.path()).filter(|path| *path != self.dir) {
            let lock = other.join(MARKER).is_file().then(|| File::open(other.join("lock")).ok()).flatten();
            // Another daemon may follow it.
            if let Some(lock) = lock
                && rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive).is_ok()
            {
                remove(&other)?;
            }
        }
        Ok(())
    }
}

/// A file, a link, or a directory with everything in it.
pub fn remove(path: &Path) -> Result<(), PullError> {
    let removed = match fs::symlink_metadata(path) {
        Ok(meta) if meta.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) => Err(error),
    };
    match removed {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(PullError::io(path)(error)),
        _ => Ok(()),
    }
}
