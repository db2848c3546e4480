//! What can go wrong with the database, sorted by what the caller can do about it.
//!
//! Invariant: no message holds a bound value, a URL or a password; PostgreSQL's own `DETAIL` may quote row values,
//! so it is dropped.

use std::sync::Arc;

#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Nobody answers, refuses the connection, is starting up or going down: wait and try again.
    #[error(
        "the database cannot be reached: {0}; hint: check database.url and that PostgreSQL accepts connections"
    )]
    Unreachable(String),
    /// The tables belong to somebody whose layout cannot be joined; nothing was touched.
    #[error("the database has a foreign layout: {0}; nothing was changed")]
    ForeignLayout(String),
    #[error(
        "the database is not migrated; hint: `providerd apply` or `providerd run` does it, or point database.url at the right one"
    )]
    NotMigrated,
    /// Somebody else changed the same rows at the same time: read again and retry.
    #[error("the database changed while it was being read or written ({0}); it is tried again")]
    Conflict(String),
    /// The database refuses a value. `provider` is named where the database tells which row it was.
    #[error("the database refuses {}: {message}", match provider { Some(name) => format!("provider \"{name}\""), None => "a value".to_owned() })]
    Data { provider: Option<Arc<str>>, message: String },
    /// Another daemon has applied a catalog since: nothing more may be written from this state.
    #[error("another daemon has applied a newer catalog; this one's changes were dropped")]
    Fenced,
    #[error("{0}")]
    Other(String),
}

pub type Result<T, E = StoreError> = std::result::Result<T, E>;

impl StoreError {
    /// Whether the same call may succeed later without anybody changing anything.
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::Unreachable(_) | Self::Conflict(_) | Self::Fenced)
    }

    /// Whether the database refused some object, rather than the work as a whole.
    pub const fn is_data(&self) -> bool {
        matches!(self, Self::Data { .. })
    }

    pub const fn is_unreachable(&self) -> bool {
        matches!(self, Self::Unreachable(_))
    }

    /// Word for the `reason` label of metrics.
    pub const fn reason(&self) -> &'static str {
        match self {
            Self::Unreachable(_) => "unreachable",
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
    match (code, class) {
        // serialization_failure, deadlock_detected, lock_not_available: a race with another writer.
        ("40001" | "40P01" | "55P03", _) => StoreError::Conflict(text),
        ("42P01" | "3F000", _) => StoreError::NotMigrated,
        // Connection exceptions, bad credentials, no such database, insufficient resources, operator intervention
        // (57014, a cancelled statement, is a timeout: the server is busy), read-only after a failover, system errors.
        (_, "08" | "28" | "3D" | "53" | "57" | "58") | ("25006", _) => StoreError::Unreachable(text),
        // Data exceptions, constraint violations, and what a trigger raises. A unique violation may be a race, but
        // one that lasts must not hold up everybody else: the object is left out and tried again.
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
        check("57P03", "Unreachable");
        check("53300", "Unreachable");
        check("25006", "Unreachable");
        check("28P01", "Unreachable");
        check("22021", "Data");
        check("23514", "Data");
        check("42P01", "NotMigrated");
        check("42601", "Other");
        check("", "Other");
    }
}
