//! Pulling the manifests from Git: look at the remote, fetch, verify, check out beside, switch in one step.
//!
//! Not its job: noticing the switch (`watch` sees the link move) or applying it. Invariants: what `current` leads
//! to is always one whole tree of one commit that passed every check; whatever fails leaves it where it is; a
//! secret is on no command line, in no log and in no file of ours.

mod command;
mod examine;
mod place;
mod remote;
mod report;
mod tree;

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use secrecy::SecretString;
use tokio::{
    sync::{Notify, mpsc, watch},
    time::Instant,
};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use self::{command::Git, place::MirrorPlace};
pub use self::{
    examine::{PullFinding, examine},
    place::commit_of,
    report::PullReport,
};
use crate::{
    config::{self, GitTransport, GitVerify, Settings},
    metrics::Metrics,
    secret::{Resolver, Secret},
};
use catalog::model::SecretRef;

/// The wait after a first failure; it doubles up to the interval, or to a minute where that is longer.
const FIRST_RETRY: Duration = Duration::from_secs(1);
const LONGEST_RETRY: Duration = Duration::from_secs(60);
/// Hosts announce a push a moment before every one of their servers knows it: after a webhook that led to nothing
/// new, the remote is asked once more.
const SECOND_LOOK: Duration = Duration::from_secs(5);
/// Webhooks may come as fast as they like; the remote is asked at most so often.
const BREATH: Duration = Duration::from_millis(500);
/// News that were not taken yet; more are dropped, they stand in the log as well.
const NEWS: usize = 64;

/// What is followed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reference {
    /// The branch that the remote's `HEAD` names.
    Head,
    Branch(String),
    Tag(String),
}

impl Reference {
    /// As the remote lists it.
    fn full(&self) -> String {
        match self {
            Self::Head => "HEAD".to_owned(),
            Self::Branch(name) => format!("refs/heads/{name}"),
            Self::Tag(name) => format!("refs/tags/{name}"),
        }
    }
}

/// What to pull, how, and where to. All paths are absolute.
#[derive(Debug, Clone)]
pub struct PullOptions {
    /// Holds no password (the settings refuse one).
    pub url: String,
    pub transport: GitTransport,
    /// For HTTP: the only origin that gets the token.
    pub origin: Option<String>,
    pub reference: Reference,
    /// Inside the repository, relative; `.` for all of it.
    pub path: PathBuf,
    pub interval: Duration,
    /// Of one run of git.
    pub timeout: Duration,
    /// Of the mirror, and of the files of one commit.
    pub max_bytes: u64,
    pub ssh_key: Option<PathBuf>,
    pub known_hosts: Option<PathBuf>,
    pub token: Option<PathBuf>,
    pub username: String,
    /// With it, only commits and tags signed by one of these are applied.
    pub allowed_signers: Option<PathBuf>,
    /// With signers: also follow a history that does not continue what is applied.
    pub allow_rewritten: bool,
    pub proxy: Option<SecretString>,
    pub ca_files: Vec<PathBuf>,
    /// Directory for mirrors and checkouts.
    pub state: PathBuf,
}

impl PullOptions {
    /// What `source.git` asks to be pulled, and how; `None` where it is not set.
    pub fn of(settings: &Settings) -> Option<Self> {
        let source = &settings.source;
        let url = source.git_url.clone()?;
        let (transport, origin) = config::git_address(&url).ok()?;
        let absolute = |path: PathBuf| std::path::absolute(&path).unwrap_or(path);
        Some(Self {
            transport,
            origin,
            url,
            reference: match (&source.git_tag, &source.git_branch) {
                (Some(tag), _) => Reference::Tag(tag.clone()),
                (None, Some(branch)) => Reference::Branch(branch.clone()),
                (None, None) => Reference::Head,
            },
            path: source.git_path.clone(),
            interval: source.git_interval,
            timeout: source.git_timeout,
            max_bytes: u64::from(source.git_max_mib.get()) << 20,
            ssh_key: source.ssh_key_file().map(absolute),
            known_hosts: source.git_known_hosts.clone().map(absolute),
            token: source.token_file().map(absolute),
            username: source.git_username.clone(),
            allowed_signers: match source.git_verify {
                GitVerify::Ssh => source.git_allowed_signers.clone().map(absolute),
                GitVerify::Off => None,
            },
            allow_rewritten: source.git_allow_rewritten,
            proxy: settings.egress.proxy.clone(),
            ca_files: settings.egress.ca_files.iter().cloned().map(absolute).collect(),
            state: absolute(config::state_dir().join("git")),
        })
    }
}

impl PullOptions {
    /// Where the manifests appear: a link that is moved in one step.
    pub fn manifests(&self) -> PathBuf {
        MirrorPlace::of(self).current()
    }

    /// The bare repository that a daemon pulls into, once there is one. It holds the commits since the first pull.
    pub fn mirror(&self) -> Option<PathBuf> {
        MirrorPlace::of(self).mirror_in_use()
    }
}

/// Why nothing new was applied. What ran goes on.
#[derive(Debug, thiserror::Error)]
pub enum PullError {
    #[error("git cannot be run\nhint: install git")]
    NoGit(#[source] std::io::Error),
    #[error("another providerd pulls into {}\nhint: give each its own state directory", .0.display())]
    Busy(PathBuf),
    #[error("{} belongs to the user with id {owner}\nhint: run as that user, or remove it", .path.display())]
    Owner { path: PathBuf, owner: u32 },
    #[error("cannot use {}", .path.display())]
    Io { path: PathBuf, source: std::io::Error },
    #[error("the token in {} cannot be used: {problem}\nhint: the file holds the token alone, on one line", .path.display())]
    Token { path: PathBuf, problem: String },
    #[error(
        "git {command} took longer than {limit:?} and was stopped\nhint: is the remote slow, or source.git.timeout too short?"
    )]
    TimedOut { command: String, limit: Duration },
    #[error("{what} is larger than {} MiB\nhint: raise source.git.max_mib if that is meant", .limit >> 20)]
    TooLarge { what: &'static str, limit: u64 },
    #[error("git {command} failed: {message}{}", hint(.message))]
    Git { command: String, message: String },
    #[error("git {0} gave an answer that was not understood")]
    Answer(String),
    #[error(
        "{0} does not exist in the repository\nhint: was it deleted or renamed? see source.git.branch and source.git.tag"
    )]
    NoReference(String),
    #[error("commit {commit} has no directory {}\nhint: see source.git.path", .path.display())]
    NoPath { commit: String, path: PathBuf },
    #[error("commit {commit} holds no manifest (*.toml) in {}\nhint: see source.git.path", .path.display())]
    NoManifest { commit: String, path: PathBuf },
    #[error(
        "commit {commit} is not signed by an allowed signer: {reason}\nhint: sign it with a key of source.git.allowed_signers"
    )]
    Unsigned { commit: String, reason: String },
    #[error(
        "commit {commit} {}\nhint: a signature does not say which commit is newer; if that was meant, set source.git.allow_rewritten until it is applied",
        .history.against(.previous)
    )]
    NotAfter { commit: String, previous: String, history: CommitRelation },
}

impl PullError {
    /// Word for the log; a new word is a new line.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::NoGit(_) => "no-git",
            Self::Busy(_) => "busy",
            Self::Owner { .. } => "owner",
            Self::Io { .. } => "io",
            Self::Token { .. } => "token",
            Self::TimedOut { .. } => "timeout",
            Self::TooLarge { .. } => "too-large",
            Self::Git { .. } => "git",
            Self::Answer(_) => "answer",
            Self::NoReference(_) => "no-reference",
            Self::NoPath { .. } => "no-path",
            Self::NoManifest { .. } => "no-manifest",
            Self::Unsigned { .. } => "unsigned",
            Self::NotAfter { .. } => "not-after",
        }
    }

    fn io(path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        move |source| Self::Io { path: path.to_owned(), source }
    }

    /// The error with its causes on one line.
    fn chain(&self) -> String {
        let mut text = self.to_string();
        if let Some(source) = std::error::Error::source(self) {
            text.insert_str(text.find('\n').unwrap_or(text.len()), &format!(": {source}"));
        }
        text.replace('\n', "; ")
    }
}

/// What most often helps against what git says.
fn hint(message: &str) -> &'static str {
    const HINTS: &[(&str, &str)] = &[
        (
            "Host key verification failed",
            "\nhint: put the host's key into source.git.known_hosts (ssh-keyscan, then compare)",
        ),
        ("Permission denied (", "\nhint: does the host know the public half of source.git.ssh_key?"),
        ("UNPROTECTED PRIVATE KEY", "\nhint: chmod 0600 the file of source.git.ssh_key"),
        ("could not read Username", "\nhint: set source.git.token, or the credential git_token"),
        (
            "Authentication failed",
            "\nhint: is the token of source.git.token right, and may it read the repository?",
        ),
        (
            "returned error: 30",
            "\nhint: redirects are not followed; set source.git.url to the final address, often the one that ends in .git",
        ),
        (
            "certificate verification failed",
            "\nhint: if the host's CA is your own, name its file in egress.ca_files",
        ),
        ("SSL certificate problem", "\nhint: if the host's CA is your own, name its file in egress.ca_files"),
        ("dubious ownership", "\nhint: a repository of file:// must belong to the user that runs providerd"),
    ];
    HINTS.iter().find(|(sign, _)| message.contains(sign)).map_or("", |(_, hint)| *hint)
}

/// How a new commit stands to the one before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CommitRelation {
    /// There was none before.
    First,
    /// It came after.
    Forward,
    /// It did not: a forced push, or a tag that was moved back.
    Rewritten,
    /// The earlier commit is not at hand any more.
    Unknown,
}

impl CommitRelation {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::First => "first",
            Self::Forward => "forward",
            Self::Rewritten => "rewritten",
            Self::Unknown => "unknown",
        }
    }
}

impl CommitRelation {
    /// How a commit of this history stands to `previous`, to go on after its name.
    fn against(self, previous: &str) -> String {
        match self {
            Self::First => "is the first".to_owned(),
            Self::Forward => format!("comes after {previous}"),
            Self::Rewritten => format!(
                "does not come after {previous}, which is applied: the history was rewritten or taken back"
            ),
            Self::Unknown => format!("cannot be shown to come after {previous}, which is applied"),
        }
    }
}

/// What the audit trail should know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum News {
    Switched {
        from: Option<String>,
        to: String,
        history: CommitRelation,
    },
    /// `signed`: by an allowed signer, but it does not come after what is applied.
    Refused {
        commit: String,
        signed: bool,
        reason: String,
    },
}

/// What the rest of the daemon holds of a [`Puller`].
pub struct Pulled {
    /// Whether there is a tree.
    pub ready: watch::Receiver<bool>,
    pub news: mpsc::Receiver<News>,
}

/// How one round ended.
enum Round {
    Unchanged,
    Switched,
}

/// Pulls until it is stopped.
pub struct Puller {
    options: PullOptions,
    place: MirrorPlace,
    metrics: Arc<Metrics>,
    wake: Arc<Notify>,
    ready: watch::Sender<bool>,
    news: mpsc::Sender<News>,
    report: PullReport,
    /// The word of the failure that stands, and whose fault it is.
    failing: Option<(&'static str, String)>,
    /// The refused tip that is already in the audit trail.
    refused: Option<String>,
}

impl Puller {
    /// `wake` asks for a look at once.
    pub fn new(options: PullOptions, wake: Arc<Notify>, metrics: Arc<Metrics>) -> (Self, Pulled) {
        let (ready, is_ready) = watch::channel(false);
        let (news, to_tell) = mpsc::channel(NEWS);
        let place = MirrorPlace::of(&options);
        let report = PullReport::new(&options);
        for result in ["unchanged", "updated", "refused", "failed"] {
            metrics.source_fetches.with_label_values(&[result]).inc_by(0);
        }
        let puller =
            Self { options, place, metrics, wake, ready, news, report, failing: None, refused: None };
        (puller, Pulled { ready: is_ready, news: to_tell })
    }

    /// Looks, waits, looks again. A failure is never a reason to end.
    pub async fn run(mut self, stop: CancellationToken) {
        stop.clone().run_until_cancelled_owned(self.rounds()).await;
    }

    /// One look, for a command that does not stay. While a daemon pulls into the same place, its tree is good enough.
    ///
    /// # Errors
    /// Nothing new could be fetched; a tree of earlier may still be there.
    pub async fn once(&mut self) -> Result<(), PullError> {
        let result = self.round(&mut false).await;
        if matches!(result, Err(PullError::Busy(_))) && self.place.has_current() {
            return Ok(());
        }
        self.account(&result).await;
        result.map(|_| ())
    }

    async fn rounds(&mut self) {
        let mut adopted = false;
        let mut failures = 0;
        let mut again = None;
        let mut hooked = false;
        loop {
            let result = self.round(&mut adopted).await;
            self.account(&result).await;
            let wait = match result {
                Ok(round) => {
                    failures = 0;
                    again =
                        (hooked && matches!(round, Round::Unchanged)).then(|| Instant::now() + SECOND_LOOK);
                    self.options.interval
                }
                Err(_) => {
                    failures += 1;
                    let longest = self.options.interval.max(LONGEST_RETRY);
                    FIRST_RETRY.saturating_mul(2u32.saturating_pow(failures - 1)).min(longest)
                }
            };
            let mut until = Instant::now() + wait;
            if let Some(at) = again.take() {
                until = until.min(at);
            }
            tokio::time::sleep(BREATH.min(wait)).await;
            tokio::select! {
                () = tokio::time::sleep_until(until) => hooked = false,
                () = self.wake.notified() => hooked = true,
            }
        }
    }

    /// One look at the remote, and what follows from it.
    async fn round(&mut self, adopted: &mut bool) -> Result<Round, PullError> {
        // Another process may have removed everything.
        if !self.place.is_ours() || !self.place.dir().is_dir() {
            let place = self.place.clone();
            self.place = blocking(move || place.take()).await?;
            self.report.load(&self.place);
        }
        if !std::mem::replace(adopted, true) {
            self.adopt().await;
        }
        // The token may be another one since the last look.
        let git = Git::new(&self.options, &self.place, self.token()?)?;
        let tip = remote::tip(&git, &self.options).await?;
        if self.report.tip.as_deref() == Some(&tip) && self.place.has_current() {
            self.be_ready();
            return Ok(Round::Unchanged);
        }
        self.take(&git, &tip).await
    }

    /// Starts from the tree of an earlier run, if it still passes.
    async fn adopt(&mut self) {
        let Some(commit) = commit_of(&self.place.current()) else { return };
        let verified = async {
            match self.options.allowed_signers {
                Some(_) => {
                    let git = Git::new(&self.options, &self.place, None)?;
                    remote::verify(&git, &self.options, remote::APPLIED, &commit).await
                }
                None => Ok(()),
            }
        };
        if let Err(error) = verified.await {
            warn!(revision = %commit, error = %error.chain(), "the tree of the last run is not used before it is verified again");
            self.place.forget_current();
            self.report.tip = None;
            return;
        }
        info!(revision = %commit, "the manifests start from the tree of the last run");
        self.report.commit = Some(commit);
        self.be_ready();
    }

    async fn take(&mut self, git: &Git, tip: &str) -> Result<Round, PullError> {
        let before = self.report.commit.clone();
        let guarded = self.options.allowed_signers.is_some() && !self.options.allow_rewritten;
        // Whether a commit comes after another shows only where the commits between are at hand.
        let deep = guarded && before.is_some();
        let tip = remote::fetch(git, &self.options, &self.place, tip, deep).await?;
        let commit = remote::commit(git, remote::INCOMING).await?;
        if self.options.allowed_signers.is_some() {
            remote::verify(git, &self.options, remote::INCOMING, &commit).await?;
        }
        let history = remote::history(git, before.as_deref(), &commit).await;
        if let (true, Some(previous), CommitRelation::Rewritten | CommitRelation::Unknown) =
            (guarded, &before, history)
        {
            return Err(PullError::NotAfter { commit, previous: previous.clone(), history });
        }
        tree::check_out(git, &self.options, &self.place, &commit).await?;
        let place = self.place.clone();
        let switched = commit.clone();
        blocking(move || place.switch(&switched)).await?;
        remote::mark_applied(git, &tip).await?;
        self.report.tip = Some(tip);
        self.report.commit = Some(commit.clone());
        self.be_ready();
        if before.as_deref() == Some(&commit) {
            // Another tag on the same commit, or a mirror that had to be made again.
            return Ok(Round::Unchanged);
        }
        let previous = before.as_deref().unwrap_or("nothing");
        match history {
            CommitRelation::First | CommitRelation::Forward => {
                info!(revision = %commit, previous, "the manifests follow a new commit");
            }
            CommitRelation::Rewritten => {
                warn!(revision = %commit, previous, "the history was rewritten (a forced push?); the manifests follow it");
            }
            CommitRelation::Unknown => {
                warn!(revision = %commit, previous, "the manifests follow a new commit; whether it came after the last one is not known");
            }
        }
        // The receiver may be gone; the log line stands.
        let _ = self.news.try_send(News::Switched { from: before, to: commit, history });
        let place = self.place.clone();
        if let Err(error) = blocking(move || place.tidy()).await {
            warn!(error = %error.chain(), "old checkouts could not be removed");
        }
        remote::maintain(git, &self.place).await;
        Ok(Round::Switched)
    }

    fn be_ready(&self) {
        self.ready.send_replace(true);
    }

    fn token(&self) -> Result<Option<Secret>, PullError> {
        let Some(path) = self.options.token.as_ref().filter(|_| self.options.origin.is_some()) else {
            return Ok(None);
        };
        let reference = SecretRef::File(path.to_string_lossy().into());
        Resolver::new(None, None, None)
            .resolve(&reference)
            .map(Some)
            .map_err(|error| PullError::Token { path: path.clone(), problem: error.problem.to_string() })
    }

    /// Counts, reports and logs: a line when an outage begins, one when its reason changes, one when it ends.
    async fn account(&mut self, result: &Result<Round, PullError>) {
        let word = match result {
            Ok(Round::Unchanged) => "unchanged",
            Ok(Round::Switched) => "updated",
            Err(PullError::Unsigned { .. } | PullError::NotAfter { .. }) => "refused",
            Err(_) => "failed",
        };
        self.metrics.source_fetches.with_label_values(&[word]).inc();
        match result {
            Ok(_) => {
                let now = chrono::Utc::now();
                self.metrics.source_last_success.set(now.timestamp() as f64);
                if self.failing.take().is_some() {
                    info!(revision = self.report.commit, "the manifests can be pulled again");
                }
                self.refused = None;
                self.report.succeeded(now);
            }
            Err(failure) => {
                let subject = match failure {
                    PullError::Unsigned { commit, reason } => Some((commit, reason.clone())),
                    PullError::NotAfter { commit, previous, history } => {
                        Some((commit, format!("it {}", history.against(previous))))
                    }
                    _ => None,
                };
                let subject = match subject {
                    Some((commit, reason)) => {
                        if self.refused.as_ref() != Some(commit) {
                            self.refused = Some(commit.clone());
                            let signed = matches!(failure, PullError::NotAfter { .. });
                            let _ =
                                self.news.try_send(News::Refused { commit: commit.clone(), signed, reason });
                        }
                        commit.clone()
                    }
                    None => String::new(),
                };
                let reason = failure.reason();
                let text = failure.chain();
                self.report.failed(chrono::Utc::now(), &text);
                if self.failing.as_ref() != Some(&(reason, subject.clone())) {
                    if subject.is_empty() {
                        warn!(reason, error = %text, "the manifests cannot be pulled; what runs goes on");
                    } else {
                        error!(reason, revision = %subject, error = %text, "a commit is refused; what runs goes on");
                    }
                }
                self.failing = Some((reason, subject));
            }
        }
        if self.place.is_ours()
            && let Err(error) = self.report.save(&self.place)
        {
            warn!(%error, path = %self.place.dir().display(), "the state of pulling could not be written");
        }
    }
}

/// Runs what waits for the disk.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, PullError> + Send + 'static,
) -> Result<T, PullError> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|_| Err(PullError::Answer("thread".to_owned())))
}
