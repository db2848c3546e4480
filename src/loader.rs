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
        let build = self.take(scan, settled);
        // One half of a rename: the other file may be gone, although no event has said so yet.
        let rivals = self.workspace.rivals();
        if rivals.is_empty() {
            return build;
        }
        let rivals: BTreeSet<PathBuf> = rivals.iter().map(|path| PathBuf::from(&**path)).collect();
        if rivals.is_subset(hints) {
            return build;
        }
        let scan = self.directory.scan_paths(&rivals);
        let mut again = self.take(scan, settled);
        again.changed.add(build.changed);
        again
    }

    /// Files that are being written right now: they are left alone until they are whole.
    pub fn set_unfinished(&mut self, files: BTreeSet<PathBuf>) {
        self.directory.set_unfinished(files);
    }

    /// Why the directory as a whole cannot be believed.
    pub fn problem(&self) -> Option<&str> {
        self.problem.as_deref()
    }

    /// The text of a file, for showing a diagnostic in it; by the rules of every look, so that nothing that is refused
    /// is read here.
    pub fn text(&self, path: &str) -> Option<String> {
        self.directory.text(path)
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
        self.workspace.set_now(chrono::Utc::now().timestamp());
        self.workspace.set_gone(&self.gone);
        let mut build = if settled { self.workspace.build() } else { self.workspace.build_unsettled() };
        if let Some(problem) = &self.problem {
            Arc::make_mut(&mut build.catalog).frozen.no_prune = Some(problem.clone());
        }
        build
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_half_of_a_rename_is_enough() -> std::io::Result<()> {
        let dir = tempfile::tempdir()?;
        let at = |name: &str| dir.path().join(name);
        let text = |priority: u32| format!("[providers.same]\ntype = \"openai\"\npriority = {priority}\n");
        std::fs::write(at("a.toml"), text(1))?;
        let mut loader = Loader::new(dir.path());
        assert!(loader.load(true).diagnostics.is_empty());
        let hint = |name: &str| BTreeSet::from([PathBuf::from(name)]);
        let priority = |build: &Build| build.catalog.providers.get("same").map(|it| it.priority);
        for (round, (from, to)) in [("a.toml", "b.toml"), ("b.toml", "a.toml")].into_iter().enumerate() {
            std::fs::rename(at(from), at(to))?;
            std::fs::write(at(to), text(10 + round as u32))?;
            // Only the new name was heard of.
            let build = loader.load_paths(&hint(to), false);
            assert!(build.diagnostics.is_empty(), "{:?}", build.diagnostics);
            assert_eq!(priority(&build), Some(Some(10 + round as i32)));
            assert!(build.changed.names().is_none_or(|names| names.contains("same")));
            let build = loader.load_paths(&[from, to].map(PathBuf::from).into(), true);
            assert!(build.diagnostics.is_empty(), "{:?}", build.diagnostics);
            assert_eq!((build.files.valid, priority(&build)), (1, Some(Some(10 + round as i32))));
        }
        // Two that stay are reported once the directory has settled.
        std::fs::copy(at("a.toml"), at("b.toml"))?;
        assert!(loader.load_paths(&hint("b.toml"), false).diagnostics.is_empty());
        assert_eq!(loader.load_paths(&hint("b.toml"), true).diagnostics.len(), 2);
        Ok(())
    }
}
