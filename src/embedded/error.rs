//! What can go wrong with the embedded database, and what to do about it.

use std::{io, path::PathBuf};

/// Why the embedded PostgreSQL cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum EmbeddedError {
    #[error(
        "no PostgreSQL programs (initdb, postgres) found in {searched}\n\
         hint: `apt install postgresql`, or set DATABASE_URL to a database that runs elsewhere"
    )]
    NoBinaries { searched: String },
    #[error(
        "PostgreSQL {found} in {} is too old: {minimum} or later is needed\n\
         hint: install a newer one beside it, or set DATABASE_URL", .bin.display()
    )]
    TooOld { bin: PathBuf, found: u32, minimum: u32 },
    #[error(
        "{} was made by PostgreSQL {data}, but only {found} is installed\n\
         hint: `apt install postgresql-{data}`; both versions can be installed side by side", .data_dir.display()
    )]
    VersionMismatch { data_dir: PathBuf, data: u32, found: String },
    #[error("{}: cannot {action}", .path.display())]
    Io {
        action: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error(
        "PostgreSQL does not run as root, and neither user `postgres` nor `nobody` exists\n\
         hint: run providerd as an ordinary user, or create one: `useradd --system postgres`"
    )]
    NoUnprivilegedUser,
    #[error(
        "user id {uid} has no entry in the user database, without which PostgreSQL does not run\n\
         hint: for a user that systemd made up (DynamicUser) install libnss-systemd; or set DATABASE_URL"
    )]
    UnknownUser { uid: u32 },
    #[error(
        "{} belongs to user id {owner}, but providerd runs as {uid}\n\
         hint: run providerd as its owner or root, or give another state directory", .path.display()
    )]
    ForeignOwner { path: PathBuf, owner: u32, uid: u32 },
    #[error(
        "user {user}, who must run PostgreSQL, cannot reach {}\n\
         hint: make every directory on the way searchable (`chmod o+x`)", .path.display()
    )]
    Unreachable { user: String, path: PathBuf },
    #[error(
        "user {user}, who must run PostgreSQL, cannot reach {}, and {} cannot be made instead\n\
         hint: make every directory on the way searchable (`chmod o+x`), or give another state directory",
        .state_dir.display(), .path.display()
    )]
    NoPlace {
        state_dir: PathBuf,
        user: String,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error(
        "{}: not a private directory of user id {owner}\n\
         hint: another user may have made it; remove it, or set XDG_RUNTIME_DIR", .path.display()
    )]
    UnsafeSocketDir { path: PathBuf, owner: u32 },
    #[error("cannot run {}", .program.display())]
    Spawn {
        program: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{program} failed ({status})\n{output}")]
    Program { program: String, status: String, output: String },
    #[error("PostgreSQL ended while starting ({status}); its log {} ends:\n{tail}", .log.display())]
    Died { status: String, log: PathBuf, tail: String },
    #[error(
        "PostgreSQL did not get ready within {seconds} s ({state}); its log {} ends:\n{tail}", .log.display()
    )]
    NotReady { seconds: u64, state: String, log: PathBuf, tail: String },
    #[error(
        "process {pid} runs on {} but is not usable: {state}\n\
         hint: if it is not needed, `kill -INT {pid}`", .data_dir.display()
    )]
    Unusable { pid: i32, data_dir: PathBuf, state: String },
    #[error(
        "processes of a PostgreSQL that cannot be reached still work on {}\n\
         hint: perhaps in another container; `fuser -v {}` shows them", .data_dir.display(), .lock.display()
    )]
    Occupied { data_dir: PathBuf, lock: PathBuf },
    #[error("another process has been starting or stopping {} for {seconds} s", .path.display())]
    Busy { path: PathBuf, seconds: u64 },
    #[error("PostgreSQL (process {pid}) did not stop within {seconds} s\nhint: `kill -QUIT {pid}`")]
    NotStopped { pid: i32, seconds: u64 },
    #[error("the work on the embedded PostgreSQL was cut short")]
    Interrupted(#[source] tokio::task::JoinError),
}

impl EmbeddedError {
    /// For `map_err`: what was being done to which path.
    pub(super) fn io(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { action, path, source }
    }
}
