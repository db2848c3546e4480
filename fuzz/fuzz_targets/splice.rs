//! Fuzzes the edits of a request's body, with serde_json as the oracle.
#![no_main]

use bytes::Bytes;
use gateway::skim::{BodyField, Skim};
use gateway::splice::{BodyEdit, splice, usage_wanted};
use serde_json::Value;

libfuzzer_sys::fuzz_target!(|input: (u64, u64, &[u8])| {
    let (remove, set, body) = input;
    let body = Bytes::copy_from_slice(body);
    let (Ok(skim), Ok(Value::Object(mut oracle))) = (Skim::of(&body), serde_json::from_slice(&body)) else { return };
    let mut edits = Vec::new();
    for (at, field) in BodyField::ALL.iter().enumerate() {
        if set >> at & 1 == 1 {
            edits.push(BodyEdit::Set(*field, Bytes::from_static(b"{\"a\":[1]}")));
            oracle.insert(field.as_str().to_owned(), serde_json::json!({"a": [1]}));
        } else if remove >> at & 1 == 1 {
            edits.push(BodyEdit::Remove(*field));
            oracle.remove(field.as_str());
        }
    }
    let edited = splice(&body, &skim, &edits).concat();
    assert_eq!(serde_json::from_slice::<Value>(&edited).expect("still JSON"), Value::Object(oracle));
    if let Some(edit) = usage_wanted(&body, &skim) {
        let edited = Bytes::from(splice(&body, &skim, &[edit]).concat());
        let skim = Skim::of(&edited).expect("still JSON");
        assert!(skim.wants_usage(&edited) && usage_wanted(&edited, &skim).is_none());
    }
});
