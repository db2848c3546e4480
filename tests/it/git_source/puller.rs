//! The puller alone: what becomes of `current`, whatever the repository and the disk hold.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use tempfile::TempDir;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use providerd::{
    config::git_address,
    metrics::Metrics,
    source::{
        Directory,
        pull::{CommitRelation, News, PullOptions, PullReport, Pulled, Puller, Reference, commit_of},
    },
};

use crate::{
    git_source::{
        host::{Host, Mode},
        repository::{Repository, sign_with},
    },
    support::lab::PATIENCE,
};

const TOKEN: &str = "not-a-real-git-token";

/// A puller that runs, and what can be seen of it.
struct Rig {
    state: TempDir,
    options: PullOptions,
    running: Option<Running>,
}

struct Running {
    wake: Arc<Notify>,
    stop: CancellationToken,
    task: tokio::task::JoinHandle<()>,
    pulled: Pulled,
}

impl Rig {
    fn new(url: &str) -> Self {
        let state = tempfile::Builder::new().prefix("pdstate").tempdir_in("/tmp").unwrap();
        let (transport, origin) = git_address(url).unwrap();
        let options = PullOptions {
            url: url.to_owned(),
            transport,
            origin,
            reference: Reference::Branch("main".to_owned()),
            path: ".".into(),
            // Long: tests ask for a look.
            interval: Duration::from_secs(3600),
            timeout: Duration::from_secs(30),
            max_bytes: 64 << 20,
            ssh_key: None,
            known_hosts: None,
            token: None,
            username: "git".to_owned(),
            allowed_signers: None,
            allow_rewritten: false,
            proxy: None,
            ca_files: Vec::new(),
            state: state.path().join("git"),
        };
        Self { state, options, running: None }
    }

    fn start(&mut self) {
        let wake = Arc::new(Notify::new());
        let stop = CancellationToken::new();
        let metrics = Arc::new(Metrics::new().unwrap());
        let (puller, pulled) = Puller::new(self.options.clone(), wake.clone(), metrics);
        let task = tokio::spawn(puller.run(stop.clone()));
        self.running = Some(Running { wake, stop, task, pulled });
    }

    async fn stop(&mut self) {
        let running = self.running.take().unwrap();
        running.stop.cancel();
        running.task.await.unwrap();
    }

    fn look(&self) {
        self.running.as_ref().unwrap().wake.notify_one();
    }

    fn is_ready(&self) -> bool {
        *self.running.as_ref().unwrap().pulled.ready.borrow()
    }

    fn news(&mut self) -> Vec<News> {
        std::iter::from_fn(|| self.running.as_mut().unwrap().pulled.news.try_recv().ok()).collect()
    }

    fn current(&self) -> PathBuf {
        self.options.manifests()
    }

    fn text(&self, name: &str) -> String {
        fs::read_to_string(self.current().join(name)).unwrap_or_default()
    }

    fn report(&self) -> PullReport {
        PullReport::read(&self.options).unwrap_or_default()
    }

    /// The directory of this source.
    fn place(&self) -> PathBuf {
        self.current().parent().unwrap().to_owned()
    }

    fn names(&self, prefix: &str) -> Vec<PathBuf> {
        let entries = fs::read_dir(self.place()).unwrap().flatten().map(|it| it.path());
        entries.filter(|it| it.file_name().unwrap().to_str().unwrap().starts_with(prefix)).collect()
    }

    async fn until(&self, what: &str, holds: impl Fn(&Self) -> bool) {
        let started = Instant::now();
        while !holds(self) {
            assert!(started.elapsed() < PATIENCE, "{what}: {:?}", self.report());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    async fn until_at(&self, commit: &str) {
        self.until(&format!("at {commit}"), |rig| {
            commit_of(&rig.current()).as_deref() == Some(commit)
                && rig.report().commit.as_deref() == Some(commit)
                && rig.report().error.is_none()
        })
        .await;
    }

    /// Looks, and waits for a failure that says so.
    async fn until_failing(&self, words: &str) {
        // One that is under way may know less, so two of them.
        for _ in 0..2 {
            let before = self.report().last_look;
            self.look();
            self.until(words, |rig| rig.report().last_look > before).await;
        }
        self.until(words, |rig| rig.report().error.is_some_and(|error| error.contains(words))).await;
    }
}

/// A repository with one manifest, and a puller that has it.
async fn started() -> (Repository, Rig, String) {
    let repository = Repository::empty();
    repository.write("a.toml", "# 1\n");
    let commit = repository.push();
    let mut rig = Rig::new(&repository.url());
    rig.start();
    rig.until_at(&commit).await;
    (repository, rig, commit)
}

#[tokio::test(flavor = "multi_thread")]
async fn each_commit_takes_the_place_of_the_last_as_a_whole() {
    let (repository, mut rig, first) = started().await;
    assert!(rig.is_ready());
    assert_eq!(rig.text("a.toml"), "# 1\n");
    let mut commits = vec![first.clone()];
    for round in 2..6 {
        repository.write("a.toml", &format!("# {round}\n"));
        repository.write(&format!("dir/{round}.toml"), "# more\n");
        commits.push(repository.push());
        rig.look();
        rig.until_at(commits.last().unwrap()).await;
        assert_eq!(rig.text("a.toml"), format!("# {round}\n"));
        assert_eq!(rig.text(&format!("dir/{round}.toml")), "# more\n");
    }
    // Two are kept, and nothing else lies about.
    rig.until("tidied", |rig| rig.names("checkout-").len() == 2 && rig.names("tmp-").is_empty()).await;
    let histories: Vec<_> = rig
        .news()
        .into_iter()
        .map(|news| match news {
            News::Switched { to, history, .. } => (to, history),
            other => panic!("{other:?}"),
        })
        .collect();
    let expected: Vec<_> = commits
        .iter()
        .cloned()
        .zip([CommitRelation::First].into_iter().chain([CommitRelation::Forward; 4]))
        .collect();
    assert_eq!(histories, expected);
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_forced_push_is_followed_and_told() {
    let (repository, mut rig, first) = started().await;
    repository.write("a.toml", "# 2\n");
    let second = repository.push();
    rig.look();
    rig.until_at(&second).await;
    rig.news();

    repository.git(&["reset", "-q", "--hard", &first]);
    repository.write("a.toml", "# another 2\n");
    let other = repository.push();
    rig.look();
    rig.until_at(&other).await;
    assert_eq!(rig.text("a.toml"), "# another 2\n");
    let switched = |from: &str, to: &str| News::Switched {
        from: Some(from.to_owned()),
        to: to.to_owned(),
        history: CommitRelation::Rewritten,
    };
    assert_eq!(rig.news(), [switched(&second, &other)]);

    // Back to one that was there before, after a restart.
    rig.stop().await;
    repository.git(&["reset", "-q", "--hard", &first]);
    repository.git(&["push", "-q", "--force", "origin", "HEAD:main"]);
    rig.start();
    rig.until_at(&first).await;
    assert_eq!(rig.news(), [switched(&other, &first)]);
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_missing_changes_nothing() {
    let repository = Repository::empty();
    let mut rig = Rig::new(&repository.url());
    rig.options.path = "providers.d".into();
    rig.start();
    rig.until_failing("branch main does not exist").await;
    assert!(!rig.is_ready());

    repository.write("README", "no manifests here\n");
    let bare = repository.push();
    rig.until_failing("has no directory providers.d").await;
    // A link is no directory: it would lead out of what was asked for.
    repository.write("elsewhere/a.toml", "# no\n");
    std::os::unix::fs::symlink("elsewhere", repository.work().join("providers.d")).unwrap();
    repository.push();
    rig.until_failing("has no directory providers.d").await;
    fs::remove_file(repository.work().join("providers.d")).unwrap();
    repository.write("providers.d/README", "none here either\n");
    repository.push();
    rig.until_failing("holds no manifest").await;
    assert!(!rig.is_ready());

    repository.write("providers.d/a.toml", "# 1\n");
    let good = repository.push();
    rig.look();
    rig.until_at(&good).await;
    assert_eq!(rig.text("a.toml"), "# 1\n");
    assert!(!rig.current().join("elsewhere").exists());

    for (reset, words) in [(&bare, "has no directory"), (&good, "")] {
        repository.git(&["push", "-q", "--force", "origin", &format!("{reset}:main")]);
        if words.is_empty() {
            rig.look();
            rig.until_at(&good).await;
        } else {
            rig.until_failing(words).await;
        }
        assert_eq!(rig.text("a.toml"), "# 1\n");
    }
    // The branch goes, the repository goes, both come back.
    repository.delete_branch("main");
    rig.until_failing("branch main does not exist").await;
    let away = repository.dir.path().join("away");
    fs::rename(repository.bare(), &away).unwrap();
    rig.until_failing("git ls-remote failed").await;
    assert_eq!(rig.text("a.toml"), "# 1\n");
    fs::rename(away, repository.bare()).unwrap();
    repository.write("providers.d/a.toml", "# 2\n");
    let back = repository.push();
    rig.look();
    rig.until_at(&back).await;
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_begins_with_the_last_tree_even_without_the_remote() {
    let (repository, mut rig, first) = started().await;
    rig.stop().await;
    let away = repository.dir.path().join("away");
    fs::rename(repository.bare(), &away).unwrap();
    rig.start();
    rig.until("ready", Rig::is_ready).await;
    assert_eq!(commit_of(&rig.current()), Some(first));
    assert_eq!(rig.text("a.toml"), "# 1\n");
    rig.stop().await;

    // Another branch is another source: its tree is waited for.
    rig.options.reference = Reference::Branch("other".to_owned());
    rig.start();
    rig.until_failing("git ls-remote failed").await;
    assert!(!rig.is_ready());
    fs::rename(away, repository.bare()).unwrap();
    repository.write("a.toml", "# other\n");
    let other = repository.commit();
    repository.git(&["push", "-q", "origin", "HEAD:other"]);
    rig.look();
    rig.until_at(&other).await;
    // What is not followed any more is cleared away.
    rig.until("cleared", |rig| fs::read_dir(rig.state.path().join("git")).unwrap().count() == 1).await;
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tags_are_followed_through_their_commits() {
    let (repository, mut rig, _) = started().await;
    rig.stop().await;
    rig.options.reference = Reference::Tag("live".to_owned());
    repository.git(&["tag", "live"]);
    repository.git(&["push", "-q", "origin", "live"]);
    rig.start();
    let first = repository.git(&["rev-parse", "HEAD"]);
    rig.until_at(&first).await;
    repository.write("a.toml", "# 2\n");
    let second = repository.commit();
    repository.git(&["tag", "-f", "-a", "-m", "annotated", "live"]);
    repository.git(&["push", "-q", "-f", "origin", "live"]);
    rig.look();
    rig.until_at(&second).await;
    assert_eq!(rig.text("a.toml"), "# 2\n");
    // A tag of no commit.
    let blob = repository.git(&["rev-parse", "HEAD:a.toml"]);
    repository.git(&["tag", "-f", "live", &blob]);
    repository.git(&["push", "-q", "-f", "origin", "live"]);
    rig.until_failing("what is followed is not a commit").await;
    assert_eq!(rig.text("a.toml"), "# 2\n");
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_heads_branch_is_followed_where_none_is_named() {
    for format in ["sha1", "sha256"] {
        let repository = Repository::with_format(format);
        repository.write("a.toml", "# 1\n");
        let commit = repository.push();
        let mut rig = Rig::new(&repository.url());
        rig.options.reference = Reference::Head;
        rig.start();
        rig.until_at(&commit).await;
        rig.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn only_signed_commits_of_allowed_signers_are_applied() {
    let repository = Repository::empty();
    let (good, bad) = (repository.signer("good"), repository.signer("bad"));
    repository.write("a.toml", "# 1\n");
    let unsigned = repository.push();
    let mut rig = Rig::new(&repository.url());
    rig.options.allowed_signers = Some(repository.allow(&[&good]));
    rig.start();
    rig.until_failing("carries no signature").await;
    assert!(!rig.is_ready());
    assert!(matches!(&rig.news()[..], [News::Refused { commit, .. }] if *commit == unsigned));

    let push_signed = |key: &Path, text: &str| {
        repository.write("a.toml", text);
        let commit = repository.commit_with(&[&sign_with(key)]);
        repository.git(&["push", "-q", "--force", "origin", "HEAD:main"]);
        commit
    };
    let wrong = push_signed(&bad, "# wrong\n");
    rig.look();
    rig.until("refused", |rig| rig.report().error.is_some_and(|it| it.contains(&wrong))).await;
    assert!(!rig.is_ready());
    let first = push_signed(&good, "# 2\n");
    rig.look();
    rig.until_at(&first).await;
    rig.news();

    // Each of these is refused, once in the audit trail, and the last good one stays.
    let tampered = {
        let text = repository.git(&["cat-file", "commit", "HEAD"]).replace("a change", "another change");
        let file = repository.dir.path().join("commit");
        fs::write(&file, text + "\n").unwrap();
        repository.git(&["hash-object", "-t", "commit", "-w", file.to_str().unwrap()])
    };
    repository.git(&["push", "-q", "--force", "origin", &format!("{tampered}:main")]);
    for _ in 0..2 {
        rig.look();
        rig.until("refused", |rig| rig.report().error.is_some_and(|it| it.contains(&tampered))).await;
    }
    let wrong = push_signed(&bad, "# wrong again\n");
    rig.look();
    rig.until("refused", |rig| rig.report().error.is_some_and(|it| it.contains(&wrong))).await;
    assert_eq!(rig.text("a.toml"), "# 2\n");
    let refused: Vec<_> = rig
        .news()
        .into_iter()
        .map(|news| match news {
            News::Refused { commit, .. } => commit,
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(refused, [tampered, wrong.clone()]);
    // Its signer is allowed after all.
    rig.options.allowed_signers = Some(repository.allow(&[&good, &bad]));
    rig.look();
    rig.until_at(&wrong).await;
    rig.stop().await;

    // Not any more: the tree of the last run is not used either.
    repository.allow(&[&good]);
    rig.start();
    rig.until_failing("not signed by an allowed signer").await;
    assert!(!rig.is_ready());
    assert_eq!(commit_of(&rig.current()), None);
    let last = push_signed(&good, "# 3\n");
    rig.look();
    rig.until_at(&last).await;
    rig.stop().await;
    // And one that still is, is, without the remote.
    fs::remove_dir_all(repository.bare()).unwrap();
    rig.start();
    rig.until("ready", Rig::is_ready).await;
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_signed_history_only_goes_forward() {
    let repository = Repository::empty();
    let good = repository.signer("good");
    let push_signed = |text: &str| {
        repository.write("a.toml", text);
        let commit = repository.commit_with(&[&sign_with(&good)]);
        repository.git(&["push", "-q", "--force", "origin", "HEAD:main"]);
        commit
    };
    let first = push_signed("# 1\n");
    let second = push_signed("# 2\n");
    let mut rig = Rig::new(&repository.url());
    rig.options.allowed_signers = Some(repository.allow(&[&good]));
    rig.start();
    rig.until_at(&second).await;
    rig.news();

    // Back to an earlier one, a side branch of it, one of no common history: each signed, each refused.
    repository.git(&["push", "-q", "--force", "origin", &format!("{first}:main")]);
    rig.until_failing(&format!("commit {first} does not come after {second}")).await;
    repository.git(&["reset", "-q", "--hard", &first]);
    let aside = push_signed("# aside\n");
    rig.until_failing(&format!("commit {aside} does not come after {second}")).await;
    repository.git(&["checkout", "-q", "--orphan", "other"]);
    let foreign = push_signed("# foreign\n");
    rig.until_failing(&format!("commit {foreign} does not come after {second}")).await;
    assert_eq!(rig.text("a.toml"), "# 2\n");
    let refused: Vec<_> = (rig.news().into_iter())
        .map(|news| match news {
            News::Refused { commit, .. } => commit,
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(refused, [first, aside.clone(), foreign.clone()]);

    // Also after a restart without the mirror; what does come after is taken, its history is fetched again.
    rig.stop().await;
    for mirror in rig.names("mirror-") {
        fs::remove_dir_all(mirror).unwrap();
    }
    rig.options.allowed_signers = Some(repository.allow(&[&good]));
    rig.start();
    rig.until_failing("come after").await;
    repository.git(&["checkout", "-q", "-f", &second]);
    let third = push_signed("# 3\n");
    rig.look();
    rig.until_at(&third).await;
    rig.stop().await;

    // What is meant can be allowed.
    repository.git(&["push", "-q", "--force", "origin", &format!("{foreign}:main")]);
    rig.options.allow_rewritten = true;
    rig.start();
    rig.until_at(&foreign).await;
    assert!(matches!(rig.news().last(), Some(News::Switched { history: CommitRelation::Rewritten, .. })));
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_signed_tag_speaks_for_its_commit_and_under_its_own_name_only() {
    let repository = Repository::empty();
    let (good, bad) = (repository.signer("good"), repository.signer("bad"));
    repository.write("a.toml", "# 1\n");
    let first = repository.push();
    let tag = |name: &str, key: &Path| {
        repository.git(&[
            "-c",
            &format!("user.signingkey={}", key.display()),
            "tag",
            "-f",
            "-s",
            "-m",
            "x",
            name,
        ]);
    };
    let mut rig = Rig::new(&repository.url());
    rig.options.reference = Reference::Tag("live".to_owned());
    rig.options.allowed_signers = Some(repository.allow(&[&good]));
    repository.git(&["tag", "live"]);
    repository.git(&["push", "-q", "-f", "origin", "live"]);
    rig.start();
    rig.until_failing("carries no signature").await;
    tag("live", &bad);
    repository.git(&["push", "-q", "-f", "origin", "live"]);
    rig.until_failing("No principal matched").await;
    tag("old", &good);
    let old = repository.git(&["rev-parse", "refs/tags/old"]);
    repository.git(&["push", "-q", "-f", "origin", &format!("{old}:refs/tags/live")]);
    rig.until_failing("was not made for live").await;
    assert!(!rig.is_ready());
    tag("live", &good);
    repository.git(&["push", "-q", "-f", "origin", "live"]);
    rig.look();
    rig.until_at(&first).await;
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_in_the_repository_changes_bytes_or_leads_out() {
    let repository = Repository::empty();
    repository.write("a.toml", "# one\n# $Id$\n");
    let links =
        [("out.toml", "/etc/passwd"), ("up.toml", "../../../secret"), ("in.toml", "a.toml"), ("dir", "/etc")];
    for (name, target) in links {
        std::os::unix::fs::symlink(target, repository.work().join(name)).unwrap();
    }
    repository.commit();
    // Only now, so that it does not change what is committed.
    repository.write(
        ".gitattributes",
        "*.toml text eol=crlf ident filter=evil working-tree-encoding=UTF-16 export-ignore\n",
    );
    repository.git(&["add", ".gitattributes"]);
    // A submodule, without its repository.
    let module = "0123456789012345678901234567890123456789";
    repository.git(&["update-index", "--add", "--cacheinfo", &format!("160000,{module},module")]);
    repository.git(&["commit", "-q", "-m", "odd"]);
    repository.git(&["push", "-q", "origin", "HEAD:main"]);
    let commit = repository.git(&["rev-parse", "HEAD"]);
    let mut rig = Rig::new(&repository.url());
    rig.start();
    rig.until_at(&commit).await;
    assert_eq!(rig.text("a.toml"), "# one\n# $Id$\n");
    let scan = Directory::open(rig.current()).scan_all();
    let states: Vec<String> = scan.changed.iter().map(|(path, state)| format!("{path} {state:?}")).collect();
    assert_eq!(states.len(), 4, "{states:?}");
    assert!(states[0].starts_with("a.toml Text"), "{states:?}");
    assert!(states[1].starts_with("in.toml Text"), "{states:?}");
    assert!(
        states[2].starts_with("out.toml Unreadable") && states[3].starts_with("up.toml Unreadable"),
        "{states:?}"
    );
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn too_much_is_refused_before_it_is_written() {
    let (repository, mut rig, first) = started().await;
    rig.stop().await;
    rig.options.max_bytes = 1 << 20;
    rig.start();
    rig.until("ready", Rig::is_ready).await;
    // Compresses to nothing, unpacks to more than is allowed.
    let zeros = repository.work().join("zeros");
    fs::File::create(&zeros).unwrap().set_len(8 << 20).unwrap();
    repository.push();
    rig.until_failing("the directory of manifests is larger than 1 MiB").await;
    fs::remove_file(&zeros).unwrap();
    // Does not compress.
    let mut noise = vec![0; 4 << 20];
    std::io::Read::read_exact(&mut fs::File::open("/dev/urandom").unwrap(), &mut noise).unwrap();
    fs::write(repository.work().join("noise"), noise).unwrap();
    repository.push();
    rig.until_failing("larger than 1 MiB").await;
    assert_eq!(commit_of(&rig.current()), Some(first));
    assert_eq!(rig.text("a.toml"), "# 1\n");
    fs::remove_file(repository.work().join("noise")).unwrap();
    repository.write("a.toml", "# 2\n");
    let small = repository.push();
    rig.look();
    rig.until_at(&small).await;
    rig.until("cleared", |rig| rig.names("tmp-").is_empty()).await;
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broken_mirror_and_what_a_crash_leaves_mend_themselves() {
    let (repository, mut rig, _) = started().await;
    let mirror = |rig: &Rig| rig.names("mirror-").pop().unwrap();
    let breakages: [fn(&Path); 5] = [
        |mirror| {
            for pack in fs::read_dir(mirror.join("objects/pack")).unwrap().flatten() {
                fs::remove_file(pack.path()).unwrap();
            }
        },
        |mirror| fs::write(mirror.join("HEAD"), "nonsense").unwrap(),
        |mirror| fs::remove_dir_all(mirror).unwrap(),
        // Everything, with the tree in use.
        |mirror| fs::remove_dir_all(mirror.parent().unwrap()).unwrap(),
        |mirror| {
            for lock in ["shallow.lock", "config.lock", "packed-refs.lock", "refs/providerd/incoming.lock"] {
                fs::write(mirror.join(lock), "").unwrap();
            }
            fs::write(mirror.join("objects/pack/tmp_pack_x"), "half").unwrap();
        },
    ];
    for (round, breakage) in breakages.iter().enumerate() {
        breakage(&mirror(&rig));
        repository.write("a.toml", &format!("# after {round}\n"));
        let commit = repository.push();
        rig.look();
        rig.until_at(&commit).await;
        assert_eq!(rig.text("a.toml"), format!("# after {round}\n"));
    }
    rig.stop().await;
    // Half a checkout, half a link, no memory.
    let place = rig.place();
    fs::create_dir_all(place.join("tmp-x/tree")).unwrap();
    fs::create_dir_all(place.join("mirror-x")).unwrap();
    std::os::unix::fs::symlink("checkout-nowhere", place.join("current.new")).unwrap();
    fs::write(place.join("state.json"), "{ half").unwrap();
    rig.start();
    repository.write("a.toml", "# last\n");
    let commit = repository.push();
    rig.look();
    rig.until_at(&commit).await;
    assert_eq!((rig.names("mirror-").len(), rig.names("tmp-").len()), (1, 0));
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_pullers_do_not_share_a_directory() {
    let (_repository, rig, _) = started().await;
    let mut second = Rig { state: tempfile::tempdir().unwrap(), options: rig.options.clone(), running: None };
    second.start();
    tokio::time::timeout(Duration::from_secs(1), async {
        while !second.is_ready() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await
    .unwrap_err();
    second.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_place_of_another_user_is_left_alone() {
    if !nix::unistd::geteuid().is_root() {
        return;
    }
    let (_repository, mut rig, first) = started().await;
    rig.stop().await;
    std::os::unix::fs::chown(rig.place(), Some(12_345), None).unwrap();
    rig.start();
    tokio::time::timeout(
        Duration::from_secs(1),
        rig.running.as_mut().unwrap().pulled.ready.wait_for(|it| *it),
    )
    .await
    .unwrap_err();
    assert_eq!(commit_of(&rig.current()), Some(first));
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_fails_in_any_way_changes_nothing() {
    let repository = Repository::empty();
    repository.write("a.toml", "# 1\n");
    let first = repository.push();
    let host = Host::start(repository.dir.path(), TOKEN);
    let token = repository.dir.path().join("token");
    fs::write(&token, "not-the-git-token\n").unwrap();
    let mut rig = Rig::new(&host.url());
    rig.options.token = Some(token.clone());
    rig.options.timeout = Duration::from_secs(3);
    rig.start();
    rig.until_failing("Authentication failed").await;
    let error = rig.report().error.unwrap();
    assert!(!error.contains("not-the-git-token") && error.contains("hint"), "{error}");
    fs::write(&token, "").unwrap();
    rig.until_failing("cannot be used: it is empty").await;
    // A new token is taken without a restart.
    fs::write(&token, TOKEN).unwrap();
    rig.look();
    rig.until_at(&first).await;

    let mut text = String::from("# 2\n");
    for line in 0..20_000 {
        text += &format!("# {}\n", line * 7919 % 104_729);
    }
    repository.write("b.toml", &text);
    let second = repository.push();
    for (mode, words) in [
        (Mode::Down, "git ls-remote failed"),
        (Mode::Redirect, "redirects are not followed"),
        (Mode::Break, "git fetch failed"),
        (Mode::Stall, "git fetch took longer than 3s"),
    ] {
        host.set(mode);
        rig.until_failing(words).await;
        assert_eq!(commit_of(&rig.current()), Some(first.clone()), "{mode:?}");
        assert!(!rig.current().join("b.toml").exists(), "{mode:?}");
    }
    host.set(Mode::Serve);
    rig.look();
    rig.until_at(&second).await;
    assert_eq!(rig.text("b.toml"), text);

    // A stop in the middle of a fetch is at once, and takes git and its helpers along.
    repository.write("b.toml", &text.replace("# 1", "# 2"));
    repository.push();
    host.set(Mode::Stall);
    let before = host.packs();
    rig.look();
    rig.until("stalled", |_| host.packs() > before).await;
    let stopped = Instant::now();
    rig.stop().await;
    assert!(stopped.elapsed() < Duration::from_secs(1), "{:?}", stopped.elapsed());
    let of_host = |entry: fs::DirEntry| {
        let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&line).contains(&host.url())
    };
    rig.until("ended", |_| !fs::read_dir("/proc").unwrap().flatten().any(of_host)).await;
}
