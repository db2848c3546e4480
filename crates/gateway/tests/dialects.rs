//! Callers of each dialect before providers of others, real sockets on both sides: what the provider is asked, what the
//! caller sees, what is written down.

mod stage;

use gateway::picture::{Api, ApiSet, KeyPlacement, UpstreamInput};
use serde_json::Value;
use stage::{Act, CALLER, Liar, Seen, Stage, chunk, eventually, key_of, request};

const CALLERS: [Api; 3] = [Api::Chat, Api::Responses, Api::Messages];
const KINDS: [&str; 4] = ["anthropic", "google", "cohere", "ollama"];

fn say(text: impl Into<String>) -> Act {
    Act::Say(text.into())
}

fn status(line: &str, body: &str) -> Act {
    say(format!(
        "HTTP/1.1 {line}\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    ))
}

fn head(kind: &str) -> Act {
    let kind = if kind == "ollama" { "application/x-ndjson" } else { "text/event-stream" };
    say(format!("HTTP/1.1 200 OK\r\ncontent-type: {kind}\r\ntransfer-encoding: chunked\r\n\r\n"))
}

fn end() -> Act {
    say("0\r\n\r\n")
}

/// A call of the tool after a word, in a provider's own form.
fn plain_answer(kind: &str) -> Vec<Act> {
    let body = match kind {
        "anthropic" => {
            r#"{"id":"msg_1","type":"message","role":"assistant","model":"m","content":[{"type":"text","text":"Hello"},{"type":"tool_use","id":"toolu_1","name":"weather","input":{"city":"Bern"}}],"stop_reason":"tool_use","stop_sequence":null,"usage":{"input_tokens":7,"output_tokens":2}}"#
        }
        "google" => {
            r#"{"candidates":[{"content":{"role":"model","parts":[{"text":"Hello"},{"functionCall":{"name":"weather","args":{"city":"Bern"}}}]},"finishReason":"STOP","index":0}],"usageMetadata":{"promptTokenCount":7,"candidatesTokenCount":2,"totalTokenCount":9}}"#
        }
        "cohere" => {
            r#"{"id":"c-1","finish_reason":"TOOL_CALL","message":{"role":"assistant","content":[{"type":"text","text":"Hello"}],"tool_calls":[{"id":"weather_1","type":"function","function":{"name":"weather","arguments":"{\"city\":\"Bern\"}"}}]},"usage":{"tokens":{"input_tokens":7,"output_tokens":2}}}"#
        }
        _ => {
            r#"{"model":"m","created_at":"2024-01-01T00:00:00Z","message":{"role":"assistant","content":"Hello","tool_calls":[{"function":{"name":"weather","arguments":{"city":"Bern"}}}]},"done":true,"done_reason":"stop","prompt_eval_count":7,"eval_count":2}"#
        }
    };
    vec![status("200 OK", body)]
}

/// Events of a stream: what comes up to the first word, and the rest.
fn events(kind: &str) -> (Vec<String>, Vec<String>) {
    let named = |data: &&str| {
        let json: Value = serde_json::from_str(data).expect("hand-written JSON");
        format!("event: {}\ndata: {data}\n\n", json["type"].as_str().expect("a type"))
    };
    let (first, rest): (&[&str], &[&str]) = match kind {
        "anthropic" => (
            &[
                r#"{"type":"message_start","message":{"id":"msg_1","type":"message","role":"assistant","model":"m","content":[],"stop_reason":null,"usage":{"input_tokens":7,"output_tokens":1}}}"#,
                r#"{"type":"content_block_start","index":0,"content_block":{"type":"text","text":""}}"#,
                r#"{"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":"Hello"}}"#,
            ],
            &[
                r#"{"type":"content_block_stop","index":0}"#,
                r#"{"type":"content_block_start","index":1,"content_block":{"type":"tool_use","id":"toolu_1","name":"weather","input":{}}}"#,
                r#"{"type":"content_block_delta","index":1,"delta":{"type":"input_json_delta","partial_json":"{\"city\":"}}"#,
                r#"{"type":"content_block_delta","index":1,"delta":{"type":"input_json_delta","partial_json":"\"Bern\"}"}}"#,
                r#"{"type":"content_block_stop","index":1}"#,
                r#"{"type":"message_delta","delta":{"stop_reason":"tool_use","stop_sequence":null},"usage":{"output_tokens":2}}"#,
                r#"{"type":"message_stop"}"#,
            ],
        ),
        "google" => (
            &[
                r#"{"candidates":[{"content":{"role":"model","parts":[{"text":"Hello"}]},"index":0}],"usageMetadata":{"promptTokenCount":7,"totalTokenCount":7}}"#,
            ],
            &[
                r#"{"candidates":[{"content":{"role":"model","parts":[{"functionCall":{"name":"weather","args":{"city":"Bern"}}}]},"finishReason":"STOP","index":0}],"usageMetadata":{"promptTokenCount":7,"candidatesTokenCount":2,"totalTokenCount":9}}"#,
            ],
        ),
        "cohere" => (
            &[
                r#"{"type":"message-start","id":"c-1","delta":{"message":{"role":"assistant","content":[],"tool_calls":[]}}}"#,
                r#"{"type":"content-start","index":0,"delta":{"message":{"content":{"type":"text","text":""}}}}"#,
                r#"{"type":"content-delta","index":0,"delta":{"message":{"content":{"text":"Hello"}}}}"#,
            ],
            &[
                r#"{"type":"content-end","index":0}"#,
                r#"{"type":"tool-call-start","index":0,"delta":{"message":{"tool_calls":{"id":"weather_1","type":"function","function":{"name":"weather","arguments":""}}}}}"#,
                r#"{"type":"tool-call-delta","index":0,"delta":{"message":{"tool_calls":{"function":{"arguments":"{\"city\":"}}}}}"#,
                r#"{"type":"tool-call-delta","index":0,"delta":{"message":{"tool_calls":{"function":{"arguments":"\"Bern\"}"}}}}}"#,
                r#"{"type":"tool-call-end","index":0}"#,
                r#"{"type":"message-end","delta":{"finish_reason":"TOOL_CALL","usage":{"tokens":{"input_tokens":7,"output_tokens":2}}}}"#,
            ],
        ),
        _ => (
            &[r#"{"model":"m","message":{"role":"assistant","content":"Hello"},"done":false}"#],
            &[
                r#"{"model":"m","message":{"role":"assistant","content":"","tool_calls":[{"function":{"name":"weather","arguments":{"city":"Bern"}}}]},"done":false}"#,
                r#"{"model":"m","message":{"role":"assistant","content":""},"done":true,"done_reason":"stop","prompt_eval_count":7,"eval_count":2}"#,
            ],
        ),
    };
    let framed = |data: &&str| match kind {
        "anthropic" | "cohere" => named(data),
        "google" => format!("data: {data}\n\n"),
        _ => format!("{data}\n"),
    };
    (first.iter().map(framed).collect(), rest.iter().map(framed).collect())
}

/// The script of a stream; each event in two pieces, so that nothing depends on where bytes are cut.
fn pieces(events: Vec<String>) -> Vec<Act> {
    events
        .iter()
        .flat_map(|event| {
            let (a, b) = event.split_at(event.len() / 2);
            [say(chunk(a)), say(chunk(b))]
        })
        .collect()
}

fn stream_answer(kind: &str) -> Vec<Act> {
    let (first, rest) = events(kind);
    [vec![head(kind)], pieces(first), pieces(rest), vec![end()]].concat()
}

/// A request with a tool.
fn asking(caller: Api, stream: bool) -> String {
    let schema = r#"{"type":"object","properties":{"city":{"type":"string"}},"required":["city"]}"#;
    match caller {
        Api::Responses => request(
            "/v1/responses",
            &format!(
                r#"{{"model":"m","stream":{stream},"input":"hi","tools":[{{"type":"function","name":"weather","parameters":{schema}}}]}}"#
            ),
        ),
        Api::Messages => request(
            "/v1/messages",
            &format!(
                r#"{{"model":"m","stream":{stream},"max_tokens":50,"messages":[{{"role":"user","content":"hi"}}],"tools":[{{"name":"weather","input_schema":{schema}}}]}}"#
            ),
        ),
        _ => request(
            "/v1/chat/completions",
            &format!(
                r#"{{"model":"m","stream":{stream},"messages":[{{"role":"user","content":"hi"}}],"tools":[{{"type":"function","function":{{"name":"weather","parameters":{schema}}}}}]}}"#
            ),
        ),
    }
}

/// Makes a provider of the stage one of this type; what it speaks is then reached by translation alone.
fn become_kind(provider: &mut UpstreamInput, kind: &str) {
    provider.kind = kind.into();
    provider.apis = ApiSet::default();
    provider.translated = CALLERS.into_iter().collect();
    match kind {
        "anthropic" => {
            provider.apis = ApiSet::default().with(Api::Messages);
            provider.key_placement = KeyPlacement::Header("x-api-key".into());
        }
        "google" => provider.key_placement = KeyPlacement::Header("x-goog-api-key".into()),
        _ => {}
    }
}

const MARKS: [&str; 4] = ["[DONE]", "message_stop", "response.completed", "response.incomplete"];

/// The data of all events of a stream that are JSON.
fn data_of(body: &str) -> Vec<Value> {
    body.lines()
        .filter_map(|line| line.strip_prefix("data: "))
        .filter(|data| *data != "[DONE]")
        .map(|data| serde_json::from_str(data).unwrap_or_else(|error| panic!("{error}: {data}")))
        .collect()
}

/// The text and the call of an answer in the caller's dialect: name and arguments.
fn said(caller: Api, stream: bool, seen: &Seen) -> (String, String, Value) {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let (mut words, mut name, mut arguments) = (String::new(), String::new(), String::new());
    match (caller, stream) {
        (Api::Chat, false) => {
            let json: Value = serde_json::from_str(&seen.body).expect("JSON");
            let choice = &json["choices"][0];
            assert_eq!(choice["finish_reason"], "tool_calls", "{seen:?}");
            assert_eq!(json["usage"]["total_tokens"], 9, "{seen:?}");
            words = text(&choice["message"]["content"]);
            let call = &choice["message"]["tool_calls"][0]["function"];
            (name, arguments) = (text(&call["name"]), text(&call["arguments"]));
        }
        (Api::Chat, true) => {
            for event in data_of(&seen.body) {
                let delta = &event["choices"][0]["delta"];
                words += &text(&delta["content"]);
                let call = &delta["tool_calls"][0]["function"];
                name += &text(&call["name"]);
                arguments += &text(&call["arguments"]);
            }
            assert!(seen.body.ends_with("data: [DONE]\n\n"), "{seen:?}");
        }
        (Api::Messages, false) => {
            let json: Value = serde_json::from_str(&seen.body).expect("JSON");
            assert_eq!(
                (&json["type"], &json["stop_reason"]),
                (&"message".into(), &"tool_use".into()),
                "{seen:?}"
            );
            words = text(&json["content"][0]["text"]);
            name = text(&json["content"][1]["name"]);
            arguments = json["content"][1]["input"].to_string();
        }
        (Api::Messages, true) => {
            for event in data_of(&seen.body) {
                name += &text(&event["content_block"]["name"]);
                words += &text(&event["delta"]["text"]);
                arguments += &text(&event["delta"]["partial_json"]);
            }
            assert!(seen.body.contains("event: message_stop"), "{seen:?}");
        }
        (_, plain_or_stream) => {
            let response = if plain_or_stream {
                let last = data_of(&seen.body).pop().expect("events");
                assert_eq!(last["type"], "response.completed", "{seen:?}");
                last["response"].clone()
            } else {
                serde_json::from_str(&seen.body).expect("JSON")
            };
            assert_eq!(response["status"], "completed", "{seen:?}");
            words = text(&response["output"][0]["content"][0]["text"]);
            name = text(&response["output"][1]["name"]);
            arguments = text(&response["output"][1]["arguments"]);
        }
    }
    (words, name, serde_json::from_str(&arguments).unwrap_or_else(|error| panic!("{error}: {seen:?}")))
}

fn free_of_keys(seen: &Seen) {
    for canary in [CALLER.to_owned(), key_of("a"), key_of("b")] {
        assert!(!seen.body.contains(&canary) && !seen.head.contains(&canary), "{seen:?}");
    }
}

#[tokio::test]
async fn callers_of_each_dialect_get_answers_and_calls_of_providers_of_others() {
    for kind in KINDS {
        for stream in [false, true] {
            for caller in CALLERS.into_iter().filter(|caller| (*caller, kind) != (Api::Messages, "anthropic"))
            {
                let a = Liar::start(if stream { stream_answer(kind) } else { plain_answer(kind) }).await;
                let stage =
                    Stage::start_with(&[("a", &a)], |input| become_kind(&mut input.providers[0], kind)).await;
                let seen = stage.ask(&asking(caller, stream)).await;
                let name = format!("{} by {kind}, stream: {stream}: {seen:?}", caller.as_str());
                assert_eq!((seen.status, seen.whole), (200, true), "{name}");
                let (words, tool, arguments) = said(caller, stream, &seen);
                assert_eq!((&*words, &*tool), ("Hello", "weather"), "{name}");
                assert_eq!(arguments, serde_json::json!({"city": "Bern"}), "{name}");
                free_of_keys(&seen);
                let row = stage.only_row().await;
                assert_eq!((row.input, row.output, row.source), (7, 2, "reported"), "{name}: {row:?}");
                assert_eq!((row.status, &*row.error, row.attempts), (200, "", 1), "{name}: {row:?}");

                let asked = a.requests().pop().expect("one");
                let path = match (kind, stream) {
                    ("anthropic", _) => "POST /v1/messages HTTP",
                    ("google", true) => "POST /v1/models/m:streamGenerateContent?alt=sse HTTP",
                    ("google", false) => "POST /v1/models/m:generateContent HTTP",
                    ("cohere", _) => "POST /v2/chat HTTP",
                    _ => "POST /api/chat HTTP",
                };
                assert!(asked.starts_with(path), "{name}: {asked}");
                let key = match kind {
                    "anthropic" => format!("x-api-key: {}", key_of("a")),
                    "google" => format!("x-goog-api-key: {}", key_of("a")),
                    _ => format!("authorization: Bearer {}", key_of("a")),
                };
                assert!(asked.contains(&key), "{name}: {asked}");
                assert_eq!(asked.contains("anthropic-version: "), kind == "anthropic", "{name}: {asked}");
                assert!(asked.contains("traceparent: 00-abc"), "{name}: {asked}");
                for never in [CALLER, "secret-cookie"] {
                    assert!(!asked.contains(never), "{name}: {asked}");
                }
            }
        }
    }
}

/// Bodies from 256 KiB are translated on another thread: what arrives is the same.
#[tokio::test]
async fn large_bodies_are_translated_whole_in_both_directions() {
    let words = "All work and no play. ".repeat(60_000);
    let answer = serde_json::json!({
        "id": "msg_1", "type": "message", "role": "assistant", "model": "m", "stop_reason": "end_turn",
        "content": [{"type": "text", "text": words}], "usage": {"input_tokens": 7, "output_tokens": 2}
    });
    let a = Liar::start(vec![status("200 OK", &answer.to_string())]).await;
    let stage =
        Stage::start_with(&[("a", &a)], |input| become_kind(&mut input.providers[0], "anthropic")).await;
    let body = serde_json::json!({"model": "m", "messages": [{"role": "user", "content": words}]});
    let seen = stage.ask(&request("/v1/chat/completions", &body.to_string())).await;
    assert_eq!(seen.status, 200);
    let json: Value = serde_json::from_str(&seen.body).expect("JSON");
    assert!(json["choices"][0]["message"]["content"] == *words);
    let asked = a.requests().pop().expect("one");
    let (_, asked) = asked.split_once("\r\n\r\n").expect("a body");
    let asked: Value = serde_json::from_str(asked).expect("JSON");
    assert!(asked["messages"][0]["content"][0]["text"] == *words);
    let row = stage.only_row().await;
    assert_eq!((row.input, row.output, row.source), (7, 2, "reported"));
}

#[tokio::test]
async fn a_key_in_a_translated_answer_is_overwritten() {
    let key = key_of("a");
    for kind in KINDS {
        let (first, rest) = events(kind);
        let with_key = first.iter().map(|event| event.replace("Hello", &key)).collect();
        let streamed = [vec![head(kind)], pieces(with_key), pieces(rest), vec![end()]].concat();
        let Some(Act::Say(text)) = plain_answer(kind).pop() else { panic!("an answer is said") };
        let (_, body) = text.split_once("\r\n\r\n").expect("a head");
        let plain = vec![status("200 OK", &body.replace("Hello", &key))];
        for (stream, script) in [(false, plain), (true, streamed)] {
            for caller in CALLERS {
                let a = Liar::start(script.clone()).await;
                let stage =
                    Stage::start_with(&[("a", &a)], |input| become_kind(&mut input.providers[0], kind)).await;
                let seen = stage.ask(&asking(caller, stream)).await;
                let name = format!("{} by {kind}, stream: {stream}: {seen:?}", caller.as_str());
                assert_eq!((seen.status, seen.whole), (200, true), "{name}");
                free_of_keys(&seen);
                let stars = "*".repeat(key.len());
                let text = match (caller, kind) {
                    // Untouched but for the key: the same dialect on both sides.
                    (Api::Messages, "anthropic") => seen.body.clone(),
                    _ => said(caller, stream, &seen).0,
                };
                assert!(text.contains(&stars), "{name}");
            }
        }
    }
}

#[tokio::test]
async fn a_fallback_to_another_dialect_is_seen_by_nothing_but_the_headers() {
    for caller in CALLERS {
        for stream in [false, true] {
            let a = Liar::start(vec![status("503 Busy", r#"{"error":{"message":"busy"}}"#)]).await;
            let b = Liar::start(if stream { stream_answer("google") } else { plain_answer("google") }).await;
            let stage = Stage::start_with(&[("a", &a), ("b", &b)], |input| {
                input.providers[0].translated = CALLERS.into_iter().collect();
                become_kind(&mut input.providers[1], "google");
            })
            .await;
            let seen = stage.ask(&asking(caller, stream)).await;
            assert_eq!((seen.status, seen.header("x-providerd-model")), (200, Some("b/m")), "{seen:?}");
            assert_eq!(said(caller, stream, &seen).1, "weather");
            free_of_keys(&seen);
            let row = stage.only_row().await;
            assert!(row.fallback && row.attempts == 2 && row.source == "reported", "{row:?}");
            // Each was asked in its own dialect, from the same bytes, and no key met another provider.
            let (first, second) = (a.requests().pop().expect("a"), b.requests().pop().expect("b"));
            assert!(!first.contains(&key_of("b")) && !second.contains(&key_of("a")), "{first}\n{second}");
            assert!(second.contains("functionDeclarations"), "{second}");
        }
    }
}

#[tokio::test]
async fn before_content_a_failure_in_another_dialect_leads_to_the_next() {
    let (first, _) = events("anthropic");
    let begin = || pieces(first.iter().take(2).cloned().collect());
    let error = "event: error\ndata: {\"type\":\"error\",\"error\":{\"type\":\"overloaded_error\",\"message\":\"Overloaded\"}}\n\n";
    let cases: Vec<(&str, Vec<Act>)> = vec![
        ("ends early", [vec![head("anthropic")], begin(), vec![end()]].concat()),
        ("breaks", [vec![head("anthropic")], begin(), vec![Act::Close]].concat()),
        ("stalls", [vec![head("anthropic")], begin(), vec![Act::Hang]].concat()),
        (
            "an error as an event",
            [vec![head("anthropic")], begin(), vec![say(chunk(error)), Act::Hang]].concat(),
        ),
        ("nonsense", vec![head("anthropic"), say(chunk("data: {nonsense\n\n")), end()]),
        (
            "refuses the key",
            vec![status(
                "401 No",
                r#"{"type":"error","error":{"type":"authentication_error","message":"no"}}"#,
            )],
        ),
        ("a page at once", vec![status("200 OK", "<html>")]),
    ];
    for (name, script) in cases {
        let (a, b) = (Liar::start(script).await, Liar::start(stream_answer("cohere")).await);
        let stage = Stage::start_with(&[("a", &a), ("b", &b)], |input| {
            become_kind(&mut input.providers[0], "anthropic");
            become_kind(&mut input.providers[1], "cohere");
        })
        .await;
        let seen = stage.ask(&asking(Api::Chat, true)).await;
        assert_eq!(seen.header("x-providerd-model"), Some("b/m"), "{name}: {seen:?}");
        assert_eq!(said(Api::Chat, true, &seen).0, "Hello", "{name}: {seen:?}");
        assert!(stage.only_row().await.fallback, "{name}");
    }
}

#[tokio::test]
async fn a_stream_that_breaks_after_content_ends_with_the_callers_error_and_no_mark() {
    let leak = format!(
        "event: error\ndata: {{\"type\":\"error\",\"error\":{{\"type\":\"api_error\",\"message\":\"key {} broke\"}}}}\n\n",
        key_of("a")
    );
    let cases: Vec<(&str, Vec<Act>, &str)> = vec![
        ("ends early", vec![end()], "upstream_truncated"),
        ("breaks", vec![Act::Close], "upstream_truncated"),
        ("stalls", vec![Act::Hang], "upstream_timeout"),
        ("an error with a key in it", vec![say(chunk(&leak)), Act::Hang], "upstream_truncated"),
        ("nonsense", vec![say(chunk("event: x\ndata: {nonsense\n\n")), end()], "upstream_truncated"),
    ];
    for (name, rest, code) in &cases {
        for caller in [Api::Chat, Api::Responses] {
            let (first, _) = events("anthropic");
            let script = [vec![head("anthropic")], pieces(first), rest.clone()].concat();
            let a = Liar::start(script).await;
            let stage =
                Stage::start_with(&[("a", &a)], |input| become_kind(&mut input.providers[0], "anthropic"))
                    .await;
            let seen = stage.ask(&asking(caller, true)).await;
            assert_eq!((seen.status, seen.whole), (200, true), "{name}: {seen:?}");
            assert!(seen.body.contains("Hello"), "{name}: {seen:?}");
            assert!(MARKS.iter().all(|mark| !seen.body.contains(mark)), "{name}: {seen:?}");
            let last = data_of(&seen.body).pop().expect("events");
            let error = if caller == Api::Chat { &last["error"] } else { &last["response"]["error"] };
            assert_eq!(error["code"], **code, "{name}: {seen:?}");
            free_of_keys(&seen);
            let row = stage.only_row().await;
            assert_eq!((&*row.error, row.source, row.input), (*code, "partial", 7), "{name}: {row:?}");
        }
    }
}

#[tokio::test]
async fn messages_of_a_broken_stream_end_in_their_own_grammar() {
    let (first, _) = events("google");
    let a = Liar::start([vec![head("google")], pieces(first), vec![end()]].concat()).await;
    let stage = Stage::start_with(&[("a", &a)], |input| become_kind(&mut input.providers[0], "google")).await;
    let seen = stage.ask(&asking(Api::Messages, true)).await;
    assert!(MARKS.iter().all(|mark| !seen.body.contains(mark)), "{seen:?}");
    let last = data_of(&seen.body).pop().expect("events");
    assert_eq!(
        (&last["type"], &last["error"]["code"]),
        (&"error".into(), &"upstream_truncated".into()),
        "{seen:?}"
    );
}

#[tokio::test]
async fn a_refusal_of_another_dialect_is_the_callers_without_keys() {
    let body = |message: &str| {
        format!(r#"{{"error":{{"code":400,"message":"{message}","status":"INVALID_ARGUMENT"}}}}"#)
    };
    let leak = format!("bad request for {}", key_of("a"));
    for (message, shown) in [("turns must alternate", "turns must alternate"), (&*leak, "repeats the key")] {
        for caller in CALLERS {
            let a = Liar::start(vec![status("400 Bad", &body(message))]).await;
            let stage =
                Stage::start_with(&[("a", &a)], |input| become_kind(&mut input.providers[0], "google")).await;
            let seen = stage.ask(&asking(caller, false)).await;
            assert_eq!(seen.status, 400, "{seen:?}");
            assert!(seen.body.contains(shown), "{seen:?}");
            assert_eq!(seen.body.contains("\"type\":\"error\""), caller == Api::Messages, "{seen:?}");
            free_of_keys(&seen);
        }
    }
}

#[tokio::test]
async fn what_one_candidate_cannot_be_asked_another_may() {
    let body =
        r#"{"model":"m","logprobs":true,"seed":1,"x_own":2,"messages":[{"role":"user","content":"hi"}]}"#;
    let asking = || request("/v1/chat/completions", body);
    let ok = r#"{"id":"c","choices":[{"index":0,"message":{"role":"assistant","content":"Hello"},"finish_reason":"stop"}],"usage":{"prompt_tokens":7,"completion_tokens":2,"total_tokens":9}}"#;
    let (a, b) =
        (Liar::start(plain_answer("anthropic")).await, Liar::start(vec![status("200 OK", ok)]).await);
    let alone =
        Stage::start_with(&[("a", &a)], |input| become_kind(&mut input.providers[0], "anthropic")).await;
    let seen = alone.ask(&asking()).await;
    let json: Value = serde_json::from_str(&seen.body).expect("JSON");
    assert_eq!((seen.status, &json["error"]["code"]), (400, &"unsupported_parameter".into()), "{seen:?}");
    assert_eq!(json["error"]["param"], "logprobs", "{seen:?}");
    assert!(alone.rows().is_empty(), "it never left");

    let both =
        Stage::start_with(&[("a", &a), ("b", &b)], |input| become_kind(&mut input.providers[0], "anthropic"))
            .await;
    let seen = both.ask(&asking()).await;
    assert_eq!((seen.status, seen.header("x-providerd-model")), (200, Some("b/m")), "{seen:?}");
    assert_eq!(seen.header("x-providerd-attempts"), Some("1"), "{seen:?}");
    assert!(a.requests().is_empty());
}

#[tokio::test]
async fn hints_that_are_dropped_are_counted_by_known_names() {
    let a = Liar::start(plain_answer("anthropic")).await;
    let stage =
        Stage::start_with(&[("a", &a)], |input| become_kind(&mut input.providers[0], "anthropic")).await;
    let body = r#"{"model":"m","seed":1,"x_own":2,"messages":[{"role":"user","content":"hi"}]}"#;
    assert_eq!(stage.ask(&request("/v1/chat/completions", body)).await.status, 200);
    let metrics = stage.metrics();
    for hint in ["seed", "other"] {
        let line = format!("providerd_gateway_hints_dropped_total{{hint=\"{hint}\"}} 1");
        assert!(metrics.contains(&line), "{metrics}");
    }
    assert!(!metrics.contains("x_own"), "{metrics}");
}

/// The official clients ask for base64 and decode what comes as such (mem0ai/mem0#4057, api7/aisix#393).
#[tokio::test]
async fn embeddings_pass_as_they_are_in_both_directions() {
    let answer = r#"{"object":"list","data":[{"object":"embedding","index":0,"embedding":"AACAPgAAAL8="}],"model":"m","usage":{"prompt_tokens":3,"total_tokens":3}}"#;
    let a = Liar::start(vec![status("200 OK", answer)]).await;
    let stage = Stage::start_with(&[("a", &a)], |input| {
        input.providers[0].apis = ApiSet::default().with(Api::Embeddings);
    })
    .await;
    let body = r#"{"model":"m","input":["a",[1,2]],"encoding_format":"base64","dimensions":2}"#;
    let seen = stage.ask(&request("/v1/embeddings", body)).await;
    assert_eq!((seen.status, &*seen.body), (200, answer));
    let asked = a.requests().pop().expect("one");
    assert!(asked.ends_with(body), "{asked}");
    let row = stage.only_row().await;
    assert_eq!((row.input, row.output, row.source), (3, 0, "reported"));
}

#[tokio::test]
async fn a_manifest_says_what_a_model_takes() {
    let body = r#"{"model":"m","seed":1,"messages":[{"role":"user","content":"hi"}],"tools":[{"type":"function","function":{"name":"f"}}]}"#;
    let takes =
        |fields: &str| -> serde_json::Map<String, Value> { serde_json::from_str(fields).expect("JSON") };
    let a = Liar::start(plain_answer("cohere")).await;
    let stage = Stage::start_with(&[("a", &a)], |input| {
        become_kind(&mut input.providers[0], "cohere");
        input.providers[0].models[0].takes = takes(r#"{"seed":false}"#);
    })
    .await;
    assert_eq!(stage.ask(&request("/v1/chat/completions", body)).await.status, 200);
    let asked = a.requests().pop().expect("one");
    assert!(asked.contains(r#""tools":"#) && !asked.contains("seed"), "{asked}");
    stage.reload_with(|input| input.providers[0].models[0].takes = takes(r#"{"tools":false}"#));
    let seen = stage.ask(&request("/v1/chat/completions", body)).await;
    let json: Value = serde_json::from_str(&seen.body).expect("JSON");
    assert_eq!((seen.status, &json["error"]["param"]), (400, &"tools".into()), "{seen:?}");
}

#[tokio::test]
async fn tokens_are_counted_by_who_can_and_estimated_else() {
    let body = r#"{"model":"m","messages":[{"role":"user","content":"hi there"}]}"#;
    let asking = request("/v1/messages/count_tokens", body);
    let check = async |name: &str,
                       kind: &str,
                       script: Vec<Act>,
                       expected: (u16, Option<u64>),
                       asked: bool| {
        let a = Liar::start(script).await;
        let stage = Stage::start_with(&[("a", &a)], |input| become_kind(&mut input.providers[0], kind)).await;
        let seen = stage.ask(&asking).await;
        let json: Value = serde_json::from_str(&seen.body).expect("JSON");
        let tokens = json["input_tokens"].as_u64();
        assert_eq!((seen.status, a.requests().is_empty()), (expected.0, !asked), "{name}: {seen:?}");
        match expected.1 {
            Some(0) => assert!(tokens.is_some_and(|tokens| (3..50).contains(&tokens)), "{name}: {seen:?}"),
            exactly => assert_eq!(tokens, exactly, "{name}: {seen:?}"),
        }
        assert!(stage.rows().is_empty(), "{name}");
    };
    check("native", "anthropic", vec![status("200 OK", r#"{"input_tokens":4711}"#)], (200, Some(4711)), true)
        .await;
    check("another", "google", vec![], (200, Some(0)), false).await;
    check("broken", "anthropic", vec![status("500 Oops", "{}")], (200, Some(0)), true).await;
    check("no such path", "anthropic", vec![status("404 No", "{}")], (200, Some(0)), true).await;
    let refused = r#"{"type":"error","error":{"type":"invalid_request_error","message":"no"}}"#;
    check("refused", "anthropic", vec![status("400 Bad", refused)], (400, None), true).await;
}

#[tokio::test]
async fn who_needs_signed_requests_is_not_asked() {
    // Keys of the stage are no API keys of Amazon.
    for (kind, placement) in [
        ("google", KeyPlacement::Signed),
        ("bedrock", KeyPlacement::Bearer),
        ("replicate", KeyPlacement::Bearer),
    ] {
        let a = Liar::start(plain_answer("google")).await;
        let stage = Stage::start_with(&[("a", &a)], |input| {
            become_kind(&mut input.providers[0], kind);
            input.providers[0].key_placement = placement;
        })
        .await;
        let seen = stage.ask(&asking(Api::Chat, false)).await;
        assert_eq!(seen.status, 400, "{kind}: {seen:?}");
        assert!(a.requests().is_empty(), "{kind}");
    }
}

#[tokio::test]
async fn the_shutdown_ends_a_translated_stream_with_an_error() {
    let (first, _) = events("anthropic");
    let a = Liar::start([vec![head("anthropic")], pieces(first), vec![Act::Hang]].concat()).await;
    let stage = Stage::start_with(&[("a", &a)], |input| {
        become_kind(&mut input.providers[0], "anthropic");
        input.providers[0].clocks.idle = Some(30_000);
        input.providers[0].clocks.total_streaming = Some(30_000);
    })
    .await;
    let mut caller = stage.send(&asking(Api::Chat, true)).await;
    caller.until("Hello").await;
    stage.stop();
    let seen = caller.answer().await;
    assert!(seen.body.contains("shutting_down") && !seen.body.contains("[DONE]"), "{seen:?}");
    eventually("the provider is let go", || a.closed() == 1).await;
}
