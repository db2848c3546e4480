//! What `status` shows of the providers, and what checks and key tests write back.

use std::sync::Arc;

use chrono::{DateTime, Utc};
use serde::Serialize;
use sqlx::Row;
use uuid::Uuid;

use catalog::{
    model::{HealthStatus, KeyStatus, Origin},
    plan::Digest,
};

use super::{
    NewEvent, Result, RowPlace, Store, Tx,
    cells::{Cells, cut, odd_time, time, token},
    events, query,
};

/// One provider as the database holds it now.
#[derive(Debug, Clone, PartialEq)]
pub struct ProviderStatus {
    pub id: Uuid,
    pub name: Arc<str>,
    pub kind: Option<String>,
    pub enabled: Option<bool>,
    pub health_status: Option<String>,
    pub last_health_check: Option<DateTime<Utc>>,
    pub key_test_status: Option<String>,
    pub key_last_tested: Option<DateTime<Utc>>,
    pub key_updated_at: Option<DateTime<Utc>>,
    pub key_source: Option<String>,
    pub has_key: bool,
    pub api_base_url: Option<String>,
    /// `config.base_url`
    pub config_base_url: Option<String>,
    /// Some URL stands in `config`.
    pub any_url: bool,
    pub updated_at: Option<DateTime<Utc>>,
    /// Where it was declared and what was applied last; `None` if no manifest manages it.
    pub managed: Option<(Origin, Digest)>,
    /// The commit from which it was last changed, abbreviated; `+dirty` where the work tree differed.
    pub revision: Option<String>,
    pub models: i64,
    /// What checks remember of it, as they have written it.
    pub memory: Option<String>,
    /// Values of the row that no reader of ours can take, in words.
    pub odd: Vec<String>,
}

impl ProviderStatus {
    /// What the row says about where its provider is.
    pub fn place(&self) -> RowPlace {
        RowPlace {
            kind: self.kind.clone(),
            api_base_url: self.api_base_url.clone(),
            config_base_url: self.config_base_url.clone(),
            any_url: self.any_url,
            applied: None,
        }
    }
}

/// What a check or a key test found out; `None` leaves the column as it is.
#[derive(Debug, Clone, PartialEq)]
pub struct StatusWrite {
    pub id: Uuid,
    pub health_status: Option<HealthStatus>,
    pub last_health_check: Option<DateTime<Utc>>,
    pub key_status: Option<KeyStatus>,
    pub key_last_tested: Option<DateTime<Utc>>,
    /// The verdict belongs to this key only: a key stored later keeps its `pending`.
    pub key_updated_at: Option<DateTime<Utc>>,
}

/// Sums over the usage log.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct UsageTotals {
    pub provider_id: Uuid,
    pub calls: i64,
    pub failures: i64,
    pub prompt_tokens: i64,
    pub completion_tokens: i64,
    pub cost_usd: f64,
}

impl Store {
    /// All providers, or those of these names, by name.
    pub async fn provider_status_rows(&self, names: Option<&[String]>) -> Result<Vec<ProviderStatus>> {
        if self.is_blank() {
            return Ok(Vec::new());
        }
        let mut tx = self.read().await?;
        let rows = query(concat!(
            "SELECT p.id, ",
            cut!("p.name"),
            ", ",
            cut!("p.type"),
            ", p.enabled, ",
            cut!("p.health_status"),
            ", ",
            time!("p.last_health_check"),
            ", ",
            cut!("p.api_key_test_status"),
            ", ",
            time!("p.api_key_last_tested"),
            ", ",
            time!("p.api_key_updated_at"),
            ", ",
            cut!("p.api_key_source"),
            ", coalesce(p.api_key_encrypted, '') <> '' OR coalesce(p.encrypted_api_key, '') <> '', ",
            cut!("p.api_base_url"),
            ", ",
            time!("p.updated_at"),
            ", g.file, g.line, g.digest, coalesce(m.n, 0), h.memory, g.revision, concat_ws(' ', ",
            odd_time!("p.last_health_check"),
            ", ",
            odd_time!("p.api_key_last_tested"),
            ", ",
            odd_time!("p.api_key_updated_at"),
            ", ",
            odd_time!("p.updated_at"),
            ", ",
            odd_time!("p.created_at"),
            "), /*bytes*/(left(p.config->>'base_url', 4096))/*bytes*/, coalesce(p.config::text LIKE '%://%', false)
             FROM llm_providers p
             LEFT JOIN providerd.managed g ON g.provider_id = p.id
             LEFT JOIN providerd.health h ON h.provider_id = p.id
             LEFT JOIN (SELECT provider_id, count(*) AS n FROM llm_models GROUP BY 1) m ON m.provider_id = p.id
             WHERE $1::text[] IS NULL OR p.name::text = ANY($1)
             ORDER BY g.provider_id IS NULL, p.name LIMIT 200000"
        ))
        .bind(names)
        .fetch_all(&mut *tx)
        .await?;
        tx.rollback().await?;
        let mut found = Vec::with_capacity(rows.len());
        for row in &rows {
            let mut cells = Cells::of(row);
            let Some(id) = cells.get(0, "id") else { continue };
            let digest: Option<&[u8]> = row.try_get(15)?;
            let line: Option<i32> = row.try_get(14)?;
            let managed = cells.text(13).map(|file| {
                let line = u32::try_from(line.unwrap_or_default()).unwrap_or_default();
                let digest = digest.and_then(|digest| digest.try_into().ok()).unwrap_or_default();
                (Origin { file: file.into(), line }, Digest(digest))
            });
            let mut status = ProviderStatus {
                id,
                name: cells.text(1).unwrap_or_default().into(),
                kind: cells.text(2),
                enabled: cells.get(3, "enabled"),
                health_status: cells.text(4),
                last_health_check: cells.time(5, "last_health_check"),
                key_test_status: cells.text(6),
                key_last_tested: cells.time(7, "api_key_last_tested"),
                key_updated_at: cells.time(8, "api_key_updated_at"),
                key_source: cells.text(9),
                has_key: cells.get(10, "api_key_encrypted").unwrap_or_default(),
                api_base_url: cells.text(11),
                config_base_url: cells.text(20),
                any_url: cells.get(21, "config").unwrap_or(true),
                updated_at: cells.time(12, "updated_at"),
                managed,
                models: row.try_get(16)?,
                memory: cells.text(17),
                revision: cells.text(18),
                odd: Vec::new(),
            };
            let dates = cells.text(19).unwrap_or_default();
            let odd = dates.split_whitespace().map(|column| column.trim_start_matches("p."));
            status.odd = odd.map(|column| odd_value(id, column, "a date that no calendar has")).collect();
            status.odd.extend(cells.bad.iter().map(|bad| odd_value(id, bad.column, &bad.why)));
            found.push(status);
        }
        found.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(found)
    }

    /// The stored tokens of one provider's key columns, for proving and rotating keys: (`api_key_encrypted`,
    /// `encrypted_api_key`, `api_key_updated_at`). `None` if there is no such provider.
    pub async fn key_columns(&self, name: &str) -> Result<Option<(String, String, Option<DateTime<Utc>>)>> {
        let mut tx = self.read().await?;
        // The row that manifests manage comes first, should another one share its name.
        let row = query(concat!(
            "SELECT ",
            token!("p.api_key_encrypted"),
            ", ",
            token!("p.encrypted_api_key"),
            ", ",
            time!("p.api_key_updated_at"),
            " FROM llm_providers p LEFT JOIN providerd.managed g ON g.provider_id = p.id
             WHERE p.name::text = $1 ORDER BY g.provider_id IS NULL, p.id LIMIT 1"
        ))
        .bind(name)
        .fetch_optional(&mut *tx)
        .await?;
        tx.rollback().await?;
        Ok(row.map(|row| {
            let mut cells = Cells::of(&row);
            let tokens = (cells.text(0).unwrap_or_default(), cells.text(1).unwrap_or_default());
            (tokens.0, tokens.1, cells.time(2, "api_key_updated_at"))
        }))
    }

    /// Replaces the tokens of both key columns by others for the same keys, only where both still are `old`, and without
    /// touching the key's dates and status. An empty column stays as it is. Returns whether they were.
    pub async fn key_rotate(
        &self,
        id: Uuid,
        old: [&str; 2],
        new: [&str; 2],
        event: &NewEvent,
    ) -> Result<bool> {
        let mut tx = self.write().await?;
        query("SELECT set_config('providerd.applying', 'on', true)").execute(&mut *tx).await?;
        let done = query(
            "UPDATE llm_providers SET
                 api_key_encrypted = CASE WHEN $2 = '' THEN api_key_encrypted ELSE $4 END,
                 encrypted_api_key = CASE WHEN $3 = '' THEN encrypted_api_key ELSE $5 END
             WHERE id = $1 AND coalesce(api_key_encrypted, '') = $2 AND coalesce(encrypted_api_key, '') = $3",
        )
        .bind(id)
        .bind(old[0])
        .bind(old[1])
        .bind(new[0])
        .bind(new[1])
        .execute(&mut *tx)
        .await?;
        let was = done.rows_affected() == 1;
        if was {
            events::insert(&mut tx, std::slice::from_ref(event)).await?;
        }
        tx.commit().await?;
        Ok(was)
    }

    /// The database's clock.
    pub async fn now(&self) -> Result<DateTime<Utc>> {
        let mut tx = self.read().await?;
        let now =
            sqlx::query_scalar("SELECT clock_timestamp()").persistent(false).fetch_one(&mut *tx).await?;
        tx.rollback().await?;
        Ok(now)
    }
}

fn odd_value(id: Uuid, column: &str, why: &str) -> String {
    format!("llm_providers, row {id}, column {column}: {why}")
}

/// Writes statuses. A row that holds the values already is not written.
pub(super) async fn write(tx: &mut Tx, writes: &[&StatusWrite]) -> Result<()> {
    let naive = |time: Option<DateTime<Utc>>| time.map(|time| time.naive_utc());
    query(
        "UPDATE llm_providers p SET
             health_status = coalesce(u.health, p.health_status),
             last_health_check = coalesce(u.checked, p.last_health_check),
             api_key_test_status = CASE WHEN u.fits THEN coalesce(u.key, p.api_key_test_status)
                                        ELSE p.api_key_test_status END,
             api_key_last_tested = CASE WHEN u.fits THEN coalesce(u.tested, p.api_key_last_tested)
                                        ELSE p.api_key_last_tested END
         FROM (SELECT w.*, w.of IS NULL OR w.of IS NOT DISTINCT FROM q.api_key_updated_at::timestamp AS fits
               FROM unnest($1::uuid[], $2::text[], $3::timestamp[], $4::text[], $5::timestamp[], $6::timestamp[])
                    AS w (id, health, checked, key, tested, of)
               JOIN llm_providers q ON q.id = w.id ORDER BY w.id) u
         WHERE p.id = u.id
           AND (u.health IS DISTINCT FROM p.health_status AND u.health IS NOT NULL
                OR u.checked IS DISTINCT FROM p.last_health_check AND u.checked IS NOT NULL
                OR u.fits AND (u.key IS DISTINCT FROM p.api_key_test_status AND u.key IS NOT NULL
                               OR u.tested IS DISTINCT FROM p.api_key_last_tested AND u.tested IS NOT NULL))",
    )
    .bind(writes.iter().map(|write| write.id).collect::<Vec<_>>())
    .bind(writes.iter().map(|write| write.health_status.map(HealthStatus::as_str)).collect::<Vec<_>>())
    .bind(writes.iter().map(|write| naive(write.last_health_check)).collect::<Vec<_>>())
    .bind(writes.iter().map(|write| write.key_status.map(KeyStatus::as_str)).collect::<Vec<_>>())
    .bind(writes.iter().map(|write| naive(write.key_last_tested)).collect::<Vec<_>>())
    .bind(writes.iter().map(|write| naive(write.key_updated_at)).collect::<Vec<_>>())
    .execute(&mut **tx)
    .await?;
    Ok(())
}
