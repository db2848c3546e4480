//! Reading the shared tables of a database that was never migrated, as they will be once it is.
//!
//! `plan` promises what `run` would do and writes nothing, so it cannot migrate; but the rows of an existing
//! installation are there, and will be adopted. They are read through whatever columns they have: what the migration
//! adds stands here with the value that it would have.
//! Invariant: one text of each statement, whether the tables are migrated or not.

use sqlx::{Postgres, Row, postgres::PgArguments, query::Query};

use super::{Result, Tx, query, query_built};

/// Each table with the columns that the statements name. `j` is a row as it is: a column that it lacks is no key of it.
const COLUMNS: [(&str, &str); 3] = [
    (
        "llm_providers",
        "id, j->>'name' AS name, j->>'type' AS type, j->>'api_base_url' AS api_base_url,
         CASE WHEN j ? 'enabled' THEN (j->>'enabled')::boolean ELSE true END AS enabled,
         CASE WHEN j ? 'priority' THEN (j->>'priority')::integer ELSE 0 END AS priority,
         CASE WHEN j ? 'api_key_source' THEN j->>'api_key_source' ELSE 'database' END AS api_key_source,
         j->>'api_key_encrypted' AS api_key_encrypted,
         CASE WHEN j ? 'encrypted_api_key' THEN j->>'encrypted_api_key' ELSE j->>'api_key_encrypted' END
             AS encrypted_api_key,
         j->>'api_key_test_status' AS api_key_test_status,
         CASE WHEN j ? 'health_status' THEN j->>'health_status' ELSE 'unknown' END AS health_status,
         CASE WHEN j ? 'config' THEN j->'config' ELSE '{}' END AS config",
    ),
    (
        "llm_models",
        "id, (j->>'provider_id')::uuid AS provider_id, j->>'name' AS name, j->>'model_name' AS model_name,
         j->>'display_name' AS display_name, (j->>'context_length')::bigint AS context_length,
         (j->>'cost_per_1m_tokens')::numeric AS cost_per_1m_tokens,
         (j->>'cost_per_1m_input_tokens')::numeric AS cost_per_1m_input_tokens,
         (j->>'cost_per_1m_output_tokens')::numeric AS cost_per_1m_output_tokens,
         CASE WHEN j ? 'enabled' THEN (j->>'enabled')::boolean ELSE true END AS enabled,
         CASE WHEN j ? 'metadata' THEN j->'metadata' ELSE '{}' END AS metadata",
    ),
    (
        "llm_routing_rules",
        "id, (j->>'model_id')::uuid AS model_id, j->>'power_level' AS power_level, j->>'user_tier' AS user_tier,
         j->>'task_type' AS task_type,
         CASE WHEN j ? 'priority' THEN (j->>'priority')::integer ELSE 100 END AS priority,
         CASE WHEN j ? 'weight' THEN (j->>'weight')::integer ELSE 100 END AS weight,
         CASE WHEN j ? 'is_active' THEN (j->>'is_active')::boolean ELSE true END AS is_active",
    ),
];

/// Where the rows of the shared tables are read from.
pub(super) struct Tables {
    /// What stands for each table; nothing does where the tables are migrated.
    stand_ins: Option<[(&'static str, String); 3]>,
}

impl Tables {
    /// `unmigrated`: any of the tables may be missing, and columns of those that are there.
    pub(super) async fn of(tx: &mut Tx, unmigrated: bool) -> Result<Self> {
        if !unmigrated {
            return Ok(Self { stand_ins: None });
        }
        let row = query(
            "SELECT to_regclass('llm_providers') IS NOT NULL, to_regclass('llm_models') IS NOT NULL,
                    to_regclass('llm_routing_rules') IS NOT NULL",
        )
        .fetch_one(&mut **tx)
        .await?;
        let mut stand_ins = COLUMNS.map(|(table, _)| (table, String::new()));
        for (at, ((_, text), (table, columns))) in stand_ins.iter_mut().zip(COLUMNS).enumerate() {
            let rows = match row.try_get(at)? {
                true => format!("SELECT t.id, to_jsonb(t) AS j FROM {table} t"),
                false => "SELECT NULL::uuid AS id, '{}'::jsonb AS j WHERE false".to_owned(),
            };
            *text = format!("(SELECT {columns} FROM ({rows}) s)");
        }
        Ok(Self { stand_ins: Some(stand_ins) })
    }

    /// Whether providerd's own tables are there.
    pub(super) const fn are_ours(&self) -> bool {
        self.stand_ins.is_none()
    }

    /// A statement that reads the shared tables, each under an alias.
    pub(super) fn query(&self, sql: &'static str) -> Query<'static, Postgres, PgArguments> {
        match &self.stand_ins {
            None => query(sql),
            Some(stand_ins) => query_built(
                stand_ins.iter().fold(sql.to_owned(), |sql, (table, text)| sql.replace(table, text)),
            ),
        }
    }
}
