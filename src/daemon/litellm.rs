//! Keeps LiteLLM's configuration, and the keys beside it, in step with the catalog.
//!
//! Not its job: what stands in them (`litellm`). Invariants: while a manifest cannot be read, the files stay as they are, since
//! what is missing then was not taken out; nothing waits for a disk here but this task.

use std::{path::PathBuf, sync::Arc, time::Duration};

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use catalog::manifest::{Build, Severity};

use crate::{
    config::LiteLlmExport,
    litellm::{KeyFiles, KeyVariables, export, found_keys, write_if_changed},
    secret::Resolver,
    status::SeenByLoop,
};

/// A burst of passes is written once.
const SPACING: Duration = Duration::from_millis(500);

/// Where the files are, and how keys are read.
pub(super) struct LiteLlmKeeper {
    path: PathBuf,
    keys: Option<PathBuf>,
    resolver: Arc<Resolver>,
    /// What was said last, so that it is said once.
    said: Vec<String>,
}

impl LiteLlmKeeper {
    /// `None`: no file is asked for.
    pub fn new(settings: &LiteLlmExport, resolver: Arc<Resolver>) -> Option<Self> {
        let (path, keys) = (settings.path.clone()?, settings.keys.clone());
        Some(Self { path, keys, resolver, said: Vec::new() })
    }

    /// Follows the reconcile loop until `stop`.
    pub async fn run(mut self, mut seen: watch::Receiver<SeenByLoop>, stop: CancellationToken) {
        seen.mark_changed();
        loop {
            let changed = stop.run_until_cancelled(seen.changed()).await;
            if !matches!(changed, Some(Ok(()))) {
                return;
            }
            let now = seen.borrow_and_update().clone();
            if let (Some(build), None) = (now.build, now.problem) {
                // Files of keys are small, and a large catalog is exported in some milliseconds.
                tokio::task::block_in_place(|| self.look(&build));
            }
            if stop.run_until_cancelled(tokio::time::sleep(SPACING)).await.is_none() {
                return;
            }
        }
    }

    fn look(&mut self, build: &Build) {
        let frozen = &build.catalog.frozen;
        let broken = build.diagnostics.iter().any(|it| it.severity == Severity::Error);
        let whole = !broken && frozen.files.is_empty() && frozen.no_prune.is_none();
        let said = if whole {
            self.write(build)
        } else {
            vec!["it stays as it is while a manifest is not valid".to_owned()]
        };
        for what in said.iter().filter(|what| !self.said.contains(what)) {
            warn!(file = %self.path.display(), reason = %what, "LiteLLM's configuration is not the whole catalog");
        }
        self.said = said;
    }

    /// Writes what differs; what was not carried over, or went wrong.
    fn write(&self, build: &Build) -> Vec<String> {
        let catalog = &build.catalog;
        let mut said = Vec::new();
        let config = match &self.keys {
            Some(dir) => {
                let (keys, missing) = found_keys(&self.resolver, catalog);
                said.extend(missing);
                match KeyFiles::new(dir).write(&keys) {
                    Ok((changed, odd)) => {
                        if changed {
                            info!(directory = %dir.display(), keys = keys.len(), "wrote keys for LiteLLM");
                        }
                        let why = "is not in keys.env: it holds a character that readers of such files take for their own";
                        said.extend(odd.iter().map(|variable| format!("{variable} {why}")));
                    }
                    Err(error) => said.push(format!("{}: {error}", dir.display())),
                }
                export(catalog, &KeyVariables::for_files(catalog))
            }
            None => export(catalog, &KeyVariables::declared(catalog)),
        };
        // It holds no key.
        match write_if_changed(&self.path, config.text.as_bytes(), 0o644) {
            Ok(true) => {
                info!(file = %self.path.display(), entries = config.entries, "wrote LiteLLM's configuration");
            }
            Ok(false) => {}
            Err(error) => said.push(error.to_string()),
        }
        said.extend(config.left_out);
        said
    }
}
