//! A fixture is a file, or a directory of files that belong together. Beside each invalid one stands what is said
//! about it: `.txt` for people, `.json` for programs, `.github` for code review.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use catalog::manifest::{self, Build, Content, Workspace, render};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Compares with a file; with `UPDATE_SNAPSHOTS` set, rewrites it instead.
fn check(file: &Path, found: &str) {
    if std::env::var_os("UPDATE_SNAPSHOTS").is_some() {
        fs::write(file, found).unwrap();
        return;
    }
    let expected = fs::read_to_string(file).unwrap_or_default();
    assert!(expected == found, "{} differs; found:\n{found}\nexpected:\n{expected}", file.display());
}

/// Files below a directory, by their path from it.
fn texts(directory: &Path) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let mut open = vec![directory.to_owned()];
    while let Some(next) = open.pop() {
        for entry in fs::read_dir(next).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                open.push(path);
            } else if path.extension().is_some_and(|it| it == "toml") {
                let name = path.strip_prefix(directory).unwrap().to_str().unwrap().to_owned();
                found.push((name, fs::read_to_string(path).unwrap()));
            }
        }
    }
    found.sort();
    found
}

/// When the fixtures are read, in Unix seconds: 2027-01-15.
const NOW: i64 = 1_800_000_000;

fn build(texts: &[(String, String)]) -> Build {
    let mut workspace = Workspace::new();
    workspace.set_now(NOW);
    for (path, text) in texts {
        let path = path.as_str().into();
        let read = manifest::read(&path, &Content::Text(text.as_str().into()));
        workspace.set_parsed(path, read);
    }
    workspace.build()
}

struct Fixture {
    path: PathBuf,
    texts: Vec<(String, String)>,
}

fn fixtures(kind: &str) -> Vec<Fixture> {
    let directory = root().join("tests/manifests").join(kind);
    let mut found: Vec<Fixture> = fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.is_dir() || path.extension().is_some_and(|it| it == "toml"))
        .map(|path| {
            let texts = if path.is_dir() {
                texts(&path)
            } else {
                let name = path.file_name().unwrap().to_str().unwrap().to_owned();
                vec![(name, fs::read_to_string(&path).unwrap())]
            };
            Fixture { path, texts }
        })
        .collect();
    found.sort_by(|a, b| a.path.cmp(&b.path));
    assert!(!found.is_empty());
    found
}

/// For people, for programs, for code review.
fn rendered(build: &Build, texts: &[(String, String)]) -> [(&'static str, String); 3] {
    let lookup = |wanted: &str| texts.iter().find(|(path, _)| path == wanted).map(|(_, text)| text.clone());
    let json = serde_json::to_string_pretty(&render::json(&build.diagnostics)).unwrap() + "\n";
    [
        ("txt", render::human(&build.diagnostics, &lookup, false)),
        ("json", json),
        ("github", render::github(&build.diagnostics, Path::new("providers.d"))),
    ]
}

#[test]
fn valid_manifests_have_nothing_wrong_with_them() {
    for fixture in fixtures("valid") {
        let build = build(&fixture.texts);
        assert_eq!(build.diagnostics, [], "{}", fixture.path.display());
        assert!(!build.catalog.files.is_empty());
        let catalog = serde_json::json!({
            "providers": build.catalog.providers.values().collect::<Vec<_>>(),
            "routes": build.catalog.routes,
            "defaults": build.catalog.defaults,
            "objects": build.catalog.objects.values().collect::<Vec<_>>(),
        });
        let found = serde_json::to_string_pretty(&catalog).unwrap() + "\n";
        check(&fixture.path.with_extension("json"), &found);
    }
}

#[test]
fn invalid_manifests_are_explained() {
    for fixture in fixtures("invalid") {
        let build = build(&fixture.texts);
        assert!(!build.diagnostics.is_empty(), "{}", fixture.path.display());
        for (ending, text) in rendered(&build, &fixture.texts) {
            check(&fixture.path.with_extension(ending), &text);
            // Every fake key in a fixture holds this word.
            assert!(!text.contains("canary"), "{}.{ending} shows a key", fixture.path.display());
            let lines = text.lines().filter(|line| line.ends_with(' '));
            assert_eq!(lines.count(), 0, "{}.{ending}: blanks at the end of a line", fixture.path.display());
        }
    }
}

/// Codes as the source names them, in whatever way it is broken into lines.
fn codes() -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for file in ["parse.rs", "objects.rs", "values.rs", "workspace.rs", "callers.rs", "meanings.rs"] {
        let text = fs::read_to_string(root().join("crates/catalog/src/manifest").join(file)).unwrap();
        let text: String = text.split_whitespace().collect();
        let calls = [
            ".error(",
            "of_file(",
            "at_object(",
            "report(Severity::Warning,",
            "report(Severity::Error,",
            "Diagnostic::at(Severity::Error,",
            "Diagnostic::at(Severity::Warning,",
            "Diagnostic::at(worst,",
            "warn_at(",
        ];
        for call in calls {
            for rest in text.split(call).skip(1) {
                if let Some(code) = rest.strip_prefix('"').and_then(|rest| rest.split('"').next()) {
                    found.insert(code.to_owned());
                }
            }
        }
    }
    assert!(found.len() > 25 && found.iter().all(|code| !code.contains(' ')), "{found:?}");
    found
}

#[test]
fn every_problem_is_shown_and_documented() {
    // Takes more than a hundred thousand objects; it is shown by a test of its own.
    let elsewhere = BTreeSet::from(["too-many-objects".to_owned(), "too-many-rules".to_owned()]);
    let mut shown = elsewhere;
    for fixture in fixtures("invalid") {
        shown.extend(build(&fixture.texts).diagnostics.iter().map(|it| it.code.to_owned()));
    }
    let known = codes();
    assert_eq!(known.difference(&shown).collect::<Vec<_>>(), Vec::<&String>::new(), "shown by no fixture");
    assert_eq!(shown.difference(&known).collect::<Vec<_>>(), Vec::<&String>::new(), "found by no search");
    let manual = fs::read_to_string(root().join("docs/MANIFESTS.md")).unwrap();
    for code in known {
        assert!(manual.contains(&format!("| `{code}` |")), "docs/MANIFESTS.md does not explain `{code}`");
    }
}

#[test]
fn the_examples_are_valid_and_serve_every_power_level() {
    let build = build(&texts(&root().join("providers.d")));
    assert_eq!(build.diagnostics, []);
    let table = catalog::routing::Table::resolve(&build.catalog);
    for level in catalog::model::PowerLevel::ALL {
        let any = table
            .rows()
            .iter()
            .any(|row| row.power_level == *level && &*row.user_tier == "all" && row.task_type.is_none());
        assert!(any, "nobody serves {level} × all");
    }
    let ollama = &build.catalog.providers["ollama-cloud"];
    assert_eq!(&*ollama.models[0].name, "llama2-7b");
}

#[test]
fn the_schema_beside_the_examples_is_the_programs_own() {
    let schema = serde_json::to_string_pretty(&manifest::json_schema()).unwrap() + "\n";
    check(&root().join("providers.d/manifest.schema.json"), &schema);
}

#[test]
fn the_manual_knows_every_key() {
    let manual = fs::read_to_string(root().join("docs/MANIFESTS.md")).unwrap();
    let schema = manifest::json_schema();
    let tables = schema["$defs"].as_object().unwrap().values();
    for key in tables.filter_map(|table| table["properties"].as_object()).flat_map(|it| it.keys()) {
        assert!(manual.contains(&format!("`{key}`")), "docs/MANIFESTS.md does not know `{key}`");
    }
}
