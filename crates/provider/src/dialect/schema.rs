//! JSON Schemas for providers that take only a part of JSON Schema (gateway-protocols §3.1, §4.1).
//!
//! Not its job: validating. Invariants: what is taken out of a schema is said in its description; the result is
//! never larger than the schema plus its descriptions, references included.

use serde_json::{Map, Value};

use super::json::JsonLook;

/// Keywords that Anthropic's structured output refuses.
const REFUSED: &[&str] = &[
    "minimum",
    "maximum",
    "exclusiveMinimum",
    "exclusiveMaximum",
    "multipleOf",
    "minLength",
    "maxLength",
    "pattern",
    "uniqueItems",
    "maxItems",
    "prefixItems",
    "patternProperties",
    "propertyNames",
    "minProperties",
    "maxProperties",
    "contains",
    "if",
    "then",
    "else",
    "not",
];

/// The schema as Anthropic's structured output takes it: closed objects, `anyOf` for `oneOf`, limits as words.
pub(crate) fn for_anthropic(schema: &Value) -> Value {
    match schema {
        Value::Object(object) => {
            let mut kept = Map::new();
            let mut words = Vec::new();
            for (key, value) in object {
                let refused = REFUSED.contains(&key.as_str())
                    || key == "minItems" && value.as_u64().is_none_or(|least| least > 1);
                if refused {
                    words.push(format!("{key}: {value}"));
                } else if key == "oneOf" {
                    kept.insert("anyOf".to_owned(), for_anthropic(value));
                } else if matches!(key.as_str(), "enum" | "const" | "default" | "examples" | "required") {
                    kept.insert(key.clone(), value.clone());
                } else if matches!(key.as_str(), "properties" | "$defs" | "definitions") {
                    kept.insert(key.clone(), each(value));
                } else {
                    kept.insert(key.clone(), for_anthropic(value));
                }
            }
            if object.get("type").and_then(Value::as_str) == Some("object")
                || object.contains_key("properties")
            {
                kept.insert("additionalProperties".to_owned(), Value::Bool(false));
            }
            if !words.is_empty() {
                let before = schema.text("description");
                let joint = if before.is_empty() { "" } else { " " };
                let text = format!("{before}{joint}({})", words.join(", "));
                kept.insert("description".to_owned(), Value::from(text));
            }
            Value::Object(kept)
        }
        Value::Array(list) => list.iter().map(for_anthropic).collect(),
        _ => schema.clone(),
    }
}

/// The members of `properties` are schemas; their names are no keywords.
fn each(properties: &Value) -> Value {
    match properties.as_object() {
        Some(members) => members.iter().map(|(name, schema)| (name.clone(), for_anthropic(schema))).collect(),
        None => properties.clone(),
    }
}

/// The schema for Gemini's `parametersJsonSchema` and `responseJsonSchema`: real JSON Schema with an object at its
/// root and no `$schema`.
pub(crate) fn for_google(schema: &Value) -> Value {
    let mut schema = schema.clone();
    if let Some(object) = schema.as_object_mut() {
        object.remove("$schema");
        if !object.contains_key("type") && !object.contains_key("anyOf") && !object.contains_key("$ref") {
            object.insert("type".to_owned(), Value::from("object"));
        }
    }
    schema
}
