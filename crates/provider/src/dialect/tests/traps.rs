//! Each trap that users of other gateways reported, by its number there, as a case with a name in [`TRAPS`]:
//!
//! - 1 to 22: requests (results of tools, blank texts, fields that an upstream refuses, models that moved their tools)
//! - 23 to 28: reasoning over turns (proofs, placeholders, fallbacks)
//! - 29 to 52: streams (arguments, names and numbers of calls, blocks, cut characters, ends of lines, early ends)
//! - 53 to 59: errors and fallbacks (errors inside a good status, context overflow, stalls)
//! - 60 to 73: figures (caches counted once, cumulative figures, broken streams, estimates)
//! - 74: embeddings
//!
//! What concerns sockets and clocks alone is shown by the gateway's tests, over sockets: [`ELSEWHERE`] names them.

use super::*;

const CHAT: CallerDialect = CallerDialect::Chat;
const MESSAGES: CallerDialect = CallerDialect::Messages;
const RESPONSES: CallerDialect = CallerDialect::Responses;

/// Traps that no translation can fall into: the gateway's test that shows each, and the text of its file.
const ELSEWHERE: &[(u8, &str, &str)] = &[
    (59, "before_content_another_provider_answers_a_stream", LIAR),
    (72, "a_caller_who_leaves_takes_the_request_along", LIAR),
    (74, "embeddings_pass_as_they_are_in_both_directions", DIALECTS),
];

const DIALECTS: &str = include_str!("../../../../gateway/tests/dialects.rs");
const LIAR: &str = include_str!("../../../../gateway/tests/liar.rs");

/// A conversation with two calls at once and their results, as chat.
fn two_calls() -> Value {
    json!({"model": "m", "messages": [
        {"role": "user", "content": "go"},
        {"role": "assistant", "content": "", "tool_calls": [
            {"index": 0, "id": "a", "type": "function", "function": {"name": "f", "arguments": "{}"}},
            {"index": 1, "id": "b", "type": "function", "function": {"name": "g", "arguments": "{}"}}]},
        {"role": "tool", "tool_call_id": "b", "content": "B"},
        {"role": "tool", "tool_call_id": "a", "content": ""}],
        "tools": [{"type": "function", "function": {"name": "f"}}, {"type": "function", "function": {"name": "g"}}]})
}

fn with(mut body: Value, members: Value) -> Value {
    body.as_object_mut().unwrap().extend(members.as_object().unwrap().clone());
    body
}

fn hi(members: Value) -> Value {
    with(json!({"model": "m", "messages": [{"role": "user", "content": "hi"}]}), members)
}

fn call(index: Value, id: &str, name: &str, arguments: &str) -> Value {
    json!({"tool_calls": [{"index": index, "id": id, "type": "function", "function": {"name": name, "arguments": arguments}}]})
}

fn more(index: u64, arguments: &str) -> Value {
    json!({"tool_calls": [{"index": index, "function": {"arguments": arguments}}]})
}

/// The answer of one upstream stream for every caller: all must say the same.
fn for_all(upstream: UpstreamDialect, bytes: &[u8], check: &dyn Fn(&InnerResponse, &Streamed)) {
    for caller in CallerDialect::ALL {
        let got = streamed(caller, upstream, bytes);
        let answer = got.answer.clone().unwrap_or_else(|error| panic!("{caller:?}: {error}\n{}", got.text));
        check(&answer, &got);
    }
}

/// The failure of one upstream stream, the same for every caller.
fn fails(upstream: UpstreamDialect, bytes: &[u8], class: FailureClass, content: bool) {
    for caller in CallerDialect::ALL {
        let got = streamed(caller, upstream, bytes);
        let failure =
            got.translator.failure().unwrap_or_else(|| panic!("{caller:?} succeeded: {}", got.text));
        assert_eq!((failure.class, got.translator.has_content()), (class, content), "{caller:?}: {failure}");
    }
}

fn two(answer: &InnerResponse, first: (&str, Value), second: (&str, Value)) {
    let got: Vec<_> = calls(answer).into_iter().map(|(_, name, input)| (name, input)).collect();
    assert_eq!(got, [(first.0.to_owned(), first.1), (second.0.to_owned(), second.1)]);
}

fn anthropic(events: &[Value]) -> Vec<u8> {
    let mut all = vec![
        json!({"type": "message_start", "message": {"id": "c1", "usage": {"input_tokens": 10, "output_tokens": 1}}}),
    ];
    all.extend_from_slice(events);
    all.push(
        json!({"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 5}}),
    );
    all.push(json!({"type": "message_stop"}));
    sse(&all)
}

const TRAPS: &[(u8, &str, fn())] = &[
    // Requests.
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
    // Reasoning over turns.
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
    // Streams.
    (29, "arguments are streamed, wherever the server has them", || {
        let bytes = anthropic(&[
            json!({"type": "content_block_start", "index": 0, "content_block": {"type": "tool_use", "id": "a", "name": "f", "input": {"q": 1}}}),
            json!({"type": "content_block_stop", "index": 0}),
        ]);
        for_all(UpstreamDialect::Anthropic, &bytes, &|answer, _| {
            assert_eq!(calls(answer)[0].2, json!({"q": 1}))
        });
        let bytes = sse(&[
            json!({"type": "response.created", "response": {"id": "c"}}),
            json!({"type": "response.output_item.added", "output_index": 0, "item": {"type": "function_call", "call_id": "a", "name": "f", "arguments": ""}}),
            json!({"type": "response.function_call_arguments.done", "output_index": 0, "arguments": "{\"q\":1}"}),
            json!({"type": "response.completed", "response": {"status": "completed", "output": []}}),
        ]);
        for_all(UpstreamDialect::Responses, &bytes, &|answer, _| {
            assert_eq!(calls(answer)[0].2, json!({"q": 1}))
        });
    }),
    (30, "a chunk with text and a call keeps both", || {
        let bytes = chat_sse(&[with(json!({"content": "hi"}), call(json!(0), "a", "f", "{}"))], "tool_calls");
        for_all(UpstreamDialect::Chat, &bytes, &|answer, _| {
            assert_eq!((said(answer).as_str(), calls(answer).len()), ("hi", 1));
        });
    }),
    (31, "calls without id or with the index -1 are told apart", || {
        let bytes = chat_sse(
            &[
                json!({"tool_calls": [{"index": -1, "function": {"name": "f", "arguments": "{\"a\":1}"}}]}),
                json!({"tool_calls": [{"index": -1, "function": {"name": "g", "arguments": "{\"b\":"}}]}),
                json!({"tool_calls": [{"index": -1, "function": {"arguments": "2}"}}]}),
            ],
            "tool_calls",
        );
        for_all(UpstreamDialect::Chat, &bytes, &|answer, _| {
            two(answer, ("f", json!({"a": 1})), ("g", json!({"b": 2})));
            let ids: Vec<_> = calls(answer).into_iter().map(|call| call.0).collect();
            assert!(ids[0] != ids[1] && ids.iter().all(|id| !id.is_empty() && id.len() <= 40), "{ids:?}");
        });
    }),
    (32, "several tools keep their numbers", || {
        let bytes = chat_sse(
            &[
                call(json!(0), "a", "f", ""),
                more(0, "{\"a\":1}"),
                call(json!(1), "b", "g", ""),
                more(1, "{\"b\":2}"),
            ],
            "tool_calls",
        );
        for_all(UpstreamDialect::Chat, &bytes, &|answer, _| {
            two(answer, ("f", json!({"a": 1})), ("g", json!({"b": 2})))
        });
    }),
    (33, "a call's number counts calls, not blocks", || {
        let bytes = anthropic(&[
            json!({"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": "hi"}}),
            json!({"type": "content_block_stop", "index": 0}),
            json!({"type": "content_block_start", "index": 1, "content_block": {"type": "tool_use", "id": "a", "name": "f", "input": {}}}),
            json!({"type": "content_block_stop", "index": 1}),
        ]);
        let got = streamed(CHAT, UpstreamDialect::Anthropic, &bytes);
        let numbers: Vec<_> = events_of(got.text.as_bytes())
            .iter()
            .filter_map(|(_, data)| data["choices"][0]["delta"]["tool_calls"][0]["index"].as_u64())
            .collect();
        assert!(!numbers.is_empty() && numbers.iter().all(|number| *number == 0), "{numbers:?}");
    }),
    (34, "blocks are numbered without a gap", || {
        // Blocks 0, 3 and 7 upstream; the grammar check wants 0, 1, 2.
        let block = |index: u64, text: &str| {
            [
                json!({"type": "content_block_start", "index": index, "content_block": {"type": "text", "text": text}}),
                json!({"type": "content_block_stop", "index": index}),
            ]
        };
        let bytes = anthropic(&[block(0, "a"), block(3, "b"), block(7, "c")].concat());
        for_all(UpstreamDialect::Anthropic, &bytes, &|answer, _| assert_eq!(said(answer), "abc"));
    }),
    (35, "nothing goes into a closed block", || {
        let bytes = chat_sse(
            &[
                call(json!(0), "a", "f", "{}"),
                json!({"content": "between"}),
                more(0, ""),
                call(json!(0), "a", "f", ""),
                json!({"content": " more"}),
            ],
            "tool_calls",
        );
        for_all(UpstreamDialect::Chat, &bytes, &|answer, _| {
            assert_eq!((said(answer).as_str(), calls(answer).len()), ("between more", 1));
        });
    }),
    (36, "the first piece of text is kept", || {
        let bytes = chat_sse(
            &[json!({"role": "assistant", "content": "first"}), json!({"content": " second"})],
            "stop",
        );
        for_all(UpstreamDialect::Chat, &bytes, &|answer, _| assert_eq!(said(answer), "first second"));
        let bytes = anthropic(&[
            json!({"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": "first"}}),
            json!({"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": " second"}}),
            json!({"type": "content_block_stop", "index": 0}),
        ]);
        for_all(UpstreamDialect::Anthropic, &bytes, &|answer, _| assert_eq!(said(answer), "first second"));
    }),
    (37, "parallel calls of Gemini have numbers of their own", || {
        let bytes = sse(&[
            json!({"candidates": [{"content": {"parts": [{"functionCall": {"name": "f", "args": {"a": 1}}}, {"functionCall": {"name": "f", "args": {"a": 2}}}]}}]}),
            json!({"candidates": [{"content": {"parts": [{"functionCall": {"name": "g", "args": {}}}]}, "finishReason": "STOP"}]}),
        ]);
        for_all(UpstreamDialect::Google, &bytes, &|answer, _| {
            let ids: std::collections::BTreeSet<_> = calls(answer).into_iter().map(|call| call.0).collect();
            assert_eq!(ids.len(), 3);
        });
        // The compatible endpoint gives all of them the number 0.
        let bytes =
            chat_sse(&[call(json!(0), "a", "f", "{\"a\":1}"), call(json!(0), "b", "g", "{\"b\":2}")], "stop");
        for_all(UpstreamDialect::Chat, &bytes, &|answer, _| {
            two(answer, ("f", json!({"a": 1})), ("g", json!({"b": 2})))
        });
    }),
    (38, "a stop in a later chunk than the call means the call", || {
        let bytes = sse(&[
            json!({"candidates": [{"content": {"parts": [{"functionCall": {"name": "f"}}]}}]}),
            json!({"candidates": [{"content": {"parts": []}, "finishReason": "STOP"}]}),
        ]);
        for_all(UpstreamDialect::Google, &bytes, &|answer, _| {
            assert_eq!(answer.finish, FinishReason::ToolUse)
        });
    }),
    (39, "a plain stop after calls means the calls", || {
        let bytes = chat_sse(&[call(json!(0), "a", "f", "{}")], "stop");
        for_all(UpstreamDialect::Chat, &bytes, &|answer, _| assert_eq!(answer.finish, FinishReason::ToolUse));
    }),
    (40, "interleaved calls become blocks that follow each other", || {
        let bytes = chat_sse(
            &[
                call(json!(0), "a", "f", ""),
                call(json!(1), "b", "g", ""),
                more(0, "{\"a\""),
                more(1, "{\"b\""),
                json!({"content": "x"}),
                more(0, ":1}"),
                more(1, ":2}"),
            ],
            "tool_calls",
        );
        for_all(UpstreamDialect::Chat, &bytes, &|answer, _| {
            two(answer, ("f", json!({"a": 1})), ("g", json!({"b": 2})))
        });
        // One index for blocks of two types, one after the other.
        let bytes = anthropic(&[
            json!({"type": "content_block_start", "index": 0, "content_block": {"type": "tool_use", "id": "a", "name": "f", "input": {}}}),
            json!({"type": "content_block_stop", "index": 0}),
            json!({"type": "content_block_start", "index": 0, "content_block": {"type": "tool_use", "id": "b", "name": "g", "input": {}}}),
            json!({"type": "content_block_delta", "index": 0, "delta": {"type": "input_json_delta", "partial_json": "{\"b\":2}"}}),
            json!({"type": "content_block_stop", "index": 0}),
        ]);
        for_all(UpstreamDialect::Anthropic, &bytes, &|answer, _| {
            two(answer, ("f", json!({})), ("g", json!({"b": 2})))
        });
    }),
    (41, "a second stretch of reasoning is a block of its own", || {
        let bytes = chat_sse(
            &[
                json!({"reasoning_content": "one"}),
                json!({"content": "hi"}),
                json!({"reasoning_content": "two"}),
                json!({"content": "ho"}),
            ],
            "stop",
        );
        let got = streamed(MESSAGES, UpstreamDialect::Chat, &bytes);
        let kinds: Vec<_> = got
            .answer
            .unwrap()
            .blocks
            .iter()
            .map(|block| matches!(block, ContentBlock::Thinking { .. }))
            .collect();
        assert_eq!(kinds, [true, false, true, false]);
    }),
    (42, "reasoning and text in one chunk are both kept", || {
        let bytes = chat_sse(&[json!({"reasoning_content": "hm", "content": "hi"})], "stop");
        for_all(UpstreamDialect::Chat, &bytes, &|answer, _| {
            assert_eq!((thought(answer), said(answer)), ("hm".to_owned(), "hi".to_owned()))
        });
    }),
    (43, "a stream with nothing in it is no success", || {
        fails(UpstreamDialect::Chat, &sse(&[json!("[DONE]")]), FailureClass::Truncated, false);
        fails(UpstreamDialect::Bedrock, &aws(&[("somethingNew", json!({}))]), FailureClass::Truncated, false);
    }),
    (44, "characters survive a cut", || {
        // `streamed` cuts at every byte.
        let bytes = chat_sse(&[json!({"content": "日本語🦀"})], "stop");
        for_all(UpstreamDialect::Chat, &bytes, &|answer, _| assert_eq!(said(answer), "日本語🦀"));
    }),
    (45, "CRLF and `data:` without a space are read", || {
        let text = String::from_utf8(chat_sse(&[json!({"content": "hi"})], "stop")).unwrap();
        for form in [
            text.replace('\n', "\r\n"),
            text.replace('\n', "\r"),
            text.replace("data: ", "data:"),
            format!("\u{feff}: OPENROUTER PROCESSING\n\n{text}"),
        ] {
            for_all(UpstreamDialect::Chat, form.as_bytes(), &|answer, _| assert_eq!(said(answer), "hi"));
        }
    }),
    (46, "Azure's chunks without choice or delta are read", || {
        let bytes = sse(&[
            json!({"id": "", "model": "", "choices": [], "prompt_filter_results": [{}]}),
            json!({"id": "c1", "model": "up", "choices": [{"index": 0, "delta": {"content": "hi"}, "finish_reason": null}]}),
            json!({"id": "", "choices": [{"index": 0, "finish_reason": null, "content_filter_results": {}}]}),
            json!({"id": "c1", "choices": [{"index": 0, "delta": null, "finish_reason": "stop"}]}),
            json!("[DONE]"),
        ]);
        for_all(UpstreamDialect::Azure, &bytes, &|answer, _| {
            assert_eq!((said(answer).as_str(), answer.id.as_str()), ("hi", "c1"))
        });
    }),
    (47, "a Responses stream always has its end", || {
        let whole = chat_sse(&[json!({"content": "hi"})], "stop");
        assert!(
            streamed(RESPONSES, UpstreamDialect::Chat, &whole).text.contains("event: response.completed")
        );
        assert!(
            streamed(RESPONSES, UpstreamDialect::Chat, &whole[..60]).text.contains("event: response.failed")
        );
        let long = chat_sse(&[json!({"content": "hi"})], "length");
        let got = streamed(RESPONSES, UpstreamDialect::Chat, &long);
        assert!(got.text.contains("event: response.incomplete") && got.text.contains("max_output_tokens"));
    }),
    (48, "Responses events have their type and nest the response", || {
        // The grammar check looks at every `type` and number.
        let got = streamed(RESPONSES, UpstreamDialect::Anthropic, &anthropic(&[]));
        for (name, data) in events_of(got.text.as_bytes()) {
            assert!(!name.starts_with("response.c") || data["response"]["object"] == "response", "{data}");
        }
    }),
    (49, "half an event never runs into the error", || {
        let mut bytes = chat_sse(&[json!({"content": "hi"})], "stop");
        bytes.truncate(bytes.len() - 150);
        let got = streamed(CHAT, UpstreamDialect::Chat, &bytes);
        assert!(got.text.ends_with("\n\n") && got.text.contains("\n\ndata: {\"error\":"), "{}", got.text);
    }),
    (50, "an upstream that dies is no end", || {
        let bytes = chat_sse(&[json!({"content": "hi"})], "stop");
        let end = String::from_utf8(bytes.clone()).unwrap().find("\n\n").unwrap() + 2;
        fails(UpstreamDialect::Chat, &bytes[..end], FailureClass::Truncated, true);
    }),
    (51, "Bedrock cut in the middle of arguments is broken", || {
        let bytes = aws(&[
            ("messageStart", json!({"role": "assistant"})),
            (
                "contentBlockStart",
                json!({"contentBlockIndex": 0, "start": {"toolUse": {"toolUseId": "a", "name": "f"}}}),
            ),
            (
                "contentBlockDelta",
                json!({"contentBlockIndex": 0, "delta": {"toolUse": {"input": "{\"q\":"}}}),
            ),
        ]);
        fails(UpstreamDialect::Bedrock, &bytes, FailureClass::Truncated, true);
        fails(UpstreamDialect::Bedrock, &bytes[..bytes.len() - 3], FailureClass::Truncated, true);
    }),
    (52, "Bedrock's stream is Anthropic's grammar for its clients", || {
        let bytes = aws(&[
            ("messageStart", json!({"role": "assistant"})),
            ("contentBlockDelta", json!({"contentBlockIndex": 0, "delta": {"text": "hi"}})),
            ("contentBlockStop", json!({"contentBlockIndex": 0})),
            ("messageStop", json!({"stopReason": "end_turn"})),
            ("metadata", json!({"usage": {"inputTokens": 3, "outputTokens": 1}})),
        ]);
        let got = streamed(MESSAGES, UpstreamDialect::Bedrock, &bytes);
        let names: Vec<_> = events_of(got.text.as_bytes()).into_iter().map(|event| event.0).collect();
        assert_eq!(
            names,
            [
                "message_start",
                "content_block_start",
                "content_block_delta",
                "content_block_stop",
                "message_delta",
                "message_stop"
            ]
        );
    }),
    // Errors.
    (53, "a limit inside a stream is seen before content", || {
        fails(
            UpstreamDialect::Chat,
            &sse(&[json!({"error": {"message": "slow down", "code": 429}})]),
            FailureClass::RateLimit,
            false,
        );
        fails(
            UpstreamDialect::Bedrock,
            &aws(&[("throttlingException", json!({"message": "slow down"}))]),
            FailureClass::RateLimit,
            false,
        );
    }),
    (54, "overload inside a stream is seen before content", || {
        let error = json!({"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}});
        let start = json!({"type": "message_start", "message": {"id": "c", "usage": {"input_tokens": 1}}});
        fails(
            UpstreamDialect::Anthropic,
            &sse(&[start, json!({"type": "ping"}), error]),
            FailureClass::Overloaded,
            false,
        );
    }),
    (55, "context overflow as the first event is context overflow", || {
        let error =
            json!({"error": {"message": "This model's maximum context length is 8192 tokens", "code": 400}});
        fails(UpstreamDialect::Chat, &sse(&[error]), FailureClass::ContextOverflow, false);
    }),
    (56, "OpenRouter's error chunk is no empty success", || {
        let bytes = sse(&[
            json!({"id": "c", "error": {"code": 502, "message": "Provider returned error"}, "choices": [{"index": 0, "delta": {"content": ""}, "finish_reason": "error"}]}),
        ]);
        fails(UpstreamDialect::Chat, &bytes, FailureClass::Server, false);
        let bytes = sse(&[
            json!({"id": "c", "choices": [{"index": 0, "delta": {"content": ""}, "finish_reason": "error"}]}),
            json!("[DONE]"),
        ]);
        fails(UpstreamDialect::Chat, &bytes, FailureClass::Server, false);
        let whole = json!({"error": {"code": 429, "message": "x"}});
        let failure = translate_response(&session(CHAT, UpstreamDialect::Chat), whole.to_string().as_bytes())
            .unwrap_err();
        assert_eq!(failure.class, FailureClass::RateLimit);
    }),
    (57, "response.failed is no empty success", || {
        let bytes = sse(&[
            json!({"type": "response.failed", "response": {"status": "failed", "error": {"code": "rate_limit_exceeded", "message": "slow"}}}),
        ]);
        fails(UpstreamDialect::Responses, &bytes, FailureClass::RateLimit, false);
        let whole = json!({"object": "response", "status": "failed", "error": {"code": "server_error", "message": "x"}, "output": []});
        assert!(
            translate_response(&session(CHAT, UpstreamDialect::Responses), whole.to_string().as_bytes())
                .is_err()
        );
    }),
    (58, "context overflow blames the request, not the provider", || {
        let failure =
            read_failure(400, "", json!({"error": {"message": "prompt is too long"}}).to_string().as_bytes());
        assert!(failure.class == FailureClass::ContextOverflow && failure.class.is_callers());
    }),
    // Figures.
    (60, "cache reads are counted once", || {
        let body = json!({"choices": [{"message": {"content": "x"}, "finish_reason": "stop"}], "usage": {"prompt_tokens": 100, "completion_tokens": 1, "prompt_tokens_details": {"cached_tokens": 80}}});
        let got = translate_response(&session(MESSAGES, UpstreamDialect::Chat), body.to_string().as_bytes())
            .unwrap();
        let usage = &serde_json::from_slice::<Value>(&got.body).unwrap()["usage"];
        assert_eq!((&usage["input_tokens"], &usage["cache_read_input_tokens"]), (&json!(20), &json!(80)));
    }),
    (61, "message_start and message_delta are not added", || {
        for_all(UpstreamDialect::Anthropic, &anthropic(&[]), &|_, got| {
            assert_eq!((got.translator.usage().input, got.translator.usage().output), (10, 5));
        });
    }),
    (62, "prompt_tokens includes the cache, and the total agrees", || {
        let body = json!({"content": [{"type": "text", "text": "x"}], "stop_reason": "end_turn", "usage": {"input_tokens": 10, "cache_read_input_tokens": 60, "cache_creation_input_tokens": 30, "output_tokens": 5}});
        let got = translate_response(&session(CHAT, UpstreamDialect::Anthropic), body.to_string().as_bytes())
            .unwrap();
        let usage = &serde_json::from_slice::<Value>(&got.body).unwrap()["usage"];
        assert_eq!(
            (
                &usage["prompt_tokens"],
                &usage["total_tokens"],
                &usage["prompt_tokens_details"]["cached_tokens"]
            ),
            (&json!(100), &json!(105), &json!(60))
        );
    }),
    (63, "the input in the last message_delta counts", || {
        let bytes = sse(&[
            json!({"type": "message_start", "message": {"id": "c", "usage": {"input_tokens": 100, "output_tokens": 0}}}),
            json!({"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"input_tokens": 20, "cache_read_input_tokens": 80, "output_tokens": 5}}),
            json!({"type": "message_stop"}),
        ]);
        for_all(UpstreamDialect::Anthropic, &bytes, &|answer, _| {
            assert_eq!((answer.usage.input, answer.usage.cache_read), (20, 80))
        });
    }),
    (64, "Gemini's cumulative figures are not added", || {
        let chunk = |output: u64, finish: Value| json!({"candidates": [{"content": {"parts": [{"text": "x"}]}, "finishReason": finish}], "usageMetadata": {"promptTokenCount": 10, "candidatesTokenCount": output, "totalTokenCount": 10 + output}});
        let bytes = sse(&[
            chunk(1, Value::Null),
            chunk(2, Value::Null),
            chunk(3, json!("STOP")),
            json!({"usageMetadata": {"trafficType": "ON_DEMAND"}}),
        ]);
        for_all(UpstreamDialect::Google, &bytes, &|answer, _| {
            assert_eq!((answer.usage.input, answer.usage.output), (10, 3))
        });
    }),
    (65, "Gemini's cached tokens are inside its prompt", || {
        let parts = usage::read_google(
            &json!({"promptTokenCount": 100, "cachedContentTokenCount": 90, "candidatesTokenCount": 1}),
        )
        .unwrap();
        assert_eq!((parts.input, parts.cache_read, parts.input_total()), (10, 90, 100));
    }),
    (66, "streamed cache reads are not input", || {
        let bytes = sse(&[
            json!({"type": "message_start", "message": {"id": "c", "usage": {"input_tokens": 5, "cache_read_input_tokens": 95, "output_tokens": 0}}}),
            json!({"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 5}}),
            json!({"type": "message_stop"}),
        ]);
        for_all(UpstreamDialect::Anthropic, &bytes, &|answer, _| {
            assert_eq!((answer.usage.input, answer.usage.cache_read), (5, 95))
        });
    }),
    (67, "response.incomplete has its figures", || {
        let bytes = sse(&[
            json!({"type": "response.output_text.delta", "output_index": 0, "delta": "hi"}),
            json!({"type": "response.incomplete", "response": {"id": "c", "status": "incomplete", "incomplete_details": {"reason": "max_output_tokens"}, "usage": {"input_tokens": 9, "output_tokens": 4}}}),
        ]);
        for_all(UpstreamDialect::Responses, &bytes, &|answer, _| {
            assert_eq!(
                (answer.finish, answer.usage.input, answer.usage.output),
                (FinishReason::Length, 9, 4)
            );
        });
    }),
    (68, "a stream that is left has figures", || {
        let mut out = Vec::new();
        let mut translator = StreamTranslator::new(session(CHAT, UpstreamDialect::Chat));
        let bytes = chat_sse(&[json!({"content": "x".repeat(400)})], "stop");
        translator.feed(&bytes[..bytes.len() / 2 + 200], &mut out);
        let usage = translator.usage();
        assert_eq!((usage.input, usage.output, usage.source), (7, 100, TokenSource::Estimated));
    }),
    (69, "figures are asked for", || {
        let (_, body) = sent(CHAT, UpstreamDialect::Chat, &hi(json!({"stream": true})));
        assert_eq!(body["stream_options"], json!({"include_usage": true}));
        // And shown only to chat callers who asked.
        let mut own = session(CHAT, UpstreamDialect::Chat);
        own.include_usage = false;
        let got = streamed_in(own, &chat_sse(&[json!({"content": "hi"})], "stop"), 37);
        assert!(!got.text.contains("usage"));
        assert_eq!(got.translator.usage().input, 10);
    }),
    (70, "message_start has an estimate", || {
        let got = streamed(MESSAGES, UpstreamDialect::Chat, &chat_sse(&[json!({"content": "hi"})], "stop"));
        assert_eq!(events_of(got.text.as_bytes())[0].1["message"]["usage"]["input_tokens"], 7);
    }),
    (71, "count_tokens counts tools and instructions", || {
        let body = json!({"messages": [{"role": "user", "content": "x"}], "tools": [{"name": "f", "description": "d".repeat(9000), "input_schema": {}}]});
        assert!(estimate_tokens(MESSAGES, body.to_string().as_bytes()).unwrap() >= 3000);
    }),
    (73, "figures in any chunk are read", || {
        let last = |usage: Value| json!({"id": "c", "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}], "usage": usage});
        let figures = json!({"prompt_tokens": 10, "completion_tokens": 5});
        let text = json!({"id": "c", "choices": [{"index": 0, "delta": {"content": "hi"}}], "usage": null});
        for events in [
            vec![text.clone(), last(figures.clone()), json!("[DONE]")],
            vec![text.clone(), last(json!({})), json!({"choices": [], "usage": figures}), json!("[DONE]")],
            vec![
                text.clone(),
                last(figures.clone()),
                json!({"choices": [], "usage": figures}),
                json!({"choices": [], "cost": "0"}),
                json!("[DONE]"),
            ],
            vec![text.clone(), last(figures.clone()), last(json!({})), json!("[DONE]")],
            vec![text.clone(), last(figures.clone())],
        ] {
            for_all(UpstreamDialect::Chat, &sse(&events), &|answer, _| {
                assert_eq!((answer.usage.input, answer.usage.output), (10, 5))
            });
        }
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

#[test]
fn no_trap_is_fallen_into() {
    let mut fallen = Vec::new();
    for (number, name, case) in TRAPS {
        if std::panic::catch_unwind(case).is_err() {
            fallen.push(format!("{number}: {name}"));
        }
    }
    assert!(fallen.is_empty(), "{fallen:#?}");
}

#[test]
fn every_trap_has_its_case() {
    let mut numbers: Vec<u8> =
        TRAPS.iter().map(|trap| trap.0).chain(ELSEWHERE.iter().map(|trap| trap.0)).collect();
    numbers.sort_unstable();
    assert_eq!(numbers, (1..=74).collect::<Vec<u8>>());
    for (number, test, file) in ELSEWHERE {
        assert!(file.contains(&format!("async fn {test}()")), "{number}: there is no test {test}");
    }
}

/// A conversation whose reasoning has a proof of every maker, in each caller's dialect.
fn proofs_of_all(caller: CallerDialect) -> (Value, Vec<(Maker, String)>) {
    let makers =
        [Maker::Anthropic, Maker::Google, Maker::Vertex, Maker::OpenAi, Maker::Azure, Maker::Bedrock];
    let proofs: Vec<(Maker, String)> =
        makers.into_iter().map(|maker| (maker, format!("PROOF{maker:?}").to_ascii_uppercase())).collect();
    let answer = InnerResponse {
        blocks: proofs
            .iter()
            .enumerate()
            .flat_map(|(number, (maker, data))| {
                let signature = Signature::new(*maker, data.as_str());
                [
                    ContentBlock::Thinking { text: "t".to_owned(), signature: Some(signature.clone()) },
                    ContentBlock::Redacted(signature.clone()),
                    ContentBlock::ToolUse {
                        id: format!("c{number}"),
                        name: "f".to_owned(),
                        input: "{}".to_owned(),
                        signature: Some(signature),
                        cache: None,
                    },
                ]
            })
            .collect(),
        ..InnerResponse::default()
    };
    let written: Value =
        serde_json::from_slice(&caller::write_response(&session(caller, native(caller)), &answer)).unwrap();
    let user = json!({"role": "user", "content": "x"});
    let body = match caller {
        CallerDialect::Chat => {
            let message = written["choices"][0]["message"].clone();
            let mut messages = vec![user, message.clone()];
            for call in message["tool_calls"].as_array().unwrap() {
                messages.push(json!({"role": "tool", "tool_call_id": call["id"], "content": "r"}));
            }
            json!({"messages": messages})
        }
        CallerDialect::Messages => {
            let results: Vec<Value> = written["content"]
                .as_array()
                .unwrap()
                .iter()
                .filter(|block| block["type"] == "tool_use")
                .map(|block| json!({"type": "tool_result", "tool_use_id": block["id"], "content": "r"}))
                .collect();
            json!({"messages": [user, {"role": "assistant", "content": written["content"]}, {"role": "user", "content": results}]})
        }
        CallerDialect::Responses => {
            let mut input = vec![user];
            input.extend(written["output"].as_array().unwrap().iter().cloned());
            for item in written["output"].as_array().unwrap() {
                if item["type"] == "function_call" {
                    input.push(
                        json!({"type": "function_call_output", "call_id": item["call_id"], "output": "r"}),
                    );
                }
            }
            json!({"input": input})
        }
    };
    (body, proofs)
}

#[test]
fn no_maker_sees_anothers_proof() {
    use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
    for caller in CallerDialect::ALL {
        let (body, proofs) = proofs_of_all(caller);
        for upstream in UpstreamDialect::ALL {
            let (provider, model) = sample_model(upstream);
            let mut options = options(upstream, provider, model);
            options.capabilities.replay = ReasoningReplay::Signed;
            let own = upstream.maker(model);
            let sent = translate_request(caller, upstream, body.to_string().as_bytes(), &options).unwrap();
            let scrubbed = scrub(upstream, model, body.to_string().as_bytes()).unwrap();
            for (way, text) in [("translated", sent.body), ("scrubbed", scrubbed)] {
                let text = String::from_utf8(text).unwrap();
                if way == "scrubbed" && !caller.is_native(upstream) {
                    continue;
                }
                for (maker, data) in &proofs {
                    let seen = text.contains(data.as_str()) || text.contains(&URL_SAFE_NO_PAD.encode(data));
                    // What an untagged field of a dialect holds is its own maker's and passes as it came.
                    let natively = way == "scrubbed"
                        && matches!(
                            (caller, maker),
                            (CallerDialect::Chat | CallerDialect::Messages, Maker::Anthropic)
                                | (CallerDialect::Responses, Maker::OpenAi)
                        );
                    if Some(*maker) != own && !natively {
                        assert!(!seen, "{caller:?} → {upstream:?} ({way}) shows {maker:?}'s: {text}");
                    }
                    let takes = !matches!(upstream, UpstreamDialect::Azure | UpstreamDialect::Chat);
                    if Some(*maker) == own && takes {
                        assert!(seen, "{caller:?} → {upstream:?} ({way}) lost its own: {text}");
                    }
                }
            }
        }
    }
}
