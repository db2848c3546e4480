//! The manifests' JSON Schema, for editors.
//!
//! These types are the documentation of the grammar in a form that schemars understands; `parse` reads texts, and
//! a test holds both to the same keys.

// Fields exist to be described.
#![allow(dead_code)]

use std::collections::BTreeMap;

use schemars::JsonSchema;

use provider::{ProviderType, dialect::ModelCapabilities};

use crate::{
    model::{KeySource, PowerLevel},
    serving::{Api, BudgetPeriod, OnDisconnect},
};

/// A manifest of LLM providers, their models and routes, and of who may call the gateway.
#[derive(JsonSchema)]
#[serde(deny_unknown_fields)]
struct Manifest {
    /// Providers by name: 1 to 100 characters, without `/`, `*`, `?`, invisible ones, or space around them, unique over
    /// all files.
    #[serde(default)]
    providers: BTreeMap<String, Provider>,
    /// Which models serve which power level and user tier.
    #[serde(default)]
    routes: Vec<Route>,
    /// Defaults for this file's directory and everything below it.
    defaults: Option<Defaults>,
    /// Other names for what callers ask for: `provider/model`, a model, a power level or another alias; a list is tried in
    /// order.
    #[serde(default)]
    aliases: BTreeMap<String, AliasTargets>,
    /// Applied to requests of a power level where the caller set none.
    power_levels: Option<PowerLevels>,
    /// Who may call the gateway, by name: 1 to 100 letters, digits, `.`, `_` and `-`, unique over all files.
    #[serde(default)]
    consumers: BTreeMap<String, Consumer>,
    /// What holds for each user of a tier.
    #[serde(default)]
    tiers: BTreeMap<String, Tier>,
}

/// One LLM provider.
#[derive(JsonSchema)]
#[serde(deny_unknown_fields)]
struct Provider {
    /// Which protocol it speaks.
    r#type: ProviderType,
    /// Whether it may be used. Undeclared, it starts enabled and is the operators' to change.
    enabled: Option<bool>,
    /// Higher is preferred.
    priority: Option<i32>,
    /// Absolute URL of the API; default: the type's own.
    base_url: Option<String>,
    /// Prefixes by which consumers recognize its models.
    model_prefixes: Option<Vec<String>>,
    description: Option<String>,
    /// A reference to the key, never the key itself.
    api_key: Option<ApiKey>,
    /// Where consumers look for the key.
    api_key_source: Option<KeySource>,
    /// Free form; each key is merged into the `config` column.
    config: Option<BTreeMap<String, serde_json::Value>>,
    health: Option<Health>,
    discover: Option<Discover>,
    gateway: Option<Gateway>,
    #[serde(default)]
    models: Vec<Model>,
}

/// Where a key comes from: exactly one of these.
#[derive(JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(extend("minProperties" = 1, "maxProperties" = 1))]
struct ApiKey {
    /// An environment variable of the daemon.
    env: Option<String>,
    /// An absolute path, or one below `keys.dir`.
    file: Option<String>,
    /// A systemd credential.
    credential: Option<String>,
    /// What `providerd key seal` prints.
    sealed: Option<String>,
}

/// How a provider is checked.
#[derive(JsonSchema)]
#[serde(deny_unknown_fields)]
struct Health {
    /// Time between checks, 1s or more, such as `30s`; excludes `cron`.
    interval: Option<String>,
    /// Six fields, UTC: second minute hour day month weekday.
    cron: Option<String>,
    /// Longest time for a check, such as `10s`.
    timeout: Option<String>,
    /// Time above which an answer counts as slow, such as `3s`.
    slow_after: Option<String>,
    /// Path below the base URL, instead of the type's own probe.
    path: Option<String>,
    /// HTTP status codes that count as healthy.
    expect_status: Option<Vec<u16>>,
}

/// Import of the provider's own model list.
#[derive(JsonSchema)]
#[serde(deny_unknown_fields)]
struct Discover {
    /// Globs over model names; default: all.
    include: Option<Vec<String>>,
    /// Globs over model names that are left out.
    exclude: Option<Vec<String>>,
    /// Six fields, UTC; default `0 0 3 * * *`.
    cron: Option<String>,
    /// Whether newly found models start enabled; default false.
    enabled: Option<bool>,
}

/// One model.
#[derive(JsonSchema)]
#[serde(deny_unknown_fields)]
struct Model {
    /// Unique within its provider.
    name: String,
    display_name: Option<String>,
    /// Tokens.
    #[schemars(range(min = 1))]
    context_length: Option<i32>,
    /// USD per million tokens.
    #[schemars(range(min = 0))]
    cost_per_1m_input_tokens: Option<f64>,
    /// USD per million tokens.
    #[schemars(range(min = 0))]
    cost_per_1m_output_tokens: Option<f64>,
    /// USD per million tokens that are read from the provider's prompt cache; default: the input price.
    #[schemars(range(min = 0))]
    cost_per_1m_cached_input_tokens: Option<f64>,
    /// USD per million tokens that are written to it; default: the input price.
    #[schemars(range(min = 0))]
    cost_per_1m_cache_write_tokens: Option<f64>,
    /// What the provider calls it; default: `name`.
    #[schemars(length(min = 1, max = 255))]
    upstream_name: Option<String>,
    /// Tokens of one answer.
    #[schemars(range(min = 1))]
    max_output_tokens: Option<i32>,
    /// What the model takes, where it differs from what providerd knows of it.
    takes: Option<ModelCapabilities>,
    /// Whether it may be used. Undeclared, it starts enabled and is the operators' to change.
    enabled: Option<bool>,
    /// Free form; each key is merged into the `metadata` column.
    metadata: Option<BTreeMap<String, serde_json::Value>>,
}

/// Which models serve a power level and a user tier.
#[derive(JsonSchema)]
#[serde(deny_unknown_fields)]
struct Route {
    /// `provider/model`; `*` and `?` are globs in both parts. Must match something.
    models: String,
    power_level: PowerLevel,
    /// `all`, or a tier's name.
    user_tier: String,
    task_type: Option<String>,
    /// Higher is tried first; 100 on creation.
    priority: Option<i32>,
    /// Share among equals; 100 on creation.
    #[schemars(range(min = 0))]
    weight: Option<i32>,
    enabled: Option<bool>,
}

/// How the gateway uses a provider.
#[derive(JsonSchema)]
#[serde(deny_unknown_fields)]
struct Gateway {
    /// Dialects that it speaks itself; default: the type's.
    #[schemars(length(min = 1))]
    apis: Option<Vec<Api>>,
    /// Inside the operator's walls: may serve requests that ask for privacy; default false.
    local: Option<bool>,
    /// Also serves models that are not declared or discovered, at unknown cost; default false.
    unlisted_models: Option<bool>,
    /// Requests at once; default: any number.
    #[schemars(range(min = 1, max = 1_000_000))]
    max_in_flight: Option<u32>,
    timeouts: Option<Timeouts>,
    /// Fixed headers, none of which is a credential.
    headers: Option<BTreeMap<String, String>>,
    /// What becomes of an answer whose caller has left: given up, or read on to know the usage; default `cancel`.
    on_disconnect: Option<OnDisconnect>,
}

/// How long the gateway waits for a provider; what is left out is the settings'.
#[derive(JsonSchema)]
#[serde(deny_unknown_fields)]
struct Timeouts {
    /// Until a connection stands, such as `4s`.
    connect: Option<String>,
    /// Until the first token, such as `60s`.
    first_token: Option<String>,
    /// Between two pieces of an answer, such as `120s`.
    idle: Option<String>,
    /// For the whole answer, such as `15m`.
    total: Option<String>,
}

/// What an alias stands for.
#[derive(JsonSchema)]
#[serde(untagged)]
enum AliasTargets {
    One(String),
    Several(#[schemars(length(min = 1))] Vec<String>),
}

/// The power levels.
#[derive(JsonSchema)]
#[serde(deny_unknown_fields)]
struct PowerLevels {
    eco: Option<Level>,
    balanced: Option<Level>,
    precision: Option<Level>,
}

/// Applied where the caller set none.
#[derive(JsonSchema)]
#[serde(deny_unknown_fields)]
struct Level {
    #[schemars(range(min = 1))]
    max_tokens: Option<i32>,
    #[schemars(range(min = 0, max = 2))]
    temperature: Option<f64>,
}

/// A program that may call the gateway.
#[derive(JsonSchema)]
#[serde(deny_unknown_fields)]
struct Consumer {
    /// Hashes of its keys; several while one takes over from another.
    #[serde(default)]
    keys: Vec<ConsumerKey>,
    /// The tier of its requests, unless it may say another.
    user_tier: Option<String>,
    /// Globs over `provider/model`, aliases and power levels; those with `!` win. Default: everything.
    models: Option<Vec<String>>,
    limits: Option<Limits>,
    #[serde(default)]
    budgets: Vec<Budget>,
    /// May say whose request it is (`X-User-ID`, `X-User-Tier`); default false.
    trusted: Option<bool>,
}

/// A key, by its hash; `providerd key consumer NAME` makes one.
#[derive(JsonSchema)]
#[serde(deny_unknown_fields)]
struct ConsumerKey {
    /// SHA-256 of the key in hexadecimal digits.
    #[schemars(regex(pattern = r"^[0-9A-Fa-f]{64}$"))]
    sha256: String,
    /// From this date (its beginning, UTC) or moment on it is refused: `2027-06-30`, `2027-06-30T12:00:00Z`.
    expires: Option<String>,
}

/// Limits of a consumer, or of each user of a tier.
#[derive(JsonSchema)]
#[serde(deny_unknown_fields)]
struct Limits {
    #[schemars(range(min = 1))]
    requests_per_minute: Option<u64>,
    #[schemars(range(min = 1))]
    tokens_per_minute: Option<u64>,
    /// Requests at once.
    #[schemars(range(min = 1, max = 1_000_000))]
    concurrency: Option<u32>,
}

/// What may be spent in a window.
#[derive(JsonSchema)]
#[serde(deny_unknown_fields)]
struct Budget {
    #[schemars(range(min = 0, max = 900_000))]
    usd: f64,
    /// UTC; a week begins on Monday.
    per: BudgetPeriod,
}

/// What holds for each user of a tier.
#[derive(JsonSchema)]
#[serde(deny_unknown_fields)]
struct Tier {
    limits: Option<Limits>,
    #[serde(default)]
    budgets: Vec<Budget>,
}

/// Defaults for a directory.
#[derive(JsonSchema)]
#[serde(deny_unknown_fields)]
struct Defaults {
    health: Option<Health>,
}

/// The JSON Schema of a manifest.
pub fn json_schema() -> serde_json::Value {
    schemars::schema_for!(Manifest).to_value()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifest::{callers, objects};

    #[test]
    fn schema_and_parser_know_the_same_keys() {
        let schema = json_schema();
        let check = |pointer: &str, known: &[&str]| {
            let keys = schema.pointer(&format!("{pointer}/properties")).unwrap().as_object().unwrap();
            let mut keys: Vec<&str> = keys.keys().map(String::as_str).collect();
            let mut known = known.to_vec();
            keys.sort_unstable();
            known.sort_unstable();
            assert_eq!(keys, known, "{pointer}");
        };
        check("", objects::ROOT);
        check("/$defs/Provider", objects::PROVIDER);
        check("/$defs/ApiKey", objects::SECRET);
        check("/$defs/Health", objects::HEALTH);
        check("/$defs/Discover", objects::DISCOVER);
        check("/$defs/Model", objects::MODEL);
        check("/$defs/Route", objects::ROUTE);
        check("/$defs/Defaults", objects::DEFAULTS);
        check("/$defs/Gateway", callers::UPSTREAM);
        check("/$defs/Timeouts", callers::TIMEOUTS);
        check("/$defs/Level", callers::LEVEL);
        check("/$defs/Consumer", callers::CONSUMER);
        check("/$defs/ConsumerKey", callers::CONSUMER_KEY);
        check("/$defs/Limits", callers::LIMITS);
        check("/$defs/Budget", callers::BUDGET);
        check("/$defs/Tier", callers::TIER);
    }
}
