//! Makes a cluster, and writes its configuration.
//!
//! Invariant: `data` appears by one rename, complete and on disk, or not at all.

use std::{
    ffi::OsStr,
    fs, io,
    io::{Read as _, Seek as _, Write as _},
    os::unix::{
        fs::{OpenOptionsExt as _, fchown},
        process::CommandExt as _,
    },
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use nix::{
    sys::{prctl, signal::Signal, stat},
    unistd,
};

use super::{EmbeddedError, binaries::Binaries, place::ClusterPlace, wire};

/// Clusters under construction are named so; what a crash leaves of them is removed by the next start.
const UNFINISHED: &str = "data.new-";

/// The most of a program's output that an error shows.
const MAX_OUTPUT: usize = 4096;

/// Small, quiet and durable: a catalog of 10,000 providers is a few tens of MiB. What is not named here
/// keeps PostgreSQL's default, and so fsync, full_page_writes and synchronous_commit are on.
const CONFIGURATION: &str = "\
# Written by providerd at every start: changes here are lost. ALTER SYSTEM SET … is kept.
listen_addresses = ''
unix_socket_permissions = 0700
max_connections = 40
superuser_reserved_connections = 2
shared_buffers = 32MB
work_mem = 4MB
maintenance_work_mem = 32MB
max_parallel_workers = 0
max_parallel_workers_per_gather = 0
max_parallel_maintenance_workers = 0
max_worker_processes = 2
max_logical_replication_workers = 0
max_wal_senders = 2
min_wal_size = 32MB
max_wal_size = 256MB
wal_compression = on
autovacuum_max_workers = 1
jit = off
timezone = 'UTC'
log_timezone = 'UTC'
lc_messages = 'C'
log_line_prefix = '%m [%p] '
log_checkpoints = off
# The text of a failed statement may hold what belongs in no log.
log_min_error_statement = panic
log_parameter_max_length = 0
log_parameter_max_length_on_error = 0
";

/// Only over the socket, only as the one role, only users that the map names.
const HOST_BASED_ACCESS: &str = "\
# Written by providerd at every start: changes here are lost.
local all providerd peer map=providerd
";

/// The major version of the cluster; `None` if there is no cluster.
pub fn version(data: &Path) -> Result<Option<u32>, EmbeddedError> {
    let path = data.join("PG_VERSION");
    match fs::read_to_string(&path) {
        Ok(text) => text.trim().parse().map(Some).map_err(|_| {
            EmbeddedError::io("understand", &path)(io::Error::other("not a PostgreSQL version"))
        }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => match fs::symlink_metadata(data) {
            Err(absent) if absent.kind() == io::ErrorKind::NotFound => Ok(None),
            // Never taken for an empty place: it may be a cluster on a disk that is going bad.
            _ => Err(EmbeddedError::io("read", &path)(error)),
        },
        Err(error) => Err(EmbeddedError::io("read", &path)(error)),
    }
}

/// Makes the cluster with its role and database.
pub fn create(place: &ClusterPlace, binaries: &Binaries) -> Result<(), EmbeddedError> {
    remove_unfinished(place);
    let temp = place.base.join(format!("{UNFINISHED}{}", uuid::Uuid::new_v4().simple()));
    place.private_dir(&temp)?;
    let result = fill(place, binaries, &temp).and_then(|()| {
        fs::rename(&temp, place.data())
            .map_err(EmbeddedError::io("move the new cluster into place", &temp))?;
        sync_dir(&place.base)
    });
    if result.is_err() {
        // The error that counts is the first one.
        let _ = fs::remove_dir_all(&temp);
    }
    result
}

fn fill(place: &ClusterPlace, binaries: &Binaries, data: &Path) -> Result<(), EmbeddedError> {
    // The C locale exists everywhere and sorts the same after every upgrade of the system's library.
    let mut initdb = program(place, &binaries.program("initdb"));
    initdb.arg("-D").arg(data).args([
        "-U",
        wire::ROLE,
        "--auth-local=peer",
        "--auth-host=reject",
        "--encoding=UTF8",
        "--locale=C",
        "--data-checksums",
        "--no-instructions",
    ]);
    run(initdb, "initdb", "")?;
    configure(place, data)?;

    let mut single = program(place, &binaries.program("postgres"));
    single.args(["--single", "-c", "exit_on_error=on", "-D"]).arg(data).arg("template1");
    run(single, "postgres --single", &format!("CREATE DATABASE {}\n", wire::ROLE))
}

/// Writes the configuration files that differ from what they should be.
pub fn configure(place: &ClusterPlace, data: &Path) -> Result<(), EmbeddedError> {
    // Root always: it could become the owner anyway, and it is who starts the owner's server.
    let mut users = vec!["root"];
    if place.owner.name != "root" {
        users.push(&place.owner.name);
    }
    let map: String = users.iter().map(|user| format!("providerd \"{user}\" {}\n", wire::ROLE)).collect();
    let map = format!("# Written by providerd at every start: changes here are lost.\n{map}");
    for (name, content) in [
        ("postgresql.conf", CONFIGURATION),
        ("pg_hba.conf", HOST_BASED_ACCESS),
        ("pg_ident.conf", map.as_str()),
    ] {
        let path = data.join(name);
        replace(place, &path, content).map_err(EmbeddedError::io("write", &path))?;
    }
    sync_dir(data)
}

fn replace(place: &ClusterPlace, path: &Path, content: &str) -> io::Result<()> {
    if fs::read(path).is_ok_and(|current| current == content.as_bytes()) {
        return Ok(());
    }
    let temp = path.with_extension("conf.new");
    match fs::remove_file(&temp) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temp)?;
    if place.drops_privileges() {
        fchown(&file, Some(place.owner.uid.as_raw()), Some(place.owner.gid.as_raw()))?;
    }
    file.write_all(content.as_bytes())?;
    file.sync_all()?;
    fs::rename(&temp, path)
}

fn sync_dir(path: &Path) -> Result<(), EmbeddedError> {
    fs::File::open(path).and_then(|dir| dir.sync_all()).map_err(EmbeddedError::io("sync", path))
}

fn remove_unfinished(place: &ClusterPlace) {
    let Ok(entries) = fs::read_dir(&place.base) else { return };
    for entry in entries.flatten() {
        if entry.file_name().to_string_lossy().starts_with(UNFINISHED) {
            // What cannot be removed now is in no one's way.
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

/// A PostgreSQL program: as the owner, in a session of its own, with next to nothing in its environment.
///
/// A session of its own keeps a terminal's Ctrl-C, which goes to the whole foreground group, from stopping
/// the server under a daemon that is still finishing. The empty environment keeps secrets and `PG…`
/// variables away from it.
pub fn program(place: &ClusterPlace, path: &Path) -> Command {
    let mut command = Command::new(path);
    let search = path.parent().map(Path::as_os_str).unwrap_or(OsStr::new("/usr/bin")).to_owned();
    command.env_clear().env("PATH", search).env("LC_ALL", "C").env("TZ", "UTC").current_dir("/");
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    if place.drops_privileges() {
        // With a user id set and no groups named, the standard library drops all supplementary groups.
        command.uid(place.owner.uid.as_raw()).gid(place.owner.gid.as_raw());
    }
    // SAFETY: between fork and exec only async-signal-safe calls are made: setsid and umask.
    unsafe {
        command.pre_exec(|| {
            unistd::setsid()?;
            stat::umask(stat::Mode::from_bits_truncate(0o077));
            Ok(())
        });
    }
    command
}

/// Runs a program that must not outlive this process to its end.
fn run(mut command: Command, name: &str, input: &str) -> Result<(), EmbeddedError> {
    let spawn_error = |command: &Command, source| EmbeddedError::Spawn {
        program: PathBuf::from(command.get_program()),
        source,
    };
    // A file and not pipes: no process can block on it, and it can be read at the end.
    let (mut output, mut stdin) = match (scratch(), scratch()) {
        (Ok(output), Ok(stdin)) => (output, stdin),
        (Err(source), _) | (_, Err(source)) => return Err(spawn_error(&command, source)),
    };
    let wired = stdin
        .write_all(input.as_bytes())
        .and_then(|()| stdin.rewind())
        .and_then(|()| Ok((output.try_clone()?, output.try_clone()?)));
    match wired {
        Ok((out, err)) => command.stdin(stdin).stdout(out).stderr(err),
        Err(source) => return Err(spawn_error(&command, source)),
    };
    let parent = unistd::getpid();
    // SAFETY: prctl and getppid are async-signal-safe.
    unsafe {
        command.pre_exec(move || {
            // After the change of user, which would reset it. If this process is killed, so is the program.
            prctl::set_pdeathsig(Signal::SIGKILL)?;
            if unistd::getppid() != parent {
                return Err(io::Error::other("the parent process ended"));
            }
            Ok(())
        });
    }
    let status = command.status().map_err(|source| spawn_error(&command, source))?;
    if status.success() {
        return Ok(());
    }
    let mut text = String::new();
    let read = output.rewind().and_then(|()| {
        let mut bytes = Vec::new();
        output.read_to_end(&mut bytes)?;
        text = tail(&bytes, MAX_OUTPUT);
        Ok(())
    });
    if let Err(error) = read {
        text = format!("its output cannot be read: {error}");
    }
    Err(EmbeddedError::Program { program: name.to_owned(), status: status.to_string(), output: text })
}

/// A file without a name.
fn scratch() -> io::Result<fs::File> {
    Ok(rustix::fs::memfd_create("providerd", rustix::fs::MemfdFlags::CLOEXEC)?.into())
}

/// The last `limit` bytes as text, from the start of a line if there is one.
pub fn tail(bytes: &[u8], limit: usize) -> String {
    let start = bytes.len().saturating_sub(limit);
    let part = bytes.get(start..).unwrap_or_default();
    let line = match part.iter().position(|byte| *byte == b'\n') {
        Some(end) if start > 0 && end + 1 < part.len() => part.get(end + 1..).unwrap_or_default(),
        _ => part,
    };
    String::from_utf8_lossy(line).trim_end().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tails_start_at_a_line() {
        fn check(text: &str, limit: usize, expected: &str) {
            assert_eq!(tail(text.as_bytes(), limit), expected);
        }
        check("", 10, "");
        check("one\ntwo\n", 100, "one\ntwo");
        check("one\ntwo\n", 6, "two");
        check("longline\n", 4, "ine");
    }
}
