//! Looking at the directory, without a watcher.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    os::unix::fs::{PermissionsExt, symlink},
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use providerd::source::{Directory, FileState, Scan};

use super::rig::*;

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
        fs::set_permissions(root.join("a.toml"), fs::Permissions::from_mode(0o000))
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
fn a_subdirectory_that_may_not_be_read_hides_its_files_without_removing_them() -> Outcome {
    let base = temporary()?;
    let closed = base.path().join("closed");
    fs::create_dir_all(closed.join("sub"))?;
    put(&closed.join("sub/a.toml"), "a")?;
    put(&base.path().join("b.toml"), "b")?;
    let mut directory = Directory::open(base.path());
    assert_eq!(directory.scan_all().total, 2);
    fs::set_permissions(&closed, fs::Permissions::from_mode(0o000))?;
    if fs::read_dir(&closed).is_ok() {
        eprintln!("skipped: root reads everything");
        return Ok(());
    }
    put(&base.path().join("b.toml"), "changed")?;
    for scan in [directory.scan_all(), directory.scan_paths(&["closed/sub/a.toml".into()].into())] {
        assert_eq!(scan.problem.map(|problem| problem.code), Some("subdirectory-unreadable"));
        assert_eq!((scan.removed.len(), scan.total), (0, 2));
    }
    fs::set_permissions(&closed, fs::Permissions::from_mode(0o755))?;
    assert!(directory.scan_paths(&["closed".into()].into()).is_unchanged());
    Ok(())
}

#[test]
fn too_much_is_refused_as_a_whole() -> Outcome {
    let base = temporary()?;
    let root = base.path().join("root");
    fs::create_dir(&root)?;
    put(&root.join("a.toml"), "a")?;
    let mut directory = Directory::open(&root);
    assert_eq!(directory.scan_all().total, 1);
    let refused = |directory: &mut Directory, code: &str| {
        let scan = directory.scan_all();
        assert_eq!(scan.problem.map(|problem| problem.code), Some(code));
        assert_eq!((scan.changed.len(), scan.removed.len(), scan.total), (0, 0, 1));
    };
    // One file of a mebibyte under 300 names, without taking the space.
    let large = base.path().join("large");
    fs::write(&large, "#".repeat(1024 * 1024))?;
    fs::create_dir(root.join("large"))?;
    for index in 0..300 {
        fs::hard_link(&large, root.join(format!("large/{index}.toml")))?;
    }
    refused(&mut directory, "too-many-bytes");
    fs::remove_dir_all(root.join("large"))?;
    fs::create_dir(root.join("many"))?;
    for index in 0..100_000 {
        if index % 50_000 == 0 {
            fs::write(base.path().join(format!("small{index}")), "")?;
        }
        let small = base.path().join(format!("small{}", index / 50_000 * 50_000));
        fs::hard_link(small, root.join(format!("many/{index}.toml")))?;
    }
    refused(&mut directory, "too-many-files");
    fs::remove_dir_all(root.join("many"))?;
    assert!(directory.scan_all().is_unchanged());
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

#[test]
#[ignore = "measures: run alone, on an idle machine, with --release"]
fn cost_of_ten_thousand_files() -> Outcome {
    let base = temporary()?;
    for index in 0..10_000 {
        let dir = base.path().join(format!("d{:02}", index % 20));
        fs::create_dir_all(&dir)?;
        fs::write(dir.join(format!("{index}.toml")), "#".repeat(1024))?;
    }
    // Past the time in which a stamp is not trusted.
    let young = |path: &Path| fs::metadata(path).and_then(|meta| meta.modified()).map(|time| time.elapsed());
    while young(&base.path().join("d19/9999.toml"))?.is_ok_and(|age| age < Duration::from_millis(100)) {
        std::thread::yield_now();
    }
    let time = |what: &str, directory: &mut Directory, hints: Option<&BTreeSet<PathBuf>>| {
        let start = Instant::now();
        let scan = match hints {
            Some(hints) => directory.scan_paths(hints),
            None => directory.scan_all(),
        };
        let took = start.elapsed();
        eprintln!("{what}: {took:?} ({} changed of {})", scan.changed.len(), scan.total);
        took
    };
    let _warm = Directory::open(base.path()).scan_all();
    let mut directory = Directory::open(base.path());
    time("first look", &mut directory, None);
    time("second look", &mut directory, None);
    time("third look", &mut directory, None);
    let hints = [PathBuf::from("d07/7.toml")].into();
    fs::write(base.path().join("d07/7.toml"), "changed")?;
    time("one changed file", &mut directory, Some(&hints));
    time("one unchanged file", &mut directory, Some(&hints));
    Ok(())
}
