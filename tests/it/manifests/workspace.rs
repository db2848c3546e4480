//! What one edit after another leaves behind; each case was once wrong.

use catalog::manifest::{self, Content, Workspace};

fn set(workspace: &mut Workspace, path: &str, text: &str) {
    let path = path.into();
    let file = manifest::read(&path, &Content::Text(text.into()));
    workspace.set_parsed(path, file);
}

const SAME: &str = "[providers.same]\ntype = \"openai\"\n";

#[test]
fn a_problem_over_two_files_follows_their_lines() {
    let mut workspace = Workspace::new();
    set(&mut workspace, "a.toml", SAME);
    set(&mut workspace, "b.toml", SAME);
    let lines = |build: &manifest::Build| {
        build.diagnostics.iter().map(|it| (it.line, it.related[0].line)).collect::<Vec<_>>()
    };
    assert_eq!(lines(&workspace.build()), [(1, 1), (1, 1)]);
    set(&mut workspace, "b.toml", &format!("\n\n{SAME}"));
    assert_eq!(lines(&workspace.build()), [(1, 3), (3, 1)]);
}

#[test]
fn a_mended_file_is_on_record() {
    let mut workspace = Workspace::new();
    set(&mut workspace, "a.toml", "typo = 1");
    workspace.build();
    set(&mut workspace, "a.toml", SAME);
    assert_eq!(workspace.build().catalog.frozen, Default::default());
    let path: catalog::model::ManifestPath = "a.toml".into();
    let unreadable = Content::Unreadable { code: "permission", reason: "no permission".into() };
    workspace.set_parsed(path.clone(), manifest::read(&path, &unreadable));
    let frozen = workspace.build().catalog.frozen.clone();
    assert!(frozen.files.contains(&path) && frozen.no_prune.is_none(), "{frozen:?}");
}

#[test]
fn a_broken_file_freezes_what_it_mentions() {
    let check = |text: &str, expected: &[&str]| {
        let file = manifest::parse(&"a.toml".into(), text);
        assert!(file.has_errors() && file.providers.is_empty(), "{text}");
        let found: Vec<&str> = file.mentioned.iter().map(|it| &**it).collect();
        assert_eq!(found, expected, "{text}");
    };
    check("[providers.a]\ntype = \"openai\"\ntypo = 1", &["a"]);
    check("[providers.a]\ntype = \"openai", &["a"]);
    check("[providers.\"a.b\"\n[[providers.c.models]]\n]", &["a.b", "c"]);
    check("\"providers\".a.type = 1\n= =", &["a"]);
    check("providers = { a = { type = \"openai\" }, b = 1 }\n= =", &["a", "b"]);
}

#[test]
fn routes_to_what_discovery_may_find_are_told_to_wait() {
    let check = |models: &str, declared: &str, expected: &[&str]| {
        let mut workspace = Workspace::new();
        set(
            &mut workspace,
            "a.toml",
            &format!(
                "[providers.x]\ntype = \"ollama\"\n[providers.x.discover]\n[providers.y]\ntype = \"ollama\"\n{declared}"
            ),
        );
        let route =
            format!("[[routes]]\nmodels = \"{models}\"\npower_level = \"eco\"\nuser_tier = \"all\"\n");
        set(&mut workspace, "r.toml", &route);
        let build = workspace.build();
        let found: Vec<&str> = build.diagnostics.iter().map(|it| it.code).collect();
        assert_eq!(found, expected, "{models} {declared}");
        // A route that waits stays one, and freezes nothing.
        let waits = expected != ["dangling-route"];
        assert_eq!((build.catalog.routes.len() == 1, build.catalog.frozen.files.is_empty()), (waits, waits));
        build.diagnostics.first().map(|it| it.help.join(" ")).unwrap_or_default()
    };
    const MODEL: &str = "[[providers.x.models]]\nname = \"m7b\"\n";
    assert_eq!(
        check("x/*7b*", "", &["idle-route"]),
        "declare them: `providerd models x --write --match '*7b*'` adds what it offers"
    );
    check("x/*7b*", MODEL, &[]);
    check("x/other", MODEL, &["idle-route"]);
    check("*/*", "", &["idle-route"]);
    check("*/m7b", MODEL, &[]);
    check("y/*", MODEL, &["dangling-route"]);
    check("z*/*", MODEL, &["dangling-route"]);
}

/// The interval that a provider of `dir/p.toml` is checked at.
fn interval(workspace: &mut Workspace) -> Option<u64> {
    let catalog = workspace.build().catalog;
    let policy = catalog.health(catalog.providers.get("p").expect("it is declared"));
    match policy.schedule? {
        catalog::model::Schedule::Every(every) => Some(every.as_secs()),
        catalog::model::Schedule::Cron(_) => None,
    }
}

#[test]
fn the_defaults_of_a_bad_file_stay() {
    let mut workspace = Workspace::new();
    let defaults = |seconds: u32| format!("[defaults.health]\ninterval = \"{seconds}s\"\n");
    set(&mut workspace, "dir/p.toml", "[providers.p]\ntype = \"openai\"\n");
    set(&mut workspace, "top.toml", &defaults(70));
    set(&mut workspace, "dir/d.toml", &defaults(20));
    assert_eq!(interval(&mut workspace), Some(20));
    set(&mut workspace, "dir/d.toml", &format!("typo = 1\n{}", defaults(30)));
    assert_eq!(interval(&mut workspace), Some(20), "invalid: the last good value");
    let path: catalog::model::ManifestPath = "dir/d.toml".into();
    let unreadable = Content::Unreadable { code: "permission", reason: "no permission".into() };
    workspace.set_parsed(path.clone(), manifest::read(&path, &unreadable));
    assert_eq!(interval(&mut workspace), Some(20), "unreadable: the same");
    set(&mut workspace, "dir/e.toml", &defaults(40));
    assert_eq!(interval(&mut workspace), Some(40), "a good file is stronger, and that is no clash");
    assert_eq!(workspace.build().files.invalid, 0);
    workspace.remove("dir/e.toml");
    set(&mut workspace, "dir/d.toml", "");
    assert_eq!(interval(&mut workspace), Some(70), "valid again, and without them");
    set(&mut workspace, "dir/d.toml", "typo = 1");
    assert_eq!(interval(&mut workspace), Some(70), "what was given up does not come back");
}

#[test]
fn nothing_of_a_file_with_any_error_is_pruned() {
    let provider =
        |name: &str| format!("[providers.{name}]\ntype = \"openai\"\nmodels = [{{ name = \"x\" }}]\n");
    let route = |models: &str| {
        format!("[[routes]]\nmodels = \"{models}\"\npower_level = \"eco\"\nuser_tier = \"all\"\n")
    };
    let check = |a: &str, b: &str, frozen: &[&str]| {
        let mut workspace = Workspace::new();
        set(&mut workspace, "a.toml", a);
        set(&mut workspace, "b.toml", b);
        let build = workspace.build();
        let found: Vec<&str> = build.catalog.frozen.files.iter().map(|it| &**it).collect();
        assert_eq!(found, frozen, "{a}\n{b}");
    };
    check(&provider("a"), &provider("b"), &[]);
    check(&provider("a"), "typo = 1", &["b.toml"]);
    check(&provider("a"), &route("a/nothing"), &["b.toml"]);
    check(&provider("same"), &provider("same"), &["a.toml", "b.toml"]);
    check(&(provider("a") + &route("a/x")), &route("a/x"), &["a.toml", "b.toml"]);
}

/// What is told of a rename, and where the provider comes from, after each step.
#[test]
fn a_rename_is_no_conflict() {
    let gone = |names: &[&str]| names.iter().map(|name| (*name).into()).collect();
    let text = format!(
        "{SAME}[[providers.same.models]]\nname = \"m\"\n[[routes]]\nmodels = \"same/*\"\npower_level = \"eco\"\nuser_tier = \"all\"\n[defaults.health]\ninterval = \"9s\"\n"
    );
    let from = |build: &manifest::Build| {
        build.catalog.providers.get("same").map(|provider| provider.origin.file.to_string())
    };
    let is_clean = |build: &manifest::Build| {
        build.diagnostics.is_empty()
            && build.files.invalid == 0
            && build.catalog.frozen.files.is_empty()
            && build.catalog.frozen.providers.is_empty()
            && build.catalog.routes.len() == 1
            && build.catalog.defaults.len() == 1
    };
    // One look sees that one is gone and the other there.
    let mut workspace = Workspace::new();
    set(&mut workspace, "a.toml", &text);
    assert!(is_clean(&workspace.build()));
    set(&mut workspace, "b.toml", &text.replace("9s", "8s"));
    workspace.set_gone(&gone(&["a.toml"]));
    let build = workspace.build_unsettled();
    assert!(is_clean(&build), "{:?}", build.diagnostics);
    assert_eq!(from(&build).as_deref(), Some("b.toml"));
    assert_eq!(build.catalog.routes[0].origin.file.as_ref(), "b.toml");
    let interval = |build: &manifest::Build| format!("{:?}", build.catalog.defaults[""].schedule);
    assert!(interval(&build).contains('8'), "{}", interval(&build));
    // It was no rename after all.
    workspace.set_gone(&gone(&[]));
    let build = workspace.build_unsettled();
    assert!(build.diagnostics.is_empty() && build.catalog.frozen.providers.contains("same"));
    assert_eq!(workspace.rivals().len(), 2);
    let build = workspace.build();
    assert_eq!(build.diagnostics.len(), 6, "{:?}", build.diagnostics);
    assert_eq!((build.files.valid, build.files.invalid), (0, 2));
    // What was told is not taken back by another change.
    set(&mut workspace, "c.toml", "[providers.c]\ntype = \"openai\"\n");
    assert_eq!(workspace.build_unsettled().diagnostics.len(), 6);
    workspace.set_gone(&gone(&["b.toml"]));
    let build = workspace.build_unsettled();
    assert!(is_clean(&build), "{:?}", build.diagnostics);
    workspace.remove("b.toml");
    workspace.set_gone(&gone(&[]));
    let build = workspace.build();
    assert!(is_clean(&build) && from(&build).as_deref() == Some("a.toml"), "{:?}", build.diagnostics);

    // Both there for a moment, as `cp` and `rm` or a checkout make them.
    set(&mut workspace, "b.toml", &text);
    let build = workspace.build_unsettled();
    assert!(build.diagnostics.is_empty() && build.files.invalid == 0, "{:?}", build.diagnostics);
    assert!(build.catalog.frozen.providers.contains("same"), "it stays at its last good state");
    workspace.set_gone(&gone(&["a.toml"]));
    let build = workspace.build_unsettled();
    assert!(is_clean(&build) && from(&build).as_deref() == Some("b.toml"), "{:?}", build.diagnostics);
    // A new version with an error in it: the old file speaks for nothing that the new one names.
    set(&mut workspace, "b.toml", &format!("{text}typo = 1\n"));
    let build = workspace.build_unsettled();
    assert!(build.catalog.frozen.providers.contains("same") && from(&build).is_none());
    assert!(build.diagnostics.iter().all(|it| &*it.path == "b.toml"), "{:?}", build.diagnostics);
}
