//! A request's body with a few edits, as slices of the same bytes: nothing is written again that did not change, so
//! key order, unknown fields and number forms survive, and a provider's prompt cache sees identical bytes.
//!
//! Not its job: reading the body (`skim`), deciding what to change.
//!
//! Invariant: the result is the JSON object that it was, but for the fields edited.

use std::ops::Range;

use bytes::Bytes;

use crate::skim::{BodyField, Skim, value_in};

/// What becomes of a field.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BodyEdit {
    /// It is left out.
    Remove(BodyField),
    /// It has this value, as JSON; added where it was absent.
    Set(BodyField, Bytes),
}

/// Asks for usage in a stream: the edit, or `None` where the caller does so already (or writes what only the provider
/// can refuse).
pub fn usage_wanted(body: &[u8], skim: &Skim) -> Option<BodyEdit> {
    const WANTED: &[u8] = br#""include_usage":true"#;
    let Some(options) = skim.value(body, BodyField::StreamOptions) else {
        return Some(BodyEdit::Set(
            BodyField::StreamOptions,
            Bytes::from_static(br#"{"include_usage":true}"#),
        ));
    };
    let inner = options.strip_prefix(b"{")?;
    let edited = match value_in(options, "include_usage") {
        Some((value, _)) if options.get(value.clone()) == Some(b"true") => return None,
        Some((value, _)) => [options.get(..value.start)?, b"true", options.get(value.end..)?].concat(),
        None if inner.trim_ascii_start().starts_with(b"}") => [b"{", WANTED, b"}"].concat(),
        None => [b"{", WANTED, b",", inner].concat(),
    };
    Some(BodyEdit::Set(BodyField::StreamOptions, edited.into()))
}

/// The body after the edits. Each field is edited at most once; of two edits the first counts.
pub fn splice(body: &Bytes, skim: &Skim, edits: &[BodyEdit]) -> Vec<Bytes> {
    // What is replaced in the body, in the order of the body.
    let mut cuts: Vec<(Range<usize>, Option<&Bytes>)> = Vec::with_capacity(edits.len());
    let mut removed: Vec<&crate::skim::BodyMember> = Vec::new();
    let mut added: Vec<(BodyField, &Bytes)> = Vec::new();
    for (at, edit) in edits.iter().enumerate() {
        let field = edit.field();
        if edits.iter().take(at).any(|earlier| earlier.field() == field) {
            continue;
        }
        match (edit, skim.member(field)) {
            (BodyEdit::Remove(_), Some(member)) => removed.push(member),
            (BodyEdit::Remove(_), None) => {}
            (BodyEdit::Set(_, value), Some(member)) => cuts.push((member.value.clone(), Some(value))),
            (BodyEdit::Set(field, value), None) => added.push((*field, value)),
        }
    }
    removed.sort_unstable_by_key(|member| member.ordinal);
    for run in removed.chunk_by(|a, b| a.ordinal + 1 == b.ordinal) {
        let ([first, ..], [.., last]) = (run, run) else { continue };
        let range = match (last.next, first.before) {
            // With the comma behind.
            (Some(next), _) => first.start..next,
            // The last ones go with the comma before.
            (None, Some(before)) => before..last.value.end,
            (None, None) => first.start..last.value.end,
        };
        cuts.push((range, None));
    }
    let insertion: Option<Bytes> = (!added.is_empty()).then(|| {
        let mut text = Vec::with_capacity(64);
        for (at, (field, value)) in added.iter().enumerate() {
            if at > 0 {
                text.push(b',');
            }
            text.push(b'"');
            text.extend_from_slice(field.as_str().as_bytes());
            text.extend_from_slice(b"\":");
            text.extend_from_slice(value);
        }
        if removed.len() < skim.members {
            text.push(b',');
        }
        text.into()
    });
    if let Some(text) = &insertion {
        cuts.push((skim.inside..skim.inside, Some(text)));
    }
    // What is added stands before what is cut at the same place.
    cuts.sort_by_key(|(range, _)| (range.start, range.end));
    let mut parts = Vec::with_capacity(cuts.len() * 2 + 1);
    let mut from = 0;
    for (range, put) in cuts {
        if from < range.start {
            parts.push(body.slice(from..range.start));
        }
        parts.extend(put.cloned());
        from = range.end;
    }
    if from < body.len() {
        parts.push(body.slice(from..));
    }
    parts
}

impl BodyEdit {
    fn field(&self) -> BodyField {
        match self {
            Self::Remove(field) | Self::Set(field, _) => *field,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::skim::OWN_FIELDS;
    use proptest::prelude::*;
    use serde_json::{Map, Value};

    fn spliced(body: &str, edits: &[BodyEdit]) -> String {
        let body = Bytes::copy_from_slice(body.as_bytes());
        let skim = Skim::of(&body).expect("valid");
        String::from_utf8(splice(&body, &skim, edits).concat()).expect("text")
    }

    fn set(field: BodyField, value: &'static str) -> BodyEdit {
        BodyEdit::Set(field, Bytes::from_static(value.as_bytes()))
    }

    #[test]
    fn only_what_is_edited_changes() {
        let check =
            |body: &str, edits: &[BodyEdit], expected: &str| assert_eq!(spliced(body, edits), expected);
        let model = || set(BodyField::Model, "\"up\"");
        check(r#"{ "model" : "a", "x": 1e400 }"#, &[model()], r#"{ "model" : "up", "x": 1e400 }"#);
        check(r#"{"x":1}"#, &[model()], r#"{"model":"up","x":1}"#);
        check("{}", &[model()], r#"{"model":"up"}"#);
        check("{ }", &[model(), set(BodyField::N, "2")], r#"{"model":"up","n":2 }"#);
        let own: Vec<BodyEdit> = OWN_FIELDS.map(BodyEdit::Remove).into();
        check(r#"{"power_level":"eco","x":1}"#, &own, r#"{"x":1}"#);
        check(r#"{"x":1, "power_level":"eco"}"#, &own, r#"{"x":1}"#);
        check(r#"{"x":1, "power_level":"eco", "task_type":"t"}"#, &own, r#"{"x":1}"#);
        check(r#"{"x":1, "task_type":"t", "power_level":"eco","y":2}"#, &own, r#"{"x":1, "y":2}"#);
        check(r#"{"task_type":"t" , "power_level":"eco"}"#, &own, "{}");
        check(r#"{"task_type":"t"}"#, &[BodyEdit::Remove(BodyField::TaskType), model()], r#"{"model":"up"}"#);
        check(
            r#"{"task_type":"t","x":1,"power_level":"eco"}"#,
            &[BodyEdit::Remove(BodyField::TaskType), BodyEdit::Remove(BodyField::PowerLevel), model()],
            r#"{"model":"up","x":1}"#,
        );
    }

    #[test]
    fn usage_is_asked_for_once() {
        let check = |options: Option<&str>, expected: Option<&str>| {
            let body =
                options.map_or("{}".to_owned(), |options| format!(r#"{{"stream_options":{options}}}"#));
            let skim = Skim::of(body.as_bytes()).expect("valid");
            let edit = usage_wanted(body.as_bytes(), &skim);
            let value = edit.map(|edit| match edit {
                BodyEdit::Set(BodyField::StreamOptions, value) => {
                    String::from_utf8(value.into()).expect("text")
                }
                other => panic!("{other:?}"),
            });
            assert_eq!(value.as_deref(), expected, "{options:?}");
        };
        check(None, Some(r#"{"include_usage":true}"#));
        check(Some("null"), Some(r#"{"include_usage":true}"#));
        check(Some("{ }"), Some(r#"{"include_usage":true}"#));
        check(Some(r#"{"include_usage":true}"#), None);
        check(Some(r#"{"include_usage": false,"x":1}"#), Some(r#"{"include_usage": true,"x":1}"#));
        check(Some(r#"{ "x":1}"#), Some(r#"{"include_usage":true, "x":1}"#));
        check(Some("[1]"), None);
    }

    /// JSON values of some depth, with keys that are known fields, need escapes, or look alike.
    fn values() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            (-1e15..1e15f64).prop_map(Value::from),
            "\\PC{0,40}".prop_map(Value::from),
            "[\"\\\\\u{0}-\u{1f}a-z\u{e4}\u{1f600}]{0,80}".prop_map(Value::from),
        ];
        leaf.prop_recursive(5, 48, 6, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..6).prop_map(Value::from),
                prop::collection::btree_map(".{0,8}", inner, 0..6)
                    .prop_map(|map| Value::Object(map.into_iter().collect())),
            ]
        })
    }

    fn keys() -> impl Strategy<Value = String> {
        prop_oneof![
            3 => prop::sample::select(BodyField::ALL.to_vec()).prop_map(|field| field.as_str().to_owned()),
            1 => "[a-z\"\\\\\n\u{e4}]{0,6}",
        ]
    }

    /// Writes an object with spaces and escapes that `chance` decides about.
    fn written(members: &[(String, Value)], chance: &[u8]) -> String {
        let bit = |at: usize| chance.get(at % chance.len().max(1)).copied().unwrap_or(0);
        let space = |at: usize| [" ", "", "\n", "\t ", ""][usize::from(bit(at)) % 5];
        let mut text = format!("{}{{{}", space(0), space(1));
        for (at, (key, value)) in members.iter().enumerate() {
            if at > 0 {
                text.push(',');
                text.push_str(space(at * 7 + 2));
            }
            let mut key_text = serde_json::to_string(key).expect("a text");
            if bit(at * 5) % 4 == 0
                && let Some(first) = key.chars().next()
                && first.is_ascii_lowercase()
            {
                key_text = format!("\"\\u{:04x}{}", first as u32, &key_text[2..]);
            }
            text.push_str(&key_text);
            text.push_str(space(at * 7 + 3));
            text.push(':');
            text.push_str(space(at * 7 + 4));
            text.push_str(&if bit(at * 3) % 2 == 0 {
                serde_json::to_string(value).expect("a value")
            } else {
                serde_json::to_string_pretty(value).expect("a value")
            });
            text.push_str(space(at * 7 + 5));
        }
        text.push('}');
        text.push_str(space(6));
        text
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(400))]

        #[test]
        fn skim_and_splice_agree_with_a_parser(
            members in prop::collection::vec((keys(), values()), 0..12),
            chance in prop::collection::vec(any::<u8>(), 1..40),
            what in prop::collection::vec((prop::sample::select(BodyField::ALL.to_vec()), prop::option::of(values())), 0..8),
        ) {
            let text = written(&members, &chance);
            let mut unique = std::collections::HashSet::new();
            let twice = members.iter().any(|(key, _)| !unique.insert(key.clone()));
            let body = Bytes::from(text.clone());
            let skim = match Skim::of(&body) {
                Err(crate::skim::SkimError::Duplicate(_)) => { prop_assert!(twice); return Ok(()); }
                other => other.map_err(|error| TestCaseError::fail(format!("{error}: {text}")))?,
            };
            prop_assert!(!twice);
            let mut oracle: Map<String, Value> = serde_json::from_str(&text).expect("serde_json reads it");
            for field in BodyField::ALL {
                let found = skim.member(*field).map(|member| {
                    serde_json::from_slice::<Value>(&body[member.value.clone()]).expect("a whole value")
                });
                prop_assert_eq!(found.as_ref(), oracle.get(field.as_str()));
            }
            let edits: Vec<BodyEdit> = what.iter().map(|(field, value)| match value {
                None => BodyEdit::Remove(*field),
                Some(value) => BodyEdit::Set(*field, serde_json::to_vec(value).expect("a value").into()),
            }).collect();
            // Of two edits of a field the first counts.
            let mut seen = Vec::new();
            for (field, value) in &what {
                if seen.contains(field) { continue; }
                seen.push(*field);
                match value {
                    None => { oracle.remove(field.as_str()); }
                    // By way of text, as the edit goes: reading a float may move its last digit.
                    Some(value) => {
                        let text = serde_json::to_vec(value).expect("a value");
                        oracle.insert(field.as_str().to_owned(), serde_json::from_slice(&text).expect("a value"));
                    }
                }
            }
            let result = splice(&body, &skim, &edits).concat();
            let result: Value = serde_json::from_slice(&result)
                .map_err(|error| TestCaseError::fail(format!("{error}: {}", String::from_utf8_lossy(&result))))?;
            prop_assert_eq!(result, Value::Object(oracle));
        }

        #[test]
        fn skim_accepts_what_a_parser_accepts(text in "[\\[\\]{}\":,0-9a-e.\\-+trufalsn\\\\ ]{0,24}") {
            let ours = Skim::of(text.as_bytes());
            let theirs = serde_json::from_str::<Value>(&text);
            match (&ours, &theirs) {
                (Ok(_), Ok(value)) => prop_assert!(value.is_object()),
                (Err(crate::skim::SkimError::NoObject), Ok(value)) => prop_assert!(!value.is_object()),
                (Err(crate::skim::SkimError::Duplicate(_)), _) => {}
                (Err(_), Err(_)) => {}
                // Numbers that no f64 holds and half surrogate pairs are JSON; a parser may still refuse them.
                (_, Err(error)) => prop_assert!(
                    error.to_string().contains("out of range") || error.to_string().contains("surrogate"),
                    "{} {}", error, text
                ),
                (Err(error), Ok(_)) => prop_assert!(false, "{} {}", error, text),
            }
        }
    }

    #[test]
    fn megabytes_pass_whole() {
        let body = format!("{{\"x\":\"{}\",\"model\":\"a\"}}", "long ".repeat(4_000_000));
        assert_eq!(spliced(&body, &[set(BodyField::Model, "\"b\"")]).len(), body.len());
    }
}
