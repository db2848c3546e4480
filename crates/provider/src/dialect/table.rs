//! The table for readers of the docs: what of each caller's dialect goes where, what is refused, what is dropped.
//!
//! Not its job: deciding; the table is made by translating samples. Invariant: no row is written by hand.

use std::fmt::Write;

use serde_json::Value;

use super::{
    CallerDialect, ModelCapabilities, TranslateError, TranslateOptions, UpstreamDialect, defaults, json::Obj,
    translate_request,
};

/// A feature, and its sample per caller's dialect: members put into a smallest request. Empty: it has none.
struct Feature {
    name: &'static str,
    chat: &'static str,
    responses: &'static str,
    messages: &'static str,
}

const TOOLS: &str = r#""tools":[{"type":"function","function":{"name":"find","parameters":{"type":"object","properties":{"q":{"type":"string"}}}}}]"#;
const FLAT: &str = r#""tools":[{"type":"function","name":"find","parameters":{"type":"object","properties":{"q":{"type":"string"}}}}]"#;
const OWN: &str =
    r#""tools":[{"name":"find","input_schema":{"type":"object","properties":{"q":{"type":"string"}}}}]"#;

macro_rules! feature {
    ($name:literal, $chat:expr, $responses:expr, $messages:expr) => {
        Feature { name: $name, chat: $chat, responses: $responses, messages: $messages }
    };
}

const FEATURES: &[Feature] = &[
    feature!("temperature", r#""temperature":0.5"#, r#""temperature":0.5"#, r#""temperature":0.5"#),
    feature!("top_p", r#""top_p":0.5"#, r#""top_p":0.5"#, r#""top_p":0.5"#),
    feature!("top_k", r#""top_k":5"#, "", r#""top_k":5"#),
    feature!("stop sequences", r#""stop":["x"]"#, "", r#""stop_sequences":["x"]"#),
    feature!("seed", r#""seed":1"#, "", ""),
    feature!("penalties", r#""presence_penalty":0.5"#, "", ""),
    feature!("log probabilities", r#""logprobs":true"#, r#""top_logprobs":2"#, ""),
    feature!("several answers", r#""n":2"#, "", ""),
    feature!("logit bias", r#""logit_bias":{"1":1}"#, "", ""),
    feature!("end user", r#""user":"u""#, r#""user":"u""#, r#""metadata":{"user_id":"u"}"#),
    feature!("labels", r#""metadata":{"a":"b"}"#, r#""metadata":{"a":"b"}"#, ""),
    feature!(
        "service tier",
        r#""service_tier":"default""#,
        r#""service_tier":"default""#,
        r#""service_tier":"standard_only""#
    ),
    feature!("verbosity", r#""verbosity":"low""#, r#""text":{"verbosity":"low"}"#, ""),
    feature!("prompt cache key", r#""prompt_cache_key":"k""#, r#""prompt_cache_key":"k""#, ""),
    feature!(
        "cache marks",
        r#""messages":[{"role":"user","content":[{"type":"text","text":"a","cache_control":{"type":"ephemeral"}}]}]"#,
        "",
        r#""messages":[{"role":"user","content":[{"type":"text","text":"a","cache_control":{"type":"ephemeral"}}]}]"#
    ),
    feature!("tools", TOOLS, FLAT, OWN),
    feature!("forced tool", "forced", "forced", "forced"),
    feature!("no parallel calls", "serial", "serial", "serial"),
    feature!(
        "any JSON",
        r#""response_format":{"type":"json_object"}"#,
        r#""text":{"format":{"type":"json_object"}}"#,
        ""
    ),
    feature!(
        "JSON by schema",
        r#""response_format":{"type":"json_schema","json_schema":{"name":"n","schema":{"type":"object"}}}"#,
        r#""text":{"format":{"type":"json_schema","name":"n","schema":{"type":"object"}}}"#,
        r#""output_config":{"format":{"type":"json_schema","schema":{"type":"object"}}}"#
    ),
    feature!(
        "reasoning",
        r#""reasoning_effort":"high""#,
        r#""reasoning":{"effort":"high"}"#,
        r#""thinking":{"type":"enabled","budget_tokens":2000}"#
    ),
    feature!(
        "no reasoning",
        r#""reasoning_effort":"none""#,
        r#""reasoning":{"effort":"none"}"#,
        r#""thinking":{"type":"disabled"}"#
    ),
    feature!(
        "image, bytes",
        r#""messages":[{"role":"user","content":[{"type":"image_url","image_url":{"url":"data:image/png;base64,AAAA"}}]}]"#,
        r#""input":[{"role":"user","content":[{"type":"input_image","image_url":"data:image/png;base64,AAAA"}]}]"#,
        r#""messages":[{"role":"user","content":[{"type":"image","source":{"type":"base64","media_type":"image/png","data":"AAAA"}}]}]"#
    ),
    feature!(
        "image, address",
        r#""messages":[{"role":"user","content":[{"type":"image_url","image_url":{"url":"https://h.example/a.png"}}]}]"#,
        r#""input":[{"role":"user","content":[{"type":"input_image","image_url":"https://h.example/a.png"}]}]"#,
        r#""messages":[{"role":"user","content":[{"type":"image","source":{"type":"url","url":"https://h.example/a.png"}}]}]"#
    ),
    feature!(
        "document, bytes",
        r#""messages":[{"role":"user","content":[{"type":"file","file":{"file_data":"data:application/pdf;base64,AAAA"}}]}]"#,
        r#""input":[{"role":"user","content":[{"type":"input_file","file_data":"data:application/pdf;base64,AAAA"}]}]"#,
        r#""messages":[{"role":"user","content":[{"type":"document","source":{"type":"base64","media_type":"application/pdf","data":"AAAA"}}]}]"#
    ),
    feature!(
        "sound",
        r#""messages":[{"role":"user","content":[{"type":"input_audio","input_audio":{"format":"wav","data":"AAAA"}}]}]"#,
        "",
        ""
    ),
    feature!(
        "hosted tools",
        "",
        r#""tools":[{"type":"web_search"}]"#,
        r#""tools":[{"type":"web_search_20250305","name":"web_search"}]"#
    ),
    feature!("stored state", "", r#""previous_response_id":"resp_1""#, ""),
];

/// The sample with its members put over those of a smallest request.
fn sample(caller: CallerDialect, feature: &Feature) -> Option<Value> {
    let (base, tools, members) = match caller {
        CallerDialect::Chat => {
            (r#"{"model":"m","messages":[{"role":"user","content":"hi"}]}"#, TOOLS, feature.chat)
        }
        CallerDialect::Responses => (r#"{"model":"m","input":"hi"}"#, FLAT, feature.responses),
        CallerDialect::Messages => (
            r#"{"model":"m","max_tokens":9000,"messages":[{"role":"user","content":"hi"}]}"#,
            OWN,
            feature.messages,
        ),
    };
    let members = match (members, caller) {
        ("", _) => return None,
        ("forced", CallerDialect::Messages) => format!(r#"{tools},"tool_choice":{{"type":"any"}}"#),
        ("forced", _) => format!(r#"{tools},"tool_choice":"required""#),
        ("serial", CallerDialect::Messages) => {
            format!(r#"{tools},"tool_choice":{{"type":"auto","disable_parallel_tool_use":true}}"#)
        }
        ("serial", _) => format!(r#"{tools},"parallel_tool_calls":false"#),
        (members, _) => members.to_owned(),
    };
    let mut request: Value = serde_json::from_str(base).ok()?;
    let members: Value = serde_json::from_str(&format!("{{{members}}}")).ok()?;
    let object = request.as_object_mut()?;
    for (key, value) in members.as_object()? {
        object.insert(key.clone(), value.clone());
    }
    Some(request)
}

/// A model of each upstream whose capabilities stand for it.
fn model_of(upstream: UpstreamDialect) -> (&'static str, &'static str) {
    match upstream {
        UpstreamDialect::Chat => ("", "a-model"),
        UpstreamDialect::Responses | UpstreamDialect::Azure => ("openai", "gpt-5.2"),
        UpstreamDialect::Anthropic | UpstreamDialect::VertexClaude => ("anthropic", "claude-sonnet-4-5"),
        UpstreamDialect::Google | UpstreamDialect::Vertex => ("google", "gemini-3-flash"),
        UpstreamDialect::Bedrock => ("bedrock", "anthropic.claude-sonnet-4-5"),
        UpstreamDialect::Cohere => ("cohere", "command-a-vision"),
        UpstreamDialect::Ollama => ("ollama", "gpt-oss:20b"),
    }
}

fn outcome(caller: CallerDialect, upstream: UpstreamDialect, body: &Value, plain: &Value) -> String {
    if caller.is_native(upstream) {
        return "untouched".to_owned();
    }
    let (provider, model) = model_of(upstream);
    let capabilities: ModelCapabilities = defaults(upstream, provider, model);
    let options = TranslateOptions {
        model: model.to_owned(),
        shown_model: "m".to_owned(),
        capabilities,
        id: "1".to_owned(),
        ..TranslateOptions::default()
    };
    match translate_request(caller, upstream, body.to_string().as_bytes(), &options) {
        Err(TranslateError::Unsupported { .. } | TranslateError::Invalid { .. }) => "refused".to_owned(),
        Ok(sent) if !sent.dropped.is_empty() => "dropped".to_owned(),
        Ok(sent) => {
            let without = translate_request(caller, upstream, plain.to_string().as_bytes(), &options);
            let before: Value =
                without.ok().and_then(|sent| serde_json::from_slice(&sent.body).ok()).unwrap_or_default();
            let after: Value = serde_json::from_slice(&sent.body).unwrap_or_default();
            let changed = difference(&before, &after);
            if changed.is_empty() {
                "needs nothing".to_owned()
            } else {
                format!("`{}`", changed.join("`, `"))
            }
        }
    }
}

/// Members that differ, one level into objects.
fn difference(before: &Value, after: &Value) -> Vec<String> {
    let empty = Value::from(Obj::new());
    let (Some(before), Some(after)) = (before.as_object(), after.as_object()) else { return Vec::new() };
    let mut names = Vec::new();
    for (key, value) in after {
        match before.get(key) {
            Some(same) if same == value => {}
            old => match value.as_object() {
                Some(inner) if !inner.is_empty() && key.ends_with("onfig") => {
                    let old = old.unwrap_or(&empty);
                    names.extend(
                        inner
                            .iter()
                            .filter(|(name, value)| old.get(name.as_str()) != Some(value))
                            .map(|(name, _)| format!("{key}.{name}")),
                    );
                }
                _ => names.push(key.clone()),
            },
        }
    }
    names
}

/// The table in Markdown, one part per caller's dialect. Cells: the upstream's members that carry a feature,
/// `needs nothing`, `dropped`, `refused`, or `untouched` where both sides speak the same.
pub fn mapping_table() -> String {
    let mut out = String::new();
    for caller in CallerDialect::ALL {
        let _ = writeln!(out, "### Callers of {}\n", caller.word());
        let names: Vec<String> =
            UpstreamDialect::ALL.iter().map(|upstream| upstream.word().to_owned()).collect();
        let _ = writeln!(out, "| | {} |", names.join(" | "));
        let _ = writeln!(out, "|---|{}", "---|".repeat(names.len()));
        let nothing = Feature {
            name: "",
            chat: r#""n":1"#,
            responses: r#""store":true"#,
            messages: r#""stream":false"#,
        };
        let plain = sample(caller, &nothing).unwrap_or_default();
        for feature in FEATURES {
            let Some(body) = sample(caller, feature) else { continue };
            let cells: Vec<String> = UpstreamDialect::ALL
                .iter()
                .map(|upstream| outcome(caller, *upstream, &body, &plain))
                .collect();
            let _ = writeln!(out, "| {} | {} |", feature.name, cells.join(" | "));
        }
        out.push('\n');
    }
    out
}
