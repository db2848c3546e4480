//! Hides what may be a secret in values that other programs wrote.
//!
//! PURE. Manifests cannot hold a literal key; the `config` column of a shared table can. Invariant: a value that is
//! the stored key, is named like a secret, or looks like a key is replaced as a whole.

use serde_json::Value;
use url::Url;

use catalog::{manifest::looks_secret, model::JsonMap};

use crate::secret::Secret;

const HIDDEN: &str = "***";

/// The map with every secret in it hidden, at any depth.
pub fn config(map: JsonMap, keys: &[&Secret]) -> JsonMap {
    map.into_iter()
        .map(|(name, value)| {
            let value = self::value(&name, value, keys);
            (text(&name, keys).unwrap_or(name), value)
        })
        .collect()
}

fn value(name: &str, value: Value, keys: &[&Secret]) -> Value {
    match value {
        Value::String(found) => {
            if looks_secret(name, &found) {
                return HIDDEN.into();
            }
            match text(&found, keys) {
                Some(hidden) => hidden.into(),
                None if found.contains("://") => base_url(&found).into(),
                None => found.into(),
            }
        }
        Value::Array(values) => values.into_iter().map(|each| self::value(name, each, keys)).collect(),
        Value::Object(map) => config(map, keys).into(),
        other => other,
    }
}

/// Shorter keys are found as whole values only: they would be found in half of all words.
const PART_OF_A_TEXT: usize = 8;

/// `***` for a text that holds one of the keys.
fn text(found: &str, keys: &[&Secret]) -> Option<String> {
    let holds = |key: &str| match key.len() {
        0 => false,
        1..PART_OF_A_TEXT => found == key,
        _ => found.contains(key),
    };
    keys.iter().any(|key| holds(key.expose())).then(|| HIDDEN.to_owned())
}

/// A URL without what may be a secret in it: user, password, query and fragment.
pub fn base_url(found: &str) -> String {
    let Ok(mut url) = Url::parse(found) else { return found.to_owned() };
    let plain = url.username().is_empty()
        && url.password().is_none()
        && url.query().is_none()
        && url.fragment().is_none();
    if plain {
        return found.to_owned();
    }
    if url.set_password(None).and_then(|()| url.set_username("")).is_err() {
        return HIDDEN.to_owned();
    }
    url.set_query(None);
    url.set_fragment(None);
    url.into()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn secrets_are_hidden_at_any_depth() {
        let key = Secret::copy_of("short-fake");
        let check = |given: Value, expected: Value| {
            let Value::Object(map) = given else { panic!("an object") };
            assert_eq!(Value::Object(config(map, &[&key])), expected);
        };
        check(json!({ "region": "us", "n": 1 }), json!({ "region": "us", "n": 1 }));
        check(json!({ "a": { "b": ["x short-fake y"] } }), json!({ "a": { "b": ["***"] } }));
        check(json!({ "short-fake": 1 }), json!({ "***": 1 }));
        check(json!({ "auth_token": "f4k3f4k3f4k3f4k3f4k3f4k3" }), json!({ "auth_token": "***" }));
        check(
            json!({ "base_url": "https://u:p@h.example.com/v1?key=1" }),
            json!({ "base_url": "https://h.example.com/v1" }),
        );
        check(json!({ "base_url": "https://h.example.com" }), json!({ "base_url": "https://h.example.com" }));
    }
}
