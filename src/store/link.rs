//! One transaction on a connection of the pool: the one place where statements are sent.
//!
//! Its job: every wait for the server has an end, and the shared tables are named with their schema. Not its job: what
//! statements say. Invariants: a connection that is left in the middle of anything is closed, never given back; nothing in
//! `search_path` is a schema that others may write to.

use std::{
    future::Future,
    ops::{Deref, DerefMut},
    pin::Pin,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use futures_util::{
    FutureExt as _, StreamExt as _, TryStreamExt as _,
    future::BoxFuture,
    stream::{self, BoxStream},
};
use sqlx::{
    AssertSqlSafe, Describe, Either, Error, Execute, Executor, PgConnection, PgPool, Postgres, SqlStr,
    pool::PoolConnection,
    postgres::{PgCopyIn, PgQueryResult, PgRow, PgStatement, PgTypeInfo},
};
use tokio::time::Instant;

use super::Result;

/// How much longer than the server a client waits for a statement: the answer must still travel.
const MARGIN: Duration = Duration::from_secs(5);

/// What has no limit on the server (a migration of a large table) has this one here.
const PATIENCE: Duration = Duration::from_secs(24 * 3600);

/// When the database answered last, by any connection of one store.
#[derive(Debug, Clone)]
pub(super) struct LinkPulse {
    began: Instant,
    /// Milliseconds after `began`.
    at: Arc<AtomicU64>,
}

impl LinkPulse {
    pub(super) fn new() -> Self {
        Self { began: Instant::now(), at: Arc::default() }
    }

    fn beat(&self) {
        let now = u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.at.fetch_max(now, Ordering::Relaxed);
    }

    /// How long ago that was; before the first answer, since the store was made.
    pub(super) fn age(&self) -> Duration {
        self.began.elapsed().saturating_sub(Duration::from_millis(self.at.load(Ordering::Relaxed)))
    }
}

/// A connection inside a transaction.
#[derive(Debug)]
pub(super) struct Link {
    conn: Option<PoolConnection<Postgres>>,
    /// The schema of the shared tables, quoted; `None`: names are sent as they are.
    schema: Option<Arc<str>>,
    /// Texts of the shared tables travel as bytes: the database takes any for one.
    bytes: bool,
    limit: Duration,
    pulse: LinkPulse,
    /// A statement was begun and not followed to its end.
    torn: bool,
}

/// A transaction. Dropped without an end, it takes its connection along, and the server rolls back.
#[derive(Debug)]
pub(super) struct Tx(Link);

impl Deref for Tx {
    type Target = Link;

    fn deref(&self) -> &Link {
        &self.0
    }
}

impl DerefMut for Tx {
    fn deref_mut(&mut self) -> &mut Link {
        &mut self.0
    }
}

impl Drop for Tx {
    fn drop(&mut self) {
        if let Some(conn) = self.0.conn.take() {
            drop(conn.detach());
        }
    }
}

impl Tx {
    /// Takes a connection and begins. `statement_timeout`: what the server was given; zero for none.
    pub(super) async fn begin(
        pool: &PgPool,
        begin: &Arc<str>,
        schema: &Arc<str>,
        statement_timeout: Duration,
        pulse: &LinkPulse,
        any_bytes: &OnceLock<bool>,
    ) -> Result<Self> {
        let conn = Some(pool.acquire().await?);
        let limit = if statement_timeout.is_zero() { PATIENCE } else { statement_timeout + MARGIN };
        let mut tx =
            Self(Link { conn, schema: None, bytes: false, limit, pulse: pulse.clone(), torn: false });
        if let Err(error) = tx.execute(AssertSqlSafe(Arc::clone(begin))).await {
            // What it says comes first; a connection that cannot be put right goes with it.
            let _ = tx.end("ROLLBACK").await;
            return Err(error.into());
        }
        tx.schema = Some(Arc::clone(schema));
        tx.bytes = match any_bytes.get() {
            Some(bytes) => *bytes,
            None => {
                let asked: String =
                    sqlx::query_scalar("SELECT getdatabaseencoding()::text").fetch_one(&mut *tx).await?;
                *any_bytes.get_or_init(|| asked == "SQL_ASCII")
            }
        };
        Ok(tx)
    }

    pub(super) async fn commit(self) -> Result<(), Error> {
        self.end("COMMIT").await
    }

    pub(super) async fn rollback(self) -> Result<(), Error> {
        self.end("ROLLBACK").await
    }

    async fn end(mut self, word: &'static str) -> Result<(), Error> {
        // What was not read to its end is not waited for.
        if !self.torn {
            self.execute(word).await?;
            self.0.conn.take();
        }
        Ok(())
    }

    /// From now on statements may take as long as they take.
    pub(super) fn without_limits(&mut self) {
        self.limit = PATIENCE;
    }

    /// Begins a COPY; see `Limited` for what follows.
    pub(super) async fn copy(&mut self, statement: &str) -> Result<Copying<'_>, Error> {
        let statement = self.qualified(statement);
        let Link { conn, limit, torn, pulse, .. } = &mut self.0;
        let conn: &mut PgConnection = conn.as_deref_mut().ok_or(Error::PoolClosed)?;
        *torn = true;
        let server = within(*limit, conn.copy_in_raw(&statement)).await?;
        Ok(Copying { server, limit: *limit, torn, pulse })
    }
}

/// A COPY under way.
pub(super) struct Copying<'t> {
    server: PgCopyIn<&'t mut PgConnection>,
    limit: Duration,
    torn: &'t mut bool,
    pulse: &'t LinkPulse,
}

impl Copying<'_> {
    pub(super) async fn send(&mut self, block: &[u8]) -> Result<(), Error> {
        within(self.limit, self.server.send(block)).await?;
        Ok(())
    }

    pub(super) async fn finish(self) -> Result<(), Error> {
        let done = within(self.limit, self.server.finish()).await;
        // The server's refusal is an answer too.
        if done.as_ref().err().is_none_or(is_answer) {
            *self.torn = false;
            self.pulse.beat();
        }
        done.map(drop)
    }
}

/// Whether it came from the server, so that the connection is still of use.
const fn is_answer(error: &Error) -> bool {
    !matches!(
        error,
        Error::Io(_) | Error::Tls(_) | Error::Protocol(_) | Error::WorkerCrashed | Error::PoolClosed
    )
}

fn too_late(limit: Duration) -> Error {
    let text = format!("no answer within {} s; the connection is given up", limit.as_secs());
    Error::Io(std::io::Error::new(std::io::ErrorKind::TimedOut, text))
}

async fn within<T>(limit: Duration, work: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
    tokio::time::timeout(limit, work).await.unwrap_or_else(|_| Err(too_late(limit)))
}

impl Link {
    /// A statement with the shared tables named in full.
    pub(super) fn qualified(&self, sql: &str) -> String {
        let full = match &self.schema {
            Some(schema) => qualify(sql, schema),
            None => sql.to_owned(),
        };
        if self.bytes {
            // Into no encoding: not looked at.
            full.replace("/*bytes*/(", "convert_to(").replace(")/*bytes*/", ", 'SQL_ASCII')")
        } else {
            full
        }
    }
}

/// The shared tables, and the parts of the log that are named in statements. Indexes, constraints and triggers have names of
/// their own, which take no schema.
const NAMED: [&str; 6] = [
    "llm_providers",
    "llm_models",
    "llm_routing_rules",
    "llm_usage_logs",
    "llm_usage_logs_before",
    "llm_usage_logs_rest",
];

/// Puts `schema` before every name of a shared table. What stands inside of text is left, but for names on their way to
/// `regclass`.
fn qualify(sql: &str, schema: &str) -> String {
    let mut full = String::with_capacity(sql.len() + 64);
    let mut rest = sql;
    while let Some(at) = rest.find("llm_") {
        let (before, from) = rest.split_at(at);
        let length = from.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(from.len());
        let (name, after) = from.split_at(length);
        full.push_str(before);
        let plain = before.is_empty() || before.ends_with([' ', '\n', '(', ',']);
        let looked_up =
            before.ends_with('\'') && (after.starts_with("'::regclass") || before.ends_with("to_regclass('"));
        if (plain || looked_up) && NAMED.contains(&name) {
            full.push_str(&if looked_up { schema.replace('\'', "''") } else { schema.to_owned() });
            full.push('.');
        }
        full.push_str(name);
        rest = after;
    }
    full.push_str(rest);
    full
}

type Step = Result<Either<PgQueryResult, PgRow>, Error>;

/// The answers to one statement, which must all be there in time.
struct Answers<'e> {
    steps: BoxStream<'e, Step>,
    late: Pin<Box<tokio::time::Sleep>>,
    limit: Duration,
    torn: &'e mut bool,
    pulse: &'e LinkPulse,
    over: bool,
}

impl Answers<'_> {
    fn next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Step>> {
        if self.over {
            return Poll::Ready(None);
        }
        match self.steps.poll_next_unpin(cx) {
            Poll::Ready(step) => {
                if step.as_ref().is_none_or(Result::is_err) {
                    self.over = true;
                    // After an error of the server its connection is ready again.
                    if step.as_ref().is_none_or(|step| step.as_ref().err().is_none_or(is_answer)) {
                        *self.torn = false;
                    }
                }
                if step.as_ref().is_none_or(|step| step.as_ref().err().is_none_or(is_answer)) {
                    self.pulse.beat();
                }
                Poll::Ready(step)
            }
            Poll::Pending => {
                std::task::ready!(self.late.poll_unpin(cx));
                self.over = true;
                Poll::Ready(Some(Err(too_late(self.limit))))
            }
        }
    }
}

impl<'c> Executor<'c> for &'c mut Link {
    type Database = Postgres;

    fn fetch_many<'e, 'q: 'e, E>(self, mut query: E) -> BoxStream<'e, Step>
    where
        'c: 'e,
        E: 'q + Execute<'q, Postgres>,
    {
        let arguments = match query.take_arguments() {
            Ok(arguments) => arguments,
            Err(error) => return stream::once(async { Err(Error::Encode(error)) }).boxed(),
        };
        let sql = AssertSqlSafe(self.qualified(query.sql().as_str()));
        let Link { conn, limit, pulse, torn, .. } = self;
        let Some(conn) = conn.as_deref_mut() else {
            return stream::once(async { Err(Error::PoolClosed) }).boxed();
        };
        // A statement that leaves no name behind on the server.
        let steps = match arguments {
            Some(arguments) => conn.fetch_many(sqlx::query_with(sql, arguments).persistent(false)),
            None => conn.fetch_many(sqlx::raw_sql(sql)),
        };
        *torn = true;
        let late = Box::pin(tokio::time::sleep(*limit));
        let mut answers = Answers { steps, late, limit: *limit, torn, pulse, over: false };
        stream::poll_fn(move |cx| answers.next(cx)).boxed()
    }

    fn fetch_optional<'e, 'q: 'e, E>(self, query: E) -> BoxFuture<'e, Result<Option<PgRow>, Error>>
    where
        'c: 'e,
        E: 'q + Execute<'q, Postgres>,
    {
        let mut steps = self.fetch_many(query);
        async move {
            let mut first = None;
            while let Some(step) = steps.try_next().await? {
                if let Either::Right(row) = step {
                    first.get_or_insert(row);
                }
            }
            Ok(first)
        }
        .boxed()
    }

    fn prepare_with<'e>(
        self,
        sql: SqlStr,
        parameters: &'e [PgTypeInfo],
    ) -> BoxFuture<'e, Result<PgStatement, Error>>
    where
        'c: 'e,
    {
        let limit = self.limit;
        async move {
            let conn = self.conn.as_deref_mut().ok_or(Error::PoolClosed)?;
            within(limit, conn.prepare_with(sql, parameters)).await
        }
        .boxed()
    }

    fn describe<'e>(self, sql: SqlStr) -> BoxFuture<'e, Result<Describe<Postgres>, Error>>
    where
        'c: 'e,
    {
        let limit = self.limit;
        async move {
            let conn = self.conn.as_deref_mut().ok_or(Error::PoolClosed)?;
            within(limit, conn.describe(sql)).await
        }
        .boxed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shared_tables_are_named_in_full() {
        let check = |sql: &str, expected: &str| assert_eq!(qualify(sql, "\"it's\""), expected);
        check("SELECT 1 FROM llm_models m", "SELECT 1 FROM \"it's\".llm_models m");
        check("llm_providers (id, name)", "\"it's\".llm_providers (id, name)");
        check(
            "x FROM (llm_models),\nllm_providers WHERE llm_providers.id = 1",
            "x FROM (\"it's\".llm_models),\n\"it's\".llm_providers WHERE \"it's\".llm_providers.id = 1",
        );
        check("'llm_models'::regclass", "'\"it''s\".llm_models'::regclass");
        check("to_regclass('llm_models')", "to_regclass('\"it''s\".llm_models')");
        check("relname IN ('llm_models')", "relname IN ('llm_models')");
        check("public.llm_models, \"llm_models\"", "public.llm_models, \"llm_models\"");
        check("drop keep_llm_models", "drop keep_llm_models");
        check(
            "CREATE INDEX llm_models_name ON llm_models (name)",
            "CREATE INDEX llm_models_name ON \"it's\".llm_models (name)",
        );
        check(
            "ALTER TABLE llm_usage_logs RENAME TO \"llm_usage_logs_before\"",
            "ALTER TABLE \"it's\".llm_usage_logs RENAME TO \"llm_usage_logs_before\"",
        );
    }
}
