//! Opening and reading below an untrusted directory.
//!
//! Every open is resolved beneath a pinned directory descriptor, never blocks, and is followed by `fstat` on
//! what was really opened. Not its job: which files to read (`walk`, `directory`).

use std::{
    ffi::OsString,
    os::{
        fd::{AsFd, OwnedFd},
        unix::ffi::{OsStrExt, OsStringExt},
    },
    path::{Component, Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, SystemTime},
};

use rustix::{
    fs::{self, AtFlags, FileType, Mode, OFlags, ResolveFlags},
    io::Errno,
};

use super::{FileState, Problem};

/// A larger manifest is refused: 1 MiB is some 3,000 providers, and the bound keeps memory bounded.
pub const MAX_FILE_BYTES: u64 = 1024 * 1024;

/// As many symlinks as Linux itself follows in one path.
const MAX_LINKS: usize = 40;

/// How often a file that changes under the reader is read again before giving up until the next event.
const READ_ATTEMPTS: usize = 4;

/// How often `openat2` is retried when a concurrent rename made its walk uncertain (EAGAIN).
const OPEN_ATTEMPTS: usize = 16;

/// Types of file systems that are shared over a network (or may be, as FUSE), from `linux/magic.h` and statfs(2):
/// NFS, SMB, SMB2, CIFS, 9P, FUSE, Ceph, AFS, Coda, OCFS2, GFS2, Lustre.
const REMOTE: [u32; 12] = [
    0x6969,
    0x517b,
    0xfe53_4d42,
    0xff53_4d42,
    0x0102_1997,
    0x6573_5546,
    0x00c3_6400,
    0x5346_414f,
    0x7375_7245,
    0x7461_636f,
    0x0116_1970,
    0x0bd0_0bd0,
];

/// Set once the kernel (or a seccomp filter) turned out not to offer `openat2`.
static NO_OPENAT2: AtomicBool = AtomicBool::new(false);

/// What distinguishes one version of a file from another without reading it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stamp {
    pub dev: u64,
    pub ino: u64,
    pub size: u64,
    /// Nanoseconds since 1970.
    pub mtime: i128,
    /// Nanoseconds since 1970.
    pub ctime: i128,
}

impl Stamp {
    pub fn of(stat: &fs::Stat) -> Self {
        let nanos = |seconds: i64, nanos: u64| i128::from(seconds) * 1_000_000_000 + i128::from(nanos);
        #[allow(clippy::unnecessary_cast, reason = "the fields' widths differ between architectures")]
        Self {
            dev: stat.st_dev as u64,
            ino: stat.st_ino as u64,
            size: stat.st_size as u64,
            mtime: nanos(stat.st_mtime as i64, stat.st_mtime_nsec as u64),
            ctime: nanos(stat.st_ctime as i64, stat.st_ctime_nsec as u64),
        }
    }
}

/// Identity of a directory.
pub type DirId = (u64, u64);

#[allow(clippy::unnecessary_cast, reason = "the fields' widths differ between architectures")]
pub fn dir_id(stat: &fs::Stat) -> DirId {
    (stat.st_dev as u64, stat.st_ino as u64)
}

/// One version of the manifest directory, pinned: whatever is swapped or renamed meanwhile, every look
/// through it sees the same tree.
#[derive(Debug)]
pub struct Root {
    fd: OwnedFd,
    pub id: DirId,
    /// As configured, and as the kernel resolves it: absolute symlinks that start with either stay inside.
    prefixes: [PathBuf; 2],
}

impl Root {
    pub fn open(path: &Path) -> Result<Self, Problem> {
        // An empty path means the current directory, as it does for a shell's `cd ""`.
        let target = if path.as_os_str().is_empty() { Path::new(".") } else { path };
        let shown = target.display();
        let problem = |code, what: String| Problem { code, reason: what };
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
        let fd = fs::open(target, flags, Mode::empty()).map_err(|error| match error {
            Errno::NOENT => problem(
                "directory-missing",
                format!(
                    "the manifest directory {shown} does not exist; nothing is changed or pruned until it is back (hint: check the mount or `manifests.path`)"
                ),
            ),
            Errno::NOTDIR => problem(
                "not-a-directory",
                format!("{shown} is not a directory (hint: `manifests.path` names the directory, not a file)"),
            ),
            error => problem(
                "directory-unreadable",
                format!("the manifest directory {shown} cannot be opened: {error} (hint: the daemon's user needs r-x on it)"),
            ),
        })?;
        let stat = fs::fstat(&fd).map_err(|error| {
            problem(
                "directory-unreadable",
                format!("the manifest directory {shown} cannot be examined: {error}"),
            )
        })?;
        let canonical = std::fs::canonicalize(target).unwrap_or_else(|_| target.to_owned());
        let configured = std::path::absolute(target).unwrap_or_else(|_| target.to_owned());
        Ok(Self { fd, id: dir_id(&stat), prefixes: [canonical, configured] })
    }

    pub fn fd(&self) -> impl AsFd + '_ {
        self.fd.as_fd()
    }

    /// Opens a path beneath the root, following symlinks only inside it.
    pub fn open_beneath(&self, relative: &Path, flags: OFlags) -> Result<OwnedFd, Errno> {
        let relative = if relative.as_os_str().is_empty() { Path::new(".") } else { relative };
        // `openat2` refuses flags that O_PATH would make meaningless.
        let harmless = OFlags::NOCTTY | OFlags::NONBLOCK;
        let flags = OFlags::CLOEXEC | if flags.contains(OFlags::PATH) { flags } else { flags | harmless };
        if NO_OPENAT2.load(Ordering::Relaxed) {
            return self.open_stepwise(&self.resolve(relative, &mut |_| {})?, flags);
        }
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
        let mut result = Err(Errno::AGAIN);
        for _ in 0..OPEN_ATTEMPTS {
            result = fs::openat2(&self.fd, relative, flags, Mode::empty(), resolve);
            if !matches!(result, Err(Errno::AGAIN | Errno::INTR)) {
                break;
            }
        }
        match result {
            // RESOLVE_BENEATH refuses every absolute symlink, also one that leads back inside.
            Err(Errno::XDEV) => self.open_stepwise(&self.resolve(relative, &mut |_| {})?, flags),
            Err(Errno::NOSYS) => {
                NO_OPENAT2.store(true, Ordering::Relaxed);
                self.open_stepwise(&self.resolve(relative, &mut |_| {})?, flags)
            }
            // Old seccomp filters answer EPERM for system calls that they do not know. A file that really is
            // forbidden fails the same way below.
            Err(Errno::PERM) => self.open_stepwise(&self.resolve(relative, &mut |_| {})?, flags),
            other => other,
        }
    }

    /// Opens a path that holds no symlinks, one part at a time; a symlink that appears meanwhile is refused.
    fn open_stepwise(&self, relative: &Path, flags: OFlags) -> Result<OwnedFd, Errno> {
        let mut parts = relative.components().peekable();
        let mut held: Option<OwnedFd> = None;
        while let Some(part) = parts.next() {
            let flags = match parts.peek() {
                Some(_) => OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
                None => flags,
            };
            let dir = held.as_ref().map_or(self.fd.as_fd(), AsFd::as_fd);
            held = Some(fs::openat(dir, part.as_os_str(), flags | OFlags::NOFOLLOW, Mode::empty())?);
        }
        match held {
            Some(fd) => Ok(fd),
            None => fs::openat(&self.fd, ".", flags, Mode::empty()),
        }
    }

    /// The symlink-free path of `relative` beneath the root, or `XDEV` where it leaves it and `LOOP` where it
    /// never ends. Every name whose replacement would lead elsewhere is passed to `hop`.
    pub fn resolve(&self, relative: &Path, hop: &mut dyn FnMut(&Path)) -> Result<PathBuf, Errno> {
        let mut todo: Vec<OsString> = Vec::new();
        let push = |todo: &mut Vec<OsString>, path: &Path| {
            todo.extend(path.components().rev().map(|part| part.as_os_str().to_owned()));
        };
        push(&mut todo, relative);
        let mut done = PathBuf::new();
        let mut links = 0;
        while let Some(part) = todo.pop() {
            if part == "." {
                continue;
            }
            if part == ".." {
                if !done.pop() {
                    return Err(Errno::XDEV);
                }
                continue;
            }
            done.push(&part);
            match fs::readlinkat(&self.fd, &done, Vec::new()) {
                Ok(target) => {
                    hop(&done);
                    links += 1;
                    if links > MAX_LINKS {
                        return Err(Errno::LOOP);
                    }
                    done.pop();
                    let target = PathBuf::from(OsString::from_vec(target.into_bytes()));
                    if target.is_absolute() {
                        let inside = self.prefixes.iter().find_map(|prefix| target.strip_prefix(prefix).ok());
                        done.clear();
                        push(&mut todo, inside.ok_or(Errno::XDEV)?);
                    } else {
                        push(&mut todo, &target);
                    }
                }
                // Not a symlink.
                Err(Errno::INVAL) => {}
                // The rest cannot exist either; the caller's open says so.
                Err(Errno::NOENT | Errno::NOTDIR) => {
                    hop(&done);
                    done.extend(todo.iter().rev());
                    return Ok(done);
                }
                Err(error) => return Err(error),
            }
        }
        hop(&done);
        Ok(done)
    }

    /// How long ago the file (behind a symlink, what it leads to) was written.
    pub fn age(&self, relative: &Path) -> Option<Duration> {
        let mut stat = fs::statat(&self.fd, relative, AtFlags::SYMLINK_NOFOLLOW).ok()?;
        if FileType::from_raw_mode(stat.st_mode) == FileType::Symlink {
            stat = self.open_beneath(relative, OFlags::PATH).and_then(fs::fstat).ok()?;
        }
        let modified = Duration::from_nanos(u64::try_from(Stamp::of(&stat).mtime).ok()?);
        SystemTime::now().duration_since(SystemTime::UNIX_EPOCH + modified).ok()
    }

    /// The configured path, absolute.
    pub fn shown(&self) -> impl std::fmt::Display + '_ {
        let [_, configured] = &self.prefixes;
        configured.display()
    }

    /// Whether others may change the directory without this kernel knowing.
    pub fn is_remote(&self) -> bool {
        #[allow(clippy::unnecessary_cast, reason = "the field's width differs between architectures")]
        fs::fstatfs(&self.fd).is_ok_and(|stat| REMOTE.contains(&(stat.f_type as u32)))
    }

    /// Whether this descriptor still is what the configured path leads to.
    pub fn is_current(&self, path: &Path) -> bool {
        let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
        fs::stat(path).is_ok_and(|stat| dir_id(&stat) == self.id)
    }

    /// Reads one manifest, unless it is still the version `known`.
    pub fn read(&self, relative: &Path, known: Option<Stamp>) -> FileReading {
        for _ in 0..READ_ATTEMPTS {
            match self.read_once(relative, known) {
                Ok(Some(reading)) => return reading,
                Ok(None) => {}
                Err(Errno::INTR) => {}
                Err(error) => return refused_open(relative, error),
            }
        }
        FileReading::Changing
    }

    /// As [`Self::read`], for what may be no regular file: its type is found out without opening it, because
    /// opening a device can do things.
    pub fn read_carefully(&self, relative: &Path, known: Option<Stamp>) -> FileReading {
        let stat = self.open_beneath(relative, OFlags::PATH).and_then(|fd| fs::fstat(&fd));
        match stat.map(|stat| FileType::from_raw_mode(stat.st_mode)) {
            Ok(FileType::RegularFile) => self.read(relative, known),
            Ok(FileType::Directory) => FileReading::Gone,
            Ok(other) => not_regular(relative, other),
            Err(error) => refused_open(relative, error),
        }
    }

    /// `None`: it changed while being read.
    fn read_once(&self, relative: &Path, known: Option<Stamp>) -> Result<Option<FileReading>, Errno> {
        let shown = relative.display();
        let fd = self.open_beneath(relative, OFlags::RDONLY)?;
        let stat = fs::fstat(&fd)?;
        let stamp = Stamp::of(&stat);
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile => {}
            FileType::Directory => return Ok(Some(FileReading::Gone)),
            other => return Ok(Some(not_regular(relative, other))),
        }
        if known == Some(stamp) {
            return Ok(Some(FileReading::Same));
        }
        let too_large = |bytes: u64| {
            refused(
                "too-large",
                format!(
                    "{shown} holds {bytes} bytes; a manifest may hold {MAX_FILE_BYTES} (hint: split it into several files)"
                ),
            )
        };
        if stamp.size > MAX_FILE_BYTES {
            return Ok(Some(too_large(stamp.size)));
        }
        let Some(bytes) = read_bounded(&fd, stamp.size)? else {
            // It grew past the limit meanwhile.
            return Ok(Some(too_large(
                fs::fstat(&fd).map_or(MAX_FILE_BYTES + 1, |stat| Stamp::of(&stat).size),
            )));
        };
        if Stamp::of(&fs::fstat(&fd)?) != stamp || bytes.len() as u64 != stamp.size {
            return Ok(None);
        }
        Ok(Some(match String::from_utf8(bytes) {
            Ok(text) => FileReading::State(FileState::Text(text), Some(stamp)),
            Err(error) => {
                let at = error.utf8_error().valid_up_to();
                refused("not-utf8", format!("{shown} is not UTF-8 at byte {at} (hint: save it as UTF-8)"))
            }
        }))
    }
}

/// What reading one file gave.
#[derive(Debug)]
pub enum FileReading {
    /// The version that is known already.
    Same,
    /// Not there, or a directory by now.
    Gone,
    /// It was written to all the time; the next event says when it is worth reading.
    Changing,
    /// The stamp is absent where the state must be looked at again every time.
    State(FileState, Option<Stamp>),
}

fn refused(code: &'static str, reason: String) -> FileReading {
    FileReading::State(FileState::Unreadable { code, reason }, None)
}

/// Reads to the end; `None` when more than a manifest may hold comes.
fn read_bounded(fd: &OwnedFd, expected: u64) -> Result<Option<Vec<u8>>, Errno> {
    // One byte more than expected, so that the usual file ends within the first read and its empty successor.
    let mut bytes = Vec::with_capacity(usize::try_from(expected.min(MAX_FILE_BYTES)).unwrap_or(0) + 1);
    loop {
        if bytes.len() as u64 > MAX_FILE_BYTES {
            return Ok(None);
        }
        if bytes.len() == bytes.capacity() {
            bytes.reserve(64 * 1024);
        }
        match rustix::io::read(fd, rustix::buffer::spare_capacity(&mut bytes)) {
            Ok(0) => return Ok(Some(bytes)),
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error),
        }
    }
}

fn not_regular(relative: &Path, kind: FileType) -> FileReading {
    let what = match kind {
        FileType::Fifo => "a FIFO",
        FileType::Socket => "a socket",
        FileType::CharacterDevice | FileType::BlockDevice => "a device",
        _ => "not a regular file",
    };
    refused("not-a-file", format!("{} is {what}; only regular files are read", relative.display()))
}

fn refused_open(relative: &Path, error: Errno) -> FileReading {
    let shown = relative.display();
    match error {
        Errno::NOENT | Errno::NOTDIR => FileReading::Gone,
        Errno::XDEV => refused(
            "symlink-escape",
            format!("{shown} is a symlink that leaves the manifest directory (hint: copy the file into it)"),
        ),
        Errno::LOOP => {
            refused("symlink-loop", format!("{shown} is a symlink that leads nowhere but to itself"))
        }
        Errno::ACCESS | Errno::PERM => refused(
            "permission-denied",
            format!(
                "{shown} may not be read: {error} (hint: the daemon's user needs r on it and x on its directories)"
            ),
        ),
        // What opening a socket, or a device without its driver, says.
        Errno::NXIO | Errno::NODEV => {
            refused("not-a-file", format!("{shown} is a socket or device; only regular files are read"))
        }
        error => refused("read-error", format!("{shown} cannot be read: {error}")),
    }
}

/// What a symlink that leads to nothing is reported as; the last good state stays.
pub fn dangling(relative: &Path) -> FileState {
    FileState::Unreadable {
        code: "symlink-dangling",
        reason: format!("{} is a symlink to something that does not exist", relative.display()),
    }
}

/// What a file that never stands still is reported as, when no earlier version of it is known.
pub fn changing(relative: &Path) -> FileState {
    FileState::Unreadable {
        code: "file-changing",
        reason: format!(
            "{} kept changing while it was read; it is read again when it stands still",
            relative.display()
        ),
    }
}

/// The last part of a path, as bytes.
pub fn last_name(path: &Path) -> &[u8] {
    match path.components().next_back() {
        Some(Component::Normal(name)) => name.as_bytes(),
        _ => b"",
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    /// Old kernels and containers lack `openat2`; what replaces it must judge alike.
    #[test]
    fn the_fallback_opens_and_refuses_what_openat2_does() -> Result<(), Box<dyn std::error::Error>> {
        let base = tempfile::tempdir()?;
        let dir = base.path().join("root");
        std::fs::create_dir_all(dir.join("a/b"))?;
        std::fs::write(dir.join("a/b/file.toml"), "text")?;
        std::fs::write(base.path().join("outside.toml"), "secret")?;
        for (target, link) in [
            ("a/b/file.toml", "inside.toml"),
            ("a", "dir"),
            ("../b/./../b/file.toml", "a/b/up.toml"),
            ("../outside.toml", "escape.toml"),
            ("../root/a/b/file.toml", "out-and-in.toml"),
            ("/etc/hostname", "absolute.toml"),
            ("self.toml", "self.toml"),
            ("missing.toml", "dangling.toml"),
        ] {
            symlink(target, dir.join(link))?;
        }
        symlink(dir.join("a/b/file.toml"), dir.join("absolute-inside.toml"))?;
        let root = Root::open(&dir).map_err(|problem| problem.reason)?;
        let check = |path: &str, expected: Result<(), Errno>| {
            let path = Path::new(path);
            let quick = root.open_beneath(path, OFlags::RDONLY).map(drop);
            let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
            let slow =
                root.resolve(path, &mut |_| {}).and_then(|path| root.open_stepwise(&path, flags)).map(drop);
            assert_eq!((quick, slow), (expected, expected), "{}", path.display());
        };
        for path in [
            "a/b/file.toml",
            "a",
            "",
            "inside.toml",
            "dir/b/file.toml",
            "a/b/up.toml",
            "absolute-inside.toml",
        ] {
            check(path, Ok(()));
        }
        for path in ["escape.toml", "out-and-in.toml", "absolute.toml", "..", "a/../../outside.toml"] {
            check(path, Err(Errno::XDEV));
        }
        check("self.toml", Err(Errno::LOOP));
        check("dangling.toml", Err(Errno::NOENT));
        check("a/b/file.toml/x", Err(Errno::NOTDIR));
        Ok(())
    }
}
