//! The manifests' JSON Schema, for editors.
//!
//! These types are the documentation of the grammar in a form that schemars understands; `parse` reads texts, and
//! a test holds both to the same keys.

// Fields exist to be described.
#![allow(dead_code)]

use std::collections::BTreeMap;

use schemars::JsonSchema;

use provider::ProviderType;

use crate::model::{KeySource, PowerLevel};

/// A manifest of LLM providers, their models and routes.
#[derive(JsonSchema)]
#[serde(deny_unknown_fields)]
struct Manifest {
    /// Providers by name: 1 to 100 of a-z, 0-9, `.`, `_` and `-`, beginning with a letter or digit, unique over all
    /// files.
    #[serde(default)]
    providers: BTreeMap<String, Provider>,
    /// Which models serve which power level and user tier.
    #[serde(default)]
    routes: Vec<Route>,
    /// Defaults for this file's directory and everything below it.
    defaults: Option<Defaults>,
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
    use crate::manifest::objects;

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
    }
}
