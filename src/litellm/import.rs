//! LiteLLM's configuration → manifests.
//!
//! PURE. Entries of `model_list` with the same type, base URL and key are one provider; what callers ask for, the
//! `model_name`, becomes an alias where it is not the model's own name. Not its job: reading and writing files. Invariants:
//! what is written reads back as a valid manifest, element by element; a key in clear is never carried, nor repeated; whatever
//! is not carried is named with its place.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value};
use sha2::{Digest as _, Sha256};
use toml_edit::{Array, ArrayOfTables, DocumentMut, InlineTable, Item, Table, value};
use url::Url;

use catalog::{
    manifest::{self, Content, Severity, Workspace},
    price::TokenPrice,
};
use provider::ProviderType;

use super::families::{self, BaseForm, LiteLlmFamily};

/// A configuration of thousands of models has some hundred KB.
const MOST_BYTES: usize = 4 << 20;

/// Why there is nothing to import.
#[derive(Debug, thiserror::Error)]
pub enum LiteLlmError {
    #[error("the file has more than 4 MiB")]
    Size,
    #[error("the file is not YAML: {0}")]
    Yaml(String),
    #[error(
        "the file has no `model_list`\nhint: it is the list of models in the file that `litellm --config` reads"
    )]
    NoModels,
    #[error("a manifest of it would not be valid, which is a fault of providerd: {0}")]
    Fault(String),
}

/// What a configuration says, as a manifest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImportedConfig {
    /// TOML; empty where nothing could be carried.
    pub text: String,
    /// Names of the providers in it.
    pub providers: Vec<String>,
    pub models: usize,
    pub aliases: usize,
    /// What was not carried, with its place and the reason.
    pub left_out: Vec<String>,
}

/// What entries of `model_list` must share to be one provider.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Identity {
    kind: ProviderType,
    /// As a manifest takes it; `None`: the type's own.
    base: Option<String>,
    variable: Option<String>,
    api_version: Option<String>,
    /// Hash of the key in clear that was left out: entries with different ones are different providers.
    clear: Option<[u8; 32]>,
}

/// A provider in the making.
#[derive(Debug)]
struct Draft {
    identity: Identity,
    name: String,
    models: Vec<DraftModel>,
    prefixes: BTreeSet<String>,
    unlisted: bool,
    headers: BTreeMap<String, String>,
}

#[derive(Debug, Clone, PartialEq)]
struct DraftModel {
    name: String,
    context_length: Option<i64>,
    max_output_tokens: Option<i64>,
    /// USD per million tokens, as decimals: input, output, cached input, cache write.
    prices: [Option<TokenPrice>; 4],
}

/// Parameters that are read here; others of an entry are named as left out.
const READ: &[&str] = &[
    "model",
    "custom_llm_provider",
    "api_key",
    "api_base",
    "base_url",
    "api_version",
    "aws_region_name",
    "input_cost_per_token",
    "output_cost_per_token",
    "cache_read_input_token_cost",
    "cache_creation_input_token_cost",
    "extra_headers",
];
const READ_INFO: &[&str] = &[
    "id",
    "mode",
    "base_model",
    "max_tokens",
    "max_input_tokens",
    "max_output_tokens",
    "input_cost_per_token",
    "output_cost_per_token",
    "cache_read_input_token_cost",
    "cache_creation_input_token_cost",
    "litellm_provider",
    "description",
];
/// Modes whose endpoints the gateway serves.
const SERVED_MODES: &[&str] = &["chat", "completion", "embedding", "responses"];

/// Reads a configuration.
///
/// # Errors
/// It is not YAML, or has no list of models.
pub fn import(text: &str) -> Result<ImportedConfig, LiteLlmError> {
    if text.len() > MOST_BYTES {
        return Err(LiteLlmError::Size);
    }
    let config: Value = serde_saphyr::from_str(text).map_err(|error| {
        // Its first line says what and where; the rest shows the text, in which keys may stand.
        LiteLlmError::Yaml(error.to_string().lines().next().unwrap_or_default().to_owned())
    })?;
    let Some(list) = config.get("model_list").and_then(Value::as_array) else {
        return Err(LiteLlmError::NoModels);
    };
    let mut reader = Reader::default();
    for (at, entry) in list.iter().enumerate() {
        reader.entry(at + 1, entry);
    }
    reader.fallbacks(&config);
    reader.rest(&config);
    reader.finish()
}

#[derive(Default)]
struct Reader {
    drafts: Vec<Draft>,
    /// What a `model_name` stands for: places in `drafts` and names of models.
    groups: BTreeMap<String, Vec<(usize, String)>>,
    /// What follows when all of a group have failed.
    later: BTreeMap<String, Vec<String>>,
    other_names: BTreeMap<String, String>,
    left_out: Vec<String>,
}

impl Reader {
    fn skip(&mut self, what: impl Into<String>) {
        self.left_out.push(what.into());
    }

    fn entry(&mut self, number: usize, entry: &Value) {
        let place = match entry.get("model_name").and_then(Value::as_str) {
            Some(name) => format!("model_list[{number}] `{}`", shown(name)),
            None => return self.skip(format!("model_list[{number}]: it has no model_name")),
        };
        let group = entry.get("model_name").and_then(Value::as_str).unwrap_or_default();
        let empty = Map::new();
        let params = entry.get("litellm_params").and_then(Value::as_object).unwrap_or(&empty);
        let info = entry.get("model_info").and_then(Value::as_object).unwrap_or(&empty);
        let Some(model) = params.get("model").and_then(Value::as_str) else {
            return self.skip(format!("{place}: it has no litellm_params.model"));
        };
        if let Some(mode) = info.get("mode").and_then(Value::as_str)
            && !SERVED_MODES.contains(&mode)
        {
            return self.skip(format!("{place}: the gateway does not serve mode `{}`", shown(mode)));
        }
        let (identity, name) = match self.identity(&place, model, params) {
            Ok(found) => found,
            Err(why) => return self.skip(format!("{place}: {why}")),
        };
        let at = self.draft(identity);
        self.headers(&place, at, params);
        let unread = |map: &Map<String, Value>, read: &[&str]| -> Vec<String> {
            map.keys().filter(|key| !read.contains(&key.as_str())).map(|key| shown(key)).collect()
        };
        let mut others = unread(params, READ);
        others.extend(unread(info, READ_INFO));
        others.extend(
            ["tpm", "rpm"].iter().filter(|key| entry.get(**key).is_some()).map(|key| (*key).to_owned()),
        );
        if !others.is_empty() {
            self.skip(format!("{place}: {}", others.join(", ")));
        }
        if name.contains('*') {
            return self.wildcard(&place, at, group, &name);
        }
        let number = |name: &str| info.get(name).and_then(Value::as_i64).filter(|number| *number > 0);
        let price = |name: &str| per_million(params.get(name).or_else(|| info.get(name))?);
        let model = DraftModel {
            context_length: number("max_input_tokens").or_else(|| number("max_tokens")),
            max_output_tokens: number("max_output_tokens"),
            prices: [
                price("input_cost_per_token"),
                price("output_cost_per_token"),
                price("cache_read_input_token_cost"),
                price("cache_creation_input_token_cost"),
            ],
            name: name.clone(),
        };
        let Some(draft) = self.drafts.get_mut(at) else { return };
        match draft.models.iter_mut().find(|it| it.name == name) {
            None => draft.models.push(model),
            Some(known) => {
                known.context_length = known.context_length.or(model.context_length);
                known.max_output_tokens = known.max_output_tokens.or(model.max_output_tokens);
                for (known, more) in known.prices.iter_mut().zip(model.prices) {
                    *known = known.or(more);
                }
            }
        }
        if group == "*" {
            return self.skip(format!("{place}: no alias stands for everything"));
        }
        let targets = self.groups.entry(group.to_owned()).or_default();
        if !targets.contains(&(at, name.clone())) {
            targets.push((at, name));
        }
    }

    /// A whole provider, `anthropic/*`: models that no row names.
    fn wildcard(&mut self, place: &str, at: usize, group: &str, name: &str) {
        let prefix = group.strip_suffix('*').filter(|prefix| !prefix.contains('*'));
        match (name, prefix) {
            ("*", Some("")) => {
                if let Some(draft) = self.drafts.get_mut(at) {
                    draft.unlisted = true;
                }
                self.skip(format!(
                    "{place}: a name without a prefix does not reach models that are not listed"
                ));
            }
            ("*", Some(prefix)) => {
                let Some(draft) = self.drafts.get_mut(at) else { return };
                draft.unlisted = true;
                draft.prefixes.insert(prefix.to_owned());
            }
            _ => self.skip(format!("{place}: a pattern of this form has no counterpart")),
        }
    }

    /// Whose model it is, and the model's name there.
    fn identity(
        &mut self,
        place: &str,
        model: &str,
        params: &Map<String, Value>,
    ) -> Result<(Identity, String), String> {
        let text =
            |name: &str| params.get(name).and_then(Value::as_str).map(str::trim).filter(|it| !it.is_empty());
        let base = text("api_base").or_else(|| text("base_url"));
        if base.is_some_and(|base| base.starts_with("os.environ/")) {
            return Err("api_base stands in a variable, which a manifest cannot name".to_owned());
        }
        let base = base.map(|base| base.trim_end_matches('/').to_owned());
        let host = base
            .as_deref()
            .and_then(|base| Url::parse(base).ok())
            .and_then(|url| url.host_str().map(str::to_owned));
        let (family, name) = family(model, text("custom_llm_provider"), base.as_deref(), host.as_deref())?;
        if name.is_empty() {
            return Err("it names no model".to_owned());
        }
        let vendors = host.as_deref().is_none_or(|host| {
            let own = family.kind.default_base_url().and_then(|url| Url::parse(url).ok());
            own.is_some_and(|own| own.host_str() == Some(host))
        });
        // The dialect of OpenAI at another host is another type: its checks and key tests differ.
        let kind = if vendors { family.kind } else { family.kind_elsewhere() };
        let base = match (base, family.base) {
            (None, BaseForm::Region) => {
                let region = text("aws_region_name").ok_or("it names no region (aws_region_name)")?;
                Some(format!("https://bedrock-runtime.{region}.amazonaws.com"))
            }
            (Some(base), BaseForm::WithoutV1) if !base.ends_with("/v1") => Some(format!("{base}/v1")),
            (base, _) => base,
        };
        let (mut variable, mut clear) = (None, None);
        match text("api_key") {
            Some(key) => match key.strip_prefix("os.environ/") {
                Some(name) => variable = Some(name.to_owned()),
                // What is written where a client insists on some key.
                None if matches!(
                    key.to_ascii_lowercase().as_str(),
                    "none" | "empty" | "dummy" | "null" | "no-key"
                ) => {}
                None => {
                    self.skip(format!(
                        "{place}: api_key stands in clear; hint: `providerd key seal` seals it for the manifest, after it was revoked and made again"
                    ));
                    clear = Some(Sha256::digest(key.as_bytes()).into());
                }
            },
            // As LiteLLM does; but to the vendor alone.
            None if vendors && !family.variable.is_empty() => variable = Some(family.variable.to_owned()),
            None => {}
        }
        let api_version = text("api_version").filter(|it| !it.starts_with("os.environ/")).map(str::to_owned);
        Ok((Identity { kind, base, variable, api_version, clear }, name))
    }

    fn draft(&mut self, identity: Identity) -> usize {
        if let Some(at) = self.drafts.iter().position(|draft| draft.identity == identity) {
            return at;
        }
        let taken: BTreeSet<String> = self.drafts.iter().map(|draft| draft.name.clone()).collect();
        let name = fresh_name(&identity, &taken);
        self.drafts.push(Draft {
            identity,
            name,
            models: Vec::new(),
            prefixes: BTreeSet::new(),
            unlisted: false,
            headers: BTreeMap::new(),
        });
        self.drafts.len() - 1
    }

    fn headers(&mut self, place: &str, at: usize, params: &Map<String, Value>) {
        let Some(headers) = params.get("extra_headers") else { return };
        let Some(headers) = headers.as_object() else {
            return self.skip(format!("{place}: extra_headers is not a table"));
        };
        for (name, value) in headers {
            let Some(text) = value.as_str().filter(|text| !text.starts_with("os.environ/")) else {
                self.skip(format!("{place}: the header `{}` is not a plain text", shown(name)));
                continue;
            };
            if let Some(draft) = self.drafts.get_mut(at) {
                draft.headers.insert(name.clone(), text.to_owned());
            }
        }
    }

    /// Fallbacks of the router and other names of groups.
    fn fallbacks(&mut self, config: &Value) {
        for section in ["router_settings", "litellm_settings"] {
            let list = config.get(section).and_then(|it| it.get("fallbacks")).and_then(Value::as_array);
            for map in list.into_iter().flatten().filter_map(Value::as_object) {
                for (group, targets) in map {
                    let targets = targets.as_array().into_iter().flatten().filter_map(Value::as_str);
                    self.later.entry(group.clone()).or_default().extend(targets.map(str::to_owned));
                }
            }
        }
        let aliases = config.get("router_settings").and_then(|it| it.get("model_group_alias"));
        for (name, target) in aliases.and_then(Value::as_object).into_iter().flatten() {
            // A table says `hidden` beside the model.
            let target = target.as_str().or_else(|| target.get("model").and_then(Value::as_str));
            match target {
                Some(target) => {
                    self.other_names.insert(name.clone(), target.to_owned());
                }
                None => self.skip(format!("router_settings.model_group_alias: `{}`", shown(name))),
            }
        }
    }

    /// Names everything that is not about models.
    fn rest(&mut self, config: &Value) {
        for (section, settings) in config.as_object().into_iter().flatten() {
            match (section.as_str(), settings) {
                ("model_list", _) => {}
                ("router_settings" | "litellm_settings" | "general_settings", Value::Object(settings)) => {
                    let read: &[&str] = match section.as_str() {
                        "router_settings" => &["fallbacks", "model_group_alias"],
                        "litellm_settings" => &["fallbacks"],
                        _ => &[],
                    };
                    let names: Vec<String> = settings
                        .keys()
                        .filter(|key| !read.contains(&key.as_str()))
                        .map(|key| shown(key))
                        .collect();
                    if !names.is_empty() {
                        self.skip(format!("{section}: {}", names.join(", ")));
                    }
                }
                (other, _) => self.skip(shown(other)),
            }
        }
    }

    /// What a group stands for, with what follows: models by provider, each once.
    fn targets(&self, group: &str, seen: &mut BTreeSet<String>, found: &mut Vec<(usize, String)>) {
        if !seen.insert(group.to_owned()) {
            return;
        }
        for target in self.groups.get(group).into_iter().flatten() {
            if !found.contains(target) {
                found.push(target.clone());
            }
        }
        if let Some(other) = self.other_names.get(group) {
            self.targets(other, seen, found);
        }
        // What follows is asked for itself: its own fallbacks are not.
        for next in self.later.get(group).into_iter().flatten() {
            for target in self.groups.get(next).into_iter().flatten() {
                if !found.contains(target) {
                    found.push(target.clone());
                }
            }
        }
    }

    fn finish(mut self) -> Result<ImportedConfig, LiteLlmError> {
        let mut document = DocumentMut::new();
        let mut kept: Vec<Option<BTreeSet<String>>> = Vec::new();
        let (mut providers, mut models) = (Vec::new(), 0);
        let drafts = std::mem::take(&mut self.drafts);
        for draft in &drafts {
            let Some(mut table) = self.head(draft) else {
                kept.push(None);
                continue;
            };
            let mut array = ArrayOfTables::new();
            let mut names = BTreeSet::new();
            for model in &draft.models {
                if let Some(made) = self.model(draft, &table, model) {
                    names.insert(model.name.clone());
                    array.push(made);
                }
            }
            models += array.len();
            if !array.is_empty() {
                table.insert("models", Item::ArrayOfTables(array));
            }
            kept.push(Some(names));
            insert_provider(&mut document, &draft.name, table);
            providers.push(draft.name.clone());
        }
        let aliases = self.aliases(&drafts, &kept);
        let count = aliases.len();
        if count > 0 {
            let mut table = Table::new();
            for (name, targets) in aliases {
                table.insert(&name, value(targets));
            }
            document.insert("aliases", Item::Table(table));
        }
        let text = document.to_string();
        // Everything was tried by itself; together it must hold as well.
        let problems = problems(&text);
        if let Some(problem) = problems.first() {
            return Err(LiteLlmError::Fault(problem.clone()));
        }
        Ok(ImportedConfig { text, providers, models, aliases: count, left_out: self.left_out })
    }

    /// A provider without its models; `None`: no manifest can hold it.
    fn head(&mut self, draft: &Draft) -> Option<Table> {
        let identity = &draft.identity;
        let mut table = Table::new();
        table.insert("type", value(identity.kind.as_str()));
        if let Some(base) = &identity.base {
            table.insert("base_url", value(base.as_str()));
        }
        if !holds(&draft.name, &table) {
            self.skip(format!(
                "provider {} with all its models: a manifest cannot hold its api_base, or its type needs one",
                draft.name
            ));
            return None;
        }
        let mut keep = |reader: &mut Self, key: &str, item: Item, what: &str| {
            let mut tried = table.clone();
            tried.insert(key, item.clone());
            if holds(&draft.name, &tried) {
                table.insert(key, item);
            } else {
                reader.skip(format!("provider {}: {what}: a manifest cannot hold it", draft.name));
            }
        };
        if let Some(variable) = &identity.variable {
            let mut reference = InlineTable::new();
            reference.insert("env", variable.as_str().into());
            keep(
                self,
                "api_key",
                value(reference),
                &format!("the variable `{}` of its key", shown(variable)),
            );
        }
        let prefixes: Array = draft
            .prefixes
            .iter()
            .filter(|prefix| **prefix != format!("{}/", draft.name))
            .map(String::as_str)
            .collect();
        if !prefixes.is_empty() {
            keep(self, "model_prefixes", value(prefixes), "its prefixes");
        }
        if let Some(version) = &identity.api_version {
            let mut config = Table::new();
            config.insert("api_version", value(version.as_str()));
            keep(self, "config", Item::Table(config), "api_version");
        }
        if draft.unlisted || !draft.headers.is_empty() {
            let mut gateway = Table::new();
            if draft.unlisted {
                gateway.insert("unlisted_models", value(true));
            }
            if !draft.headers.is_empty() {
                let mut headers = InlineTable::new();
                for (name, text) in &draft.headers {
                    headers.insert(name, text.as_str().into());
                }
                let mut tried = gateway.clone();
                tried.insert("headers", value(headers.clone()));
                let mut whole = table.clone();
                whole.insert("gateway", Item::Table(tried));
                if holds(&draft.name, &whole) {
                    gateway.insert("headers", value(headers));
                } else {
                    self.skip(format!("provider {}: extra_headers: a manifest cannot hold them", draft.name));
                }
            }
            if !gateway.is_empty() {
                table.insert("gateway", Item::Table(gateway));
            }
        }
        Some(table)
    }

    fn model(&mut self, draft: &Draft, head: &Table, model: &DraftModel) -> Option<Table> {
        let tried = |made: &Table| {
            let mut whole = head.clone();
            let mut array = ArrayOfTables::new();
            array.push(made.clone());
            whole.insert("models", Item::ArrayOfTables(array));
            holds(&draft.name, &whole)
        };
        let mut made = Table::new();
        made.insert("name", value(model.name.as_str()));
        if !tried(&made) {
            self.skip(format!(
                "model `{}` of {}: a manifest cannot hold this name",
                shown(&model.name),
                draft.name
            ));
            return None;
        }
        let [input, output, cached, written] = model.prices;
        let price = |price: Option<TokenPrice>| {
            price.and_then(|price| price.to_string().parse::<toml_edit::Value>().ok())
        };
        let fields = [
            ("context_length", model.context_length.map(toml_edit::Value::from)),
            ("max_output_tokens", model.max_output_tokens.map(toml_edit::Value::from)),
            ("cost_per_1m_input_tokens", price(input)),
            ("cost_per_1m_output_tokens", price(output)),
            ("cost_per_1m_cached_input_tokens", price(cached)),
            ("cost_per_1m_cache_write_tokens", price(written)),
        ];
        for (name, field) in fields {
            let Some(field) = field else { continue };
            let mut with = made.clone();
            with.insert(name, value(field));
            if tried(&with) {
                made = with;
            } else {
                self.skip(format!("model `{}` of {}: {name}", shown(&model.name), draft.name));
            }
        }
        Some(made)
    }

    /// The groups that are more than a model's own name.
    fn aliases(&mut self, drafts: &[Draft], kept: &[Option<BTreeSet<String>>]) -> Vec<(String, Array)> {
        let mut groups: BTreeSet<String> = self.groups.keys().cloned().collect();
        groups.extend(self.other_names.keys().cloned());
        let mut made = Vec::new();
        for group in groups {
            let mut found = Vec::new();
            self.targets(&group, &mut BTreeSet::new(), &mut found);
            found.retain(|(at, model)| {
                kept.get(*at).and_then(Option::as_ref).is_some_and(|names| names.contains(model))
            });
            if found.is_empty() {
                if self.groups.contains_key(&group) || self.other_names.contains_key(&group) {
                    self.skip(format!(
                        "the name `{}`: nothing that it stands for was carried",
                        shown(&group)
                    ));
                }
                continue;
            }
            // A caller that asks for this name reaches exactly these models without an alias.
            let everywhere: Vec<(usize, String)> = drafts
                .iter()
                .enumerate()
                .filter(|(at, _)| {
                    kept.get(*at).and_then(Option::as_ref).is_some_and(|names| names.contains(&group))
                })
                .map(|(at, _)| (at, group.clone()))
                .collect();
            if found == everywhere {
                continue;
            }
            let several = self.groups.get(&group).is_some_and(|targets| targets.len() > 1);
            let targets: Array = found
                .iter()
                .filter_map(|(at, model)| Some(format!("{}/{model}", drafts.get(*at)?.name)))
                .collect();
            // It pins its own model.
            if found.len() == 1 && targets.get(0).and_then(|it| it.as_str()) == Some(&*group) {
                continue;
            }
            if group.contains('#') && self.later.values().any(|later| later.contains(&group)) {
                // A step of another group, as `export` makes them.
                continue;
            }
            let mut probe = Table::new();
            probe.insert(&group, value(targets.clone()));
            let mut document = DocumentMut::new();
            document.insert("aliases", Item::Table(probe));
            if !problems(&document.to_string()).is_empty() {
                self.skip(format!("the name `{}`: no alias can be called so", shown(&group)));
                continue;
            }
            if several {
                self.skip(format!(
                    "the name `{}`: LiteLLM shares among its entries, the alias tries them in order; hint: a route with weights shares",
                    shown(&group)
                ));
            }
            made.push((group, targets));
        }
        made
    }
}

/// The type that is meant, and the model's name at it.
fn family(
    model: &str,
    word: Option<&str>,
    base: Option<&str>,
    host: Option<&str>,
) -> Result<(&'static LiteLlmFamily, String), String> {
    let split = model.split_once('/');
    if let Some(word) = word {
        let family = families::of_prefix(word)
            .ok_or_else(|| format!("custom_llm_provider `{}` has no counterpart", shown(word)))?;
        return Ok((
            family,
            model.strip_prefix(word).and_then(|rest| rest.strip_prefix('/')).unwrap_or(model).to_owned(),
        ));
    }
    if let Some((prefix, rest)) = split {
        if let Some(family) = families::of_prefix(prefix) {
            return Ok((family, rest.to_owned()));
        }
        if let Some(family) = ProviderType::parse(prefix).and_then(families::of_type) {
            return Ok((family, rest.to_owned()));
        }
    }
    let compatible = families::compatible();
    match (base, compatible) {
        (Some(_), Some(family)) => {
            let name = match split {
                // A vendor that we have no word for, at its own host.
                Some((prefix, rest))
                    if host.is_some_and(|host| host.contains(&prefix.to_ascii_lowercase())) =>
                {
                    rest
                }
                _ => model,
            };
            Ok((family, name.to_owned()))
        }
        _ => {
            let vendor = families::of_model(model).filter(|_| split.is_none());
            vendor.map(|family| (family, model.to_owned())).ok_or_else(|| match split {
                Some((prefix, _)) => format!("the provider `{}` has no counterpart", shown(prefix)),
                None => "it does not say which provider has this model".to_owned(),
            })
        }
    }
}

/// A name that differs from those of the providers before it: its type, else with its host, its variable, or a number.
fn fresh_name(identity: &Identity, taken: &BTreeSet<String>) -> String {
    let kind = identity.kind.as_str();
    let tidy = |text: &str| -> String {
        let word = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' };
        text.chars().map(word).take(40).collect::<String>().trim_matches('-').to_owned()
    };
    let host = identity.base.as_deref().and_then(|base| Url::parse(base).ok()).and_then(|url| {
        let host = url.host_str()?.to_owned();
        // An address has no first label.
        Some(if host.parse::<std::net::IpAddr>().is_ok() { host } else { host.split('.').next()?.to_owned() })
    });
    let variable = identity.variable.as_deref().map(|name| name.trim_end_matches("_API_KEY"));
    let parts = [None, host.as_deref(), variable];
    let words = parts.into_iter().map(|part| part.map(tidy).filter(|part| !part.is_empty()));
    let named = words.enumerate().filter_map(|(at, part)| match (at, part) {
        (0, _) => Some(kind.to_owned()),
        (_, part) => part.map(|part| format!("{kind}-{part}")),
    });
    let numbered = (2..).map(|at| format!("{kind}-{at}"));
    named.chain(numbered).find(|name| !taken.contains(name)).unwrap_or_else(|| kind.to_owned())
}

/// USD per million tokens of USD per token; `None` for what no manifest can hold.
fn per_million(value: &Value) -> Option<TokenPrice> {
    let text = match value {
        Value::Number(number) => number.to_string(),
        Value::String(text) => text.clone(),
        _ => return None,
    };
    let price = text.parse::<f64>().ok().filter(|price| price.is_finite() && *price >= 0.0)? * 1e6;
    // Ten digits are kept behind the point; what a double adds behind them is not the price's.
    let exact = format!("{price:.9}");
    let exact = exact.trim_end_matches('0').trim_end_matches('.');
    exact.parse().ok()
}

fn insert_provider(document: &mut DocumentMut, name: &str, table: Table) {
    let providers = document.entry("providers").or_insert_with(|| {
        let mut table = Table::new();
        table.set_implicit(true);
        Item::Table(table)
    });
    if let Some(providers) = providers.as_table_mut() {
        providers.insert(name, Item::Table(table));
    }
}

/// Whether a manifest with this provider alone is valid.
fn holds(name: &str, table: &Table) -> bool {
    let mut document = DocumentMut::new();
    insert_provider(&mut document, name, table.clone());
    problems(&document.to_string()).is_empty()
}

/// Errors of one text.
fn problems(text: &str) -> Vec<String> {
    let mut workspace = Workspace::new();
    let path: std::sync::Arc<str> = "litellm.toml".into();
    workspace.set_parsed(path.clone(), manifest::read(&path, &Content::Text(text.into())));
    let build = workspace.build();
    let errors = build.diagnostics.iter().filter(|it| it.severity == Severity::Error);
    errors.map(|it| it.message.clone()).collect()
}

/// A name for a message: one line, of bounded length, without what looks like a key.
fn shown(text: &str) -> String {
    let plain: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(100).collect();
    if manifest::looks_secret("", &plain) { "***".to_owned() } else { plain }
}

#[cfg(test)]
mod tests;
