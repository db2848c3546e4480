//! Bodies by hand; the fuzz targets have arbitrary ones.

use super::*;

fn skim(body: &str) -> Result<Skim, SkimError> {
    Skim::of(body.as_bytes())
}

#[test]
fn fields_are_found_at_the_top_only() {
    let body =
        r#" { "messages" : [{"model":"inner","stream":true}], "model" : "a\/b" ,"n":2,"max_tokens":1e2 } "#;
    let found = skim(body).unwrap();
    assert_eq!(found.text(body.as_bytes(), BodyField::Model).unwrap().as_deref(), Some("a/b"));
    assert_eq!(found.count(body.as_bytes(), BodyField::N), Ok(Some(2)));
    assert_eq!(found.max_tokens(body.as_bytes()), Ok(Some(100)));
    assert_eq!(found.flag(body.as_bytes(), BodyField::Stream), Ok(false));
    assert_eq!(found.members, 4);
    assert_eq!(found.text_bytes(), r#"[{"model":"inner","stream":true}]"#.len() as u64);
}

#[test]
fn keys_with_escapes_are_the_same_keys() {
    let body = r#"{"mod\u0065l":"x"}"#;
    assert_eq!(skim(body).unwrap().text(body.as_bytes(), BodyField::Model).unwrap().as_deref(), Some("x"));
    for twice in [r#"{"model":"a","mod\u0065l":"b"}"#, r#"{"x":1,"y":2,"x":3}"#, r#"{"":1,"":2}"#] {
        assert!(matches!(skim(twice), Err(SkimError::Duplicate(_))), "{twice}");
    }
    let many = (0..40).map(|n| format!("\"k{n}\":1")).collect::<Vec<_>>().join(",");
    assert!(skim(&format!("{{{many}}}")).is_ok());
    assert_eq!(skim(&format!("{{{many},\"k\\u0033\":1}}")).unwrap_err(), SkimError::Duplicate("k3".into()));
    // Within messages a key may stand twice: no reader of ours looks there.
    assert!(skim(r#"{"messages":[{"a":1,"a":2}]}"#).is_ok());
}

#[test]
fn what_is_no_json_object_is_refused() {
    let check = |body: &str, at: usize| match skim(body) {
        Err(SkimError::Json { at: found, .. }) => assert_eq!(found, at, "{body}"),
        other => panic!("{body}: {other:?}"),
    };
    check("", 0);
    check("{", 1);
    check("{\"a\":1", 6);
    check("{\"a\":1,}", 7);
    check("{\"a\" 1}", 5);
    check("{\"a\":01}", 6);
    check("{\"a\":-}", 6);
    check("{\"a\":1.}", 7);
    check("{\"a\":tru}", 5);
    check("{\"a\":[1 2]}", 8);
    check("{\"a\":[1}}", 7);
    check("{\"a\":\"\\x\"}", 6);
    check("{\"a\":\"\\u12g4\"}", 6);
    check("{\"a\":\"\n\"}", 6);
    check("{\"a\":1} x", 8);
    check("{\"a\":1}{}", 7);
    check("{'a':1}", 1);
    assert_eq!(skim("[1]").unwrap_err(), SkimError::NoObject);
    assert_eq!(skim("null").unwrap_err(), SkimError::NoObject);
    assert!(matches!(Skim::of(b"{\"a\":\"\xff\"}"), Err(SkimError::Json { at: 6, .. })));
}

#[test]
fn nesting_ends_at_128() {
    let nested = |levels: usize| format!("{{\"a\":{}{}}}", "[".repeat(levels - 1), "]".repeat(levels - 1));
    assert!(skim(&nested(128)).is_ok());
    assert!(matches!(skim(&nested(129)), Err(SkimError::Json { what: "nested deeper than 128 levels", .. })));
    assert!(skim(&"[".repeat(1_000_000)).is_err());
}

#[test]
fn types_that_cannot_be_are_named() {
    let check = |body: &str, read: fn(&Skim, &[u8]) -> Result<(), SkimError>, field| {
        let error = read(&skim(body).unwrap(), body.as_bytes()).unwrap_err();
        assert!(matches!(error, SkimError::Type { field: found, .. } if found == field), "{error}");
    };
    check(r#"{"model":7}"#, |s, b| s.text(b, BodyField::Model).map(drop), BodyField::Model);
    check(r#"{"model":"\ud800"}"#, |s, b| s.text(b, BodyField::Model).map(drop), BodyField::Model);
    check(r#"{"stream":"true"}"#, |s, b| s.flag(b, BodyField::Stream).map(drop), BodyField::Stream);
    check(r#"{"max_tokens":"9"}"#, |s, b| s.max_tokens(b).map(drop), BodyField::MaxTokens);
    check(r#"{"n":-1}"#, |s, b| s.count(b, BodyField::N).map(drop), BodyField::N);
}

#[test]
fn pictures_are_parts_and_no_text() {
    let picture = "iVBORw0KGgo".repeat(1000);
    let body = format!(
        r#"{{"messages":[{{"role":"user","content":[{{"type":"image_url","image_url":{{"url":"data:image/png;base64,{picture}"}}}},{{"type":"text","text":"what is it?"}}]}},{{"type":"image","source":{{"type":"base64","data":"{picture}"}}}}]}}"#
    );
    let found = skim(&body).unwrap();
    assert_eq!(found.media_parts, 2);
    assert!(found.text_bytes() < 300, "{}", found.text_bytes());
    let text = format!(r#"{{"prompt":"{}"}}"#, "a plain word ".repeat(200));
    assert!(skim(&text).unwrap().text_bytes() > 2000);
}

#[test]
fn usage_is_wanted_where_it_says_so() {
    let check = |options: &str, expected| {
        let body = format!(r#"{{"stream_options":{options}}}"#);
        assert_eq!(skim(&body).unwrap().wants_usage(body.as_bytes()), expected, "{options}");
    };
    check(r#"{"include_usage":true}"#, true);
    check(r#"{"x":{"include_usage":true}}"#, false);
    check(r#"{"include_usage":false}"#, false);
    check("null", false);
    check("[]", false);
}

#[test]
fn a_run_ends_at_what_is_special_wherever_it_stands() {
    for length in 0..400 {
        for special in [b'"', b'\\', b'\n', 0, 0x1f] {
            let mut bytes = vec![b'x'; length];
            bytes.push(special);
            bytes.extend_from_slice(&[b'"'; 40]);
            assert_eq!(plain_run(&bytes), length);
        }
        assert_eq!(plain_run(&vec![0xe4; length]), length);
    }
}
