//! What `status` shows of each provider.

use chrono::{DateTime, NaiveDateTime, Utc};
use sqlx::Row;

use super::{Result, Store};

/// One provider as the tables hold it.
#[derive(Debug, Clone, PartialEq)]
pub struct ProviderRow {
    pub name: String,
    pub kind: Option<String>,
    pub enabled: Option<bool>,
    pub health_status: Option<String>,
    pub last_health_check: Option<DateTime<Utc>>,
    pub has_key: bool,
    pub api_key_test_status: Option<String>,
    pub api_key_last_tested: Option<DateTime<Utc>>,
    pub models: i64,
    /// providerd created or adopted it.
    pub managed: bool,
    /// Where it was declared when it was last applied.
    pub file: Option<String>,
    pub line: Option<i32>,
}

impl Store {
    /// Every provider of the table, managed or not, by name.
    pub async fn provider_rows(&self) -> Result<Vec<ProviderRow>> {
        let mut tx = self.look_begin().await?;
        let rows = sqlx::query(
            "SELECT p.name, p.type, p.enabled, p.health_status, p.last_health_check::timestamp, \
             coalesce(p.api_key_encrypted, '') <> '', p.api_key_test_status, p.api_key_last_tested::timestamp, \
             (SELECT count(*) FROM llm_models m WHERE m.provider_id = p.id), g.name IS NOT NULL, g.file, g.line \
             FROM llm_providers p LEFT JOIN providerd.managed g ON g.provider_id = p.id ORDER BY p.name",
        )
        .fetch_all(&mut *tx.tx)
        .await?;
        let utc = |at: Option<NaiveDateTime>| at.map(|at| at.and_utc());
        rows.into_iter()
            .map(|row| {
                Ok(ProviderRow {
                    name: row.try_get(0)?,
                    kind: row.try_get(1)?,
                    enabled: row.try_get(2)?,
                    health_status: row.try_get(3)?,
                    last_health_check: utc(row.try_get(4)?),
                    has_key: row.try_get(5)?,
                    api_key_test_status: row.try_get(6)?,
                    api_key_last_tested: utc(row.try_get(7)?),
                    models: row.try_get(8)?,
                    managed: row.try_get(9)?,
                    file: row.try_get(10)?,
                    line: row.try_get(11)?,
                })
            })
            .collect()
    }

    /// The names of all providers of the table.
    pub async fn provider_names(&self) -> Result<Vec<String>> {
        let mut tx = self.look_begin().await?;
        let rows = sqlx::query("SELECT name FROM llm_providers ORDER BY name").fetch_all(&mut *tx.tx).await?;
        rows.iter().map(|row| Ok(row.try_get(0)?)).collect()
    }
}
