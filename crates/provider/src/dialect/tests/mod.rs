//! Tests of the dialects: data in tables, properties over everything that can be cut or repeated.

mod readers;
mod round_trips;

use serde_json::{Value, json};

use super::{inner::*, target::*, *};

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

/// The data of each event that a caller would read.
fn data_of(bytes: &[u8]) -> Vec<Value> {
    let mut list = Vec::new();
    let mut reader = SseReader::default();
    let mut take = |event: frames::SseEvent<'_>| {
        list.push(serde_json::from_str(event.data).unwrap_or_else(|_| json!(event.data)));
    };
    reader.feed(bytes, &mut take).unwrap();
    reader.finish(&mut take).unwrap();
    list
}
