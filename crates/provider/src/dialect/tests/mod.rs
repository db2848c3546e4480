//! Tests of the dialects: data in tables, properties over everything that can be cut or repeated.

mod errors;
mod figures;
mod matrix;
mod readers;
mod request_trips;
mod requests;
mod round_trips;
mod streams;
mod traps;

use serde_json::{Value, json};

use super::{frames::SseEvent, inner::*, target::*, *};

/// A session between two dialects.
fn session(caller: CallerDialect, upstream: UpstreamDialect) -> TranslateSession {
    TranslateSession {
        caller,
        upstream,
        model: "claude-sonnet-4-5".to_owned(),
        shown_model: "shown".to_owned(),
        id: "req-1".to_owned(),
        now: 1_700_000_000,
        include_usage: true,
        estimate: 7,
        names: Default::default(),
        free_text: Vec::new(),
        echo: Value::Null,
    }
}

/// A provider's type and a model that stand for an upstream.
fn sample_model(upstream: UpstreamDialect) -> (&'static str, &'static str) {
    match upstream {
        UpstreamDialect::Chat => ("openai", "gpt-4o"),
        UpstreamDialect::Responses => ("openai", "gpt-5.4"),
        UpstreamDialect::Azure => ("azure-openai", "gpt-4o"),
        UpstreamDialect::Anthropic => ("anthropic", "claude-sonnet-4-5"),
        UpstreamDialect::Google => ("google", "gemini-3-flash"),
        UpstreamDialect::Vertex => ("vertex", "gemini-3-flash"),
        UpstreamDialect::VertexClaude => ("vertex", "claude-sonnet-4-5"),
        UpstreamDialect::Bedrock => ("bedrock", "us.anthropic.claude-sonnet-4-5-v1:0"),
        UpstreamDialect::Cohere => ("cohere", "command-a-vision-07-2025"),
        UpstreamDialect::Ollama => ("ollama", "qwen3"),
    }
}

/// Options for a model with its default capabilities.
fn options(upstream: UpstreamDialect, provider: &str, model: &str) -> TranslateOptions {
    TranslateOptions {
        model: model.to_owned(),
        shown_model: "shown".to_owned(),
        capabilities: defaults(upstream, provider, model),
        id: "req-1".to_owned(),
        now: 1_700_000_000,
        ..TranslateOptions::default()
    }
}

/// A request sent to the sample model of an upstream: what travels, and its body.
fn sent(caller: CallerDialect, upstream: UpstreamDialect, body: &Value) -> (TranslatedRequest, Value) {
    let (provider, model) = sample_model(upstream);
    sent_to(caller, upstream, provider, model, body)
}

fn sent_to(
    caller: CallerDialect,
    upstream: UpstreamDialect,
    provider: &str,
    model: &str,
    body: &Value,
) -> (TranslatedRequest, Value) {
    let request =
        translate_request(caller, upstream, body.to_string().as_bytes(), &options(upstream, provider, model))
            .unwrap();
    let body = serde_json::from_slice(&request.body).unwrap();
    (request, body)
}

/// Why a request is refused by the sample model of an upstream.
fn refused(caller: CallerDialect, upstream: UpstreamDialect, body: &Value) -> TranslateError {
    let (provider, model) = sample_model(upstream);
    let options = options(upstream, provider, model);
    translate_request(caller, upstream, body.to_string().as_bytes(), &options).unwrap_err()
}

/// The upstream that speaks as a caller does.
fn native(caller: CallerDialect) -> UpstreamDialect {
    match caller {
        CallerDialect::Chat => UpstreamDialect::Chat,
        CallerDialect::Responses => UpstreamDialect::Responses,
        CallerDialect::Messages => UpstreamDialect::Anthropic,
    }
}

/// Events as lines of `data:`; strings stand as they are.
fn sse(events: &[Value]) -> Vec<u8> {
    let mut out = String::new();
    for event in events {
        match event {
            Value::String(text) => out.push_str(&format!("data: {text}\n\n")),
            // Named as Messages and Responses want it; chat has no `type`.
            event => match event.get("type").and_then(Value::as_str) {
                Some(name) => out.push_str(&format!("event: {name}\ndata: {event}\n\n")),
                None => out.push_str(&format!("data: {event}\n\n")),
            },
        }
    }
    out.into_bytes()
}

/// Chunks of chat from their deltas, with the finish in a chunk of its own and `[DONE]`.
fn chat_sse(deltas: &[Value], finish: &str) -> Vec<u8> {
    let chunk = |delta: Value, finish: Value| {
        json!({"id": "c1", "object": "chat.completion.chunk", "created": 1, "model": "up",
            "choices": [{"index": 0, "delta": delta, "finish_reason": finish}]})
    };
    let mut events: Vec<Value> = deltas.iter().map(|delta| chunk(delta.clone(), Value::Null)).collect();
    events.push(chunk(json!({}), json!(finish)));
    events.push(json!({"id": "c1", "choices": [], "usage": {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}}));
    events.push(json!("[DONE]"));
    sse(&events)
}

/// Frames of Bedrock.
fn aws(events: &[(&str, Value)]) -> Vec<u8> {
    let mut out = Vec::new();
    for (name, payload) in events {
        let kind = if name.ends_with("Exception") { "exception" } else { "event" };
        let names = [(":message-type", kind), (":event-type", *name)];
        let thrown = [(":message-type", kind), (":exception-type", *name)];
        let headers = if kind == "event" { &names } else { &thrown };
        out.extend(frames::write_frame(headers, payload.to_string().as_bytes()));
    }
    out
}

/// Lines of Ollama.
fn lines(events: &[Value]) -> Vec<u8> {
    events.iter().map(|event| format!("{event}\n")).collect::<String>().into_bytes()
}

/// One answer as a caller gets it.
struct Streamed {
    text: String,
    answer: Result<InnerResponse, UpstreamFailure>,
    translator: StreamTranslator,
}

/// Translates a stream, whole, byte by byte and cut in two, and checks the grammar of what comes out.
fn streamed(caller: CallerDialect, upstream: UpstreamDialect, bytes: &[u8]) -> Streamed {
    streamed_in(session(caller, upstream), bytes, 37)
}

/// Cuts in two at every `step` bytes; byte by byte it stops at each of them anyway.
fn streamed_in(session: TranslateSession, bytes: &[u8], step: usize) -> Streamed {
    let run = |parts: &mut dyn Iterator<Item = &[u8]>| {
        let mut out = Vec::new();
        let mut translator = StreamTranslator::new(session.clone());
        parts.for_each(|part| translator.feed(part, &mut out));
        translator.finish(&mut out);
        (out, translator)
    };
    let (out, translator) = run(&mut [bytes].into_iter());
    assert!(run(&mut bytes.chunks(1)).0 == out, "byte by byte it is another stream");
    for cut in (1..bytes.len()).step_by(step) {
        let (head, tail) = bytes.split_at(cut);
        assert!(run(&mut [head, tail].into_iter()).0 == out, "cut at {cut} changes the stream");
    }
    let caller = session.caller;
    assert!(translator.is_over());
    let text = String::from_utf8(out.clone()).unwrap();
    check_grammar(caller, &out, translator.failure().is_some());
    let answer = collect(&self::session(caller, native(caller)), &out);
    Streamed { text, answer, translator }
}

/// The events that a caller reads: names and data.
fn events_of(bytes: &[u8]) -> Vec<(String, Value)> {
    let mut list = Vec::new();
    let mut reader = SseReader::default();
    let mut take = |event: SseEvent<'_>| {
        list.push((
            event.name.to_owned(),
            serde_json::from_str(event.data).unwrap_or_else(|_| json!(event.data)),
        ));
    };
    reader.feed(bytes, &mut take).unwrap();
    assert!(bytes.is_empty() || bytes.ends_with(b"\n\n"), "the last event has no end");
    list
}

/// What strict clients insist on, in every ending.
fn check_grammar(caller: CallerDialect, bytes: &[u8], failed: bool) {
    let events = events_of(bytes);
    let shown = String::from_utf8_lossy(bytes);
    match caller {
        CallerDialect::Chat => {
            let heads: std::collections::BTreeSet<String> = events
                .iter()
                .filter(|(_, data)| data.get("choices").is_some())
                .map(|(_, data)| {
                    format!("{} {} {} {}", data["id"], data["created"], data["model"], data["object"])
                })
                .collect();
            assert!(heads.len() <= 1, "chunks differ in id, time or model: {shown}");
            let done = events.iter().filter(|(_, data)| data == "[DONE]").count();
            let last = &events.last().unwrap().1;
            let finishes =
                events.iter().filter(|(_, data)| data["choices"][0]["finish_reason"].is_string()).count();
            if failed {
                assert!(done == 0 && finishes == 0 && last["error"]["message"].is_string(), "{shown}");
                for key in ["message", "type", "param", "code"] {
                    assert!(last["error"].get(key).is_some(), "{shown}");
                }
            } else {
                assert!(done == 1 && last == "[DONE]" && finishes == 1, "{shown}");
            }
        }
        CallerDialect::Messages => {
            let mut open: Option<u64> = None;
            let mut next = 0;
            let mut stage = 0;
            for (name, data) in &events {
                assert_eq!(data["type"], name.as_str(), "{shown}");
                match name.as_str() {
                    "message_start" => {
                        assert_eq!(stage, 0, "{shown}");
                        stage = 1;
                    }
                    "content_block_start" => {
                        assert!(stage == 1 && open.is_none(), "{shown}");
                        assert_eq!(data["index"], next, "{shown}");
                        open = Some(next);
                        next += 1;
                    }
                    "content_block_delta" => assert_eq!(data["index"].as_u64(), open, "{shown}"),
                    "content_block_stop" => {
                        assert_eq!(data["index"].as_u64(), open.take(), "{shown}");
                    }
                    "message_delta" => {
                        assert!(stage == 1 && open.is_none(), "{shown}");
                        stage = 2;
                    }
                    "message_stop" => {
                        assert_eq!(stage, 2, "{shown}");
                        stage = 3;
                    }
                    "error" => stage = 4,
                    other => panic!("unknown event {other}: {shown}"),
                }
            }
            assert_eq!(stage, if failed { 4 } else { 3 }, "{shown}");
        }
        CallerDialect::Responses => {
            let mut added = 0;
            let mut done = 0;
            for (number, (name, data)) in events.iter().enumerate() {
                assert_eq!(data["type"], name.as_str(), "{shown}");
                assert_eq!(data["sequence_number"], number, "{shown}");
                match name.as_str() {
                    "response.output_item.added" => {
                        assert!(data["output_index"] == added && added == done, "{shown}");
                        added += 1;
                    }
                    "response.output_item.done" => {
                        assert_eq!(data["output_index"], done, "{shown}");
                        done += 1;
                    }
                    _ => {}
                }
                if data.get("delta").is_some() {
                    assert!(data["item_id"].is_string() && data["output_index"].is_number(), "{shown}");
                }
            }
            assert!(events[0].0 == "response.created" && events[1].0 == "response.in_progress", "{shown}");
            let (last, data) = events.last().unwrap();
            assert_eq!(last == "response.failed", failed, "{shown}");
            let ends = ["response.completed", "response.incomplete", "response.failed"];
            assert_eq!(events.iter().filter(|(name, _)| ends.contains(&name.as_str())).count(), 1, "{shown}");
            assert_eq!(data["response"]["output"].as_array().unwrap().len() as u64, done, "{shown}");
            if !failed {
                assert!(added == done && data["response"]["usage"]["input_tokens"].is_number(), "{shown}");
            }
        }
    }
}

/// The text of an answer.
fn said(answer: &InnerResponse) -> String {
    let text = |block: &ContentBlock| match block {
        ContentBlock::Text { text, .. } => Some(text.clone()),
        _ => None,
    };
    answer.blocks.iter().filter_map(text).collect()
}

/// The reasoning of an answer.
fn thought(answer: &InnerResponse) -> String {
    let text = |block: &ContentBlock| match block {
        ContentBlock::Thinking { text, .. } => Some(text.clone()),
        _ => None,
    };
    answer.blocks.iter().filter_map(text).collect()
}

/// The calls of an answer: id, name, arguments.
fn calls(answer: &InnerResponse) -> Vec<(String, String, Value)> {
    let call = |block: &ContentBlock| match block {
        ContentBlock::ToolUse { id, name, input, .. } => {
            Some((id.clone(), name.clone(), serde_json::from_str(input).unwrap()))
        }
        _ => None,
    };
    answer.blocks.iter().filter_map(call).collect()
}
