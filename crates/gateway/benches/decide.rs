//! What a decision costs: key, ask, decision, seat, limits, as a handler calls them for one request.
//!
//! Not its job: a floor to compare with; the figures are nanoseconds of one thread. Invariant: no network, no files.

use std::{
    hint::black_box,
    time::{Duration, Instant},
};

use gateway::{
    ask::{Ask, AskBody, AskHead},
    course::AttemptOutcome,
    decide::decide,
    limit::{LimitBook, LimitScope},
    picture::{
        Api, ConsumerInput, KeyHashInput, LimitSpec, OfferInput, Picture, PictureInput, PowerLevel,
        RouteInput, UpstreamInput,
    },
    pulse::PulseBook,
    tick::Tick,
};
use uuid::Uuid;

const ROUNDS: u32 = 200_000;

/// Prints how long one call takes.
fn measure(what: &str, mut call: impl FnMut()) {
    (0..ROUNDS / 10).for_each(|_| call());
    let begin = Instant::now();
    (0..ROUNDS).for_each(|_| call());
    let each: Duration = begin.elapsed() / ROUNDS;
    println!("{what:<44} {:>6} ns", each.as_nanos());
}

/// Twenty providers of ten models each; the cell holds one model of each of the first `cell` providers.
fn town(cell: u128) -> PictureInput {
    let id = |provider: u128, model: u128| Uuid::from_u128(provider * 1_000 + model);
    let provider = |provider: u128| UpstreamInput {
        id: id(provider, 999),
        name: format!("provider-{provider}"),
        base_url: format!("https://p{provider}.test/v1"),
        models: (0..10)
            .map(|model| OfferInput {
                id: id(provider, model),
                name: format!("model-{model}"),
                ..OfferInput::default()
            })
            .collect(),
        ..UpstreamInput::default()
    };
    let route = |provider| RouteInput {
        model_id: id(provider, 0),
        level: PowerLevel::Eco,
        tier: "all".into(),
        task: None,
        priority: 100,
        weight: 100,
        enabled: true,
        origin: None,
    };
    PictureInput {
        providers: (0..20).map(provider).collect(),
        routes: (0..cell).map(route).collect(),
        consumers: vec![ConsumerInput {
            name: "web".into(),
            keys: vec![KeyHashInput { sha256: "ab".repeat(32), expires: None }],
            models: vec!["provider-*".into(), "eco".into(), "!*-preview".into()],
            limits: LimitSpec {
                requests_per_minute: Some(u64::MAX / 2),
                tokens_per_minute: Some(u64::MAX / 2),
                concurrency: Some(1_000),
                budgets: Vec::new(),
            },
            ..ConsumerInput::default()
        }],
        ..PictureInput::default()
    }
}

fn main() {
    for cell in [1, 3, 8, 20] {
        let (picture, problems) = Picture::build(&town(cell), |_| None);
        assert!(problems.is_empty(), "{problems:?}");
        let pulse = PulseBook::default().bind(&picture);
        let limits = LimitBook::default();
        let hash = [0xab; 32];
        let body = AskBody { model: Some("eco"), text_bytes: 1_000, ..AskBody::default() };
        let head = AskHead { session_id: Some("session-of-a-chat"), ..AskHead::default() };
        let ask = || {
            let consumer = picture.consumer(&hash, 0);
            Ask::new(&picture, consumer, Api::Chat, &body, &head, 7)
        };
        println!("cell of {cell}");
        measure("  key and ask, with a session", || {
            black_box(ask().is_ok());
        });
        let Ok(asked) = ask() else { return };
        measure("  decision", || {
            black_box(decide(&picture, &asked, &pulse, Tick(0)).candidates.len());
        });
        measure("  seat and outcome", || {
            if let Ok(mut flight) = pulse.begin(0, Some(0), true, Tick(0)) {
                black_box(flight.hear(AttemptOutcome::Content, Tick(1)));
            }
        });
        let Some(consumer) = picture.consumer(&hash, 0) else { return };
        measure("  limits: enter, reserve, settle", || {
            let scopes = [(LimitScope::Consumer(&consumer.name), &consumer.limits)];
            if let Ok(mut admission) = limits.enter(&scopes, Tick(0)) {
                black_box(admission.reserve(1_000, 0, Tick(0), 0).is_ok());
                admission.settle(900, None, Tick(1));
            }
        });
    }
}
