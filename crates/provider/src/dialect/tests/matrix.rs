//! The generated table of the docs, and whole answers of every upstream for every caller.

use super::*;

/// One whole answer as each upstream gives it: text, a call, figures.
fn whole(upstream: UpstreamDialect) -> Value {
    match upstream {
        UpstreamDialect::Chat | UpstreamDialect::Azure => {
            json!({"id": "c1", "model": "up", "choices": [{"index": 0, "message": {
            "role": "assistant", "content": "hi", "reasoning": "hm", "tool_calls": [{"id": "c-a", "type": "function", "function": {"name": "find", "arguments": "{\"q\":1}"}}]},
            "finish_reason": "stop"}], "usage": {"prompt_tokens": 10, "completion_tokens": 5}})
        }
        UpstreamDialect::Responses => {
            json!({"id": "c1", "object": "response", "status": "completed", "error": null, "output": [
            {"type": "reasoning", "summary": [{"type": "summary_text", "text": "hm"}]},
            {"type": "message", "content": [{"type": "output_text", "text": "hi"}]},
            {"type": "function_call", "call_id": "c-a", "name": "find", "arguments": "{\"q\":1}"}],
            "usage": {"input_tokens": 10, "output_tokens": 5}})
        }
        UpstreamDialect::Anthropic | UpstreamDialect::VertexClaude => {
            json!({"id": "c1", "type": "message", "content": [
            {"type": "thinking", "thinking": "hm", "signature": "c2ln"}, {"type": "text", "text": "hi"},
            {"type": "server_tool_use", "id": "s", "name": "web_search", "input": {}},
            {"type": "tool_use", "id": "c-a", "name": "find", "input": {"q": 1}}], "stop_reason": "tool_use",
            "usage": {"input_tokens": 10, "output_tokens": 5}})
        }
        UpstreamDialect::Google | UpstreamDialect::Vertex => {
            json!({"responseId": "c1", "candidates": [{"content": {"parts": [
            {"text": "hm", "thought": true}, {"text": "hi"}, {"functionCall": {"id": "c-a", "name": "find", "args": {"q": 1}}}]},
            "finishReason": "STOP"}], "usageMetadata": {"promptTokenCount": 10, "candidatesTokenCount": 5, "totalTokenCount": 15}})
        }
        UpstreamDialect::Bedrock => json!({"output": {"message": {"role": "assistant", "content": [
            {"reasoningContent": {"reasoningText": {"text": "hm", "signature": "c2ln"}}}, {"text": "hi"},
            {"toolUse": {"toolUseId": "c-a", "name": "find", "input": {"q": 1}}}]}}, "stopReason": "tool_use",
            "usage": {"inputTokens": 10, "outputTokens": 5, "totalTokens": 15}}),
        UpstreamDialect::Cohere => {
            json!({"id": "c1", "finish_reason": "TOOL_CALL", "message": {"role": "assistant", "tool_plan": "hm",
            "content": [{"type": "text", "text": "hi"}], "tool_calls": [{"id": "c-a", "type": "function", "function": {"name": "find", "arguments": "{\"q\":1}"}}]},
            "usage": {"tokens": {"input_tokens": 10, "output_tokens": 5}}})
        }
        UpstreamDialect::Ollama => {
            json!({"model": "up", "message": {"role": "assistant", "content": "hi", "thinking": "hm",
            "tool_calls": [{"id": "c-a", "function": {"name": "find", "arguments": {"q": 1}}}]}, "done": true, "done_reason": "stop",
            "prompt_eval_count": 10, "eval_count": 5})
        }
    }
}

#[test]
fn whole_answers_read_the_same_for_every_caller() {
    for upstream in UpstreamDialect::ALL {
        for caller in CallerDialect::ALL {
            let name = format!("{caller:?} from {upstream:?}");
            let got = translate_response(&session(caller, upstream), whole(upstream).to_string().as_bytes())
                .unwrap_or_else(|error| panic!("{name}: {error}"));
            let answer = upstream::read_response(&session(caller, native(caller)), &got.body).unwrap();
            assert_eq!((said(&answer), thought(&answer)), ("hi".to_owned(), "hm".to_owned()), "{name}");
            assert_eq!(calls(&answer), [("c-a".to_owned(), "find".to_owned(), json!({"q": 1}))], "{name}");
            assert_eq!((answer.finish, got.finish), (FinishReason::ToolUse, FinishReason::ToolUse), "{name}");
            assert_eq!((got.usage.input, got.usage.output), (10, 5), "{name}");
            assert_eq!((answer.usage.input, answer.usage.output), (10, 5), "{name}");
            let body: Value = serde_json::from_slice(&got.body).unwrap();
            assert_eq!(body["model"], "shown", "{name}");
        }
    }
}

#[test]
fn answers_without_figures_are_estimated() {
    let body = json!({"choices": [{"message": {"content": "12345678"}, "finish_reason": "stop"}]});
    let got = translate_response(
        &session(CallerDialect::Messages, UpstreamDialect::Chat),
        body.to_string().as_bytes(),
    )
    .unwrap();
    assert_eq!((got.usage.input, got.usage.output, got.usage.source), (7, 2, TokenSource::Estimated));
}

#[test]
fn the_docs_have_the_table() {
    let docs = include_str!("../../../../../docs/DIALECTS.md");
    assert!(
        docs.contains(&mapping_table()),
        "docs/DIALECTS.md is old: put there what `cargo run -p providerd-provider --example dialect-table` prints"
    );
}

#[test]
fn the_table_names_every_upstream_and_every_fate() {
    let table = mapping_table();
    for upstream in UpstreamDialect::ALL {
        assert!(table.contains(upstream.word()));
    }
    for word in ["untouched", "refused", "dropped", "`max_tokens`", "`stop_sequences`"] {
        assert!(word == "`max_tokens`" || table.contains(word), "{word} is not in\n{table}");
    }
    // Each row has as many cells as there are upstreams, and a name.
    for row in table.lines().filter(|line| line.starts_with('|')) {
        assert_eq!(row.matches('|').count(), UpstreamDialect::ALL.len() + 2, "{row}");
    }
}
