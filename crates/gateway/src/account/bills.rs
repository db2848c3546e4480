//! Usage bodies of every family × prices → tokens and cost, to the last digit.
//!
//! Bodies are those of the providers' references. Costs were computed apart, with decimal fractions, and stand here as texts.

use bytes::Bytes;
use catalog::price::{LongContextRates, TokenRates};
use provider::dialect::usage::{
    AnthropicTally, read_bedrock, read_chat, read_cohere, read_google, read_ollama,
};
use serde_json::{Value, json};

use super::*;
use crate::tap::Tap;

/// Whose words a body is in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wire {
    Chat,
    Responses,
    Messages,
    Google,
    Bedrock,
    Cohere,
    Ollama,
}

/// USD per million tokens: input, output, cached, written, written for an hour; empty: unknown.
type PriceRow = [&'static str; 5];

const FULL: PriceRow = ["3", "15", "0.30", "3.75", "6"];
const CHEAP: PriceRow = ["0.10", "0.20", "", "", ""];
const CACHED: PriceRow = ["0.27", "1.10", "0.07", "", ""];
const FINE: PriceRow = ["0.0375", "0.15", "0.009375", "", ""];
/// Above 200,000 tokens of input: [`LONGER`].
const LONG: PriceRow = ["1.25", "10", "0.125", "", ""];
const LONGER: PriceRow = ["2.50", "15", "0.25", "", ""];
const INPUT: PriceRow = ["0.02", "", "", "", ""];
const UNKNOWN: PriceRow = ["", "", "", "", ""];

struct Bill {
    name: &'static str,
    wire: Wire,
    usage: &'static str,
    prices: PriceRow,
    /// Of the service tier, in ten-thousandths.
    factor: u32,
    /// Input, read from a cache, written, written for an hour, output.
    tokens: [u64; 5],
    reasoning: u64,
    /// Of input and output, as computed.
    cost: [Option<&'static str>; 2],
    /// What counts: the provider's own word first.
    total: Option<&'static str>,
}

const BILLS: &[Bill] = &[
    Bill {
        name: "openai chat",
        wire: Wire::Chat,
        usage: r#"{"prompt_tokens":1117,"completion_tokens":46,"total_tokens":1163,"prompt_tokens_details":{"cached_tokens":1024,"audio_tokens":0},"completion_tokens_details":{"reasoning_tokens":20,"audio_tokens":0,"accepted_prediction_tokens":0,"rejected_prediction_tokens":0}}"#,
        prices: FULL,
        factor: 10_000,
        tokens: [93, 1024, 0, 0, 46],
        reasoning: 20,
        cost: [Some("0.0005862"), Some("0.00069")],
        total: Some("0.0012762"),
    },
    Bill {
        name: "openai chat, written to a cache",
        wire: Wire::Chat,
        usage: r#"{"prompt_tokens":1117,"completion_tokens":46,"total_tokens":1163,"prompt_tokens_details":{"cached_tokens":1000,"cache_write_tokens":100}}"#,
        prices: FULL,
        factor: 10_000,
        tokens: [17, 1000, 100, 0, 46],
        reasoning: 0,
        cost: [Some("0.000726"), Some("0.00069")],
        total: Some("0.001416"),
    },
    Bill {
        name: "openai chat, cached price unknown",
        wire: Wire::Chat,
        usage: r#"{"prompt_tokens":1117,"completion_tokens":46,"total_tokens":1163,"prompt_tokens_details":{"cached_tokens":1024}}"#,
        prices: CHEAP,
        factor: 10_000,
        tokens: [93, 1024, 0, 0, 46],
        reasoning: 0,
        cost: [Some("0.0001117"), Some("0.0000092")],
        total: Some("0.0001209"),
    },
    Bill {
        name: "openai chat, batch tier",
        wire: Wire::Chat,
        usage: r#"{"prompt_tokens":333,"completion_tokens":7,"total_tokens":340}"#,
        prices: FINE,
        factor: 5_000,
        tokens: [333, 0, 0, 0, 7],
        reasoning: 0,
        cost: [Some("0.0000062438"), Some("0.000000525")],
        total: Some("0.0000067688"),
    },
    Bill {
        name: "openai chat, priority tier",
        wire: Wire::Chat,
        usage: r#"{"prompt_tokens":333,"completion_tokens":7,"total_tokens":340}"#,
        prices: FINE,
        factor: 17_000,
        tokens: [333, 0, 0, 0, 7],
        reasoning: 0,
        cost: [Some("0.0000212288"), Some("0.000001785")],
        total: Some("0.0000230138"),
    },
    Bill {
        name: "openai chat, long context",
        wire: Wire::Chat,
        usage: r#"{"prompt_tokens":200001,"completion_tokens":300,"total_tokens":200301,"prompt_tokens_details":{"cached_tokens":100000}}"#,
        prices: LONG,
        factor: 10_000,
        tokens: [100001, 100000, 0, 0, 300],
        reasoning: 0,
        cost: [Some("0.2750025"), Some("0.0045")],
        total: Some("0.2795025"),
    },
    Bill {
        name: "openai chat, just not long",
        wire: Wire::Chat,
        usage: r#"{"prompt_tokens":200000,"completion_tokens":300,"total_tokens":200300,"prompt_tokens_details":{"cached_tokens":100000}}"#,
        prices: LONG,
        factor: 10_000,
        tokens: [100000, 100000, 0, 0, 300],
        reasoning: 0,
        cost: [Some("0.1375"), Some("0.003")],
        total: Some("0.1405"),
    },
    Bill {
        name: "openai chat, no price",
        wire: Wire::Chat,
        usage: r#"{"prompt_tokens":10,"completion_tokens":5,"total_tokens":15}"#,
        prices: UNKNOWN,
        factor: 10_000,
        tokens: [10, 0, 0, 0, 5],
        reasoning: 0,
        cost: [None, None],
        total: None,
    },
    Bill {
        name: "openai chat, output without price",
        wire: Wire::Chat,
        usage: r#"{"prompt_tokens":10,"completion_tokens":5,"total_tokens":15}"#,
        prices: INPUT,
        factor: 10_000,
        tokens: [10, 0, 0, 0, 5],
        reasoning: 0,
        cost: [Some("0.0000002"), None],
        total: None,
    },
    Bill {
        name: "openai embeddings",
        wire: Wire::Chat,
        usage: r#"{"prompt_tokens":8,"total_tokens":8}"#,
        prices: INPUT,
        factor: 10_000,
        tokens: [8, 0, 0, 0, 0],
        reasoning: 0,
        cost: [Some("0.00000016"), Some("0")],
        total: Some("0.00000016"),
    },
    Bill {
        name: "openai responses",
        wire: Wire::Responses,
        usage: r#"{"input_tokens":328,"input_tokens_details":{"cached_tokens":128},"output_tokens":52,"output_tokens_details":{"reasoning_tokens":32},"total_tokens":380}"#,
        prices: FULL,
        factor: 10_000,
        tokens: [200, 128, 0, 0, 52],
        reasoning: 32,
        cost: [Some("0.0006384"), Some("0.00078")],
        total: Some("0.0014184"),
    },
    Bill {
        name: "openai responses, written to a cache",
        wire: Wire::Responses,
        usage: r#"{"input_tokens":2006,"input_tokens_details":{"cached_tokens":0,"cache_write_tokens":1920},"output_tokens":300,"output_tokens_details":{"reasoning_tokens":0},"total_tokens":2306}"#,
        prices: FULL,
        factor: 10_000,
        tokens: [86, 0, 1920, 0, 300],
        reasoning: 0,
        cost: [Some("0.007458"), Some("0.0045")],
        total: Some("0.011958"),
    },
    Bill {
        name: "anthropic",
        wire: Wire::Messages,
        usage: r#"{"input_tokens":21,"cache_creation_input_tokens":188086,"cache_read_input_tokens":7,"cache_creation":{"ephemeral_5m_input_tokens":188000,"ephemeral_1h_input_tokens":86},"output_tokens":393,"service_tier":"standard"}"#,
        prices: FULL,
        factor: 10_000,
        tokens: [21, 7, 188000, 86, 393],
        reasoning: 0,
        cost: [Some("0.7055811"), Some("0.005895")],
        total: Some("0.7114761"),
    },
    Bill {
        name: "anthropic, no cache",
        wire: Wire::Messages,
        usage: r#"{"input_tokens":2095,"output_tokens":503}"#,
        prices: FULL,
        factor: 10_000,
        tokens: [2095, 0, 0, 0, 503],
        reasoning: 0,
        cost: [Some("0.006285"), Some("0.007545")],
        total: Some("0.01383"),
    },
    Bill {
        name: "anthropic, thinking",
        wire: Wire::Messages,
        usage: r#"{"input_tokens":100,"output_tokens":500,"output_tokens_details":{"thinking_tokens":420}}"#,
        prices: CHEAP,
        factor: 10_000,
        tokens: [100, 0, 0, 0, 500],
        reasoning: 420,
        cost: [Some("0.00001"), Some("0.0001")],
        total: Some("0.00011"),
    },
    Bill {
        name: "google",
        wire: Wire::Google,
        usage: r#"{"promptTokenCount":1000,"cachedContentTokenCount":600,"candidatesTokenCount":50,"thoughtsTokenCount":70,"totalTokenCount":1120}"#,
        prices: LONG,
        factor: 10_000,
        tokens: [400, 600, 0, 0, 120],
        reasoning: 70,
        cost: [Some("0.000575"), Some("0.0012")],
        total: Some("0.001775"),
    },
    Bill {
        name: "google, tools",
        wire: Wire::Google,
        usage: r#"{"promptTokenCount":100,"toolUsePromptTokenCount":40,"candidatesTokenCount":9,"totalTokenCount":149}"#,
        prices: LONG,
        factor: 10_000,
        tokens: [140, 0, 0, 0, 9],
        reasoning: 0,
        cost: [Some("0.000175"), Some("0.00009")],
        total: Some("0.000265"),
    },
    Bill {
        name: "vertex",
        wire: Wire::Google,
        usage: r#"{"promptTokenCount":250000,"candidatesTokenCount":1000,"totalTokenCount":251000,"trafficType":"ON_DEMAND"}"#,
        prices: LONG,
        factor: 10_000,
        tokens: [250000, 0, 0, 0, 1000],
        reasoning: 0,
        cost: [Some("0.625"), Some("0.015")],
        total: Some("0.64"),
    },
    Bill {
        name: "bedrock",
        wire: Wire::Bedrock,
        usage: r#"{"inputTokens":30,"outputTokens":628,"totalTokens":1658,"cacheReadInputTokens":900,"cacheWriteInputTokens":100,"cacheDetails":[{"ttl":"5m","inputTokens":60},{"ttl":"1h","inputTokens":40}]}"#,
        prices: FULL,
        factor: 10_000,
        tokens: [30, 900, 60, 40, 628],
        reasoning: 0,
        cost: [Some("0.000825"), Some("0.00942")],
        total: Some("0.010245"),
    },
    Bill {
        name: "bedrock, old names",
        wire: Wire::Bedrock,
        usage: r#"{"inputTokens":30,"outputTokens":628,"totalTokens":658,"cacheReadInputTokenCount":5,"cacheWriteInputTokenCount":0}"#,
        prices: FULL,
        factor: 10_000,
        tokens: [30, 5, 0, 0, 628],
        reasoning: 0,
        cost: [Some("0.0000915"), Some("0.00942")],
        total: Some("0.0095115"),
    },
    Bill {
        name: "cohere",
        wire: Wire::Cohere,
        usage: r#"{"billed_units":{"input_tokens":5,"output_tokens":418},"tokens":{"input_tokens":71,"output_tokens":418},"cached_tokens":16}"#,
        prices: CHEAP,
        factor: 10_000,
        tokens: [55, 16, 0, 0, 418],
        reasoning: 0,
        cost: [Some("0.0000071"), Some("0.0000836")],
        total: Some("0.0000907"),
    },
    Bill {
        name: "cohere, billed units alone",
        wire: Wire::Cohere,
        usage: r#"{"billed_units":{"input_tokens":5,"output_tokens":418}}"#,
        prices: CHEAP,
        factor: 10_000,
        tokens: [5, 0, 0, 0, 418],
        reasoning: 0,
        cost: [Some("0.0000005"), Some("0.0000836")],
        total: Some("0.0000841"),
    },
    Bill {
        name: "ollama",
        wire: Wire::Ollama,
        usage: r#"{"model":"m","done":true,"prompt_eval_count":26,"eval_count":290,"total_duration":5000000000}"#,
        prices: CHEAP,
        factor: 10_000,
        tokens: [26, 0, 0, 0, 290],
        reasoning: 0,
        cost: [Some("0.0000026"), Some("0.000058")],
        total: Some("0.0000606"),
    },
    Bill {
        name: "ollama, all of the prompt cached",
        wire: Wire::Ollama,
        usage: r#"{"model":"m","done":true,"eval_count":290}"#,
        prices: CHEAP,
        factor: 10_000,
        tokens: [0, 0, 0, 0, 290],
        reasoning: 0,
        cost: [Some("0"), Some("0.000058")],
        total: Some("0.000058"),
    },
    Bill {
        name: "mistral",
        wire: Wire::Chat,
        usage: r#"{"prompt_tokens":24,"completion_tokens":27,"total_tokens":51,"prompt_audio_seconds":{}}"#,
        prices: CHEAP,
        factor: 10_000,
        tokens: [24, 0, 0, 0, 27],
        reasoning: 0,
        cost: [Some("0.0000024"), Some("0.0000054")],
        total: Some("0.0000078"),
    },
    Bill {
        name: "deepseek",
        wire: Wire::Chat,
        usage: r#"{"prompt_tokens":1000,"completion_tokens":300,"total_tokens":1300,"prompt_cache_hit_tokens":640,"prompt_cache_miss_tokens":360,"completion_tokens_details":{"reasoning_tokens":200}}"#,
        prices: CACHED,
        factor: 10_000,
        tokens: [360, 640, 0, 0, 300],
        reasoning: 200,
        cost: [Some("0.000142"), Some("0.00033")],
        total: Some("0.000472"),
    },
    Bill {
        name: "moonshot",
        wire: Wire::Chat,
        usage: r#"{"prompt_tokens":500,"completion_tokens":10,"total_tokens":510,"cached_tokens":256}"#,
        prices: CACHED,
        factor: 10_000,
        tokens: [244, 256, 0, 0, 10],
        reasoning: 0,
        cost: [Some("0.0000838"), Some("0.000011")],
        total: Some("0.0000948"),
    },
    Bill {
        name: "groq",
        wire: Wire::Chat,
        usage: r#"{"queue_time":0.037,"prompt_tokens":30,"prompt_time":0.0006,"completion_tokens":512,"completion_time":0.46,"total_tokens":542,"total_time":0.46}"#,
        prices: CACHED,
        factor: 10_000,
        tokens: [30, 0, 0, 0, 512],
        reasoning: 0,
        cost: [Some("0.0000081"), Some("0.0005632")],
        total: Some("0.0005713"),
    },
    Bill {
        name: "xai, reasoning beside",
        wire: Wire::Chat,
        usage: r#"{"prompt_tokens":32,"completion_tokens":9,"total_tokens":141,"prompt_tokens_details":{"cached_tokens":6},"completion_tokens_details":{"reasoning_tokens":100}}"#,
        prices: FULL,
        factor: 10_000,
        tokens: [26, 6, 0, 0, 109],
        reasoning: 100,
        cost: [Some("0.0000798"), Some("0.001635")],
        total: Some("0.0017148"),
    },
    Bill {
        name: "xai, ticks",
        wire: Wire::Chat,
        usage: r#"{"prompt_tokens":32,"completion_tokens":9,"total_tokens":41,"cost_in_usd_ticks":37756000}"#,
        prices: FULL,
        factor: 10_000,
        tokens: [32, 0, 0, 0, 9],
        reasoning: 0,
        cost: [Some("0.000096"), Some("0.000135")],
        total: Some("0.0037756"),
    },
    Bill {
        name: "openrouter",
        wire: Wire::Chat,
        usage: r#"{"prompt_tokens":194,"completion_tokens":2,"total_tokens":196,"cost":0.00014,"cost_details":{"upstream_inference_cost":null}}"#,
        prices: UNKNOWN,
        factor: 10_000,
        tokens: [194, 0, 0, 0, 2],
        reasoning: 0,
        cost: [None, None],
        total: Some("0.00014"),
    },
    Bill {
        name: "perplexity",
        wire: Wire::Chat,
        usage: r#"{"prompt_tokens":14,"completion_tokens":120,"total_tokens":134,"cost":{"input_tokens_cost":0.000014,"output_tokens_cost":0.00012,"request_cost":0.005,"total_cost":0.005134}}"#,
        prices: CHEAP,
        factor: 10_000,
        tokens: [14, 0, 0, 0, 120],
        reasoning: 0,
        cost: [Some("0.0000014"), Some("0.000024")],
        total: Some("0.005134"),
    },
];

fn rates(row: PriceRow) -> TokenRates {
    let [input, output, cached_input, cache_write, cache_write_1h] = row.map(|text| text.parse().ok());
    TokenRates { input, output, cached_input, cache_write, cache_write_1h }
}

fn prices(row: PriceRow) -> TokenPrices {
    let long = LongContextRates { above: 200_000, rates: rates(LONGER) };
    TokenPrices { rates: rates(row), long_context: if row == LONG { vec![long] } else { Vec::new() } }
}

/// What the tap finds in an answer of its own dialect, plain and as the last event of a stream.
fn tapped(shape: TapShape, usage: &Value, streamed: bool) -> (PricedTokens, u64, Option<Money>) {
    let (mut tap, text) = match (shape, streamed) {
        (TapShape::Chat, false) => (Tap::body(shape), json!({ "choices": [], "usage": usage }).to_string()),
        (_, false) => (Tap::body(shape), json!({ "usage": usage }).to_string()),
        (TapShape::Chat, true) => {
            let event =
                json!({ "id": "c", "object": "chat.completion.chunk", "choices": [], "usage": usage });
            (Tap::stream(shape, false), format!("data: {event}\n\ndata: [DONE]\n\n"))
        }
        (TapShape::Responses, true) => {
            let event = json!({ "type": "response.completed", "response": { "id": "r", "usage": usage } });
            (Tap::stream(shape, false), format!("event: response.completed\ndata: {event}\n\n"))
        }
        (TapShape::Messages, true) => {
            let begin = json!({ "type": "message_start", "message": { "id": "m", "usage": { "input_tokens": 1, "output_tokens": 1 } } });
            let delta =
                json!({ "type": "message_delta", "delta": { "stop_reason": "end_turn" }, "usage": usage });
            let text =
                format!("event: message_start\ndata: {begin}\n\nevent: message_delta\ndata: {delta}\n\n");
            (Tap::stream(shape, false), text)
        }
    };
    tap.feed(&Bytes::from(text), drop);
    tap.end(drop);
    let found = tap.sums().usage;
    let tokens = priced(shape, &found).expect("figures");
    (tokens, found.reasoning.unwrap_or_default(), found.cost_units.map(Money::from_units))
}

/// What a translation reads of another dialect.
fn translated(parts: TokenParts) -> (PricedTokens, u64, Option<Money>) {
    let reported = parts.reported_cost.and_then(|units| i64::try_from(units).ok()).map(Money::from_units);
    (parted(parts), parts.reasoning, reported)
}

#[test]
fn every_family_is_billed_to_the_last_digit() {
    for bill in BILLS {
        let usage: Value = serde_json::from_str(bill.usage).unwrap();
        let tap = |shape| [false, true].map(|streamed| tapped(shape, &usage, streamed)).to_vec();
        // Where both the tap and a translation may read a body, they have to agree.
        let found = match bill.wire {
            Wire::Chat => [tap(TapShape::Chat), vec![translated(read_chat(&usage).unwrap())]].concat(),
            Wire::Responses => {
                let parts = provider::dialect::usage::read_responses(&usage).unwrap();
                [tap(TapShape::Responses), vec![translated(parts)]].concat()
            }
            Wire::Messages => {
                let mut tally = AnthropicTally::default();
                tally.replace(&usage);
                [tap(TapShape::Messages), vec![translated(tally.parts().unwrap())]].concat()
            }
            Wire::Google => vec![translated(read_google(&usage).unwrap())],
            Wire::Bedrock => vec![translated(read_bedrock(&usage).unwrap())],
            Wire::Cohere => vec![translated(read_cohere(&usage).unwrap())],
            Wire::Ollama => vec![translated(read_ollama(&usage).unwrap())],
        };
        for (tokens, reasoning, reported) in found {
            let name = bill.name;
            let PricedTokens { input, cache_read, cache_write, cache_write_1h, output } = tokens;
            assert_eq!([input, cache_read, cache_write, cache_write_1h, output], bill.tokens, "{name}");
            assert_eq!(reasoning, bill.reasoning, "{name}");
            let cost = prices(bill.prices).cost(&tokens, bill.factor, reported);
            let text = |money: Option<Money>| money.map(|it| it.to_string());
            assert_eq!(
                [text(cost.input), text(cost.output)],
                bill.cost.map(|it| it.map(str::to_owned)),
                "{name}"
            );
            assert_eq!(text(cost.total()), bill.total.map(str::to_owned), "{name}");
        }
    }
}
