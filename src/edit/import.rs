//! What the database holds → manifests that declare exactly that.
//!
//! PURE. Not its job: reading the database, opening keys, writing files. Invariant: a field is written only where the
//! manifest that holds it reads back as the same value; everything else stays undeclared, and so untouched.

use std::{collections::BTreeSet, sync::Arc};

use serde_json::Value;

use catalog::{
    manifest::{self, ParsedFile},
    model::{JsonMap, Provider},
    plan::{LiveModel, LiveProvider, LiveRule},
};
use provider::ProviderType;

/// One provider's manifest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Imported {
    pub text: String,
    /// What the database holds and the manifest leaves out, each with the reason.
    pub left_out: Vec<String>,
}

/// Why a provider cannot be imported; it stays as it is, unmanaged.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    #[error(
        "`{0}` is no name for a manifest (1 to 100 characters, without `/`, `*`, `?`, invisible ones, or space around it)\n\
         hint: rename the provider"
    )]
    Name(String),
    #[error(
        "its type is `{0}`, which no manifest can declare\n\
         hint: if it speaks like a known type, set that one in the database; else leave the provider unmanaged"
    )]
    Type(String),
    #[error("its type `{0}` needs a base URL, and the database has none that a manifest can declare")]
    BaseUrl(ProviderType),
}

/// The manifest of one provider; `sealed` is its key's token.
///
/// # Errors
/// [`Refused`] if the name, the type or the base URL cannot be declared: without them there is no manifest.
pub fn provider(live: &LiveProvider, sealed: Option<&str>) -> Result<Imported, Refused> {
    let name = &*live.name;
    let unknown = || Refused::Type(live.kind.clone().unwrap_or_default());
    let kind = live.kind.as_deref().and_then(ProviderType::parse).ok_or_else(unknown)?;
    let mut to = Writer { name, kind, base: None, text: String::new(), left_out: Vec::new() };
    if to.reads(&format!("[providers.{}]\ntype = \"openai\"\n", key(name))).is_none() {
        return Err(Refused::Name(name.to_owned()));
    }
    let url = base_url(live, kind);
    let line = url.map(|url| format!("base_url = {}\n", string(url)));
    if let (Some(line), Some(url)) = (&line, url) {
        let probe = format!("{}{line}", to.head());
        if to.reads(&probe).is_some_and(|read| read.base_url.as_deref() == Some(url)) {
            to.base = Some(line.clone());
        } else {
            to.left_out.push("base_url: a manifest cannot declare this URL".into());
        }
    }
    if to.base.is_none() && kind.default_base_url().is_none() {
        return Err(Refused::BaseUrl(kind));
    }
    let copy = live.config.get("base_url").and_then(Value::as_str);
    if to.base.is_some() && (copy != url || live.api_base_url.as_deref() != url) {
        to.left_out.push(
            "base_url stands in one of api_base_url and config.base_url only; applying copies it to the other".into(),
        );
    }
    to.text = to.head() + to.base.as_deref().unwrap_or_default();
    to.own_fields(live, sealed);
    for model in &live.models {
        to.model(model, live);
    }
    for model in &live.models {
        for rule in &model.rules {
            to.rule(model, rule);
        }
    }
    Ok(Imported { text: to.text, left_out: to.left_out })
}

/// The URL to declare: none where the columns say what the type says, or nothing.
fn base_url(live: &LiveProvider, kind: ProviderType) -> Option<&str> {
    let copy = live.config.get("base_url").and_then(Value::as_str);
    let url = live.api_base_url.as_deref().or(copy).filter(|url| !url.is_empty())?;
    let both = copy == Some(url) && live.api_base_url.as_deref() == Some(url);
    (both || kind.default_base_url() != Some(url)).then_some(url)
}

struct Writer<'a> {
    name: &'a str,
    kind: ProviderType,
    /// The line that declares the base URL.
    base: Option<String>,
    text: String,
    left_out: Vec<String>,
}

impl Writer<'_> {
    fn head(&self) -> String {
        format!("[providers.{}]\ntype = {}\n", key(self.name), string(self.kind.as_str()))
    }

    /// A manifest that is free of errors, as it reads.
    fn parsed(text: &str) -> Option<ParsedFile> {
        let file = manifest::parse(&Arc::from("import.toml"), text);
        (!file.has_errors()).then_some(file)
    }

    fn reads(&self, text: &str) -> Option<Arc<Provider>> {
        Self::parsed(text)?.providers.pop()
    }

    /// A probe: the least manifest of this provider, with `rest` in it.
    fn probe(&self, rest: &str) -> Option<ParsedFile> {
        Self::parsed(&format!("{}{}{rest}", self.head(), self.base.as_deref().unwrap_or_default()))
    }

    /// Writes a line if it reads back as it should.
    fn line(&mut self, name: &str, value: &str, holds: impl Fn(&Provider) -> bool) {
        let line = format!("{} = {value}\n", key(name));
        if self.probe(&line).is_some_and(|file| file.providers.first().is_some_and(|it| holds(it))) {
            self.text += &line;
        } else {
            self.left_out.push(format!("{name}: a manifest cannot hold this value"));
        }
    }

    fn own_fields(&mut self, live: &LiveProvider, sealed: Option<&str>) {
        if let Some(enabled) = live.enabled {
            self.line("enabled", &enabled.to_string(), |it| it.enabled == Some(enabled));
        }
        if let Some(priority) = live.priority {
            self.line("priority", &priority.to_string(), |it| it.priority == Some(priority));
        }
        if let Some(prefixes) = live.config.get("model_prefixes") {
            let wanted: Option<Vec<Box<str>>> =
                prefixes.as_array().and_then(|all| all.iter().map(|it| Some(it.as_str()?.into())).collect());
            let text = toml_value(prefixes).unwrap_or_default();
            self.line("model_prefixes", &text, |it| wanted.is_some() && it.model_prefixes == wanted);
        }
        if let Some(description) = live.config.get("description") {
            let text = toml_value(description).unwrap_or_default();
            self.line("description", &text, |it| it.description.as_deref() == description.as_str());
        }
        if let Some(token) = sealed {
            let text = format!("{{ sealed = {} }}", string(token));
            self.line("api_key", &text, |it| it.api_key.is_some());
        }
        if let Some(source) = live.api_key_source.as_deref() {
            self.line("api_key_source", &string(source), |it| {
                it.api_key_source.is_some_and(|it| it.as_str() == source)
            });
        }
        let reserved = ["base_url", "model_prefixes", "description"];
        let config = self.free("config", &live.config, &reserved, |line| format!("config = {{ {line} }}\n"));
        if !config.is_empty() {
            self.text += &format!("\n[providers.{}.config]\n{config}", key(self.name));
        }
    }

    /// The lines of a free-form table, without what a manifest cannot hold.
    fn free(
        &mut self,
        what: &str,
        map: &JsonMap,
        reserved: &[&str],
        probe: impl Fn(&str) -> String,
    ) -> String {
        let mut lines = String::new();
        for (name, value) in map.iter().filter(|(name, _)| !reserved.contains(&name.as_str())) {
            let line = toml_value(value).map(|value| format!("{} = {value}", key(name)));
            match line {
                Some(line) if self.probe(&probe(&line)).is_some() => lines += &format!("{line}\n"),
                // The name may be the secret.
                _ => self
                    .left_out
                    .push(format!("a key of {what}: a manifest cannot hold its name or its value")),
            }
        }
        lines
    }

    fn model(&mut self, model: &LiveModel, live: &LiveProvider) {
        let header = format!("[[providers.{}.models]]\nname = {}\n", key(self.name), string(&model.name));
        let shown = shown(&model.name);
        // Of models that share a name, the last one is the one that a manifest speaks of.
        let last = live.models.iter().rev().find(|it| it.name == model.name).map(|it| it.id);
        if last != Some(model.id) {
            self.left_out.push(format!("model {shown}: another row has the same name"));
            return;
        }
        if self.probe(&format!("\n{header}")).is_none() {
            self.left_out.push(format!("model {shown}: a manifest cannot hold this name"));
            return;
        }
        let mut text = format!("\n{header}");
        let mut fields: Vec<(&str, Option<String>)> = vec![
            ("display_name", model.display_name.as_deref().map(string)),
            ("context_length", model.context_length.map(|it| it.to_string())),
        ];
        let cost = |cost: Option<f64>| cost.and_then(|cost| toml_value(&cost.into()));
        fields.push(("cost_per_1m_input_tokens", cost(model.cost_per_1m_input_tokens)));
        fields.push(("cost_per_1m_output_tokens", cost(model.cost_per_1m_output_tokens)));
        fields.push(("enabled", model.enabled.map(|it| it.to_string())));
        for (name, value) in fields {
            let Some(value) = value else { continue };
            let line = format!("{name} = {value}\n");
            if self.probe(&format!("\n{header}{line}")).is_some() {
                text += &line;
            } else {
                self.left_out.push(format!("{name} of model {shown}: a manifest cannot hold this value"));
            }
        }
        let what = format!("metadata of model {shown}");
        let metadata =
            self.free(&what, &model.metadata, &[], |line| format!("\n{header}metadata = {{ {line} }}\n"));
        if !metadata.is_empty() {
            text += &format!("[providers.{}.models.metadata]\n{metadata}", key(self.name));
        }
        self.text += &text;
    }

    fn rule(&mut self, model: &LiveModel, rule: &LiveRule) {
        let shown = shown(&model.name);
        let pattern = format!("{}/{}", self.name, model.name);
        if model.name.contains(['*', '?']) {
            self.left_out.push(format!("a route to model {shown}: its name holds a wildcard"));
            return;
        }
        let cell = |it: &LiveRule| (it.power_level.clone(), it.user_tier.clone(), it.task_type.clone());
        let first = model.rules.iter().filter(|it| cell(it) == cell(rule)).map(|it| it.id).min();
        if first != Some(rule.id) {
            self.left_out.push(format!("a route to model {shown}: another one serves the same cell"));
            return;
        }
        let mut text = format!("\n[[routes]]\nmodels = {}\n", string(&pattern));
        let words = [
            ("power_level", rule.power_level.as_deref().map(string)),
            ("user_tier", rule.user_tier.as_deref().map(string)),
            ("task_type", rule.task_type.as_deref().map(string)),
            ("priority", rule.priority.map(|it| it.to_string())),
            ("weight", rule.weight.map(|it| it.to_string())),
            ("enabled", rule.is_active.map(|it| it.to_string())),
        ];
        for (name, value) in words {
            text.extend(value.map(|value| format!("{name} = {value}\n")));
        }
        if self.probe(&text).is_some_and(|file| file.routes.len() == 1) {
            self.text += &text;
        } else {
            self.left_out
                .push(format!("a route to model {shown}: a manifest cannot hold its cell or its values"));
        }
    }
}

/// The file for a provider's manifest: its name in lower case, with `-` for all but letters, digits, `.`, `_` and `-`.
/// `taken`: the names given so far; a name that is taken gets a number.
pub fn file_name(provider: &str, taken: &mut BTreeSet<String>) -> String {
    let plain: String = provider
        .to_lowercase()
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-') { c } else { '-' })
        .collect();
    // A name that begins with a dot would be a hidden file, which no reader takes for a manifest.
    let stem = plain.trim_start_matches('.');
    let stem = if stem.is_empty() { "provider" } else { stem };
    let mut name = format!("{stem}.toml");
    for number in 2_u32.. {
        if taken.insert(name.clone()) {
            break;
        }
        name = format!("{stem}-{number}.toml");
    }
    name
}

/// A name for a message: one line, of bounded length.
fn shown(name: &str) -> String {
    let plain: String = name.chars().map(|c| if c.is_control() { ' ' } else { c }).take(60).collect();
    format!("`{plain}`")
}

fn string(text: &str) -> String {
    toml::Value::String(text.to_owned()).to_string()
}

/// A key, quoted where it must be.
fn key(name: &str) -> String {
    let bare =
        !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-'));
    if bare { name.to_owned() } else { Value::from(name).to_string().replace('\u{7f}', "\\u007f") }
}

/// A value on one line; `None` for what TOML cannot say (null, integers beyond 64 bits).
fn toml_value(value: &Value) -> Option<String> {
    convert(value).map(|value| value.to_string())
}

fn convert(value: &Value) -> Option<toml::Value> {
    Some(match value {
        Value::Null => return None,
        Value::Bool(value) => (*value).into(),
        Value::Number(number) => match number.as_i64() {
            Some(number) => number.into(),
            None if number.is_f64() => number.as_f64().filter(|it| it.is_finite())?.into(),
            None => return None,
        },
        Value::String(text) => text.as_str().into(),
        Value::Array(items) => toml::Value::Array(items.iter().map(convert).collect::<Option<_>>()?),
        Value::Object(map) => {
            let one = |(name, value): (&String, &Value)| Some((name.clone(), convert(value)?));
            toml::Value::Table(map.iter().map(one).collect::<Option<_>>()?)
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use catalog::plan::LiveKey;
    use serde_json::json;
    use uuid::Uuid;

    fn live(name: &str, kind: &str, config: Value) -> LiveProvider {
        LiveProvider {
            id: Uuid::nil(),
            name: name.into(),
            kind: Some(kind.into()),
            enabled: Some(true),
            priority: None,
            api_base_url: None,
            api_key_source: Some("elsewhere".into()),
            key: LiveKey::Absent,
            key_test_status: None,
            health_status: None,
            config: config.as_object().cloned().unwrap_or_default(),
            models: Vec::new(),
        }
    }

    #[test]
    fn awkward_values_read_back_or_stay_out() {
        let config = json!({
            "description": "a \"quoted\" \\ line\nwith \u{7f} and 'more' '''x'''",
            "model_prefixes": ["a/", "\u{1F600}"],
            "nested": { "a b": [1, 2.5, { "c": true }], "": "empty" },
            "nothing": null, "deep": [null], "huge": u64::MAX,
            "2026-01-01": "2026-01-01T00:00:00Z",
        });
        let imported = provider(&live("a.b", "openai", config.clone()), None).unwrap();
        let file = Writer::parsed(&imported.text).unwrap();
        let read = &file.providers[0];
        assert_eq!(read.description.as_deref(), config["description"].as_str());
        assert_eq!(read.config.get("nested"), config.get("nested"));
        assert_eq!(read.config.get("2026-01-01"), config.get("2026-01-01"));
        assert_eq!(read.config.len(), 2);
        assert_eq!(imported.left_out.len(), 4, "{:?}", imported.left_out);
    }

    #[test]
    fn words_of_other_programs_are_kept_as_written() {
        for word in ["openai_compatible", "local", "unicorn-commander"] {
            let imported =
                provider(&live("other", word, json!({"base_url": "http://10.0.0.1/v1"})), None).unwrap();
            assert!(imported.text.contains(&format!("type = \"{word}\"")), "{}", imported.text);
            let read = Writer::parsed(&imported.text).unwrap().providers.pop().unwrap();
            assert_eq!(read.kind.as_str(), word);
            assert!(read.kind.same_protocol().any(|kind| kind == ProviderType::OpenAiCompatible), "{word}");
        }
    }

    #[test]
    fn files_are_called_as_their_providers_and_apart() {
        let mut taken = BTreeSet::new();
        let names = ["openrouter", "OpenRouter", "Google AI", "google-ai", "..", "../up", "日本"];
        let files: Vec<String> = names.iter().map(|name| file_name(name, &mut taken)).collect();
        assert_eq!(
            files,
            [
                "openrouter.toml",
                "openrouter-2.toml",
                "google-ai.toml",
                "google-ai-2.toml",
                "provider.toml",
                "-up.toml",
                "--.toml"
            ]
        );
    }

    #[test]
    fn what_has_no_manifest_is_refused() {
        let check = |name: &str, kind: &str, expected| {
            assert_eq!(provider(&live(name, kind, json!({})), None), Err(expected))
        };
        check("with/slash", "openai", Refused::Name("with/slash".into()));
        check(" spaced ", "openai", Refused::Name(" spaced ".into()));
        check("fine", "own-invention", Refused::Type("own-invention".into()));
        check("fine", "openai-compatible", Refused::BaseUrl(ProviderType::OpenAiCompatible));
    }
}
