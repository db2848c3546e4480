//! What can go wrong with the database, sorted by what the caller can do about it.
//!
//! Invariant: no message holds a bound value, a URL or a password; PostgreSQL's own `DETAIL` may quote row values,
//! so it is dropped.

use std::sync::Arc;

#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// No answer, or a connection that could not be made: wait and try again.
    #[error(
        "the database cannot be reached: {0}; hint: check database.url and that PostgreSQL accepts connections"
    )]
    Unreachable(String),
    /// The server answers, and cannot do its work now: wait and try again.
    #[error("{}: {message}; hint: {}", trouble.words(), trouble.hint())]
    Unable { trouble: Trouble, message: String },
    /// Another session holds a lock for longer than one waits.
    #[error("locked by another session: {0}")]
    Locked(String),
    /// The role lacks a right, or row-level security hides rows from it.
    #[error("the database role may not do this: {0}; hint: {hint}", hint = denied_hint(.0))]
    Denied(String),
    /// The tables belong to another program whose layout cannot be joined; nothing was touched.
    #[error("the database has a foreign layout: {0}; nothing was changed")]
    ForeignLayout(String),
    #[error(
        "the database is not migrated; hint: `providerd apply` or `providerd run` does it, or point database.url at the right one"
    )]
    NotMigrated,
    /// The same rows were changed at the same time: read again and retry.
    #[error("the database changed while it was being read or written ({0}); it is tried again")]
    Conflict(String),
    /// The database refuses a value. `provider` is named where the database says which row it was.
    #[error("the database refuses {}: {message}", match provider { Some(name) => format!("provider \"{name}\""), None => "a value".to_owned() })]
    Data { provider: Option<Arc<str>>, message: String },
    /// Another daemon has applied a catalog since: nothing more may be written from this state.
    #[error("another daemon has applied a newer catalog; this one's changes were dropped")]
    Fenced,
    #[error("{0}")]
    Other(String),
}

/// Why a server that answers cannot be used now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trouble {
    DiskFull,
    /// A standby, or `default_transaction_read_only`.
    ReadOnly,
    /// No connection is left for this role.
    Crowded,
    Memory,
    /// A statement or a transaction took longer than it may.
    Slow,
    /// Starting up, recovering or going down.
    Restarting,
    Login,
    NoDatabase,
    System,
}

impl Trouble {
    /// What is wrong, as a clause.
    pub const fn words(self) -> &'static str {
        match self {
            Self::DiskFull => "the database's disk is full",
            Self::ReadOnly => "the database is read-only",
            Self::Crowded => "the database has no connection left",
            Self::Memory => "the database is out of memory",
            Self::Slow => "the database took too long",
            Self::Restarting => "the database is starting or stopping",
            Self::Login => "the database refuses the login",
            Self::NoDatabase => "the server has no such database",
            Self::System => "the database server fails",
        }
    }

    const fn hint(self) -> &'static str {
        match self {
            Self::DiskFull => "free space where PostgreSQL keeps its data",
            Self::ReadOnly => {
                "point database.url at the primary server, or look at default_transaction_read_only"
            }
            Self::Crowded => "raise max_connections or the role's limit, or lower database.max_connections",
            Self::Memory => "look at the server's log and its memory",
            Self::Slow => "look for long transactions and a busy disk (pg_stat_activity)",
            Self::Restarting => "it is tried again",
            Self::Login => "check the user and password in database.url, and pg_hba.conf",
            Self::NoDatabase => "check the name of the database in database.url",
            Self::System => "look at the server's log",
        }
    }

    const fn reason(self) -> &'static str {
        match self {
            Self::DiskFull => "disk-full",
            Self::ReadOnly => "read-only",
            Self::Crowded => "connections",
            Self::Memory => "memory",
            Self::Slow => "timeout",
            Self::Restarting | Self::System => "unreachable",
            Self::Login | Self::NoDatabase => "login",
        }
    }
}

fn denied_hint(message: &str) -> &'static str {
    if message.contains("row-level security") {
        "row-level security is on for this table: give the role BYPASSRLS, or a policy that lets it read and write every row"
    } else {
        "grant the role what docs/OPERATIONS.md lists, or connect as the tables' owner"
    }
}

pub type Result<T, E = StoreError> = std::result::Result<T, E>;

impl StoreError {
    /// Whether the same call may succeed later without a change of settings or rights.
    pub const fn is_transient(&self) -> bool {
        matches!(
            self,
            Self::Unreachable(_) | Self::Unable { .. } | Self::Locked(_) | Self::Conflict(_) | Self::Fenced
        )
    }

    /// Whether other sessions were in the way, with locks or by writing the same.
    pub const fn is_contended(&self) -> bool {
        matches!(self, Self::Locked(_) | Self::Conflict(_) | Self::Unable { trouble: Trouble::Slow, .. })
    }

    /// Whether the database refused some object, rather than the work as a whole.
    pub const fn is_data(&self) -> bool {
        matches!(self, Self::Data { .. })
    }

    /// Whether nothing can be done with the database now, by any caller.
    pub const fn is_unreachable(&self) -> bool {
        matches!(self, Self::Unreachable(_) | Self::Unable { .. })
    }

    /// What is wrong, for those who may know no more.
    pub const fn cause(&self) -> &'static str {
        match self {
            Self::Unable { trouble, .. } => trouble.words(),
            Self::Denied(_) => "the database role lacks a right",
            Self::Locked(_) => "another session keeps a table locked",
            Self::ForeignLayout(_) => "the database has a foreign layout",
            Self::NotMigrated => "the database is not migrated",
            _ => "the database is not reachable",
        }
    }

    /// Word for the `reason` label of metrics.
    pub const fn reason(&self) -> &'static str {
        match self {
            Self::Unreachable(_) => "unreachable",
            Self::Unable { trouble, .. } => trouble.reason(),
            Self::Locked(_) => "locked",
            Self::Denied(_) => "denied",
            Self::ForeignLayout(_) => "foreign-layout",
            Self::NotMigrated => "not-migrated",
            Self::Conflict(_) => "conflict",
            Self::Data { .. } => "data",
            Self::Fenced => "fenced",
            Self::Other(_) => "other",
        }
    }
}

impl From<sqlx::Error> for StoreError {
    fn from(error: sqlx::Error) -> Self {
        use sqlx::Error as E;
        match error {
            E::Database(database) => {
                let code = database.code().unwrap_or_default().into_owned();
                classify(&code, database.message())
            }
            E::Io(io) => Self::Unreachable(io.to_string()),
            E::Tls(tls) => Self::Unreachable(format!("TLS: {tls}")),
            E::PoolTimedOut => {
                Self::Unreachable("no connection became free or could be opened in time".to_owned())
            }
            E::PoolClosed | E::WorkerCrashed => Self::Unreachable("the connection pool is closed".to_owned()),
            E::BeginFailed => Self::Unreachable("a transaction could not be begun".to_owned()),
            E::Protocol(what) => Self::Unreachable(format!("unexpected answer: {what}")),
            E::ColumnDecode { index, source } => {
                Self::Other(format!("column {index} cannot be read: {source}"))
            }
            // A configuration error may quote the URL, which may hold a password.
            E::Configuration(_) => Self::Other("database.url is not a valid PostgreSQL URL".to_owned()),
            other => Self::Other(other.to_string()),
        }
    }
}

/// Sorts by SQLSTATE (PostgreSQL's Appendix A).
fn classify(code: &str, message: &str) -> StoreError {
    let class = code.get(..2).unwrap_or_default();
    let text = format!("{message} (SQLSTATE {code})");
    let unable = |trouble| StoreError::Unable { trouble, message: text.clone() };
    match (code, class) {
        // lock_not_available
        ("55P03", _) => StoreError::Locked(text),
        // serialization_failure, deadlock_detected: a race with another writer.
        ("40001" | "40P01", _) => StoreError::Conflict(text),
        ("42P01" | "3F000", _) => StoreError::NotMigrated,
        ("42501", _) => StoreError::Denied(text),
        // COPY and others do not work where policies would have to be looked at.
        ("0A000", _) if message.contains("row-level security") => StoreError::Denied(text),
        ("25006", _) => unable(Trouble::ReadOnly),
        // What was idle, or took, too long in a transaction; a cancelled statement.
        ("25P03" | "25P04" | "57014", _) => unable(Trouble::Slow),
        ("53100", _) => unable(Trouble::DiskFull),
        ("53200", _) => unable(Trouble::Memory),
        ("53300", _) => unable(Trouble::Crowded),
        ("57P04" | "3D000", _) => unable(Trouble::NoDatabase),
        (_, "57") => unable(Trouble::Restarting),
        (_, "28") => unable(Trouble::Login),
        (_, "53" | "58") => unable(Trouble::System),
        (_, "08") => StoreError::Unreachable(text),
        // Data exceptions, constraint violations, and what a trigger raises. A unique violation may be a race, but
        // one that lasts must not hold up the others: the object is left out and tried again.
        (_, "22" | "23" | "P0") => StoreError::Data { provider: None, message: text },
        _ => StoreError::Other(text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sqlstate_decides_what_the_caller_can_do() {
        let check = |code, expected: &str| {
            let got = format!("{:?}", classify(code, "m"));
            assert!(got.starts_with(expected), "{code}: {got}");
        };
        check("40001", "Conflict");
        check("23505", "Data");
        check("55P03", "Locked");
        check("08006", "Unreachable");
        check("57P03", "Unable { trouble: Restarting");
        check("53300", "Unable { trouble: Crowded");
        check("53100", "Unable { trouble: DiskFull");
        check("25006", "Unable { trouble: ReadOnly");
        check("25P03", "Unable { trouble: Slow");
        check("25P04", "Unable { trouble: Slow");
        check("28P01", "Unable { trouble: Login");
        check("3D000", "Unable { trouble: NoDatabase");
        check("42501", "Denied");
        check("22021", "Data");
        check("23514", "Data");
        check("42P01", "NotMigrated");
        check("42601", "Other");
        check("", "Other");
        let hint = |message| classify("0A000", message).to_string();
        assert!(hint("COPY FROM not supported with row-level security").contains("BYPASSRLS"));
        assert!(classify("53100", "m").to_string().contains("disk is full"));
    }
}
