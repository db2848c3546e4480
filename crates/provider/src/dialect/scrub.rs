//! Takes other makers' proofs out of a body that otherwise passes in its own dialect.
//!
//! Not its job: anything else about the body. Invariant: without a tag inside, bytes are not touched.

use serde_json::Value;

use super::{
    capability::ModelCapabilities,
    json::JsonLook,
    signature::{Maker, Signature, carries_tag, split_id},
    target::{CallerDialect, UpstreamDialect},
};

/// Whether a body must be translated for this upstream: another dialect, or a model that takes this body only at
/// `/responses`. In the same dialect, [`scrub()`] it.
pub fn must_translate(
    caller: CallerDialect,
    upstream: UpstreamDialect,
    capabilities: &ModelCapabilities,
    body: &[u8],
) -> bool {
    let bridge = capabilities.tools_need_responses && upstream == UpstreamDialect::Chat;
    // The word may stand elsewhere: then the body is translated into its own dialect, which loses nothing it needs.
    !caller.is_native(upstream) || bridge && memchr::memmem::find(body, b"\"tools\"").is_some()
}

/// The body without proofs that this upstream did not make: `None` where there are none and the bytes can pass.
pub fn scrub(upstream: UpstreamDialect, model: &str, body: &[u8]) -> Option<Vec<u8>> {
    if !carries_tag(body) {
        return None;
    }
    let mut json: Value = serde_json::from_slice(body).ok()?;
    clean(&mut json, upstream.maker(model));
    Some(json.to_string().into_bytes())
}

/// Members that hold ids of calls.
const IDS: [&str; 4] = ["id", "tool_call_id", "tool_use_id", "call_id"];

/// Members that hold proofs: a block whose proof is another maker's goes as a whole.
const PROOFS: [&str; 3] = ["signature", "data", "encrypted_content"];

fn clean(value: &mut Value, maker: Option<Maker>) {
    match value {
        Value::Array(list) => {
            list.retain_mut(|item| keep(item, maker));
            list.iter_mut().for_each(|item| clean(item, maker));
        }
        Value::Object(object) => {
            for (key, member) in object.iter_mut() {
                match member {
                    Value::String(text) if IDS.contains(&key.as_str()) => *text = split_id(text).0,
                    Value::Array(_) | Value::Object(_) => clean(member, maker),
                    _ => {}
                }
            }
        }
        _ => {}
    }
}

/// Whether a block may stay; its own maker's proof gets its plain form back.
fn keep(block: &mut Value, maker: Option<Maker>) -> bool {
    for key in PROOFS {
        let Some(field) = block.word(key) else { continue };
        let plain = field.strip_prefix("hidden:").unwrap_or(field);
        if !carries_tag(plain.as_bytes()) {
            continue;
        }
        // An untagged proof never comes here, so the second maker does not matter.
        let signature = Signature::read(plain, Maker::OpenAi);
        match signature.of(maker) {
            Some(data) => {
                let data = Value::from(data);
                if let Some(object) = block.as_object_mut() {
                    object.insert(key.to_owned(), data);
                }
            }
            None => return false,
        }
    }
    true
}
