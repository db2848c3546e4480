//! What is wrong with a manifest, and where.

use std::ops::Range;

use serde::Serialize;

use crate::model::ManifestPath;

/// How bad it is: an error freezes what it is about, a warning changes nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    Error,
    Warning,
}

/// One problem.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Diagnostic {
    pub severity: Severity,
    /// Stable word in kebab case.
    pub code: &'static str,
    pub path: ManifestPath,
    /// From 1; 1 where the problem is the file as a whole.
    pub line: u32,
    /// In characters, from 1.
    pub column: u32,
    pub end_line: u32,
    pub end_column: u32,
    pub message: String,
    /// What stands at the underline.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub label: String,
    /// What to do about it.
    pub help: Vec<String>,
    /// Other places that belong to it.
    pub related: Vec<Related>,
    /// Bytes of the text that the problem is about; none for the file as a whole.
    #[serde(skip)]
    pub span: Option<Range<usize>>,
    /// The span is a secret: it is never shown.
    #[serde(skip)]
    pub secret: bool,
}

/// Another place that a problem has to do with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Related {
    pub path: ManifestPath,
    pub line: u32,
    pub text: String,
}

/// Where an object stands in its file, for problems that only all files together show.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct SourcePlace {
    pub span: Range<usize>,
    pub line: u32,
    pub column: u32,
    pub end_line: u32,
    pub end_column: u32,
}

/// Characters are counted from the nearest multiple of so many bytes: a file of one line with thousands of objects
/// must not be read again from its beginning for each of them.
const BLOCK: usize = 1024;

/// Turns bytes into lines and columns.
pub(super) struct Lines<'a> {
    text: &'a str,
    starts: Vec<usize>,
    /// Characters before each block; empty where every character is a byte.
    blocks: Vec<usize>,
}

/// Characters that begin in these bytes.
fn characters(bytes: &[u8]) -> usize {
    bytes.iter().filter(|byte| **byte & 0xC0 != 0x80).count()
}

impl<'a> Lines<'a> {
    pub fn new(text: &'a str) -> Self {
        let breaks = text.bytes().enumerate().filter(|(_, byte)| *byte == b'\n').map(|(at, _)| at + 1);
        let mut blocks = Vec::new();
        if !text.is_ascii() {
            let mut before = 0;
            for block in text.as_bytes().chunks(BLOCK) {
                blocks.push(before);
                before += characters(block);
            }
        }
        Self { text, starts: std::iter::once(0).chain(breaks).collect(), blocks }
    }

    /// Characters before a byte.
    fn before(&self, at: usize) -> usize {
        match self.blocks.get(at / BLOCK) {
            None => at,
            Some(known) => known + self.text.as_bytes().get(at / BLOCK * BLOCK..at).map_or(0, characters),
        }
    }

    /// The line of a byte, from 1.
    pub fn line(&self, at: usize) -> u32 {
        u32::try_from(self.starts.partition_point(|start| *start <= at)).unwrap_or(u32::MAX)
    }

    /// Line and column of a byte, both from 1.
    fn point(&self, at: usize) -> (u32, u32) {
        let at = at.min(self.text.len());
        let line = self.starts.partition_point(|start| *start <= at);
        let start = self.starts.get(line.saturating_sub(1)).copied().unwrap_or(0);
        let column = if self.blocks.is_empty() { at - start } else { self.before(at) - self.before(start) };
        (u32::try_from(line).unwrap_or(u32::MAX), u32::try_from(column + 1).unwrap_or(u32::MAX))
    }

    /// What follows a byte in its line, of so many bytes or a few less at most.
    pub fn rest_of_line(&self, at: usize, most: usize) -> &'a str {
        let end = self.text.floor_char_boundary(at.saturating_add(most).min(self.text.len()));
        self.text.get(at..end).and_then(|rest| rest.lines().next()).unwrap_or_default()
    }

    pub fn place(&self, span: Range<usize>) -> SourcePlace {
        let ((line, column), (end_line, end_column)) = (self.point(span.start), self.point(span.end));
        SourcePlace { span, line, column, end_line, end_column }
    }
}

impl Diagnostic {
    /// A problem of a file as a whole.
    pub(super) fn of_file(code: &'static str, path: &ManifestPath, message: impl Into<String>) -> Self {
        Self::at(Severity::Error, code, path, None, message)
    }

    /// A problem at a place; without one, of the file as a whole.
    pub(super) fn at(
        severity: Severity,
        code: &'static str,
        path: &ManifestPath,
        place: Option<&SourcePlace>,
        message: impl Into<String>,
    ) -> Self {
        Self {
            severity,
            code,
            path: path.clone(),
            line: place.map_or(1, |it| it.line),
            column: place.map_or(1, |it| it.column),
            end_line: place.map_or(1, |it| it.end_line),
            end_column: place.map_or(1, |it| it.end_column),
            message: message.into(),
            label: String::new(),
            help: Vec::new(),
            related: Vec::new(),
            span: place.map(|it| it.span.clone()),
            secret: false,
        }
    }

    #[must_use]
    pub(super) fn with_label(mut self, label: impl Into<String>) -> Self {
        self.label = label.into();
        self
    }

    #[must_use]
    pub(super) fn with_help(mut self, help: impl Into<String>) -> Self {
        self.help.push(help.into());
        self
    }

    #[must_use]
    pub(super) fn with_related(mut self, path: &ManifestPath, line: u32, text: impl Into<String>) -> Self {
        self.related.push(Related { path: path.clone(), line, text: text.into() });
        self
    }
}
