//! The commit that the manifests lie at, asked of `git` itself.
//!
//! The work tree is untrusted: its configuration may name programs, so those that a read-only question could
//! start are switched off, and every run is bounded in time and output. Not its job: fetching (`[source.git]`).

use std::{
    io::Read,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    process::{ChildStdout, Command, Stdio},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    time::Duration,
};

use crate::model::Revision;

/// `git status` of 100,000 files on a slow disk takes seconds; a hung network file system takes forever.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Only whether there is any output matters for `status`; a commit id has at most 64 digits.
const MAX_OUTPUT: usize = 4096;

/// A pointer file (`.git` of a worktree or submodule) is one short line.
const MAX_POINTER: u64 = 8192;

static MISSING_LOGGED: AtomicBool = AtomicBool::new(false);

/// The commit of the work tree that `root` lies in, and whether anything below `root` differs from it.
/// `None` where there is no work tree, no commit yet, or no usable `git`. Blocks for as long as `git` runs.
pub fn revision(root: &Path) -> Option<Revision> {
    // Without a repository there is nothing to start a process for.
    git_dir(root)?;
    let commit = git(root, &["rev-parse", "--verify", "--quiet", "HEAD"])?;
    let commit = commit.trim();
    if !matches!(commit.len(), 40 | 64) || !commit.bytes().all(|digit| digit.is_ascii_hexdigit()) {
        return None;
    }
    let status = git(
        root,
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
        } else if meta.is_file() && meta.len() <= MAX_POINTER {
            let text = std::fs::read_to_string(&dot).ok()?;
            let target = text.strip_prefix("gitdir:")?.trim();
            return Some(dir.join(target));
        }
    }
    None
}

/// Runs one read-only git command; its standard output (cut off), or `None` if it failed or took too long.
fn git(root: &Path, arguments: &[&str]) -> Option<String> {
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
        .arg("--no-pager")
        .arg("--no-optional-locks")
        .args(arguments);
    for (name, _) in std::env::vars_os() {
        // GIT_DIR and its like would point at another repository.
        if name.to_string_lossy().starts_with("GIT_") {
            command.env_remove(name);
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
    let output = child.stdout.take().and_then(read_in_time);
    let Some(output) = output else {
        let _ = child.kill();
        let _ = child.wait();
        tracing::warn!(directory = %root.display(), command = arguments.first(), "git gave no answer in time");
        return None;
    };
    // A command that still has something to say gets a closed pipe, and its answer is already known.
    let cut = output.len() >= MAX_OUTPUT;
    if cut {
        let _ = child.kill();
    }
    let status = child.wait().ok()?;
    (cut || status.success()).then(|| String::from_utf8_lossy(&output).into_owned())
}

/// Everything up to the end or [`MAX_OUTPUT`]; `None` when it takes longer than [`TIMEOUT`].
fn read_in_time(pipe: ChildStdout) -> Option<Vec<u8>> {
    let (sender, receiver) = mpsc::sync_channel(1);
    // A thread of its own, because a pipe has no read timeout. It ends with the pipe, at the latest when the
    // caller has killed git.
    let reader = std::thread::Builder::new().name("git-output".to_owned()).spawn(move || {
        let mut output = Vec::new();
        let whole = pipe.take(MAX_OUTPUT as u64).read_to_end(&mut output);
        let _ = sender.send(whole.is_ok().then_some(output));
    });
    reader.ok()?;
    receiver.recv_timeout(TIMEOUT).ok()?
}

/// Keeps the revision at hand: readers take the latest, whoever has time refreshes it.
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
}

impl RevisionTracker {
    pub fn new(root: impl Into<PathBuf>) -> Self {
        let shared =
            Shared { root: root.into(), state: Mutex::default(), refreshing: tokio::sync::Mutex::default() };
        Self { shared: Arc::new(shared) }
    }

    /// The latest revision that a refresh found. Never blocks.
    pub fn current(&self) -> Option<Revision> {
        self.shared.state.lock().unwrap_or_else(PoisonError::into_inner).current.clone()
    }

    /// Asks git again, on a blocking thread, and returns the result, which [`Self::current`] returns from
    /// then on.
    pub async fn refresh(&self) -> Option<Revision> {
        let _turn = self.shared.refreshing.lock().await;
        let shared = Arc::clone(&self.shared);
        let result = tokio::task::spawn_blocking(move || {
            let revision = revision(&shared.root);
            shared.state.lock().unwrap_or_else(PoisonError::into_inner).current.clone_from(&revision);
            revision
        });
        result.await.ok().flatten()
    }
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
