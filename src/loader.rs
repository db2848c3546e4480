//! Directory → catalog: reads what changed, parses it on all cores, keeps the workspace up to date.
//!
//! Not its job: watching (that is `source`) or judging texts (that is `manifest`). Invariant: a directory that
//! is missing or empty changes nothing in the catalog and forbids every prune.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    sync::Arc,
};

use rayon::prelude::*;

use catalog::{
    manifest::{self, Build, Content, Workspace},
    model::ManifestPath,
};

use crate::source::{Directory, FileState, Scan};

/// The manifests of one directory, parsed and kept up to date.
pub struct Loader {
    directory: Directory,
    workspace: Workspace,
    problem: Option<Arc<str>>,
    /// Files that were gone when they were last looked for; believed once the directory has settled.
    gone: BTreeSet<ManifestPath>,
}

impl Loader {
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self {
            directory: Directory::open(root.into()),
            workspace: Workspace::new(),
            problem: None,
            gone: BTreeSet::new(),
        }
    }

    pub fn root(&self) -> &Path {
        self.directory.root()
    }

    /// Looks at every file. `settled`: what is missing may be believed to be gone.
    pub fn load(&mut self, settled: bool) -> Build {
        let scan = self.directory.scan_all();
        self.take(scan, settled)
    }

    /// Looks at these files and subtrees only.
    pub fn load_paths(&mut self, hints: &BTreeSet<PathBuf>, settled: bool) -> Build {
        let scan = self.directory.scan_paths(hints);
        self.take(scan, settled)
    }

    /// Files that somebody is writing right now: they are left alone until they are whole.
    pub fn set_unfinished(&mut self, files: BTreeSet<PathBuf>) {
        self.directory.set_unfinished(files);
    }

    /// Why the directory as a whole cannot be believed.
    pub fn problem(&self) -> Option<&str> {
        self.problem.as_deref()
    }

    /// The text of a file, for showing a diagnostic in it.
    pub fn text(&self, path: &str) -> Option<String> {
        std::fs::read_to_string(self.directory.root().join(path)).ok()
    }

    fn take(&mut self, scan: Scan, settled: bool) -> Build {
        let parsed: Vec<_> = scan
            .changed
            .into_par_iter()
            .map(|(path, state)| {
                let content = match state {
                    FileState::Text(text) => Content::Text(text.into()),
                    FileState::Unreadable { code, reason } => {
                        Content::Unreadable { code, reason: reason.into() }
                    }
                };
                let parsed = manifest::read(&path, &content);
                (path, parsed)
            })
            .collect();
        for (path, parsed) in parsed {
            self.gone.remove(&path);
            self.workspace.set_parsed(path, parsed);
        }
        self.gone.extend(scan.removed);
        if settled && scan.problem.is_none() {
            for path in std::mem::take(&mut self.gone) {
                self.workspace.remove(&path);
            }
        }
        self.problem = scan.problem.map(|problem| problem.to_string().into());
        let mut build = self.workspace.build();
        if let Some(problem) = &self.problem {
            Arc::make_mut(&mut build.catalog).frozen.no_prune = Some(problem.clone());
        }
        build
    }
}
