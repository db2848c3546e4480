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
    let mut first: Option<Range<usize>> = None;
    each(text, |range| {
        if first.as_ref().is_none_or(|first| range.start < first.start) {
            first = Some(range);
        }
    });
    first
}

/// Everything in `text` that looks like a key, in time linear in its length: what was looked at once is skipped.
fn each(text: &str, mut note: impl FnMut(Range<usize>)) {
    let bytes = text.as_bytes();
    if bytes.len() < 16 {
        return;
    }
    for (prefix, length) in PREFIXES {
        let mut seen = 0;
        for (at, _) in text.match_indices(prefix) {
            let starts_word = at == 0 || bytes.get(at - 1).is_none_or(|byte| !is_word(*byte));
            if at < seen || !starts_word {
                continue;
            }
            let body = bytes.get(at + prefix.len()..).unwrap_or_default();
            // Tokens of base64 may hold dots, slashes, plus signs and padding.
            let run = body
                .iter()
                .take_while(|byte| is_word(**byte) || matches!(byte, b'.' | b'/' | b'+' | b'='))
                .count();
            // What begins later in this run is shorter and holds no more digits, so it is no key either.
            seen = at + prefix.len() + run;
            if run >= *length && body.iter().take(run).any(u8::is_ascii_digit) {
                note(at..seen);
            }
        }
    }
    private_keys(text, &mut note);
    tokens(text, &mut note);
    hex_dot(text, &mut note);
}

/// From `-----BEGIN … PRIVATE KEY` to the end of its last line, or of the text.
fn private_keys(text: &str, note: &mut impl FnMut(Range<usize>)) {
    let mut from = 0;
    while let Some(at) = text.get(from..).and_then(|rest| rest.find("-----BEGIN")).map(|at| from + at) {
        let rest = text.get(at..).unwrap_or_default();
        let title = rest.lines().next().unwrap_or_default();
        from = at + "-----BEGIN".len();
        if title.contains("PRIVATE KEY") {
            let last = rest
                .find("-----END")
                .map(|end| end + rest.get(end..).and_then(|it| it.find('\n')).unwrap_or(rest.len() - end));
            from = at + last.unwrap_or(rest.len());
            note(at..from);
        }
    }
}

/// `header.payload.signature` of a JSON Web Token.
fn tokens(text: &str, note: &mut impl FnMut(Range<usize>)) {
    let mut seen = 0;
    for (at, _) in text.match_indices("eyJ") {
        if at < seen {
            continue;
        }
        let run = text.bytes().skip(at).take_while(|byte| is_word(*byte) || *byte == b'.').count();
        seen = at + run;
        let dots = text.bytes().skip(at).take(run).filter(|byte| *byte == b'.').count();
        if dots >= 2 && run >= 40 {
            note(at..seen);
        }
    }
}

/// 32 hexadecimal digits, a dot and 24 characters: Ollama's keys.
fn hex_dot(text: &str, note: &mut impl FnMut(Range<usize>)) {
    for (dot, _) in text.match_indices('.') {
        let Some(start) = dot.checked_sub(32) else { continue };
        let bytes = text.as_bytes();
        let head = bytes.get(start..dot).is_some_and(|head| head.iter().all(u8::is_ascii_hexdigit));
        let alone = start == 0 || bytes.get(start - 1).is_some_and(|byte| !is_word(*byte));
        if head && alone {
            let tail = text.bytes().skip(dot + 1).take_while(|byte| is_word(*byte)).count();
            if tail >= 20 {
                note(start..dot + 1 + tail);
            }
        }
    }
}

fn is_secret_name(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    SECRET_NAMES
        .iter()
        .any(|secret| name.strip_suffix(secret).is_some_and(|it| it.is_empty() || it.ends_with(['_', '-'])))
}

/// Whether the value of a key of this name is a secret: the name says so and the value is opaque.
pub fn is_named_secret(name: &str, value: &str) -> bool {
    is_secret_name(name)
        && value.len() >= OPAQUE_LENGTH
        && value.bytes().all(|byte| is_word(byte) || matches!(byte, b'.' | b'/' | b'+' | b'='))
        && value.bytes().any(|byte| byte.is_ascii_digit())
        && value.bytes().any(|byte| byte.is_ascii_alphabetic())
}

/// What is assigned to a secret's name, in a text that need not be valid: `api_key = "…"` and `token: …`.
fn assigned(text: &str, note: &mut impl FnMut(Range<usize>)) {
    let bytes = text.as_bytes();
    let mut seen = 0;
    for (at, _) in text.match_indices(['=', ':']) {
        if at < seen {
            continue;
        }
        let is_space = |byte: &u8| matches!(byte, b' ' | b'\t' | b'"' | b'\'');
        let before = bytes.get(..at).unwrap_or_default();
        let end = before.len() - before.iter().rev().take_while(|byte| is_space(byte)).count();
        // A name is short; nothing longer is looked at.
        let length = before
            .get(..end)
            .unwrap_or_default()
            .iter()
            .rev()
            .take(64)
            .take_while(|byte| is_word(**byte))
            .count();
        let Some(name) = text.get(end - length..end).filter(|name| is_secret_name(name)) else { continue };
        let after = bytes.get(at + 1..).unwrap_or_default();
        let start = at + 1 + after.iter().take_while(|byte| is_space(byte) || **byte == b'[').count();
        let value = bytes.get(start..).unwrap_or_default();
        let run =
            value.iter().take_while(|byte| !byte.is_ascii_whitespace() && !b"\"',]}{".contains(byte)).count();
        // A reference such as { credential = "name" } is meant to be read; the name of one is short.
        let Some(value) = text.get(start..start + run) else { continue };
        let is_name = name.eq_ignore_ascii_case("credential") && run <= 255 && !is_named_secret(name, value);
        if run >= 8 && !is_name {
            seen = start + run;
            note(start..seen);
        }
    }
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
    each(text, &mut blot);
    assigned(text, &mut blot);
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
