//! Promises about all texts and all sequences of edits.

use std::{collections::BTreeMap, path::Path};

use proptest::prelude::*;

use catalog::{
    manifest::{self, Build, Changed, Content, Workspace},
    model::ManifestPath,
};

use super::entry;

const SEED: &str = include_str!("../../manifests/valid/everything.toml");
const FORMS: &str = include_str!("../../manifests/valid/forms.toml");

/// Words that are likelier to reach deep than noise is.
fn token() -> impl Strategy<Value = String> {
    const WORDS: [&str; 52] = [
        "[",
        "]",
        "[[",
        "]]",
        "{",
        "}",
        "=",
        ".",
        ",",
        "\n",
        "\"",
        "'",
        "\"\"\"",
        "#",
        "\\u0000",
        "ä",
        "\r\n",
        "\0",
        "providers",
        "routes",
        "defaults",
        "health",
        "aliases",
        "consumers",
        "power_levels",
        "tiers",
        "gateway",
        "sha256",
        "headers",
        "models",
        "name",
        "type",
        "openai",
        "api_key",
        "env",
        "sealed",
        "config",
        "interval",
        "30s",
        "cron",
        "1",
        "-1",
        "1e999",
        "nan",
        "true",
        "2026-01-01",
        "a/b",
        "*",
        "sk-canary0canary0canary0canary0",
        "token = canary1canary2canary3",
        "-----BEGIN PRIVATE KEY",
        " ",
    ];
    prop_oneof![4 => prop::sample::select(&WORDS[..]).prop_map(str::to_owned), 1 => "\\PC{0,6}"]
}

/// A valid manifest in which some places were overwritten.
fn mutated() -> impl Strategy<Value = String> {
    let edit = (any::<prop::sample::Index>(), 0..12usize, token());
    (prop::sample::select(&[SEED, FORMS][..]), prop::collection::vec(edit, 1..6)).prop_map(|(seed, edits)| {
        let mut text: Vec<char> = seed.chars().collect();
        for (at, cut, new) in edits {
            let at = at.index(text.len() + 1);
            let end = (at + cut).min(text.len());
            text.splice(at..end, new.chars());
        }
        text.into_iter().collect()
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, ..ProptestConfig::default() })]

    #[test]
    fn any_text_yields_a_result(text in "\\PC{0,200}") {
        entry::parse(&text);
        entry::render(&text);
    }

    #[test]
    fn any_words_yield_a_result(words in prop::collection::vec(token(), 0..60)) {
        let text = words.concat();
        entry::parse(&text);
        entry::render(&text);
    }

    #[test]
    fn a_mutated_manifest_yields_a_result(text in mutated()) {
        entry::parse(&text);
        entry::render(&text);
    }

    #[test]
    fn no_key_is_ever_shown(
        at in any::<prop::sample::Index>(),
        key in prop::sample::select(&KEYS[..]),
        quote in prop::sample::select(&["\"", "", "'", " ", "\n"][..]),
    ) {
        let places: Vec<usize> = SEED.char_indices().map(|(at, _)| at).filter(|at| {
            // Glued to a word before it, it would be another word.
            *at == 0 || !SEED.as_bytes()[at - 1].is_ascii_alphanumeric() && !b"_-.".contains(&SEED.as_bytes()[at - 1])
        }).collect();
        let mut text = SEED.to_owned();
        text.insert_str(*at.get(&places), &format!("{quote}{key}{quote}"));
        let mut workspace = Workspace::new();
        let path: ManifestPath = "a.toml".into();
        workspace.set_parsed(path.clone(), manifest::read(&path, &Content::Text(text.as_str().into())));
        let found = workspace.build().diagnostics;
        let human = manifest::render::human(&found, &|_| Some(text.clone()), false);
        let styled = manifest::render::human(&found, &|_| Some(text.clone()), true);
        let json = serde_json::to_string(&manifest::render::json(&found)).unwrap();
        let github = manifest::render::github(&found, Path::new("."));
        let lines: String = found.iter().map(manifest::render::one_line).collect();
        for shown in [human, styled, json, github, lines, format!("{found:?}")] {
            prop_assert!(!shown.contains("anary0"), "{shown}");
        }
    }
}

const KEYS: [&str; 6] = [
    "sk-canary0canary0canary0canary0",
    "AIzacanary0canary0canary0canary0canary0",
    "gsk_canary0canary0canary0canary0canary0canary0",
    "hf_canary0canary0canary0canary0canary0",
    "eyJcanary0.eyJcanary0canary0canary0canary0.canary0canary0",
    "0123456789abcdef0123456789abcdef.canary0canary0canary0canary0",
];

/// What a file may hold; few names, so that files concern each other.
fn text() -> impl Strategy<Value = Content> {
    let name = || prop::sample::select(&["a", "b", "c"][..]);
    let provider = (name(), 0..3i32, prop::collection::btree_set(0..3u8, 0..3), any::<bool>()).prop_map(
        |(name, priority, models, discovers)| {
            let models: String = models.iter().map(|at| format!("{{ name = \"m{at}\" }}, ")).collect();
            let discover = if discovers { "discover = {}\n" } else { "" };
            let head = format!("\n[providers.{name}]\ntype = \"openai\"\npriority = {priority}\n");
            (name, format!("{head}models = [{models}]\n{discover}"))
        },
    );
    let providers = prop::collection::vec(provider, 0..3)
        .prop_map(|all| all.into_iter().collect::<BTreeMap<_, _>>().into_values().collect::<String>());
    let pattern = prop::sample::select(&["a/m0", "b/m?", "c/*", "*/m1", "?/m2"][..]);
    let route = (pattern, 0..3i32).prop_map(|(models, priority)| {
        format!("\n[[routes]]\nmodels = \"{models}\"\npower_level = \"eco\"\nuser_tier = \"all\"\npriority = {priority}\n")
    });
    let routes = prop::collection::vec(route, 0..3).prop_map(|all| all.concat());
    let defaults = prop::option::weighted(0.2, 1..4u8)
        .prop_map(|it| it.map_or(String::new(), |it| format!("\n[defaults.health]\ninterval = \"{it}s\"\n")));
    let alias = (name(), prop::sample::select(&["eco", "a", "b", "c", "a/m0", "b/m1", "c/m2", "m0"][..]))
        .prop_map(|(name, target)| (name, format!("aliases.{name} = \"{target}\"\n")));
    let once = |all: Vec<(&'static str, String)>| {
        all.into_iter().collect::<BTreeMap<_, _>>().into_values().collect::<String>()
    };
    let aliases = prop::collection::vec(alias, 0..2).prop_map(once);
    let consumer =
        (name(), prop::collection::btree_set(0..4u8, 0..3), 0..3u8).prop_map(|(name, keys, model)| {
            let key = |key: &u8| format!("{{ sha256 = \"{key:064x}\" }}, ");
            let keys: String = keys.iter().map(key).collect();
            (name, format!("consumers.{name} = {{ keys = [{keys}], models = [\"*/m{model}\", \"a/*\"] }}\n"))
        });
    let consumers = prop::collection::vec(consumer, 0..2).prop_map(once);
    let damage = prop::sample::select(&["", "", "", "", "\n", "# a comment\n", "typo = 1\n", "[[[\n"][..]);
    let whole = (damage, aliases, consumers, defaults, providers, routes)
        .prop_map(|(damage, aliases, consumers, defaults, providers, routes)| {
            aliases + &consumers + damage + &defaults + &providers + &routes
        })
        .prop_map(|text| Content::Text(text.into()));
    let unreadable = Just(Content::Unreadable { code: "not-utf8", reason: "not UTF-8".into() });
    prop_oneof![9 => whole, 1 => unreadable]
}

#[derive(Debug, Clone)]
enum Edit {
    Set(&'static str, Content),
    Remove(&'static str),
    Build,
}

fn edit() -> impl Strategy<Value = Edit> {
    let path = || prop::sample::select(&["one.toml", "two.toml", "team/one.toml", "team/deep/x.toml"][..]);
    prop_oneof![
        5 => (path(), text()).prop_map(|(path, text)| Edit::Set(path, text)),
        1 => path().prop_map(Edit::Remove),
        3 => Just(Edit::Build),
    ]
}

/// What the database is to hold for each provider, as far as the catalog says.
fn desired(build: &Build) -> BTreeMap<String, String> {
    let providers = build.catalog.providers.values();
    let told = providers.map(|it| {
        let health = build.catalog.health(it);
        (it.name.to_string(), format!("{it:?} {health:?} {:?}", build.index.rules_for(it)))
    });
    told.collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn edits_lead_where_a_fresh_look_leads(edits in prop::collection::vec(edit(), 1..25)) {
        let mut workspace = Workspace::new();
        let mut files: BTreeMap<&str, Content> = BTreeMap::new();
        // What a file that is bad now said when it was good: its defaults for health checks stay.
        let mut last_good: BTreeMap<&str, Content> = BTreeMap::new();
        let mut before: Option<Build> = None;
        for edit in edits.into_iter().chain([Edit::Build]) {
            match edit {
                Edit::Set(path, content) => {
                    let path_of: ManifestPath = path.into();
                    workspace.set_parsed(path_of.clone(), manifest::read(&path_of, &content));
                    let is_good =
                        |text: &str| !manifest::parse(&path_of, text).has_errors();
                    if matches!(&content, Content::Text(text) if is_good(text)) {
                        last_good.insert(path, content.clone());
                    }
                    files.insert(path, content);
                }
                Edit::Remove(path) => {
                    workspace.remove(path);
                    files.remove(path);
                    last_good.remove(path);
                }
                Edit::Build => {
                    let build = workspace.build();
                    let mut fresh = Workspace::new();
                    for (path, content) in last_good.iter().chain(&files) {
                        let path: ManifestPath = (*path).into();
                        fresh.set_parsed(path.clone(), manifest::read(&path, content));
                    }
                    let fresh = fresh.build();
                    prop_assert_eq!(desired(&build), desired(&fresh));
                    prop_assert_eq!(&build.catalog.providers, &fresh.catalog.providers);
                    prop_assert_eq!(&build.catalog.routes, &fresh.catalog.routes);
                    prop_assert_eq!(&build.catalog.defaults, &fresh.catalog.defaults);
                    prop_assert_eq!(&build.catalog.objects, &fresh.catalog.objects);
                    prop_assert_eq!(&build.catalog.files, &fresh.catalog.files);
                    prop_assert_eq!(&build.catalog.frozen.objects, &fresh.catalog.frozen.objects);
                    prop_assert_eq!(&build.catalog.frozen.files, &fresh.catalog.frozen.files);
                    prop_assert_eq!(&build.catalog.frozen.providers, &fresh.catalog.frozen.providers);
                    prop_assert_eq!(&build.diagnostics, &fresh.diagnostics);
                    prop_assert_eq!(build.files, fresh.files);
                    // Files that were valid once are on record, so a history allows more prunes, never fewer.
                    let forbids = |build: &Build| build.catalog.frozen.no_prune.is_some();
                    prop_assert!(!forbids(&build) || forbids(&fresh));
                    if let (Some(before), Changed::Some { providers: changed, objects }) = (&before, &build.changed) {
                        let (old, new) = (desired(before), desired(&build));
                        for name in old.keys().chain(new.keys()) {
                            let is_same = old.get(name) == new.get(name);
                            prop_assert!(is_same || changed.contains(name.as_str()), "{} changed", name);
                        }
                        let same = before.catalog.objects == build.catalog.objects
                            && before.catalog.frozen.objects == build.catalog.frozen.objects;
                        prop_assert!(same || *objects, "an object changed");
                        let frozen = [before, &build].map(|it| &it.catalog.frozen.providers);
                        prop_assert!(frozen[0].symmetric_difference(frozen[1]).all(|it| changed.contains(it)));
                    }
                    before = Some(build);
                }
            }
        }
    }
}
