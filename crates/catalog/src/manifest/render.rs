//! Diagnostics for people, for programs and for code review.
//!
//! PURE. Invariant: whatever looks like a key, and every span that is said to be one, is masked before anything
//! is rendered.

use std::{fmt::Write as _, ops::Range, path::Path};

use annotate_snippets::{AnnotationKind, Level, Renderer, Snippet, renderer::DecorStyle};
use serde::Serialize;

use super::{Diagnostic, Severity, keyshape};
use provider::shown::{self, in_place, lines};

/// Longer lines are not shown: they are not readable, and each problem in one would cost its whole length.
const MAX_EXCERPT: usize = 8 << 10;

/// Finds the text of a file that diagnostics are about; `None` shows them without it.
pub type TextLookup<'a> = dyn Fn(&str) -> Option<String> + 'a;

/// As compilers print them: the line, underlined, with its cause and what to do. `styled` adds escape sequences
/// that the stream may strip.
pub fn human(diagnostics: &[Diagnostic], text: &TextLookup<'_>, styled: bool) -> String {
    let renderer = if styled { Renderer::styled() } else { Renderer::plain() };
    let renderer = renderer.decor_style(DecorStyle::Ascii);
    let mut out = String::new();
    for of_file in diagnostics.chunk_by(|a, b| a.path == b.path) {
        let Some(path) = of_file.first().map(|it| it.path.clone()) else { continue };
        // What was refused as a file is not read for an excerpt, of which there is none.
        let is_shown = of_file.iter().any(|it| it.span.is_some());
        let source = is_shown.then(|| text(&path)).flatten().map(|text| masked(&text, of_file));
        let shown = shown::one_line(&path);
        for diagnostic in of_file {
            out += &one(diagnostic, &shown, source.as_deref(), &renderer);
            out.push_str("\n\n");
        }
    }
    out
}

/// A file's text without its byte order mark and its secrets; every other byte stays in its place.
fn masked(text: &str, diagnostics: &[Diagnostic]) -> String {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let secrets: Vec<Range<usize>> =
        diagnostics.iter().filter(|it| it.secret).filter_map(|it| inside(it.span.as_ref()?, text)).collect();
    in_place(&keyshape::mask(text, &secrets)).into_owned()
}

/// The span, if it still fits the text: the file may have changed since.
fn inside(span: &Range<usize>, text: &str) -> Option<Range<usize>> {
    (span.start <= span.end && text.is_char_boundary(span.start) && text.is_char_boundary(span.end))
        .then(|| span.clone())
}

fn one(diagnostic: &Diagnostic, path: &str, source: Option<&str>, renderer: &Renderer) -> String {
    let level = match diagnostic.severity {
        Severity::Error => Level::ERROR,
        Severity::Warning => Level::WARNING,
    };
    let (message, label) = (lines(&diagnostic.message), shown::one_line(&diagnostic.label));
    let mut group = level
        .primary_title(&*message)
        .id(diagnostic.code)
        .elements(std::iter::empty::<Snippet<'_, annotate_snippets::Annotation<'_>>>());
    let shown = source.and_then(|source| excerpt(source, diagnostic));
    match shown {
        Some((text, span)) => {
            let annotation = AnnotationKind::Primary.span(span).label(&*label);
            let line = diagnostic.line as usize;
            group = group.element(Snippet::source(text).line_start(line).path(path).annotation(annotation));
        }
        // A problem of the file as a whole has no line.
        None if diagnostic.span.is_none() => {
            group = group.element(annotate_snippets::Origin::path(path));
        }
        None => {
            let origin = annotate_snippets::Origin::path(path);
            group =
                group.element(origin.line(diagnostic.line as usize).char_column(diagnostic.column as usize));
        }
    }
    for related in &diagnostic.related {
        group = group.element(Level::NOTE.message(format!(
            "{}: {}:{}",
            related.text,
            shown::one_line(&related.path),
            related.line
        )));
    }
    for help in &diagnostic.help {
        group = group.element(Level::HELP.with_name(Some("hint")).message(lines(help).into_owned()));
    }
    renderer.render(&[group])
}

/// The lines that a diagnostic is about, and its span in them. Only these are handed on, so that a large file
/// with many problems is not read again for each.
fn excerpt<'a>(source: &'a str, diagnostic: &Diagnostic) -> Option<(&'a str, Range<usize>)> {
    let span = inside(diagnostic.span.as_ref()?, source)?;
    let from = source.get(..span.start)?.rfind('\n').map_or(0, |at| at + 1);
    let rest = source.get(span.end..)?;
    let to = span.end + rest.find('\n').unwrap_or(rest.len());
    if to - from > MAX_EXCERPT {
        return None;
    }
    Some((source.get(from..to)?, span.start - from..span.end - from))
}

/// Message and hints in one line, for the log.
pub fn one_line(diagnostic: &Diagnostic) -> String {
    let mut text = diagnostic.message.clone();
    if let Some(help) = diagnostic.help.first() {
        // Writing into a string cannot fail.
        let _ = write!(text, " (hint: {help})");
    }
    text
}

/// What `validate --output json` prints; the fields are stable.
#[derive(Serialize)]
pub struct ValidationReport<'a> {
    valid: bool,
    errors: usize,
    warnings: usize,
    diagnostics: &'a [Diagnostic],
}

/// Diagnostics as a value for JSON.
pub fn json(diagnostics: &[Diagnostic]) -> ValidationReport<'_> {
    let errors = diagnostics.iter().filter(|it| it.severity == Severity::Error).count();
    ValidationReport { valid: errors == 0, errors, warnings: diagnostics.len() - errors, diagnostics }
}

/// Workflow commands that GitHub shows beside the changed lines; `root` leads from the repository to the files.
pub fn github(diagnostics: &[Diagnostic], root: &Path) -> String {
    let mut out = String::new();
    for it in diagnostics {
        let kind = match it.severity {
            Severity::Error => "error",
            Severity::Warning => "warning",
        };
        let file = root.join(&*it.path);
        let mut message = it.message.clone();
        for help in &it.help {
            let _ = write!(message, "\nhint: {help}");
        }
        let _ = writeln!(
            out,
            "::{kind} file={},line={},endLine={},col={},endColumn={},title={}::{}",
            property(&file.to_string_lossy()),
            it.line,
            it.end_line,
            it.column,
            it.end_column.max(it.column),
            property(it.code),
            data(&message),
        );
    }
    out
}

fn data(text: &str) -> String {
    text.replace('%', "%25").replace('\r', "%0D").replace('\n', "%0A")
}

fn property(text: &str) -> String {
    data(text).replace(':', "%3A").replace(',', "%2C")
}
