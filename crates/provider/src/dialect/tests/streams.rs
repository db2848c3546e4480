//! One recorded answer of every upstream, into every caller's dialect, cut at every byte: same text, reasoning, calls,
//! finish and figures. And the three bad endings of each.

use super::*;

/// An answer with reasoning, text, two calls (the second without arguments) and figures, as each upstream streams it.
fn recorded(upstream: UpstreamDialect) -> Vec<u8> {
    match upstream {
        UpstreamDialect::Chat | UpstreamDialect::Azure => chat_sse(
            &[
                json!({"role": "assistant", "content": ""}),
                json!({"reasoning_content": "let me "}),
                json!({"reasoning_content": "see"}),
                json!({"content": "It is "}),
                json!({"content": "日本 🦀"}),
                json!({"tool_calls": [{"index": 0, "id": "c-a", "type": "function", "function": {"name": "find", "arguments": ""}}]}),
                json!({"tool_calls": [{"index": 0, "function": {"arguments": "{\"q\":"}}]}),
                json!({"tool_calls": [{"index": 0, "function": {"arguments": "\"x}\"}"}}]}),
                json!({"tool_calls": [{"index": 1, "id": "c-b", "type": "function", "function": {"name": "now", "arguments": ""}}]}),
            ],
            "tool_calls",
        ),
        UpstreamDialect::Responses => sse(&[
            json!({"type": "response.created", "response": {"id": "c1", "model": "up", "status": "in_progress"}}),
            json!({"type": "response.output_item.added", "output_index": 0, "item": {"type": "reasoning", "id": "rs", "summary": []}}),
            json!({"type": "response.reasoning_summary_part.added", "output_index": 0, "summary_index": 0}),
            json!({"type": "response.reasoning_summary_text.delta", "output_index": 0, "delta": "let me see"}),
            json!({"type": "response.output_item.done", "output_index": 0, "item": {"type": "reasoning", "id": "rs", "summary": [{"type": "summary_text", "text": "let me see"}]}}),
            json!({"type": "response.output_item.added", "output_index": 1, "item": {"type": "message", "id": "m", "content": []}}),
            json!({"type": "response.output_text.delta", "output_index": 1, "delta": "It is 日本 🦀"}),
            json!({"type": "response.output_item.done", "output_index": 1, "item": {"type": "message", "content": [{"type": "output_text", "text": "It is 日本 🦀"}]}}),
            json!({"type": "response.output_item.added", "output_index": 2, "item": {"type": "function_call", "id": "fc", "call_id": "c-a", "name": "find", "arguments": ""}}),
            json!({"type": "response.function_call_arguments.delta", "output_index": 2, "delta": "{\"q\":\"x}\"}"}),
            json!({"type": "response.function_call_arguments.done", "output_index": 2, "arguments": "{\"q\":\"x}\"}"}),
            json!({"type": "response.output_item.done", "output_index": 2, "item": {"type": "function_call", "call_id": "c-a", "name": "find", "arguments": "{\"q\":\"x}\"}"}}),
            json!({"type": "response.output_item.added", "output_index": 3, "item": {"type": "function_call", "call_id": "c-b", "name": "now", "arguments": ""}}),
            json!({"type": "response.output_item.done", "output_index": 3, "item": {"type": "function_call", "call_id": "c-b", "name": "now", "arguments": "{}"}}),
            json!({"type": "response.completed", "response": {"id": "c1", "status": "completed", "output": [], "usage": {"input_tokens": 10, "output_tokens": 5}}}),
        ]),
        UpstreamDialect::Anthropic | UpstreamDialect::VertexClaude => sse(&[
            json!({"type": "message_start", "message": {"id": "c1", "model": "up", "usage": {"input_tokens": 10, "output_tokens": 1}}}),
            json!({"type": "ping"}),
            json!({"type": "content_block_start", "index": 0, "content_block": {"type": "thinking", "thinking": "", "signature": ""}}),
            json!({"type": "content_block_delta", "index": 0, "delta": {"type": "thinking_delta", "thinking": "let me see"}}),
            json!({"type": "content_block_delta", "index": 0, "delta": {"type": "signature_delta", "signature": "c2ln"}}),
            json!({"type": "content_block_stop", "index": 0}),
            json!({"type": "content_block_start", "index": 1, "content_block": {"type": "text", "text": ""}}),
            json!({"type": "content_block_delta", "index": 1, "delta": {"type": "text_delta", "text": "It is 日本 🦀"}}),
            json!({"type": "content_block_stop", "index": 1}),
            json!({"type": "content_block_start", "index": 2, "content_block": {"type": "server_tool_use", "id": "s", "name": "web_search", "input": {}}}),
            json!({"type": "content_block_delta", "index": 2, "delta": {"type": "input_json_delta", "partial_json": "{}"}}),
            json!({"type": "content_block_stop", "index": 2}),
            json!({"type": "content_block_start", "index": 3, "content_block": {"type": "tool_use", "id": "c-a", "name": "find", "input": {}}}),
            json!({"type": "content_block_delta", "index": 3, "delta": {"type": "input_json_delta", "partial_json": "{\"q\":"}}),
            json!({"type": "content_block_delta", "index": 3, "delta": {"type": "input_json_delta", "partial_json": "\"x}\"}"}}),
            json!({"type": "content_block_stop", "index": 3}),
            json!({"type": "content_block_start", "index": 4, "content_block": {"type": "tool_use", "id": "c-b", "name": "now", "input": {}}}),
            json!({"type": "content_block_stop", "index": 4}),
            json!({"type": "message_delta", "delta": {"stop_reason": "tool_use", "stop_sequence": null}, "usage": {"output_tokens": 5}}),
            json!({"type": "message_stop"}),
        ]),
        UpstreamDialect::Google | UpstreamDialect::Vertex => sse(&[
            json!({"responseId": "c1", "modelVersion": "up", "candidates": [{"content": {"role": "model", "parts": [{"text": "let me see", "thought": true}]}}], "usageMetadata": {"promptTokenCount": 10, "totalTokenCount": 10}}),
            json!({"responseId": "c1", "candidates": [{"content": {"parts": [{"text": "It is 日本 🦀"}]}}]}),
            json!({"responseId": "c1", "candidates": [{"content": {"parts": [
                {"functionCall": {"id": "c-a", "name": "find", "args": {"q": "x}"}}, "thoughtSignature": "c2ln"},
                {"functionCall": {"id": "c-b", "name": "now"}}]}}]}),
            json!({"responseId": "c1", "candidates": [{"content": {"parts": [{"text": ""}]}, "finishReason": "STOP"}], "usageMetadata": {"promptTokenCount": 10, "candidatesTokenCount": 3, "thoughtsTokenCount": 2, "totalTokenCount": 15}}),
        ]),
        UpstreamDialect::Bedrock => aws(&[
            ("messageStart", json!({"role": "assistant", "p": "abc"})),
            (
                "contentBlockDelta",
                json!({"contentBlockIndex": 0, "delta": {"reasoningContent": {"text": "let me see"}}}),
            ),
            (
                "contentBlockDelta",
                json!({"contentBlockIndex": 0, "delta": {"reasoningContent": {"signature": "c2ln"}}}),
            ),
            ("contentBlockStop", json!({"contentBlockIndex": 0})),
            ("contentBlockDelta", json!({"contentBlockIndex": 1, "delta": {"text": "It is 日本 🦀"}})),
            ("contentBlockStop", json!({"contentBlockIndex": 1})),
            (
                "contentBlockStart",
                json!({"contentBlockIndex": 2, "start": {"toolUse": {"toolUseId": "c-a", "name": "find"}}}),
            ),
            (
                "contentBlockDelta",
                json!({"contentBlockIndex": 2, "delta": {"toolUse": {"input": "{\"q\":\"x}\"}"}}}),
            ),
            ("contentBlockStop", json!({"contentBlockIndex": 2})),
            (
                "contentBlockStart",
                json!({"contentBlockIndex": 3, "start": {"toolUse": {"toolUseId": "c-b", "name": "now"}}}),
            ),
            ("contentBlockStop", json!({"contentBlockIndex": 3})),
            ("messageStop", json!({"stopReason": "tool_use"})),
            ("metadata", json!({"usage": {"inputTokens": 10, "outputTokens": 5, "totalTokens": 15}})),
        ]),
        UpstreamDialect::Cohere => sse(&[
            json!({"type": "message-start", "id": "c1", "delta": {"message": {"role": "assistant"}}}),
            json!({"type": "content-start", "index": 0, "delta": {"message": {"content": {"type": "thinking", "thinking": ""}}}}),
            json!({"type": "content-delta", "index": 0, "delta": {"message": {"content": {"thinking": "let me see"}}}}),
            json!({"type": "content-end", "index": 0}),
            json!({"type": "content-delta", "index": 1, "delta": {"message": {"content": {"text": "It is 日本 🦀"}}}}),
            json!({"type": "content-end", "index": 1}),
            json!({"type": "tool-call-start", "index": 0, "delta": {"message": {"tool_calls": {"id": "c-a", "type": "function", "function": {"name": "find", "arguments": ""}}}}}),
            json!({"type": "tool-call-delta", "index": 0, "delta": {"message": {"tool_calls": {"function": {"arguments": "{\"q\":\"x}\"}"}}}}}),
            json!({"type": "tool-call-end", "index": 0}),
            json!({"type": "tool-call-start", "index": 1, "delta": {"message": {"tool_calls": {"id": "c-b", "type": "function", "function": {"name": "now", "arguments": ""}}}}}),
            json!({"type": "tool-call-end", "index": 1}),
            json!({"type": "message-end", "delta": {"finish_reason": "TOOL_CALL", "usage": {"billed_units": {"input_tokens": 4, "output_tokens": 2}, "tokens": {"input_tokens": 10.0, "output_tokens": 5.0}}}}),
        ]),
        UpstreamDialect::Ollama => lines(&[
            json!({"model": "up", "message": {"role": "assistant", "content": "", "thinking": "let me see"}, "done": false}),
            json!({"model": "up", "message": {"role": "assistant", "content": "It is 日本 🦀"}, "done": false}),
            json!({"model": "up", "message": {"role": "assistant", "content": "", "tool_calls": [
                {"id": "c-a", "function": {"name": "find", "arguments": {"q": "x}"}}},
                {"id": "c-b", "function": {"name": "now", "arguments": {}}}]}, "done": false}),
            json!({"model": "up", "message": {"role": "assistant", "content": ""}, "done": true, "done_reason": "stop", "prompt_eval_count": 10, "eval_count": 5}),
        ]),
    }
}

#[test]
fn every_upstream_reads_the_same_for_every_caller() {
    for upstream in UpstreamDialect::ALL {
        for caller in CallerDialect::ALL {
            let name = format!("{caller:?} from {upstream:?}");
            // At every byte once: how the reader cuts does not depend on who reads the result.
            let step = if caller == CallerDialect::Messages { 1 } else { 37 };
            let got = streamed_in(session(caller, upstream), &recorded(upstream), step);
            let answer = got.answer.unwrap_or_else(|error| panic!("{name}: {error}\n{}", got.text));
            assert_eq!(said(&answer), "It is 日本 🦀", "{name}");
            assert_eq!(thought(&answer), "let me see", "{name}");
            let expected = [
                ("c-a".to_owned(), "find".to_owned(), json!({"q": "x}"})),
                ("c-b".to_owned(), "now".to_owned(), json!({})),
            ];
            assert_eq!(calls(&answer), expected, "{name}");
            assert_eq!(answer.finish, FinishReason::ToolUse, "{name}");
            let usage = got.translator.usage();
            assert_eq!((usage.input, usage.output, usage.source), (10, 5, TokenSource::Reported), "{name}");
            assert_eq!((answer.usage.input, answer.usage.output), (10, 5), "{name}");
            assert!(got.translator.has_content());
        }
    }
}

#[test]
fn a_stream_that_ends_early_is_broken_for_every_caller() {
    for upstream in UpstreamDialect::ALL {
        let bytes = recorded(upstream);
        for caller in CallerDialect::ALL {
            // Half of it: after content, before any end.
            let got = streamed(caller, upstream, &bytes[..bytes.len() / 2]);
            let failure = got.translator.failure().unwrap_or_else(|| panic!("{caller:?} {upstream:?}"));
            assert_eq!(failure.class, FailureClass::Truncated, "{caller:?} {upstream:?}: {failure}");
            assert!(got.answer.is_err());
            assert!(got.translator.usage().source != TokenSource::Reported);
            // Nothing at all.
            let got = streamed(caller, upstream, b"");
            assert_eq!(got.translator.failure().map(|failure| failure.class), Some(FailureClass::Truncated));
            assert!(!got.translator.has_content());
        }
    }
}

/// An error inside a good status, as each upstream sends it.
fn error_event(upstream: UpstreamDialect) -> Vec<u8> {
    match upstream {
        UpstreamDialect::Chat | UpstreamDialect::Azure => sse(&[
            json!({"error": {"message": "busy", "type": "server_error", "code": "server_is_overloaded"}}),
        ]),
        UpstreamDialect::Responses => sse(&[
            json!({"type": "response.failed", "response": {"object": "response", "status": "failed", "error": {"code": "server_is_overloaded", "message": "busy"}}}),
        ]),
        UpstreamDialect::Anthropic | UpstreamDialect::VertexClaude => {
            sse(&[json!({"type": "error", "error": {"type": "overloaded_error", "message": "busy"}})])
        }
        UpstreamDialect::Google | UpstreamDialect::Vertex => {
            sse(&[json!({"error": {"code": 503, "message": "busy", "status": "UNAVAILABLE"}})])
        }
        UpstreamDialect::Bedrock => aws(&[("serviceUnavailableException", json!({"message": "busy"}))]),
        UpstreamDialect::Cohere => sse(&[
            json!({"type": "message-end", "delta": {"finish_reason": "ERROR", "error": "busy", "usage": {}}}),
        ]),
        UpstreamDialect::Ollama => lines(&[json!({"error": "busy"})]),
    }
}

#[test]
fn an_error_inside_a_stream_is_an_error_for_every_caller() {
    for upstream in UpstreamDialect::ALL {
        let first = error_event(upstream);
        let bytes = recorded(upstream);
        // After the first events: whole ones only.
        let mut later = match upstream {
            UpstreamDialect::Bedrock => aws(&[
                ("messageStart", json!({"role": "assistant"})),
                ("contentBlockDelta", json!({"contentBlockIndex": 0, "delta": {"text": "a"}})),
            ]),
            UpstreamDialect::Ollama => lines(&[json!({"message": {"content": "a"}, "done": false})]),
            _ => {
                let text = String::from_utf8(bytes).unwrap();
                let end = text
                    .match_indices("\n\n")
                    .nth(7)
                    .or_else(|| text.match_indices("\n\n").nth(1))
                    .unwrap()
                    .0;
                text.as_bytes()[..end + 2].to_vec()
            }
        };
        later.extend_from_slice(&first);
        for caller in CallerDialect::ALL {
            for (bytes, content) in [(&first, false), (&later, true)] {
                let got = streamed(caller, upstream, bytes);
                let failure = got.translator.failure().unwrap_or_else(|| panic!("{caller:?} {upstream:?}"));
                let expected = match upstream {
                    UpstreamDialect::Cohere | UpstreamDialect::Ollama => FailureClass::Server,
                    _ => FailureClass::Overloaded,
                };
                assert_eq!(failure.class, expected, "{caller:?} {upstream:?}");
                assert_eq!(failure.message, "busy", "{caller:?} {upstream:?}");
                assert_eq!(got.translator.has_content(), content, "{caller:?} {upstream:?}");
                assert!(got.text.contains("busy"));
            }
        }
    }
}

#[test]
fn the_gateways_own_end_keeps_the_grammar() {
    for upstream in UpstreamDialect::ALL {
        for caller in CallerDialect::ALL {
            let mut out = Vec::new();
            let mut translator = StreamTranslator::new(session(caller, upstream));
            let bytes = recorded(upstream);
            translator.feed(&bytes[..bytes.len() / 2], &mut out);
            translator.abort(UpstreamFailure::new(FailureClass::Timeout, "idle"), &mut out);
            let length = out.len();
            // Nothing follows an end.
            translator.feed(&bytes[bytes.len() / 2..], &mut out);
            translator.finish(&mut out);
            assert_eq!(out.len(), length);
            check_grammar(caller, &out, true);
        }
    }
}

#[test]
fn a_whole_body_can_be_given_as_a_stream() {
    let body = json!({"id": "c1", "choices": [{"message": {"content": "hi"}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 3, "completion_tokens": 1}});
    for caller in CallerDialect::ALL {
        let mut out = Vec::new();
        let mut translator = StreamTranslator::new(session(caller, UpstreamDialect::Chat));
        translator.whole(body.to_string().as_bytes(), &mut out);
        translator.finish(&mut out);
        check_grammar(caller, &out, false);
        let answer = collect(&session(caller, native(caller)), &out).unwrap();
        assert_eq!((said(&answer), answer.usage.input), ("hi".to_owned(), 3));
    }
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(64))]

    #[test]
    fn rubbish_never_panics(text in "[\\x20-\\x7e\\n]{0,200}", bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..200)) {
        for upstream in UpstreamDialect::ALL {
            for caller in CallerDialect::ALL {
                for input in [text.as_bytes(), &bytes] {
                    let mut out = Vec::new();
                    let mut translator = StreamTranslator::new(session(caller, upstream));
                    translator.feed(input, &mut out);
                    translator.finish(&mut out);
                    proptest::prop_assert!(translator.is_over());
                }
                let _ = translate_response(&session(caller, upstream), &bytes);
                let _ = read_failure(400, "", &bytes);
            }
        }
    }

    /// Right events with wrong values: every member of a recorded stream is replaced by something else once.
    #[test]
    fn wrong_types_never_panic(at in 0_usize..200, kind in 0_usize..6) {
        for upstream in UpstreamDialect::ALL {
            if upstream == UpstreamDialect::Bedrock {
                continue;
            }
            let text = String::from_utf8(recorded(upstream)).unwrap();
            let events: Vec<String> = text.lines().map(|line| {
                let (head, data) = line.split_at(line.find('{').unwrap_or(line.len()));
                match serde_json::from_str::<Value>(data) {
                    Ok(mut json) => {
                        let mut left = at;
                        spoil(&mut json, &mut left, kind);
                        format!("{head}{json}")
                    }
                    Err(_) => line.to_owned(),
                }
            }).collect();
            let bytes = events.join("\n").into_bytes();
            for caller in CallerDialect::ALL {
                let mut out = Vec::new();
                let mut translator = StreamTranslator::new(session(caller, upstream));
                translator.feed(&bytes, &mut out);
                translator.finish(&mut out);
                check_grammar(caller, &out, translator.failure().is_some());
            }
        }
    }
}

fn spoil(value: &mut Value, left: &mut usize, kind: usize) {
    if *left == 0 {
        *value = [json!(null), json!(-1), json!("x"), json!([]), json!({}), json!(1e300)][kind].clone();
        *left = usize::MAX;
        return;
    }
    *left = left.saturating_sub(1);
    match value {
        Value::Array(list) => list.iter_mut().for_each(|item| spoil(item, left, kind)),
        Value::Object(object) => object.values_mut().for_each(|item| spoil(item, left, kind)),
        _ => {}
    }
}

/// The short way for plain chunks says the same as the long way.
#[test]
fn plain_chunks_read_the_same_the_long_way() {
    let plain = |content: &str, role: Value, index: u64| {
        json!({"id": "c1", "object": "chat.completion.chunk", "created": 1, "model": "up", "system_fingerprint": null, "usage": null,
            "choices": [{"index": index, "delta": {"content": content, "role": role}, "logprobs": null, "finish_reason": null}]})
    };
    let chunks = [
        plain("", json!("assistant"), 0),
        plain("a\n\"é🦀", Value::Null, 0),
        plain("other", Value::Null, 1),
        plain("b", Value::Null, 0),
    ];
    let end = json!({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]});
    let read = |extra: Value| {
        let mut events: Vec<Value> = chunks.to_vec();
        for event in &mut events {
            event.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        }
        events.push(end.clone());
        streamed(CallerDialect::Messages, UpstreamDialect::Chat, &sse(&events)).text
    };
    // A member that the short way does not know.
    assert_eq!(read(json!({})), read(json!({"x": 1})));
    assert!(read(json!({})).contains("a\\n\\\"é🦀") && !read(json!({})).contains("other"));
    // Anything beside the text is not lost by it.
    let mixed = json!({"id": "c1", "model": "up", "choices": [{"index": 0, "delta": {"content": "a"}, "finish_reason": "length"}]});
    let got = streamed(CallerDialect::Chat, UpstreamDialect::Chat, &sse(&[mixed]));
    assert_eq!(got.answer.unwrap().finish, FinishReason::Length);
}
