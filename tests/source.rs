//! The manifest directory with real files and real file events: what people, editors and tools do to it.
//!
//! Every manifest written here ends with a marker line, and the rig fails as soon as a text without it is read:
//! that would be half a file taken for a whole one.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    io::Write,
    os::unix::fs::{PermissionsExt, symlink},
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use providerd::source::{Activation, Directory, FileState, Look, Options, Scan, Watcher, revision};
use tempfile::TempDir;

type Outcome = Result<(), Box<dyn std::error::Error>>;

const MARKER: &str = "# end\n";

/// Far longer than anything should take, on a machine that does other things too.
const DEADLINE: Duration = Duration::from_secs(20);

const SETTLE: Duration = Duration::from_millis(400);

fn whole(body: &str) -> String {
    format!("{body}\n{MARKER}")
}

fn put(path: &Path, body: &str) -> std::io::Result<()> {
    fs::write(path, whole(body))
}

/// A consumer as the reconciler is one: believes texts at once and removals only when things have settled.
struct Rig {
    watcher: Watcher,
    directory: Directory,
    /// What is declared, by path.
    state: BTreeMap<String, String>,
    missing: BTreeSet<String>,
    /// Every path that was ever believed to be removed.
    pruned: Vec<String>,
    unreadable: BTreeMap<String, &'static str>,
    secrets: Vec<PathBuf>,
    activations: Vec<Activation>,
    problem: Option<&'static str>,
}

impl Rig {
    fn start(root: &Path) -> Self {
        Self::with(root, Options { settle: SETTLE, ..Options::default() })
    }

    fn with(root: &Path, options: Options) -> Self {
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

    fn digest(&mut self, activation: Activation) {
        self.directory.set_unfinished(activation.unfinished.clone());
        let scan = match &activation.look {
            Look::Everything => self.directory.scan_all(),
            Look::Paths { manifests, secrets } => {
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
    async fn until(&mut self, what: &str, condition: impl Fn(&Self) -> bool) {
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

    async fn until_is(&mut self, path: &str, body: &str) {
        self.until(&format!("{path} = {body}"), |rig| rig.state.get(path).is_some_and(|text| text == body))
            .await;
    }

    /// Digests activations until a settled one has come after this call.
    async fn settle(&mut self) {
        let seen = self.activations.len();
        self.until("settled", |rig| rig.activations.iter().skip(seen).any(|activation| activation.settled))
            .await;
    }
}

fn temporary() -> std::io::Result<TempDir> {
    tempfile::tempdir()
}

// ---------------------------------------------------------------- reading

/// What one file in the directory is reported as.
fn check_file(make: impl FnOnce(&Path) -> std::io::Result<()>, expected: Result<&str, &str>) -> Outcome {
    let base = temporary()?;
    let root = base.path().join("root");
    fs::create_dir(&root)?;
    put(&root.join("other.toml"), "x")?;
    make(&root)?;
    let scan = Directory::open(&root).scan_all();
    let found = scan.changed.iter().find(|(path, _)| path.starts_with("a"));
    match (found, expected) {
        (Some((_, FileState::Text(text))), Ok(body)) => assert_eq!(text, body),
        (Some((path, FileState::Unreadable { code, reason })), Err(word)) => {
            assert_eq!(*code, word);
            assert!(reason.contains(&**path), "{reason} names {path}");
        }
        (found, expected) => panic!("expected {expected:?}, found {found:?}"),
    }
    assert!(scan.changed.iter().any(|(path, _)| &**path == "other.toml"), "others are read all the same");
    Ok(())
}

#[test]
fn files_are_read_or_refused_by_name() -> Outcome {
    let large = |extra: usize| "#".repeat(1024 * 1024 + extra);
    check_file(|root| fs::write(root.join("a.toml"), ""), Ok(""))?;
    check_file(|root| fs::write(root.join("a.toml"), "é = 1"), Ok("é = 1"))?;
    check_file(|root| fs::write(root.join("a.toml"), large(0)), Ok(&large(0)))?;
    check_file(|root| fs::write(root.join("a.toml"), large(1)), Err("too-large"))?;
    check_file(|root| fs::write(root.join("a.toml"), b"a = \"\xff\""), Err("not-utf8"))?;
    check_file(|root| symlink("/etc/hostname", root.join("a.toml")), Err("symlink-escape"))?;
    check_file(|root| symlink("../outside.toml", root.join("a.toml")), Err("symlink-escape"))?;
    check_file(|root| symlink("/dev/zero", root.join("a.toml")), Err("symlink-escape"))?;
    check_file(|root| symlink("/proc/self/fd/0", root.join("a.toml")), Err("symlink-escape"))?;
    check_file(|root| symlink("a.toml", root.join("a.toml")), Err("symlink-loop"))?;
    check_file(|root| symlink("gone.toml", root.join("a.toml")), Err("symlink-dangling"))?;
    check_file(|root| fs::write(root.join(os(b"a\xff.toml")), ""), Err("name-not-utf8"))?;
    Ok(())
}

fn os(bytes: &[u8]) -> &std::ffi::OsStr {
    std::os::unix::ffi::OsStrExt::from_bytes(bytes)
}

#[test]
fn symlinks_inside_the_directory_are_followed() -> Outcome {
    let inside = |target: &'static str| {
        move |root: &Path| {
            fs::create_dir(root.join(".hidden"))?;
            put(&root.join(".hidden/a.toml"), "inside")?;
            symlink(target.replace("ROOT", &root.display().to_string()), root.join("a.toml"))
        }
    };
    check_file(inside(".hidden/a.toml"), Ok("inside\n# end\n"))?;
    check_file(inside("./.hidden/../.hidden/a.toml"), Ok("inside\n# end\n"))?;
    check_file(inside("ROOT/.hidden/a.toml"), Ok("inside\n# end\n"))?;
    check_file(inside("../root/.hidden/a.toml"), Err("symlink-escape"))?;
    Ok(())
}

#[test]
fn what_is_no_file_is_refused_without_blocking() -> Outcome {
    let fifo = |root: &Path| {
        let path = root.join("a.toml");
        let made = Command::new("mkfifo").arg(&path).status()?;
        assert!(made.success());
        Ok(())
    };
    check_file(fifo, Err("not-a-file"))?;
    check_file(
        |root| {
            fifo(root)?;
            fs::rename(root.join("a.toml"), root.join(".fifo"))?;
            symlink(".fifo", root.join("a.toml"))
        },
        Err("not-a-file"),
    )?;
    check_file(
        |root| std::os::unix::net::UnixListener::bind(root.join("a.toml")).map(drop),
        Err("not-a-file"),
    )
}

#[test]
fn a_device_is_refused_without_opening_it() -> Outcome {
    let base = temporary()?;
    let node = base.path().join("probe");
    let made = Command::new("mknod")
        .arg(&node)
        .args(["c", "1", "5"])
        .stderr(std::process::Stdio::null())
        .status()?;
    if !made.success() {
        eprintln!("skipped: making a device node needs privileges that this run does not have");
        return Ok(());
    }
    check_file(
        |root| Command::new("mknod").arg(root.join("a.toml")).args(["c", "1", "5"]).status().map(drop),
        Err("not-a-file"),
    )
}

#[test]
fn a_file_that_may_not_be_read_is_reported() -> Outcome {
    let forbid = |root: &Path| {
        put(&root.join("a.toml"), "secret")?;
        fs::set_permissions(root.join("a.toml"), fs::Permissions::from_mode(0))
    };
    let base = temporary()?;
    forbid(base.path())?;
    if File::open(base.path().join("a.toml")).is_ok() {
        eprintln!("skipped: root reads everything");
        return Ok(());
    }
    check_file(forbid, Err("permission-denied"))
}

#[test]
fn only_visible_manifests_count_in_any_depth() -> Outcome {
    let base = temporary()?;
    let root = base.path();
    for dir in ["a/b/c", ".git", "x.toml", ".hidden/deep", "lost+found"] {
        fs::create_dir_all(root.join(dir))?;
    }
    let expected = ["a/b/c/deep.toml", "a/one.toml", "top.toml", "x.toml/inside.toml"];
    let others = [
        ".git/config.toml",
        ".hidden/deep/x.toml",
        ".top.toml.swp",
        "top.toml~",
        "#top.toml#",
        ".#top.toml",
        "4913",
        "README.md",
        "lost+found/x.toml",
        ".toml",
    ];
    for name in expected.iter().chain(&others) {
        put(&root.join(name), name)?;
    }
    let mut directory = Directory::open(root);
    let scan = directory.scan_all();
    assert_eq!(scan.changed.iter().map(|(path, _)| &**path).collect::<Vec<_>>(), expected);
    assert_eq!(scan.total, expected.len());
    // Hints at what does not count find nothing.
    let hints =
        others.iter().map(PathBuf::from).chain(["../etc/passwd".into(), "/etc/passwd".into()]).collect();
    assert!(directory.scan_paths(&hints).is_unchanged());
    Ok(())
}

#[test]
fn cycles_diamonds_and_endless_depth_end() -> Outcome {
    let base = temporary()?;
    let root = base.path();
    fs::create_dir_all(root.join("real"))?;
    put(&root.join("real/a.toml"), "a")?;
    symlink(".", root.join("self"))?;
    symlink("../real", root.join("real/again"))?;
    symlink("/", root.join("slash"))?;
    // 2^20 paths for a walk that does not remember where it was.
    for level in 0..20 {
        let dir = root.join(format!("level{level:02}"));
        fs::create_dir(&dir)?;
        put(&dir.join("m.toml"), "m")?;
        for link in ["l", "r"] {
            symlink(format!("../level{:02}", level + 1), dir.join(link))?;
        }
    }
    let scan = Directory::open(root).scan_all();
    assert_eq!(scan.total, 21);
    assert_eq!(scan.problem, None);

    let mut deep = root.join("deep");
    for _ in 0..100 {
        deep.push("d");
    }
    fs::create_dir_all(&deep)?;
    put(&deep.join("bottom.toml"), "never read")?;
    let scan = Directory::open(root).scan_all();
    assert_eq!(scan.total, 21);
    assert_eq!(scan.problem.map(|problem| problem.code), Some("directory-too-deep"));
    Ok(())
}

#[test]
fn a_directory_out_of_sight_removes_nothing() -> Outcome {
    let base = temporary()?;
    let root = base.path().join("root");
    let mut directory = Directory::open(&root);
    let code = |scan: &Scan| scan.problem.as_ref().map(|problem| problem.code);
    assert_eq!(code(&directory.scan_all()), Some("directory-missing"));
    fs::write(&root, "")?;
    assert_eq!(code(&directory.scan_all()), Some("not-a-directory"));
    fs::remove_file(&root)?;
    fs::create_dir(&root)?;
    assert_eq!(code(&directory.scan_all()), Some("directory-empty"));

    put(&root.join("a.toml"), "a")?;
    put(&root.join("b.toml"), "b")?;
    assert_eq!(directory.scan_all().changed.len(), 2);
    fs::rename(&root, base.path().join("away"))?;
    let scan = directory.scan_all();
    assert_eq!((code(&scan), scan.removed.len(), scan.total), (Some("directory-missing"), 0, 2));
    fs::create_dir(&root)?;
    let hints = ["a.toml".into(), "b.toml".into()].into();
    let scan = directory.scan_paths(&hints);
    assert_eq!((code(&scan), scan.removed.len()), (Some("directory-empty"), 0));
    // Its return is no news, but what is missing then is missing.
    fs::remove_dir(&root)?;
    fs::rename(base.path().join("away"), &root)?;
    assert!(directory.scan_all().is_unchanged());
    fs::remove_file(root.join("b.toml"))?;
    assert_eq!(directory.scan_all().removed, ["b.toml".into()]);
    fs::remove_file(root.join("a.toml"))?;
    let scan = directory.scan_paths(&["a.toml".into()].into());
    assert_eq!((code(&scan), scan.removed.len()), (Some("directory-empty"), 0));
    Ok(())
}

#[test]
fn a_partial_look_sees_what_a_whole_one_sees() -> Outcome {
    let base = temporary()?;
    let root = base.path();
    fs::create_dir_all(root.join("kept/sub"))?;
    fs::create_dir_all(root.join("moved/sub"))?;
    for path in ["kept/a.toml", "kept/sub/b.toml", "moved/c.toml", "moved/sub/d.toml", "e.toml"] {
        put(&root.join(path), path)?;
    }
    let mut directory = Directory::open(root);
    directory.scan_all();
    let names = |scan: &Scan| {
        let changed: Vec<String> = scan.changed.iter().map(|(path, _)| path.to_string()).collect();
        let removed: Vec<String> = scan.removed.iter().map(ToString::to_string).collect();
        (changed, removed)
    };
    let owned = |names: &[&str]| names.iter().map(ToString::to_string).collect::<Vec<_>>();

    fs::rename(root.join("moved"), root.join("new"))?;
    put(&root.join("e.toml"), "changed")?;
    let scan = directory.scan_paths(&["moved".into(), "new".into(), "e.toml".into()].into());
    let expected =
        (owned(&["e.toml", "new/c.toml", "new/sub/d.toml"]), owned(&["moved/c.toml", "moved/sub/d.toml"]));
    assert_eq!(names(&scan), expected);

    // A file in directories that nobody mentioned brings all of them.
    fs::create_dir_all(root.join("x/y/z"))?;
    put(&root.join("x/first.toml"), "1")?;
    put(&root.join("x/y/z/last.toml"), "2")?;
    let scan = directory.scan_paths(&["x/y/z/last.toml".into()].into());
    assert_eq!(names(&scan), (owned(&["x/first.toml", "x/y/z/last.toml"]), vec![]));

    fs::remove_file(root.join("kept/a.toml"))?;
    let scan = directory.scan_paths(&[root.join("kept/a.toml")].into());
    assert_eq!(names(&scan), (vec![], owned(&["kept/a.toml"])));
    assert!(directory.scan_all().is_unchanged(), "the whole look finds nothing more");
    Ok(())
}

#[test]
fn the_same_size_and_second_do_not_hide_a_change() -> Outcome {
    let base = temporary()?;
    let path = base.path().join("a.toml");
    let mut directory = Directory::open(base.path());
    for round in 0..200 {
        fs::write(&path, format!("n = {:03}", round))?;
        let scan = directory.scan_paths(&["a.toml".into()].into());
        let expected = FileState::Text(format!("n = {round:03}"));
        assert_eq!(scan.changed, [("a.toml".into(), expected)], "round {round}");
    }
    Ok(())
}

#[test]
fn a_file_somebody_is_writing_stays_as_it_was() -> Outcome {
    let base = temporary()?;
    put(&base.path().join("a.toml"), "old")?;
    put(&base.path().join("b.toml"), "old")?;
    let mut directory = Directory::open(base.path());
    directory.scan_all();
    fs::write(base.path().join("a.toml"), "half")?;
    fs::write(base.path().join("new.toml"), "half")?;
    let unfinished: BTreeSet<PathBuf> = ["a.toml".into(), "new.toml".into()].into();
    directory.set_unfinished(unfinished.clone());
    assert!(directory.scan_all().is_unchanged());
    assert!(directory.scan_paths(&unfinished).is_unchanged());
    directory.set_unfinished(BTreeSet::new());
    assert_eq!(directory.scan_all().changed.len(), 2);
    Ok(())
}
