//! What the gateway decides by: providers, models, rules and gateway objects, as one transaction saw them.
//!
//! Reads only. Invariants: no value that another program stores makes a read fail; texts are cut in SQL, so that memory
//! does not follow what others write; a managed provider's type and URL are those that were applied, whatever its row
//! says.

use sqlx::Row;
use uuid::Uuid;

use catalog::routing::DEFAULT_SHARE;

use super::{GatewayObjectRow, KeyRow, RecordedPlace, Result, RowPlace, Store, gateway_objects, query};

/// Longest text of a URL, a name or a list of prefixes that is read (characters).
const TEXT: i32 = 4096;

/// A provider, as rows and the record of what was applied say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PictureProvider {
    /// Where it is, and its key.
    pub row: KeyRow,
    pub enabled: bool,
    pub priority: i32,
    /// JSON text of `config.model_prefixes`.
    pub prefixes: Option<String>,
    pub health_status: Option<String>,
    pub key_status: Option<String>,
    /// `file:line` of a managed provider.
    pub origin: Option<String>,
}

/// A model that requests may go to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PictureModel {
    pub id: Uuid,
    pub provider_id: Uuid,
    pub name: String,
    pub display_name: Option<String>,
    /// Tokens.
    pub context_length: Option<i64>,
    /// USD per million tokens, as decimal text.
    pub cost_input: Option<String>,
    pub cost_output: Option<String>,
    pub enabled: bool,
    /// Unix seconds.
    pub created_at: i64,
}

/// A routing rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PictureRule {
    pub model_id: Uuid,
    pub power_level: String,
    pub user_tier: String,
    pub task_type: Option<String>,
    pub priority: i32,
    pub weight: i32,
    pub enabled: bool,
}

/// Everything, as one transaction saw it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PictureRows {
    /// By name.
    pub providers: Vec<PictureProvider>,
    pub models: Vec<PictureModel>,
    pub rules: Vec<PictureRule>,
    /// What manifests declare for the gateway alone.
    pub objects: Vec<GatewayObjectRow>,
    /// The commit of the applied catalog and its number, to name the picture.
    pub revision: String,
}

impl Store {
    /// What the gateway decides by.
    ///
    /// # Errors
    /// The database cannot be read.
    pub async fn picture_rows(&self) -> Result<PictureRows> {
        if self.is_blank() {
            return Ok(PictureRows::default());
        }
        let mut tx = self.read().await?;
        let mut found = PictureRows::default();
        let rows = query(
            "SELECT p.id, left(p.name::text, $1) AS name, left(p.type::text, 255) AS kind,
                    left(p.api_base_url, $1) AS api_base_url, left(p.config->>'base_url', $1) AS config_base_url,
                    coalesce(p.config::text LIKE '%://%', false) AS any_url,
                    coalesce(p.enabled, true) AS enabled,
                    CASE WHEN p.priority BETWEEN -2147483648 AND 2147483647 THEN p.priority::integer ELSE 0 END AS priority,
                    left(p.config->>'model_prefixes', $1) AS prefixes,
                    left(coalesce(p.api_key_encrypted, ''), 32768) AS token,
                    left(coalesce(p.encrypted_api_key, ''), 32768) AS other_token,
                    left(p.health_status::text, 50) AS health_status,
                    left(p.api_key_test_status::text, 50) AS key_status,
                    g.provider_id IS NOT NULL AS managed,
                    g.record::jsonb->'provider'->>'type' AS applied_kind,
                    g.record::jsonb->'provider'->>'api_base_url' AS applied_base_url,
                    nullif(g.record::jsonb->>'key', '') AS applied_key,
                    CASE WHEN g.provider_id IS NOT NULL THEN coalesce(g.file, '') || ':' || coalesce(g.line, 0) END AS origin
             FROM llm_providers p LEFT JOIN providerd.managed g ON g.provider_id = p.id
             WHERE p.name IS NOT NULL
             ORDER BY p.name",
        )
        .bind(TEXT)
        .fetch_all(&mut *tx)
        .await?;
        for row in rows {
            let managed: bool = row.try_get("managed")?;
            let place = RowPlace {
                kind: row.try_get("kind")?,
                api_base_url: row.try_get("api_base_url")?,
                config_base_url: row.try_get("config_base_url")?,
                any_url: row.try_get("any_url")?,
                applied: match managed {
                    true => Some(RecordedPlace {
                        kind: row.try_get("applied_kind")?,
                        base_url: row.try_get("applied_base_url")?,
                        key: row.try_get::<Option<&str>, _>("applied_key")?.map(Into::into),
                    }),
                    false => None,
                },
            };
            found.providers.push(PictureProvider {
                row: KeyRow {
                    id: row.try_get("id")?,
                    name: row.try_get::<&str, _>("name")?.into(),
                    managed,
                    place,
                    tokens: [row.try_get("token")?, row.try_get("other_token")?],
                },
                enabled: row.try_get("enabled")?,
                priority: row.try_get("priority")?,
                prefixes: row.try_get("prefixes")?,
                health_status: row.try_get("health_status")?,
                key_status: row.try_get("key_status")?,
                origin: row.try_get("origin")?,
            });
        }
        let rows = query(
            "SELECT id, provider_id, left(coalesce(name, model_name, '')::text, 255) AS name,
                    left(display_name::text, 255) AS display_name,
                    CASE WHEN context_length BETWEEN 0 AND 2147483647 THEN context_length::bigint END AS context_length,
                    left(cost_per_1m_input_tokens::text, 64) AS cost_input,
                    left(cost_per_1m_output_tokens::text, 64) AS cost_output,
                    coalesce(enabled, true) AS enabled,
                    CASE WHEN isfinite(created_at) AND created_at BETWEEN '1970-01-01' AND '9999-12-31'
                         THEN extract(epoch FROM created_at)::bigint ELSE 0 END AS created_at
             FROM llm_models WHERE provider_id IS NOT NULL ORDER BY provider_id, 3, id",
        )
        .fetch_all(&mut *tx)
        .await?;
        for row in rows {
            found.models.push(PictureModel {
                id: row.try_get("id")?,
                provider_id: row.try_get("provider_id")?,
                name: row.try_get("name")?,
                display_name: row.try_get("display_name")?,
                context_length: row.try_get("context_length")?,
                cost_input: row.try_get("cost_input")?,
                cost_output: row.try_get("cost_output")?,
                enabled: row.try_get("enabled")?,
                created_at: row.try_get("created_at")?,
            });
        }
        let rows = query(
            "SELECT model_id, left(power_level::text, 50) AS power_level,
                    left(coalesce(user_tier, 'all')::text, 255) AS user_tier, left(task_type::text, 255) AS task_type,
                    CASE WHEN priority BETWEEN -2147483648 AND 2147483647 THEN priority::integer ELSE $1 END AS priority,
                    CASE WHEN weight BETWEEN -2147483648 AND 2147483647 THEN weight::integer ELSE $1 END AS weight,
                    coalesce(is_active, true) AS enabled
             FROM llm_routing_rules WHERE model_id IS NOT NULL AND power_level IS NOT NULL",
        )
        .bind(DEFAULT_SHARE)
        .fetch_all(&mut *tx)
        .await?;
        for row in rows {
            found.rules.push(PictureRule {
                model_id: row.try_get("model_id")?,
                power_level: row.try_get("power_level")?,
                user_tier: row.try_get("user_tier")?,
                task_type: row.try_get("task_type")?,
                priority: row.try_get("priority")?,
                weight: row.try_get("weight")?,
                enabled: row.try_get("enabled")?,
            });
        }
        found.objects = gateway_objects::all(&mut tx).await?;
        let row = query(
            "SELECT seq, left(coalesce(revision, ''), 64) AS revision FROM providerd.applied ORDER BY seq DESC LIMIT 1",
        )
        .fetch_optional(&mut *tx)
        .await?;
        if let Some(row) = row {
            let (seq, revision): (i64, String) = (row.try_get("seq")?, row.try_get("revision")?);
            found.revision =
                if revision.is_empty() { format!("#{seq}") } else { format!("{revision}#{seq}") };
        }
        tx.rollback().await?;
        Ok(found)
    }
}
