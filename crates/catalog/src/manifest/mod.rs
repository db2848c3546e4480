//! Manifests: text → objects and diagnostics, and all files together → catalog.
//!
//! PURE. Not its job: reading files or showing anything. Invariants: any text yields a result and never a panic; a
//! text with an error contributes no object; no secret-looking text is ever rendered.

mod callers;
mod diagnostic;
mod keyshape;
mod meanings;
mod objects;
mod parse;
pub mod render;
mod schema;
mod values;
mod workspace;

use std::{collections::BTreeSet, sync::Arc};

use sha2::{Digest, Sha256};

pub use self::{
    diagnostic::{Diagnostic, Related, Severity},
    parse::parse,
    schema::json_schema,
    workspace::{Build, Changed, FileCounts, MAX_RULES, Workspace},
};
use crate::{
    model::{HealthPolicy, ManifestPath, Provider, Route},
    serving::GatewayObject,
};

/// Whether the value of a key of this name is or holds a secret, as far as its form shows.
pub fn looks_secret(name: &str, value: &str) -> bool {
    keyshape::is_named_secret(name, value) || keyshape::find(value).is_some()
}

/// What one text yields.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ParsedFile {
    pub providers: Vec<Arc<Provider>>,
    pub routes: Vec<Arc<Route>>,
    /// `[defaults.health]`, for this file's directory and below.
    pub default_health: Option<HealthPolicy>,
    /// Consumers, tiers, aliases and power levels.
    pub objects: Vec<Arc<GatewayObject>>,
    /// Provider names that stand in the text, as far as a broken text shows.
    pub mentioned: BTreeSet<Arc<str>>,
    pub diagnostics: Vec<Diagnostic>,
    /// Where the objects stand, in their order: a provider's name, a route's pattern, the defaults' header.
    provider_places: Vec<diagnostic::SourcePlace>,
    route_places: Vec<diagnostic::SourcePlace>,
    defaults_place: Option<diagnostic::SourcePlace>,
    object_places: Vec<diagnostic::SourcePlace>,
    /// Where texts stand that other files may give or take their meaning.
    mentions: Vec<callers::Mention>,
}

impl ParsedFile {
    /// Whether nothing is declared.
    pub fn is_empty(&self) -> bool {
        self.providers.is_empty()
            && self.routes.is_empty()
            && self.objects.is_empty()
            && self.default_health.is_none()
    }

    pub fn has_errors(&self) -> bool {
        self.diagnostics.iter().any(|it| it.severity == Severity::Error)
    }
}

/// What a file turned out to hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content {
    Text(Box<str>),
    /// A FIFO, a file that is too large, no UTF-8, no permission, a link out of the directory.
    Unreadable {
        code: &'static str,
        reason: Box<str>,
    },
}

/// A file that was read: parsed, with a hash of its bytes.
#[derive(Debug, Clone, PartialEq)]
pub struct ReadFile {
    hash: [u8; 32],
    parsed: Option<ParsedFile>,
    /// Why it could not be read.
    unreadable: Option<Diagnostic>,
}

/// Parses one file's content; independent of all others, so that many can be read at once.
pub fn read(path: &ManifestPath, content: &Content) -> ReadFile {
    match content {
        Content::Text(text) => {
            let hash = Sha256::digest(text.as_bytes()).into();
            ReadFile { hash, parsed: Some(parse(path, text)), unreadable: None }
        }
        Content::Unreadable { code, reason } => {
            let hash = Sha256::digest(format!("{code}\0{reason}").as_bytes()).into();
            ReadFile { hash, parsed: None, unreadable: Some(Diagnostic::of_file(code, path, &**reason)) }
        }
    }
}
