//! Lists of models, as a caller may see them, in OpenAI's and Anthropic's form.
//!
//! Not its job: what may be seen (`decide::visible`). Invariant: an unknown price is left out, never 0.

use serde_json::{Map, Value, json};

use catalog::price::TokenPrice;

use crate::decide::{VisibleModel, visible, visible_one};
use crate::picture::{KnownConsumer, Picture};

/// `GET /v1/models`
pub(crate) fn models(picture: &Picture, consumer: &KnownConsumer, anthropic: bool) -> Value {
    let data: Vec<Value> =
        visible(picture, Some(consumer)).iter().map(|model| one(picture, model, anthropic)).collect();
    if anthropic {
        let id = |model: Option<&Value>| model.and_then(|model| model.get("id")).cloned().unwrap_or_default();
        let (first, last) = (id(data.first()), id(data.last()));
        return json!({"data": data, "has_more": false, "first_id": first, "last_id": last});
    }
    json!({"object": "list", "data": data})
}

/// `GET /v1/models/{id}`
pub(crate) fn model(picture: &Picture, consumer: &KnownConsumer, id: &str, anthropic: bool) -> Option<Value> {
    visible_one(picture, Some(consumer), id).map(|model| one(picture, &model, anthropic))
}

fn one(picture: &Picture, model: &VisibleModel, anthropic: bool) -> Value {
    let offer = model.offer.and_then(|at| picture.offer(at));
    let created = offer.map_or(picture.taken_at, |offer| offer.created_at);
    let mut object = Map::new();
    object.insert("id".into(), model.id.as_str().into());
    if anthropic {
        let name = offer.and_then(|offer| offer.display_name.as_deref()).unwrap_or(&model.id);
        object.insert("type".into(), "model".into());
        object.insert("display_name".into(), name.into());
        object.insert("created_at".into(), timestamp(created).into());
    } else {
        object.insert("object".into(), "model".into());
        object.insert("created".into(), created.into());
        object.insert("owned_by".into(), model.owned_by.as_str().into());
    }
    if let Some(offer) = offer {
        let counts =
            [("context_length", offer.context_length), ("max_output_tokens", offer.max_output_tokens)];
        for (name, count) in counts {
            object.extend(count.map(|count| (name.to_owned(), count.into())));
        }
        let rates = &offer.prices.rates;
        let prices = [
            ("cost_per_1m_input_tokens", rates.input),
            ("cost_per_1m_output_tokens", rates.output),
            ("cost_per_1m_cached_input_tokens", rates.cached_input),
            ("cost_per_1m_cache_write_tokens", rates.cache_write),
        ];
        for (name, price) in prices {
            object.extend(price.and_then(number).map(|price| (name.to_owned(), price)));
        }
    }
    Value::Object(object)
}

/// USD as a JSON number.
fn number(price: TokenPrice) -> Option<Value> {
    let number = serde_json::Number::from_f64(price.to_string().parse().ok()?)?;
    Some(Value::Number(number))
}

/// RFC 3339 in UTC, of Unix seconds.
fn timestamp(unix: i64) -> String {
    chrono::DateTime::from_timestamp(unix, 0).unwrap_or_default().format("%Y-%m-%dT%H:%M:%SZ").to_string()
}

#[cfg(test)]
mod tests {
    #[test]
    fn timestamps() {
        assert_eq!(super::timestamp(0), "1970-01-01T00:00:00Z");
        assert_eq!(super::timestamp(1_709_251_199), "2024-02-29T23:59:59Z");
        assert_eq!(super::timestamp(1_796_000_000), "2026-11-30T00:53:20Z");
    }
}
