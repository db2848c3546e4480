//! Bodies of every family → the five parts: uncached input, output, cache read, cache write, reasoning.

use serde_json::{Value, json};

use super::super::{
    inner::{TokenParts, TokenSource},
    usage::*,
};

type Five = (u64, u64, u64, u64, u64);

fn five(parts: TokenParts) -> Five {
    assert_eq!(parts.source, TokenSource::Reported);
    assert_eq!(parts.total(), parts.input + parts.cache_read + parts.cache_write + parts.output);
    assert!(parts.reasoning <= parts.output && parts.cache_write_long <= parts.cache_write);
    (parts.input, parts.output, parts.cache_read, parts.cache_write, parts.reasoning)
}

fn anthropic(pieces: &Value) -> Option<TokenParts> {
    let mut tally = AnthropicTally::default();
    pieces.as_array().unwrap().iter().for_each(|piece| tally.replace(piece));
    tally.parts()
}

#[test]
fn every_family_has_the_same_five_parts() {
    type Read = fn(&Value) -> Option<TokenParts>;
    let cases: &[(&str, Read, Value, Option<Five>)] = &[
        (
            "openai",
            read_chat,
            json!({"prompt_tokens": 100, "completion_tokens": 20, "total_tokens": 120,
            "prompt_tokens_details": {"cached_tokens": 60, "cache_write_tokens": 10},
            "completion_tokens_details": {"reasoning_tokens": 15}}),
            Some((30, 20, 60, 10, 15)),
        ),
        (
            "openai plain",
            read_chat,
            json!({"prompt_tokens": 5, "completion_tokens": 1}),
            Some((5, 1, 0, 0, 0)),
        ),
        (
            "openai null details",
            read_chat,
            json!({"prompt_tokens": 5, "completion_tokens": 1, "prompt_tokens_details": null,
            "completion_tokens_details": null}),
            Some((5, 1, 0, 0, 0)),
        ),
        ("openai empty", read_chat, json!({}), None),
        ("openai null", read_chat, Value::Null, None),
        (
            "more cached than input",
            read_chat,
            json!({"prompt_tokens": 5, "completion_tokens": 1,
            "prompt_tokens_details": {"cached_tokens": 9}}),
            Some((0, 1, 5, 0, 0)),
        ),
        (
            "deepseek",
            read_chat,
            json!({"prompt_tokens": 100, "completion_tokens": 7, "prompt_cache_hit_tokens": 64,
            "prompt_cache_miss_tokens": 36}),
            Some((36, 7, 64, 0, 0)),
        ),
        (
            "xai leaves reasoning out",
            read_chat,
            json!({"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 45,
            "completion_tokens_details": {"reasoning_tokens": 30}}),
            Some((10, 35, 0, 0, 30)),
        ),
        (
            "moonshot",
            read_chat,
            json!({"prompt_tokens": 10, "completion_tokens": 5, "cached_tokens": 4}),
            Some((6, 5, 4, 0, 0)),
        ),
        (
            "responses",
            read_responses,
            json!({"input_tokens": 100, "input_tokens_details": {"cached_tokens": 50, "cache_write_tokens": 20},
            "output_tokens": 40, "output_tokens_details": {"reasoning_tokens": 30}, "total_tokens": 140}),
            Some((30, 40, 50, 20, 30)),
        ),
        (
            "anthropic whole",
            anthropic,
            json!([{"input_tokens": 10, "cache_read_input_tokens": 60,
            "cache_creation_input_tokens": 30, "output_tokens": 8}]),
            Some((10, 8, 60, 30, 0)),
        ),
        (
            "anthropic replaces, never adds",
            anthropic,
            json!([
            {"input_tokens": 10, "cache_read_input_tokens": 60, "cache_creation_input_tokens": 0, "output_tokens": 1},
            {"output_tokens": 4}, {"input_tokens": 10, "output_tokens": 9}]),
            Some((10, 9, 60, 0, 0)),
        ),
        (
            "a vendor that corrects its start",
            anthropic,
            json!([
            {"input_tokens": 100, "output_tokens": 0},
            {"input_tokens": 20, "cache_read_input_tokens": 80, "output_tokens": 7}]),
            Some((20, 7, 80, 0, 0)),
        ),
        (
            "anthropic thinking",
            anthropic,
            json!([{"input_tokens": 1, "output_tokens": 9,
            "output_tokens_details": {"thinking_tokens": 6}}]),
            Some((1, 9, 0, 0, 6)),
        ),
        ("anthropic nothing", anthropic, json!([{}]), None),
        (
            "gemini",
            read_google,
            json!({"promptTokenCount": 100, "cachedContentTokenCount": 40, "candidatesTokenCount": 10,
            "thoughtsTokenCount": 25, "totalTokenCount": 135}),
            Some((60, 35, 40, 0, 25)),
        ),
        (
            "gemini counts thoughts inside",
            read_google,
            json!({"promptTokenCount": 100, "candidatesTokenCount": 35,
            "thoughtsTokenCount": 25, "totalTokenCount": 135}),
            Some((100, 35, 0, 0, 25)),
        ),
        (
            "gemini tool use",
            read_google,
            json!({"promptTokenCount": 10, "toolUsePromptTokenCount": 5, "candidatesTokenCount": 2,
            "totalTokenCount": 17}),
            Some((15, 2, 0, 0, 0)),
        ),
        ("gemini traffic only", read_google, json!({"trafficType": "ON_DEMAND"}), None),
        (
            "bedrock",
            read_bedrock,
            json!({"inputTokens": 10, "outputTokens": 4, "totalTokens": 114,
            "cacheReadInputTokens": 60, "cacheWriteInputTokens": 40}),
            Some((10, 4, 60, 40, 0)),
        ),
        (
            "cohere prefers tokens",
            read_cohere,
            json!({"billed_units": {"input_tokens": 3.0, "output_tokens": 1.0},
            "tokens": {"input_tokens": 70.0, "output_tokens": 9.0}, "cached_tokens": 20.0}),
            Some((50, 9, 20, 0, 0)),
        ),
        ("ollama", read_ollama, json!({"prompt_eval_count": 12, "eval_count": 3}), Some((12, 3, 0, 0, 0))),
        ("ollama cached prompt", read_ollama, json!({"eval_count": 3}), Some((0, 3, 0, 0, 0))),
        (
            "numbers too large",
            read_chat,
            json!({"prompt_tokens": u64::MAX, "completion_tokens": u64::MAX,
            "total_tokens": 1}),
            None,
        ),
    ];
    for (name, read, body, expected) in cases {
        let got = read(body);
        if *name == "numbers too large" {
            // Only that nothing overflows.
            assert_eq!(got.unwrap().total(), u64::MAX, "{name}");
            continue;
        }
        assert_eq!(got.map(five), *expected, "{name}");
    }
}

#[test]
fn lifetimes_and_costs_are_kept() {
    let parts = anthropic(&json!([{"input_tokens": 1, "output_tokens": 1, "cache_creation_input_tokens": 30,
        "cache_creation": {"ephemeral_5m_input_tokens": 10, "ephemeral_1h_input_tokens": 20}}]))
    .unwrap();
    assert_eq!((parts.cache_write, parts.cache_write_long), (30, 20));
    let parts = read_bedrock(&json!({"inputTokens": 1, "outputTokens": 1, "cacheWriteInputTokens": 9,
        "cacheDetails": [{"ttl": "1h", "inputTokens": 6}, {"ttl": "5m", "inputTokens": 3}]}))
    .unwrap();
    assert_eq!((parts.cache_write, parts.cache_write_long), (9, 6));
    for (name, cost, expected) in [
        ("openrouter", json!({"cost": 0.000123}), Some(1_230_000)),
        ("as text", json!({"cost": "0"}), Some(0)),
        ("perplexity", json!({"cost": {"total_cost": 0.5}}), Some(5_000_000_000)),
        ("xai", json!({"cost_in_usd_ticks": 7}), Some(7)),
        ("none", json!({}), None),
        ("nonsense", json!({"cost": -1}), None),
    ] {
        let mut body = json!({"prompt_tokens": 1, "completion_tokens": 1});
        body.as_object_mut().unwrap().extend(cost.as_object().unwrap().clone());
        assert_eq!(read_chat(&body).unwrap().reported_cost, expected, "{name}");
    }
}
