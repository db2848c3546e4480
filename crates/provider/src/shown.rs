//! Other people's text, made fit for a terminal and for a line of a log: the one boundary for both.
//!
//! PURE. Names of files, what other programs store, what providers and Git say may hold anything: escape sequences that
//! write elsewhere on the screen, line breaks that forge a line, characters that hide or turn text. Not its job: keys
//! (`health::protocol::redact`). Invariant: what comes out of here holds no control character but the line breaks and
//! tabs that are asked for, no character that is not seen, and none that changes the direction of others; nothing is
//! lost, because each stands there as its escape.

use std::{borrow::Cow, fmt::Write as _};

/// Whether a character acts on the text around it, or hides, rather than being seen.
const fn acts(c: char) -> bool {
    matches!(c,
        // C0, DEL, C1
        '\0'..='\u{1f}' | '\u{7f}'..='\u{9f}'
        // soft hyphen, joiners, fillers
        | '\u{ad}' | '\u{34f}' | '\u{115f}' | '\u{1160}' | '\u{17b4}' | '\u{17b5}' | '\u{180b}'..='\u{180e}'
        // direction
        | '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}'
        // width zero, separators of lines, invisible operators
        | '\u{200b}'..='\u{200d}' | '\u{2028}' | '\u{2029}' | '\u{2060}'..='\u{2065}' | '\u{206a}'..='\u{206f}'
        | '\u{3164}' | '\u{feff}' | '\u{ffa0}' | '\u{fff9}'..='\u{fffb}'
        // tags, variation selectors of the supplement
        | '\u{e0000}'..='\u{e0fff}')
}

fn escape(text: &str, is_kept: impl Fn(char) -> bool) -> Cow<'_, str> {
    let acts = |c: char| acts(c) && !is_kept(c);
    let Some(first) = text.find(acts) else { return Cow::Borrowed(text) };
    let mut out = String::with_capacity(text.len() + 16);
    out.push_str(&text[..first]);
    for c in text[first..].chars() {
        match c {
            c if !acts(c) => out.push(c),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c => {
                let (open, close) = if u32::from(c) < 0x100 { ("\\x", "") } else { ("\\u{", "}") };
                // Writing into a string cannot fail.
                let _ = write!(out, "{open}{:02x}{close}", u32::from(c));
            }
        }
    }
    Cow::Owned(out)
}

/// For a cell, a name, a field: nothing that acts stays.
pub fn one_line(text: &str) -> Cow<'_, str> {
    escape(text, |_| false)
}

/// For a message of several lines: line breaks and tabs stay.
pub fn lines(text: &str) -> Cow<'_, str> {
    escape(text, |c| matches!(c, '\n' | '\t'))
}

/// For text of ours that was coloured after its parts went through here: colours (`ESC [ … m`) stay, other sequences do
/// not.
pub fn coloured(text: &str) -> Cow<'_, str> {
    let text = escape(text, |c| matches!(c, '\n' | '\t' | '\x1b'));
    let is_colour = |rest: &str| {
        rest.strip_prefix('[').is_some_and(|rest| {
            rest.trim_start_matches(|c: char| c.is_ascii_digit() || c == ';').starts_with('m')
        })
    };
    if text.split('\x1b').skip(1).all(is_colour) {
        return text;
    }
    let mut parts = text.split('\x1b');
    let mut out = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        out.push_str(if is_colour(part) { "\x1b" } else { "\\x1b" });
        out.push_str(part);
    }
    Cow::Owned(out)
}

/// For an excerpt of a file, in which bytes must keep their places: what acts becomes marks of the same length. Line
/// breaks and tabs stay.
pub fn in_place(text: &str) -> Cow<'_, str> {
    let acts = |c: char| acts(c) && !matches!(c, '\n' | '\r' | '\t');
    if !text.contains(acts) {
        return Cow::Borrowed(text);
    }
    let mark = |c: char| match c.len_utf8() {
        1 => "?",
        2 => "\u{b7}",
        3 => "\u{fffd}",
        _ => "\u{b7}\u{b7}",
    };
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match acts(c) {
            true => out.push_str(mark(c)),
            false => out.push(c),
        }
    }
    Cow::Owned(out)
}

/// For JSON that was written already: what JSON leaves as it is and a terminal obeys becomes `\uXXXX`, which means the
/// same.
pub fn json(text: &str) -> Cow<'_, str> {
    let acts = |c: char| acts(c) && !matches!(c, '\n' | '\r' | '\t');
    if !text.contains(acts) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        match acts(c) {
            true => {
                for unit in c.encode_utf16(&mut [0; 2]) {
                    let _ = write!(out, "\\u{unit:04x}");
                }
            }
            false => out.push(c),
        }
    }
    Cow::Owned(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_acts_is_escaped() {
        let check = |text: &str, line: &str, many: &str| {
            assert_eq!(one_line(text), line);
            assert_eq!(lines(text), many);
        };
        check("plain – ünïcode 🔑 «x»", "plain – ünïcode 🔑 «x»", "plain – ünïcode 🔑 «x»");
        check("a\nb\tc", "a\\nb\\tc", "a\nb\tc");
        check("\x1b]0;title\x07", "\\x1b]0;title\\x07", "\\x1b]0;title\\x07");
        check("\u{9b}2J\u{7f}", "\\x9b2J\\x7f", "\\x9b2J\\x7f");
        check(
            "a\u{202e}b\u{200b}c\u{2028}",
            "a\\u{202e}b\\u{200b}c\\u{2028}",
            "a\\u{202e}b\\u{200b}c\\u{2028}",
        );
        check("a\u{ad}b\u{e0041}", "a\\xadb\\u{e0041}", "a\\xadb\\u{e0041}");
    }

    #[test]
    fn only_colours_pass_among_sequences() {
        let check = |text: &str, expected: &str| assert_eq!(coloured(text), expected);
        check("\x1b[1;31mred\x1b[0m\n", "\x1b[1;31mred\x1b[0m\n");
        check("\x1b[2J\x1b[1mx\x1b]0;t\x07", "\\x1b[2J\x1b[1mx\\x1b]0;t\\x07");
        check("\x1b", "\\x1b");
    }

    proptest::proptest! {
        #[test]
        fn nothing_that_acts_passes(text in "(\\PC|[\\x00-\\x1f\\x7f-\\xad\\x{200b}-\\x{206f}\\x{feff}]){0,60}") {
            proptest::prop_assert!(!one_line(&text).contains(acts));
            proptest::prop_assert!(!lines(&text).contains(|c| acts(c) && !matches!(c, '\n' | '\t')));
            let excerpt = in_place(&text);
            proptest::prop_assert_eq!(excerpt.len(), text.len());
            let places = |text: &str| text.char_indices().map(|(at, _)| at).collect::<std::collections::HashSet<_>>();
            // A span of the text is one of the excerpt.
            proptest::prop_assert!(places(&text).is_subset(&places(&excerpt)));
            let value = serde_json::Value::String(text);
            let written = serde_json::to_string(&value).unwrap();
            let shown = json(&written);
            proptest::prop_assert!(!shown.contains(acts));
            proptest::prop_assert_eq!(serde_json::from_str::<serde_json::Value>(&shown).unwrap(), value);
        }
    }
}
