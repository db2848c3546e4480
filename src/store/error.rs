//! What can go wrong with the database, by what the caller can do about it.

/// Why the database did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The text is no PostgreSQL URL; it is not repeated, because it may hold a password.
    #[error("the database URL is malformed\nhint: it looks like postgres://user:password@host:5432/name")]
    Url,
    #[error("the database cannot be reached: {0}")]
    Unreachable(String),
    /// Somebody else was faster or holds a lock: trying again helps.
    #[error("another transaction is in the way: {0}")]
    Conflict(String),
    /// A value that the database does not take; trying the same again does not help.
    #[error("{0}")]
    Data(String),
    #[error(
        "the database has no providerd tables yet\nhint: `providerd apply` or `providerd run` makes them"
    )]
    NotMigrated,
    #[error("{0}")]
    ForeignLayout(String),
    #[error(
        "the database role may not do this: {0}\nhint: the role needs CREATE on the database, and the shared tables' ownership to add columns"
    )]
    Forbidden(String),
    #[error("the database failed: {0}")]
    Other(String),
}

impl StoreError {
    /// Word for the `reason` label of metrics.
    pub const fn reason(&self) -> &'static str {
        match self {
            Self::Url => "url",
            Self::Unreachable(_) => "unreachable",
            Self::Conflict(_) => "conflict",
            Self::Data(_) => "data",
            Self::NotMigrated => "not-migrated",
            Self::ForeignLayout(_) => "foreign-layout",
            Self::Forbidden(_) => "forbidden",
            Self::Other(_) => "other",
        }
    }

    /// The database refused a value, and so some object, rather than the work as a whole.
    pub const fn is_data(&self) -> bool {
        matches!(self, Self::Data(_))
    }

    pub const fn is_unreachable(&self) -> bool {
        matches!(self, Self::Unreachable(_))
    }

    /// Trying again later may help, without anybody mending anything here.
    pub const fn is_transient(&self) -> bool {
        matches!(self, Self::Unreachable(_) | Self::Conflict(_) | Self::Other(_))
    }
}

impl From<sqlx::Error> for StoreError {
    fn from(error: sqlx::Error) -> Self {
        let sqlx::Error::Database(refused) = &error else {
            return match error {
                sqlx::Error::Io(_)
                | sqlx::Error::Tls(_)
                | sqlx::Error::Protocol(_)
                | sqlx::Error::PoolTimedOut
                | sqlx::Error::PoolClosed
                | sqlx::Error::WorkerCrashed => Self::Unreachable(error.to_string()),
                other => Self::Other(other.to_string()),
            };
        };
        let code = refused.code().unwrap_or_default().into_owned();
        let message = refused.message().to_owned();
        match code.as_str() {
            "42P01" | "3F000" => Self::NotMigrated,
            "42501" => Self::Forbidden(message),
            "40001" | "40P01" | "55P03" => Self::Conflict(message),
            "53300" | "25P03" => Self::Unreachable(message),
            code => match code.get(..2) {
                // Data, integrity, and what a trigger raised.
                Some("22" | "23" | "P0") => Self::Data(message),
                // Connection, operator intervention (shutdown, crash, start-up), authorization, no such database.
                Some("08" | "57" | "28" | "3D") => Self::Unreachable(message),
                _ => Self::Other(format!("{message} (SQLSTATE {code})")),
            },
        }
    }
}
