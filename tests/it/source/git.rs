//! Checkouts, locks and revisions.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    os::unix::fs::{PermissionsExt, chown, symlink},
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use providerd::source::{RevisionTracker, manifests_at, revision};

use super::rig::*;

pub fn git(dir: &Path, arguments: &[&str]) -> Outcome {
    let output = Command::new("git")
        .arg("-C")
        .arg(dir)
        .args(["-c", "user.name=Test", "-c", "user.email=test@example.invalid", "-c", "commit.gpgsign=false"])
        .args(["-c", "init.defaultBranch=main", "-c", "advice.detachedHead=false"])
        .args(arguments)
        .output()?;
    if !output.status.success() {
        return Err(format!("git {arguments:?}: {}", String::from_utf8_lossy(&output.stderr)).into());
    }
    Ok(())
}

#[tokio::test]
async fn a_checkout_that_moves_files_removes_nothing_early() -> Outcome {
    let base = temporary()?;
    let root = base.path().join("providers.d");
    fs::create_dir(&root)?;
    git(base.path(), &["init", "-q"])?;
    for index in 0..50 {
        put(&root.join(format!("p{index:02}.toml")), &format!("provider {index}"))?;
    }
    git(base.path(), &["add", "-A"])?;
    git(base.path(), &["commit", "-qm", "flat"])?;
    git(base.path(), &["checkout", "-qb", "nested"])?;
    fs::create_dir_all(root.join("a/b"))?;
    for index in 0..50 {
        fs::rename(root.join(format!("p{index:02}.toml")), root.join(format!("a/b/p{index:02}.toml")))?;
    }
    git(base.path(), &["add", "-A"])?;
    git(base.path(), &["commit", "-qm", "nested"])?;
    git(base.path(), &["checkout", "-q", "main"])?;

    let mut rig = Rig::start(&root);
    rig.until("all flat", |rig| rig.state.len() == 50).await;
    for (branch, prefix) in [("nested", "a/b/p"), ("main", "p"), ("nested", "a/b/p")] {
        rig.pruned.clear();
        git(base.path(), &["checkout", "-q", branch])?;
        // Both generations stand until it has settled; no provider is ever in neither.
        rig.until("the new files are read", |rig| {
            rig.state.keys().filter(|path| path.starts_with(prefix)).count() == 50
        })
        .await;
        rig.until("the old files are gone", |rig| rig.state.len() == 50 && rig.pruned.len() == 50).await;
        assert!(rig.state.keys().all(|path| path.starts_with(prefix)));
    }
    Ok(())
}

#[tokio::test]
async fn a_git_lock_holds_everything_back() -> Outcome {
    let base = temporary()?;
    let root = base.path().join("providers.d");
    fs::create_dir(&root)?;
    git(base.path(), &["init", "-q"])?;
    put(&root.join("a.toml"), "0")?;
    let mut rig = Rig::start(&root);
    rig.until_is("a.toml", "0").await;
    rig.settle().await;
    let lock = base.path().join(".git/index.lock");
    File::create(&lock)?;
    put(&root.join("a.toml"), "1")?;
    let early = tokio::time::timeout(Duration::from_millis(300), rig.watcher.next()).await;
    assert!(early.is_err(), "announced during a checkout: {early:?}");
    fs::remove_file(&lock)?;
    let released = Instant::now();
    rig.until_is("a.toml", "1").await;
    assert!(released.elapsed() < Duration::from_secs(2));
    // One that was left behind an hour ago holds nothing.
    File::create(&lock)?.set_modified(std::time::SystemTime::now() - Duration::from_secs(3600))?;
    put(&root.join("a.toml"), "2")?;
    rig.until_is("a.toml", "2").await;
    Ok(())
}

#[test]
fn the_revision_is_the_commit_and_whether_the_manifests_differ() -> Outcome {
    let base = temporary()?;
    let repository = base.path().join("repository");
    let root = repository.join("providers.d");
    fs::create_dir_all(&root)?;
    assert_eq!(revision(&root), None, "no repository");
    git(&repository, &["init", "-q"])?;
    assert_eq!(revision(&root), None, "no commit");
    put(&root.join("a.toml"), "0")?;
    git(&repository, &["add", "-A"])?;
    git(&repository, &["commit", "-qm", "first"])?;
    let dirty = |root: &Path| revision(root).map(|revision| (revision.commit.len(), revision.dirty));
    assert_eq!(dirty(&root), Some((40, false)));
    put(&repository.join("elsewhere.toml"), "not a manifest")?;
    assert_eq!(dirty(&root), Some((40, false)), "only the manifests count");
    put(&root.join("new.toml"), "untracked")?;
    assert_eq!(dirty(&root), Some((40, true)));

    // A linked worktree has its own commit.
    git(&repository, &["worktree", "add", "-q", "-b", "side", "../side"])?;
    let side = base.path().join("side/providers.d");
    assert_eq!(dirty(&side), Some((40, false)));
    put(&side.join("a.toml"), "1")?;
    git(&base.path().join("side"), &["commit", "-qam", "second"])?;
    assert_ne!(revision(&side).map(|it| it.commit), revision(&root).map(|it| it.commit));
    // A submodule, too.
    let outer = base.path().join("outer");
    fs::create_dir(&outer)?;
    git(&outer, &["init", "-q"])?;
    git(
        &outer,
        &["-c", "protocol.file.allow=always", "submodule", "--quiet", "add", "../repository", "inner"],
    )?;
    let inner = outer.join("inner/providers.d");
    assert_eq!(revision(&inner).map(|it| it.commit), revision(&root).map(|it| it.commit));
    Ok(())
}

#[test]
fn a_repository_cannot_make_git_run_its_programs() -> Outcome {
    let base = temporary()?;
    let root = base.path().join("providers.d");
    fs::create_dir(&root)?;
    git(base.path(), &["init", "-q"])?;
    put(&root.join("a.toml"), "0")?;
    git(base.path(), &["add", "-A"])?;
    git(base.path(), &["commit", "-qm", "first"])?;
    let trap = base.path().join("trap.sh");
    let sprung = base.path().join("sprung");
    fs::write(&trap, format!("#!/bin/sh\ntouch {}\ncat\n", sprung.display()))?;
    fs::set_permissions(&trap, fs::Permissions::from_mode(0o755))?;
    let trap = trap.display().to_string();
    for key in ["core.fsmonitor", "core.pager", "diff.external", "core.sshCommand", "credential.helper"] {
        git(base.path(), &["config", key, &trap])?;
    }
    fs::create_dir_all(base.path().join(".git/hooks"))?;
    symlink(&trap, base.path().join(".git/hooks/post-index-change"))?;
    fs::write(base.path().join(".gitattributes"), "* filter=a.b diff=trap\n")?;
    for key in ["filter.a.b.clean", "filter.a.b.smudge", "filter.a.b.process", "diff.trap.textconv"] {
        git(base.path(), &["config", key, &trap])?;
    }
    // The same size, so that only the content tells.
    put(&root.join("a.toml"), "1")?;
    assert_eq!(revision(&root).map(|revision| revision.dirty), Some(true));
    assert!(!sprung.exists());
    Ok(())
}

#[test]
fn a_work_tree_of_another_user_is_read() -> Outcome {
    let base = temporary()?;
    git(base.path(), &["init", "-q"])?;
    put(&base.path().join("a.toml"), "0")?;
    git(base.path(), &["add", "-A"])?;
    git(base.path(), &["commit", "-qm", "first"])?;
    let given = ["", ".git", "a.toml"].map(|name| chown(base.path().join(name), Some(65_534), Some(65_534)));
    if given.iter().any(Result::is_err) {
        eprintln!("skipped: only root gives files away");
        return Ok(());
    }
    assert_eq!(revision(base.path()).map(|revision| revision.dirty), Some(false));
    Ok(())
}

#[tokio::test]
async fn the_tracker_notices_a_commit() -> Outcome {
    let base = temporary()?;
    git(base.path(), &["init", "-q"])?;
    put(&base.path().join("a.toml"), "0")?;
    git(base.path(), &["add", "-A"])?;
    git(base.path(), &["commit", "-qm", "first"])?;
    let tracker = RevisionTracker::new(base.path());
    assert_eq!(tracker.current(), None, "nothing was asked yet");
    let first = tracker.latest().await;
    assert_eq!(first, revision(base.path()));
    put(&base.path().join("a.toml"), "1")?;
    let edited = tracker.latest().await;
    assert_eq!(edited, revision(base.path()), "the first edit is not the commit's");
    assert_eq!(edited.map(|revision| revision.dirty), Some(true));
    put(&base.path().join("a.toml"), "0")?;
    assert_eq!(tracker.latest().await.map(|revision| revision.dirty), Some(true), "not asked again");
    assert_eq!(tracker.refresh().await, first);
    put(&base.path().join("a.toml"), "1")?;
    for step in [&["commit", "-qam", "second"][..], &["pack-refs", "--all"], &["checkout", "-q", "HEAD~1"]] {
        git(base.path(), step)?;
        assert_eq!(tracker.latest().await, revision(base.path()), "{step:?}");
    }
    assert_eq!(tracker.current(), first);
    Ok(())
}

#[test]
fn the_manifests_of_another_revision_are_read_from_git() -> Outcome {
    let base = temporary()?;
    let root = base.path().join("providers.d");
    fs::create_dir_all(root.join("sub/.hidden"))?;
    assert_eq!(manifests_at(&root, "HEAD"), None, "no repository");
    git(base.path(), &["init", "-q"])?;
    assert_eq!(manifests_at(&root, "HEAD"), None, "no commit");
    put(&base.path().join("elsewhere.toml"), "not below the directory")?;
    for (path, body) in [
        ("a.toml", "first"),
        ("sub/b é.toml", "first"),
        ("note.txt", "no manifest"),
        (".hidden.toml", "hidden"),
        ("sub/.hidden/c.toml", "hidden"),
    ] {
        put(&root.join(path), body)?;
    }
    git(base.path(), &["add", "-A"])?;
    git(base.path(), &["commit", "-qm", "first"])?;
    git(base.path(), &["tag", "v1"])?;
    put(&root.join("a.toml"), "second")?;
    git(base.path(), &["rm", "-q", "--", "providers.d/sub/b é.toml"])?;
    git(base.path(), &["commit", "-qam", "second"])?;
    put(&root.join("a.toml"), "not committed")?;

    let check = |revision: &str, expected: Option<&[(&str, &str)]>| {
        let found = manifests_at(&root, revision);
        let found = found.map(|files| {
            files.into_iter().map(|(path, text)| (path.to_string(), text)).collect::<BTreeMap<_, _>>()
        });
        let expected = expected
            .map(|files| files.iter().map(|(path, body)| ((*path).to_owned(), whole(body))).collect());
        assert_eq!(found, expected, "{revision}");
    };
    let first = Some(&[("a.toml", "first"), ("sub/b é.toml", "first")][..]);
    check("v1", first);
    check("HEAD~1", first);
    check("HEAD", Some(&[("a.toml", "second")]));
    check("no-such-revision", None);
    check("", None);
    // None of these is a revision, whatever git would make of it.
    check("-x", None);
    check("--name-status", None);
    check("HEAD:providers.d", None);
    check(":0:providers.d", None);
    Ok(())
}

/// Not a test of its own: what [`git_gets_no_environment_of_ours`] runs in another process.
#[test]
#[ignore = "run by another test, in an environment of its own"]
fn a_process_that_asks_git() {
    if let Some(root) = std::env::var_os("ASK_GIT_ABOUT") {
        assert_eq!(revision(Path::new(&root)), None);
        assert_eq!(manifests_at(Path::new(&root), "HEAD"), Some(Vec::new()));
    }
}

#[test]
fn git_gets_no_environment_of_ours() -> Outcome {
    let base = temporary()?;
    let seen = base.path().join("seen");
    git(base.path(), &["init", "-q"])?;
    // In place of git, something that tells what it was given.
    let bin = base.path().join("bin");
    fs::create_dir(&bin)?;
    fs::write(bin.join("git"), format!("#!/bin/sh\nenv >> {}\n", seen.display()))?;
    fs::set_permissions(bin.join("git"), fs::Permissions::from_mode(0o755))?;
    let path = std::env::var("PATH")?;
    let output = Command::new(std::env::current_exe()?)
        .args(["--exact", "source::git::a_process_that_asks_git", "--ignored"])
        .env("PATH", format!("{}:{path}", bin.display()))
        .env("ASK_GIT_ABOUT", base.path())
        .env("PROVIDERD_KEYS", "not-a-real-key")
        .env("GIT_DIR", "/elsewhere")
        .output()?;
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    let seen = fs::read_to_string(seen)?;
    let names = seen.lines().filter_map(|line| line.split_once('=')).map(|(name, _)| name);
    let names: BTreeSet<_> = names.collect();
    let ours = ["PROVIDERD_KEYS", "GIT_DIR", "ASK_GIT_ABOUT"];
    assert!(names.contains("GIT_OPTIONAL_LOCKS"), "{names:?}");
    assert!(ours.iter().all(|name| !names.contains(name)), "{names:?}");
    // What is left is from git's settings, from finding programs, or from the shell itself.
    let known = ["PATH", "HOME", "TMPDIR", "LC_ALL", "PWD", "OLDPWD", "SHLVL", "_"];
    assert!(names.iter().all(|name| name.starts_with("GIT_") || known.contains(name)), "{names:?}");
    Ok(())
}
