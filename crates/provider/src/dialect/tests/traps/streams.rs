//! Traps 29 to 52: streams.

use super::*;

pub(super) const TRAPS: &[NamedTrap] = &[
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
    (31, "calls without id or with the index -1 stay apart", || {
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
];
