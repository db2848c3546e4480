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
    // The gateway's own, as `key consumer` makes them.
    ("pd_", 40),
    ("ghp_", 36),
    ("github_pat_", 36),
    ("gAAAAA", 80),
];

/// Ends of names whose values are secrets whatever they look like; names are compared in lower case and without
/// `-`, `_` and `.`, so that `X-Api-Key`, `apiKey` and `api_key` are one.
const SECRET_NAMES: &[&str] = &[
    "apikey",
    "accesskey",
    "secretkey",
    "privatekey",
    "token",
    "secret",
    "password",
    "passwd",
    "credential",
    "authorization",
];

/// Names that hold a secret only where they are shown: a sealed token is right in its place.
const HIDDEN_NAMES: &[&str] = &["sealed"];

/// Words before the secret in an authorization header.
const SCHEMES: &[&str] = &["Bearer ", "bearer ", "Token ", "Basic "];

/// An opaque value of a secret's name has at least so many characters.
const OPAQUE_LENGTH: usize = 16;

/// A run of letters and digits this long is hidden where a line is shown: names of models have separators, and
/// the shortest keys without a known prefix have 32 characters.
const HIDDEN_RUN: usize = 20;

/// How far the characters after a prefix are looked at before it is judged; more than every length asked for, and
/// little enough that a text of nothing but prefixes costs no more than any other.
const LOOK: usize = 128;

fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-')
}

/// Tokens of base64 may hold dots, slashes, plus signs and padding.
fn is_token_byte(byte: u8) -> bool {
    is_word(byte) || matches!(byte, b'.' | b'/' | b'+' | b'=')
}

fn run(bytes: &[u8], of: impl Fn(u8) -> bool) -> usize {
    bytes.iter().take_while(|byte| of(**byte)).count()
}

/// Whether something after a prefix is no plain words: it has a digit, or a stretch that no word has.
fn is_opaque(body: &[u8]) -> bool {
    body.iter().any(u8::is_ascii_digit)
        || body.split(|byte| !byte.is_ascii_alphanumeric()).any(|part| part.len() >= OPAQUE_LENGTH)
}

/// Bytes of the first thing in `text` that looks like a key.
pub fn find(text: &str) -> Option<Range<usize>> {
    shapes(text).into_iter().min_by_key(|found| found.start)
}

/// Bytes of everything in `text` that looks like a key, in time linear in the text.
fn shapes(text: &str) -> Vec<Range<usize>> {
    let bytes = text.as_bytes();
    let mut found = Vec::new();
    if bytes.len() < 16 {
        return found;
    }
    for (prefix, length) in PREFIXES {
        let mut from = 0;
        for (at, _) in text.match_indices(prefix) {
            let starts_word = at == 0 || bytes.get(at - 1).is_none_or(|byte| !is_word(*byte));
            if at < from || !starts_word {
                continue;
            }
            let body = bytes.get(at + prefix.len()..).unwrap_or_default();
            let seen = body.get(..LOOK.min(body.len())).unwrap_or_default();
            let seen = seen.get(..run(seen, is_token_byte)).unwrap_or_default();
            if seen.len() >= *length && is_opaque(seen) {
                from = at + prefix.len() + run(body, is_token_byte);
                found.push(at..from);
            }
        }
    }
    if let Some(at) = text.find("-----BEGIN")
        && text.get(at..).is_some_and(|rest| rest.contains("PRIVATE KEY"))
    {
        found.push(at..text.len());
    }
    jwts(text, &mut found);
    hex_dots(text, &mut found);
    found
}

/// `header.payload.signature` of JSON Web Tokens.
fn jwts(text: &str, found: &mut Vec<Range<usize>>) {
    let mut from = 0;
    for (at, _) in text.match_indices("eyJ") {
        if at < from {
            continue;
        }
        let rest = text.as_bytes().get(at..).unwrap_or_default();
        from = at + run(rest, |byte| is_word(byte) || byte == b'.');
        let dots = rest.iter().take(from - at).filter(|byte| **byte == b'.').count();
        if dots >= 2 && from - at >= 40 {
            found.push(at..from);
        }
    }
}

/// 32 hexadecimal digits, a dot and 24 characters: Ollama's keys.
fn hex_dots(text: &str, found: &mut Vec<Range<usize>>) {
    let bytes = text.as_bytes();
    for (dot, _) in text.match_indices('.') {
        let Some(start) = dot.checked_sub(32) else { continue };
        let head = bytes.get(start..dot).is_some_and(|head| head.iter().all(u8::is_ascii_hexdigit));
        let alone = start == 0 || bytes.get(start - 1).is_some_and(|byte| !is_word(*byte));
        if head && alone {
            let tail = run(bytes.get(dot + 1..).unwrap_or_default(), is_word);
            if tail >= 20 {
                found.push(start..dot + 1 + tail);
            }
        }
    }
}

/// Whether a key of this name holds a secret.
fn is_secret_name(name: &str, more: &[&str]) -> bool {
    let letters = name.chars().filter(|c| !matches!(c, '-' | '_' | '.'));
    let name: String = letters.map(|c| c.to_ascii_lowercase()).collect();
    SECRET_NAMES.iter().chain(more).any(|secret| name.ends_with(secret))
}

/// Whether the value of a key of this name is a secret: the name says so and the value is opaque.
pub fn is_named_secret(name: &str, value: &str) -> bool {
    let value = SCHEMES.iter().find_map(|scheme| value.strip_prefix(scheme)).unwrap_or(value);
    value.len() >= OPAQUE_LENGTH
        && value.bytes().all(is_token_byte)
        && value.bytes().any(|byte| byte.is_ascii_digit())
        && value.bytes().any(|byte| byte.is_ascii_alphabetic())
        && is_secret_name(name, &[])
}

/// The text with everything that may be a secret, and every span given, replaced by asterisks of the same length
/// in bytes, so that places in it stay where they are.
///
/// Stricter than [`find`], since what it hides in vain costs nothing: also what follows a secret's name, credentials
/// in a URL, private keys over several lines, and every long run of letters and digits. A text with a syntax error
/// has no values to judge, so its lines are all there is.
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
    let (mut from, mut in_private_key) = (0, false);
    for line in text.split_inclusive('\n') {
        if in_private_key {
            blot(from..from + line.len());
            in_private_key = !line.contains("-----END");
        } else {
            hidden(line, |range| blot(from + range.start..from + range.end));
            let begins = line.find("-----BEGIN").and_then(|at| line.get(at..));
            in_private_key =
                begins.is_some_and(|rest| rest.contains("PRIVATE KEY") && !rest.contains("-----END"));
        }
        from += line.len();
    }
    // Whole characters were replaced, so this is UTF-8 still; what is not is replaced.
    String::from_utf8_lossy(&bytes).into_owned()
}

/// What of one line is not shown.
fn hidden(line: &str, mut hide: impl FnMut(Range<usize>)) {
    shapes(line).into_iter().for_each(&mut hide);
    let bytes = line.as_bytes();
    let mut at = 0;
    while at < bytes.len() {
        let rest = bytes.get(at..).unwrap_or_default();
        let length = run(rest, |byte| byte.is_ascii_alphanumeric());
        let word = rest.get(..length).unwrap_or_default();
        if length >= HIDDEN_RUN
            && word.iter().any(u8::is_ascii_digit)
            && word.iter().any(u8::is_ascii_alphabetic)
        {
            hide(at..at + length);
        }
        at += length.max(1);
    }
    let mut shown_to = 0;
    for (at, _) in line.match_indices("://") {
        if at < shown_to {
            continue;
        }
        let start = at + 3;
        let rest = bytes.get(start..).unwrap_or_default();
        let length = run(rest, |byte| !matches!(byte, b'/' | b'"' | b'\'' | b'\n' | b' '));
        shown_to = start + length;
        if let Some(end) = rest.iter().take(length).rposition(|byte| *byte == b'@') {
            hide(start..start + end);
        }
    }
    let mut done = 0;
    for (at, _) in line.match_indices('=') {
        if at < done {
            continue;
        }
        let name = line.get(done..at).unwrap_or_default().trim_end();
        let name = name.trim_end_matches(['"', '\'']);
        let start =
            name.rfind(|c: char| !(c.is_ascii_alphanumeric() || matches!(c, '-' | '_'))).map_or(0, |it| {
                it + name.get(it..).and_then(|rest| rest.chars().next()).map_or(1, char::len_utf8)
            });
        done = at + 1;
        let value = line.get(at + 1..).unwrap_or_default();
        let value_at = line.len() - value.trim_start().len();
        let value = value.trim();
        // A reference is a table; what it holds has names of its own.
        if value.starts_with('{') || !is_secret_name(name.get(start..).unwrap_or_default(), HIDDEN_NAMES) {
            continue;
        }
        let length = match value.chars().next() {
            Some(quote @ ('"' | '\'')) => {
                value.get(1..).and_then(|rest| rest.find(quote)).map_or(value.len(), |end| end + 2)
            }
            _ => value.len(),
        };
        // An empty string first may open a string of several lines.
        let length = if length <= 2 { value.len() } else { length };
        hide(value_at..value_at + length);
        done = value_at + length;
    }
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
        check("sk-proj-FAKEFAKEFAKEFAKEFAKEFAKE", true);
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
    fn names_of_secrets() {
        let check = |name: &str, value: &str, is_secret: bool| {
            assert_eq!(is_named_secret(name, value), is_secret, "{name} = {value}");
        };
        for name in ["api_key", "apiKey", "X-Api-Key", "client_secret", "access-token", "PASSWORD"] {
            check(name, "fake0fake1fake2fake3", true);
        }
        check("Authorization", "Bearer fake0fake1fake2fake3", true);
        check("tokenizer", "fake0fake1fake2fake3", false);
        check("password", "see the handbook, page 12", false);
        check("region", "fake0fake1fake2fake3", false);
    }

    #[test]
    fn lines_are_shown_without_secrets() {
        let check = |text: &str, expected: &str| assert_eq!(mask(text, &[]), expected);
        check("password = \"hunter2\" # x", "password = ********* # x");
        check("password = \"hunter2", "password = ********");
        check("\"x-api-key\" = hunter2", "\"x-api-key\" = *******");
        check("a = { token = 'hunter2', b = 1 }", "a = { token = *********, b = 1 }");
        check("api_key = { env = \"NAME\" }", "api_key = { env = \"NAME\" }");
        check("u = \"https://me:pw@a.example/x@y\"", "u = \"https://*****@a.example/x@y\"");
        check("k = fake0fake1fake2fake3", "k = ********************");
        check(
            "-----BEGIN FAKE PRIVATE KEY-----\nab/c\n-----END FAKE PRIVATE KEY-----\nx = 1",
            "********************************\n****\n******************************\nx = 1",
        );
        let harmless =
            "models = \"meta-llama/Llama-3.3-70B-Instruct-Turbo\" # cost_per_1m_input_tokens = 0.10";
        check(harmless, harmless);
    }

    #[test]
    fn masking_keeps_places_and_hides_everything() {
        let key = format!("sk-{}", "fake1".repeat(6));
        let text = format!("a = \"ä{key}\"\n# {key} and {key}\nb = \"hidden\"\n");
        let at = text.find("hidden").unwrap();
        let masked = mask(&text, std::slice::from_ref(&(at..at + 6)));
        assert_eq!(masked.len(), text.len());
        assert!(!masked.contains("fake1") && !masked.contains("hidden"), "{masked}");
        assert_eq!(masked.lines().count(), 3);
    }
}
