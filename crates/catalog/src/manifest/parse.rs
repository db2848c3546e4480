//! One text → the objects it declares and everything that is wrong with it.
//!
//! PURE and total: any text, no panic. Not its job: what the objects and their values may be (`objects`, `values`), and
//! anything that takes two files. A text with an error yields its
//! diagnostics and the names it mentions, and no object.

use std::{collections::BTreeSet, ops::Range, sync::Arc};

use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

use super::{Diagnostic, ParsedFile, Severity, diagnostic::Lines, keyshape};
use crate::model::ManifestPath;

/// More problems than an operator reads at once; a file of noise must not fill the memory with them.
const MAX_PROBLEMS: usize = 100;

pub(super) type SpannedItem<'a> = Spanned<DeValue<'a>>;

/// Reads one manifest.
pub fn parse(path: &ManifestPath, text: &str) -> ParsedFile {
    // Editors on other systems begin a file with a byte order mark.
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut reader = ManifestReader {
        path,
        lines: Lines::new(text),
        found: Vec::new(),
        left_out: 0,
        left_out_worst: Severity::Warning,
    };
    let (root, errors) = DeTable::parse_recoverable(text);
    let mut file = ParsedFile::default();
    let mut last = None;
    let other = if errors.is_empty() { None } else { looks_like_yaml(text) };
    if let Some(span) = &other {
        let found = reader.error("syntax", span.clone(), "this looks like YAML; manifests are TOML");
        found.help.push("for instance: [providers.NAME] on a line, then type = \"openai\"".into());
    }
    for error in errors.iter().filter(|_| other.is_none()) {
        let span = error.span().unwrap_or(0..0);
        // Where the reader stumbles, it often stumbles again at the same place; the first word is the true one.
        if last.replace(span.start) == Some(span.start) {
            continue;
        }
        // The parser's words may quote what stands there.
        let message = keyshape::mask(error.message(), &[]);
        let typographic = text
            .get(span.start..)
            .is_some_and(|rest| rest.starts_with(['\u{201c}', '\u{201d}', '\u{2018}', '\u{2019}']));
        let found = reader.error("syntax", span, message);
        if typographic {
            found.help.push("these are typographic quotes: use \"".into());
        }
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
        file.objects.clear();
        file.mentions.clear();
        file.object_places.clear();
        file.default_health = None;
        (file.provider_places, file.route_places, file.defaults_place) = Default::default();
    }
    file
}

/// The first line of a text that is written as YAML is: `key:` before any `key =` and `[table]`.
fn looks_like_yaml(text: &str) -> Option<Range<usize>> {
    let mut at = 0;
    for line in text.split_inclusive('\n') {
        let (begin, word) = (at, line.trim());
        at += line.len();
        if word.is_empty() || word.starts_with('#') || word == "---" {
            continue;
        }
        let (key, rest) = word.split_once(':')?;
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
        let is_key = !key.is_empty() && key.chars().all(plain) && (rest.is_empty() || rest.starts_with(' '));
        let start = begin + (line.len() - line.trim_start().len());
        return is_key.then_some(start..start + word.len());
    }
    None
}

/// Frees a table without recursion. Dotted keys inside of inline tables nest thousands deep, and to free such a
/// table as values usually are, from the outside in, takes more stack than a thread has.
fn dismantle(root: DeTable<'_>) {
    let mut open = vec![DeValue::Table(root)];
    while let Some(next) = open.pop() {
        let is_inner = |item: &SpannedItem<'_>| item.get_ref().is_table() || item.get_ref().is_array();
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
pub(super) fn mentionable(name: &str) -> Option<Arc<str>> {
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

pub(super) struct ManifestReader<'a> {
    pub(super) path: &'a ManifestPath,
    pub(super) lines: Lines<'a>,
    found: Vec<Diagnostic>,
    /// Problems beyond those that are shown.
    left_out: usize,
    left_out_worst: Severity,
}

impl<'a> ManifestReader<'a> {
    pub(super) fn error(
        &mut self,
        code: &'static str,
        span: Range<usize>,
        message: impl Into<String>,
    ) -> &mut Diagnostic {
        self.report(Severity::Error, code, span, message.into())
    }

    pub(super) fn report(
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
            found.push(more.with_help("fix what is shown first; one mistake often causes many"));
        }
        found
    }
}
