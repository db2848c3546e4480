//! One text → the objects it declares and everything that is wrong with it.
//!
//! PURE and total: any text, no panic. Not its job: anything that takes two files. A text with an error yields its
//! diagnostics and the names it mentions, and no object.

use std::{
    borrow::Cow,
    collections::{BTreeSet, HashMap},
    ops::Range,
    str::FromStr,
    sync::Arc,
    time::Duration,
};

use serde_json::Value;
use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

use super::{
    Diagnostic, ParsedFile, Related, Severity,
    diagnostic::{Lines, Place},
    keyshape,
};
use crate::model::{
    Discover, HealthPolicy, JsonMap, KeySource, ManifestPath, Model, Origin, PowerLevel, Provider,
    ProviderType, Route, Schedule, SecretRef,
};

/// Keys of each table, in the order of the documentation.
pub(super) const ROOT: &[&str] = &["providers", "routes", "defaults"];
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
    "enabled",
    "metadata",
];
pub(super) const ROUTE: &[&str] =
    &["models", "power_level", "user_tier", "task_type", "priority", "weight", "enabled"];
pub(super) const DEFAULTS: &[&str] = &["health"];
pub(super) const SECRET: &[&str] = &["env", "file", "credential", "sealed"];

/// Keys of `config` that stand for columns or fields of their own.
const RESERVED_CONFIG: &[&str] = &["base_url", "model_prefixes", "description"];
/// `VARCHAR(255)` columns.
const MAX_NAME: usize = 255;
/// A discovery without a time of its own runs at night.
const DISCOVER_CRON: &str = "0 0 3 * * *";
/// `numeric(10,4)` holds six digits before the point.
const MAX_COST: f64 = 1_000_000.0;
const REVOKE: &str = "if this file was ever committed, revoke the key: Git remembers it";
/// No key is known to be longer, and more of a line is not looked at.
const LONGEST_KEY: usize = 1024;
/// More problems than anybody reads at once; a file of noise must not fill the memory with them.
const MAX_PROBLEMS: usize = 100;
/// Free-form tables nest so deep at most; each level costs stack here and in whoever reads the column.
const MAX_DEPTH: usize = 64;

type Item<'a> = Spanned<DeValue<'a>>;

/// Reads one manifest.
pub fn parse(path: &ManifestPath, text: &str) -> ParsedFile {
    // Editors on other systems begin a file with a byte order mark.
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut reader = Reader {
        path,
        lines: Lines::new(text),
        found: Vec::new(),
        left_out: 0,
        left_out_worst: Severity::Warning,
    };
    let (root, errors) = DeTable::parse_recoverable(text);
    let mut file = ParsedFile::default();
    let mut last = None;
    for error in &errors {
        let span = error.span().unwrap_or(0..0);
        // Where the reader stumbles, it often stumbles again at the same place; the first word is the true one.
        if last.replace(span.start) == Some(span.start) {
            continue;
        }
        // The parser's words may quote what stands there.
        let message = keyshape::mask(error.message(), &[]);
        reader.error("syntax", span, message);
    }
    if errors.is_empty() {
        reader.root(root.get_ref(), &mut file);
    } else {
        file.mentioned = mentioned(text);
        if let Some(providers) = root.get_ref().get("providers").and_then(|it| it.get_ref().as_table()) {
            file.mentioned.extend(providers.keys().filter_map(|name| mentionable(name.get_ref())));
        }
    }
    file.diagnostics = reader.finish();
    dismantle(root.into_inner());
    if file.has_errors() {
        file.mentioned.extend(file.providers.drain(..).map(|provider| provider.name.clone()));
        file.routes.clear();
        file.default_health = None;
        (file.provider_places, file.route_places, file.defaults_place) = Default::default();
    }
    file
}

/// Frees a table without recursion. Dotted keys inside of inline tables nest thousands deep, and to free such a
/// table as values usually are, from the outside in, takes more stack than a thread has.
fn dismantle(root: DeTable<'_>) {
    let mut open = vec![DeValue::Table(root)];
    while let Some(next) = open.pop() {
        let is_inner = |item: &Item<'_>| item.get_ref().is_table() || item.get_ref().is_array();
        match next {
            DeValue::Table(table) => {
                open.extend(
                    table.into_iter().map(|(_, item)| item).filter(is_inner).map(Spanned::into_inner),
                );
            }
            DeValue::Array(items) => open.extend(items.into_iter().filter(is_inner).map(Spanned::into_inner)),
            _ => {}
        }
    }
}

/// A name of a broken file, unless it is a key that stands in the wrong place.
fn mentionable(name: &str) -> Option<Arc<str>> {
    (!name.is_empty() && keyshape::find(name).is_none()).then(|| name.into())
}

/// Provider names in headers and dotted keys of a text whose syntax is broken.
fn mentioned(text: &str) -> BTreeSet<Arc<str>> {
    let names = text.lines().filter_map(|line| {
        let line = line.trim_start().trim_start_matches('[').trim_start();
        let rest =
            ["providers", "\"providers\"", "'providers'"].iter().find_map(|it| line.strip_prefix(it))?;
        let rest = rest.trim_start().strip_prefix('.')?.trim_start();
        let name = match rest.chars().next()? {
            quote @ ('"' | '\'') => rest.get(1..)?.split(quote).next()?,
            _ => rest.split(|c: char| !(c.is_alphanumeric() || matches!(c, '_' | '-'))).next()?,
        };
        mentionable(name)
    });
    names.collect()
}

/// Nothing here is waited for longer; far greater numbers would overflow a clock.
const LONGEST: Duration = Duration::from_secs(365 * 86_400);

/// `30s`, `500ms`, `5m`, `1h`, `1d`.
pub(super) fn duration(text: &str) -> Option<Duration> {
    let split = text.find(|c: char| !c.is_ascii_digit())?;
    let (number, unit) = text.split_at(split);
    let number: u64 = number.parse().ok()?;
    let millis = match unit {
        "ms" => 1,
        "s" => 1000,
        "m" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => return None,
    };
    number.checked_mul(millis).map(Duration::from_millis).filter(|it| *it <= LONGEST)
}

/// Six fields with seconds, as `tokio-cron-scheduler` reads them.
fn is_cron(text: &str) -> bool {
    text.split_whitespace().count() == 6
        && croner::parser::CronParser::builder()
            .seconds(croner::parser::Seconds::Required)
            .build()
            .parse(text)
            .is_ok()
}

/// The candidate that was probably meant.
pub(super) fn nearest<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let allowed = |candidate: &str| (candidate.chars().count() / 3).max(1);
    // Lengths that differ by more are further away than that; most candidates cost no more than this.
    let length = word.chars().count();
    let near = candidates.into_iter().filter(|it| length.abs_diff(it.chars().count()) <= allowed(it));
    let close = near.map(|candidate| (strsim::damerau_levenshtein(word, candidate), candidate));
    close
        .filter(|(distance, it)| *distance <= allowed(it))
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, it)| it)
}

struct Reader<'a> {
    path: &'a ManifestPath,
    lines: Lines<'a>,
    found: Vec<Diagnostic>,
    /// Problems beyond those that are shown.
    left_out: usize,
    left_out_worst: Severity,
}

impl<'a> Reader<'a> {
    fn error(
        &mut self,
        code: &'static str,
        span: Range<usize>,
        message: impl Into<String>,
    ) -> &mut Diagnostic {
        self.report(Severity::Error, code, span, message.into())
    }

    fn report(
        &mut self,
        severity: Severity,
        code: &'static str,
        span: Range<usize>,
        message: String,
    ) -> &mut Diagnostic {
        let place = self.lines.place(span);
        let found = Diagnostic::at(severity, code, self.path, Some(&place), message);
        if self.found.len() > MAX_PROBLEMS {
            // The last place is overwritten for ever; `finish` replaces it with a word about how many there are.
            if let Some(over) = self.found.pop() {
                self.left_out_worst = self.left_out_worst.min(over.severity);
            }
            self.left_out += 1;
        }
        self.found.push(found);
        let last = self.found.len() - 1;
        &mut self.found[last]
    }

    /// What was found, in order, and how much more there is.
    fn finish(self) -> Vec<Diagnostic> {
        let mut found = self.found;
        let mut worst = self.left_out_worst;
        if self.left_out > 0
            && let Some(over) = found.pop()
        {
            worst = worst.min(over.severity);
        }
        found.sort_by_key(|it| (it.line, it.column));
        if self.left_out > 0 {
            let message = format!("{} more problems are not shown", self.left_out + 1);
            let more = Diagnostic::at(worst, "too-many-problems", self.path, None, message);
            found.push(more.with_help("mend what is shown first; one mistake often causes many"));
        }
        found
    }

    fn root(&mut self, root: &DeTable<'a>, file: &mut ParsedFile) {
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
        if let Some(defaults) = self.table(root, "defaults") {
            self.unknown(defaults, DEFAULTS, "`defaults`");
            file.default_health = self.table(defaults, "health").map(|table| self.health(table));
            let header = defaults.get_key_value("health").map(|(key, _)| key.span());
            file.defaults_place = header.map(|span| self.lines.place(span));
        }
    }

    fn provider(&mut self, name: &Spanned<Cow<'a, str>>, item: &Item<'a>) -> Option<Provider> {
        let (span, name) = (name.span(), name.get_ref());
        if keyshape::find(name).is_some() || self.begins_key(span.clone()) {
            let found = self.error("literal-key", span, "this provider's name looks like a key");
            found.secret = true;
            found.help.push(REVOKE.into());
            return None;
        }
        if !is_provider_name(name) {
            let help = "a name has 1 to 100 of a-z, 0-9, `.`, `_` and `-`, and begins with a letter or digit";
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
        if kind == Some(ProviderType::GithubModels) {
            let message =
                "GitHub Models was retired on 2026-07-30: every call fails, whatever the key".to_owned();
            self.report(Severity::Warning, "retired-type", span.clone(), message);
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
            Ok(_) => return Some(text),
        };
        self.error("base-url", span, problem);
        None
    }

    fn api_key(&mut self, table: &DeTable<'a>) -> Option<SecretRef> {
        let item = table.get("api_key")?;
        let table = match item.get_ref() {
            DeValue::Table(table) => table,
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
            let found = self.error("api-key", span, format!("this is no value for `{kind}`"));
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
            && !path.starts_with('/')
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
            models.push(Model {
                name,
                line,
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

    fn route(&mut self, item: &Item<'a>) -> Option<(Route, Place)> {
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

    /// Whether the text at this place is a key: without quotes, TOML takes one apart at its dots.
    fn begins_key(&self, span: Range<usize>) -> bool {
        let rest = self.lines.rest_of_line(span.start, LONGEST_KEY);
        keyshape::find(rest).is_some_and(|found| found.start <= span.end - span.start)
    }

    // ------------------------------------------------------------ values

    fn unknown(&mut self, table: &DeTable<'a>, known: &[&'static str], what: &str) {
        for key in table.keys().filter(|key| !known.contains(&&**key.get_ref())) {
            let name = key.get_ref();
            if self.begins_key(key.span()) {
                let found =
                    self.error("literal-key", key.span(), format!("a key stands where {what} has keys"));
                found.secret = true;
                found.help.push(REVOKE.into());
                continue;
            }
            let close = nearest(name, known.iter().copied());
            let help = match close {
                Some(close) => format!("did you mean `{close}`?"),
                None => format!("{what} knows {}", known.join(", ")),
            };
            let found =
                self.error("unknown-key", key.span(), format!("{what} has no key `{}`", shorten(name)));
            found.help.push(help);
        }
    }

    fn wrong_type(
        &mut self,
        span: Range<usize>,
        what: &str,
        wanted: &str,
        found: &DeValue<'_>,
    ) -> &mut Diagnostic {
        let article = if found.type_str().starts_with(['a', 'i', 'o']) { "an" } else { "a" };
        let message = format!("{what}: expected {wanted}, found {article} {}", found.type_str());
        self.error("wrong-type", span, message)
    }

    fn table<'t>(&mut self, table: &'t DeTable<'a>, key: &str) -> Option<&'t DeTable<'a>> {
        let item = table.get(key)?;
        self.expect_table(item, &format!("`{key}`"))
    }

    fn expect_table<'t>(&mut self, item: &'t Item<'a>, what: &str) -> Option<&'t DeTable<'a>> {
        let table = item.get_ref().as_table();
        if table.is_none() {
            self.wrong_type(item.span(), what, "a table", item.get_ref());
        }
        table
    }

    /// The elements of an array of tables.
    fn tables<'t>(&mut self, table: &'t DeTable<'a>, key: &str) -> Vec<&'t Item<'a>> {
        let Some(item) = table.get(key) else { return Vec::new() };
        match item.get_ref().as_array() {
            Some(items) => items.iter().collect(),
            None => {
                let wanted = format!("an array of tables, each under [[{key}]]");
                self.wrong_type(item.span(), &format!("`{key}`"), &wanted, item.get_ref());
                Vec::new()
            }
        }
    }

    fn raw_text<'t>(&mut self, table: &'t DeTable<'a>, key: &str) -> Option<&'t str> {
        let item = table.get(key)?;
        let text = item.get_ref().as_str();
        if text.is_none() {
            self.wrong_type(item.span(), &format!("`{key}`"), "a string", item.get_ref());
        }
        text
    }

    /// A string that the database takes and that is no secret.
    fn text_of(&mut self, table: &DeTable<'a>, key: &str, longest: Option<usize>) -> Option<Box<str>> {
        let text = self.raw_text(table, key)?;
        let span = table.get(key)?.span();
        self.check_text(key, text, span.clone());
        if let Some(longest) = longest
            && text.chars().count() > longest
        {
            self.error("too-long", span, format!("`{key}` is longer than {longest} characters"));
        }
        Some(text.into())
    }

    fn check_text(&mut self, key: &str, text: &str, span: Range<usize>) {
        if text.contains('\0') {
            self.error("nul", span, "PostgreSQL cannot store the character NUL");
        } else if keyshape::find(text).is_some() || keyshape::is_named_secret(key, text) {
            let found = self.error("literal-key", span, format!("the value of `{key}` looks like a key"));
            found.secret = true;
            found
                .help
                .push("a key belongs in `api_key`, sealed with `providerd key seal` or by reference".into());
            found.help.push(REVOKE.into());
        }
    }

    fn required(
        &mut self,
        table: &DeTable<'a>,
        key: &str,
        span: Range<usize>,
        what: &str,
    ) -> Option<Box<str>> {
        if !table.contains_key(key) {
            self.error("missing-key", span, format!("{what} needs `{key}`"));
            return None;
        }
        self.text_of(table, key, Some(MAX_NAME))
    }

    fn strings(&mut self, table: &DeTable<'a>, key: &str) -> Option<Vec<Box<str>>> {
        let item = table.get(key)?;
        let Some(items) = item.get_ref().as_array() else {
            self.wrong_type(item.span(), &format!("`{key}`"), "an array of strings", item.get_ref());
            return None;
        };
        let mut texts = Vec::with_capacity(items.len());
        for item in items.iter() {
            match item.get_ref().as_str() {
                Some(text) => {
                    self.check_text(key, text, item.span());
                    texts.push(text.into());
                }
                None => drop(self.wrong_type(
                    item.span(),
                    &format!("an element of `{key}`"),
                    "a string",
                    item.get_ref(),
                )),
            }
        }
        Some(texts)
    }

    fn boolean(&mut self, table: &DeTable<'a>, key: &str) -> Option<bool> {
        let item = table.get(key)?;
        let value = item.get_ref().as_bool();
        if value.is_none() {
            self.wrong_type(item.span(), &format!("`{key}`"), "true or false", item.get_ref());
        }
        value
    }

    fn integer(&mut self, table: &DeTable<'a>, key: &str, least: i32, most: i32) -> Option<i32> {
        let item = table.get(key)?;
        let Some(number) = item.get_ref().as_integer() else {
            self.wrong_type(item.span(), &format!("`{key}`"), "an integer", item.get_ref());
            return None;
        };
        let value = i64::from_str_radix(number.as_str(), number.radix()).ok();
        let value = value.and_then(|it| i32::try_from(it).ok()).filter(|it| (least..=most).contains(it));
        if value.is_none() {
            self.error("out-of-range", item.span(), format!("`{key}` must be from {least} to {most}"));
        }
        value
    }

    fn cost(&mut self, table: &DeTable<'a>, key: &str) -> Option<f64> {
        let item = table.get(key)?;
        let number = match item.get_ref() {
            DeValue::Float(float) => f64::from_str(float.as_str()).ok(),
            DeValue::Integer(number) => {
                i64::from_str_radix(number.as_str(), number.radix()).ok().map(|it| it as f64)
            }
            other => {
                self.wrong_type(item.span(), &format!("`{key}`"), "a price in USD per million tokens", other);
                return None;
            }
        };
        let number = number.filter(|it| it.is_finite() && *it >= 0.0 && *it < MAX_COST);
        if number.is_none() {
            self.error(
                "out-of-range",
                item.span(),
                format!("`{key}` must be from 0 to below {MAX_COST} USD"),
            );
        }
        number
    }

    fn duration(&mut self, table: &DeTable<'a>, key: &str, least: Duration) -> Option<Duration> {
        let text = self.raw_text(table, key)?;
        let span = table.get(key)?.span();
        match duration(text) {
            Some(found) if found >= least => Some(found),
            Some(_) => {
                self.error("out-of-range", span, format!("`{key}` must be at least {least:?}"));
                None
            }
            None => {
                self.error(
                    "duration",
                    span,
                    format!("`{key}`: expected a duration such as 500ms, 30s, 5m or 1h"),
                );
                None
            }
        }
    }

    fn cron(&mut self, table: &DeTable<'a>, key: &str) -> Option<Arc<str>> {
        let text = self.raw_text(table, key)?;
        if is_cron(text) {
            return Some(text.into());
        }
        let span = table.get(key)?.span();
        let found = self.error("cron", span, format!("`{key}` is no cron expression of six fields"));
        found.help.push("second minute hour day month weekday, for example \"0 */5 * * * *\"".into());
        None
    }

    /// One of a closed set of words.
    fn word<T>(
        &mut self,
        table: &DeTable<'a>,
        key: &str,
        parse: impl Fn(&str) -> Option<T>,
        all: impl Iterator<Item = &'static str>,
    ) -> Option<T> {
        let text = self.raw_text(table, key)?;
        let parsed = parse(text);
        if parsed.is_none() {
            let span = table.get(key)?.span();
            self.check_text(key, text, span.clone());
            if keyshape::find(text).is_some() {
                // What a key is doing here matters more than which words there are.
                return None;
            }
            let all: Vec<&str> = all.collect();
            let help = match nearest(text, all.iter().copied()) {
                Some(close) => format!("did you mean `{close}`?"),
                None => format!("one of {}", all.join(", ")),
            };
            let message = format!("`{key}` has no value `{}`", keyshape::mask(&shorten(text), &[]));
            self.error("unknown-value", span, message).help.push(help);
        }
        parsed
    }

    /// A table of free form, as JSON.
    fn free(&mut self, table: &DeTable<'a>, key: &str, reserved: &[&str]) -> JsonMap {
        let Some(table) = self.table(table, key) else { return JsonMap::new() };
        for name in table.keys().filter(|name| reserved.contains(&&**name.get_ref())) {
            let message =
                format!("`{}` in `{key}` is set from the provider's own key of that name", name.get_ref());
            self.error("reserved-key", name.span(), message);
        }
        self.json_table(table, 1)
    }

    fn json_table(&mut self, table: &DeTable<'a>, depth: usize) -> JsonMap {
        let mut map = JsonMap::new();
        for (name, item) in table {
            if name.get_ref().contains('\0') || keyshape::find(name.get_ref()).is_some() {
                self.error("key-name", name.span(), "this is no name for a key").secret = true;
                continue;
            }
            let value = self.json(name.get_ref(), item, depth);
            map.insert(name.get_ref().clone().into_owned(), value);
        }
        map
    }

    fn json(&mut self, name: &str, item: &Item<'a>, depth: usize) -> Value {
        if depth > MAX_DEPTH {
            self.error("too-deep", item.span(), format!("tables and arrays nest {MAX_DEPTH} deep at most"));
            return Value::Null;
        }
        match item.get_ref() {
            DeValue::String(text) => {
                self.check_text(name, text, item.span());
                Value::from(text.as_ref())
            }
            DeValue::Integer(number) => match i64::from_str_radix(number.as_str(), number.radix()) {
                Ok(number) => number.into(),
                Err(_) => {
                    self.error("out-of-range", item.span(), "this integer does not fit into 64 bits");
                    Value::Null
                }
            },
            DeValue::Float(float) => match f64::from_str(float.as_str()).ok().filter(|it| it.is_finite()) {
                Some(float) => float.into(),
                None => {
                    self.error("not-finite", item.span(), "JSON has no infinity and no NaN");
                    Value::Null
                }
            },
            DeValue::Boolean(value) => (*value).into(),
            DeValue::Datetime(time) => time.to_string().into(),
            DeValue::Array(items) => {
                Value::Array(items.iter().map(|item| self.json(name, item, depth + 1)).collect())
            }
            DeValue::Table(table) => Value::Object(self.json_table(table, depth + 1)),
        }
    }
}

fn is_provider_name(name: &str) -> bool {
    (1..=100).contains(&name.len())
        && name.starts_with(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit())
        && name
            .bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'.' | b'_' | b'-'))
}

fn is_tier(word: &str) -> bool {
    (1..=50).contains(&word.len()) && is_credential(word)
}

fn is_variable(name: &str) -> bool {
    (1..=MAX_NAME).contains(&name.len())
        && !name.starts_with(|c: char| c.is_ascii_digit())
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
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
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'='))
}

/// A word from a manifest for a message: one line, of bounded length, without a secret.
fn shorten(word: &str) -> String {
    // Masked first: half a key would pass for none.
    let masked = keyshape::mask(word, &[]);
    let mut characters = masked.chars().map(|c| if c.is_control() { ' ' } else { c });
    let mut plain: String = characters.by_ref().take(60).collect();
    if characters.next().is_some() {
        plain.push('…');
    }
    plain
}
