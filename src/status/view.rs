//! The shapes of the admin API's answers about the catalog.
//!
//! Values only. Not its job: where they come from (`build`) or how they travel (`http`). Invariant: no field holds
//! a key; texts that others wrote are masked before they come here.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

pub use crate::status::judge::State;
use catalog::{
    manifest::Build,
    model::{HealthStatus, JsonMap},
    plan::Plan,
    serving::ObjectKind,
};
use provider::rollup::Rollup;

/// Whether a provider answers properly.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Health {
    Unhealthy,
    Degraded,
    Unknown,
    Healthy,
}

impl Health {
    /// A column that any program may write.
    pub fn of(column: Option<&str>) -> Self {
        match column.and_then(HealthStatus::parse) {
            Some(HealthStatus::Healthy) => Self::Healthy,
            Some(HealthStatus::Degraded) => Self::Degraded,
            Some(HealthStatus::Unhealthy) => Self::Unhealthy,
            Some(HealthStatus::Unknown) | None => Self::Unknown,
        }
    }
}

/// Whether a provider accepts its key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum KeyState {
    Valid,
    Failed,
    /// The tests prove nothing.
    Error,
    /// Changed, and not tested yet.
    Pending,
    /// No key is declared or stored.
    None,
    /// A key is declared, its source holds none, and none is stored.
    Missing,
}

/// Outcomes of the checks of one hour.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
pub struct Bucket {
    pub ok: u32,
    pub slow: u32,
    pub bad: u32,
}

impl From<&Rollup> for Bucket {
    /// A refusal of the key is an answer; a refusal for the rate is a slow one.
    fn from(sums: &Rollup) -> Self {
        Self {
            ok: sums.ok.saturating_add(sums.auth),
            slow: sums.slow.saturating_add(sums.soft),
            bad: sums.hard,
        }
    }
}

/// One provider in a list.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct ProviderItem {
    /// `null`: declared, and not in the database yet.
    pub id: Option<Uuid>,
    pub name: String,
    /// Which protocol it speaks.
    #[serde(rename = "type")]
    pub kind: Option<String>,
    pub state: State,
    pub enabled: bool,
    /// Higher is preferred.
    pub priority: Option<i32>,
    pub base_url: Option<String>,
    pub health: Health,
    pub health_since: Option<DateTime<Utc>>,
    pub health_reason: Option<String>,
    /// Of the last check that was answered.
    pub latency_ms: Option<u64>,
    pub last_check: Option<DateTime<Utc>>,
    pub next_check: Option<DateTime<Utc>>,
    pub key: KeyState,
    pub key_reason: Option<String>,
    pub key_last_tested: Option<DateTime<Utc>>,
    /// Where consumers look for the key: `database`, `environment` or `hybrid`.
    pub key_source: Option<String>,
    /// Number of models.
    pub models: u64,
    /// Manifest and line.
    pub source: Option<String>,
    /// The commit from which it was last changed, shortened; `+dirty` where the work tree differed from it.
    pub revision: Option<String>,
    /// What the operator should know.
    pub notices: Vec<String>,
    /// It is neither checked nor is its key tested, because an operator paused that.
    pub checks_paused: bool,
    /// The last 24 hours, the oldest first; `null` for an hour without checks. `null`: nothing was checked.
    pub strip: Option<Vec<Option<Bucket>>>,
}

/// A provider with everything about it.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct ProviderDetail {
    /// `null`: declared, and not in the database yet.
    pub id: Option<Uuid>,
    pub name: String,
    /// Which protocol it speaks.
    #[serde(rename = "type")]
    pub kind: Option<String>,
    pub state: State,
    pub enabled: bool,
    pub priority: Option<i32>,
    pub base_url: Option<String>,
    pub health: Health,
    pub health_since: Option<DateTime<Utc>>,
    pub health_reason: Option<String>,
    pub latency_ms: Option<u64>,
    pub last_check: Option<DateTime<Utc>>,
    pub next_check: Option<DateTime<Utc>>,
    pub key: KeyState,
    pub key_reason: Option<String>,
    pub key_last_tested: Option<DateTime<Utc>>,
    pub key_source: Option<String>,
    pub models: Vec<ModelItem>,
    pub source: Option<String>,
    pub revision: Option<String>,
    pub notices: Vec<String>,
    pub checks_paused: bool,
    pub strip: Option<Vec<Option<Bucket>>>,
    /// The free-form column that consumers read; what looks like a secret is masked.
    #[schema(value_type = Object)]
    pub config: JsonMap,
    /// First 7 and last 4 characters; `***` for a key of 20 characters or fewer; `null` without one that opens.
    pub key_preview: Option<String>,
    /// Keyed: distinguishes keys, and says nothing else.
    pub key_fingerprint: Option<String>,
    pub history: Option<CheckHistory>,
    /// The last checks one by one, the newest first; at most 60, and only of the daemon that checks it.
    pub recent_checks: Vec<CheckItem>,
    /// Of the last 30 days; `null` if nothing was logged.
    pub usage: Option<Usage>,
}

/// One check that has ended.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct CheckItem {
    pub at: DateTime<Utc>,
    /// `ok`, `slow`, `soft` (asked to come back later), `hard`, `auth` (answers, and refuses the key) or `local` (our own
    /// failure, which counts for nothing).
    pub outcome: &'static str,
    pub took_ms: u64,
    /// Why it was not ok.
    pub reason: Option<String>,
}

/// Checks over time, the oldest first.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct CheckHistory {
    /// 24 hours.
    pub day: Vec<Point>,
    /// 30 days.
    pub month: Vec<Point>,
}

/// Checks of one stretch of time.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct Point {
    /// When it begins.
    pub at: DateTime<Utc>,
    pub ok: u32,
    pub slow: u32,
    pub bad: u32,
    /// Below which half of the answers stayed.
    pub p50_ms: Option<u64>,
    pub p95_ms: Option<u64>,
}

/// Sums over the usage log.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct Usage {
    pub calls: i64,
    pub failures: i64,
    pub prompt_tokens: i64,
    pub completion_tokens: i64,
    pub cost_usd: f64,
}

/// One model.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct ModelItem {
    pub id: Uuid,
    /// Name of its provider.
    pub provider: String,
    pub name: String,
    pub display_name: Option<String>,
    pub enabled: bool,
    /// Tokens.
    pub context_length: Option<i32>,
    /// USD.
    pub cost_per_1m_input_tokens: Option<f64>,
    /// USD.
    pub cost_per_1m_output_tokens: Option<f64>,
    pub avg_latency_ms: Option<f64>,
}

/// What serves each power level and user tier, as the database holds it.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct RoutesView {
    pub cells: Vec<RouteCell>,
}

/// One power level and user tier.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct RouteCell {
    pub power_level: String,
    pub user_tier: String,
    /// `null`: any task.
    pub task_type: Option<String>,
    /// The first is tried first.
    pub models: Vec<RouteModel>,
}

/// One model in a cell.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct RouteModel {
    pub provider: String,
    pub model: String,
    pub priority: i32,
    /// Share among equals.
    pub weight: i32,
    /// The rule, the model and the provider are all switched on.
    pub enabled: bool,
    pub health: Health,
    pub key: KeyState,
}

impl RouteModel {
    /// Whether nothing is known that would keep it from answering.
    pub fn is_usable(&self) -> bool {
        self.enabled
            && self.health != Health::Unhealthy
            && !matches!(self.key, KeyState::Failed | KeyState::Missing)
    }

    /// Whether it was seen to answer, with a key that is accepted or not needed.
    pub fn is_proven(&self) -> bool {
        self.is_usable()
            && self.health != Health::Unknown
            && matches!(self.key, KeyState::Valid | KeyState::None)
    }
}

/// Every provider with what may be shown of its key.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct ProviderKeys {
    /// Always true: what the pages look for.
    pub success: bool,
    /// Those with a key first, then by descending priority and name.
    pub providers: Vec<ProviderKey>,
    pub total: usize,
}

/// Where a key is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum KeyFrom {
    /// Stored.
    Database,
    /// In the variable that the manifest names, and not stored.
    Environment,
    NotSet,
}

/// One provider with what may be shown of its key.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct ProviderKey {
    pub id: Uuid,
    pub name: String,
    pub provider_type: Option<String>,
    pub has_key: bool,
    pub key_source: KeyFrom,
    pub enabled: bool,
    pub health_status: Health,
    /// `pending`, `valid`, `failed` or `error`; `null` without a key that was ever tested.
    pub test_status: Option<String>,
    pub last_tested: Option<DateTime<Utc>>,
    /// First 7 and last 4 characters; `***` for a key of 20 characters or fewer; `null` without one that opens.
    pub key_preview: Option<String>,
    /// Keyed: distinguishes keys, and says nothing else.
    pub key_fingerprint: Option<String>,
    /// What looks like a secret is masked.
    #[schema(value_type = Object)]
    pub config: JsonMap,
}

/// How everything is.
#[derive(Debug, Clone, Default, Serialize, ToSchema)]
pub struct StatusView {
    /// The database was read to hold what the manifests declare.
    pub synced: bool,
    /// Applying is stopped as a whole.
    pub suspended: bool,
    /// This daemon is the one that applies.
    pub leader: bool,
    /// The database answers.
    pub database: bool,
    /// Why the prober suspects itself.
    pub impaired: Option<String>,
    /// Commit of the manifests, shortened; `+dirty` where the work tree differed from it.
    pub revision: Option<String>,
    pub version: String,
    pub providers: ProviderCounts,
    pub keys: KeyCounts,
    pub gateway: GatewayCounts,
    pub cells: CellCounts,
    /// What wants the operator's attention; at most 200.
    pub attention: Vec<Attention>,
    pub held: Vec<HeldItem>,
    /// Problems of the manifests; at most 200.
    pub manifests: Vec<ManifestProblem>,
    /// When the database was read for this answer; `null`: not yet.
    pub checked_at: Option<DateTime<Utc>>,
}

/// Providers by health. A disabled one counts as that alone.
#[derive(Debug, Clone, Default, Serialize, ToSchema)]
pub struct ProviderCounts {
    pub total: usize,
    pub healthy: usize,
    pub degraded: usize,
    pub unhealthy: usize,
    pub unknown: usize,
    pub disabled: usize,
}

/// Cells of the route table: power level, user tier and task.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, ToSchema)]
pub struct CellCounts {
    pub total: usize,
    /// No model of them can answer: each is switched off, down, or its key is refused or missing.
    pub without_model: usize,
    /// A model of them may answer, but none was seen to.
    pub unproven: usize,
}

impl CellCounts {
    pub fn of(routes: &RoutesView) -> Self {
        let mut counts = Self { total: routes.cells.len(), ..Self::default() };
        for cell in &routes.cells {
            if !cell.models.iter().any(RouteModel::is_usable) {
                counts.without_model += 1;
            } else if !cell.models.iter().any(RouteModel::is_proven) {
                counts.unproven += 1;
            }
        }
        counts
    }
}

/// What manifests declare for the gateway.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, ToSchema)]
pub struct GatewayCounts {
    pub consumers: usize,
    pub tiers: usize,
    pub aliases: usize,
    pub power_levels: usize,
    /// Of these, and of the gateway settings of providers and models: what the database does not hold yet.
    pub pending: usize,
}

impl GatewayCounts {
    pub fn of(build: &Build, plan: &Plan) -> Self {
        let count = |kind| build.catalog.objects.keys().filter(|(of, _)| *of == kind).count();
        Self {
            consumers: count(ObjectKind::Consumer),
            tiers: count(ObjectKind::Tier),
            aliases: count(ObjectKind::Alias),
            power_levels: count(ObjectKind::PowerLevel),
            pending: plan.objects.len(),
        }
    }
}

/// Providers by the state of their key.
#[derive(Debug, Clone, Default, Serialize, ToSchema)]
pub struct KeyCounts {
    pub valid: usize,
    pub failed: usize,
    pub error: usize,
    pub pending: usize,
    /// Also those whose declared key is missing.
    pub none: usize,
}

/// What a matter of attention is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum AttentionKind {
    Unhealthy,
    KeyFailed,
    KeyMissing,
    Drift,
    Held,
    Invalid,
    Refused,
    Suspended,
    Undecryptable,
}

/// One matter that wants the operator's attention.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct Attention {
    /// `null`: not about one provider.
    pub provider: Option<String>,
    pub kind: AttentionKind,
    pub message: String,
    /// A command that helps.
    pub command: Option<String>,
}

/// What a hold keeps back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum HeldKind {
    Prune,
    Route,
}

/// Something that is not done without an operator's confirmation.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct HeldItem {
    pub kind: HeldKind,
    pub reason: String,
    /// Provider names for a prune, `power × tier` for a route cell.
    pub objects: Vec<String>,
    /// What `--confirm-prune` takes; only for a prune.
    pub digest: Option<String>,
    /// The command that confirms it.
    pub command: Option<String>,
}

/// A problem of a manifest.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct ManifestProblem {
    pub file: String,
    /// From 1.
    pub line: u32,
    /// From 1.
    pub column: u32,
    pub message: String,
}
