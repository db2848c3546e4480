//! The commit that the manifests lie at, asked of `git` itself.
//!
//! The work tree is untrusted: its configuration may name programs, so those that a read-only question could
//! start are switched off, and every run is bounded in time and output. Not its job: fetching (`[source.git]`).

use std::{
    io::Read,
    os::unix::fs::MetadataExt,
    path::{Component, Path, PathBuf},
    process::{ChildStdout, Command, Stdio},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    time::Duration,
};

use catalog::model::{ManifestPath, Revision};

use super::{
    names::{is_manifest, is_visible},
    pull,
    read::last_name,
};

/// `git status` of 100,000 files on a slow disk takes seconds; a hung network file system takes forever.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Only whether there is any output matters for `status`; a commit id has at most 64 digits.
const MAX_OUTPUT: usize = 4096;
/// A hundred thousand names fit.
const MAX_LIST: usize = 32 * 1024 * 1024;
/// One byte more than a manifest may have.
const MAX_FILE: usize = 1024 * 1024 + 1;

/// A pointer file (`.git` of a worktree or submodule) is one short line.
const MAX_POINTER: u64 = 8192;

static MISSING_LOGGED: AtomicBool = AtomicBool::new(false);

/// The commit of the work tree that `root` lies in, and whether anything below `root` differs from it.
/// `None` where there is no work tree, no commit yet, or no usable `git`. Blocks for as long as `git` runs.
pub fn revision(root: &Path) -> Option<Revision> {
    // A checkout that was pulled is of the commit that its name says, whatever lies around it.
    if let Some(commit) = pull::commit_of(root) {
        return Some(Revision { commit, dirty: false });
    }
    // Without a repository there is nothing to start a process for.
    git_dir(root)?;
    let commit = git(root, &[], &["rev-parse", "--verify", "--quiet", "HEAD"])?;
    let commit = commit.trim();
    if !matches!(commit.len(), 40 | 64) || !commit.bytes().all(|digit| digit.is_ascii_hexdigit()) {
        return None;
    }
    // `status` passes files with another time stamp through the filters that the repository configures.
    // A list that is cut off would leave some of them on.
    let filters =
        git(root, &[], &["config", "--name-only", "--get-regexp", r"^filter\."]).unwrap_or_default();
    if filters.len() >= MAX_OUTPUT {
        return None;
    }
    let off: Vec<String> = filters
        .lines()
        .filter_map(|key| key.rsplit_once('.').map(|(driver, _)| driver))
        .flat_map(|driver| {
            [format!("{driver}.clean="), format!("{driver}.process="), format!("{driver}.required=false")]
        })
        .collect();
    let status = git(
        root,
        &off,
        &[
            "status",
            "--porcelain",
            "--untracked-files=normal",
            "--ignore-submodules=all",
            "--no-renames",
            "--",
            ".",
        ],
    )?;
    Some(Revision { commit: commit.to_owned(), dirty: !status.is_empty() })
}

/// The directory that holds `HEAD` and `index` of the work tree around `path`: of the work tree itself, of a
/// linked worktree, or of a submodule.
pub fn git_dir(path: &Path) -> Option<PathBuf> {
    let start = std::fs::canonicalize(path).ok()?;
    for dir in start.ancestors() {
        let dot = dir.join(".git");
        let Ok(meta) = std::fs::symlink_metadata(&dot) else { continue };
        if meta.is_dir() || meta.is_symlink() {
            if dot.join("HEAD").symlink_metadata().is_ok() {
                return Some(dot);
            }
        } else if meta.is_file() {
            let text = read_small(&dot)?;
            let target = text.strip_prefix("gitdir:")?.trim();
            return Some(dir.join(target));
        }
    }
    None
}

/// The manifests of a work tree's directory as they stand in another revision, by path; `None` if git does not know it.
pub fn manifests_at(root: &Path, revision: &str) -> Option<Vec<(ManifestPath, String)>> {
    manifests_below(root, "./", revision)
}

/// The manifests of a bare repository's directory (`.` for all of it) as they stand in a revision, by path; `None` if
/// git does not know it.
pub fn manifests_in(
    repository: &Path,
    directory: &Path,
    revision: &str,
) -> Option<Vec<(ManifestPath, String)>> {
    let parts = directory.components().filter_map(|part| match part {
        Component::Normal(name) => name.to_str(),
        _ => None,
    });
    let below: String = parts.flat_map(|name| [name, "/"]).collect();
    manifests_below(repository, &below, revision)
}

fn manifests_below(repository: &Path, below: &str, revision: &str) -> Option<Vec<(ManifestPath, String)>> {
    // What looks like an option or names a file in the index is no revision.
    if revision.is_empty() || revision.starts_with('-') || revision.contains(':') {
        return None;
    }
    let tree = format!("{revision}:{below}");
    let list = ["ls-tree", "--full-tree", "-r", "--name-only", "-z", &tree];
    let names = git_up_to(MAX_LIST, repository, &[], &list)?;
    let visible = names.split('\0').filter(|name| {
        let path = Path::new(name);
        is_manifest(last_name(path)) && is_visible(path)
    });
    visible
        .map(|name| {
            let blob = ["cat-file", "blob", &format!("{tree}{name}")];
            Some((name.into(), git_up_to(MAX_FILE, repository, &[], &blob)?))
        })
        .collect()
}

fn git(root: &Path, settings: &[String], arguments: &[&str]) -> Option<String> {
    git_up_to(MAX_OUTPUT, root, settings, arguments)
}

/// Runs one read-only git command; its standard output (cut off), or `None` if it failed or took too long.
/// `settings` override the repository's.
fn git_up_to(limit: usize, root: &Path, settings: &[String], arguments: &[&str]) -> Option<String> {
    let mut command = Command::new("git");
    command
        .arg("-C")
        .arg(root)
        // Each of these keys can make git start a program that the repository names.
        .args(["-c", "core.fsmonitor=false", "-c", "core.hooksPath=/dev/null", "-c", "core.pager=cat"])
        .args(["-c", "core.sshCommand=false", "-c", "credential.helper=", "-c", "diff.external="])
        .args([
            "-c",
            "protocol.allow=never",
            "-c",
            "submodule.recurse=false",
            "-c",
            "core.untrackedCache=false",
        ])
        .args(settings.iter().flat_map(|setting| ["-c", setting.as_str()]))
        .arg("--no-pager")
        .arg("--no-optional-locks")
        .args(arguments);
    // Nothing of ours is git's business: not GIT_DIR and its like, and no secret.
    command.env_clear();
    for name in ["PATH", "HOME", "TMPDIR"] {
        if let Some(value) = std::env::var_os(name) {
            command.env(name, value);
        }
    }
    command
        .env("GIT_OPTIONAL_LOCKS", "0")
        .env("GIT_TERMINAL_PROMPT", "0")
        .env("GIT_CONFIG_NOSYSTEM", "1")
        .env("GIT_NO_LAZY_FETCH", "1")
        .env("LC_ALL", "C")
        // The manifests often belong to another user than the daemon's; git only accepts this permission from
        // the command's own scope.
        .env("GIT_CONFIG_COUNT", "1")
        .env("GIT_CONFIG_KEY_0", "safe.directory")
        .env("GIT_CONFIG_VALUE_0", "*")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null());
    let mut child = match command.spawn() {
        Ok(child) => child,
        Err(error) => {
            if !MISSING_LOGGED.swap(true, Ordering::Relaxed) {
                tracing::warn!(%error, "git cannot be run: revisions are not recorded (hint: install git)");
            }
            return None;
        }
    };
    let output = child.stdout.take().and_then(|pipe| read_in_time(pipe, limit));
    let Some(output) = output else {
        let _ = child.kill();
        let _ = child.wait();
        tracing::warn!(directory = %root.display(), command = arguments.first(), "git gave no answer in time");
        return None;
    };
    // A command that still has something to say gets a closed pipe, and its answer is already known.
    let cut = output.len() >= limit;
    if cut {
        let _ = child.kill();
    }
    let status = child.wait().ok()?;
    (cut || status.success()).then(|| String::from_utf8_lossy(&output).into_owned())
}

/// Everything up to the end or `limit` bytes; `None` when it takes longer than [`TIMEOUT`].
fn read_in_time(pipe: ChildStdout, limit: usize) -> Option<Vec<u8>> {
    let (sender, receiver) = mpsc::sync_channel(1);
    // A thread of its own, because a pipe has no read timeout. It ends with the pipe, at the latest when the
    // caller has killed git.
    let reader = std::thread::Builder::new().name("git-output".to_owned()).spawn(move || {
        let mut output = Vec::new();
        let whole = pipe.take(limit as u64).read_to_end(&mut output);
        let _ = sender.send(whole.is_ok().then_some(output));
    });
    reader.ok()?;
    receiver.recv_timeout(TIMEOUT).ok()?
}

/// Keeps the revision at hand: readers take the latest, a task with time refreshes it.
#[derive(Debug, Clone)]
pub struct RevisionTracker {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    root: PathBuf,
    state: Mutex<State>,
    /// One refresh at a time; those who wait find the fresh result.
    refreshing: tokio::sync::Mutex<()>,
}

#[derive(Debug, Default)]
struct State {
    current: Option<Revision>,
    /// What HEAD said when `current` was asked for.
    head: Option<Head>,
}

impl RevisionTracker {
    pub fn new(root: impl Into<PathBuf>) -> Self {
        let shared =
            Shared { root: root.into(), state: Mutex::default(), refreshing: tokio::sync::Mutex::default() };
        Self { shared: Arc::new(shared) }
    }

    /// The latest revision that a refresh found. Never blocks.
    pub fn current(&self) -> Option<Revision> {
        self.shared.state().current.clone()
    }

    /// The latest revision, to be asked for after an edit: costs two small reads while the work tree is known to differ
    /// from the commit, and a run of git after a commit or checkout and after the first edit that follows. That an edit
    /// was taken back shows only at a refresh.
    pub async fn latest(&self) -> Option<Revision> {
        let is_known = {
            let state = self.shared.state();
            let differs = state.current.as_ref().is_some_and(|revision| revision.dirty);
            differs && state.head.is_some() && state.head == Head::of(&self.shared.root)
        };
        if is_known { self.current() } else { self.refresh().await }
    }

    /// Asks git again, on a blocking thread, and returns the result, which [`Self::current`] returns from
    /// then on.
    pub async fn refresh(&self) -> Option<Revision> {
        let _turn = self.shared.refreshing.lock().await;
        let shared = Arc::clone(&self.shared);
        let result = tokio::task::spawn_blocking(move || {
            // Before git runs: if it moves meanwhile, the next comparison differs.
            let head = Head::of(&shared.root);
            let revision = revision(&shared.root);
            *shared.state() = State { current: revision.clone(), head };
            revision
        });
        result.await.ok().flatten()
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Says whether HEAD has moved, without running git.
#[derive(Debug, PartialEq, Eq)]
struct Head {
    head: String,
    /// The loose ref's content, or the packed refs' size and times.
    target: Result<String, Option<(u64, i64, i64)>>,
}

impl Head {
    fn of(root: &Path) -> Option<Self> {
        if let Some(head) = pull::commit_of(root) {
            return Some(Self { head, target: Err(None) });
        }
        let git_dir = git_dir(root)?;
        let head = read_small(&git_dir.join("HEAD"))?;
        // A linked worktree keeps HEAD to itself and shares the refs.
        let common = read_small(&git_dir.join("commondir")).map(|common| git_dir.join(common.trim()));
        let common = common.unwrap_or_else(|| git_dir.clone());
        let name = head.strip_prefix("ref:").map(str::trim);
        let loose = name.and_then(|name| read_small(&common.join(name)));
        let target = loose.ok_or_else(|| {
            let meta = std::fs::symlink_metadata(common.join("packed-refs")).ok()?;
            Some((meta.len(), meta.mtime(), meta.mtime_nsec()))
        });
        Some(Self { head, target })
    }
}

/// A short regular file, as Git's pointers are.
fn read_small(path: &Path) -> Option<String> {
    let meta = std::fs::symlink_metadata(path).ok()?;
    if !meta.is_file() || meta.len() > MAX_POINTER {
        return None;
    }
    std::fs::read_to_string(path).ok()
}

/// Whether the file exists and was touched less than `age` ago.
pub fn is_recent(path: &Path, age: Duration) -> bool {
    std::fs::symlink_metadata(path).is_ok_and(|meta| {
        let now = std::time::SystemTime::now().duration_since(std::time::SystemTime::UNIX_EPOCH);
        now.is_ok_and(|now| {
            meta.mtime().saturating_add(age.as_secs().cast_signed()) > now.as_secs().cast_signed()
        })
    })
}
