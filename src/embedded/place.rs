//! Where the embedded cluster lies, and which user its server runs as.
//!
//! Everything of it stands in one *base* directory: `data` (the cluster), `run` (the socket), the log and
//! the lock files. It is `postgres` in the state directory, or what the symbolic link of that name points
//! at. Root needs the link: PostgreSQL does not run as root, and its user cannot look into a directory
//! such as `/root`.
//!
//! Invariant: only the owner and root can reach the data or the socket.

use std::{
    fs, io,
    os::unix::{
        ffi::OsStrExt as _,
        fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _},
    },
    path::{Path, PathBuf},
};

use nix::unistd::{Gid, Uid, User, geteuid};
use rustix::fs::OFlags;
use sha2::{Digest as _, Sha256};

use super::EmbeddedError;

/// Where root keeps clusters whose state directory PostgreSQL's user cannot reach. Not `/var/lib/providerd`:
/// under systemd's `DynamicUser` that is a link into a directory closed to other users.
const ROOT_HOME: &str = "/var/lib/providerd-embedded";

/// A Unix socket's path has at most 107 bytes on Linux, and PostgreSQL adds `/.s.PGSQL.5432` to this one.
const MAX_SOCKET_DIR: usize = 107 - "/.s.PGSQL.5432".len();

/// Which user the server runs as.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Owner {
    pub uid: Uid,
    pub gid: Gid,
    pub name: String,
}

/// The base directory and what is derived from it. All paths are absolute, without symbolic links.
#[derive(Debug, Clone)]
pub struct ClusterPlace {
    pub base: PathBuf,
    pub owner: Owner,
    /// Where a server that is started puts its socket; made then.
    pub sockets: PathBuf,
}

impl ClusterPlace {
    /// Finds or makes the directories.
    pub fn prepare(state_dir: &Path) -> Result<Self, EmbeddedError> {
        state_dir_create(state_dir).map_err(EmbeddedError::io("create the state directory", state_dir))?;
        let state_dir =
            state_dir.canonicalize().map_err(EmbeddedError::io("find the state directory", state_dir))?;
        let base = find_base(&state_dir)?;
        let owner = owner_of(&base)?;
        if !reachable(&base, &owner)? {
            return Err(EmbeddedError::Unreachable { user: owner.name, path: base });
        }
        let own = base.join("run");
        let sockets = if fits(&own) { own } else { short_dir(&base, &owner) };
        Ok(Self { base, owner, sockets })
    }

    pub fn data(&self) -> PathBuf {
        self.base.join("data")
    }

    pub fn log(&self) -> PathBuf {
        self.base.join("postgres.log")
    }

    /// Held exclusively by the process that starts or stops the server.
    pub fn start_lock(&self) -> PathBuf {
        self.base.join("start.lock")
    }

    /// Held shared by every process that uses the server.
    pub fn users_lock(&self) -> PathBuf {
        self.base.join("users.lock")
    }

    /// Held exclusively by the server's own processes as long as one of them lives.
    pub fn server_lock(&self) -> PathBuf {
        self.base.join("server.lock")
    }

    /// Whether child processes must change to the owner's user id.
    pub fn drops_privileges(&self) -> bool {
        geteuid().is_root()
    }

    /// Opens a file for appending and reading, made with mode 0600 if missing. Never through a symbolic
    /// link: root may be working in a directory of another user.
    pub fn open_private(&self, path: &Path) -> io::Result<fs::File> {
        let mut options = fs::OpenOptions::new();
        options.read(true).append(true).mode(0o600).custom_flags(OFlags::NOFOLLOW.bits().cast_signed());
        match options.clone().create_new(true).open(path) {
            Ok(file) => {
                // In a directory of an ordinary user, root's files would lock that user out.
                if geteuid().is_root() {
                    let base = fs::metadata(&self.base)?;
                    std::os::unix::fs::fchown(&file, Some(base.uid()), Some(base.gid()))?;
                }
                Ok(file)
            }
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => options.open(path),
            Err(error) => Err(error),
        }
    }

    /// Gives a file or directory to the server's user.
    pub fn give(&self, path: &Path) -> io::Result<()> {
        if self.drops_privileges() {
            std::os::unix::fs::lchown(path, Some(self.owner.uid.as_raw()), Some(self.owner.gid.as_raw()))?;
        }
        Ok(())
    }

    /// Makes a directory that only the server's user may enter, or verifies that it is one.
    pub fn private_dir(&self, path: &Path) -> Result<(), EmbeddedError> {
        let io = |action| EmbeddedError::io(action, path);
        match fs::DirBuilder::new().mode(0o700).create(path) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                return Err(io("create the directory")(error));
            }
            _ => {}
        }
        let meta = fs::symlink_metadata(path).map_err(io("examine the directory"))?;
        // Ours from before a crash between making it and giving it away.
        let ours = meta.uid() == self.owner.uid.as_raw() || (geteuid().is_root() && meta.uid() == 0);
        if !meta.is_dir() || !ours {
            let owner = self.owner.uid.as_raw();
            return Err(EmbeddedError::UnsafeSocketDir { path: path.to_owned(), owner });
        }
        self.give(path).map_err(io("change the owner of"))?;
        if meta.mode() & 0o777 != 0o700 {
            fs::set_permissions(path, fs::Permissions::from_mode(0o700)).map_err(io("change the mode of"))?;
        }
        Ok(())
    }

    /// Removes a socket directory outside the base directory, where it would not be looked for.
    pub fn remove_short_dir(&self) {
        if !self.sockets.starts_with(&self.base) {
            // If something else lies in it, it stays.
            let _ = fs::remove_dir(&self.sockets);
        }
    }
}

/// A short directory for the socket, for a base directory whose path is too long for one or holds what
/// PostgreSQL's list syntax cannot.
fn short_dir(base: &Path, owner: &Owner) -> PathBuf {
    let digest = Sha256::digest(base.as_os_str().as_bytes());
    let id: String = digest.iter().take(6).map(|byte| format!("{byte:02x}")).collect();
    let runtime = if geteuid().is_root() {
        Some(PathBuf::from("/run"))
    } else {
        std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from).filter(|dir| dir.is_absolute())
    };
    runtime
        .filter(|dir| dir.is_dir())
        .map(|dir| dir.join(format!("providerd-{id}")))
        .filter(|dir| fits(dir))
        .unwrap_or_else(|| PathBuf::from(format!("/tmp/providerd-{}-{id}", owner.uid)))
}

fn fits(dir: &Path) -> bool {
    let bytes = dir.as_os_str().as_bytes();
    bytes.len() <= MAX_SOCKET_DIR
        && bytes.iter().all(|byte| byte.is_ascii_graphic() && !matches!(byte, b',' | b'"' | b'\'' | b'\\'))
}

/// Makes the state directory. Root's can be passed through, though not listed, so that the cluster, which
/// belongs to another user, may lie inside: in a container that is the volume which outlives it.
fn state_dir_create(path: &Path) -> io::Result<()> {
    let mode = if geteuid().is_root() { 0o711 } else { 0o700 };
    fs::DirBuilder::new().recursive(true).mode(mode).create(path)
}

/// The base directory, made if missing.
fn find_base(state_dir: &Path) -> Result<PathBuf, EmbeddedError> {
    let euid = geteuid();
    let inside = state_dir.join("postgres");
    match fs::symlink_metadata(&inside) {
        Ok(meta) if meta.is_symlink() => {
            // Another user's link must not decide where root changes owners.
            if meta.uid() != euid.as_raw() {
                return Err(EmbeddedError::ForeignOwner {
                    path: inside,
                    owner: meta.uid(),
                    uid: euid.as_raw(),
                });
            }
            let target = fs::read_link(&inside).map_err(EmbeddedError::io("read the link", &inside))?;
            make_base(&state_dir.join(target))
        }
        Ok(_) => canonical(&inside),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            if !euid.is_root() || reachable(state_dir, &unprivileged_user()?)? {
                return make_base(&inside);
            }
            // A random name and not the state directory's: a state directory that was deleted and made
            // again must get a new cluster, one that was moved must keep its own.
            let id = uuid::Uuid::new_v4().simple().to_string();
            let target = Path::new(ROOT_HOME).join(id.get(..16).unwrap_or(&id));
            // The link first: after a crash between the two, the next start makes the directory.
            match std::os::unix::fs::symlink(&target, &inside) {
                Ok(()) => make_base(&target).map_err(|source| {
                    // Nothing must point at what never was.
                    let _ = fs::remove_file(&inside);
                    no_place(state_dir, source)
                }),
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => find_base(state_dir),
                Err(error) => Err(EmbeddedError::io("create the link", &inside)(error)),
            }
        }
        Err(error) => Err(EmbeddedError::io("examine", &inside)(error)),
    }
}

fn no_place(state_dir: &Path, error: EmbeddedError) -> EmbeddedError {
    match (error, unprivileged_user()) {
        (EmbeddedError::Io { path, source, .. }, Ok(owner)) => {
            EmbeddedError::NoPlace { state_dir: state_dir.to_owned(), user: owner.name, path, source }
        }
        (error, _) => error,
    }
}

/// Makes a base directory. Root's is searchable by the server's user, who owns only what lies in it.
fn make_base(base: &Path) -> Result<PathBuf, EmbeddedError> {
    let mode = if geteuid().is_root() { 0o711 } else { 0o700 };
    fs::DirBuilder::new()
        .recursive(true)
        .mode(mode)
        .create(base)
        .map_err(EmbeddedError::io("create the directory", base))?;
    canonical(base)
}

fn canonical(path: &Path) -> Result<PathBuf, EmbeddedError> {
    path.canonicalize().map_err(EmbeddedError::io("find", path))
}

/// Which user the server of this base directory runs as: the one that it always ran as, if it did.
fn owner_of(base: &Path) -> Result<Owner, EmbeddedError> {
    let euid = geteuid();
    let meta = fs::metadata(base).map_err(EmbeddedError::io("examine", base))?;
    if !euid.is_root() {
        if meta.uid() != euid.as_raw() {
            let (owner, uid) = (meta.uid(), euid.as_raw());
            return Err(EmbeddedError::ForeignOwner { path: base.to_owned(), owner, uid });
        }
        return user(euid);
    }
    if meta.uid() != 0 {
        return user(Uid::from_raw(meta.uid()));
    }
    match fs::symlink_metadata(base.join("data")) {
        Ok(data) if data.uid() != 0 => user(Uid::from_raw(data.uid())),
        _ => unprivileged_user(),
    }
}

fn user(uid: Uid) -> Result<Owner, EmbeddedError> {
    match User::from_uid(uid) {
        Ok(Some(user)) => Ok(Owner { uid: user.uid, gid: user.gid, name: user.name }),
        _ => Err(EmbeddedError::UnknownUser { uid: uid.as_raw() }),
    }
}

fn unprivileged_user() -> Result<Owner, EmbeddedError> {
    ["postgres", "nobody"]
        .iter()
        .find_map(|name| User::from_name(name).ok().flatten())
        .map(|user| Owner { uid: user.uid, gid: user.gid, name: user.name })
        .ok_or(EmbeddedError::NoUnprivilegedUser)
}

/// Whether `owner`, without supplementary groups, may pass through `path` and every directory above it.
fn reachable(path: &Path, owner: &Owner) -> Result<bool, EmbeddedError> {
    for dir in path.ancestors() {
        let meta = fs::metadata(dir).map_err(EmbeddedError::io("examine", dir))?;
        let shift = match () {
            () if meta.uid() == owner.uid.as_raw() => 6,
            () if meta.gid() == owner.gid.as_raw() => 3,
            () => 0,
        };
        if meta.mode() >> shift & 1 == 0 {
            return Ok(false);
        }
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_paths_that_a_socket_can_have_are_used() {
        fn check(path: &str, expected: bool) {
            assert_eq!(fits(Path::new(path)), expected, "{path:?}");
        }
        check("/var/lib/x/run", true);
        check(&format!("/{}", "x".repeat(92)), true);
        check(&format!("/{}", "x".repeat(93)), false);
        check("/home/a b/run", false);
        check("/home/a,b/run", false);
        check("/home/é/run", false);
    }

    #[test]
    fn reach_is_judged_by_the_class_that_applies() {
        let dir = tempfile::tempdir_in("/tmp").unwrap();
        let meta = fs::metadata(dir.path()).unwrap();
        let owner =
            |uid, gid| Owner { uid: Uid::from_raw(uid), gid: Gid::from_raw(gid), name: String::new() };
        let check = |mode, owner: &Owner, expected| {
            fs::set_permissions(dir.path(), fs::Permissions::from_mode(mode)).unwrap();
            assert_eq!(reachable(dir.path(), owner).unwrap(), expected, "{mode:o} {owner:?}");
        };
        let stranger = owner(meta.uid() + 1, meta.gid() + 1);
        check(0o700, &owner(meta.uid(), meta.gid()), true);
        check(0o700, &stranger, false);
        check(0o711, &stranger, true);
        check(0o710, &owner(meta.uid() + 1, meta.gid()), true);
        check(0o701, &owner(meta.uid() + 1, meta.gid()), false);
        check(0o700, &owner(meta.uid(), meta.gid()), true);
    }
}
