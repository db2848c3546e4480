//! Fuzzes the look over a request's body, with serde_json as the oracle.
#![no_main]

use gateway::skim::{BodyField, Skim, SkimError};
use serde_json::Value;

libfuzzer_sys::fuzz_target!(|body: &[u8]| {
    let ours = Skim::of(body);
    let theirs = serde_json::from_slice::<Value>(body);
    match (&ours, &theirs) {
        (Ok(skim), Ok(value)) => {
            for field in BodyField::ALL {
                let found = skim.member(*field).map(|member| {
                    serde_json::from_slice::<Value>(&body[member.value.clone()]).expect("a whole value")
                });
                assert_eq!(found.as_ref(), value.get(field.as_str()));
            }
        }
        (Err(SkimError::NoObject), Ok(value)) => assert!(!value.is_object()),
        (Err(SkimError::Duplicate(_)), _) | (Err(_), Err(_)) => {}
        // JSON that serde_json refuses: numbers that no f64 holds, half surrogate pairs, its own limit of depth.
        (Ok(_) | Err(SkimError::NoObject), Err(error)) => {
            let error = error.to_string();
            let known = ["out of range", "surrogate", "recursion limit", "unexpected end of hex"];
            assert!(known.iter().any(|known| error.contains(known)), "{error}");
        }
        (Err(error), Ok(_)) => panic!("{error}"),
    }
});
