//! Traps 1 to 28: requests, and reasoning over turns.

use super::*;

pub(super) const TRAPS: &[NamedTrap] = &[
    (1, "a tool message stays a tool result on Bedrock", || {
        let (_, body) = sent(CHAT, UpstreamDialect::Bedrock, &two_calls());
        assert!(body["messages"][2]["content"][0].get("toolResult").is_some(), "{body}");
    }),
    (2, "all results of a turn are one message on Bedrock", || {
        let (_, body) = sent(CHAT, UpstreamDialect::Bedrock, &two_calls());
        assert_eq!(body["messages"].as_array().unwrap().len(), 3);
        assert_eq!(body["messages"][2]["content"].as_array().unwrap().len(), 2);
    }),
    (3, "Gemini's results are grouped, in the order of the calls", || {
        for upstream in [UpstreamDialect::Google, UpstreamDialect::Vertex] {
            let (_, body) = sent(CHAT, upstream, &two_calls());
            let parts = &body["contents"][2]["parts"];
            assert_eq!(parts.as_array().unwrap().len(), 2);
            assert_eq!(
                (&parts[0]["functionResponse"]["name"], &parts[1]["functionResponse"]["name"]),
                (&json!("f"), &json!("g"))
            );
            assert!(!body.to_string().contains("\"id\""), "Vertex refuses ids");
        }
    }),
    (4, "a history with calls has a tool on Bedrock", || {
        let mut body = two_calls();
        body.as_object_mut().unwrap().remove("tools");
        let (_, sent_body) = sent(CHAT, UpstreamDialect::Bedrock, &body);
        assert_eq!(sent_body["toolConfig"]["tools"].as_array().unwrap().len(), 1);
        // `none` cannot be said there: no tool of the caller's is offered.
        let (_, sent_body) =
            sent(CHAT, UpstreamDialect::Bedrock, &with(two_calls(), json!({"tool_choice": "none"})));
        assert_eq!(sent_body["toolConfig"]["tools"][0]["toolSpec"]["name"], "unavailable");
    }),
    (5, "blank text of the assistant is left out", || {
        for text in ["", "  \n"] {
            let body = json!({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": text}, {"role": "user", "content": "b"}]});
            for upstream in [UpstreamDialect::Bedrock, UpstreamDialect::Anthropic] {
                let (_, body) = sent(CHAT, upstream, &body);
                // And what is left is joined, so that turns alternate.
                assert_eq!(body["messages"].as_array().unwrap().len(), 1, "{body}");
            }
        }
    }),
    (6, "an empty result has something in it on Bedrock", || {
        let (_, body) = sent(CHAT, UpstreamDialect::Bedrock, &two_calls());
        let results = body["messages"][2]["content"].as_array().unwrap();
        assert!(
            results
                .iter()
                .all(|result| !result["toolResult"]["content"][0]["text"].as_str().unwrap().is_empty())
        );
    }),
    (7, "cache points only for models that cache", || {
        let body = hi(
            json!({"messages": [{"role": "user", "content": [{"type": "text", "text": "a", "cache_control": {"type": "ephemeral", "ttl": "1h"}}]}]}),
        );
        let (_, claude) = sent(CHAT, UpstreamDialect::Bedrock, &body);
        assert_eq!(
            claude["messages"][0]["content"][1],
            json!({"cachePoint": {"type": "default", "ttl": "1h"}})
        );
        let (request, llama) =
            sent_to(CHAT, UpstreamDialect::Bedrock, "bedrock", "meta.llama3-70b-instruct-v1:0", &body);
        assert!(!llama.to_string().contains("cachePoint"));
        assert_eq!(request.dropped, ["cache_control"]);
    }),
    (8, "Cohere gets no field that it does not know", || {
        let (_, body) = sent(CHAT, UpstreamDialect::Cohere, &two_calls());
        assert!(!body.to_string().contains("\"index\""));
        assert_eq!(
            body["messages"][1],
            json!({"role": "assistant", "tool_calls": [
            {"id": "a", "type": "function", "function": {"name": "f", "arguments": "{}"}},
            {"id": "b", "type": "function", "function": {"name": "g", "arguments": "{}"}}]})
        );
    }),
    (9, "penalties that a Gemini model refuses are dropped by name", || {
        let (request, body) = sent(CHAT, UpstreamDialect::Google, &hi(json!({"presence_penalty": 0.5})));
        assert_eq!(request.dropped, ["presence_penalty"]);
        assert!(!body.to_string().contains("presencePenalty"));
    }),
    (10, "Gemini gets real JSON Schema", || {
        let schema = json!({"type": "object", "properties": {"a": {"type": ["string", "null"]}}, "additionalProperties": false});
        let body = hi(
            json!({"tools": [{"type": "function", "function": {"name": "f", "parameters": with(schema.clone(), json!({"$schema": "x"}))}}]}),
        );
        let (_, body) = sent(CHAT, UpstreamDialect::Google, &body);
        let tool = &body["tools"][0]["functionDeclarations"][0];
        assert_eq!((&tool["parametersJsonSchema"], tool.get("parameters")), (&schema, None));
    }),
    (11, "keys beside anyOf do not fail Gemini's tools", || {
        let schema = json!({"type": "object", "properties": {"a": {"anyOf": [{"type": "string"}, {"type": "null"}], "description": "d", "default": null}}});
        let body =
            hi(json!({"tools": [{"type": "function", "function": {"name": "f", "parameters": schema}}]}));
        let (_, body) = sent(CHAT, UpstreamDialect::Google, &body);
        // Where schemas are read as JSON Schema, they may stand there.
        assert_eq!(body["tools"][0]["functionDeclarations"][0]["parametersJsonSchema"], schema);
    }),
    (12, "Anthropic's results are one message", || {
        let (_, body) = sent(CHAT, UpstreamDialect::Anthropic, &two_calls());
        assert_eq!(body["messages"].as_array().unwrap().len(), 3);
        assert_eq!(body["messages"][2]["content"].as_array().unwrap().len(), 2);
    }),
    (13, "a tool message stands next to its call", || {
        let body = json!({"max_tokens": 5, "messages": [
            {"role": "user", "content": "x"},
            {"role": "assistant", "content": [{"type": "tool_use", "id": "t", "name": "f", "input": {}}]},
            {"role": "user", "content": [{"type": "text", "text": "first"}, {"type": "tool_result", "tool_use_id": "t", "content": "r"}]}]});
        let (_, body) = sent(MESSAGES, UpstreamDialect::Chat, &body);
        let roles: Vec<_> = body["messages"]
            .as_array()
            .unwrap()
            .iter()
            .map(|message| message["role"].as_str().unwrap())
            .collect();
        assert_eq!(roles, ["user", "assistant", "tool", "user"]);
    }),
    (14, "allowed_tools and parallel_tool_calls reach Anthropic", || {
        let (_, body) =
            sent(CHAT, UpstreamDialect::Anthropic, &with(two_calls(), json!({"parallel_tool_calls": false})));
        assert_eq!(body["tool_choice"], json!({"type": "auto", "disable_parallel_tool_use": true}));
        let choice = json!({"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [{"type": "function", "function": {"name": "g"}}]}});
        let (_, body) =
            sent(CHAT, UpstreamDialect::Anthropic, &with(two_calls(), json!({"tool_choice": choice})));
        assert_eq!(
            (
                body["tools"].as_array().unwrap().len(),
                &body["tools"][0]["name"],
                &body["tool_choice"]["type"]
            ),
            (1, &json!("g"), &json!("any"))
        );
    }),
    (15, "gpt-5.4 with tools goes to Responses", || {
        let body = with(two_calls(), json!({"reasoning_effort": "high"}));
        let (request, sent_body) = sent_to(CHAT, UpstreamDialect::Chat, "openai", "gpt-5.4", &body);
        assert_eq!(
            (request.path.as_str(), request.session.upstream()),
            ("/responses", UpstreamDialect::Responses)
        );
        assert_eq!(sent_body["reasoning"]["effort"], "high");
        assert_eq!((&sent_body["store"], &sent_body["tools"][0]["name"]), (&json!(false), &json!("f")));
        let (request, _) = sent_to(CHAT, UpstreamDialect::Chat, "openai", "gpt-5.4", &hi(json!({})));
        assert_eq!(request.path, "/chat/completions");
    }),
    (16, "gpt-5.6 with tools goes there even without effort", || {
        let (request, _) = sent_to(
            MESSAGES,
            UpstreamDialect::Chat,
            "openai",
            "gpt-5.6",
            &json!({"max_tokens": 9, "messages": [{"role": "user", "content": "x"}], "tools": [{"name": "f", "input_schema": {}}]}),
        );
        assert_eq!(request.path, "/responses");
    }),
    (17, "temperature is dropped where a model has none", || {
        let (request, body) = sent_to(
            CHAT,
            UpstreamDialect::Anthropic,
            "anthropic",
            "claude-opus-4-7",
            &hi(json!({"temperature": 0.2, "top_k": 4})),
        );
        assert_eq!(request.dropped, ["temperature", "top_k"]);
        assert!(body.get("temperature").is_none() && body.get("top_k").is_none());
        let (request, body) = sent(CHAT, UpstreamDialect::Anthropic, &hi(json!({"temperature": 1.7})));
        assert_eq!(
            (request.dropped.as_slice(), &body["temperature"]),
            (["temperature".to_owned()].as_slice(), &json!(1))
        );
    }),
    (18, "the kind of thinking follows the model", || {
        let body = hi(json!({"reasoning_effort": "high", "max_tokens": 9000}));
        let (_, new) = sent_to(CHAT, UpstreamDialect::Anthropic, "anthropic", "claude-opus-4-8", &body);
        assert_eq!(
            (&new["thinking"], &new["output_config"]["effort"]),
            (&json!({"type": "adaptive", "display": "summarized"}), &json!("high"))
        );
        let (_, old) = sent_to(CHAT, UpstreamDialect::Anthropic, "anthropic", "claude-sonnet-4-5", &body);
        assert_eq!(old["thinking"], json!({"type": "enabled", "budget_tokens": 4096}));
        assert!(old.get("output_config").is_none());
        // A budget must leave room for the answer.
        let (request, none) = sent(
            CHAT,
            UpstreamDialect::Anthropic,
            &hi(json!({"reasoning_effort": "high", "max_tokens": 500})),
        );
        assert!(none.get("thinking").is_none());
        assert_eq!(request.dropped, ["reasoning"]);
    }),
    (19, "a narrow top_p is dropped while a model thinks", || {
        let (request, body) = sent(
            CHAT,
            UpstreamDialect::Anthropic,
            &hi(json!({"top_p": 0.5, "temperature": 0.3, "reasoning_effort": "low", "max_tokens": 9000})),
        );
        assert_eq!(request.dropped, ["temperature", "top_p"]);
        assert!(body.get("top_p").is_none() && body.get("thinking").is_some());
    }),
    (20, "what is dropped is named", || {
        let (request, body) = sent(
            CHAT,
            UpstreamDialect::Google,
            &hi(
                json!({"frequency_penalty": 1, "seed": 5, "logit_bias": {"1": 1}, "store": true, "prediction": {}}),
            ),
        );
        assert_eq!(request.dropped, ["frequency_penalty", "logit_bias", "prediction", "store"]);
        assert_eq!(body["generationConfig"]["seed"], 5);
    }),
    (21, "a chat body never reaches Messages as it is", || {
        let (_, body) =
            sent(CHAT, UpstreamDialect::Anthropic, &hi(json!({"max_completion_tokens": 7, "n": 1})));
        let keys: Vec<_> = body.as_object().unwrap().keys().collect();
        assert_eq!(keys, ["max_tokens", "messages", "model"]);
    }),
    (22, "chat reaches Anthropic itself", || {
        let (request, body) = sent(CHAT, UpstreamDialect::Anthropic, &hi(json!({})));
        assert_eq!((request.path.as_str(), &body["max_tokens"]), ("/messages", &json!(4096)));
    }),
    (23, "Gemini's signatures come back, over any caller and any node", || {
        let bytes = sse(&[
            json!({"responseId": "c", "candidates": [{"content": {"parts": [{"functionCall": {"name": "f", "args": {}}, "thoughtSignature": "c2ln+/="}]}, "finishReason": "STOP"}]}),
        ]);
        for caller in CallerDialect::ALL {
            let got = streamed(caller, UpstreamDialect::Google, &bytes);
            let events = events_of(got.text.as_bytes());
            let id = |key: &str| events.iter().find_map(|(_, data)| find(data, key)).unwrap();
            let (id, history) = match caller {
                CallerDialect::Chat => {
                    let id = id("id_of_call");
                    let history = json!({"messages": [{"role": "user", "content": "x"},
                        {"role": "assistant", "tool_calls": [{"id": id, "function": {"name": "f", "arguments": "{}"}}]},
                        {"role": "tool", "tool_call_id": id, "content": "r"}]});
                    (id, history)
                }
                CallerDialect::Responses => {
                    let id = id("call_id");
                    let history = json!({"input": [{"role": "user", "content": "x"}, {"type": "function_call", "call_id": id, "name": "f", "arguments": "{}"},
                        {"type": "function_call_output", "call_id": id, "output": "r"}]});
                    (id, history)
                }
                CallerDialect::Messages => {
                    let id = id("id_of_block");
                    let history = json!({"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": [{"type": "tool_use", "id": id, "name": "f", "input": {}}]},
                        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": id, "content": "r"}]}]});
                    (id, history)
                }
            };
            assert!(id.chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '-'), "{id}");
            let (_, body) = sent(caller, UpstreamDialect::Google, &history);
            assert_eq!(body["contents"][1]["parts"][0]["thoughtSignature"], "c2ln+/=", "{caller:?}");
            // Never to another maker: Vertex gets the documented word, all others plain and short ids.
            let (_, body) = sent(caller, UpstreamDialect::Vertex, &history);
            assert!(!body.to_string().contains("c2ln+"));
            assert!(body["contents"][1]["parts"][0]["thoughtSignature"].is_string());
            for upstream in [
                UpstreamDialect::Chat,
                UpstreamDialect::Anthropic,
                UpstreamDialect::Bedrock,
                UpstreamDialect::Responses,
            ] {
                let (_, body) = sent(caller, upstream, &history);
                assert!(!body.to_string().contains("_pdsig_"), "{body}");
            }
            // Nor by passing through.
            let native = native(caller);
            let clean = scrub(native, "m", history.to_string().as_bytes()).unwrap();
            assert!(!String::from_utf8(clean).unwrap().contains("_pdsig_"));
        }
        assert_eq!(scrub(UpstreamDialect::Chat, "m", b"{\"a\": 1}"), None);
    }),
    (24, "thinking is never asked for after a call whose reasoning is lost", || {
        let history = json!({"max_tokens": 9000, "thinking": {"type": "enabled", "budget_tokens": 2000}, "messages": [
            {"role": "user", "content": "x"},
            {"role": "assistant", "content": [{"type": "thinking", "thinking": "t", "signature": "c2ln"}, {"type": "tool_use", "id": "a", "name": "f", "input": {}}]},
            {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "a", "content": "r"}]}]});
        let (_, kept) = sent(MESSAGES, UpstreamDialect::Bedrock, &history);
        assert_eq!(
            kept["messages"][1]["content"][0]["reasoningContent"]["reasoningText"],
            json!({"text": "t", "signature": "c2ln"})
        );
        let mut lost = history;
        lost["messages"][1]["content"][0]["signature"] = json!("");
        let (request, body) = sent(MESSAGES, UpstreamDialect::VertexClaude, &lost);
        assert!(body.get("thinking").is_none());
        assert_eq!(request.dropped, ["reasoning"]);
    }),
    (25, "a fallback translates from the caller's own body", || {
        // The same body for two upstreams, in any order, gives the same requests: nothing is kept between them.
        let body = two_calls();
        let first = sent(CHAT, UpstreamDialect::Google, &body).1;
        sent(CHAT, UpstreamDialect::Anthropic, &body);
        assert_eq!(sent(CHAT, UpstreamDialect::Google, &body).1, first);
    }),
    (26, "reasoning items of Responses survive other providers", || {
        let bytes = anthropic(&[
            json!({"type": "content_block_start", "index": 0, "content_block": {"type": "thinking", "thinking": ""}}),
            json!({"type": "content_block_delta", "index": 0, "delta": {"type": "thinking_delta", "thinking": "hm"}}),
            json!({"type": "content_block_delta", "index": 0, "delta": {"type": "signature_delta", "signature": "c2ln"}}),
            json!({"type": "content_block_stop", "index": 0}),
            json!({"type": "content_block_start", "index": 1, "content_block": {"type": "redacted_thinking", "data": "aGlk"}}),
            json!({"type": "content_block_stop", "index": 1}),
            json!({"type": "content_block_start", "index": 2, "content_block": {"type": "text", "text": "hi"}}),
            json!({"type": "content_block_stop", "index": 2}),
        ]);
        let got = streamed(RESPONSES, UpstreamDialect::Anthropic, &bytes);
        let end = events_of(got.text.as_bytes()).pop().unwrap().1;
        let mut input = end["response"]["output"].as_array().unwrap().clone();
        input.push(json!({"role": "user", "content": "and?"}));
        let (_, body) = sent(RESPONSES, UpstreamDialect::Anthropic, &json!({"input": input}));
        assert_eq!(
            body["messages"][1]["content"],
            json!([
            {"type": "thinking", "thinking": "hm", "signature": "c2ln"}, {"type": "redacted_thinking", "data": "aGlk"}, {"type": "text", "text": "hi"}])
        );
        let (_, other) = sent(RESPONSES, UpstreamDialect::Google, &json!({"input": input}));
        assert!(!other.to_string().contains("c2ln") && !other.to_string().contains("aGlk"));
    }),
    (27, "DeepSeek gets its reasoning back", || {
        let body = json!({"max_tokens": 5, "messages": [
            {"role": "user", "content": "x"},
            {"role": "assistant", "content": [{"type": "thinking", "thinking": "hm", "signature": ""}, {"type": "tool_use", "id": "a", "name": "f", "input": {}}]},
            {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "a", "content": "r"}]}]});
        let (_, sent_body) = sent_to(MESSAGES, UpstreamDialect::Chat, "deepseek", "deepseek-reasoner", &body);
        assert_eq!(sent_body["messages"][1]["reasoning_content"], "hm");
        let mut lost = body;
        lost["messages"][1]["content"].as_array_mut().unwrap().remove(0);
        let (_, sent_body) = sent_to(MESSAGES, UpstreamDialect::Chat, "deepseek", "deepseek-reasoner", &lost);
        assert_eq!(sent_body["messages"][1]["reasoning_content"], " ");
        let (_, sent_body) = sent(MESSAGES, UpstreamDialect::Chat, &lost);
        assert!(sent_body["messages"][1].get("reasoning_content").is_none());
    }),
    (28, "reasoning of a bridged Responses answer is shown", || {
        let body = json!({"object": "response", "status": "completed", "error": null, "output": [
            {"type": "reasoning", "summary": [{"type": "summary_text", "text": "hm"}], "encrypted_content": "ZW5j"},
            {"type": "message", "content": [{"type": "output_text", "text": "hi"}]}]});
        let got = translate_response(&session(CHAT, UpstreamDialect::Responses), body.to_string().as_bytes())
            .unwrap();
        let answer: Value = serde_json::from_slice(&got.body).unwrap();
        assert_eq!(answer["choices"][0]["message"]["reasoning_content"], "hm");
    }),
];

/// The id of the first call in an event of each dialect.
fn find(data: &Value, key: &str) -> Option<String> {
    let value = match key {
        "id_of_call" => &data["choices"][0]["delta"]["tool_calls"][0]["id"],
        "id_of_block" => &data["content_block"]["id"],
        _ => &data["item"]["call_id"],
    };
    value.as_str().map(str::to_owned)
}
