//! Who is asked, by hand, and what holds of every decision.

use std::collections::HashMap;

use proptest::prelude::*;

use super::*;
use crate::{
    ask::tests::ask,
    picture::{
        AliasInput, ApiSet, ConsumerInput, KeyStatus, PictureInput, PictureRules, UpstreamInput,
        tests::{picture, provider, route},
    },
};

fn names(picture: &Picture, decision: &Decision) -> Vec<String> {
    decision.candidates.iter().map(|candidate| candidate.full(picture)).collect()
}

fn words(picture: &Picture, decision: &Decision) -> Vec<String> {
    let skipped = decision.skipped.iter();
    skipped.map(|skipped| format!("{} {}", skipped.candidate.full(picture), skipped.word)).collect()
}

fn calm(picture: &Picture, ask: &Ask) -> Decision {
    decide(picture, ask, &CalmPulse, Tick::default())
}

/// Providers a to d with one model `m` each.
fn four(change: impl Fn(&mut UpstreamInput)) -> Vec<UpstreamInput> {
    let make = |name: &&str| {
        let mut provider = provider(name, &["m"]);
        change(&mut provider);
        provider
    };
    ["a", "b", "c", "d"].iter().map(make).collect()
}

#[test]
fn the_first_cell_with_a_usable_model_decides() {
    let input = |routes: &[(&str, &str)]| PictureInput {
        providers: four(|provider| provider.enabled = provider.name != "d"),
        routes: routes.iter().map(|(full, cell)| route(full, cell, 100, 100)).collect(),
        ..PictureInput::default()
    };
    let check = |routes: &[(&str, &str)], tier: Option<&str>, task: Option<&str>, expected: &[&str]| {
        let picture = picture(&input(routes));
        let mut ask = ask(&picture, Some("eco"));
        ask.tier = tier.map(Into::into);
        ask.task = task.map(Into::into);
        assert_eq!(names(&picture, &calm(&picture, &ask)), expected, "{routes:?} {tier:?} {task:?}");
    };
    let all = [("a/m", "eco/pro/chat"), ("b/m", "eco/pro"), ("c/m", "eco/all/chat"), ("a/m", "eco/all")];
    check(&all, Some("pro"), Some("chat"), &["a/m"]);
    check(&all, Some("pro"), None, &["b/m"]);
    check(&all, Some("pro"), Some("code"), &["b/m"]);
    check(&all, Some("free"), Some("chat"), &["c/m"]);
    check(&all, None, Some("code"), &["a/m"]);
    // A cell whose only model is switched off is no usable one.
    check(&[("d/m", "eco/pro/chat"), ("b/m", "eco/pro")], Some("pro"), Some("chat"), &["b/m"]);
    check(&[("d/m", "eco/pro"), ("b/m", "eco/all")], Some("pro"), Some("chat"), &["b/m"]);
    check(&[("d/m", "eco/all")], None, None, &[]);
    check(&[("a/m", "precision/all")], None, None, &[]);
}

#[test]
fn a_cooling_cell_is_not_left() {
    let picture = picture(&PictureInput {
        providers: four(|_| ()),
        routes: vec![route("a/m", "eco/pro", 1, 1), route("b/m", "eco/all", 1, 1)],
        ..PictureInput::default()
    });
    let mut ask = ask(&picture, Some("eco"));
    ask.tier = Some("pro".into());
    let decision = decide(&picture, &ask, &Weather(HashMap::from([(0, Tick(9_500))])), Tick(5_000));
    assert_eq!(names(&picture, &decision), [""; 0]);
    let error = decision.refusal(&picture, &ask, Tick(5_000)).unwrap();
    assert_eq!((error.status, error.retry_after_secs()), (503, Some(5)));
}

/// Upstreams that cool.
struct Weather(HashMap<u32, Tick>);

impl PulseView for Weather {
    fn standing(&self, upstream: u32, _: Option<u32>, _: Tick) -> Standing {
        self.0.get(&upstream).map_or(Standing::Ready, |until| Standing::Cooling { until: *until })
    }
}

#[test]
fn priority_then_health_and_the_last_resort_last() {
    let health = |name: &str| match name {
        "a" => HealthStatus::Unhealthy,
        "b" => HealthStatus::Degraded,
        "c" => HealthStatus::Unknown,
        _ => HealthStatus::Healthy,
    };
    let check = |exclude: bool, priorities: [i32; 4], expected: &[&str]| {
        let routes = ["a/m", "b/m", "c/m", "d/m"].iter().zip(priorities);
        let picture = picture(&PictureInput {
            rules: PictureRules { exclude_unhealthy: exclude, ..PictureRules::default() },
            providers: four(|provider| provider.health = health(&provider.name)),
            // Weight 0 comes last among equals, which makes the order a fixed one.
            routes: routes
                .map(|(full, priority)| route(full, "eco/all", priority, i32::from(*full != "d/m")))
                .collect(),
            ..PictureInput::default()
        });
        for seed in 0..50 {
            let ask = Ask { seed, ..ask(&picture, Some("eco")) };
            assert_eq!(names(&picture, &calm(&picture, &ask)), expected);
        }
    };
    check(false, [1, 1, 1, 1], &["c/m", "d/m", "b/m", "a/m"]);
    check(false, [9, 1, 1, 1], &["c/m", "d/m", "b/m", "a/m"]);
    check(false, [1, 5, 1, 2], &["b/m", "d/m", "c/m", "a/m"]);
    check(true, [9, 5, 1, 2], &["b/m", "d/m", "c/m"]);
}

#[test]
fn everybody_skipped_has_a_word() {
    let check =
        |word: &str, status: u16, change: &dyn Fn(&mut UpstreamInput), ask_change: &dyn Fn(&mut Ask)| {
            let mut only = provider("a", &["m"]);
            change(&mut only);
            let input = PictureInput {
                providers: vec![only],
                consumers: vec![ConsumerInput { models: vec!["b/*".into()], ..Default::default() }],
                ..PictureInput::default()
            };
            let (picture, _) = Picture::build(&input, |_| None);
            let mut ask = ask(&picture, Some("a/m"));
            ask_change(&mut ask);
            let decision = calm(&picture, &ask);
            assert_eq!(words(&picture, &decision), [format!("a/m {word}")]);
            let error = decision.refusal(&picture, &ask, Tick(0)).unwrap();
            assert_eq!(error.status, status, "{word}: {error}");
        };
    let same = |_: &mut Ask| ();
    check("disabled", 404, &|a| a.enabled = false, &same);
    check("disabled", 404, &|a| a.models[0].enabled = false, &same);
    check("unmanaged", 404, &|a| a.managed = false, &same);
    check("not_allowed", 403, &|_| (), &|ask| ask.consumer = Some(0));
    check("key_failed", 503, &|a| a.key_status = Some(KeyStatus::Failed), &same);
    check("key_failed", 503, &|a| a.key_missing = true, &same);
    check("key_failed", 503, &|a| a.key_token = Some("cannot be opened".into()), &same);
    check("dialect", 400, &|a| a.apis = ApiSet::default().with(Api::Messages), &same);
    check("not_local", 503, &|_| (), &|ask| ask.private = true);
    check("context_too_long", 400, &|a| a.models[0].context_length = Some(10), &|ask| {
        ask.input_at_least = 11
    });
}

#[test]
fn dialects_are_native_or_translated() {
    let mut translated = provider("a", &["m"]);
    translated.translated = ApiSet::default().with(Api::Messages);
    let picture = picture(&PictureInput { providers: vec![translated], ..PictureInput::default() });
    let native = |api| {
        let ask = Ask { api, ..ask(&picture, Some("a/m")) };
        calm(&picture, &ask).candidates.first().map(|candidate| candidate.native)
    };
    assert_eq!(native(Api::Chat), Some(true));
    assert_eq!(native(Api::Messages), Some(false));
    assert_eq!(native(Api::Responses), None);
}

#[test]
fn a_pin_finds_the_model_under_each_of_its_names() {
    let mut a = provider("a", &["m", "a/twice", "p/odd", "deep/er"]);
    a.prefixes = vec!["p/".into()];
    let mut open = provider("open", &["m"]);
    open.unlisted_models = true;
    let picture = picture(&PictureInput { providers: vec![a, open], ..PictureInput::default() });
    let check = |asked: &str, expected: &[&str]| {
        let mut found = names(&picture, &calm(&picture, &ask(&picture, Some(asked))));
        found.sort();
        assert_eq!(found, expected, "{asked}");
    };
    check("a/m", &["a/m"]);
    check("p/m", &["a/m"]);
    check("a/a/m", &["a/m"]);
    check("a/p/m", &["a/m"]);
    check("a/twice", &["a/a/twice"]);
    check("a/a/twice", &["a/a/twice"]);
    check("p/odd", &["a/p/odd"]);
    check("a/deep/er", &["a/deep/er"]);
    check("a/none", &[]);
    check("open/none", &["open/none"]);
    check("m", &["a/m", "open/m"]);
}

#[test]
fn an_alias_is_tried_in_its_order() {
    let alias = |targets: &[&str]| AliasInput {
        name: "x".into(),
        targets: targets.iter().map(|target| (*target).into()).collect(),
    };
    let check = |targets: &[&str], expected: &[&str]| {
        let picture = picture(&PictureInput {
            providers: four(|provider| {
                if provider.name == "c" {
                    provider.health = HealthStatus::Unhealthy;
                }
            }),
            routes: vec![route("a/m", "eco/all", 1, 1), route("b/m", "eco/all", 9, 1)],
            aliases: vec![alias(targets)],
            ..PictureInput::default()
        });
        assert_eq!(names(&picture, &calm(&picture, &ask(&picture, Some("x")))), expected);
    };
    check(&["d/m", "eco"], &["d/m", "b/m", "a/m"]);
    check(&["a/m", "eco", "d/m"], &["a/m", "b/m", "d/m"]);
    check(&["c/m", "d/none", "d/m"], &["d/m", "c/m"]);
}

#[test]
fn not_found_names_what_is_near_and_may_be_asked_for() {
    let mut off = provider("off", &["llama-3.1-8c"]);
    off.enabled = false;
    let picture = picture(&PictureInput {
        providers: vec![
            provider("groq", &["llama-3.1-8b", "mixtral"]),
            provider("secret", &["llama-3.1-8d"]),
            off,
        ],
        consumers: vec![ConsumerInput { models: vec!["groq/*".into()], ..Default::default() }],
        ..PictureInput::default()
    });
    let message = |asked: &str| {
        let ask = Ask { consumer: Some(0), ..ask(&picture, Some(asked)) };
        let error = calm(&picture, &ask).refusal(&picture, &ask, Tick(0)).unwrap();
        assert_eq!(error.code, ErrorCode::ModelNotFound);
        error.message.to_string()
    };
    assert_eq!(message("llama-3.1-8"), "there is no model `llama-3.1-8`; did you mean `llama-3.1-8b`?");
    assert!(message("groq/llama3.1-8b").ends_with("did you mean `groq/llama-3.1-8b`?"));
    assert!(message("entirely-other").contains("GET /v1/models"));
}

#[test]
fn lists_show_what_may_be_asked_for_and_nothing_else() {
    let alias = |name: &str, target: &str| AliasInput { name: name.into(), targets: vec![target.into()] };
    let picture = picture(&PictureInput {
        providers: four(|provider| provider.managed = provider.name != "d"),
        routes: vec![route("a/m", "eco/all", 1, 1), route("b/m", "balanced/all", 1, 1)],
        aliases: vec![alias("fast", "eco"), alias("bee", "b/m"), alias("gone", "z/m")],
        consumers: vec![ConsumerInput { models: vec!["a/*".into(), "bee".into()], ..Default::default() }],
        ..PictureInput::default()
    });
    let check = |consumer: Option<u32>, expected: &[&str]| {
        let consumer = consumer.map(|at| &picture.consumers()[at as usize]);
        let ids: Vec<_> = visible(&picture, consumer).into_iter().map(|model| model.id).collect();
        assert_eq!(ids, expected);
        for id in ["a/m", "b/m", "c/m", "d/m", "bee", "fast", "gone", "eco", "balanced", "precision", "x"] {
            let one = visible_one(&picture, consumer, id).map(|model| model.id);
            assert_eq!(one.is_some(), expected.contains(&id), "{id}");
        }
    };
    check(None, &["a/m", "b/m", "c/m", "bee", "fast", "eco", "balanced"]);
    check(Some(0), &["a/m", "bee", "fast", "eco"]);
}

#[test]
fn the_logarithm_is_exact_enough() {
    let check = |x: u64| {
        #[expect(clippy::cast_precision_loss, reason = "compared with a tolerance")]
        let (found, expected) = (negative_log2(x) as f64 / 16_777_216.0, 64.0 - (x as f64).log2());
        assert!((found - expected).abs() < 1e-6, "{x}: {found} {expected}");
    };
    [1, 2, 3, 1 << 32, (1 << 63) - 1, 1 << 63, u64::MAX].into_iter().for_each(check);
    (0..1_000).for_each(|at| check(mix(at) | 1));
}

#[test]
fn the_formula_is_pinned() {
    // Nodes of different versions must agree: a change here breaks sessions, and wants a reason.
    assert_eq!(name_hash("a/m"), 0xe620_bc19_0468_c37c);
    assert_eq!(rank(1, name_hash("a/m"), 100), 0x3457299999999);
}

/// Shares of first places over many seeds, compared with the weights by chi-square.
fn shares_come_out(weights: &[u32]) {
    const SEEDS: u64 = 20_000;
    let names: Vec<u64> = (0..weights.len()).map(|at| name_hash(&format!("provider-{at}/model"))).collect();
    let mut won = vec![0_u64; weights.len()];
    for seed in 0..SEEDS {
        let first = (0..weights.len()).min_by_key(|at| rank(seed, names[*at], weights[*at]));
        won[first.unwrap()] += 1;
    }
    let sum: f64 = weights.iter().copied().map(f64::from).sum();
    #[expect(clippy::cast_precision_loss, reason = "small counts")]
    let chi: f64 = won
        .iter()
        .zip(weights)
        .filter(|(_, weight)| **weight > 0)
        .map(|(won, weight)| {
            let expected = SEEDS as f64 * f64::from(*weight) / sum;
            (*won as f64 - expected).powi(2) / expected
        })
        .sum();
    // 99.99 % of right formulas stay below this with up to 7 degrees of freedom.
    assert!(chi < 30.0, "{weights:?}: {won:?}, chi-square {chi}");
    for (won, weight) in won.iter().zip(weights) {
        assert!(*weight > 0 || *won == 0);
    }
}

#[test]
fn weights_come_out() {
    shares_come_out(&[100, 100]);
    shares_come_out(&[1, 2, 3, 4]);
    shares_come_out(&[90, 9, 1]);
    shares_come_out(&[100, 0, 50]);
    shares_come_out(&[7, 7, 7, 7, 7, 7, 7, 7]);
}

proptest! {
    #[test]
    fn a_session_stays_where_it_is_and_only_the_share_of_the_lost_moves(
        seed in any::<u64>(),
        weights in prop::collection::vec(1..1_000_i32, 4),
        lost in 0..4_usize,
    ) {
        let all = ["a/m", "b/m", "c/m", "d/m"];
        let with = |keep: &dyn Fn(usize) -> bool, turn: bool| {
            let kept = all.iter().zip(&weights).enumerate().filter(|(at, _)| keep(*at));
            let mut routes: Vec<_> =
                kept.map(|(_, (full, weight))| route(full, "eco/all", 1, *weight)).collect();
            let mut providers = four(|_| ());
            if turn {
                routes.reverse();
                providers.reverse();
            }
            let picture = picture(&PictureInput { providers, routes, ..PictureInput::default() });
            let ask = Ask { seed, ..ask(&picture, Some("eco")) };
            names(&picture, &calm(&picture, &ask))
        };
        let whole = with(&|_| true, false);
        prop_assert_eq!(whole.len(), 4);
        // A node that read its rows in another order decides alike.
        prop_assert_eq!(&with(&|_| true, true), &whole);
        let rest = with(&|at| at != lost, false);
        let expected: Vec<_> = whole.iter().filter(|name| **name != all[lost]).cloned().collect();
        prop_assert_eq!(rest, expected);
    }

    #[test]
    fn a_pinned_ask_is_never_moved(
        seed in any::<u64>(),
        model in "[a-d]{1,2}",
        health in prop::collection::vec(0..4_usize, 4),
        enabled in prop::collection::vec(any::<bool>(), 4),
    ) {
        let mut providers = four(|_| ());
        for (at, provider) in providers.iter_mut().enumerate() {
            provider.health = HealthStatus::ALL[health[at]];
            provider.enabled = enabled[at];
            provider.prefixes = vec![format!("{}/", ["d", "c", "b", "a"][at])];
            provider.models.push(crate::picture::OfferInput {
                id: crate::picture::tests::id(&format!("{}!", provider.name)),
                name: "aa".into(),
                ..Default::default()
            });
        }
        let picture = picture(&PictureInput { providers, ..PictureInput::default() });
        for pinned in ["a", "b", "c", "d"] {
            let ask = Ask { seed, ..ask(&picture, Some(&format!("{pinned}/{model}"))) };
            for candidate in calm(&picture, &ask).candidates {
                prop_assert_eq!(&*picture.upstream(candidate.upstream).unwrap().name, pinned);
            }
        }
    }

    #[test]
    fn a_refusal_wins_over_every_way_of_asking(
        asked in prop::sample::select(vec!["eco", "x", "m", "a/m", "b/m", "auto"]),
        mut patterns in prop::collection::vec(
            prop::sample::select(vec!["*", "eco", "balanced", "x", "a/*", "*/m", "b/m", "!c/*", "!*preview"]), 0..4),
        denied in prop::sample::select(vec!["a/m", "a/*", "?/m", "*"]),
    ) {
        patterns.push("unused");
        let mut models: Vec<String> = patterns.into_iter().map(Into::into).collect();
        models.push(format!("!{denied}"));
        let picture = picture(&PictureInput {
            providers: four(|_| ()),
            routes: vec![
                route("a/m", "eco/all", 1, 1), route("b/m", "eco/all", 1, 1), route("a/m", "balanced/all", 1, 1),
            ],
            aliases: vec![AliasInput { name: "x".into(), targets: vec!["a/m".into(), "eco".into()] }],
            consumers: vec![ConsumerInput { models, ..Default::default() }],
            ..PictureInput::default()
        });
        let body = AskBody { model: Some(asked), ..AskBody::default() };
        let consumer = &picture.consumers()[0];
        let ask = Ask::new(&picture, Some(consumer), Api::Chat, &body, &AskHead::default(), 7).unwrap();
        let decision = calm(&picture, &ask);
        let denied = wildmatch::WildMatch::new(denied);
        for name in names(&picture, &decision) {
            prop_assert!(!denied.matches(&name), "{}", name);
        }
        if let Some(error) = decision.refusal(&picture, &ask, Tick(0)) {
            prop_assert!(matches!(error.code, ErrorCode::ModelNotAllowed), "{}", error);
        }
    }
}
