//! Manifests that a hostile or unlucky hand wrote: nothing leaks, nothing aborts, nothing takes for ever.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use catalog::manifest::{self, Build, Content, Workspace, render};

fn build(files: &[(&str, String)]) -> Build {
    let mut workspace = Workspace::new();
    for (path, text) in files {
        let path: Arc<str> = (*path).into();
        workspace.set_parsed(path.clone(), manifest::read(&path, &Content::Text(text.as_str().into())));
    }
    workspace.build()
}

/// What any of the three formats shows.
fn shown(text: &str) -> String {
    let build = build(&[("a.toml", text.to_owned())]);
    let human = render::human(&build.diagnostics, &|_| Some(text.to_owned()), false);
    let json = serde_json::to_string(&render::json(&build.diagnostics)).unwrap();
    let github = render::github(&build.diagnostics, std::path::Path::new("m"));
    assert!(!build.diagnostics.is_empty(), "no diagnostic: {text}");
    format!("{human}\n{json}\n{github}")
}

fn hides(text: &str, canary: &str) {
    let shown = shown(text);
    assert!(!shown.contains(canary), "the canary is shown:\n{shown}");
}

const OPAQUE: &str = "fake0fake1fake2fake3fake4fake5fa";

macro_rules! hides {
    ($($name:ident: $text:expr, $canary:expr;)*) => { mod hides { use super::*; $(#[test] fn $name() { let text: String = $text; hides(&text, $canary) })* } };
}

hides! {
    literal: format!("[providers.mistral]\ntype=\"mistral\"\napi_key = \"{OPAQUE}\"\n"), OPAQUE;
    syntax_error_on_the_line: format!("[providers.mistral]\ntype=\"mistral\"\napi_key = \"{OPAQUE}\n"), OPAQUE;
    syntax_error_unquoted: format!("[providers.mistral]\ntype=\"mistral\"\napi_key = {OPAQUE}\n"), OPAQUE;
    misspelt_key: format!("[providers.mistral]\ntype=\"mistral\"\napi_kye = \"{OPAQUE}\"\n"), OPAQUE;
    unknown_key_in_reference: format!("[providers.mistral]\ntype=\"mistral\"\napi_key = {{ value = \"{OPAQUE}\" }}\n"), OPAQUE;
    two_references: format!("[providers.mistral]\ntype=\"mistral\"\napi_key = {{ env = \"A\", sealed = \"{OPAQUE}\" }}\n"), OPAQUE;
    array: format!("[providers.mistral]\ntype=\"mistral\"\napi_key = [\"{OPAQUE}\"]\n"), OPAQUE;
    pem_over_lines_unterminated: "[providers.a]\ntype=\"vertex\"\nbase_url=\"https://a.example\"\nconfig.key = \"-----BEGIN PRIVATE KEY-----\nMIIEfakefakefake0CANARY0fakefake/+fake==\n-----END PRIVATE KEY-----\"\n".to_owned(), "CANARY";
    url_query: format!("[providers.a]\ntype=\"custom\"\nbase_url = \"https://a.example/v1?api_key={OPAQUE}\"\n"), OPAQUE;
    url_credentials: "[providers.a]\ntype=\"custom\"\nbase_url = \"https://me:hunter2CANARY@a.example/v1\"\n".to_owned(), "CANARY";
    url_credentials_malformed: "[providers.a]\ntype=\"custom\"\nbase_url = \"https://me:hunter2CANARY@a.example:99999/v1\"\n".to_owned(), "CANARY";
    duplicate_model_name: format!("[providers.a]\ntype=\"openai\"\nmodels=[{{name=\"sk-{0}\"}},{{name=\"sk-{0}\"}}]\n", "fake1".repeat(6)), "fake1fake1";
    long_key_cut_in_type: format!("[providers.a]\ntype=\"gAAAAA{}\"\n", "fake1".repeat(20)), "fake1fake1";
    long_key_cut_in_route: format!("[[routes]]\nmodels=\"xai-{}\"\npower_level=\"eco\"\nuser_tier=\"all\"\n", "fake1".repeat(16)), "fake1fake1";
    jwt_cut_in_type: format!("[providers.a]\ntype=\"eyJmYWtl.{0}.{0}\"\n", "fake1".repeat(20)), "fake1fake1";
    provider_name: format!("[providers.sk-{}]\nenabled=true\n", "fake1".repeat(6)), "fake1fake1";
    header_name: format!("[providers.a]\ntype=\"openai\"\nconfig = {{ x-api-key = \"{OPAQUE}\" }}\n"), OPAQUE;
    camel_name: format!("[providers.a]\ntype=\"openai\"\nconfig = {{ apiKey = \"{OPAQUE}\" }}\n"), OPAQUE;
    bearer: format!("[providers.a]\ntype=\"openai\"\nconfig = {{ Authorization = \"Bearer {OPAQUE}\" }}\n"), OPAQUE;
    letters_only: "[providers.a]\ntype=\"openai\"\ndescription = \"sk-proj-CANARYCANARYCANARYCANARYCANARYCANARY\"\n".to_owned(), "CANARY";
}

/// Far above what linear work takes unoptimised on a busy machine, far below what quadratic work takes.
const TOO_LONG: Duration = Duration::from_secs(30);

/// Runs with the stack of an ordinary worker thread and says how long it took.
fn timed(work: impl FnOnce() + Send + 'static) -> Duration {
    let started = Instant::now();
    std::thread::Builder::new().stack_size(2 << 20).spawn(work).unwrap().join().unwrap();
    started.elapsed()
}

fn parse_time(name: &str, text: String) {
    assert!(text.len() <= 1 << 20, "{name}: {}", text.len());
    let took = timed(move || {
        let path: Arc<str> = "a.toml".into();
        drop(manifest::parse(&path, &text));
    });
    assert!(took < TOO_LONG, "{name}: {took:?}");
}

#[test]
fn deep_dotted_key() {
    parse_time("dotted", format!("[providers.a]\ntype=\"openai\"\nconfig{} = 1\n", ".a".repeat(500_000)))
}
#[test]
fn deep_header() {
    parse_time("header", format!("[providers.a.config{}]\nx=1\n", ".a".repeat(500_000)))
}
#[test]
fn deep_array() {
    parse_time("array", format!("[providers.a]\nconfig.x={}\n", "[".repeat(500_000)))
}
#[test]
fn deep_inline() {
    parse_time("inline", format!("[providers.a]\nconfig.x={}\n", "{a=".repeat(300_000)))
}
#[test]
fn long_unknown_key() {
    parse_time("long key", format!("{} = 1\n", "k".repeat(1_000_000)))
}
#[test]
fn long_type() {
    parse_time("long type", format!("[providers.a]\ntype = \"{}\"\n", "k".repeat(1_000_000)))
}
#[test]
fn many_models() {
    for count in [20_000, 40_000] {
        let models: String = (0..count).map(|n| format!("{{name=\"m{n}\"}},\n")).collect();
        parse_time(
            &format!("{count} models"),
            format!("[providers.a]\ntype=\"openai\"\nmodels=[{models}]\n"),
        );
    }
}
#[test]
fn many_dangling() {
    for count in [1_000, 2_000] {
        let providers: String =
            (0..count).map(|n| format!("[providers.provider-{n}]\ntype=\"openai\"\n")).collect();
        let routes: String = (0..count)
            .map(|n| format!("[[routes]]\nmodels=\"gone-{n}/x\"\npower_level=\"eco\"\nuser_tier=\"all\"\n"))
            .collect();
        let took = timed(move || drop(build(&[("a.toml", providers), ("b.toml", routes)])));
        assert!(took < TOO_LONG, "{count} dangling: {took:?}");
    }
}
#[test]
fn a_route_that_matches_nothing_freezes_its_file() {
    let build = build(&[
        ("a.toml", "[providers.a]\ntype=\"openai\"\nmodels=[{name=\"x\"}]\n".to_owned()),
        ("r.toml", "[[routes]]\nmodels=\"a/xx\"\npower_level=\"eco\"\nuser_tier=\"all\"\n".to_owned()),
    ]);
    assert!(!build.diagnostics.is_empty());
    assert!(build.catalog.frozen.files.contains("r.toml"), "the rule applied before would be pruned");
}
#[test]
fn clashing_defaults_are_reported_in_both() {
    let text = "[defaults.health]\ninterval=\"30s\"\n".to_owned();
    let build = build(&[("a.toml", text.clone()), ("b.toml", text)]);
    assert_eq!(build.diagnostics.len(), 2, "{:?}", build.diagnostics);
}
#[test]
fn huge_duration_is_refused() {
    let path: Arc<str> = "a.toml".into();
    let file = manifest::parse(
        &path,
        "[providers.a]\ntype=\"openai\"\nhealth.interval=\"18446744073709551615ms\"\n",
    );
    assert!(file.has_errors(), "{:?}", file.providers[0].health);
}

#[test]
fn text_of_nothing_but_prefixes() {
    for part in ["sk-", "sk-.", "sk-a1", "eyJ.", "AIza/", "https://", "a=", "-----BEGIN "] {
        let text = part.repeat(900_000 / part.len());
        parse_time(part, format!("[providers.a]\ntype=\"openai\"\ndescription = \"{text}\"\n"));
    }
}

#[test]
fn a_hundred_problems_are_enough() {
    let text: String = (0..60_000).map(|n| format!("k{n}=1\n")).collect();
    let path: Arc<str> = "a.toml".into();
    let file = manifest::parse(&path, &text);
    assert_eq!(file.diagnostics.len(), 101);
    assert!(file.has_errors());
    assert!(file.diagnostics.iter().any(|it| it.message == "59900 more problems are not shown"));
}

#[test]
fn routes_that_say_the_same_are_not_applied() {
    let route = "[[routes]]\nmodels=\"a/x\"\npower_level=\"eco\"\nuser_tier=\"all\"\n".to_owned();
    let provider = "[providers.a]\ntype=\"openai\"\nmodels=[{name=\"x\"}]\n".to_owned();
    let build = build(&[("a.toml", provider), ("r.toml", route.clone()), ("s.toml", route)]);
    assert_eq!(build.diagnostics.len(), 2);
    assert!(build.catalog.routes.is_empty());
    assert!(build.catalog.providers.contains_key("a"));
    assert!(build.catalog.frozen.files.iter().map(|it| &**it).eq(["r.toml", "s.toml"]));
}

/// A route that becomes good again through another file lets go of what it held, whoever's model that was.
#[test]
fn a_file_that_thaws_concerns_everybody() {
    let set = |workspace: &mut Workspace, path: &str, text: &str| {
        let path: Arc<str> = path.into();
        workspace.set_parsed(path.clone(), manifest::read(&path, &Content::Text(text.into())));
        workspace.build()
    };
    let mut workspace = Workspace::new();
    let provider = |model| format!("[providers.a]\ntype=\"openai\"\nmodels=[{{name=\"{model}\"}}]\n");
    set(&mut workspace, "a.toml", &provider("x"));
    let route = "[[routes]]\nmodels=\"a/y\"\npower_level=\"eco\"\nuser_tier=\"all\"\n";
    assert!(set(&mut workspace, "r.toml", route).catalog.frozen.files.contains("r.toml"));
    let build = set(&mut workspace, "a.toml", &provider("y"));
    assert!(build.catalog.frozen.files.is_empty());
    assert_eq!(build.changed, manifest::Changed::All);
}

/// What manifests are made of, whole and broken.
const PARTS: &[&str] = &[
    "[providers.a]\n",
    "[[providers.a.models]]\n",
    "[[routes]]\n",
    "[defaults.health]\n",
    "type",
    "name",
    "models",
    "api_key",
    "config",
    "interval",
    "cron",
    "base_url",
    " = ",
    "=",
    "\"openai\"",
    "\"a/*\"",
    "\"",
    "'''",
    "\"\"\"",
    "{",
    "}",
    "[",
    "]",
    ",",
    "\n",
    "\r\n",
    "#",
    "\\u0000",
    "1",
    "-1",
    "1e999",
    "nan",
    "0x7fffffffffffffff",
    "1979-05-27",
    "\"30s\"",
    "\"0 0 3 * * *\"",
    "ä",
    "\u{202e}",
    "\u{feff}",
    "\0",
    "\"https://u:p@h?x\"",
    "sk-fake1fake1fake1fake1",
    "-----BEGIN PRIVATE KEY-----",
    "power_level",
    "\"eco\"",
    "user_tier",
    "\"all\"",
    ".",
];

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(300))]

    /// No panic, spans inside the text, errors yield no object, and every format can show it without its secrets.
    #[test]
    fn any_text_is_judged(parts in proptest::collection::vec(proptest::sample::select(PARTS), 0..60)) {
        let text: String = parts.concat();
        let path: Arc<str> = "a.toml".into();
        let file = manifest::parse(&path, &text);
        let length = text.strip_prefix('\u{feff}').unwrap_or(&text).len();
        for span in file.diagnostics.iter().filter_map(|it| it.span.as_ref()) {
            proptest::prop_assert!(span.start <= span.end && span.end <= length, "{:?} of {}", span, length);
        }
        if file.has_errors() {
            proptest::prop_assert!(file.providers.is_empty() && file.routes.is_empty());
        }
        let build = build(&[("a.toml", text.clone())]);
        let human = render::human(&build.diagnostics, &|_| Some(text.clone()), true);
        let github = render::github(&build.diagnostics, std::path::Path::new(""));
        proptest::prop_assert!(!human.contains("fake1fake1") && !github.contains("fake1fake1"), "{}", human);
    }
}
