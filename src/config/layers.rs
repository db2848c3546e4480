//! Puts the layers of the settings together: default, file, environment.
//!
//! Job: find a key's strongest value and its place, and gather every mistake. Not its job: what keys there
//! are. Invariant: a message never quotes a line of the settings file, since the line may hold a secret.

use std::{
    collections::BTreeMap,
    fmt, io,
    ops::Range,
    path::{Path, PathBuf},
};

use secrecy::SecretString;
use toml::{
    Spanned, Table, Value,
    de::{DeTable, DeValue},
};

use super::{
    nearest,
    settings::{NOT_A_DATABASE_URL, SECTIONS, Settings, is_database_url},
    value::{Setting, toml_or_text},
};

/// One key of the settings, as the reference shows it.
#[derive(Debug, Clone, Copy)]
pub struct SettingKey {
    /// `section.key`.
    pub path: &'static str,
    /// Lines of documentation, each with the blank that rustdoc leaves at its beginning.
    pub doc: &'static [&'static str],
    /// The form of the value.
    pub form: &'static str,
    /// The default as TOML; empty where the key is unset by default.
    pub default: &'static str,
}

impl SettingKey {
    /// The environment variable that sets this key.
    #[must_use]
    pub fn variable(&self) -> String {
        variable(self.path)
    }
}

const PREFIX: &str = "PROVIDERD_";

/// Variables with the prefix which are no settings: they belong to the command line.
const NOT_SETTINGS: [&str; 2] = ["PROVIDERD_CONFIG", "PROVIDERD_OUTPUT"];

fn variable(path: &str) -> String {
    format!("{PREFIX}{}", path.to_ascii_uppercase().replace('.', "__"))
}

/// Kubernetes sets `NAME_SERVICE_HOST`, `NAME_PORT_7411_TCP` and their like in every pod beside a service
/// called `providerd`; the operator did not write those, so they are no mistake.
fn is_from_kubernetes(name: &str) -> bool {
    let Some(rest) = name.strip_prefix(PREFIX) else { return false };
    !rest.contains("__") && (rest == "PORT" || rest.starts_with("PORT_") || rest.starts_with("SERVICE_"))
}

/// One mistake in the settings.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct SettingsError {
    /// `file:line:column`, `file`, or `environment variable NAME`; empty for a default.
    pub place: String,
    /// What is wrong, with the key's name.
    pub message: String,
    /// What to do.
    pub hint: Option<String>,
}

impl fmt::Display for SettingsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.place.is_empty() {
            write!(f, "{}: ", self.place)?;
        }
        f.write_str(&self.message)?;
        match &self.hint {
            Some(hint) => write!(f, "\n  hint: {hint}"),
            None => Ok(()),
        }
    }
}

impl SettingsError {
    pub(super) fn unreadable(path: &Path, error: &io::Error) -> Self {
        let hint = match error.kind() {
            io::ErrorKind::NotFound => "name a file that exists, or leave --config out",
            io::ErrorKind::PermissionDenied => "let the user that runs providerd read it",
            _ => "the settings file must be a readable UTF-8 text",
        };
        Self {
            place: path.display().to_string(),
            message: format!("the settings file cannot be read: {error}"),
            hint: Some(hint.to_owned()),
        }
    }
}

/// Looks up keys in the layers and keeps the mistakes.
pub struct LayerReader {
    file: PathBuf,
    text: String,
    table: Table,
    /// Where each key of the file stands, by its dotted path.
    spans: BTreeMap<String, Range<usize>>,
    env: BTreeMap<String, String>,
    errors: Vec<SettingsError>,
}

impl Settings {
    /// Reads the settings from layers already in memory. `text` is `None` where there is no file.
    pub(super) fn from_layers(
        file: &Path,
        text: Result<Option<String>, SettingsError>,
        env: impl Iterator<Item = (String, String)>,
    ) -> Result<Self, Vec<SettingsError>> {
        let mut env: BTreeMap<_, _> = env.filter(|(_, value)| !value.is_empty()).collect();
        let secret = |text: Option<String>| text.map(SecretString::from);
        let database_url = secret(env.remove("DATABASE_URL"));
        let byok_encryption_key = secret(env.remove("BYOK_ENCRYPTION_KEY"));
        env.retain(|name, _| name.starts_with(PREFIX));

        let has_file = matches!(text, Ok(Some(_)));
        let mut reader = LayerReader::new(file, text, env);
        reader.refuse_unknown_keys();
        reader.refuse_unknown_variables();
        reader.refuse_values_for_sections();
        let settings = Self::read(&mut reader);
        let Some(mut settings) = settings else { return Err(reader.errors) };

        for (key, message, hint) in settings.cross_check() {
            let place = reader.place(key);
            reader.error(place, format!("{key} {message}"), Some(hint.to_owned()));
        }
        if let Some(url) = database_url {
            if !is_database_url(&url) {
                let (message, hint) = NOT_A_DATABASE_URL;
                reader.error("environment variable DATABASE_URL".into(), message.into(), Some(hint.into()));
            }
            settings.database.url = Some(url);
        }
        if !reader.errors.is_empty() {
            return Err(reader.errors);
        }
        settings.byok_encryption_key = byok_encryption_key;
        settings.file = has_file.then(|| file.to_owned());
        Ok(settings)
    }
}

impl LayerReader {
    fn new(file: &Path, text: Result<Option<String>, SettingsError>, env: BTreeMap<String, String>) -> Self {
        let mut reader = Self {
            file: file.to_owned(),
            text: String::new(),
            table: Table::new(),
            spans: BTreeMap::new(),
            env,
            errors: Vec::new(),
        };
        match text {
            Ok(text) => reader.text = text.unwrap_or_default(),
            Err(error) => reader.errors.push(error),
        }
        // Parsed twice, once for places and once for values: settings are small, and each form is simple.
        let parsed = DeTable::parse(&reader.text)
            .map(|table| {
                let mut spans = BTreeMap::new();
                gather_spans(&table, "", &mut spans);
                spans
            })
            .and_then(|spans| Ok((spans, toml::from_str(&reader.text)?)));
        match parsed {
            Ok((spans, table)) => (reader.spans, reader.table) = (spans, table),
            Err(error) => {
                let place = reader.file_place(error.span());
                reader.error(place, format!("invalid TOML: {}", error.message()), None);
            }
        }
        reader
    }

    /// The strongest value of a key, or `None` after noting what is wrong with it.
    pub fn take<T: Setting>(&mut self, path: &str, default: &str) -> Option<T> {
        let found = if let Some(text) = self.env.get(&variable(path)) {
            T::from_env(text)
        } else if let Some(value) = lookup(&self.table, path) {
            T::from_toml(value)
        } else if default.is_empty() {
            T::unset().ok_or_else(|| "must be set".to_owned())
        } else {
            T::from_toml(&toml_or_text(default))
        };
        match found {
            Ok(value) => Some(value),
            Err(message) => {
                let place = self.place(path);
                self.error(place, format!("{path} {message}"), None);
                None
            }
        }
    }

    fn error(&mut self, place: String, message: String, hint: Option<String>) {
        self.errors.push(SettingsError { place, message, hint });
    }

    /// Where the effective value of a key was set; empty for a default.
    fn place(&self, path: &str) -> String {
        let name = variable(path);
        if self.env.contains_key(&name) {
            return format!("environment variable {name}");
        }
        match self.spans.get(path) {
            Some(span) => self.file_place(Some(span.clone())),
            None => String::new(),
        }
    }

    fn file_place(&self, span: Option<Range<usize>>) -> String {
        let before = span.and_then(|span| self.text.get(..span.start));
        let Some(before) = before else { return self.file.display().to_string() };
        let line = before.matches('\n').count() + 1;
        let column = before.rsplit('\n').next().unwrap_or_default().chars().count() + 1;
        format!("{}:{line}:{column}", self.file.display())
    }

    fn refuse_unknown_keys(&mut self) {
        let unknown: Vec<_> = self
            .spans
            .iter()
            .filter(|(path, _)| !is_known(path))
            // Below an unknown table nothing more is said.
            .filter(|(path, _)| path.rsplit_once('.').is_none_or(|(parent, _)| is_known(parent)))
            .map(|(path, span)| (path.clone(), span.clone()))
            .collect();
        for (path, span) in unknown {
            let (parent, name) = path.rsplit_once('.').unwrap_or(("", &path));
            let hint = match guess(parent, name) {
                Some(guess) => format!("did you mean {guess}?"),
                None => format!("known here: {}", siblings(parent).join(", ")),
            };
            let place = self.file_place(Some(span));
            self.error(place, format!("unknown key {path}"), Some(hint));
        }
    }

    /// `health = 5` would otherwise leave the whole section at its defaults, in silence.
    fn refuse_values_for_sections(&mut self) {
        let wrong: Vec<_> = self
            .spans
            .iter()
            .filter(|(path, _)| is_known(path) && !keys().any(|key| key.path == path.as_str()))
            .filter(|(path, _)| !lookup(&self.table, path).is_some_and(Value::is_table))
            .map(|(path, span)| (path.clone(), span.clone()))
            .collect();
        for (path, span) in wrong {
            let place = self.file_place(Some(span));
            self.error(
                place,
                format!("{path} must be a table"),
                Some(format!("write [{path}] and keys below it")),
            );
        }
    }

    fn refuse_unknown_variables(&mut self) {
        let known: Vec<String> = keys().map(|key| key.variable()).collect();
        let unknown: Vec<String> = self
            .env
            .keys()
            .filter(|name| !known.contains(name))
            .filter(|name| !NOT_SETTINGS.contains(&name.as_str()) && !is_from_kubernetes(name))
            .cloned()
            .collect();
        for name in unknown {
            let hint = match nearest(&name, known.iter().map(String::as_str)) {
                Some(guess) => format!("did you mean {guess}?"),
                None => "a setting section.key is the variable PROVIDERD_SECTION__KEY, with two underscores \
                         between the parts"
                    .to_owned(),
            };
            let place = format!("environment variable {name}");
            self.error(place, "sets no known key".to_owned(), Some(hint));
        }
    }
}

/// All keys of all sections.
pub fn keys() -> impl Iterator<Item = &'static SettingKey> {
    SECTIONS.iter().flat_map(|(_, _, keys)| keys.iter())
}

/// A key, or a table with keys below it.
fn is_known(path: &str) -> bool {
    keys()
        .any(|key| key.path == path || key.path.strip_prefix(path).is_some_and(|rest| rest.starts_with('.')))
}

/// The names that may stand in the table `parent`.
fn siblings(parent: &str) -> Vec<&'static str> {
    let mut names: Vec<_> = keys()
        .filter_map(|key| match parent {
            "" => Some(key.path),
            _ => key.path.strip_prefix(parent)?.strip_prefix('.'),
        })
        .filter_map(|rest| rest.split('.').next())
        .collect();
    names.dedup();
    names
}

/// What an unknown key was probably meant to be: a neighbour, or the same name elsewhere.
fn guess(parent: &str, name: &str) -> Option<String> {
    if let Some(near) = nearest(name, siblings(parent).into_iter()) {
        return Some(if parent.is_empty() { near.to_owned() } else { format!("{parent}.{near}") });
    }
    keys().find(|key| key.path.rsplit('.').next() == Some(name)).map(|key| key.path.to_owned())
}

fn lookup<'a>(table: &'a Table, path: &str) -> Option<&'a Value> {
    match path.split_once('.') {
        None => table.get(path),
        Some((first, rest)) => lookup(table.get(first)?.as_table()?, rest),
    }
}

fn gather_spans(table: &Spanned<DeTable<'_>>, parent: &str, spans: &mut BTreeMap<String, Range<usize>>) {
    for (key, value) in table.get_ref() {
        let name = key.get_ref();
        let path = if parent.is_empty() { name.to_string() } else { format!("{parent}.{name}") };
        if let DeValue::Table(inner) = value.get_ref() {
            gather_tables(inner, &path, spans);
        }
        spans.insert(path, key.span());
    }
}

fn gather_tables(table: &DeTable<'_>, parent: &str, spans: &mut BTreeMap<String, Range<usize>>) {
    for (key, value) in table {
        let path = format!("{parent}.{}", key.get_ref());
        if let DeValue::Table(inner) = value.get_ref() {
            gather_tables(inner, &path, spans);
        }
        spans.insert(path, key.span());
    }
}
