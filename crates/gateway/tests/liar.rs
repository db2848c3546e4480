//! Providers that lie, stall and break, real sockets on both sides: what the caller sees, what is written down, who is
//! asked next.

mod stage;

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::watch;

use stage::{Act, Liar, Stage, chat, eventually, plain};

const OK: &str = r#"{"id":"c","choices":[{"index":0,"message":{"role":"assistant","content":"Hello"},"finish_reason":"stop"}],"usage":{"prompt_tokens":7,"completion_tokens":2,"total_tokens":9}}"#;

fn say(text: impl Into<String>) -> Act {
    Act::Say(text.into())
}

fn status(line: &str, body: &str) -> Act {
    say(format!(
        "HTTP/1.1 {line}\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    ))
}

fn good_plain() -> Vec<Act> {
    vec![status("200 OK", OK)]
}

fn head() -> Act {
    say("HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")
}

fn event(data: &str) -> Act {
    let event = format!("data: {data}\n\n");
    say(format!("{:x}\r\n{event}\r\n", event.len()))
}

const ROLE: &str =
    r#"{"choices":[{"index":0,"delta":{"role":"assistant","content":""},"finish_reason":null}]}"#;
const WORD: &str = r#"{"choices":[{"index":0,"delta":{"content":"Hello"},"finish_reason":null}]}"#;
const STOP: &str = r#"{"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}"#;
const USAGE: &str = r#"{"choices":[],"usage":{"prompt_tokens":7,"completion_tokens":2,"total_tokens":9}}"#;

fn good_stream() -> Vec<Act> {
    vec![head(), event(ROLE), event(WORD), event(STOP), event(USAGE), event("[DONE]"), say("0\r\n\r\n")]
}

/// What one request over two providers comes to; `b` always answers well.
struct Expected {
    status: u16,
    /// `a`, `b`, or nobody.
    by: &'static str,
    attempts: u8,
    /// In the answer.
    holds: &'static str,
    /// Of the row.
    error: &'static str,
    source: &'static str,
}

async fn check(name: &str, stream: bool, script: Vec<Act>, expected: Expected) {
    let a = Liar::start(script).await;
    let b = Liar::start(if stream { good_stream() } else { good_plain() }).await;
    let stage = Stage::start(&[("a", &a), ("b", &b)]).await;
    let answer = stage.ask(&if stream { chat("m") } else { plain("m") }).await;
    assert_eq!(answer.status, expected.status, "{name}: {answer:?}");
    assert!(answer.body.contains(expected.holds), "{name}: {answer:?}");
    let by = answer.header("x-providerd-model").unwrap_or("").split('/').next().unwrap_or("").to_owned();
    assert_eq!(by, expected.by, "{name}: {answer:?}");
    let row = stage.only_row().await;
    assert_eq!((row.attempts, row.error.as_str()), (expected.attempts, expected.error), "{name}: {row:?}");
    assert_eq!((row.source, row.status), (expected.source, expected.status), "{name}: {row:?}");
    assert_eq!(row.fallback, expected.by == "b", "{name}: {row:?}");
    let whole = stream && expected.status == 200 && expected.error.is_empty();
    assert_eq!(answer.body.contains("[DONE]"), whole, "{name}: {answer:?}");
    if expected.error.is_empty() && expected.source == "reported" {
        assert_eq!((row.input, row.output), (7, 2), "{name}: {row:?}");
    }
    assert!(answer.whole, "{name}: the answer itself is in order: {answer:?}");
}

const BY_B: Expected =
    Expected { status: 200, by: "b", attempts: 2, holds: "Hello", error: "", source: "reported" };
const BY_A: Expected =
    Expected { status: 200, by: "a", attempts: 1, holds: "Hello", error: "", source: "reported" };

#[tokio::test]
async fn before_content_another_provider_answers_a_stream() {
    let cases: Vec<(&str, Vec<Act>)> = vec![
        ("closes at once", vec![Act::Close]),
        ("stalls before the head", vec![Act::Hang]),
        ("stalls within the head", vec![say("HTTP/1.1 200 OK\r\ncontent-ty"), Act::Hang]),
        ("breaks within the head", vec![say("HTTP/1.1 200 OK\r\ncontent-ty"), Act::Close]),
        ("stalls after the head", vec![head(), Act::Hang]),
        ("stalls after the role", vec![head(), event(ROLE), Act::Hang]),
        ("breaks after the role", vec![head(), event(ROLE), Act::Close]),
        ("ends after the role", vec![head(), event(ROLE), say("0\r\n\r\n")]),
        ("comments without end", vec![head(), Act::Repeat("8\r\n: wait\n\n\r\n".into())]),
        ("no HTTP", vec![say("SSH-2.0-liar\r\n\r\n")]),
        ("status 500", vec![status("500 Oops", "{}")]),
        ("status 503 with a page", vec![status("503 Busy", "<html>busy</html>")]),
        ("status 429", vec![status("429 Slow", r#"{"error":{"message":"slow down"}}"#)]),
        ("status 401", vec![status("401 No", r#"{"error":{"message":"bad key"}}"#)]),
        (
            "error as the first event",
            vec![head(), event(r#"{"error":{"message":"overloaded","code":503}}"#), Act::Hang],
        ),
        (
            "error after the role",
            vec![head(), event(ROLE), event(r#"{"error":{"message":"no"}}"#), say("0\r\n\r\n")],
        ),
        ("error as a plain 200", vec![status("200 OK", r#"{"error":{"message":"server had an error"}}"#)]),
        ("garbage events", vec![head(), event("{nonsense"), say("0\r\n\r\n")]),
    ];
    for (name, script) in cases {
        check(name, true, script, BY_B).await;
    }
}

#[tokio::test]
async fn before_its_end_another_provider_gives_a_plain_answer() {
    let cases: Vec<(&str, Vec<Act>)> = vec![
        ("closes at once", vec![Act::Close]),
        (
            "breaks within the body",
            vec![say("HTTP/1.1 200 OK\r\ncontent-length: 500\r\n\r\n{\"choices\":"), Act::Close],
        ),
        (
            "stalls within the body",
            vec![say("HTTP/1.1 200 OK\r\ncontent-length: 500\r\n\r\n{\"choices\":"), Act::Hang],
        ),
        ("a page", vec![status("200 OK", "<html>welcome</html>")]),
        ("nothing", vec![status("200 OK", "")]),
        ("half JSON", vec![status("200 OK", r#"{"choices":[{"#)]),
        ("an error inside 200", vec![status("200 OK", r#"{"error":{"message":"overloaded"}}"#)]),
        ("events", good_stream()),
        ("status 502", vec![status("502 Bad", "")]),
    ];
    for (name, script) in cases {
        check(name, false, script, BY_B).await;
    }
}

#[tokio::test]
async fn after_content_a_stream_ends_with_an_error_and_nobody_else_is_asked() {
    let cut =
        |holds, error| Expected { status: 200, by: "a", attempts: 1, holds, error, source: "estimated" };
    let cases: Vec<(&str, Vec<Act>, Expected)> = vec![
        (
            "breaks",
            vec![head(), event(WORD), Act::Close],
            cut("\"code\":\"upstream_truncated\"", "upstream_truncated"),
        ),
        (
            "ends early",
            vec![head(), event(WORD), say("0\r\n\r\n")],
            cut("upstream_truncated", "upstream_truncated"),
        ),
        ("stalls", vec![head(), event(WORD), Act::Hang], cut("\"param\":\"idle\"", "upstream_timeout")),
        (
            "breaks within an event",
            vec![head(), event(WORD), say("c\r\ndata: {\"choi\r\n"), Act::Close],
            cut("\n\ndata: {\"error\":", "upstream_truncated"),
        ),
        (
            "an error event",
            vec![head(), event(WORD), event(r#"{"error":{"message":"late"}}"#), say("0\r\n\r\n")],
            cut("late", "upstream_error"),
        ),
        (
            "drips without end",
            vec![head(), Act::Repeat(stage::chunk(&format!("data: {WORD}\n\n")))],
            cut("\"param\":\"total\"", "upstream_timeout"),
        ),
    ];
    for (name, script, expected) in cases {
        check(name, true, script, expected).await;
    }
}

#[tokio::test]
async fn usage_is_what_was_said_last_or_estimated() {
    let stream = |events: &[&str]| {
        let mut script = vec![head()];
        script.extend(events.iter().map(|data| event(data)));
        script.push(say("0\r\n\r\n"));
        script
    };
    check("once", true, good_stream(), BY_A).await;
    let none = Expected { source: "estimated", ..BY_A };
    check("none", true, stream(&[WORD, STOP, "[DONE]"]), none).await;
    let first = r#"{"choices":[{"index":0,"delta":{"content":"Hello"}}],"usage":{"prompt_tokens":7,"completion_tokens":1,"total_tokens":8}}"#;
    check("twice", true, stream(&[first, STOP, USAGE, "[DONE]"]), BY_A).await;
    let none = Expected { source: "estimated", ..BY_A };
    check(
        "plain without",
        false,
        vec![status("200 OK", r#"{"choices":[{"message":{"content":"Hello"}}]}"#)],
        none,
    )
    .await;
}

#[tokio::test]
async fn a_stream_without_its_mark_is_whole_by_the_reason_of_its_end() {
    let a = Liar::start(vec![head(), event(WORD), event(STOP), event(USAGE), say("0\r\n\r\n")]).await;
    let stage = Stage::start(&[("a", &a)]).await;
    let answer = stage.ask(&chat("m")).await;
    assert!(answer.body.contains("stop") && !answer.body.contains("error"), "{answer:?}");
    let row = stage.only_row().await;
    assert_eq!((row.error.as_str(), row.source, row.output), ("", "reported", 2), "{row:?}");
}

#[tokio::test]
async fn what_the_caller_did_wrong_is_answered_and_blames_nobody() {
    for (line, body, code) in [
        (
            "400 Bad",
            r#"{"error":{"message":"temperature is wrong","code":"bad_value","param":"temperature"}}"#,
            400,
        ),
        ("422 No", r#"{"detail":"field required"}"#, 422),
        ("413 Big", r#"{"error":{"message":"too big"}}"#, 413),
    ] {
        let a = Liar::start(vec![status(line, body)]).await;
        let b = Liar::start(good_plain()).await;
        let stage = Stage::start(&[("a", &a), ("b", &b)]).await;
        for _ in 0..25 {
            let answer = stage.ask(&plain("m")).await;
            assert_eq!(answer.status, code, "{answer:?}");
            assert!(answer.body.contains("\"error\":{"), "{answer:?}");
        }
        assert_eq!((a.requests().len(), b.requests().len()), (25, 0), "no cooldown, no fallback");
    }
}

#[tokio::test]
async fn an_oversize_answer_is_no_answer() {
    let a = Liar::start(vec![
        say("HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n"),
        Act::Repeat(stage::chunk(&" ".repeat(1 << 20))),
    ])
    .await;
    let b = Liar::start(good_plain()).await;
    let stage = Stage::start(&[("a", &a), ("b", &b)]).await;
    let answer = stage.ask(&plain("m")).await;
    assert_eq!((answer.status, answer.header("x-providerd-model")), (200, Some("b/m")), "{answer:?}");
}

#[tokio::test]
async fn keys_stay_where_they_belong() {
    let echo = format!(
        r#"{{"error":{{"message":"bad key {}","code":"{}"}}}}"#,
        stage::key_of("a"),
        stage::key_of("a")
    );
    for script in [
        vec![status("400 Bad", &echo)],
        vec![status("401 Bad", &echo)],
        vec![status("500 Bad", &echo)],
        vec![status("200 OK", &echo)],
        vec![say(format!(
            "HTTP/1.1 200 OK\r\nx-api-key: {}\r\ncontent-length: {}\r\n\r\n{OK}",
            stage::key_of("a"),
            OK.len()
        ))],
    ] {
        let a = Liar::start(script).await;
        let b = Liar::start(good_plain()).await;
        let stage = Stage::start(&[("a", &a), ("b", &b)]).await;
        let answer = stage.ask(&plain("m")).await;
        let shown = format!("{:?}", answer);
        let asked_a = a.requests().concat();
        let asked_b = b.requests().concat();
        let rows = format!("{:?}", stage.rows());
        assert!(asked_a.contains(&stage::key_of("a")), "it is asked with its own key");
        for (text, keys) in [
            (&shown, [stage::key_of("a"), stage::key_of("b"), stage::CALLER.to_owned()]),
            (&rows, [stage::key_of("a"), stage::key_of("b"), stage::CALLER.to_owned()]),
            (&asked_a, [stage::key_of("b"), stage::CALLER.to_owned(), "secret-cookie".to_owned()]),
            (&asked_b, [stage::key_of("a"), stage::CALLER.to_owned(), "secret-cookie".to_owned()]),
        ] {
            for key in keys {
                assert!(!text.contains(&key), "{key} in {text}");
            }
        }
        assert!(asked_a.contains("traceparent: 00-abc"), "{asked_a}");
    }
}

/// In a good answer: as text of the model, in other fields, cut between two reads of the socket and between two events.
#[tokio::test]
async fn a_key_in_a_good_answer_is_overwritten() {
    let key = stage::key_of("a");
    let (begin, end) = key.split_at(key.len() / 2);
    let said = WORD.replace("Hello", &key);
    let framed = |data: &str| format!("data: {data}\n\n");
    let whole = framed(&said);
    let cut = whole.find(end).expect("it is in there");
    let rest = || vec![event(STOP), event(USAGE), event("[DONE]"), say("0\r\n\r\n")];
    let in_chunks = [
        vec![
            head(),
            say(stage::chunk(&whole[..cut])),
            Act::Wait(Duration::from_millis(20)),
            say(stage::chunk(&whole[cut..])),
        ],
        rest(),
    ]
    .concat();
    let cases = [
        ("plain", plain("m"), vec![status("200 OK", &OK.replace("Hello", &key))]),
        (
            "in a header",
            plain("m"),
            vec![say(format!(
                "HTTP/1.1 200 OK\r\nx-request-id: {key}\r\ncontent-type: {key}\r\ncontent-length: {}\r\n\r\n{OK}",
                OK.len()
            ))],
        ),
        ("stream", chat("m"), [vec![head(), event(&said)], rest()].concat()),
        ("in two chunks", chat("m"), in_chunks),
        (
            "before content",
            chat("m"),
            [vec![head(), event(&ROLE.replace("assistant", &key)), event(WORD)], rest()].concat(),
        ),
        ("after content", chat("m"), [vec![head(), event(WORD), event(&said)], rest()].concat()),
    ];
    for (name, asked, script) in cases {
        let a = Liar::start(script).await;
        let stage = Stage::start(&[("a", &a)]).await;
        let answer = stage.ask(&asked).await;
        assert!(answer.status == 200 && answer.whole, "{name}: {answer:?}");
        let shown = format!("{answer:?}");
        assert!(!shown.contains(&key) && !shown.contains(begin) && !shown.contains(end), "{name}: {shown}");
        if name != "in a header" {
            assert!(answer.body.contains(&"*".repeat(key.len())), "{name}: {answer:?}");
            eventually("it is counted", || {
                stage.metrics().contains("providerd_gateway_keys_redacted_total 1")
            })
            .await;
        }
        assert_eq!(answer.body.contains("[DONE]"), asked == chat("m"), "{name}: {answer:?}");
        let row = stage.only_row().await;
        assert_eq!((row.error.as_str(), row.source), ("", "reported"), "{name}: {row:?}");
        assert!(!row.whole.contains(&key), "{name}: {row:?}");
    }
}

#[tokio::test]
async fn a_storm_does_not_grow() {
    let a = Liar::start(vec![status("503 Busy", "{}")]).await;
    let b = Liar::start(vec![status("503 Busy", "{}")]).await;
    let stage = Stage::start(&[("a", &a), ("b", &b)]).await;
    let requests = 300;
    let one = async || {
        for _ in 0..requests / 10 {
            let answer = stage.ask(&plain("m")).await;
            assert!(matches!(answer.status, 502 | 503), "{answer:?}");
            assert!(
                answer.body.contains("\"code\":\"upstream_error\"")
                    || answer.body.contains("\"code\":\"no_upstream\"")
            );
        }
    };
    tokio::join!(one(), one(), one(), one(), one(), one(), one(), one(), one(), one());
    let attempts = a.requests().len() + b.requests().len();
    assert!(attempts <= requests * 12 / 10, "{attempts} attempts");
}

#[tokio::test]
async fn a_caller_who_leaves_takes_the_request_along() {
    for script in
        [vec![Act::Hang], vec![head(), event(ROLE), Act::Hang], vec![head(), event(WORD), Act::Hang]]
    {
        let a = Liar::start(script).await;
        let b = Liar::start(good_stream()).await;
        let stage = Stage::start_with(&[("a", &a), ("b", &b)], |input| {
            for provider in &mut input.providers {
                provider.clocks = Default::default();
            }
        })
        .await;
        let caller = stage.send(&chat("m")).await;
        eventually("the provider is asked", || a.requests().len() == 1).await;
        drop(caller);
        eventually("the provider's connection is closed", || a.closed() == 1).await;
        eventually("a row is written", || stage.rows().len() == 1).await;
        let row = stage.only_row().await;
        assert_eq!(
            (row.status, row.error.as_str(), row.source),
            (499, "caller_left", "estimated"),
            "{row:?}"
        );
        assert_eq!(b.requests().len(), 0, "nobody else is asked");
    }
}

#[tokio::test]
async fn a_stream_is_kept_alive_while_a_model_thinks() {
    let a = Liar::start(vec![Act::Hang]).await;
    let b = Liar::start(good_stream()).await;
    let stage = Stage::start_settings(&[("a", &a), ("b", &b)], |settings| {
        settings.keepalive = Duration::from_millis(40);
    })
    .await;
    let answer = stage.ask(&chat("m")).await;
    assert!(answer.body.starts_with(": keep-alive\n\n"), "{answer:?}");
    assert!(
        answer.body.contains("Hello") && answer.body.contains("[DONE]"),
        "fallback still works: {answer:?}"
    );
    assert_eq!(stage.only_row().await.attempts, 2);
    let none =
        Stage::start_settings(&[("a", &a)], |settings| settings.keepalive = Duration::from_millis(40)).await;
    let answer = none.ask(&chat("m")).await;
    assert!(
        answer.body.contains("\"code\":\"upstream_timeout\"") && !answer.body.contains("[DONE]"),
        "{answer:?}"
    );
}

/// `GATEWAY_TEST_STREAMS=1000` (with `ulimit -n 20000`) is the full size.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reloads_fail_and_cut_nothing() {
    let streams =
        std::env::var("GATEWAY_TEST_STREAMS").ok().and_then(|count| count.parse().ok()).unwrap_or(150);
    let (end, said) = watch::channel(false);
    let held = vec![
        head(),
        event(WORD),
        Act::Until(said),
        event(STOP),
        event(USAGE),
        event("[DONE]"),
        say("0\r\n\r\n"),
    ];
    let (a, b) = (Liar::start(held).await, Liar::start(good_plain()).await);
    let stage = Stage::start_with(&[("a", &a), ("b", &b)], |input| {
        for provider in &mut input.providers {
            provider.clocks = Default::default();
        }
    })
    .await;
    let mut open = Vec::new();
    for _ in 0..streams {
        open.push(stage.send(&chat("a/m")).await);
    }
    for caller in &mut open {
        caller.until("Hello").await;
    }
    let (asked, over) = (AtomicUsize::new(0), AtomicBool::new(false));
    let load = async || {
        while !over.load(Ordering::SeqCst) {
            let answer = stage.ask(&plain("b/m")).await;
            assert!(answer.status == 200 && answer.whole, "{answer:?}");
            asked.fetch_add(1, Ordering::SeqCst);
        }
    };
    let reloads = async {
        for _ in 0..100 {
            let before = asked.load(Ordering::SeqCst);
            stage.reload();
            eventually("requests go on", || asked.load(Ordering::SeqCst) > before).await;
        }
        over.store(true, Ordering::SeqCst);
    };
    tokio::join!(reloads, load(), load(), load(), load());
    end.send(true).expect("the provider waits");
    for caller in open {
        let answer = caller.answer().await;
        assert!(answer.status == 200 && answer.body.contains("[DONE]") && answer.whole, "{answer:?}");
    }
    let all = streams + asked.load(Ordering::SeqCst);
    eventually("all rows are written", || stage.rows().len() == all).await;
    assert!(stage.rows().iter().all(|row| row.error.is_empty() && row.attempts == 1));
}

#[tokio::test]
async fn a_withdrawn_key_is_refused_at_once() {
    let a = Liar::start(good_plain()).await;
    let stage = Stage::start(&[("a", &a)]).await;
    assert_eq!(stage.ask(&plain("m")).await.status, 200);
    stage.reload_with(|input| input.consumers.clear());
    let answer = stage.ask(&plain("m")).await;
    assert_eq!(answer.status, 401, "{answer:?}");
    assert!(answer.body.contains("invalid_api_key"));
}

#[tokio::test]
async fn a_stop_lets_streams_end_and_then_says_so() {
    let a = Liar::start(vec![head(), event(WORD), Act::Hang]).await;
    let stage =
        Stage::start_settings(&[("a", &a)], |settings| settings.drain = Duration::from_millis(60)).await;
    stage.reload_with(|input| {
        for provider in &mut input.providers {
            provider.clocks = Default::default();
        }
    });
    let mut caller = stage.send(&chat("m")).await;
    caller.until("Hello").await;
    stage.stop();
    let answer = caller.answer().await;
    assert!(
        answer.body.contains("\"code\":\"shutting_down\"") && !answer.body.contains("[DONE]"),
        "{answer:?}"
    );
    assert!(answer.whole);
    eventually("a row is written", || stage.rows().len() == 1).await;
    assert_eq!(stage.only_row().await.error, "shutting_down");
}

#[tokio::test]
async fn the_extra_event_is_shown_to_those_who_asked() {
    let a = Liar::start(good_stream()).await;
    let stage = Stage::start(&[("a", &a)]).await;
    let answer = stage.ask(&chat("m")).await;
    assert!(!answer.body.contains("usage"), "{answer:?}");
    assert!(a.requests().concat().contains(r#""stream_options":{"include_usage":true}"#));
    let asked = stage::request(
        "/v1/chat/completions",
        r#"{"model":"m","stream":true,"stream_options":{"include_usage":true},"messages":[]}"#,
    );
    let answer = stage.ask(&asked).await;
    assert!(answer.body.contains("\"usage\""), "{answer:?}");
    eventually("both rows are written", || stage.rows().len() == 2).await;
    assert!(stage.rows().iter().all(|row| (row.input, row.output) == (7, 2)));
}

#[tokio::test]
async fn requests_are_refused_by_name() {
    let a = Liar::start(good_plain()).await;
    let stage = Stage::start(&[("a", &a)]).await;
    let check = async |path: &str, body: &str, status: u16, code: &str| {
        let answer = stage.ask(&stage::request(path, body)).await;
        assert_eq!(answer.status, status, "{body}: {answer:?}");
        assert!(answer.body.contains(&format!("\"code\":\"{code}\"")), "{body}: {answer:?}");
        assert!(answer.header("x-request-id").is_some());
    };
    let chat = "/v1/chat/completions";
    check(chat, "{", 400, "invalid_json").await;
    check(chat, "[]", 400, "invalid_json").await;
    check(chat, r#"{"model":"m","model":"x"}"#, 400, "duplicate_field").await;
    check(chat, r#"{"model":"nothing"}"#, 404, "model_not_found").await;
    check(chat, r#"{"model":"m","power_level":"turbo"}"#, 400, "unknown_power_level").await;
    check(chat, r#"{"model":"m","stream":"yes"}"#, 400, "invalid_request").await;
    check("/v1/responses", r#"{"model":"m","previous_response_id":"r"}"#, 400, "unsupported_parameter").await;
    check("/v1/nothing", "{}", 404, "not_found").await;
    let large = format!(r#"{{"model":"m","x":"{}"}}"#, "x".repeat(40 << 20));
    check(chat, &large, 413, "request_too_large").await;
    let answer = stage.ask(&stage::request("/v1/messages", r#"{"model":"nothing"}"#)).await;
    assert!(answer.body.contains(r#""type":"not_found_error""#), "{answer:?}");
    assert_eq!(a.requests().len(), 0);
    assert!(stage.rows().is_empty(), "what reached no provider makes no row");
}

#[tokio::test]
async fn own_fields_do_not_travel_and_the_model_is_the_providers() {
    let a = Liar::start(good_plain()).await;
    let stage = Stage::start_with(&[("a", &a)], |input| {
        input.providers[0].models[0].upstream_name = Some("real \"name\"".into());
    })
    .await;
    let body = r#"{"power_level":"eco", "model":"a/m","privacy_required":false,"x":1e400, "task_type":"t"}"#;
    let answer = stage.ask(&stage::request("/api/v1/llm/chat/completions", body)).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    assert_eq!(answer.header("x-provider-used"), Some("a"));
    let asked = a.requests().concat();
    assert!(asked.ends_with("{\"model\":\"real \\\"name\\\"\",\"x\":1e400}"), "{asked}");
    assert!(asked.starts_with("POST /v1/chat/completions HTTP/1.1\r\n"), "{asked}");
    assert_eq!(stage.only_row().await.model, "m");
}

#[tokio::test]
async fn models_are_listed_and_readiness_is_told() {
    let a = Liar::start(good_plain()).await;
    let stage = Stage::start(&[("a", &a)]).await;
    let answer = stage.ask(&stage::get("/v1/models")).await;
    assert!(
        answer.body.contains("\"id\":\"a/m\"") && answer.body.contains("cost_per_1m_input_tokens\":0.1"),
        "{answer:?}"
    );
    let answer = stage.ask(&stage::get("/v1/models/a%2Fm")).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    assert_eq!(stage.ask(&stage::get("/v1/models/a/none")).await.status, 404);
    assert_eq!(stage.ask(&stage::get("/readyz")).await.status, 200);
    assert_eq!(stage.ask(&stage::get("/livez")).await.status, 200);
    assert_eq!(stage.ask(&stage::get("/v1/chat/completions")).await.status, 405);
}
