//! Texts that look like API keys.
//!
//! A value that looks like a key is refused wherever it stands in a manifest, and is never shown. The shapes are
//! those that the providers' keys are known to have; a prefix alone decides nothing, its length must fit too.

use std::ops::Range;

/// Prefix, and at least so many characters after it.
const PREFIXES: &[(&str, usize)] = &[
    ("sk-", 20),
    ("AIza", 30),
    ("AQ.", 30),
    ("gsk_", 40),
    ("xai-", 60),
    ("hf_", 30),
    ("api_org_", 30),
    ("r8_", 30),
    ("nvapi-", 40),
    ("pplx-", 40),
    ("csk-", 40),
    ("fw_", 20),
    ("fpk_", 20),
    ("tgp_v1_", 40),
    ("ABSK", 40),
    ("bedrock-api-key-", 20),
    ("AKIA", 16),
    ("ASIA", 16),
    ("ghp_", 36),
    ("github_pat_", 36),
    ("gAAAAA", 80),
];

/// Names of keys whose values are secrets whatever they look like.
const SECRET_NAMES: &[&str] =
    &["api_key", "apikey", "api-key", "token", "secret", "password", "passwd", "credential"];

/// An opaque value of a secret's name has at least so many characters.
const OPAQUE_LENGTH: usize = 16;

fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-')
}

/// Bytes of the first thing in `text` that looks like a key.
pub fn find(text: &str) -> Option<Range<usize>> {
    let bytes = text.as_bytes();
    if bytes.len() < 16 {
        return None;
    }
    let mut found: Option<Range<usize>> = None;
    let mut note = |range: Range<usize>| {
        if found.as_ref().is_none_or(|found| range.start < found.start) {
            found = Some(range);
        }
    };
    for (prefix, length) in PREFIXES {
        for (at, _) in text.match_indices(prefix) {
            let starts_word = at == 0 || bytes.get(at - 1).is_none_or(|byte| !is_word(*byte));
            let body = bytes.get(at + prefix.len()..).unwrap_or_default();
            // Tokens of base64 may hold dots, slashes, plus signs and padding.
            let run = body
                .iter()
                .take_while(|byte| is_word(**byte) || matches!(byte, b'.' | b'/' | b'+' | b'='))
                .count();
            let is_opaque = body.iter().take(run).any(u8::is_ascii_digit);
            if starts_word && run >= *length && is_opaque {
                note(at..at + prefix.len() + run);
                break;
            }
        }
    }
    if let Some(at) = text.find("-----BEGIN")
        && text.get(at..).is_some_and(|rest| rest.contains("PRIVATE KEY"))
    {
        note(at..text.len());
    }
    if let Some(range) = jwt(text).or_else(|| hex_dot(text)) {
        note(range);
    }
    found
}

/// `header.payload.signature` of a JSON Web Token.
fn jwt(text: &str) -> Option<Range<usize>> {
    let at = text.find("eyJ")?;
    let run = text.bytes().skip(at).take_while(|byte| is_word(*byte) || *byte == b'.').count();
    let token = text.get(at..at + run)?;
    (token.matches('.').count() == 2 && token.len() >= 40).then_some(at..at + run)
}

/// 32 hexadecimal digits, a dot and 24 characters: Ollama's keys.
fn hex_dot(text: &str) -> Option<Range<usize>> {
    text.match_indices('.').find_map(|(dot, _)| {
        let start = dot.checked_sub(32)?;
        let head = text.get(start..dot)?.bytes().all(|byte| byte.is_ascii_hexdigit());
        let alone = start == 0 || text.as_bytes().get(start - 1).is_some_and(|byte| !is_word(*byte));
        let tail = text.bytes().skip(dot + 1).take_while(|byte| is_word(*byte)).count();
        (head && alone && tail >= 20).then_some(start..dot + 1 + tail)
    })
}

/// Whether the value of a key of this name is a secret: the name says so and the value is opaque.
pub fn is_named_secret(name: &str, value: &str) -> bool {
    let name = name.to_ascii_lowercase();
    SECRET_NAMES.iter().any(|secret| name == *secret || name.ends_with(&format!("_{secret}")))
        && value.len() >= OPAQUE_LENGTH
        && value.bytes().all(|byte| is_word(byte) || matches!(byte, b'.' | b'/' | b'+' | b'='))
        && value.bytes().any(|byte| byte.is_ascii_digit())
        && value.bytes().any(|byte| byte.is_ascii_alphabetic())
}

/// The text with everything that looks like a key, and every span given, replaced by asterisks of the same
/// length in bytes, so that places in it stay where they are.
pub fn mask(text: &str, spans: &[Range<usize>]) -> String {
    let mut bytes = text.as_bytes().to_vec();
    let mut blot = |range: Range<usize>| {
        for byte in bytes.get_mut(range).into_iter().flatten() {
            if *byte != b'\n' {
                *byte = b'*';
            }
        }
    };
    spans.iter().cloned().for_each(&mut blot);
    let mut from = 0;
    for line in text.split_inclusive('\n') {
        let mut at = 0;
        while let Some(found) = line.get(at..).and_then(find) {
            blot(from + at + found.start..from + at + found.end);
            at += found.end.max(1);
        }
        from += line.len();
    }
    // Whole characters were replaced, so this is UTF-8 still; what is not is replaced.
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes() {
        let check = |text: &str, is_key: bool| assert_eq!(find(text).is_some(), is_key, "{text}");
        let fill = |prefix: &str, length: usize| format!("{prefix}{}", "fake0".repeat(length.div_ceil(5)));
        for (prefix, length) in PREFIXES {
            check(&fill(prefix, *length), true);
            check(&format!("see {} there", fill(prefix, *length)), true);
            check(prefix, false);
        }
        check("0123456789abcdef0123456789abcdef.fakefakefakefakefakefake", true);
        check("eyJmYWtl.eyJmYWtlZmFrZWZha2VmYWtlZmFrZQ.ZmFrZQ", true);
        check("-----BEGIN FAKE PRIVATE KEY-----", true);
        for harmless in [
            "https://api.openai.com/v1",
            "task-oriented-and-quite-long-name-2",
            "sk-learn",
            "llama3.1:70b-instruct",
            "the quick brown fox",
        ] {
            check(harmless, false);
        }
    }

    #[test]
    fn masking_keeps_places_and_hides_everything() {
        let key = format!("sk-{}", "fake1".repeat(6));
        let text = format!("a = \"ä{key}\"\n# {key} and {key}\nb = \"hidden\"\n");
        let at = text.find("hidden").unwrap();
        let masked = mask(&text, &[at..at + 6]);
        assert_eq!(masked.len(), text.len());
        assert!(!masked.contains("fake1") && !masked.contains("hidden"), "{masked}");
        assert_eq!(masked.lines().count(), 3);
    }
}
