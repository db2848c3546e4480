//! Texts that want to cost much: all are judged, none for long, none with a deep stack.

use std::time::{Duration, Instant};

use super::entry;

/// Unoptimized, on a busy machine, with a wide margin: quadratic work on a mebibyte takes minutes.
const PATIENCE: Duration = Duration::from_secs(120);
const MEBIBYTE: usize = 1 << 20;

fn check(name: &str, text: &str) {
    let text = text.to_owned();
    let label = name.to_owned();
    // As much stack as the threads have that read manifests.
    let work = std::thread::Builder::new().stack_size(2 << 20).spawn(move || {
        let begin = Instant::now();
        let _ = catalog::manifest::parse(&"hostile.toml".into(), &text);
        let parsed = begin.elapsed();
        entry::render(&text);
        println!("{label}: {} bytes, parsed in {parsed:?}, all in {:?}", text.len(), begin.elapsed());
        parsed
    });
    let parsed = work.unwrap().join().unwrap();
    assert!(parsed < PATIENCE, "{name} took {parsed:?}");
}

fn filled(head: &str, unit: &str, tail: &str) -> String {
    let room = MEBIBYTE.saturating_sub(head.len() + tail.len()) / unit.len();
    format!("{head}{}{tail}", unit.repeat(room))
}

fn numbered(head: &str, line: impl Fn(usize) -> String) -> String {
    let mut text = head.to_owned();
    for at in 0.. {
        let line = line(at);
        if text.len() + line.len() > MEBIBYTE {
            break;
        }
        text += &line;
    }
    text
}

#[test]
fn nesting() {
    check("brackets", &filled("", "[", ""));
    check("array", &filled("a = ", "[", ""));
    check("tables", &filled("a = ", "{a=", ""));
    check("dotted header", &filled("[a", ".a", "]"));
    check("dotted key", &filled("a", ".a", " = 1"));
    let key = format!("a{}", ".a".repeat(70));
    let tables = format!("{}1{}", format!("{{{key} = ").repeat(70), "}".repeat(70));
    check("dotted keys in tables", &format!("[providers.a]\ntype = \"openai\"\nconfig = {tables}\n"));
    check("dotted keys in tables, twice", &format!("{key} = {tables}\nproviders.{key} = {tables}\n"));
}

#[test]
fn breadth() {
    check("keys", &numbered("", |at| format!("k{at} = 1\n")));
    check("keys of a provider", &numbered("[providers.a]\n", |at| format!("k{at} = 1\n")));
    check(
        "keys of config",
        &numbered("[providers.a]\ntype = \"openai\"\n[providers.a.config]\n", |at| format!("k{at} = 1\n")),
    );
    check("array", &filled("[providers.a]\ntype = \"openai\"\nconfig = { a = [", "1,", "] }\n"));
    check("strings", &filled("[providers.a]\ntype = \"openai\"\nmodel_prefixes = [", "\"a\",", "]\n"));
    check("wrong strings", &filled("[providers.a]\ntype = \"openai\"\nmodel_prefixes = [", "1,", "]\n"));
    check(
        "wide wrong strings",
        &filled("[providers.a]\ntype = \"openai\"\nmodel_prefixes = [", "1,\"ä\",", "]\n"),
    );
    check(
        "models",
        &numbered("[providers.a]\ntype = \"openai\"\n", |at| {
            format!("[[providers.a.models]]\nname = \"m{at}\"\n")
        }),
    );
    check(
        "the same model",
        &filled("[providers.a]\ntype = \"openai\"\n", "[[providers.a.models]]\nname = \"m\"\n", ""),
    );
    check(
        "providers in one line",
        &(numbered("providers = { ", |at| format!("p{at} = {{ type = \"openai\" }}, ")) + "\"ä\" = 1 }"),
    );
    check(
        "routes",
        &numbered("", |at| {
            format!("[[routes]]\nmodels = \"a/m{at}\"\npower_level = \"eco\"\nuser_tier = \"all\"\n")
        }),
    );
    check(
        "the same route",
        &filled("", "[[routes]]\nmodels = \"a/m\"\npower_level = \"eco\"\nuser_tier = \"all\"\n", ""),
    );
}

#[test]
fn noise() {
    check("zeros", &filled("", "\0", ""));
    check("errors", &filled("", "= =\n", ""));
    check("errors in one line", &filled("", "\"ä ", ""));
    check("quotes", &filled("a = ", "\"", ""));
    check("line breaks", &filled("", "\n", ""));
    check("a long string", &filled("a = \"", "x", "\""));
    check("a long word", &filled("a = ", "x", ""));
    check("a long key", &filled("", "x", " = 1"));
    check("nearly keys", &filled("a = \"", "sk-./eyJ.", "\""));
    check("keys", &filled("a = \"", "sk-canary0canary0canary0 ", "\""));
    check("token names", &filled("a = ", "token=", ""));
    check("comments", &filled("", "# comment\n", ""));
}

#[test]
fn too_many_objects_leave_a_file_out() {
    use catalog::manifest::{Changed, Content, Workspace, read};
    let model = |at: usize| format!("{{name=\"{at}\"}},");
    let provider = |name: &str| {
        let models: String = (0..40_000).map(model).collect();
        format!("[providers.{name}]\ntype = \"openai\"\nmodels = [{models}]\n")
    };
    let mut workspace = Workspace::new();
    for name in ["a", "b", "z"] {
        if name == "z" {
            let build = workspace.build();
            assert_eq!((build.diagnostics.len(), build.catalog.providers.len()), (0, 2));
        }
        let path = format!("{name}.toml").into();
        let file = read(&path, &Content::Text(provider(name).into()));
        workspace.set_parsed(path, file);
    }
    let build = workspace.build();
    assert_eq!(build.diagnostics.len(), 1);
    assert_eq!((build.diagnostics[0].code, &*build.diagnostics[0].path), ("too-many-objects", "z.toml"));
    assert!(build.catalog.frozen.files.contains("z.toml") && build.catalog.frozen.providers.contains("z"));
    assert_eq!(build.changed, Changed::All);
}

#[test]
fn what_routes_expand_to_is_bounded() {
    use std::collections::BTreeSet;

    use catalog::manifest::{Content, MAX_RULES, Workspace, read};
    let check = |models: usize, routes: usize, pattern: &dyn Fn(usize) -> String, bad: bool| {
        let mut text = String::from("[providers.x]\ntype = \"openai\"\n");
        for at in 0..models {
            text += &format!("[[providers.x.models]]\nname = \"m{at}\"\n");
        }
        for at in 0..routes {
            let models = pattern(at);
            text +=
                &format!("[[routes]]\nmodels = \"{models}\"\npower_level = \"eco\"\nuser_tier = \"t{at}\"\n");
        }
        let mut workspace = Workspace::new();
        let path = "a.toml".into();
        let file = read(&path, &Content::Text(text.into()));
        workspace.set_parsed(path, file);
        let build = workspace.build();
        let codes: BTreeSet<&str> = build.diagnostics.iter().map(|it| it.code).collect();
        assert_eq!(codes.contains("too-many-rules"), bad, "{models} × {routes}: {codes:?}");
        let rules: usize =
            build.catalog.providers.values().map(|provider| build.index.rules_for(provider).len()).sum();
        assert!(rules <= MAX_RULES, "{rules}");
    };
    check(2_000, 100, &|_| "x/*".into(), false);
    check(2_000, 101, &|_| "x/*".into(), true);
    check(2_000, 101, &|_| "*/m*".into(), true);
    // Few rules, and twenty million comparisons.
    check(5_000, 5_000, &|at| format!("x/?{at}"), true);
    check(5_000, 5_000, &|at| format!("x/m{at}"), false);
}
