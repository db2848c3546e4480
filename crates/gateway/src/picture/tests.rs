//! What is left out of a picture, and what stands in it.

use super::*;

/// An id that is the same for the same name.
pub(crate) fn id(name: &str) -> Uuid {
    let mut bytes = [0_u8; 16];
    for (at, byte) in name.bytes().enumerate() {
        bytes[at % 16] = bytes[at % 16].wrapping_mul(31).wrapping_add(byte);
    }
    Uuid::from_bytes(bytes)
}

/// A provider at an origin of its own, with models.
pub(crate) fn provider(name: &str, models: &[&str]) -> UpstreamInput {
    let models = models.iter().map(|model| OfferInput {
        id: id(&format!("{name}/{model}")),
        name: (*model).into(),
        ..OfferInput::default()
    });
    UpstreamInput {
        id: id(name),
        name: name.into(),
        kind: "openai-compatible".into(),
        base_url: format!("https://{name}.test/v1"),
        models: models.collect(),
        ..UpstreamInput::default()
    }
}

/// A rule of `provider/model` in a cell `level/tier[/task]`.
pub(crate) fn route(full: &str, cell: &str, priority: i32, weight: i32) -> RouteInput {
    let mut parts = cell.split('/');
    RouteInput {
        model_id: id(full),
        level: PowerLevel::parse(parts.next().unwrap()).unwrap(),
        tier: parts.next().unwrap().into(),
        task: parts.next().map(Into::into),
        priority,
        weight,
        enabled: true,
        origin: None,
    }
}

/// A picture without keys and without problems.
pub(crate) fn picture(input: &PictureInput) -> Picture {
    let (picture, problems) = Picture::build(input, |_| None);
    assert_eq!(problems, []);
    picture
}

const FAKE_HASH: &str = "00112233445566778899aabbccddeeff00112233445566778899AABBCCDDEEFF";

fn fake_hash() -> [u8; 32] {
    sha256_of_hex(FAKE_HASH).unwrap()
}

#[test]
fn a_key_opens_one_consumer_until_it_expires() {
    let key = |expires| KeyHashInput { sha256: FAKE_HASH.into(), expires };
    let consumer = |name: &str, keys| ConsumerInput { name: name.into(), keys, ..ConsumerInput::default() };
    let input = PictureInput {
        consumers: vec![
            consumer("web", vec![key(Some(1_000))]),
            consumer("second", vec![key(None)]),
            consumer("broken", vec![KeyHashInput { sha256: "éé".repeat(16), expires: None }]),
        ],
        ..PictureInput::default()
    };
    let (picture, problems) = Picture::build(&input, |_| None);
    let who = |now| picture.consumer(&fake_hash(), now).map(|consumer| &*consumer.name);
    assert_eq!(who(999), Some("web"));
    assert_eq!(who(1_000), None);
    assert!(picture.consumer(&[0; 32], 0).is_none());
    assert_eq!(problems.len(), 2);
    assert!(problems.iter().all(|problem| !problem.to_string().to_lowercase().contains("00112233")));
}

#[test]
fn keys_are_headers_that_cannot_be_printed() {
    let mut bearer = provider("a", &[]);
    bearer.key_token = Some("token-of-a".into());
    let mut header = provider("b", &[]);
    header.key_token = Some("token-of-b".into());
    header.key_placement = KeyPlacement::Header("x-api-key".into());
    let mut bad = provider("c", &[]);
    bad.key_token = Some("no-token".into());
    let mut newline = provider("d", &[]);
    newline.key_token = Some("newline".into());
    let input = PictureInput { providers: vec![bearer, header, bad, newline], ..PictureInput::default() };
    let (picture, problems) = Picture::build(&input, |token| match token {
        "token-of-a" => Some(Zeroizing::new(b"FAKE-KEY-A".to_vec())),
        "token-of-b" => Some(Zeroizing::new(b"FAKE-KEY-B".to_vec())),
        "newline" => Some(Zeroizing::new(b"FAKE-\nKEY".to_vec())),
        _ => None,
    });
    let auth = |at: u32| picture.upstream(at).unwrap().auth.as_ref().unwrap();
    assert_eq!(auth(0).1.as_bytes(), b"Bearer FAKE-KEY-A");
    assert_eq!((auth(1).0.as_str(), auth(1).1.as_bytes()), ("x-api-key", &b"FAKE-KEY-B"[..]));
    assert!(picture.upstream(2).unwrap().key_failed());
    assert!(picture.upstream(3).unwrap().key_failed());
    assert_eq!(problems.len(), 2);
    let printed = format!("{picture:?} {problems:?}");
    assert!(!printed.contains("FAKE"), "{printed}");
    assert!(!serde_json::to_string(&input).unwrap().contains("FAKE"));
}

#[test]
fn the_input_survives_being_written_down() {
    let mut provider = provider("a", &["m"]);
    provider.apis = [Api::Responses, Api::Chat].into_iter().collect();
    provider.models[0].prices.long_context =
        vec![(200_000, PriceInput { input: Some(3), ..Default::default() })];
    let input = PictureInput {
        revision: "r1".into(),
        providers: vec![provider],
        routes: vec![route("a/m", "eco/all/chat", 1, 2)],
        levels: vec![LevelInput {
            level: PowerLevel::Eco,
            defaults: LevelDefaults { max_tokens: Some(5), temperature: Some(0.7) },
        }],
        ..PictureInput::default()
    };
    let text = serde_json::to_string(&input).unwrap();
    assert!(text.contains(r#""apis":["chat","responses"]"#), "{text}");
    assert_eq!(serde_json::from_str::<PictureInput>(&text).unwrap(), input);
    // What an older version wrote lacks newer fields.
    assert_eq!(serde_json::from_str::<PictureInput>("{}").unwrap(), PictureInput::default());
}

#[test]
fn the_longest_prefix_pins_and_ties_go_by_priority_then_name() {
    let with = |name: &str, priority: i32, prefixes: &[&str]| UpstreamInput {
        priority,
        prefixes: prefixes.iter().map(|prefix| (*prefix).into()).collect(),
        ..provider(name, &[])
    };
    let mut off = with("off", 99, &["o/"]);
    off.enabled = false;
    let picture = picture(&PictureInput {
        providers: vec![
            with("low", 1, &["o/", "o/long/"]),
            with("high", 5, &["o/"]),
            with("also", 5, &["o/", "é"]),
            off,
        ],
        ..PictureInput::default()
    });
    let check = |asked: &str, expected: Option<(&str, &str)>| {
        let found = picture.upstream_by_prefix(asked);
        let found = found.map(|(at, rest)| (&*picture.upstream(at).unwrap().name, rest));
        assert_eq!(found, expected, "{asked}");
    };
    check("o/m", Some(("also", "m")));
    check("o/long/m", Some(("low", "m")));
    check("é-m", Some(("also", "-m")));
    check("ç", None);
    check("", None);
}

#[test]
fn a_bad_object_spoils_nothing_else() {
    let mut broken = provider("broken", &["m"]);
    broken.base_url = "ftp://x".into();
    let mut twice = provider("twice", &["m", "m"]);
    twice.headers = vec![("bad name".into(), "x".into()), ("x-team".into(), "ops".into())];
    let input = PictureInput {
        providers: vec![broken, twice, provider("a", &["m"]), provider("a", &["n"])],
        routes: vec![route("broken/m", "eco/all", 1, 1), route("a/m", "eco/all", 1, -5)],
        ..PictureInput::default()
    };
    let (picture, problems) = Picture::build(&input, |_| None);
    assert_eq!(problems.len(), 5, "{problems:?}");
    let cell = picture.cell(PowerLevel::Eco, "all", None);
    assert_eq!(cell.len(), 1);
    assert_eq!(cell[0].weight, 0);
    assert_eq!(picture.offers_named("m").len(), 2);
    assert_eq!(picture.upstream(0).unwrap().headers.len(), 1);
}

#[test]
fn clocks_are_inherited_one_by_one() {
    let mut a = provider("a", &[]);
    a.clocks.total = Some(9_000);
    let mut local = provider("local", &[]);
    local.local = true;
    let rules = PictureRules {
        clocks: ClocksInput { idle: Some(7_000), ..Default::default() },
        ..Default::default()
    };
    let picture = picture(&PictureInput { rules, providers: vec![a, local], ..Default::default() });
    let clocks = |at: u32| picture.upstream(at).unwrap().clocks;
    assert_eq!(clocks(0).idle, Duration::from_secs(7));
    assert_eq!(
        (clocks(0).total, clocks(0).total_streaming),
        (Duration::from_secs(9), Duration::from_secs(9))
    );
    assert_eq!(clocks(0).first_token, Duration::from_secs(60));
    assert_eq!(clocks(1).first_token, Duration::from_secs(300));
}
