//! A catalog → LiteLLM's configuration.
//!
//! PURE. Each model is a group `provider/model`; a bare name, an alias and a cell of the routes are groups of their own,
//! whose later choices are groups `NAME#2`, `NAME#3` … that the router falls back to in order. Within one priority it
//! shares by weight, as the routes do.
//!
//! Scalars are written as JSON, which YAML 1.1 and 1.2 read alike; a writer of YAML's plain style would have to know
//! which words the reader takes for booleans and numbers. Not its job: keys (`keys`). Invariant: the text depends on the
//! catalog and the names of variables alone.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
};

use serde_json::{Value, json};
use url::Url;

use catalog::{
    model::{Catalog, Model, PowerLevel, Provider},
    routing::Table,
    serving::{ObjectBody, OfferPrices, UpstreamSettings},
};
use provider::{parse_base, serving_base};

use super::{
    KeyVariables,
    families::{self, BaseForm, LiteLlmFamily},
};

/// Fallbacks of one group; a chain of more is a mistake of a glob.
const MOST_STEPS: usize = 10;

/// A configuration for LiteLLM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LiteLlmConfig {
    /// YAML.
    pub text: String,
    /// Entries of `model_list`.
    pub entries: usize,
    /// What LiteLLM cannot be given, in words.
    pub left_out: Vec<String>,
}

/// Who answers a group: choices in order, each with the share of its equals.
type Steps<'a> = Vec<Vec<(&'a Deployed<'a>, Option<i32>)>>;

/// A model at a provider, as LiteLLM is given it.
struct Deployed<'a> {
    provider: &'a Provider,
    model: &'a Model,
    params: Vec<(&'static str, Value)>,
}

/// The configuration of a catalog: its enabled providers with their enabled models, its routes and aliases. `variables`
/// says under which name LiteLLM finds each key.
pub fn export(catalog: &Catalog, variables: &KeyVariables) -> LiteLlmConfig {
    let mut left_out = Vec::new();
    let mut deployed: BTreeMap<(&str, &str), Deployed<'_>> = BTreeMap::new();
    let mut open: Vec<(&Provider, Vec<(&'static str, Value)>)> = Vec::new();
    for provider in catalog.providers.values().filter(|it| it.enabled != Some(false)) {
        let params = match params(provider, variables) {
            Ok(params) => params,
            Err(why) => {
                left_out.push(format!("provider {} ({}): {why}", provider.name, provider.origin));
                continue;
            }
        };
        for model in provider.models.iter().filter(|it| it.enabled != Some(false)) {
            let name =
                model.gateway.as_deref().and_then(|it| it.upstream_name.as_deref()).unwrap_or(&model.name);
            let params = with_model(provider, name, &params);
            deployed.insert((&*provider.name, &*model.name), Deployed { provider, model, params });
        }
        if provider.gateway.as_deref().is_some_and(|it| it.unlisted_models == Some(true)) {
            open.push((provider, with_model(provider, "*", &params)));
        }
    }
    let table = Table::resolve(catalog);
    let mut groups: BTreeMap<String, Steps<'_>> = BTreeMap::new();
    bare_names(&deployed, &mut groups);
    cells(&table, &deployed, &mut groups);
    aliases(catalog, &deployed, &mut groups, &mut left_out);

    let mut writer = Writer { text: heading(&left_out), entries: 0 };
    writer.text += "model_list:\n";
    for ((provider, model), it) in &deployed {
        writer.entry(&format!("{provider}/{model}"), it, None);
    }
    for (provider, params) in &open {
        writer.plain(&format!("{}/*", provider.name), params, &provider.origin.to_string());
    }
    let mut fallbacks = Vec::new();
    for (name, steps) in &groups {
        let mut later = Vec::new();
        for (at, step) in steps.iter().enumerate() {
            let group = if at == 0 { name.clone() } else { format!("{name}#{}", at + 1) };
            for (it, weight) in step {
                writer.entry(&group, it, *weight);
            }
            if at > 0 {
                later.push(group);
            }
        }
        if !later.is_empty() {
            fallbacks.push(json!({ name.as_str(): later }));
        }
    }
    if writer.entries == 0 {
        writer.text = writer.text.replace("model_list:\n", "model_list: []\n");
    }
    writer.text += "\nrouter_settings:\n  routing_strategy: \"simple-shuffle\"\n";
    if fallbacks.is_empty() {
        writer.text += "  fallbacks: []\n";
    } else {
        writer.text += "  fallbacks:\n";
        for fallback in &fallbacks {
            let _ = writeln!(writer.text, "    - {fallback}");
        }
    }
    LiteLlmConfig { text: writer.text, entries: writer.entries, left_out }
}

fn heading(left_out: &[String]) -> String {
    let mut text = String::from(
        "# Made by providerd from its manifests; what is changed here is lost at the next export.\n\
         # `provider/model` is one model at one provider. A bare model, a power level (with `:tier` and `:task`) and an\n\
         # alias are groups; `NAME#2` and so on are what the router falls back to.\n",
    );
    for reason in left_out {
        let line: String = reason.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
        let _ = writeln!(text, "# left out: {line}");
    }
    text.push('\n');
    text
}

/// What every model of a provider is asked with.
///
/// # Errors
/// Why LiteLLM cannot ask this provider.
fn params(provider: &Provider, variables: &KeyVariables) -> Result<Vec<(&'static str, Value)>, String> {
    let Some(family) = families::of_type(provider.kind) else {
        return Err(format!("LiteLLM has no counterpart of type `{}`", provider.kind));
    };
    let base = parse_base(provider.kind, provider.base_url.as_deref()).map_err(|error| error.to_string())?;
    let mut params = Vec::new();
    if let Some(base) = api_base(provider, family, &base)? {
        params.push(("api_base", base.into()));
    }
    if family.base == BaseForm::Region {
        let host = base.host_str().unwrap_or_default();
        let region = host.strip_prefix("bedrock-runtime.").and_then(|rest| rest.split('.').next());
        params.extend(region.map(|region| ("aws_region_name", region.into())));
    }
    if let Some(Value::String(version)) = provider.config.get("api_version") {
        params.push(("api_version", version.as_str().into()));
    }
    match variables.of(&provider.name) {
        Some(variable) => params.push(("api_key", format!("os.environ/{variable}").into())),
        None if provider.api_key.is_some() => {
            return Err(
                "its key has no variable that LiteLLM could read; hint: --keys DIR writes it to a file"
                    .to_owned(),
            );
        }
        // Its client insists on some key.
        None if family.prefix == "openai" => params.push(("api_key", "none".into())),
        None => {}
    }
    if let Some(settings) = provider.gateway.as_deref() {
        upstream(settings, &mut params);
    }
    Ok(params)
}

fn upstream(settings: &UpstreamSettings, params: &mut Vec<(&'static str, Value)>) {
    if let Some(most) = settings.max_in_flight {
        params.push(("max_parallel_requests", most.into()));
    }
    if let Some(total) = settings.timeouts.and_then(|it| it.total) {
        params.push(("timeout", total.as_secs().max(1).into()));
    }
    if let Some(headers) = &settings.headers {
        let map: BTreeMap<&str, &str> = headers.iter().map(|(name, value)| (&**name, &**value)).collect();
        params.push(("extra_headers", json!(map)));
    }
}

fn api_base(provider: &Provider, family: &LiteLlmFamily, base: &Url) -> Result<Option<String>, String> {
    let plain = |url: &Url| url.as_str().trim_end_matches('/').to_owned();
    let declared = provider.base_url.is_some();
    let default = provider.kind.default_base_url().map(|url| url.trim_end_matches('/'));
    let vendors = !declared || default == Some(plain(base).as_str());
    Ok(match family.base {
        BaseForm::Same if vendors => None,
        BaseForm::Same | BaseForm::Always => Some(plain(&serving_base(provider.kind, base))),
        BaseForm::WithoutV1 if vendors => None,
        BaseForm::WithoutV1 => {
            let url = plain(base);
            Some(url.strip_suffix("/v1").unwrap_or(&url).to_owned())
        }
        BaseForm::Root => {
            let mut root = base.clone();
            root.set_path("");
            root.set_query(None);
            Some(plain(&root))
        }
        BaseForm::Region => None,
        BaseForm::Vendor => {
            if !vendors {
                return Err(format!("LiteLLM asks type `{}` at its vendor's own host only", provider.kind));
            }
            None
        }
    })
}

fn with_model(
    provider: &Provider,
    name: &str,
    params: &[(&'static str, Value)],
) -> Vec<(&'static str, Value)> {
    let prefix = families::of_type(provider.kind).map_or("openai", |family| family.prefix);
    let mut all = vec![("model", format!("{prefix}/{name}").into())];
    all.extend(params.iter().cloned());
    all
}

/// A model's name alone: the providers that have it, by priority.
fn bare_names<'a>(
    deployed: &'a BTreeMap<(&str, &str), Deployed<'a>>,
    groups: &mut BTreeMap<String, Steps<'a>>,
) {
    let mut names: BTreeMap<&str, Vec<&Deployed<'_>>> = BTreeMap::new();
    for it in deployed.values() {
        names.entry(&it.model.name).or_default().push(it);
    }
    for (name, mut all) in names {
        all.sort_by_key(|it| {
            (std::cmp::Reverse(it.provider.priority.unwrap_or(0)), it.provider.name.clone())
        });
        let mut steps: Steps<'_> = Vec::new();
        let mut last = None;
        for it in all {
            let priority = it.provider.priority.unwrap_or(0);
            match steps.last_mut() {
                Some(step) if last == Some(priority) => step.push((it, None)),
                _ => steps.push(vec![(it, None)]),
            }
            last = Some(priority);
        }
        steps.truncate(MOST_STEPS);
        groups.insert(name.to_owned(), steps);
    }
}

/// The cells of the routes: `eco` for all tiers, `eco:pro` for one, `eco:pro:chat` for one task of it.
fn cells<'a>(
    table: &'a Table,
    deployed: &'a BTreeMap<(&str, &str), Deployed<'a>>,
    groups: &mut BTreeMap<String, Steps<'a>>,
) {
    let mut last: Option<(String, (i32, i32))> = None;
    for row in table.rows() {
        let Some(it) = deployed.get(&(&*row.provider, &*row.model)) else { continue };
        let mut name = row.power_level.to_string();
        if &*row.user_tier != "all" || row.task_type.is_some() {
            let _ = write!(name, ":{}", row.user_tier);
        }
        if let Some(task) = &row.task_type {
            let _ = write!(name, ":{task}");
        }
        let order = (row.priority, row.provider_priority);
        let is_first = last.as_ref().is_none_or(|(cell, _)| *cell != name);
        let steps = groups.entry(name.clone()).or_default();
        if is_first {
            // A level is stronger than a model of its name.
            steps.clear();
        }
        let joins = last.as_ref().is_some_and(|(_, known)| *known == order);
        let full = steps.len() >= MOST_STEPS;
        if joins && let Some(step) = steps.last_mut() {
            step.push((it, Some(row.weight)));
        } else if !full {
            steps.push(vec![(it, Some(row.weight))]);
        }
        last = Some((name, order));
    }
}

/// Aliases: what each stands for, one target after the other.
fn aliases<'a>(
    catalog: &Catalog,
    deployed: &'a BTreeMap<(&str, &str), Deployed<'a>>,
    groups: &mut BTreeMap<String, Steps<'a>>,
    left_out: &mut Vec<String>,
) {
    let named: BTreeMap<&str, &[Box<str>]> = catalog
        .objects
        .values()
        .filter_map(|object| match &object.body {
            ObjectBody::Alias(targets) => Some((&*object.name, targets.as_slice())),
            _ => None,
        })
        .collect();
    let mut made: BTreeMap<String, Steps<'_>> = BTreeMap::new();
    for name in named.keys() {
        let mut steps = Vec::new();
        let mut seen = BTreeSet::new();
        follow(name, &named, deployed, groups, &mut seen, &mut steps);
        steps.truncate(MOST_STEPS);
        if steps.is_empty() {
            left_out.push(format!("alias {name}: nothing that it stands for is exported"));
        } else {
            made.insert((*name).to_owned(), steps);
        }
    }
    groups.append(&mut made);
}

fn follow<'a, 'n>(
    name: &'n str,
    named: &BTreeMap<&'n str, &'n [Box<str>]>,
    deployed: &'a BTreeMap<(&str, &str), Deployed<'a>>,
    groups: &BTreeMap<String, Steps<'a>>,
    seen: &mut BTreeSet<&'n str>,
    steps: &mut Steps<'a>,
) {
    if !seen.insert(name) {
        return;
    }
    for target in named.get(name).copied().unwrap_or_default() {
        let target: &'n str = target;
        if named.contains_key(target) && target != name {
            follow(target, named, deployed, groups, seen, steps);
            continue;
        }
        let pinned = deployed.iter().find(|((provider, model), _)| {
            target.strip_prefix(*provider).and_then(|rest| rest.strip_prefix('/')) == Some(*model)
        });
        if let Some((_, it)) = pinned {
            steps.push(vec![(it, None)]);
        } else if let Some(more) = groups
            .get(target)
            .or_else(|| (target == "auto").then(|| groups.get(PowerLevel::Balanced.as_str())).flatten())
        {
            steps.extend(more.iter().cloned());
        }
    }
}

struct Writer {
    text: String,
    entries: usize,
}

impl Writer {
    fn entry(&mut self, group: &str, it: &Deployed<'_>, weight: Option<i32>) {
        let mut params = it.params.clone();
        // LiteLLM shares by weight only among those that have one; 0 is none of the share, not an equal one.
        params.extend(weight.map(|weight| ("weight", weight.into())));
        self.plain(group, &params, &format!("{}:{}", it.provider.origin.file, it.model.line));
        let info = info(it.model);
        if !info.is_empty() {
            self.text += "    model_info:\n";
            for (name, value) in info {
                let _ = writeln!(self.text, "      {name}: {value}");
            }
        }
    }

    fn plain(&mut self, group: &str, params: &[(&'static str, Value)], origin: &str) {
        self.entries += 1;
        let origin: String = origin.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
        let _ = writeln!(self.text, "  - model_name: {} # {origin}", scalar(&group.into()));
        self.text += "    litellm_params:\n";
        for (name, value) in params {
            let _ = writeln!(self.text, "      {name}: {}", scalar(value));
        }
    }
}

/// JSON, with what YAML forbids in a text escaped.
fn scalar(value: &Value) -> String {
    let mut text = String::new();
    for c in value.to_string().chars() {
        match c {
            '\u{7f}'..='\u{9f}' | '\u{2028}' | '\u{2029}' | '\u{feff}' | '\u{fffe}' | '\u{ffff}' => {
                let _ = write!(text, "\\u{:04x}", c as u32);
            }
            c => text.push(c),
        }
    }
    text
}

/// What LiteLLM accounts by and checks windows against.
fn info(model: &Model) -> Vec<(&'static str, String)> {
    let mut info = Vec::new();
    if let Some(length) = model.context_length {
        info.push(("max_input_tokens", length.to_string()));
    }
    let settings = model.gateway.as_deref();
    if let Some(most) = settings.and_then(|it| it.max_output_tokens) {
        info.push(("max_output_tokens", most.to_string()));
    }
    let OfferPrices { input, output, cached_input, cache_write } =
        settings.map(|it| it.prices).unwrap_or_default();
    let column = |price: Option<f64>| price.and_then(|price| format!("{price}").parse().ok());
    let prices = [
        ("input_cost_per_token", input.or_else(|| column(model.cost_per_1m_input_tokens))),
        ("output_cost_per_token", output.or_else(|| column(model.cost_per_1m_output_tokens))),
        ("cache_read_input_token_cost", cached_input),
        ("cache_creation_input_token_cost", cache_write),
    ];
    for (name, price) in prices {
        info.extend(price.map(|price| (name, per_token(price.units()))));
    }
    info
}

/// USD per token of a price in units of 1e-10 USD per million tokens, with a point: YAML 1.1 takes `1e-07` for a text.
fn per_token(units: i64) -> String {
    let digits = format!("{units:017}");
    let (whole, part) = digits.split_at(digits.len() - 16);
    let part = part.trim_end_matches('0');
    format!("{whole}.{}", if part.is_empty() { "0" } else { part })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use catalog::manifest::{self, Content, Workspace};
    use provider::ProviderType;

    use super::*;

    fn catalog(text: &str) -> Arc<Catalog> {
        let mut workspace = Workspace::new();
        let path: Arc<str> = "a.toml".into();
        workspace.set_parsed(path.clone(), manifest::read(&path, &Content::Text(text.into())));
        let build = workspace.build();
        assert!(
            !build.diagnostics.iter().any(|it| it.severity == manifest::Severity::Error),
            "{:?}",
            build.diagnostics
        );
        build.catalog
    }

    fn yaml(text: &str) -> Value {
        serde_saphyr::from_str(text).unwrap()
    }

    fn exported(text: &str) -> (Value, LiteLlmConfig) {
        let catalog = catalog(text);
        let config = export(&catalog, &KeyVariables::declared(&catalog));
        (yaml(&config.text), config)
    }

    const TWO: &str = r#"
[providers.big]
type = "openai"
priority = 90
api_key = { env = "BIG_API_KEY" }
[[providers.big.models]]
name = "gpt"
context_length = 128000
cost_per_1m_input_tokens = 0.15
cost_per_1m_output_tokens = 0.07525
[providers.small]
type = "ollama"
base_url = "http://10.0.0.5:11434/v1"
priority = 10
[[providers.small.models]]
name = "gpt"
upstream_name = "llama3:8b"
[[providers.small.models]]
name = "off"
enabled = false
[[routes]]
models = "*/gpt"
power_level = "eco"
user_tier = "all"
priority = 5
[[routes]]
models = "small/gpt"
power_level = "balanced"
user_tier = "pro"
task_type = "chat"
weight = 30
[aliases]
fast = ["small/gpt", "eco"]
"#;

    #[test]
    fn models_routes_and_aliases_become_groups() {
        let (config, made) = exported(TWO);
        let list = config["model_list"].as_array().unwrap();
        let of = |name: &str| -> Vec<&str> {
            list.iter()
                .filter(|it| it["model_name"] == name)
                .map(|it| it["litellm_params"]["model"].as_str().unwrap())
                .collect()
        };
        assert_eq!(of("big/gpt"), ["openai/gpt"]);
        assert_eq!(of("small/gpt"), ["ollama_chat/llama3:8b"]);
        assert_eq!(of("small/off"), Vec::<&str>::new());
        assert_eq!((of("gpt"), of("gpt#2")), (vec!["openai/gpt"], vec!["ollama_chat/llama3:8b"]));
        assert_eq!((of("eco"), of("eco#2")), (vec!["openai/gpt"], vec!["ollama_chat/llama3:8b"]));
        assert_eq!(of("balanced:pro:chat"), ["ollama_chat/llama3:8b"]);
        assert_eq!(
            (of("fast"), of("fast#2"), of("fast#3")),
            (of("small/gpt"), of("big/gpt"), of("small/gpt"))
        );
        let fallbacks = config["router_settings"]["fallbacks"].as_array().unwrap();
        assert!(fallbacks.contains(&json!({ "eco": ["eco#2"] })), "{fallbacks:?}");
        assert!(fallbacks.contains(&json!({ "fast": ["fast#2", "fast#3"] })));
        let big = list.iter().find(|it| it["model_name"] == "big/gpt").unwrap();
        assert_eq!(
            big["litellm_params"],
            json!({ "model": "openai/gpt", "api_key": "os.environ/BIG_API_KEY" })
        );
        assert_eq!(big["model_info"]["max_input_tokens"], 128_000);
        assert!(made.text.contains("input_cost_per_token: 0.00000015\n"), "{}", made.text);
        assert!(made.text.contains("output_cost_per_token: 0.00000007525\n"), "{}", made.text);
        let small = list.iter().find(|it| it["model_name"] == "small/gpt").unwrap();
        assert_eq!(small["litellm_params"]["api_base"], "http://10.0.0.5:11434");
        assert!(small["litellm_params"].get("api_key").is_none());
        let cell = list.iter().find(|it| it["model_name"] == "balanced:pro:chat").unwrap();
        assert_eq!(cell["litellm_params"]["weight"], 30);
        assert_eq!((made.entries, made.left_out.len()), (list.len(), 0), "{:?}", made.left_out);
    }

    #[test]
    fn base_urls_end_where_the_other_side_expects_it() {
        let check = |kind: &str, base: &str, expected: Option<&str>| {
            let text =
                format!("[providers.p]\ntype = \"{kind}\"\n{base}\n[[providers.p.models]]\nname = \"m\"\n");
            let (config, made) = exported(&text);
            let found = config["model_list"][0]["litellm_params"].get("api_base").and_then(Value::as_str);
            assert_eq!(found, expected, "{kind} {base}: {}", made.text);
        };
        check("openai", "", None);
        check("openai", "base_url = \"https://api.openai.com/v1\"", None);
        check("openai", "base_url = \"https://eu.example.com/v1/\"", Some("https://eu.example.com/v1"));
        check("anthropic", "base_url = \"https://relay.example.com/v1\"", Some("https://relay.example.com"));
        check(
            "azure-openai",
            "base_url = \"https://x.openai.azure.com/openai\"",
            Some("https://x.openai.azure.com"),
        );
        check("llama.cpp", "", Some("http://127.0.0.1:8080/v1"));
        check("vllm", "", Some("http://127.0.0.1:8000/v1"));
        check("zhipu", "", Some(ProviderType::Zhipu.default_base_url().unwrap()));
        let text = "[providers.p]\ntype = \"google\"\nbase_url = \"https://relay.example.com/v1beta\"\n[[providers.p.models]]\nname = \"m\"\n";
        let (config, made) = exported(text);
        assert_eq!(config["model_list"], json!([]));
        assert!(made.left_out[0].contains("vendor's own host"), "{:?}", made.left_out);
    }

    #[test]
    fn odd_names_stay_texts() {
        let text = "[providers.no]\ntype = \"custom\"\nbase_url = \"http://127.0.0.1:1/v1\"\n[[providers.no.models]]\nname = \"1:20 # \\\"x\\\" \u{85}\u{2028}\"\n";
        let (config, _) = exported(text);
        assert_eq!(config["model_list"][0]["model_name"], "no/1:20 # \"x\" \u{85}\u{2028}");
        assert_eq!(config["model_list"][0]["litellm_params"]["api_key"], "none");
    }

    #[test]
    fn prices_are_exact() {
        for (units, expected) in [
            (1_500_000_000, "0.00000015"),
            (752_500_000, "0.00000007525"),
            (0, "0.0"),
            (10_000_000_000_000_000, "1.0"),
            (1, "0.0000000000000001"),
        ] {
            assert_eq!(per_token(units), expected);
        }
    }
}
