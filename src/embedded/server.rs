//! The server process: find a running one, start it, stop it, bound its log.
//!
//! Everything here, except reading, happens under the start lock.
//!
//! Invariant: whatever `postmaster.pid` says, a server is believed to run only if that process is a
//! PostgreSQL on this very cluster, and believed to be usable only once it has answered a query. No second
//! one starts while any process of a first lives: all of them inherit `server.lock`, which counts between
//! containers too, where process ids mean nothing.

use std::{
    fs,
    io::{self, Read as _, Seek as _, SeekFrom, Write as _},
    os::unix::{
        ffi::OsStrExt as _,
        fs::{MetadataExt as _, OpenOptionsExt as _},
    },
    path::{Path, PathBuf},
    process::{Child, ExitStatus},
    thread,
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use rustix::fs::OFlags;

use super::{
    EmbeddedError,
    binaries::Binaries,
    cluster,
    lock::Lock,
    place::ClusterPlace,
    wire::{self, Silence},
};

/// A start takes a tenth of a second; after a crash it replays at most 256 MiB of WAL first, which a slow
/// disk needs time for.
const START: Duration = Duration::from_secs(100);
/// A server that says it is ready and does not listen is given up after this long.
const DEAF: Duration = Duration::from_secs(10);
/// How long processes of a killed server may take to end: they notice at their next pause, or at a signal.
const LINGER: Duration = Duration::from_secs(10);
/// A fast shutdown writes a checkpoint. After this long the rest is left to the next start's recovery: a
/// daemon has five seconds to stop.
const FAST: Duration = Duration::from_millis(3500);
/// An immediate shutdown only ends processes.
const IMMEDIATE: Duration = Duration::from_millis(1200);
/// Pause between two looks at a server that starts or stops: a tenth of the time that a start takes.
const PAUSE: Duration = Duration::from_millis(8);

/// The log is cut at this size, and its last part kept beside it.
const MAX_LOG: u64 = 2 * 1024 * 1024;
/// How much of the log an error shows.
const MAX_TAIL: usize = 3000;

/// A process id above every limit that Linux has (`PID_MAX_LIMIT` is 2²²): no process has it.
const NOBODY: i32 = i32::MAX;

/// A server that answers.
#[derive(Debug)]
pub struct Running {
    /// Present if this process started it.
    pub child: Option<Child>,
    /// Where its socket lies.
    pub sockets: PathBuf,
}

/// Takes over the running server or starts one. `alone` says whether no other process uses it, in which case
/// one that is of no use is replaced.
pub fn ensure(
    place: &ClusterPlace,
    binaries: &Binaries,
    alone: impl FnOnce() -> bool,
) -> Result<Running, EmbeddedError> {
    if let Some(pid) = find(place) {
        match take_over(place, pid) {
            Ok(Some(sockets)) => return Ok(Running { child: None, sockets }),
            Ok(None) => {}
            Err(_) if alone() => {
                stop(place, None)?;
            }
            Err(error) => return Err(error),
        }
    }
    start(place, binaries)
}

/// The server's process, if it runs on this cluster.
pub fn find(place: &ClusterPlace) -> Option<i32> {
    let pid = PidFile::read(place)?.pid;
    is_server(pid, &place.data()).then_some(pid)
}

/// Waits for a running server to answer; `None` if it ends meanwhile.
fn take_over(place: &ClusterPlace, pid: i32) -> Result<Option<PathBuf>, EmbeddedError> {
    let begun = Instant::now();
    let unusable = |state: String| EmbeddedError::Unusable { pid, data_dir: place.data(), state };
    while is_server(pid, &place.data()) {
        let file = PidFile::read(place).filter(|file| file.pid == pid);
        let (state, patience) = match file {
            Some(PidFile { ready: true, sockets: Some(sockets), .. }) => {
                match wire::data_directory(&sockets) {
                    Ok(data) if data == place.data() => return Ok(Some(sockets)),
                    Ok(data) => return Err(unusable(format!("its socket serves {}", data.display()))),
                    Err(Silence::Refused(text)) => return Err(unusable(text)),
                    Err(silence @ Silence::NotNow(_)) => (silence.to_string(), START),
                    Err(silence @ Silence::NoServer(_)) => (silence.to_string(), DEAF),
                }
            }
            Some(PidFile { ready: true, sockets: None, .. }) => ("it has no socket".to_owned(), DEAF),
            _ => ("it is starting or stopping".to_owned(), START),
        };
        if begun.elapsed() > patience {
            return Err(unusable(state));
        }
        thread::sleep(PAUSE);
    }
    Ok(None)
}

fn start(place: &ClusterPlace, binaries: &Binaries) -> Result<Running, EmbeddedError> {
    let path = place.server_lock();
    let begun = Instant::now();
    let lock = loop {
        if let Some(lock) = Lock::try_exclusive(place, &path)? {
            break lock;
        }
        // Not a process that can be seen, but one that may answer: in another container.
        for sockets in PidFile::read(place).and_then(|file| file.sockets).iter().chain([&place.sockets]) {
            if wire::data_directory(sockets).is_ok_and(|data| data == place.data()) {
                return Ok(Running { child: None, sockets: sockets.clone() });
            }
        }
        if begun.elapsed() > LINGER {
            return Err(EmbeddedError::Occupied { data_dir: place.data(), lock: path });
        }
        end_orphans(place, begun.elapsed() > LINGER / 2);
        thread::sleep(PAUSE);
    };
    place.private_dir(&place.sockets)?;
    forget_dead(place)?;
    cluster::configure(place, &place.data())?;
    bound_log(place);
    start_once(place, binaries, &lock)
}

fn start_once(place: &ClusterPlace, binaries: &Binaries, lock: &Lock) -> Result<Running, EmbeddedError> {
    let log_path = place.log();
    let log = place.open_private(&log_path).map_err(EmbeddedError::io("open the log", &log_path))?;
    let log_start = log.metadata().map_or(0, |meta| meta.len());
    let log_again = log.try_clone().map_err(EmbeddedError::io("open the log", &log_path))?;
    let tail = || log_tail(&log_path, log_start);

    let program = binaries.program("postgres");
    let mut command = cluster::program(place, &program);
    command.arg("-D").arg(place.data());
    // On the command line, where ALTER SYSTEM cannot open a door.
    command.args(["-c", "listen_addresses=", "-c", &format!("port={}", wire::PORT), "-k"]);
    command.arg(&place.sockets).stdout(log_again).stderr(log);
    lock.inherit(&mut command);
    let child = command.spawn().map_err(|source| EmbeddedError::Spawn { program, source })?;

    let mut starting = Starting(Some(child));
    let begun = Instant::now();
    loop {
        // Asked earlier, it would answer that it is starting, and log that as an error.
        let state = if PidFile::read(place).is_some_and(|file| file.ready && Some(file.pid) == starting.pid())
        {
            match wire::data_directory(&place.sockets) {
                Ok(data) if data == place.data() => {
                    return Ok(Running { child: starting.0.take(), sockets: place.sockets.clone() });
                }
                Ok(data) => format!("its socket serves {}", data.display()),
                Err(silence) => silence.to_string(),
            }
        } else {
            "it is starting".to_owned()
        };
        if let Some(status) = starting.ended() {
            return Err(EmbeddedError::Died { status, log: log_path.clone(), tail: tail() });
        }
        if begun.elapsed() > START {
            let seconds = START.as_secs();
            return Err(EmbeddedError::NotReady { seconds, state, log: log_path.clone(), tail: tail() });
        }
        thread::sleep(PAUSE);
    }
}

/// A server that has not answered yet; ended with this value, however that comes about.
struct Starting(Option<Child>);

impl Starting {
    fn pid(&self) -> Option<i32> {
        self.0.as_ref().map(|child| child.id().cast_signed())
    }

    fn ended(&mut self) -> Option<String> {
        let status: Option<ExitStatus> = self.0.as_mut().and_then(|child| child.try_wait().ok().flatten());
        status.map(|status| status.to_string())
    }
}

impl Drop for Starting {
    fn drop(&mut self) {
        let Some(mut child) = self.0.take() else { return };
        let pid = Pid::from_raw(child.id().cast_signed());
        // Immediate shutdown first: it lets the server end its own children.
        let _ = kill(pid, Signal::SIGQUIT);
        let begun = Instant::now();
        while begun.elapsed() < IMMEDIATE {
            if !matches!(child.try_wait(), Ok(None)) {
                return;
            }
            thread::sleep(PAUSE);
        }
        let _ = child.kill();
        let _ = child.wait();
    }
}

/// Stops the server that runs on this cluster; `false` if none does. Fast first, then immediately.
pub fn stop(place: &ClusterPlace, mut child: Option<Child>) -> Result<bool, EmbeddedError> {
    let Some(pid) = find(place) else {
        reap(&mut child);
        return Ok(false);
    };
    for (signal, patience) in [(Signal::SIGINT, FAST), (Signal::SIGQUIT, IMMEDIATE)] {
        match kill(Pid::from_raw(pid), signal) {
            Ok(()) | Err(Errno::ESRCH) => {}
            Err(errno) => {
                let action = "signal the server of";
                return Err(EmbeddedError::io(action, place.data())(errno.into()));
            }
        }
        let begun = Instant::now();
        while begun.elapsed() < patience {
            reap(&mut child);
            if !is_server(pid, &place.data()) {
                place.remove_short_dir();
                return Ok(true);
            }
            thread::sleep(PAUSE);
        }
    }
    Err(EmbeddedError::NotStopped { pid, seconds: (FAST + IMMEDIATE).as_secs() })
}

/// Takes note of a child's end, so that the kernel forgets it.
pub fn reap(child: &mut Option<Child>) {
    if child.as_mut().is_some_and(|child| !matches!(child.try_wait(), Ok(None))) {
        *child = None;
    }
}

// ---------------------------------------------------------------- postmaster.pid

/// What the server writes about itself: process id, data directory, start time, port, socket directory,
/// address, shared memory, state. The lines appear one after the other.
struct PidFile {
    pid: i32,
    sockets: Option<PathBuf>,
    /// It says that it takes connections.
    ready: bool,
}

impl PidFile {
    fn path(place: &ClusterPlace) -> PathBuf {
        place.data().join("postmaster.pid")
    }

    fn read(place: &ClusterPlace) -> Option<Self> {
        let text = fs::read(Self::path(place)).ok()?;
        Self::parse(&text)
    }

    fn parse(text: &[u8]) -> Option<Self> {
        let mut lines = text.split(|byte| *byte == b'\n');
        let pid: i32 = std::str::from_utf8(lines.next()?).ok()?.trim().parse().ok()?;
        let sockets = lines.nth(3).filter(|line| line.starts_with(b"/"));
        let sockets = sockets.map(|line| PathBuf::from(std::ffi::OsStr::from_bytes(line)));
        let ready = lines.nth(2).is_some_and(|state| state.trim_ascii() == b"ready");
        (pid > 0).then_some(Self { pid, sockets, ready })
    }
}

/// Makes PostgreSQL see that the server named by its lock files is dead.
///
/// It only asks whether a process of that id exists, and one may: after a reboot or in a container ids
/// repeat, and under a parent that does not reap a dead server stays as a zombie. The rest of the file must
/// stay: from it the server learns whether processes of its dead predecessor still hold shared memory.
fn forget_dead(place: &ClusterPlace) -> Result<(), EmbeddedError> {
    for name in [format!(".s.PGSQL.{}.lock", wire::PORT), format!(".s.PGSQL.{}", wire::PORT)] {
        let path = place.sockets.join(name);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(EmbeddedError::io("remove the stale", &path)(error));
            }
            _ => {}
        }
    }
    let path = PidFile::path(place);
    let Ok(text) = fs::read(&path) else { return Ok(()) };
    let rest = text.iter().position(|byte| *byte == b'\n').and_then(|end| text.get(end..));
    let result = match rest {
        Some(rest) => overwrite(place, &path, &[NOBODY.to_string().as_bytes(), rest].concat()),
        // Cut short by a full disk or a crash: PostgreSQL refuses to start on it and asks for its removal.
        None => fs::remove_file(&path),
    };
    result.map_err(EmbeddedError::io("correct the stale", &path))
}

fn overwrite(place: &ClusterPlace, path: &Path, content: &[u8]) -> io::Result<()> {
    let flags = OFlags::NOFOLLOW.bits().cast_signed();
    let mut file = fs::OpenOptions::new().write(true).custom_flags(flags).open(path)?;
    // Root writes in a directory of another user here, who must not lead it to anything else.
    if file.metadata()?.uid() != place.owner.uid.as_raw() {
        return Err(io::ErrorKind::PermissionDenied.into());
    }
    file.write_all(content)?;
    file.set_len(content.len() as u64)
}

// ---------------------------------------------------------------- processes

/// Whether the process is a PostgreSQL server on this data directory. A zombie is not.
fn is_server(pid: i32, data: &Path) -> bool {
    let Ok(stat) = fs::read(format!("/proc/{pid}/stat")) else {
        // Without a view of processes at all, every process counts.
        return !Path::new("/proc/self/stat").exists() && kill(Pid::from_raw(pid), None).is_ok();
    };
    if matches!(process_state(&stat), Some(b'Z' | b'X')) {
        return false;
    }
    match fs::read(format!("/proc/{pid}/cmdline")) {
        Ok(arguments) => is_server_command(&arguments, data),
        // It exists and will not be looked at; better not to start a second one beside it.
        Err(error) => error.kind() == io::ErrorKind::PermissionDenied,
    }
}

/// The letter behind the process's name, which stands in parentheses and may itself hold some.
fn process_state(stat: &[u8]) -> Option<u8> {
    let end = stat.iter().rposition(|byte| *byte == b')')?;
    stat.get(end + 2).copied()
}

fn is_server_command(arguments: &[u8], data: &Path) -> bool {
    let mut arguments = arguments.split(|byte| *byte == 0);
    let program = arguments.next().unwrap_or_default();
    let program = program.rsplit(|byte| *byte == b'/').next().unwrap_or_default();
    matches!(program, b"postgres" | b"postmaster")
        && arguments.any(|argument| argument == data.as_os_str().as_bytes())
}

/// Ends what a killed server left behind: a process that computes does not notice that its server is gone.
/// Only for when there is no server.
fn end_orphans(place: &ClusterPlace, by_force: bool) {
    let data = place.data();
    let Ok(entries) = fs::read_dir("/proc") else { return };
    for entry in entries.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        // A server's processes work in its data directory and call themselves so.
        let here = fs::read_link(entry.path().join("cwd")).is_ok_and(|cwd| cwd == data);
        let named =
            || fs::read(entry.path().join("cmdline")).is_ok_and(|text| text.starts_with(b"postgres: "));
        if here && named() {
            let signal = if by_force { Signal::SIGKILL } else { Signal::SIGQUIT };
            // It may have ended by itself.
            let _ = kill(Pid::from_raw(pid), signal);
        }
    }
}

// ---------------------------------------------------------------- log

/// Keeps the end of a log that has grown too large beside it and empties it. The server appends, so that
/// it goes on at the new end.
pub fn bound_log(place: &ClusterPlace) {
    let path = place.log();
    if fs::metadata(&path).is_ok_and(|meta| meta.len() > MAX_LOG) {
        // The next attempt comes; an old log is not worth failing for.
        let _ = cut_log(place, &path);
    }
}

fn cut_log(place: &ClusterPlace, path: &Path) -> io::Result<()> {
    let mut log = place.open_private(path)?;
    let size = log.seek(SeekFrom::End(0))?;
    log.seek(SeekFrom::Start(size.saturating_sub(MAX_LOG)))?;
    let mut old = place.open_private(&path.with_extension("log.1"))?;
    old.set_len(0)?;
    io::copy(&mut (&log).take(MAX_LOG), &mut old)?;
    log.set_len(0)
}

fn log_tail(path: &Path, from: u64) -> String {
    let read = || -> io::Result<Vec<u8>> {
        let mut file = fs::File::open(path)?;
        let end = file.seek(SeekFrom::End(0))?;
        file.seek(SeekFrom::Start(from.max(end.saturating_sub(MAX_TAIL as u64)).min(end)))?;
        let mut bytes = Vec::new();
        file.take(MAX_TAIL as u64).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    match read() {
        Ok(bytes) => cluster::tail(&bytes, MAX_TAIL),
        Err(error) => format!("(cannot be read: {error})"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pid_files_are_read() {
        fn check(text: &str, expected: Option<(i32, Option<&str>, bool)>) {
            let found = PidFile::parse(text.as_bytes()).map(|file| (file.pid, file.sockets, file.ready));
            assert_eq!(found, expected.map(|(pid, sockets, ready)| (pid, sockets.map(PathBuf::from), ready)));
        }
        let server = "42\n/data\n1700000000\n5432\n/run/x\n\n  1 2\n";
        check(server, Some((42, Some("/run/x"), false)));
        check(&format!("{server}starting\n"), Some((42, Some("/run/x"), false)));
        check(&format!("{server}ready   \n"), Some((42, Some("/run/x"), true)));
        check("42\n/data\n1700000000\n5432\n\n*\n", Some((42, None, false)));
        check("42\n", Some((42, None, false)));
        check("-42\n", None);
        check("", None);
        check("rubbish\n", None);
    }

    #[test]
    fn only_a_server_on_the_same_data_is_one() {
        fn check(arguments: &[u8], expected: bool) {
            assert_eq!(is_server_command(arguments, Path::new("/x/data")), expected);
        }
        check(b"/usr/lib/postgresql/15/bin/postgres\0-D\0/x/data\0-k\0/x/run\0", true);
        check(b"postgres\0-D\0/x/data\0", true);
        check(b"postgres\0-D\0/y/data\0", false);
        check(b"cat\0/x/data\0", false);
        check(b"postgres: checkpointer \0", false);
        check(b"", false);
    }

    #[test]
    fn states_are_found_behind_odd_names() {
        assert_eq!(process_state(b"12 (a) Z (b)) S 1 2"), Some(b'S'));
        assert_eq!(process_state(b"12 (postgres) Z 1"), Some(b'Z'));
        assert_eq!(process_state(b"12 (x)"), None);
        assert_eq!(process_state(b""), None);
    }
}
