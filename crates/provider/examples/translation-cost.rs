//! Measures what translations cost on one core: milliseconds per MB of a request and of a whole answer, and microseconds
//! per streamed answer of 20 words. `cargo run --release -p providerd-provider --example translation-cost`.

use std::hint::black_box;
use std::time::Instant;

use provider::dialect::{
    CallerDialect, StreamTranslator, TranslateOptions, TranslateSession, UpstreamDialect, defaults,
    translate_request, translate_response,
};
use serde_json::json;

fn options(upstream: UpstreamDialect) -> TranslateOptions {
    let model = "claude-sonnet-4-5";
    TranslateOptions {
        model: model.to_owned(),
        shown_model: model.to_owned(),
        capabilities: defaults(upstream, "", model),
        id: "1".to_owned(),
        ..TranslateOptions::default()
    }
}

fn session(caller: CallerDialect, upstream: UpstreamDialect) -> TranslateSession {
    let body = br#"{"max_tokens":9,"messages":[{"role":"user","content":"a"}]}"#;
    translate_request(caller, upstream, body, &options(upstream)).expect("a smallest request").session
}

/// Milliseconds per MB of what `work` is given; the best of five.
fn per_mb(bytes: usize, mut work: impl FnMut()) -> f64 {
    (0..5)
        .map(|_| {
            let begin = Instant::now();
            work();
            begin.elapsed().as_secs_f64() * 1e3 / (bytes as f64 / 1e6)
        })
        .fold(f64::INFINITY, f64::min)
}

fn main() {
    let words = "The quick brown fox jumps over the lazy dog. ".repeat(100_000);
    let image = "iVBORw0KGgoAAAAN".repeat(280_000);
    let turns: Vec<_> = (0..20_000)
        .map(|at| json!({"role": if at % 2 == 0 { "user" } else { "assistant" }, "content": "A short turn of a long talk."}))
        .collect();
    let url = format!("data:image/png;base64,{image}");
    for (name, messages) in [
        ("one long text", json!([{"role": "user", "content": words}])),
        (
            "one large image",
            json!([{"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}]}]),
        ),
        ("20,000 short turns", json!(turns)),
    ] {
        let body = json!({"model": "m", "messages": messages}).to_string();
        let options = options(UpstreamDialect::Anthropic);
        let cost = per_mb(body.len(), || {
            let sent =
                translate_request(CallerDialect::Chat, UpstreamDialect::Anthropic, body.as_bytes(), &options);
            black_box(sent.is_ok());
        });
        println!("request, {name} ({:.1} MB): {cost:.2} ms per MB", body.len() as f64 / 1e6);
    }
    let chat = session(CallerDialect::Chat, UpstreamDialect::Anthropic);
    let answer = json!({"content": [{"type": "text", "text": words}], "stop_reason": "end_turn"}).to_string();
    let cost = per_mb(answer.len(), || {
        black_box(translate_response(&chat, answer.as_bytes()).is_ok());
    });
    println!("whole answer ({:.1} MB): {cost:.2} ms per MB", answer.len() as f64 / 1e6);

    let delta = |at: u32| json!({"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": format!(" word{at}")}});
    let mut events = vec![
        json!({"type": "message_start", "message": {"id": "msg_1", "usage": {"input_tokens": 250, "output_tokens": 1}}}),
        json!({"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}}),
    ];
    events.extend((0..20).map(delta));
    events.push(json!({"type": "content_block_stop", "index": 0}));
    events.push(json!({"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 19}}));
    events.push(json!({"type": "message_stop"}));
    let events: Vec<String> = events
        .iter()
        .map(|event| format!("event: {}\ndata: {event}\n\n", event["type"].as_str().unwrap_or_default()))
        .collect();
    let times = 20_000;
    let begin = Instant::now();
    for _ in 0..times {
        let mut translator = StreamTranslator::new(chat.clone());
        let mut out = Vec::new();
        for event in &events {
            translator.feed(event.as_bytes(), &mut out);
            out.clear();
        }
        translator.finish(&mut out);
        black_box(translator.is_over());
    }
    let cost = begin.elapsed().as_secs_f64() * 1e6 / f64::from(times);
    println!("a stream of {} events: {cost:.1} µs, {:.2} µs each", events.len(), cost / events.len() as f64);
}
