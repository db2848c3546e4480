//! The words of the domain: providers, models, routes and the catalog they form.
//!
//! PURE: values only. No file system, clock, network or database is named here.
//! Every field that a manifest may leave out is an `Option`: `Some` means "a manifest sets it, so it is
//! owned"; `None` means "no manifest declares it, so it is never touched after creation".

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    sync::Arc,
    time::Duration,
};

use serde::{Deserialize, Serialize};

use provider::{ProviderType, words};

use crate::serving::{GatewayObject, ObjectName, OfferSettings, UpstreamSettings};

/// A manifest's path relative to the manifest directory, with `/` between parts.
pub type ManifestPath = Arc<str>;

/// Free-form keys of a `config` or `metadata` column; every top-level key is a field of its own.
pub type JsonMap = serde_json::Map<String, serde_json::Value>;

/// Groups of two and more names that differ only in case. `plain`: the name that is spelled so, if there is one. Names
/// without a capital are looked up instead of gathered, because most of many names are such.
pub(crate) fn spelled_alike<N: AsRef<str> + Ord>(
    names: impl Iterator<Item = N>,
    plain: impl Fn(&str) -> Option<N>,
) -> impl Iterator<Item = BTreeSet<N>> {
    let mut spelled: BTreeMap<String, BTreeSet<N>> = BTreeMap::new();
    for name in names.filter(|name| name.as_ref().chars().any(char::is_uppercase)) {
        spelled.entry(name.as_ref().to_lowercase()).or_default().insert(name);
    }
    let groups = spelled.into_iter().map(move |(lower, mut group)| {
        group.extend(plain(&lower));
        group
    });
    groups.filter(|group| group.len() > 1)
}

/// Where an object was declared. Lines count from 1.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Origin {
    pub file: ManifestPath,
    pub line: u32,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.file, self.line)
    }
}

words! {
    /// Where consumers of the database look for a provider's key.
    KeySource { Database = "database", Environment = "environment", Hybrid = "hybrid" }
}

words! {
    /// What a caller asks for: cheap, balanced or best.
    PowerLevel { Eco = "eco", Balanced = "balanced", Precision = "precision" }
}

words! {
    /// `llm_providers.health_status`.
    HealthStatus { Unknown = "unknown", Healthy = "healthy", Degraded = "degraded", Unhealthy = "unhealthy" }
}

words! {
    /// `llm_providers.api_key_test_status`.
    KeyStatus { Pending = "pending", Valid = "valid", Failed = "failed", Error = "error" }
}

/// A reference to an API key; never the key itself.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SecretRef {
    /// An environment variable of the daemon.
    Env(String),
    /// An absolute path, or one below `keys.dir`.
    File(String),
    /// A systemd credential, by name.
    Credential(String),
    /// A Fernet token made by `providerd key seal`.
    Sealed(String),
}

impl fmt::Display for SecretRef {
    /// Names the reference so that the operator finds it; a sealed token is not printed.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Env(name) => write!(f, "env {name}"),
            Self::File(path) => write!(f, "file {path}"),
            Self::Credential(name) => write!(f, "credential {name}"),
            Self::Sealed(_) => f.write_str("sealed"),
        }
    }
}

/// When something periodic happens.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Schedule {
    /// Every so often; 1 s or more.
    Every(Duration),
    /// A cron expression of six fields: second minute hour day month weekday, UTC.
    Cron(Arc<str>),
}

/// How a provider is checked. Every `None` takes the daemon's own default.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(default)]
pub struct HealthPolicy {
    pub schedule: Option<Schedule>,
    pub timeout: Option<Duration>,
    pub slow_after: Option<Duration>,
    /// Path below the base URL that replaces the type's own probe; starts with `/`.
    pub path: Option<Box<str>>,
    pub expect_status: Option<Vec<u16>>,
}

impl HealthPolicy {
    /// This policy, with what it leaves open taken from `outer`.
    #[must_use]
    pub fn or(self, outer: &Self) -> Self {
        Self {
            schedule: self.schedule.or_else(|| outer.schedule.clone()),
            timeout: self.timeout.or(outer.timeout),
            slow_after: self.slow_after.or(outer.slow_after),
            path: self.path.or_else(|| outer.path.clone()),
            expect_status: self.expect_status.or_else(|| outer.expect_status.clone()),
        }
    }
}

/// Import of the provider's own model list.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize)]
pub struct Discover {
    /// Globs (`*`, `?`) over model names; a model is taken if any includes it and none excludes it.
    pub include: Vec<Box<str>>,
    pub exclude: Vec<Box<str>>,
    /// Six-field cron expression, UTC.
    pub cron: Arc<str>,
    /// Whether newly found models start enabled.
    pub enabled: bool,
}

/// One declared model of a provider.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Model {
    pub name: Box<str>,
    /// Line of its `[[…models]]` header; the file is the provider's.
    pub line: u32,
    pub display_name: Option<Box<str>>,
    /// Tokens.
    pub context_length: Option<i32>,
    /// USD per million input tokens; finite, not negative, below 1,000,000.
    pub cost_per_1m_input_tokens: Option<f64>,
    /// USD per million output tokens; finite, not negative, below 1,000,000.
    pub cost_per_1m_output_tokens: Option<f64>,
    pub enabled: Option<bool>,
    pub metadata: JsonMap,
    /// `None`: the columns of `llm_models` say everything.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gateway: Option<Box<OfferSettings>>,
}

/// One declared provider with its models.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Provider {
    pub name: Arc<str>,
    pub origin: Origin,
    pub kind: ProviderType,
    pub enabled: Option<bool>,
    /// Higher is preferred.
    pub priority: Option<i32>,
    pub base_url: Option<Box<str>>,
    pub model_prefixes: Option<Vec<Box<str>>>,
    pub description: Option<Box<str>>,
    /// Not serialized: a sealed token is a secret's shell and belongs in no output.
    #[serde(skip)]
    pub api_key: Option<SecretRef>,
    pub api_key_source: Option<KeySource>,
    pub config: JsonMap,
    /// The provider's own settings; [`Catalog::health`] adds its directory's defaults.
    pub health: HealthPolicy,
    pub discover: Option<Discover>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gateway: Option<Box<UpstreamSettings>>,
    pub models: Vec<Model>,
}

impl Provider {
    /// The URL its endpoints stand below: the declared one, else the type's own.
    pub fn effective_base_url(&self) -> Option<&str> {
        self.base_url.as_deref().or(self.kind.default_base_url())
    }
}

/// One declared route: which models serve a power level and user tier.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Route {
    pub origin: Origin,
    /// `provider/model`; `*` and `?` are globs in either part, split at the first `/`.
    pub models: Box<str>,
    pub power_level: PowerLevel,
    /// `all`, or a tier's name.
    pub user_tier: Box<str>,
    pub task_type: Option<Box<str>>,
    /// Higher is tried first; 100 when created without one.
    pub priority: Option<i32>,
    /// Share among equals, 0 or more; 100 when created without one.
    pub weight: Option<i32>,
    pub enabled: Option<bool>,
}

impl Route {
    /// The one provider that the pattern names, unless its provider part is a glob.
    pub fn literal_provider(&self) -> Option<&str> {
        let (provider, _) = self.pattern();
        (!provider.contains(['*', '?'])).then_some(provider)
    }

    /// The pattern's provider part and model part.
    pub fn pattern(&self) -> (&str, &str) {
        self.models.split_once('/').unwrap_or((&self.models, "*"))
    }
}

/// Which row of `llm_routing_rules` a route speaks about, within one model.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Cell {
    pub power_level: PowerLevel,
    pub user_tier: Box<str>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub task_type: Option<Box<str>>,
}

impl fmt::Display for Cell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} × {}", self.power_level, self.user_tier)?;
        match &self.task_type {
            Some(task) => write!(f, " ({task})"),
            None => Ok(()),
        }
    }
}

/// The validated set of all manifests: what every valid file declares.
///
/// Cheap to clone: objects are shared. What bad files declare is absent and described by `frozen`.
#[derive(Debug, Clone, Default)]
pub struct Catalog {
    pub providers: BTreeMap<Arc<str>, Arc<Provider>>,
    /// In order of file and line.
    pub routes: Vec<Arc<Route>>,
    /// `[defaults.health]` of each directory that has some, its parents' merged in; `""` is the top.
    pub defaults: BTreeMap<Box<str>, HealthPolicy>,
    /// Consumers, tiers, aliases and power levels.
    pub objects: BTreeMap<ObjectName, Arc<GatewayObject>>,
    /// Files that are valid and declare something: what is missing from one of them was taken out of it.
    pub files: Arc<BTreeSet<ManifestPath>>,
    pub frozen: Frozen,
}

impl Catalog {
    /// How a provider is checked: its own settings over its directory's defaults.
    pub fn health(&self, provider: &Provider) -> HealthPolicy {
        let directory = provider.origin.file.rsplit_once('/').map_or("", |(directory, _)| directory);
        let own = provider.health.clone();
        match nearest_defaults(&self.defaults, directory) {
            Some(outer) => own.or(outer),
            None => own,
        }
    }

    /// Whether a file that is not valid now may hold health defaults for what this file declares.
    pub fn may_lack_defaults(&self, file: &str) -> bool {
        self.frozen.files.iter().any(|bad| match bad.rsplit_once('/') {
            None => true,
            Some((above, _)) => file.strip_prefix(above).is_some_and(|below| below.starts_with('/')),
        })
    }
}

/// The defaults of a directory or of the nearest one above it.
pub(crate) fn nearest_defaults<'a>(
    defaults: &'a BTreeMap<Box<str>, HealthPolicy>,
    directory: &str,
) -> Option<&'a HealthPolicy> {
    let mut at = directory;
    while !defaults.is_empty() {
        if let Some(found) = defaults.get(at) {
            return Some(found);
        }
        if at.is_empty() {
            break;
        }
        at = at.rsplit_once('/').map_or("", |(above, _)| above);
    }
    None
}

/// What must stay at its last good state because a file could not be read, is invalid, or contradicts
/// another.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Frozen {
    /// Files whose objects, as recorded by the last apply, are neither changed nor pruned.
    pub files: BTreeSet<ManifestPath>,
    /// Provider names that stand in such a file (or in two files), as far as its text still shows.
    pub providers: BTreeSet<Arc<str>>,
    /// Consumers, tiers, aliases and power levels that are declared twice.
    pub objects: BTreeSet<ObjectName>,
    /// Why nothing at all may be pruned: the directory is missing or empty, a mount failed, or a file that
    /// was never read before cannot be read now.
    pub no_prune: Option<Arc<str>>,
}

/// The state of the Git work tree that the manifests lie in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Revision {
    /// Full hexadecimal commit id.
    pub commit: String,
    /// The work tree differed from the commit.
    pub dirty: bool,
}

impl fmt::Display for Revision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let short = self.commit.get(..12).unwrap_or(&self.commit);
        write!(f, "{short}{}", if self.dirty { "+dirty" } else { "" })
    }
}
