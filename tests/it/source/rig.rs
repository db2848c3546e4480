//! A consumer of the watcher that is as believing, and as careful, as the reconciler.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self},
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    time::Duration,
};

use tempfile::TempDir;

use providerd::source::{Activation, Directory, FileState, LookScope, Scan, WatchOptions, Watcher};

pub type Outcome = Result<(), Box<dyn std::error::Error>>;

pub const MARKER: &str = "# end\n";

/// Far longer than anything should take, on a machine that does other things too.
pub const DEADLINE: Duration = Duration::from_secs(20);

pub const SETTLE: Duration = Duration::from_millis(400);

pub fn whole(body: &str) -> String {
    format!("{body}\n{MARKER}")
}

pub fn put(path: &Path, body: &str) -> std::io::Result<()> {
    fs::write(path, whole(body))
}

/// A consumer as the reconciler is one: believes texts at once and removals only when things have settled.
pub struct Rig {
    pub watcher: Watcher,
    pub directory: Directory,
    /// What is declared, by path.
    pub state: BTreeMap<String, String>,
    pub missing: BTreeSet<String>,
    /// Every path that was ever believed to be removed.
    pub pruned: Vec<String>,
    pub unreadable: BTreeMap<String, &'static str>,
    pub secrets: Vec<PathBuf>,
    pub activations: Vec<Activation>,
    pub problem: Option<&'static str>,
}

impl Rig {
    pub fn start(root: &Path) -> Self {
        Self::with(root, WatchOptions { settle: SETTLE, ..WatchOptions::default() })
    }

    pub fn with(root: &Path, options: WatchOptions) -> Self {
        Self {
            watcher: Watcher::start(root, options),
            directory: Directory::open(root),
            state: BTreeMap::new(),
            missing: BTreeSet::new(),
            pruned: Vec::new(),
            unreadable: BTreeMap::new(),
            secrets: Vec::new(),
            activations: Vec::new(),
            problem: None,
        }
    }

    pub fn digest(&mut self, activation: Activation) {
        self.directory.set_unfinished(activation.unfinished.clone());
        let scan = match &activation.look {
            LookScope::Everything => self.directory.scan_all(),
            LookScope::Paths { manifests, secrets } => {
                self.secrets.extend(secrets.iter().cloned());
                if manifests.is_empty() { Scan::default() } else { self.directory.scan_paths(manifests) }
            }
        };
        self.problem = scan.problem.as_ref().map(|problem| problem.code);
        self.missing.extend(scan.removed.iter().map(ToString::to_string));
        for (path, file) in scan.changed {
            self.missing.remove(&*path);
            match file {
                FileState::Text(text) => {
                    assert!(text.ends_with(MARKER), "half of {path} was read: {text:?}");
                    self.unreadable.remove(&*path);
                    self.state.insert(path.to_string(), text.trim_end_matches(MARKER).trim_end().to_owned());
                }
                FileState::Unreadable { code, .. } => {
                    self.unreadable.insert(path.to_string(), code);
                }
            }
        }
        if activation.settled && self.problem.is_none() {
            for path in std::mem::take(&mut self.missing) {
                self.state.remove(&path);
                self.unreadable.remove(&path);
                self.pruned.push(path);
            }
        }
        self.activations.push(activation);
    }

    /// Digests activations until the condition holds.
    pub async fn until(&mut self, what: &str, condition: impl Fn(&Self) -> bool) {
        let end = tokio::time::Instant::now() + DEADLINE;
        while !condition(self) {
            match tokio::time::timeout_at(end, self.watcher.next()).await {
                Ok(activation) => self.digest(activation),
                Err(_) => panic!(
                    "{what}: not within {DEADLINE:?}; state {:?}, missing {:?}, unreadable {:?}, problem {:?}",
                    self.state, self.missing, self.unreadable, self.problem
                ),
            }
        }
    }

    pub async fn until_is(&mut self, path: &str, body: &str) {
        self.until(&format!("{path} = {body}"), |rig| rig.state.get(path).is_some_and(|text| text == body))
            .await;
    }

    /// Digests activations until a settled one has come after this call.
    pub async fn settle(&mut self) {
        let seen = self.activations.len();
        self.until("settled", |rig| rig.activations.iter().skip(seen).any(|activation| activation.settled))
            .await;
    }
}

pub fn temporary() -> std::io::Result<TempDir> {
    tempfile::tempdir()
}

/// Points a symlink elsewhere in one step.
pub fn swap(link: &Path, target: &str) -> std::io::Result<()> {
    let temporary = link.with_file_name("..swap");
    symlink(target, &temporary)?;
    fs::rename(&temporary, link)
}
