//! The database: the only place that knows SQL. One file per resource.
//!
//! Not its job: deciding anything. Invariants: every statement runs in a transaction that sets its own search
//! path, so that a transaction-pooling PgBouncer changes nothing; no statement is prepared by name.

mod apply;
mod error;
mod events;
mod lease;
mod meta;
mod migrate;
mod status;
mod world;

use std::{str::FromStr, time::Duration};

use secrecy::{ExposeSecret, SecretString};
use sqlx::{
    PgPool, Postgres, Transaction,
    postgres::{PgConnectOptions, PgListener, PgPoolOptions},
};
use tokio_util::sync::CancellationToken;

pub use self::{
    error::StoreError,
    events::{Event, EventFilter, NewEvent},
    lease::Lease,
    meta::{Fence, Suspension},
    migrate::MigrationReport,
    status::ProviderRow,
    world::Scope,
};

pub(crate) type Result<T, E = StoreError> = std::result::Result<T, E>;

/// "providerd" as a number: whoever applies or migrates holds this advisory lock until its transaction ends.
const ADVISORY_LOCK: i64 = 0x0070_726f_7669_6472;
/// A peer applies for seconds at most, so waiting longer means that something is wrong.
const LOCK_TIMEOUT: &str = "10s";
/// A daemon that is stopped in the middle of a transaction loses it, and with it the lock, after this time.
const IDLE_TIMEOUT: &str = "6s";
/// A lost listener is built anew after this pause; the periodic resync covers it meanwhile.
const LISTEN_RETRY: Duration = Duration::from_secs(2);

/// How to connect.
#[derive(Clone)]
pub struct Settings {
    pub url: SecretString,
    /// Schema of the shared tables.
    pub schema: String,
    pub max_connections: u32,
    pub connect_timeout: Duration,
}

/// A pool of connections to one database.
#[derive(Clone)]
pub struct Store {
    pool: PgPool,
    schema: String,
}

impl Store {
    /// Prepares connecting; the first connection is made when it is needed.
    ///
    /// # Errors
    /// The URL is none. It is not repeated, because it holds a password.
    pub async fn connect(settings: &Settings) -> Result<Self> {
        let options = PgConnectOptions::from_str(settings.url.expose_secret())
            .map_err(|_| StoreError::Url)?
            .application_name("providerd")
            .statement_cache_capacity(0);
        let pool = PgPoolOptions::new()
            .max_connections(settings.max_connections)
            .acquire_timeout(settings.connect_timeout)
            .idle_timeout(Duration::from_secs(300))
            .connect_lazy_with(options);
        Ok(Self { pool, schema: settings.schema.clone() })
    }

    /// Closes all connections.
    pub async fn close(&self) {
        self.pool.close().await;
    }

    /// A transaction in which unqualified names are the shared tables.
    async fn begin(&self) -> Result<Transaction<'static, Postgres>> {
        let mut tx = self.pool.begin().await?;
        sqlx::query("SELECT set_config('search_path', $1, true), set_config('idle_in_transaction_session_timeout', $2, true)")
            .bind(format!("\"{}\"", self.schema))
            .bind(IDLE_TIMEOUT)
            .execute(&mut *tx)
            .await?;
        Ok(tx)
    }

    /// A transaction that may apply: alone among all daemons, and silent towards the drift notices.
    pub async fn reconcile_begin(&self) -> Result<ReconcileTx> {
        let mut tx = self.begin().await?;
        sqlx::query(
            "SELECT set_config('providerd.applying', 'on', true), set_config('lock_timeout', $1, true)",
        )
        .bind(LOCK_TIMEOUT)
        .execute(&mut *tx)
        .await?;
        sqlx::query("SELECT pg_advisory_xact_lock($1)").bind(ADVISORY_LOCK).execute(&mut *tx).await?;
        Ok(ReconcileTx { tx })
    }

    /// A transaction that only looks: one snapshot, no lock, nothing written.
    pub async fn look_begin(&self) -> Result<ReconcileTx> {
        let mut tx = self.pool.begin_with("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY").await?;
        sqlx::query("SELECT set_config('search_path', $1, true)")
            .bind(format!("\"{}\"", self.schema))
            .execute(&mut *tx)
            .await?;
        Ok(ReconcileTx { tx })
    }

    /// Calls `hint` whenever somebody else may have changed the shared tables, until `stop`.
    ///
    /// A lost connection may have lost notices, so it counts as one. Behind a transaction-pooling proxy no notice
    /// ever comes; the periodic resync finds what changed.
    pub async fn listen_drift(&self, stop: CancellationToken, hint: impl Fn()) {
        while !stop.is_cancelled() {
            let heard = async {
                let mut listener = PgListener::connect_with(&self.pool).await?;
                listener.listen("providerd_drift").await?;
                loop {
                    // `None` is a connection that was lost and made anew.
                    listener.try_recv().await?;
                    hint();
                }
            };
            let lost: Result<(), sqlx::Error> = tokio::select! {
                () = stop.cancelled() => return,
                lost = heard => lost,
            };
            if let Err(error) = lost {
                tracing::debug!(%error, "the drift listener is lost");
            }
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(LISTEN_RETRY) => hint(),
            }
        }
    }
}

/// One transaction of a reconcile pass. Dropping it rolls it back.
pub struct ReconcileTx {
    tx: Transaction<'static, Postgres>,
}

impl ReconcileTx {
    pub async fn commit(self) -> Result<()> {
        Ok(self.tx.commit().await?)
    }

    pub async fn rollback(self) -> Result<()> {
        Ok(self.tx.rollback().await?)
    }

    /// Marks a point to which [`Self::savepoint_rollback`] returns.
    pub async fn savepoint(&mut self) -> Result<()> {
        sqlx::query("SAVEPOINT one").execute(&mut *self.tx).await?;
        Ok(())
    }

    pub async fn savepoint_release(&mut self) -> Result<()> {
        sqlx::query("RELEASE SAVEPOINT one").execute(&mut *self.tx).await?;
        Ok(())
    }

    pub async fn savepoint_rollback(&mut self) -> Result<()> {
        sqlx::query("ROLLBACK TO SAVEPOINT one").execute(&mut *self.tx).await?;
        Ok(())
    }
}
