//! What `status` shows of the providers, and what checks and key tests write back.

use std::sync::Arc;

use chrono::{DateTime, NaiveDateTime, Utc};
use serde::Serialize;
use sqlx::Row;
use uuid::Uuid;

use catalog::{
    model::{HealthStatus, KeyStatus, Origin},
    plan::Digest,
};

use super::{NewEvent, Place, Result, Store, Tx, events, query};

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
}

impl ProviderStatus {
    /// What the row says about where its provider is.
    pub fn place(&self) -> Place {
        Place {
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
        let rows = query(
            "SELECT p.id, p.name::text, p.type::text, p.enabled, p.health_status::text, p.last_health_check::timestamp,
                    p.api_key_test_status::text, p.api_key_last_tested::timestamp, p.api_key_updated_at::timestamp,
                    p.api_key_source::text,
                    coalesce(p.api_key_encrypted, '') <> '' OR coalesce(p.encrypted_api_key, '') <> '',
                    p.api_base_url, p.updated_at::timestamp, g.file, g.line, g.digest, coalesce(m.n, 0), h.memory, g.revision,
                    left(p.config->>'base_url', 4096), coalesce(p.config::text LIKE '%://%', false)
             FROM llm_providers p
             LEFT JOIN providerd.managed g ON g.provider_id = p.id
             LEFT JOIN providerd.health h ON h.provider_id = p.id
             LEFT JOIN (SELECT provider_id, count(*) AS n FROM llm_models GROUP BY 1) m ON m.provider_id = p.id
             WHERE $1::text[] IS NULL OR p.name = ANY($1)
             ORDER BY p.name",
        )
        .bind(names)
        .fetch_all(&mut *tx)
        .await?;
        tx.rollback().await?;
        let time = |row: &sqlx::postgres::PgRow, index: usize| -> Result<Option<DateTime<Utc>>> {
            Ok(row.try_get::<Option<NaiveDateTime>, _>(index)?.map(|time| time.and_utc()))
        };
        let mut found = Vec::with_capacity(rows.len());
        for row in &rows {
            let name: Option<&str> = row.try_get(1)?;
            let file: Option<&str> = row.try_get(13)?;
            let line: Option<i32> = row.try_get(14)?;
            let digest: Option<&[u8]> = row.try_get(15)?;
            found.push(ProviderStatus {
                id: row.try_get(0)?,
                name: name.unwrap_or_default().into(),
                kind: row.try_get(2)?,
                enabled: row.try_get(3)?,
                health_status: row.try_get(4)?,
                last_health_check: time(row, 5)?,
                key_test_status: row.try_get(6)?,
                key_last_tested: time(row, 7)?,
                key_updated_at: time(row, 8)?,
                key_source: row.try_get(9)?,
                has_key: row.try_get(10)?,
                api_base_url: row.try_get(11)?,
                config_base_url: row.try_get(19)?,
                any_url: row.try_get(20)?,
                updated_at: time(row, 12)?,
                managed: file.map(|file| {
                    let line = u32::try_from(line.unwrap_or_default()).unwrap_or_default();
                    let digest = digest.and_then(|digest| digest.try_into().ok()).unwrap_or_default();
                    (Origin { file: file.into(), line }, Digest(digest))
                }),
                models: row.try_get(16)?,
                memory: row.try_get(17)?,
                revision: row.try_get(18)?,
            });
        }
        Ok(found)
    }

    /// The stored tokens of one provider's key columns, for proving and rotating keys: (`api_key_encrypted`,
    /// `encrypted_api_key`, `api_key_updated_at`). `None` if there is no such provider.
    pub async fn key_columns(&self, name: &str) -> Result<Option<(String, String, Option<DateTime<Utc>>)>> {
        let mut tx = self.read().await?;
        let row: Option<(String, String, Option<NaiveDateTime>)> = sqlx::query_as(
            "SELECT coalesce(api_key_encrypted, ''), coalesce(encrypted_api_key, ''), api_key_updated_at::timestamp
             FROM llm_providers WHERE name = $1",
        )
        .persistent(false)
        .bind(name)
        .fetch_optional(&mut *tx)
        .await?;
        tx.rollback().await?;
        Ok(row.map(|(first, second, updated)| (first, second, updated.map(|time| time.and_utc()))))
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
