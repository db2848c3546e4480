//! A row of the spool as a row of `llm_usage_logs`. PURE.
//!
//! Invariant: `metadata` is a JSON object that PostgreSQL takes, and leaves out what is as usual.

use gateway::spool::{UsageRow, UsageSource};
use serde_json::{Map, Value, json};

use crate::store::{NewUsage, from_micros};

/// What is stored of a row.
pub fn stored<'a>(row: &'a UsageRow<'a>) -> NewUsage<'a> {
    let facts = &row.facts;
    NewUsage {
        id: facts.id,
        at: from_micros(facts.at),
        user_id: &facts.user_id,
        provider_id: facts.provider_id,
        model_id: facts.model_id,
        provider: &facts.provider,
        model: &facts.model,
        consumer: &facts.consumer,
        request_id: &facts.request_id,
        power_level: &facts.power_level,
        input: row.tokens.input_total(),
        cached: row.tokens.cache_read,
        written: row.tokens.cache_write.saturating_add(row.tokens.cache_write_1h),
        output: row.tokens.output,
        reasoning: row.reasoning,
        cost_input: row.cost.input,
        cost_output: row.cost.output,
        cost_total: row.cost.total(),
        latency_ms: row.latency_ms,
        ttft_ms: row.ttft_ms,
        status_code: row.status_code,
        success: row.success,
        error: &row.error,
        was_fallback: row.was_fallback,
        metadata: metadata(row),
    }
}

/// What is not plain about a row.
fn metadata(row: &UsageRow<'_>) -> String {
    let facts = &row.facts;
    // What the gateway adds; what is no object, or holds what jsonb refuses, stays as the text that it is.
    let mut all = match row.details.as_str() {
        "" => Map::new(),
        text => match serde_json::from_str(text) {
            Ok(Value::Object(map)) => map,
            Ok(_) | Err(_) => Map::from_iter([("details".to_owned(), json!(text))]),
        },
    };
    let mut put = |name: &str, value: Value| {
        if !matches!(&value, Value::Null) && value != json!("") && value != json!(0) {
            all.insert(name.to_owned(), value);
        }
    };
    put("usage_source", json!(row.source.as_str()));
    put("consumer", json!(facts.consumer.as_str()));
    put("provider", json!(facts.provider.as_str()));
    put("user_tier", json!(facts.user_tier.as_str()));
    put("operation", json!(facts.operation.as_str()));
    put("route", json!(facts.route.as_str()));
    // As a text: JSON's numbers end at 2^53.
    put("seed", if facts.seed == 0 { Value::Null } else { json!(format!("{:016x}", facts.seed)) });
    put("cached_tokens", json!(row.tokens.cache_read));
    put("cache_write_tokens", json!(row.tokens.cache_write));
    put("cache_write_1h_tokens", json!(row.tokens.cache_write_1h));
    put("reasoning_tokens", json!(row.reasoning));
    put("ttft_ms", json!(row.ttft_ms));
    if row.attempts > 1 {
        put("attempts", json!(row.attempts));
    }
    if row.streamed {
        put("stream", json!(true));
    }
    if row.source != UsageSource::None {
        let price = |it: Option<catalog::price::TokenPrice>| it.map(|it| it.to_string());
        let prices: Map<String, Value> = [
            ("input", price(row.rates.input)),
            ("output", price(row.rates.output)),
            ("cached_input", price(row.rates.cached_input)),
            ("cache_write", price(row.rates.cache_write)),
            ("cache_write_1h", price(row.rates.cache_write_1h)),
        ]
        .into_iter()
        .filter_map(|(name, price)| Some((name.to_owned(), Value::String(price?))))
        .collect();
        if !prices.is_empty() {
            put("prices", Value::Object(prices));
        }
        if row.factor != catalog::price::LISTED && row.factor != 0 {
            put("price_factor", json!(f64::from(row.factor) / f64::from(catalog::price::LISTED)));
        }
        if let Some(reported) = row.cost.reported {
            put("cost_reported_usd", json!(reported.to_string()));
            put("cost_computed_usd", json!(row.cost.computed.map(|it| it.to_string())));
        }
        if row.cost.cached_as_input {
            put("cached_priced_as_input", json!(true));
        }
        if row.cost.written_as_input {
            put("cache_write_priced_as_input", json!(true));
        }
    }
    let text = Value::Object(all).to_string();
    // A NUL, however it is written, is nothing that jsonb takes.
    if text.contains("\\u0000") { text.replace("\\u0000", " ") } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(row: &UsageRow<'_>, expected: &Value) {
        let got: Value = serde_json::from_str(&metadata(row)).expect("metadata is JSON");
        assert_eq!(&got, expected);
    }

    #[test]
    fn metadata_says_what_is_not_plain() {
        let mut row = UsageRow { factor: catalog::price::LISTED, attempts: 1, ..UsageRow::default() };
        check(&row, &json!({"usage_source": "none"}));
        row.source = UsageSource::Reported;
        row.facts.consumer = "web".into();
        row.facts.seed = u64::MAX;
        row.rates.input = "0.25".parse().ok();
        row.tokens.cache_read = 7;
        row.cost.cached_as_input = true;
        row.cost.reported = "0.5".parse().ok();
        row.ttft_ms = Some(12);
        row.attempts = 2;
        row.details = r#"{"tried": ["a: timeout"], "usage_source": "forged"}"#.into();
        check(
            &row,
            &json!({
                "usage_source": "reported", "consumer": "web", "seed": "ffffffffffffffff", "prices": {"input": "0.25"},
                "cached_tokens": 7, "cached_priced_as_input": true, "cost_reported_usd": "0.5", "ttft_ms": 12,
                "attempts": 2, "tried": ["a: timeout"],
            }),
        );
        for (details, kept) in [("{broken", "{broken"), ("[1]", "[1]"), ("\"x\"", "\"x\"")] {
            let row = UsageRow { details: details.into(), ..UsageRow::default() };
            check(&row, &json!({"usage_source": "none", "details": kept}));
        }
        let row = UsageRow { details: r#"{"a": "x\u0000y"}"#.into(), ..UsageRow::default() };
        check(&row, &json!({"usage_source": "none", "a": "x y"}));
    }
}
