//! The arrows of `src/lib.rs`, as far as text shows them: who may name what.

use std::{
    fs,
    path::{Path, PathBuf},
};

/// Modules that decide: values in, values out. A name that ends in `/` is a directory, others are files
/// without their ending.
const PURE: [&str; 13] = [
    "src/discover/compare",
    "src/discover/decide",
    "src/discover/edit",
    "src/import",
    "src/model",
    "src/routing",
    "src/manifest/",
    "src/plan/",
    "src/health/state",
    "src/health/impairment",
    "src/health/protocol/",
    "src/health/rollup",
    "src/health/share",
];

/// What pure modules do not name: the runtime, the database, the network, the file system, the clock.
const IMPURE: [&str; 18] = [
    "tokio::",
    "sqlx::",
    "reqwest::",
    "axum::",
    "std::fs",
    "fs::read",
    "fs::write",
    "File::open",
    "std::net::Tcp",
    "std::env",
    "std::process",
    "std::thread",
    "SystemTime::now",
    "Instant::now",
    "Utc::now",
    "Local::now",
    "getrandom",
    "now_v7",
];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Files below `dir` for which `wanted` holds, as paths from the root.
fn files(dir: &str, wanted: impl Fn(&str) -> bool) -> Vec<String> {
    let mut found = Vec::new();
    let mut open = vec![root().join(dir)];
    while let Some(dir) = open.pop() {
        let Ok(entries) = fs::read_dir(&dir) else { continue };
        for path in entries.map(|entry| entry.unwrap().path()) {
            let relative = path.strip_prefix(root()).unwrap().to_str().unwrap().to_owned();
            if path.is_dir() {
                open.push(path);
            } else if wanted(&relative) {
                found.push(relative);
            }
        }
    }
    found.sort();
    found
}

fn rust(path: &str) -> bool {
    path.ends_with(".rs")
}

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap()
}

/// The lines of a file that are code of the program: no comments, and nothing from the tests at its end.
fn code(path: &str) -> Vec<(usize, String)> {
    let text = read(path);
    let mut lines = Vec::new();
    let mut all = text.lines().enumerate().peekable();
    while let Some((at, line)) = all.next() {
        if line.trim() == "#[cfg(test)]" {
            let next = all.peek().map_or("", |(_, next)| next.trim());
            if next.starts_with("mod ") && next.ends_with('{') {
                break;
            }
            all.next();
            continue;
        }
        let trimmed = line.trim_start();
        if !trimmed.starts_with("//") {
            let code = trimmed.split(" // ").next().unwrap_or_default();
            lines.push((at + 1, code.to_owned()));
        }
    }
    lines
}

/// Does `code` name `word`, and not merely a longer word that ends in it?
fn names(code: &str, word: &str) -> bool {
    code.match_indices(word)
        .any(|(at, _)| !code[..at].ends_with(|before: char| before.is_alphanumeric() || before == '_'))
}

/// Places in `paths` whose code names one of `words`.
fn offences(paths: &[String], words: &[&str]) -> Vec<String> {
    let mut found = Vec::new();
    for path in paths {
        for (line, code) in code(path) {
            for word in words.iter().filter(|word| names(&code, word)) {
                found.push(format!("{path}:{line} names {word}"));
            }
        }
    }
    found
}

fn none(offences: Vec<String>, why: &str) {
    assert!(offences.is_empty(), "{why}:\n{}", offences.join("\n"));
}

#[test]
fn pure_modules_touch_nothing() {
    let is_pure = |path: &str| {
        PURE.iter().any(|module| match module.strip_suffix('/') {
            Some(dir) => path.strip_prefix(dir).is_some_and(|rest| rest.starts_with('/')),
            None => path.strip_prefix(module).is_some_and(|rest| rest == ".rs" || rest.starts_with('/')),
        })
    };
    let pure = files("src", |path| rust(path) && is_pure(path));
    assert!(pure.iter().any(|path| path == "src/model.rs"), "{pure:?}");
    assert!(pure.iter().any(|path| path == "src/plan/mod.rs"), "{pure:?}");
    none(offences(&pure, &IMPURE), "pure modules take values, the time included, and return values");
}

#[test]
fn only_the_store_knows_sql() {
    let others = files("src", |path| rust(path) && !path.starts_with("src/store"));
    none(offences(&others, &["sqlx::"]), "sqlx appears only in src/store");
}

#[test]
fn only_the_supervisor_spawns_tasks() {
    let others = files("src", |path| rust(path) && path != "src/lifecycle.rs");
    none(
        offences(&others, &["tokio::spawn", "tokio::task::spawn(", "task::spawn(", "JoinSet"]),
        "a task nobody watches may end unnoticed; use lifecycle::Supervisor",
    );
}

#[test]
fn unsafe_code_is_in_few_files() {
    // Between fork and exec, and where the environment is wiped before the first thread.
    let is_trusted = |path: &str| {
        path.starts_with("src/embedded/") || matches!(path, "src/secret/harden.rs" | "src/memory.rs")
    };
    let others = files("src", |path| rust(path) && !is_trusted(path));
    none(offences(&others, &["unsafe {", "unsafe fn", "unsafe impl"]), "unsafe code has its few places");
}

#[test]
fn nothing_holds_up_the_runtime() {
    // The embedded server is driven by a thread of its own.
    let others = files("src", |path| rust(path) && !path.starts_with("src/embedded/"));
    none(offences(&others, &["thread::sleep"]), "await tokio::time::sleep instead");
}

#[test]
fn every_module_says_what_it_is_for() {
    let silent: Vec<String> = files("src", |path| rust(path) && path != "src/main.rs")
        .into_iter()
        .filter(|path| !read(path).starts_with("//! "))
        .collect();
    none(silent, "a module opens with its job, what is not its job, and its invariant");
}

#[test]
fn only_published_documents_are_cited() {
    let mut texts = files("src", rust);
    texts.extend(files("tests", rust));
    for dir in ["docs", "scripts", "systemd", "migrations", "providers.d", ".ci"] {
        texts.extend(files(dir, |_| true));
    }
    texts.extend(["README.md", "CHANGELOG.md"].map(str::to_owned));
    let mut offences = Vec::new();
    for path in texts {
        let Ok(text) = fs::read_to_string(root().join(&path)) else { continue };
        for (at, line) in text.lines().enumerate() {
            if rust(&path) && !line.trim_start().starts_with("//") {
                continue;
            }
            let words = line.split(|c: char| !(c.is_alphanumeric() || "-_./:".contains(c)));
            for word in words.filter(|word| word.ends_with(".md") && !word.contains("://")) {
                if !exists_for(&path, word) {
                    offences.push(format!("{path}:{} cites {word}", at + 1));
                }
            }
        }
    }
    none(offences, "a document that is cited stands in the repository");
}

/// A document is cited from the root, from where the citing file stands, or by its bare name.
fn exists_for(citing: &str, cited: &str) -> bool {
    let beside: PathBuf = root().join(citing).with_file_name(cited);
    root().join(cited).exists() || beside.exists() || root().join("docs").join(cited).exists()
}

#[test]
fn no_path_of_one_machine_is_named() {
    // Written in halves, so that this file does not find itself.
    let words = [concat!("/wo", "rk/")];
    let mut offences = Vec::new();
    for dir in ["src", "docs", "tests", "scripts", "systemd", "migrations", "providers.d", ".ci"] {
        for path in files(dir, |_| true) {
            let Ok(text) = fs::read_to_string(root().join(&path)) else { continue };
            for (at, line) in text.lines().enumerate() {
                for word in words.iter().filter(|word| line.contains(**word)) {
                    offences.push(format!("{path}:{} names {word}", at + 1));
                }
            }
        }
    }
    none(offences, "the repository is the same on every machine");
}

#[test]
fn the_check_itself_sees() {
    assert!(names("use tokio::time;", "tokio::"));
    assert!(!names("my_tokio::x", "tokio::"));
    assert!(!names("let xInstant::now", "Instant::now"));
    let lines = code("src/lifecycle.rs");
    assert!(lines.iter().any(|(_, line)| names(line, "tokio::spawn")));
    assert!(!lines.iter().any(|(_, line)| line.contains("start_paused")), "tests are left out");
    assert!(!lines.iter().any(|(_, line)| line.starts_with("//")), "comments are left out");
}
