//! Makes a provider's words fit to store, log and show: no key, no control characters, bounded.

use std::collections::HashSet;

/// Characters that are kept.
const MAX_SHOWN: usize = 400;
/// Bytes that are looked at; what lies beyond is never shown.
const MAX_READ: usize = 8 * 1024;
/// A run of this many characters shared with the key is a piece of it.
const PIECE: usize = 8;
const MASK: &str = "[key]";

/// Beginnings of well-known keys. Longer than these by `MIN_TAIL`, a word is taken for a key.
const SHAPES: &[&str] = &[
    "sk-",
    "sk_",
    "pk-",
    "gsk_",
    "xai-",
    "pplx-",
    "csk-",
    "nvapi-",
    "hf_",
    "api_org_",
    "r8_",
    "fw_",
    "fpk_",
    "tgp_v1_",
    "AIza",
    "AQ.",
    "ABSK",
    "bedrock-api-key-",
    "AKIA",
    "ASIA",
    "eyJ",
    "ghp_",
    "github_pat_",
    "ya29.",
];
const MIN_TAIL: usize = 12;

/// Removes the key in every form in which providers echo it: whole, encoded, in part, masked, and anything that
/// looks like a key at all.
pub fn redact(text: &str, key: &str) -> String {
    let key = super::wire::clean_key(key);
    let mut text: String = {
        let mut end = text.len().min(MAX_READ);
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        text[..end].to_owned()
    };
    // Very short "keys" are words; masking them would only garble the message.
    if key.len() >= 4 {
        text = text.replace(key, MASK);
        let encoded: String = url::form_urlencoded::byte_serialize(key.as_bytes()).collect();
        if encoded != key {
            text = text.replace(&encoded, MASK);
        }
    }
    let text = mask_words(&text, key);
    let mut shown = String::with_capacity(text.len().min(2 * MAX_SHOWN));
    let mut count = 0;
    let mut gap = false;
    for c in text.chars() {
        // Control and format characters move cursors, hide text or turn it around.
        if c.is_whitespace() || c.is_control() || is_invisible(c) {
            gap = !shown.is_empty();
            continue;
        }
        if count >= MAX_SHOWN {
            shown.push('…');
            break;
        }
        if gap {
            shown.push(' ');
            count += 1;
            gap = false;
        }
        shown.push(c);
        count += 1;
    }
    shown
}

const fn is_invisible(c: char) -> bool {
    matches!(c, '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}')
}

/// Characters of which keys and their masked forms consist.
fn is_key_char(c: char) -> bool {
    c.is_ascii_alphanumeric()
        || matches!(c, '-' | '_' | '.' | '*' | '+' | '/' | '=' | '~' | '…' | '•' | '●' | '·' | '%')
}

fn mask_words(text: &str, key: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let pieces = pieces(key);
    let mut rest = text;
    while let Some(start) = rest.find(is_key_char) {
        let (before, from) = rest.split_at(start);
        out.push_str(before);
        let end = from.find(|c| !is_key_char(c)).unwrap_or(from.len());
        let (word, after) = from.split_at(end);
        // A full stop or dots that end a sentence belong to the sentence.
        let core = word.trim_end_matches(['.', '/', '=']);
        if looks_secret(core, &pieces) {
            out.push_str(MASK);
            out.push_str(&word[core.len()..]);
        } else {
            out.push_str(word);
        }
        rest = after;
    }
    out.push_str(rest);
    out
}

fn looks_secret(word: &str, pieces: &HashSet<&[u8]>) -> bool {
    let masked = word.contains("***") || word.contains('•') || word.contains('●') || is_elided(word);
    if masked && word.chars().any(|c| c.is_ascii_alphanumeric()) {
        return true;
    }
    // Any part of a word may be the key's: `key=sk-…`, `https://host/sk-…`.
    let lower = word.to_ascii_lowercase();
    if word.split(['=', '/']).any(has_shape) || (lower.contains("sk-") && has_inner_shape(&lower)) {
        return true;
    }
    word.as_bytes().windows(PIECE).any(|piece| pieces.contains(piece))
}

/// `c19094f...o8ub`: both ends with the middle left out.
fn is_elided(word: &str) -> bool {
    ["...", "…", "**"].iter().any(|gap| match word.split_once(gap) {
        Some((head, tail)) => {
            let alnum = |part: &str| part.chars().filter(char::is_ascii_alphanumeric).count();
            alnum(head) >= 2 && alnum(tail) >= 2
        }
        None => false,
    })
}

fn has_shape(part: &str) -> bool {
    SHAPES.iter().any(|shape| {
        part.strip_prefix(shape).is_some_and(|tail| {
            tail.len() >= 24 || tail.len() >= MIN_TAIL && tail.bytes().any(|byte| byte.is_ascii_digit())
        })
    })
}

fn has_inner_shape(lower: &str) -> bool {
    lower.match_indices("sk-").any(|(at, _)| lower.len() - at >= 24)
}

/// The pieces by which a part of the key is recognized. Keys share their beginnings with prose about them
/// ("sk-proj-"), so that a piece without a digit must lie beyond.
fn pieces(key: &str) -> HashSet<&[u8]> {
    if key.len() < 2 * PIECE {
        return HashSet::new();
    }
    let windows = key.as_bytes().windows(PIECE).enumerate();
    windows
        .filter(|(at, piece)| *at >= PIECE / 2 || piece.iter().any(u8::is_ascii_digit))
        .map(|(_, piece)| piece)
        .collect()
}
