//! The neighbour: a role with rights on the shared tables alone, and an operator who drops connections.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use sqlx::{AssertSqlSafe, Connection as _, PgConnection};
use tokio::task::JoinHandle;

use super::chance::Chance;
use crate::support::lab::Lab;

/// Whether whole tables are locked, or were since a moment.
#[derive(Clone, Default)]
pub struct TableLocks(Arc<AtomicU64>);

impl TableLocks {
    /// Even: no table is locked whole. Grows with each lock and each release.
    pub fn epoch(&self) -> u64 {
        self.0.load(Ordering::SeqCst)
    }

    /// Whether a table was locked whole at any time since `before` was the epoch.
    pub fn since(&self, before: u64) -> bool {
        before % 2 == 1 || self.epoch() != before
    }

    fn turn(&self) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

/// What the neighbour did.
#[derive(Debug, Default)]
pub struct Counts {
    stored: AtomicU64,
    refused: AtomicU64,
    redirected: AtomicU64,
    copied_keys: AtomicU64,
    deleted: AtomicU64,
    row_locks: AtomicU64,
    table_locks: AtomicU64,
    advisory_locks: AtomicU64,
    forgotten_begins: AtomicU64,
    dropped_connections: AtomicU64,
}

impl Counts {
    /// It did something of each kind.
    #[track_caller]
    pub fn worked(&self) {
        for count in [
            &self.stored,
            &self.redirected,
            &self.copied_keys,
            &self.deleted,
            &self.row_locks,
            &self.table_locks,
            &self.advisory_locks,
            &self.forgotten_begins,
            &self.dropped_connections,
        ] {
            assert!(count.load(Ordering::SeqCst) > 0, "the neighbour was idle: {self:?}");
        }
    }
}

fn count(of: &AtomicU64) {
    of.fetch_add(1, Ordering::SeqCst);
}

#[derive(Clone)]
pub struct Neighbour {
    pub lab: Arc<Lab>,
    pub role: String,
    pub over: Arc<AtomicBool>,
    pub locks: TableLocks,
    pub counts: Arc<Counts>,
    /// The URL of the neighbour's own host.
    pub thief: String,
}

/// Rows that are none of the steady ones, by table.
fn fair(table: &str) -> &'static str {
    match table {
        "llm_providers" => "name NOT LIKE 'steady%'",
        "llm_models" => "provider_id NOT IN (SELECT id FROM llm_providers WHERE name LIKE 'steady%')",
        "llm_routing_rules" => {
            "(model_id IS NULL OR model_id NOT IN (SELECT m.id FROM llm_models m JOIN llm_providers p ON p.id = m.provider_id WHERE p.name LIKE 'steady%'))"
        }
        _ => "true",
    }
}

const TABLES: &[&str] = &["llm_providers", "llm_models", "llm_routing_rules", "llm_usage_logs"];

/// A role that may write the shared tables, and nothing else.
pub async fn role(lab: &Lab) -> String {
    let role = format!("neighbour_{}", uuid::Uuid::new_v4().simple());
    lab.execute(&format!(
        "CREATE ROLE {role} LOGIN;
         GRANT SELECT, INSERT, UPDATE, DELETE ON llm_providers, llm_models, llm_routing_rules, llm_usage_logs TO {role}"
    ))
    .await;
    role
}

impl Neighbour {
    pub fn begin(&self, seed: u64) -> Vec<JoinHandle<()>> {
        let own = || self.clone();
        vec![
            tokio::spawn(own().writes(Chance::new(seed ^ 1))),
            tokio::spawn(own().writes(Chance::new(seed ^ 2))),
            tokio::spawn(own().redirects(Chance::new(seed ^ 3))),
            tokio::spawn(own().locks_rows(Chance::new(seed ^ 4))),
            tokio::spawn(own().locks_rows(Chance::new(seed ^ 5))),
            tokio::spawn(own().locks_tables(Chance::new(seed ^ 6))),
            tokio::spawn(own().forgets(Chance::new(seed ^ 7))),
            tokio::spawn(own().drops_connections(Chance::new(seed ^ 8))),
        ]
    }

    async fn connect(&self, program: &str) -> PgConnection {
        let url = self.lab.url.replace("postgres@", &format!("{}@", self.role));
        let mut connection = PgConnection::connect(&url).await.expect("it may connect");
        // It waits for its own kind no longer than this, so that it is never idle.
        run(&mut connection, &format!("SET application_name = '{program}'; SET lock_timeout = '2s'")).await;
        connection
    }

    fn is_over(&self) -> bool {
        self.over.load(Ordering::SeqCst)
    }

    /// Pauses, but not beyond the end.
    async fn pause(&self, ms: u64) {
        let mut left = ms;
        while left > 0 && !self.is_over() {
            let part = left.min(50);
            tokio::time::sleep(Duration::from_millis(part)).await;
            left -= part;
        }
    }

    /// Random values into random columns of random rows.
    async fn writes(self, mut chance: Chance) {
        let mut connection = self.connect("neighbour-writes").await;
        let columns: Vec<(String, String, String)> = sqlx::query_as(
            "SELECT c.relname::text, a.attname::text, t.typname::text FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid
             JOIN pg_type t ON t.oid = a.atttypid
             WHERE c.relname IN ('llm_providers', 'llm_models', 'llm_routing_rules', 'llm_usage_logs') AND a.attnum > 0
               AND NOT a.attisdropped ORDER BY 1, a.attnum",
        )
        .fetch_all(&mut connection)
        .await
        .expect("the tables are there");
        assert!(columns.len() > 60, "{columns:?}");
        let mut number = 0;
        while !self.is_over() {
            let at = usize::try_from(chance.below(columns.len() as u64)).expect("an index");
            let (table, column, kind) = &columns[at];
            let value = chance.value(kind, &self.thief);
            let fair = fair(table);
            number += 1;
            let sql = match number % 60 {
                1 => format!(
                    "DELETE FROM {table} WHERE id = (SELECT id FROM {table} WHERE {fair} ORDER BY random() LIMIT 1)"
                ),
                _ => format!(
                    "UPDATE {table} SET {column} = {value} WHERE id = (SELECT id FROM {table} WHERE {fair} ORDER BY random() LIMIT 1)"
                ),
            };
            let done = run(&mut connection, &sql).await;
            count(match (done, sql.starts_with("DELETE")) {
                (true, true) => &self.counts.deleted,
                (true, false) => &self.counts.stored,
                (false, _) => &self.counts.refused,
            });
            self.pause(10 + chance.below(30)).await;
        }
    }

    /// Rows of its own beside copied tokens, and rows of others that name its own host.
    async fn redirects(self, mut chance: Chance) {
        let mut connection = self.connect("neighbour-redirects").await;
        let thief = self.thief.clone();
        while !self.is_over() {
            let victim = chance.below(super::VICTIMS as u64);
            let number = chance.below(20);
            let (sql, counted) = match chance.below(6) {
                0 => (
                    format!("UPDATE llm_providers SET api_base_url = '{thief}', api_key_test_status = 'pending' WHERE name = 'victim-{victim}'"),
                    &self.counts.redirected,
                ),
                1 => (
                    format!(
                        "UPDATE llm_providers SET api_base_url = NULL, config = jsonb_build_object('base_url', '{thief}') WHERE name = 'victim-{victim}'"
                    ),
                    &self.counts.redirected,
                ),
                2 => (
                    format!(
                        "INSERT INTO llm_providers (name, type, priority, enabled, api_base_url, api_key_encrypted)
                         SELECT 'own-{number}', 'openai', 9999, true, '{thief}', api_key_encrypted FROM llm_providers
                         WHERE name NOT LIKE 'own%' ORDER BY random() LIMIT 1
                         ON CONFLICT (name) DO UPDATE SET api_key_encrypted = excluded.api_key_encrypted,
                             api_base_url = excluded.api_base_url, type = excluded.type, enabled = true,
                             api_key_test_status = 'pending'"
                    ),
                    &self.counts.copied_keys,
                ),
                3 => (
                    format!(
                        "UPDATE llm_providers SET api_key_test_status = 'pending', api_key_encrypted =
                             (SELECT api_key_encrypted FROM llm_providers WHERE name = 'steady-{}') WHERE name = 'victim-{victim}'",
                        number % super::STEADY as u64
                    ),
                    &self.counts.copied_keys,
                ),
                4 => (
                    format!(
                        "INSERT INTO llm_models (provider_id, name, enabled) SELECT id, 'm', true FROM llm_providers WHERE name = 'own-{number}'
                         ON CONFLICT DO NOTHING"
                    ),
                    &self.counts.stored,
                ),
                _ => (
                    format!(
                        "INSERT INTO llm_routing_rules (model_id, power_level, user_tier, priority)
                         SELECT m.id, 'eco', 'all', 100000 FROM llm_models m JOIN llm_providers p ON p.id = m.provider_id
                         WHERE p.name = 'own-{number}' AND NOT EXISTS (SELECT FROM llm_routing_rules r WHERE r.model_id = m.id)"
                    ),
                    &self.counts.stored,
                ),
            };
            count(if run(&mut connection, &sql).await { counted } else { &self.counts.refused });
            self.pause(50 + chance.below(200)).await;
        }
    }

    /// One row after the other, for up to five seconds.
    async fn locks_rows(self, mut chance: Chance) {
        let mut connection = self.connect("neighbour-holds-rows").await;
        while !self.is_over() {
            let table = chance.of(TABLES);
            let how = chance.of(&["FOR UPDATE", "FOR NO KEY UPDATE", "FOR SHARE", "FOR KEY SHARE"]);
            let limit = 1 + chance.below(4);
            let fair = fair(table);
            let sql = format!("BEGIN; SELECT FROM {table} WHERE {fair} ORDER BY id LIMIT {limit} {how}");
            if run(&mut connection, &sql).await {
                count(&self.counts.row_locks);
                self.pause(chance.below(5000)).await;
            }
            run(&mut connection, chance.of(&["ROLLBACK", "COMMIT"])).await;
            self.pause(chance.below(500)).await;
        }
    }

    /// Whole tables, in every mode, for up to two seconds.
    async fn locks_tables(self, mut chance: Chance) {
        let mut connection = self.connect("neighbour-holds-tables").await;
        while !self.is_over() {
            self.pause(1000 + chance.below(8000)).await;
            let table = chance.of(TABLES);
            let mode =
                chance.of(&["SHARE", "SHARE ROW EXCLUSIVE", "EXCLUSIVE", "ACCESS EXCLUSIVE", "ACCESS SHARE"]);
            self.locks.turn();
            if run(&mut connection, &format!("BEGIN; LOCK TABLE {table} IN {mode} MODE")).await {
                count(&self.counts.table_locks);
                self.pause(100 + chance.below(1900)).await;
            }
            run(&mut connection, "ROLLBACK").await;
            self.locks.turn();
        }
    }

    /// Begins, perhaps writes something, and is idle for up to half a minute; holds advisory locks of any number.
    async fn forgets(self, mut chance: Chance) {
        let mut connection = self.connect("neighbour-forgets").await;
        while !self.is_over() {
            let number = chance.of(&[
                "8102940340936410482",
                "0",
                "1",
                "-1",
                "hashtext('providerd')",
                "x'70726f7669646572'::bit(64)::bigint",
                "x'70726f766d696772'::bit(64)::bigint",
            ]);
            if run(&mut connection, &format!("SELECT pg_advisory_lock({number})")).await {
                count(&self.counts.advisory_locks);
            }
            let victim = chance.below(super::VICTIMS as u64);
            let work = match chance.below(3) {
                0 => "SELECT count(*) FROM llm_providers".to_owned(),
                1 => format!("UPDATE llm_providers SET priority = 77 WHERE name = 'victim-{victim}'"),
                _ => "INSERT INTO llm_usage_logs (model_name) VALUES ('forgotten')".to_owned(),
            };
            let begin = format!("BEGIN ISOLATION LEVEL REPEATABLE READ; {work}");
            if run(&mut connection, &begin).await {
                count(&self.counts.forgotten_begins);
                self.pause(2000 + chance.below(28_000)).await;
            }
            run(&mut connection, "ROLLBACK").await;
            run(&mut connection, "SELECT pg_advisory_unlock_all()").await;
        }
    }

    /// Ends or cancels what the daemon has open, one or all.
    async fn drops_connections(self, mut chance: Chance) {
        let mut connection = self.lab.connect().await;
        while !self.is_over() {
            self.pause(1500 + chance.below(6000)).await;
            let how = chance.of(&["pg_terminate_backend", "pg_cancel_backend"]);
            let limit = chance.of(&["1", "ALL"]);
            let sql = format!(
                "SELECT {how}(pid) FROM (SELECT pid FROM pg_stat_activity WHERE datname = current_database()
                 AND application_name LIKE 'providerd%' ORDER BY random() LIMIT {limit}) q"
            );
            if run(&mut connection, &sql).await {
                count(&self.counts.dropped_connections);
            }
        }
    }
}

/// Whether it was done.
async fn run(connection: &mut PgConnection, sql: &str) -> bool {
    match sqlx::raw_sql(AssertSqlSafe(sql.to_owned())).execute(&mut *connection).await {
        Ok(_) => true,
        Err(sqlx::Error::Database(_)) => false,
        Err(error) => panic!("{sql}: {error}"),
    }
}
