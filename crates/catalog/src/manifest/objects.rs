//! The objects that a manifest declares: which keys their tables have, and what these may say.
//!
//! PURE. Not its job: the forms of single values (`values`). Invariant: whatever is wrong is reported at its place, and
//! reading goes on, so that one look finds every problem.

use std::{borrow::Cow, collections::HashMap, ops::Range, sync::Arc, time::Duration};

use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

use provider::ProviderType;

use super::{
    ParsedFile, Related, Severity,
    diagnostic::SourcePlace,
    keyshape,
    parse::{ManifestReader, SpannedItem, mentionable},
    values::{MAX_NAME, REVOKE, shorten},
};
use crate::model::{
    Discover, HealthPolicy, KeySource, Model, Origin, PowerLevel, Provider, Route, Schedule, SecretRef,
};

/// Keys of each table, in the order of the documentation.
pub(super) const ROOT: &[&str] =
    &["providers", "routes", "defaults", "aliases", "power_levels", "consumers", "tiers"];
pub(super) const PROVIDER: &[&str] = &[
    "type",
    "enabled",
    "priority",
    "base_url",
    "model_prefixes",
    "description",
    "api_key",
    "api_key_source",
    "config",
    "health",
    "discover",
    "gateway",
    "models",
];
pub(super) const HEALTH: &[&str] = &["interval", "cron", "timeout", "slow_after", "path", "expect_status"];
pub(super) const DISCOVER: &[&str] = &["include", "exclude", "cron", "enabled"];
pub(super) const MODEL: &[&str] = &[
    "name",
    "display_name",
    "context_length",
    "cost_per_1m_input_tokens",
    "cost_per_1m_output_tokens",
    "cost_per_1m_cached_input_tokens",
    "cost_per_1m_cache_write_tokens",
    "upstream_name",
    "max_output_tokens",
    "takes",
    "enabled",
    "metadata",
];
pub(super) const ROUTE: &[&str] =
    &["models", "power_level", "user_tier", "task_type", "priority", "weight", "enabled"];
pub(super) const DEFAULTS: &[&str] = &["health"];
pub(super) const SECRET: &[&str] = &["env", "file", "credential", "sealed"];

/// Keys of `config` that stand for columns or fields of their own.
/// What requests append to a base URL.
const ENDPOINTS: &[&str] =
    &["/chat/completions", "/completions", "/embeddings", "/models", "/messages", "/responses"];
const RESERVED_CONFIG: &[&str] = &["base_url", "model_prefixes", "description"];
/// A discovery without a time of its own runs at night.
const DISCOVER_CRON: &str = "0 0 3 * * *";

impl<'a> ManifestReader<'a> {
    pub(super) fn root(&mut self, root: &DeTable<'a>, file: &mut ParsedFile) {
        self.unknown(root, ROOT, "a manifest");
        if let Some(providers) = self.table(root, "providers") {
            for (name, item) in providers {
                file.mentioned.extend(mentionable(name.get_ref()));
                if let Some(provider) = self.provider(name, item) {
                    file.provider_places.push(self.lines.place(name.span()));
                    file.providers.push(Arc::new(provider));
                }
            }
        }
        for item in self.tables(root, "routes") {
            if let Some((route, place)) = self.route(item) {
                file.route_places.push(place);
                file.routes.push(Arc::new(route));
            }
        }
        file.routes.shrink_to_fit();
        self.callers(root, file);
        if let Some(defaults) = self.table(root, "defaults") {
            self.unknown(defaults, DEFAULTS, "`defaults`");
            file.default_health = self.table(defaults, "health").map(|table| self.health(table));
            let header = defaults.get_key_value("health").map(|(key, _)| key.span());
            file.defaults_place = header.map(|span| self.lines.place(span));
        }
    }

    fn provider(&mut self, name: &Spanned<Cow<'a, str>>, item: &SpannedItem<'a>) -> Option<Provider> {
        let (span, name) = (name.span(), name.get_ref());
        if keyshape::find(name).is_some() || self.begins_key(span.clone()) {
            let found = self.error("literal-key", span, "this provider's name looks like a key");
            found.secret = true;
            found.help.push(REVOKE.into());
            return None;
        }
        if !is_provider_name(name) {
            let help =
                "a name has 1 to 100 characters, without `/`, `*`, `?`, invisible ones, or space around it";
            self.error("provider-name", span.clone(), format!("`{}` is no provider name", shorten(name)))
                .help
                .push(help.into());
        }
        let table = self.expect_table(item, "a provider")?;
        self.unknown(table, PROVIDER, "a provider");
        let kind = self.kind(table, name, span.clone());
        let base_url = self.base_url(table);
        if let Some(kind) = kind
            && base_url.is_none()
            && kind.default_base_url().is_none()
            && !table.contains_key("base_url")
        {
            let message =
                format!("provider `{}` needs a `base_url`: type `{kind}` has none of its own", shorten(name));
            self.error("missing-base-url", span.clone(), message);
        }
        if let Some(retired) = kind.and_then(ProviderType::retired) {
            let message = format!("{retired}: every call fails, whatever the key");
            self.report(Severity::Warning, "retired-type", span.clone(), message);
        }
        if let (Some(url), Some(item)) = (&base_url, table.get("base_url"))
            && table.contains_key("api_key")
            && url::Url::parse(url)
                .is_ok_and(|url| url.scheme() == "http" && url.host().is_some_and(|host| !is_near(&host)))
        {
            let message = "the key is sent over plain HTTP to a host beyond the local network".to_owned();
            let found = self.report(Severity::Warning, "plain-http", item.span(), message);
            found.label = "every host on the way can read the key".to_owned();
            found.help.push("use https://".into());
        }
        let line = self.lines.line(span.start);
        let provider = Provider {
            name: name.as_ref().into(),
            origin: Origin { file: self.path.clone(), line },
            kind: kind.unwrap_or(ProviderType::Custom),
            enabled: self.boolean(table, "enabled"),
            priority: self.integer(table, "priority", i32::MIN, i32::MAX),
            base_url,
            model_prefixes: self.strings(table, "model_prefixes"),
            description: self.text_of(table, "description", None),
            api_key: self.api_key(table),
            api_key_source: self.word(
                table,
                "api_key_source",
                KeySource::parse,
                KeySource::ALL.iter().map(|it| it.as_str()),
            ),
            config: self.free(table, "config", RESERVED_CONFIG),
            health: self.table(table, "health").map(|table| self.health(table)).unwrap_or_default(),
            discover: self.table(table, "discover").and_then(|table| self.discover(table)),
            gateway: self.table(table, "gateway").map(|table| Box::new(self.upstream(table))),
            models: self.models(table),
        };
        Some(provider)
    }

    fn kind(&mut self, table: &DeTable<'a>, name: &str, span: Range<usize>) -> Option<ProviderType> {
        if !table.contains_key("type") {
            let known = ProviderType::parse(name).map(|kind| format!("type = \"{kind}\""));
            let help = known.unwrap_or_else(|| "type = \"openai-compatible\" speaks to most servers".into());
            self.error("missing-type", span, format!("provider `{}` has no `type`", shorten(name)))
                .help
                .push(help);
            return None;
        }
        self.word(table, "type", ProviderType::parse, ProviderType::ALL.iter().map(|it| it.as_str()))
    }

    fn base_url(&mut self, table: &DeTable<'a>) -> Option<Box<str>> {
        let text = self.text_of(table, "base_url", None)?;
        let span = table.get("base_url")?.span();
        let problem = match url::Url::parse(&text) {
            Err(_) => "expected an absolute URL such as https://api.example.com/v1",
            Ok(url) if !matches!(url.scheme(), "http" | "https") => {
                "expected a URL that begins with https:// or http://"
            }
            Ok(url) if !url.username().is_empty() || url.password().is_some() => {
                let found = self.error("url-credentials", span, "a URL must not hold credentials");
                found.secret = true;
                found.help.push("a key belongs in `api_key`, sealed or by reference".into());
                return None;
            }
            Ok(url) if url.query().is_some() || url.fragment().is_some() => {
                "a base URL has no query and no fragment"
            }
            Ok(url) if url.host_str().is_none_or(str::is_empty) => "expected a host in the URL",
            Ok(url) => {
                self.endpoint_in_base(&url, span);
                return Some(text);
            }
        };
        // `api.example.com/v1` is no URL, and `localhost:8000/v1` one of a scheme `localhost`.
        let whole = format!("https://{text}");
        let lacks_scheme = !text.contains("://")
            && url::Url::parse(&whole).is_ok_and(|url| {
                url.host_str().is_some_and(|host| host.contains('.') || host == "localhost")
            });
        let found = self.error("base-url", span, problem);
        if lacks_scheme {
            found.help.push(format!("did you mean `{}`?", shorten(&whole)));
        }
        None
    }

    /// A base URL ends before the endpoints: what is asked is appended to it.
    fn endpoint_in_base(&mut self, url: &url::Url, span: Range<usize>) {
        let path = url.path().trim_end_matches('/');
        let Some(endpoint) = ENDPOINTS.iter().find(|endpoint| path.ends_with(**endpoint)) else { return };
        let message = format!("`base_url` ends in an endpoint, `{endpoint}`, which is appended to it");
        let found = self.report(Severity::Warning, "endpoint-in-base-url", span, message);
        let kept = path.strip_suffix(endpoint).unwrap_or(path);
        found.help.push(format!(
            "end it before that: `{}`",
            shorten(&format!("{}{kept}", url.origin().ascii_serialization()))
        ));
    }

    fn api_key(&mut self, table: &DeTable<'a>) -> Option<SecretRef> {
        let item = table.get("api_key")?;
        let table = match item.get_ref() {
            DeValue::Table(table) => table,
            DeValue::String(text) if variable_in(text).is_some() => {
                let found = self.error("literal-key", item.span(), "manifests do not put in variables");
                let name = variable_in(text).unwrap_or_default();
                found.help.push(format!("refer to it: `api_key = {{ env = \"{name}\" }}`"));
                return None;
            }
            DeValue::String(_) => {
                let found = self.error("literal-key", item.span(), "a key must not stand in a manifest");
                found.secret = true;
                "this literal is a key, or looks like one".clone_into(&mut found.label);
                found.help.push("seal it: `providerd key seal` reads it from standard input and prints `api_key = { sealed = \"…\" }`".into());
                found.help.push("or refer to it: `api_key = { env = \"NAME\" }`, `{ file = \"path\" }`, `{ credential = \"name\" }`".into());
                found.help.push(REVOKE.into());
                return None;
            }
            other => {
                // An integer or an array may hold a key as well.
                self.wrong_type(item.span(), "`api_key`", "a table such as { env = \"NAME\" }", other)
                    .secret = true;
                return None;
            }
        };
        self.unknown(table, SECRET, "`api_key`");
        let known: Vec<&str> = SECRET.iter().copied().filter(|key| table.contains_key(*key)).collect();
        let [kind] = known.as_slice() else {
            let found = self.error(
                "api-key",
                item.span(),
                "`api_key` needs exactly one of `env`, `file`, `credential` and `sealed`",
            );
            // Whatever stands under another name may be the key itself.
            found.secret = known.is_empty();
            return None;
        };
        let span = table.get(*kind).map_or_else(|| item.span(), Spanned::span);
        let text = if *kind == "sealed" {
            self.raw_text(table, kind)?.into()
        } else {
            self.text_of(table, kind, None)?
        };
        let (valid, help) = match *kind {
            "env" => (is_variable(&text), "expected a variable's name: letters, digits and `_`"),
            "file" => (is_key_file(&text), "expected an absolute path, or one below `keys.dir` without `..`"),
            "credential" => {
                (is_credential(&text), "expected a credential's name: letters, digits, `.`, `_` and `-`")
            }
            _ => (is_token(&text), "expected what `providerd key seal` prints"),
        };
        if !valid {
            let found = self.error("api-key", span, format!("this is not a valid value for `{kind}`"));
            if let (&"env", Some(name)) = (kind, variable_in(&text)) {
                found.help.push(format!("leave out the `$`: `{{ env = \"{name}\" }}`"));
                return None;
            }
            found.secret = true;
            found.help.push(help.into());
            return None;
        }
        let text = String::from(text);
        Some(match *kind {
            "env" => SecretRef::Env(text),
            "file" => SecretRef::File(text),
            "credential" => SecretRef::Credential(text),
            _ => SecretRef::Sealed(text),
        })
    }

    fn health(&mut self, table: &DeTable<'a>) -> HealthPolicy {
        self.unknown(table, HEALTH, "`health`");
        let interval = self.duration(table, "interval", Duration::from_secs(1));
        let cron = self.cron(table, "cron");
        if let (Some(_), Some(item)) = (table.get("interval"), table.get("cron")) {
            self.error("interval-and-cron", item.span(), "`interval` and `cron` exclude each other");
        }
        let path = self.text_of(table, "path", None);
        if let (Some(path), Some(item)) = (&path, table.get("path"))
            && !is_path(path)
        {
            self.error(
                "health-path",
                item.span(),
                "expected a path that begins with `/`, below the base URL",
            );
        }
        HealthPolicy {
            schedule: cron.map(Schedule::Cron).or(interval.map(Schedule::Every)),
            timeout: self.duration(table, "timeout", Duration::from_millis(1)),
            slow_after: self.duration(table, "slow_after", Duration::from_millis(1)),
            path,
            expect_status: self.statuses(table),
        }
    }

    fn statuses(&mut self, table: &DeTable<'a>) -> Option<Vec<u16>> {
        let item = table.get("expect_status")?;
        let Some(items) = item.get_ref().as_array() else {
            self.wrong_type(item.span(), "`expect_status`", "an array of HTTP status codes", item.get_ref());
            return None;
        };
        let mut codes = Vec::new();
        for item in items.iter() {
            match item.get_ref().as_integer().and_then(|it| u16::from_str_radix(it.as_str(), it.radix()).ok())
            {
                Some(code @ 100..=599) => codes.push(code),
                _ => drop(self.error(
                    "status-code",
                    item.span(),
                    "expected an HTTP status code from 100 to 599",
                )),
            }
        }
        Some(codes)
    }

    fn discover(&mut self, table: &DeTable<'a>) -> Option<Discover> {
        self.unknown(table, DISCOVER, "`discover`");
        Some(Discover {
            include: self.strings(table, "include").unwrap_or_else(|| vec!["*".into()]),
            exclude: self.strings(table, "exclude").unwrap_or_default(),
            cron: self.cron(table, "cron").unwrap_or_else(|| DISCOVER_CRON.into()),
            enabled: self.boolean(table, "enabled").unwrap_or(false),
        })
    }

    fn models(&mut self, table: &DeTable<'a>) -> Vec<Model> {
        let items = self.tables(table, "models");
        let mut models: Vec<Model> = Vec::with_capacity(items.len());
        let mut lines: HashMap<&str, u32> = HashMap::with_capacity(items.len());
        for item in items {
            let Some(table) = self.expect_table(item, "a model") else { continue };
            self.unknown(table, MODEL, "a model");
            let line = self.lines.line(item.span().start);
            let Some(name) = self.required(table, "name", item.span(), "a model") else { continue };
            if name.is_empty() {
                self.error("model-name", item.span(), "a model's name must not be empty");
            }
            let key = table.get("name").and_then(|it| it.get_ref().as_str()).unwrap_or_default();
            if let Some(first) = lines.insert(key, line) {
                lines.insert(key, first);
                let path = self.path.clone();
                let span = table.get("name").map_or_else(|| item.span(), Spanned::span);
                let message = format!("model `{}` is declared twice", shorten(key));
                let found = self.error("duplicate-model", span, message);
                found.related.push(Related { path, line: first, text: "first declared here".into() });
                continue;
            }
            let offer = self.offer(table);
            models.push(Model {
                name,
                line,
                gateway: (!offer.is_plain()).then(|| Box::new(offer)),
                display_name: self.text_of(table, "display_name", Some(MAX_NAME)),
                context_length: self.integer(table, "context_length", 1, i32::MAX),
                cost_per_1m_input_tokens: self.cost(table, "cost_per_1m_input_tokens"),
                cost_per_1m_output_tokens: self.cost(table, "cost_per_1m_output_tokens"),
                enabled: self.boolean(table, "enabled"),
                metadata: self.free(table, "metadata", &[]),
            });
        }
        models.shrink_to_fit();
        models
    }

    fn route(&mut self, item: &SpannedItem<'a>) -> Option<(Route, SourcePlace)> {
        let table = self.expect_table(item, "a route")?;
        self.unknown(table, ROUTE, "a route");
        let models = self.required(table, "models", item.span(), "a route");
        if let (Some(models), Some(item)) = (&models, table.get("models"))
            && models.split_once('/').is_none_or(|(provider, model)| provider.is_empty() || model.is_empty())
        {
            let help = format!("`{}/*` means every model of that provider", shorten(models));
            self.error("route-pattern", item.span(), "expected `provider/model`; globs are allowed in both")
                .help
                .push(help);
        }
        let power_level = if table.contains_key("power_level") {
            self.word(table, "power_level", PowerLevel::parse, PowerLevel::ALL.iter().map(|it| it.as_str()))
        } else {
            self.error("missing-key", item.span(), "a route needs `power_level`")
                .help
                .push("one of eco, balanced and precision".into());
            None
        };
        let user_tier = self.required(table, "user_tier", item.span(), "a route");
        let task_type = self.text_of(table, "task_type", Some(50));
        for (key, value) in [("user_tier", &user_tier), ("task_type", &task_type)] {
            if let (Some(value), Some(item)) = (value, table.get(key))
                && !is_tier(value)
            {
                self.error(
                    "route-word",
                    item.span(),
                    format!("`{key}` has 1 to 50 letters, digits, `.`, `_` and `-`"),
                );
            }
        }
        let span = table.get("models").map_or_else(|| item.span(), Spanned::span);
        let route = Route {
            origin: Origin { file: self.path.clone(), line: self.lines.line(item.span().start) },
            priority: self.integer(table, "priority", i32::MIN, i32::MAX),
            weight: self.integer(table, "weight", 0, i32::MAX),
            enabled: self.boolean(table, "enabled"),
            models: models?,
            power_level: power_level?,
            user_tier: user_tier?,
            task_type,
        };
        Some((route, self.lines.place(span)))
    }
}

/// What may stand in `llm_providers.name`, but for what would be read as something else: a `/` (routes say
/// `provider/model`), wildcards, space around it.
fn is_provider_name(name: &str) -> bool {
    (1..=100).contains(&name.chars().count())
        && name.trim() == name
        && !name.contains(|c: char| c.is_control() || matches!(c, '/' | '*' | '?' | '\u{2028}' | '\u{2029}'))
        && !name.contains(|c: char| matches!(c, '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2060}'..='\u{2069}' | '\u{feff}'))
}

pub(super) fn is_tier(word: &str) -> bool {
    (1..=50).contains(&word.len()) && is_credential(word)
}

/// The variable of `$NAME`, `${NAME}` or `{{ NAME }}`: what other programs would put in here.
fn variable_in(text: &str) -> Option<&str> {
    let inner = [("${", "}"), ("{{", "}}"), ("$", "")]
        .iter()
        .find_map(|(begin, end)| text.trim().strip_prefix(begin)?.strip_suffix(end));
    inner
        .map(str::trim)
        .map(|name| name.strip_prefix("env.").unwrap_or(name))
        .filter(|name| is_variable(name) && name.len() <= 100)
}

fn is_variable(name: &str) -> bool {
    (1..=MAX_NAME).contains(&name.len())
        && !name.starts_with(|c: char| c.is_ascii_digit())
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
}

/// A path and perhaps a query: no host (`//host`), no white space, nothing that a URL would drop.
fn is_path(path: &str) -> bool {
    path.starts_with('/')
        && !path.starts_with("//")
        && !path.contains(|c: char| c.is_control() || c.is_whitespace() || matches!(c, '\\' | '#'))
}

/// Whether a host is plainly one of ours: a name without a domain or of a private one, an address that no router of the
/// internet knows.
fn is_near(host: &url::Host<&str>) -> bool {
    const OURS: [&str; 6] = [".localhost", ".local", ".internal", ".lan", ".home.arpa", ".svc"];
    match host {
        url::Host::Domain(name) => {
            let name = name.trim_end_matches('.');
            !name.contains('.') || OURS.iter().any(|end| name.ends_with(end)) || name.contains(".svc.")
        }
        url::Host::Ipv4(address) => is_near_v4(*address),
        url::Host::Ipv6(address) => match address.to_ipv4_mapped() {
            Some(address) => is_near_v4(address),
            None => address.is_loopback() || address.is_unique_local() || address.is_unicast_link_local(),
        },
    }
}

fn is_near_v4(address: std::net::Ipv4Addr) -> bool {
    // 100.64.0.0/10 is shared address space, as mesh VPNs use it.
    let [first, second, ..] = address.octets();
    address.is_loopback()
        || address.is_private()
        || address.is_link_local()
        || first == 100 && (64..128).contains(&second)
}

fn is_credential(name: &str) -> bool {
    (1..=MAX_NAME).contains(&name.len())
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'))
}

fn is_key_file(path: &str) -> bool {
    !path.is_empty() && path.len() < 4096 && !path.ends_with('/') && path.split('/').all(|part| part != "..")
}

/// Version, time stamp, initialisation vector, one block and signature: 73 bytes and more, in whole base64.
fn is_token(text: &str) -> bool {
    text.starts_with("gAAAAA")
        && text.len() >= 100
        && text.len().is_multiple_of(4)
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'+' | b'/' | b'='))
}
