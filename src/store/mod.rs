//! The database: the only place that knows sqlx and SQL.
//!
//! Not its job: deciding what to write (`plan`), opening or sealing keys (`secret`).
//!
//! Invariants: every statement runs inside an explicit transaction and is prepared without a name, so that a
//! transaction-pooling PgBouncer may stand between; the shared tables are named with their schema (`link`); every wait
//! has an end; reading writes nothing, and a transaction that only reads takes no transaction id.

mod admin_reads;
mod apply;
mod budget_leases;
mod cells;
mod columns;
mod copy;
mod create;
mod discovery;
mod error;
mod events;
mod gateway_objects;
mod health;
mod leases;
mod link;
mod listen;
mod llm_pages;
mod locks;
mod migrate;
mod picture;
mod status;
mod unmigrated;
mod usage;
mod usage_keep;
mod usage_read;
mod usage_sums;
mod world;

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, OnceLock},
    time::Duration,
};

use secrecy::{ExposeSecret, SecretString};
use sqlx::{
    AssertSqlSafe, PgPool, Postgres,
    postgres::{PgArguments, PgConnectOptions, PgPoolOptions},
    query::Query,
};
use uuid::Uuid;

use catalog::{model::Revision, plan::ProviderPlan};

use link::{LinkPulse, Tx};

pub use crate::store::{
    admin_reads::{CatalogRows, EventQuery, HourRow, ModelRow, ProviderRow, RuleRow},
    budget_leases::{BudgetTaken, LeaseTake, LeaseTaken, SpentSums, wanted_budget},
    discovery::{DiscoveryNotice, DiscoveryRow},
    error::{Result, StoreError},
    events::{EventFilter, EventRow, NewEvent},
    gateway_objects::GatewayObjectRow,
    health::{CheckRow, CheckWrite, KeyRow, NewStatus, RecordedPlace, RowPlace, Span},
    leases::{Lease, Stopped, Suspended, Suspension},
    listen::HintListener,
    llm_pages::{
        PageCounts, PageModel, PageModelFilter, PageModelOwner, PageModelSort, PageProvider, PageRule,
        PageStrategy,
    },
    migrate::{Layout, MigrationReport},
    picture::{PictureModel, PictureProvider, PictureRows, PictureRule},
    status::{ProviderStatus, StatusWrite, UsageTotals},
    usage::{NewUsage, UsageBatch, UsageCursor, UsageShipment, UsageTable, from_micros},
    usage_keep::{UsagePartitionPlan, UsageUpkeep},
    usage_read::{MAX_LINES, UsageBy, UsageLine, UsageQuery, UsageQueryError},
    world::Scope,
};

/// How to reach the database.
#[derive(Debug, Clone)]
pub struct StoreSettings {
    /// `postgres://user@host/db`, or `postgres://user@localhost/db?host=/socket/dir`.
    pub url: SecretString,
    /// Schema of the shared tables.
    pub schema: String,
    pub max_connections: u32,
    /// How long a caller waits for a connection.
    pub acquire_timeout: Duration,
    /// How long one statement may run before the server cancels it; zero: for ever. Migrations are exempt.
    pub statement_timeout: Duration,
}

impl StoreSettings {
    pub fn new(url: SecretString) -> Self {
        Self {
            url,
            schema: "public".to_owned(),
            // One for reconciling, one for health writes, the rest for readers of the API.
            max_connections: 8,
            acquire_timeout: Duration::from_secs(5),
            // The largest statement of a first apply of 100,000 objects takes a few seconds.
            statement_timeout: Duration::from_secs(30),
        }
    }
}

/// A pool of connections; cheap to clone.
#[derive(Clone)]
pub struct Store {
    pool: PgPool,
    options: PgConnectOptions,
    schema: Arc<str>,
    /// The same, quoted.
    quoted: Arc<str>,
    statement_timeout: Duration,
    pulse: LinkPulse,
    /// Whether texts of this database may be of no encoding; unknown before the first transaction.
    any_bytes: Arc<OnceLock<bool>>,
    begin_read: Arc<str>,
    begin_write: Arc<str>,
    begin_reconcile: Arc<str>,
    /// Never migrated: our own tables read as empty, the shared ones as they will be.
    blank: bool,
}

impl std::fmt::Debug for Store {
    /// The options may hold a password.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Store").field("schema", &self.schema).finish_non_exhaustive()
    }
}

/// A statement that leaves no name behind on the server.
fn query(sql: &'static str) -> Query<'static, Postgres, PgArguments> {
    sqlx::query(sql).persistent(false)
}

/// Like [`query`], for text put together from this crate's own constants (column lists), never from input.
fn query_built(sql: String) -> Query<'static, Postgres, PgArguments> {
    sqlx::query(AssertSqlSafe(sql)).persistent(false)
}

/// A quoted SQL identifier.
fn identifier(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

impl Store {
    /// Prepares a pool; opens no connection yet, so it succeeds while the database is away.
    ///
    /// # Errors
    /// [`StoreError::Other`] if the URL cannot be understood.
    pub async fn connect(settings: &StoreSettings) -> Result<Self> {
        let options: PgConnectOptions = settings.url.expose_secret().parse()?;
        let options = options
            .application_name("providerd")
            .statement_cache_capacity(0)
            // PgBouncer refuses start-up parameters that it does not track; this one is not needed: floats
            // travel in binary.
            .extra_float_digits(None);
        let pool = PgPoolOptions::new()
            .max_connections(settings.max_connections.max(2))
            .acquire_timeout(settings.acquire_timeout)
            .idle_timeout(Duration::from_secs(300))
            .max_lifetime(Duration::from_secs(1800))
            .connect_lazy_with(options.clone());
        // No other role may put anything where names are looked for: an operator of another program, were it a better
        // fit, would run with our rights.
        let common = format!(
            "SET LOCAL search_path TO pg_catalog, pg_temp; SET LOCAL statement_timeout TO {}; \
             SET LOCAL timezone TO 'UTC'; SET LOCAL lock_timeout TO ",
            settings.statement_timeout.as_millis()
        );
        let abandoned = format!("SET LOCAL idle_in_transaction_session_timeout TO {}", ABANDONED.as_millis());
        Ok(Self {
            pool,
            options,
            schema: settings.schema.as_str().into(),
            quoted: identifier(&settings.schema).into(),
            statement_timeout: settings.statement_timeout,
            pulse: LinkPulse::new(),
            any_bytes: Arc::default(),
            blank: false,
            begin_read: format!("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; {common}{LOCKED_LONG}")
                .into(),
            begin_write: format!("BEGIN; {common}{LOCKED_LONG}; {abandoned}").into(),
            // A table that holds nothing and that only its owner may lock: a number could be taken by any role.
            begin_reconcile: format!(
                "BEGIN ISOLATION LEVEL REPEATABLE READ; {common}{LOCKED_SHORT}; {abandoned}; \
                 SET LOCAL providerd.applying TO 'on'; LOCK TABLE providerd.applying IN EXCLUSIVE MODE NOWAIT"
            )
            .into(),
        })
    }

    /// The same database, taken to be one that was never migrated: our own tables are not looked for, and the shared ones
    /// are read through whatever columns they have.
    #[must_use]
    pub fn blank(&self) -> Self {
        Self { blank: true, ..self.clone() }
    }

    pub const fn is_blank(&self) -> bool {
        self.blank
    }

    /// Closes all connections. One that does not answer is left to the end of the process.
    pub async fn close(&self) {
        let _ = tokio::time::timeout(CLOSE_LIMIT, self.pool.close()).await;
    }

    /// How long ago the database answered last; before its first answer, how long this store is there.
    pub fn silence(&self) -> Duration {
        self.pulse.age()
    }

    /// Adds to [`StoreError::Locked`] who holds the shared tables.
    pub async fn name_holders(&self, error: StoreError) -> StoreError {
        let StoreError::Locked(mut text) = error else { return error };
        for table in columns::TABLES {
            let Ok(holders) = self.holders(table).await else { continue };
            if !holders.is_empty() {
                text += &format!("; {table}{holders}");
            }
        }
        StoreError::Locked(text)
    }

    async fn begin(&self, begin: &Arc<str>) -> Result<Tx> {
        let limit = self.statement_timeout;
        Tx::begin(&self.pool, begin, &self.quoted, limit, &self.pulse, &self.any_bytes).await
    }

    /// A consistent view that can write nothing.
    async fn read(&self) -> Result<Tx> {
        self.begin(&self.begin_read).await
    }

    /// A transaction with the methods of [`ReconcileTx`] that only reads: one snapshot, no lock.
    ///
    /// # Errors
    /// The database cannot be reached.
    pub async fn look_begin(&self) -> Result<ReconcileTx> {
        Ok(ReconcileTx { blank: self.blank, ..ReconcileTx::new(self.read().await?) })
    }

    async fn write(&self) -> Result<Tx> {
        self.begin(&self.begin_write).await
    }

    /// A transaction that changes tables. Statements may take long; a lock timeout stays, so as not to queue up readers.
    async fn write_ddl(&self) -> Result<Tx> {
        let mut tx = self.write().await?;
        tx.without_limits();
        query("SELECT set_config('statement_timeout', '0', true), set_config('lock_timeout', '10000', true)")
            .execute(&mut *tx)
            .await?;
        Ok(tx)
    }

    /// Begins the one transaction that reads the world and applies a catalog. Waits for another daemon's to end.
    ///
    /// # Errors
    /// [`StoreError::Conflict`] if another one still holds the lock after [`LOCK_WAIT`].
    pub async fn reconcile_begin(&self) -> Result<ReconcileTx> {
        let deadline = tokio::time::Instant::now() + LOCK_WAIT;
        loop {
            // A transaction that has waited would read the world as it was before the wait: none waits, all begin again.
            match self.begin(&self.begin_reconcile).await {
                Ok(tx) => return Ok(ReconcileTx::new(tx)),
                Err(StoreError::Locked(_)) if tokio::time::Instant::now() < deadline => {}
                Err(StoreError::Locked(_)) => {
                    let holders = self.holders("providerd.applying").await.unwrap_or_default();
                    return Err(StoreError::Conflict(format!("another daemon is applying{holders}")));
                }
                Err(error) => return Err(error),
            }
            tokio::time::sleep(Duration::from_millis(25)).await;
        }
    }
}

/// Milliseconds that a statement waits for a lock of another program: as long as an orderly one may take.
const LOCKED_LONG: u32 = 2_000;

/// The same in a pass: it goes on without what is locked, and looks again soon.
const LOCKED_SHORT: u32 = 300;

/// Of the 5 s that a stop may take, what is left for this.
const CLOSE_LIMIT: Duration = Duration::from_millis(500);

/// A process that is frozen, or whose machine is gone, in the middle of a transaction keeps its locks until the server
/// gives it up: by the time its lease has run out (8 s), so that its successor can write. Between two statements of a
/// pass there is only planning and encrypting, which take a second for 10,000 providers.
const ABANDONED: Duration = Duration::from_secs(8);

/// Longer than any healthy apply (10,000 providers take about a second), shorter than the 10 s takeover.
const LOCK_WAIT: Duration = Duration::from_secs(8);

/// The transaction of one reconcile: REPEATABLE READ, holding the lock of passes. Dropped, it rolls back.
pub struct ReconcileTx {
    tx: Tx,
    /// For rows whose key columns disagree: the token that opens.
    align: HashMap<Uuid, String>,
    /// Names with a bookkeeping row, as far as `world` has read.
    known: HashSet<Arc<str>>,
    /// Whether `known` is complete.
    known_all: bool,
    /// As [`Store::blank`].
    blank: bool,
}

impl ReconcileTx {
    fn new(tx: Tx) -> Self {
        Self { tx, align: HashMap::new(), known: HashSet::new(), known_all: false, blank: false }
    }

    /// Marks a point to come back to.
    pub async fn savepoint(&mut self) -> Result<()> {
        self.simple("SAVEPOINT providerd").await
    }

    /// Undoes everything since the last [`Self::savepoint`], which stays and can be used again.
    pub async fn rollback_to(&mut self) -> Result<()> {
        self.simple("ROLLBACK TO SAVEPOINT providerd").await
    }

    /// What the database says against these plans; `None`: it takes them. Nothing of them stays.
    ///
    /// # Errors
    /// It failed otherwise.
    pub async fn refuses(
        &mut self,
        plans: &[ProviderPlan],
        tokens: &HashMap<Arc<str>, String>,
        revision: Option<&Revision>,
    ) -> Result<Option<String>> {
        let tried = self.apply(plans, tokens, revision).await;
        let refused = match tried {
            Ok(()) => None,
            Err(error) if error.is_data() => Some(error.to_string()),
            Err(error) => return Err(error),
        };
        self.rollback_to().await?;
        Ok(refused)
    }

    pub async fn commit(self) -> Result<()> {
        Ok(self.tx.commit().await?)
    }

    pub async fn rollback(self) -> Result<()> {
        Ok(self.tx.rollback().await?)
    }

    async fn simple(&mut self, sql: &'static str) -> Result<()> {
        query(sql).execute(&mut *self.tx).await?;
        Ok(())
    }
}
