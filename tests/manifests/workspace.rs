//! What one edit after another leaves behind; each case was once wrong.

use providerd::manifest::{self, Content, Workspace};

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
    let path: providerd::model::ManifestPath = "a.toml".into();
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
