//! Questions to the remote and to the mirror: what is there, whose is it, how does it stand to the last one.
//!
//! Not its job: files (`tree`). Invariant: a reference of the mirror moves only to objects that are all there and
//! have passed git's own checks.

use std::path::Path;

use tracing::{debug, warn};

use super::{
    CommitRelation, PullError, PullOptions, Reference, blocking,
    command::{CommandLimits, Git, size_of},
    place::{self, MirrorPlace, is_commit},
};

/// What was fetched last.
pub const INCOMING: &str = "refs/providerd/incoming";
/// What was applied last; keeps its history at hand, and is what a restart verifies.
pub const APPLIED: &str = "refs/providerd/applied";
/// Every fetch leaves a pack, and so many make git slow.
const MANY_PACKS: usize = 30;
/// What `git ls-remote --exit-code` and `git rev-parse` say for "no such reference".
const NOTHING: i32 = 2;

/// What the followed branch or tag is on the remote now.
///
/// # Errors
/// [`PullError::NoReference`], also for an empty repository; [`PullError::Git`] where the remote cannot be reached.
pub async fn tip(git: &Git, options: &PullOptions) -> Result<String, PullError> {
    let reference = options.reference.full();
    let arguments = ["ls-remote", "--exit-code", "--", &options.url, &reference];
    let answer = git.ask(&arguments, &[], CommandLimits::default()).await?;
    let missing = || {
        PullError::NoReference(match &options.reference {
            Reference::Head => "a branch that HEAD names".to_owned(),
            Reference::Branch(name) => format!("branch {name}"),
            Reference::Tag(name) => format!("tag {name}"),
        })
    };
    if answer.code() == Some(NOTHING) {
        return Err(missing());
    }
    let answer = git.succeed(&arguments, answer)?;
    let text = String::from_utf8_lossy(&answer.stdout);
    let found = text.lines().filter_map(|line| line.split_once('\t')).find(|(_, name)| *name == reference);
    let (id, _) = found.ok_or_else(missing)?;
    if is_commit(id) { Ok(id.to_owned()) } else { Err(PullError::Answer("ls-remote".to_owned())) }
}

/// Brings the reference into the mirror; the tip that was fetched, which may be a later one than `tip`.
///
/// Where the mirror cannot take it (it is broken, or the history since is too much), one made again with the last
/// commit alone takes its place, once that is whole.
///
/// `deep`: a new mirror gets the whole history.
///
/// # Errors
/// Those of the second try.
pub async fn fetch(
    git: &Git,
    options: &PullOptions,
    place: &MirrorPlace,
    tip: &str,
    deep: bool,
) -> Result<String, PullError> {
    if place.mirror().exists() {
        // A commit that was refused, or whose directory was missing, is not fetched again and again.
        if resolve(git, INCOMING).await.as_deref() == Some(tip) && is_whole(git, tip).await {
            return Ok(tip.to_owned());
        }
        let swept = place.clone();
        blocking(move || {
            swept.sweep();
            Ok(())
        })
        .await?;
        match fetch_into(git, options, place.mirror(), false).await {
            Ok(()) => return fetched(git).await,
            Err(error @ PullError::NoGit(_)) => return Err(error),
            Err(error) => debug!(%error, "the fetch failed; once more into a new mirror"),
        }
    }
    let fresh = place.temporary();
    let made = async {
        // For ids of the same kind.
        let format = if tip.len() == 64 { "--object-format=sha256" } else { "--object-format=sha1" };
        let arguments = ["init", "--quiet", "--bare", "--template=", format];
        let answer = git.ask(&arguments, &[("GIT_DIR", fresh.as_os_str())], CommandLimits::default()).await?;
        git.succeed(&arguments, answer)?;
        fetch_into(git, options, &fresh, !deep).await
    };
    let made = made.await;
    let place = place.clone();
    blocking(
        move || if made.is_ok() { place.replace_mirror(&fresh) } else { place::remove(&fresh).and(made) },
    )
    .await?;
    fetched(git).await
}

async fn fetch_into(git: &Git, options: &PullOptions, mirror: &Path, shallow: bool) -> Result<(), PullError> {
    let refspec = format!("+{}:{INCOMING}", options.reference.full());
    let mut arguments =
        vec!["fetch", "--quiet", "--no-tags", "--no-auto-maintenance", "--no-write-fetch-head"];
    arguments.extend(["--no-recurse-submodules", "--no-show-forced-updates"]);
    if shallow {
        // One commit is all that is applied. Later fetches bring what has come since, and so show a forced push.
        arguments.push("--depth=1");
    }
    arguments.extend(["--", &options.url, &refspec]);
    let packs = mirror.join("objects/pack");
    let limits = CommandLimits { grows: Some((&packs, options.max_bytes)), ..CommandLimits::default() };
    let answer = git.ask(&arguments, &[("GIT_DIR", mirror.as_os_str())], limits).await?;
    git.succeed(&arguments, answer)?;
    // A fetch may end between two looks at its size.
    if size_of(&packs) > options.max_bytes {
        return Err(PullError::TooLarge { what: "the repository", limit: options.max_bytes });
    }
    Ok(())
}

async fn fetched(git: &Git) -> Result<String, PullError> {
    resolve(git, INCOMING).await.ok_or_else(|| PullError::Answer("fetch".to_owned()))
}

/// The object that a name stands for; `None` if there is none.
async fn resolve(git: &Git, name: &str) -> Option<String> {
    let answer = git.run(&["rev-parse", "--verify", "--quiet", name], CommandLimits::default()).await;
    answer.ok().map(|answer| answer.line()).filter(|id| is_commit(id))
}

/// Whether the object and its files can be read.
async fn is_whole(git: &Git, tip: &str) -> bool {
    let arguments = ["rev-list", "--objects", "--max-count=1", "--quiet", tip];
    git.run(&arguments, CommandLimits::default()).await.is_ok()
}

/// The commit that a reference leads to, through a tag where there is one.
///
/// # Errors
/// It leads to something else.
pub async fn commit(git: &Git, reference: &str) -> Result<String, PullError> {
    let name = format!("{reference}^{{commit}}");
    resolve(git, &name).await.ok_or_else(|| PullError::Git {
        command: "rev-parse".to_owned(),
        message: "what is followed is not a commit".to_owned(),
    })
}

/// Whether an allowed signer has signed the commit, or the tag that leads to it.
///
/// # Errors
/// [`PullError::Unsigned`] if not, or if that is not known.
pub async fn verify(
    git: &Git,
    options: &PullOptions,
    reference: &str,
    commit: &str,
) -> Result<(), PullError> {
    let by_commit = check(git, &["verify-commit", "--raw", commit]).await?;
    let Err(of_commit) = by_commit else { return Ok(()) };
    let refused = |reason| PullError::Unsigned { commit: commit.to_owned(), reason };
    let Reference::Tag(name) = &options.reference else { return Err(refused(of_commit)) };
    let Some(tag) = resolve(git, reference).await.filter(|tag| tag != commit) else {
        return Err(refused(of_commit));
    };
    check(git, &["verify-tag", "--raw", &tag]).await?.map_err(refused)?;
    // A signed tag of another name must not pass for this one.
    let text = git.run(&["cat-file", "tag", &tag], CommandLimits::default()).await?.stdout;
    let text = String::from_utf8_lossy(&text);
    let (head, _) = text.split_once("\n\n").unwrap_or((&text, ""));
    let is_for = |key: &str, value: &str| head.lines().any(|line| line.strip_prefix(key) == Some(value));
    if is_for("tag ", name) && is_for("object ", commit) && is_for("type ", "commit") {
        Ok(())
    } else {
        Err(refused(format!("the signed tag was not made for {name} and this commit")))
    }
}

/// `Err` holds why the signature is not good.
async fn check(git: &Git, arguments: &[&str]) -> Result<Result<(), String>, PullError> {
    let answer = git.ask(arguments, &[], CommandLimits::default()).await?;
    if answer.is_success() {
        return Ok(Ok(()));
    }
    Ok(Err(match answer.complaint.as_str() {
        "" => "it carries no signature".to_owned(),
        complaint => complaint.to_owned(),
    }))
}

/// How `now` stands to what was applied before.
pub async fn history(git: &Git, before: Option<&str>, now: &str) -> CommitRelation {
    let Some(before) = before else { return CommitRelation::First };
    let name = format!("{before}^{{commit}}");
    if resolve(git, &name).await.is_none() {
        return CommitRelation::Unknown;
    }
    match git.ask(&["merge-base", "--is-ancestor", before, now], &[], CommandLimits::default()).await {
        Ok(answer) if answer.is_success() => CommitRelation::Forward,
        Ok(answer) if answer.code() == Some(1) => CommitRelation::Rewritten,
        _ => CommitRelation::Unknown,
    }
}

/// Remembers what was applied.
pub async fn mark_applied(git: &Git, tip: &str) -> Result<(), PullError> {
    git.run(&["update-ref", APPLIED, tip], CommandLimits::default()).await?;
    Ok(())
}

/// Packs the mirror together now and then. It is disposable, so a failure is only logged.
pub async fn maintain(git: &Git, place: &MirrorPlace) {
    let packs = place.packs();
    let count = std::fs::read_dir(packs).map_or(0, |entries| {
        entries.flatten().filter(|it| it.path().extension().is_some_and(|it| it == "pack")).count()
    });
    if count > MANY_PACKS
        && let Err(error) = git.run(&["gc", "--quiet", "--prune=now"], CommandLimits::default()).await
    {
        warn!(%error, "the mirror could not be packed");
    }
}
