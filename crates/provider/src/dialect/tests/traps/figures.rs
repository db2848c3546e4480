//! Traps 53 to 73: errors, fallbacks and figures.

use super::*;

pub(super) const TRAPS: &[NamedTrap] = &[
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
