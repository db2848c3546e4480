//! The arrows of `src/lib.rs`, as far as text shows them: who may name what.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

/// The rooms of the house by floor, the lowest first. A room names rooms of lower floors only, so there is no circle.
/// Folders of `crates/` and of `src/` are rooms, and so are the files of `src/` that stand alone.
const FLOORS: [&[&str]; 12] = [
    &["provider", "embedded"],
    &["catalog", "net"],
    &["gateway", "config", "metrics", "secret", "store", "edit"],
    &["destination", "litellm"],
    &["source", "process", "usage"],
    &["checks", "backend", "loader"],
    &["reconcile", "dataplane"],
    &["discover", "status"],
    &["admin"],
    &["daemon"],
    &["cli"],
    &["lib", "main"],
];

/// Crates that are pure by what they may depend on.
const PURE_CRATES: [&str; 2] = ["provider", "catalog"];

/// Where tasks are spawned: the supervisor, and the gateway, whose accept loop and whose answers that are read on own
/// their tasks in sets that end with them.
const SPAWNERS: [&str; 3] =
    ["src/process/lifecycle.rs", "crates/gateway/src/accept.rs", "crates/gateway/src/serve.rs"];

/// What a pure crate must not depend on.
const IMPURE_CRATES: [&str; 9] =
    ["tokio", "tokio-util", "sqlx", "reqwest", "hyper", "axum", "notify", "rustix", "getrandom"];

/// Modules beside the pure crates that decide: values in, values out. A name that ends in `/` is a directory, others are
/// files without their ending.
const PURE: [&str; 29] = [
    "crates/catalog/",
    "crates/provider/",
    "crates/gateway/src/allow",
    "crates/gateway/src/ask",
    "crates/gateway/src/course",
    "crates/gateway/src/decide",
    "crates/gateway/src/error",
    "crates/gateway/src/explain",
    "crates/gateway/src/guard",
    "crates/gateway/src/learned",
    "crates/gateway/src/limit",
    "crates/gateway/src/payload",
    "crates/gateway/src/picture",
    "crates/gateway/src/pulse",
    "crates/gateway/src/reading",
    "crates/gateway/src/skim",
    "crates/gateway/src/splice",
    "crates/gateway/src/tap",
    "crates/gateway/src/tick",
    "src/destination",
    "src/discover/compare",
    "src/discover/decide",
    "src/edit/import",
    "src/edit/models",
    "src/litellm/export",
    "src/litellm/families",
    "src/litellm/import",
    "src/checks/state",
    "src/checks/impairment",
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

/// The program's own files: of the package and of the crates beside it.
fn sources() -> Vec<String> {
    let mut all = files("src", rust);
    all.extend(files("crates", |path| rust(path) && path.split('/').nth(2) == Some("src")));
    all
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
            if next.trim_start_matches("pub(crate) ").starts_with("mod ") && next.ends_with('{') {
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

/// The room that a file stands in: `crates/net/src/probe/mod.rs` in `net`, `src/store/apply.rs` in `store`.
fn room(path: &str) -> &str {
    let mut parts = path.split('/');
    let part = match parts.next() {
        Some("crates") => parts.next(),
        _ => parts.next(),
    };
    part.map_or("", |part| part.trim_end_matches(".rs"))
}

fn floor(room: &str) -> Option<usize> {
    FLOORS.iter().position(|rooms| rooms.contains(&room))
}

/// Rooms that a line of code names: `crate::store`, `catalog::plan`, and the members of `use crate::{…}`.
fn rooms_named(path: &str) -> Vec<(usize, String)> {
    let of_package = path.starts_with("src/");
    let crates = ["provider", "catalog", "net", "gateway"];
    let mut found = Vec::new();
    // Inside `use crate::{`: how deep, so that only its direct members count.
    let mut depth = 0_usize;
    for (line, code) in code(path) {
        for name in crates {
            // `net::` may also be a member of `use std::{…}`: then a comma or a brace stands before it.
            if names(&code, &format!("{name}::"))
                && !code.starts_with(&format!("{name}::"))
                && !code.contains(&format!(", {name}::"))
                && !code.contains(&format!("{{{name}::"))
                && !code.contains(&format!("::{name}::"))
            {
                found.push((line, name.to_owned()));
            }
        }
        let mut rest = code.as_str();
        if of_package && depth == 0 {
            while let Some(at) = rest.find("crate::") {
                rest = &rest[at + "crate::".len()..];
                if rest.starts_with('{') {
                    break;
                }
                let word: String = rest.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
                found.push((line, word));
            }
            if !(code.starts_with("use crate::{") || code.starts_with("pub use crate::{")) {
                continue;
            }
        }
        if of_package {
            let mut word = String::new();
            for c in rest.chars() {
                match c {
                    '{' => depth += 1,
                    '}' => depth = depth.saturating_sub(1),
                    _ => {}
                }
                if c.is_alphanumeric() || c == '_' {
                    word.push(c);
                    continue;
                }
                if depth == 1 && !word.is_empty() && matches!(c, ':' | ',') {
                    found.push((line, std::mem::take(&mut word)));
                    // What follows is inside that room.
                    if c == ':' && !rest.contains('{') {
                        break;
                    }
                }
                word.clear();
            }
        }
    }
    found.retain(|(_, name)| floor(name).is_some());
    found
}

#[test]
fn every_arrow_runs_down() {
    let mut offences = Vec::new();
    let mut arrows = std::collections::BTreeSet::new();
    for path in sources() {
        let here = room(&path);
        let Some(at) = floor(here) else {
            offences.push(format!("{path}: the room `{here}` stands on no floor"));
            continue;
        };
        for (line, other) in rooms_named(&path) {
            if other == here {
                continue;
            }
            if floor(&other).is_some_and(|other| other >= at) {
                offences.push(format!("{path}:{line} names `{other}`, which is not below `{here}`"));
            }
            arrows.insert((here.to_owned(), other));
        }
    }
    none(offences, "rooms name rooms of lower floors only");
    let expected = [("store", "catalog"), ("admin", "status"), ("daemon", "reconcile"), ("net", "provider")];
    for (from, to) in expected {
        assert!(arrows.contains(&(from.to_owned(), to.to_owned())), "the check does not see {from} → {to}");
    }
}

#[test]
fn pure_crates_can_touch_nothing() {
    let mut offences = Vec::new();
    for name in PURE_CRATES {
        let manifest = read(&format!("crates/{name}/Cargo.toml"));
        for line in manifest.lines() {
            let dependency = line.split(['.', ' ', '=']).next().unwrap_or_default();
            if IMPURE_CRATES.contains(&dependency) {
                offences.push(format!("crates/{name} depends on {dependency}"));
            }
        }
    }
    let gateway = read("crates/gateway/Cargo.toml");
    if gateway.lines().any(|line| line.starts_with("sqlx") || line.starts_with("providerd")) {
        offences.push("crates/gateway can name the database".to_owned());
    }
    none(offences, "what a crate may touch is what it can depend on");
}

#[test]
fn pure_modules_touch_nothing() {
    let is_pure = |path: &str| {
        PURE.iter().any(|module| match module.strip_suffix('/') {
            Some(dir) => path.strip_prefix(dir).is_some_and(|rest| rest.starts_with('/')),
            None => path.strip_prefix(module).is_some_and(|rest| rest == ".rs" || rest.starts_with('/')),
        })
    };
    let is_tests = |path: &str| path.ends_with("/tests.rs");
    let pure: Vec<String> = sources().into_iter().filter(|path| is_pure(path) && !is_tests(path)).collect();
    assert!(pure.iter().any(|path| path == "crates/catalog/src/model.rs"), "{pure:?}");
    assert!(pure.iter().any(|path| path == "src/edit/import.rs"), "{pure:?}");
    none(offences(&pure, &IMPURE), "pure modules take values, the time included, and return values");
}

#[test]
fn only_the_table_of_types_asks_which_type_it_is() {
    let asks = |path: &str, code: &str| {
        // The provider crate abbreviates.
        let names: &[&str] = if path.starts_with("crates/provider/") {
            &["ProviderType::", "P::"]
        } else {
            &["ProviderType::"]
        };
        names.iter().any(|name| {
            code.match_indices(name).any(|(at, _)| {
                let before = code[..at].chars().next_back();
                let mut after = code[at + name.len()..].chars();
                before.is_none_or(|c| !c.is_alphanumeric())
                    && after.next().is_some_and(char::is_uppercase)
                    && after.next().is_some_and(char::is_lowercase)
            })
        })
    };
    assert!(asks("crates/provider/src/list.rs", "if kind == P::Xai {"));
    assert!(asks("src/lib.rs", "ProviderType::Xai => 1,") && !asks("src/lib.rs", "ProviderType::ALL"));
    let mut found = Vec::new();
    // The second is a table of another program's words for the types.
    let tables = ["crates/provider/src/family/", "src/litellm/families.rs"];
    let outside = |path: &&String| {
        let is_test = path.ends_with("/tests.rs");
        !is_test && !tables.iter().any(|table| path.starts_with(table))
    };
    for path in sources().iter().filter(outside) {
        for (line, code) in code(path) {
            // What stands in for a type that could not be read is no question.
            if asks(path, &code.replace("unwrap_or(ProviderType::Custom)", "")) {
                found.push(format!("{path}:{line}: {code}"));
            }
        }
    }
    none(found, "a fact about a type is a field of its family");
}

#[test]
fn only_the_store_knows_sql() {
    let others: Vec<String> = sources().into_iter().filter(|path| !path.starts_with("src/store")).collect();
    none(offences(&others, &["sqlx::"]), "sqlx appears only in src/store");
}

#[test]
fn plans_enter_the_database_through_one_door() {
    let others: Vec<String> = sources()
        .into_iter()
        .filter(|path| !path.starts_with("src/store/") && path != "src/reconcile/door.rs")
        .collect();
    none(
        offences(&others, &["tx.apply(", "fence_advance("]),
        "use reconcile::fence and reconcile::carry_out",
    );
    assert_eq!(offences(&["src/reconcile/door.rs".to_owned()], &["tx.apply(", "fence_advance("]).len(), 2);
}

#[test]
fn only_the_supervisor_spawns_tasks() {
    let others: Vec<String> =
        sources().into_iter().filter(|path| !SPAWNERS.contains(&path.as_str())).collect();
    none(
        offences(&others, &["tokio::spawn", "tokio::task::spawn(", "task::spawn(", "JoinSet"]),
        "a task nobody watches may end unnoticed; use process::lifecycle::Supervisor",
    );
}

#[test]
fn unsafe_code_is_in_few_files() {
    // Between fork and exec, and where the environment is wiped before the first thread.
    let is_trusted = |path: &str| {
        path.starts_with("src/embedded/") || matches!(path, "src/process/harden.rs" | "src/process/memory.rs")
    };
    let others: Vec<String> = sources().into_iter().filter(|path| !is_trusted(path)).collect();
    none(offences(&others, &["unsafe {", "unsafe fn", "unsafe impl"]), "unsafe code has its few places");
}

#[test]
fn nothing_holds_up_the_runtime() {
    // The embedded server is driven by a thread of its own.
    let others: Vec<String> =
        sources().into_iter().filter(|path| !path.starts_with("src/embedded/")).collect();
    none(offences(&others, &["thread::sleep"]), "await tokio::time::sleep instead");
}

#[test]
fn every_module_says_what_it_is_for() {
    let silent: Vec<String> = sources()
        .into_iter()
        .filter(|path| path != "src/main.rs" && !read(path).starts_with("//! "))
        .collect();
    none(silent, "a module opens with its job, what is not its job, and its invariant");
}

/// The name of the type that a line of code declares for others, whatever `pub` is narrowed to.
fn public_type(code: &str) -> Option<&str> {
    let rest = code.strip_prefix("pub")?;
    let rest = match rest.strip_prefix('(') {
        Some(narrowed) => narrowed.split_once(')')?.1,
        None => rest,
    };
    let mut words = rest.strip_prefix(' ')?.split_whitespace().skip_while(|word| *word == "unsafe");
    if !matches!(words.next()?, "struct" | "enum" | "trait" | "type" | "union") {
        return None;
    }
    words.next()?.split(|c: char| !(c.is_alphanumeric() || c == '_')).next().filter(|name| !name.is_empty())
}

#[test]
fn every_public_type_has_a_name_of_its_own() {
    let mut declared: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for path in sources() {
        let lines = code(&path);
        for (at, (line, code)) in lines.iter().enumerate() {
            // These macros make public types; a name stands at the begin of a block.
            let in_words = at > 0 && lines[at - 1].1 == "words! {";
            let in_choices =
                path == "src/config/value.rs" && code.contains(", \"\\\"") && code.ends_with('{');
            let made = || code.split([',', ' ']).next().filter(|_| in_words || in_choices);
            if let Some(name) = public_type(code).or_else(made) {
                declared.entry(name.to_owned()).or_default().push(format!("{path}:{line}"));
            }
        }
    }
    for known in
        ["Catalog", "PassOutcome", "UsageLedger", "SpannedItem", "KeyStatus", "BudgetPeriod", "GitVerify"]
    {
        assert_eq!(declared.get(known).map(Vec::len), Some(1), "the check does not see {known}");
    }
    let shared: Vec<String> = declared
        .iter()
        .filter(|(_, places)| places.len() > 1)
        .map(|(name, places)| format!("{name}: {}", places.join(", ")))
        .collect();
    none(shared, "a name means one thing: no two public types share one");
}

#[test]
fn the_declaration_of_a_type_is_recognized() {
    for (code, name) in [
        ("pub struct Row {", Some("Row")),
        ("pub(crate) enum Row<'a> {", Some("Row")),
        ("pub(in crate::x) trait Row: Send {", Some("Row")),
        ("pub type Row = Vec<u8>;", Some("Row")),
        ("pub unsafe trait Row {}", Some("Row")),
        ("struct Row;", None),
        ("pub fn row() -> Row {", None),
        ("publish struct Row", None),
        ("pub enum $name { $($word),+ }", None),
    ] {
        assert_eq!(public_type(code), name, "{code}");
    }
}

#[test]
fn only_published_documents_are_cited() {
    let mut texts = sources();
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
    for dir in ["src", "crates", "docs", "tests", "scripts", "systemd", "migrations", "providers.d", ".ci"] {
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
    let lines = code("src/process/lifecycle.rs");
    assert!(lines.iter().any(|(_, line)| names(line, "tokio::spawn")));
    assert!(!lines.iter().any(|(_, line)| line.contains("start_paused")), "tests are left out");
    assert!(!lines.iter().any(|(_, line)| line.starts_with("//")), "comments are left out");
}
