//! Makes a provider's words fit to store, log and show: no key, no control characters, bounded.
//!
//! Not its job: reading what they mean. Invariant: a text that holds the key in one of the forms of [`KeyEcho`] is never
//! shown, nor is a part of it.

use zeroize::Zeroizing;

/// Characters that are kept.
const MAX_SHOWN: usize = 400;
/// Bytes that are looked at; what lies beyond is never shown.
const MAX_READ: usize = 8 * 1024;
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

/// What stands in place of a message that repeats the key.
const REPEATED: &str = "the answer repeats the key";

/// Makes a text fit to show: without the key in any form, without words that look like keys, without control
/// characters, bounded. A text that repeats the key in any form ([`KeyEcho`]) is dropped as a whole: what is left of
/// it when one word is masked may be the rest of the key. Only a leading `HTTP 401` stays.
pub fn redact(text: &str, key: &str) -> String {
    let text = head(text, MAX_READ);
    // What the provider has masked itself says which key it means, and no more.
    let text = mask_words(text, is_masked);
    if KeyEcho::of(key).is_in(&text) {
        return match status(&text) {
            Some(status) => format!("{status}: {REPEATED}"),
            None => REPEATED.to_owned(),
        };
    }
    let text = mask_words(&text, looks_like_key);
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

/// At most so many bytes from the beginning.
fn head(text: &str, most: usize) -> &str {
    text.get(..text.floor_char_boundary(most.min(text.len()))).unwrap_or_default()
}

/// The `HTTP 401` that we put before what a provider says.
fn status(text: &str) -> Option<&str> {
    let head = text.get(..8)?;
    let code = head.strip_prefix("HTTP ")?;
    (code.bytes().all(|byte| byte.is_ascii_digit()) && !text[8..].starts_with(|c: char| c.is_ascii_digit()))
        .then_some(head)
}

const fn is_invisible(c: char) -> bool {
    matches!(c, '\u{ad}' | '\u{34f}' | '\u{61c}' | '\u{180e}' | '\u{e0000}'..='\u{e007f}' | '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}')
}

/// Characters of which keys and their masked forms consist.
fn is_key_char(c: char) -> bool {
    c.is_ascii_alphanumeric()
        || matches!(c, '-' | '_' | '.' | '*' | '+' | '/' | '=' | '~' | '…' | '•' | '●' | '·' | '%')
}

fn mask_words(text: &str, is_secret: impl Fn(&str) -> bool) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(start) = rest.find(is_key_char) {
        let (before, from) = rest.split_at(start);
        out.push_str(before);
        let end = from.find(|c| !is_key_char(c)).unwrap_or(from.len());
        let (word, after) = from.split_at(end);
        // A full stop or dots that end a sentence belong to the sentence.
        let core = word.trim_end_matches(['.', '/', '=']);
        if is_secret(core) {
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

/// `sk-proj-****xyz`, `c19094f...o8ub`.
fn is_masked(word: &str) -> bool {
    let masked = word.contains("***") || word.contains('•') || word.contains('●') || is_elided(word);
    masked && word.chars().any(|c| c.is_ascii_alphanumeric())
}

/// Any part of a word may be a key: `key=sk-…`, `https://host/sk-…`.
fn looks_like_key(word: &str) -> bool {
    let lower = word.to_ascii_lowercase();
    word.split(['=', '/']).any(has_shape) || (lower.contains("sk-") && has_inner_shape(&lower))
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

/// Finds a secret in another program's text, however it is written there.
///
/// Both are compared in a normal form: ASCII letters and digits alone, in lower case, full-width ones as plain ones.
/// The text is also read as what its escapes (`%XX`, `\uXXXX`, `\xXX`, `&#NN;`), its base64 and its hexadecimal digits stand
/// for. A run of [`GRAM`] characters in common, forwards or backwards, is a hit: fewer are what previews show anyway. An
/// encoding other than these is not recognized.
pub struct KeyEcho {
    /// As it stands; for secrets with few letters and digits. Empty: there is nothing to find.
    literal: Zeroizing<String>,
    /// Length of the runs; 0: the normal form is too short to be compared.
    gram: usize,
    /// Runs, as numbers; a secret's own, therefore wiped.
    runs: Zeroizing<Vec<u64>>,
    /// The whole normal form.
    normal: Zeroizing<Vec<u8>>,
}

/// Characters in common that are a hit: by chance 40 of a random key meet in a message of 1,000 letters once in
/// 50,000 times.
const GRAM: usize = 6;
/// Shorter secrets are words such as `none`: no message could be shown.
const MIN_SECRET: usize = 4;
/// Shorter ones (`ollama`, `local-key`) are no secrets that a name would betray; only the whole of them is one.
const MIN_NAME: usize = 12;
/// Beginnings that say only whose key it is, longest first within a family, beside [`SHAPES`].
const PUBLIC: &[&str] = &[
    "sk-ant-api03-",
    "sk-ant-oat01-",
    "sk-ant-admin01-",
    "sk-svcacct-",
    "sk-proj-",
    "sk-or-v1-",
    "sk-lf-",
    "Bearer ",
];
/// Words of prose about keys, in normal form: runs within them say nothing.
const PROSE: &[&str] = &[
    "incorrectapikeyprovided",
    "invalidapikeyprovided",
    "invalidauthenticationtoken",
    "missingapikey",
    "theapikeyisnotvalid",
    "accesstokenexpired",
    "secretkey",
    "authorizationheader",
    "bearertoken",
    "unauthorizedforbidden",
];

impl KeyEcho {
    /// `secret` may be empty; then nothing is ever found.
    pub fn of(secret: &str) -> Self {
        let secret = crate::wire::clean_key(secret);
        let nothing = secret.chars().count() < MIN_SECRET;
        let literal = Zeroizing::new(if nothing { String::new() } else { secret.to_owned() });
        let normal = Zeroizing::new(normal(secret.as_bytes()));
        let public = PUBLIC.iter().chain(SHAPES).find_map(|shape| secret.strip_prefix(shape));
        let own = public.map(|rest| Zeroizing::new(self::normal(rest.as_bytes())));
        let own = own.filter(|own| own.len() >= 2 * GRAM).unwrap_or_else(|| normal.clone());
        // Of a short secret a half is a hit.
        let gram =
            if nothing || own.len() < MIN_SECRET { 0 } else { (own.len() / 2).clamp(MIN_SECRET, GRAM) };
        let mut runs = Zeroizing::new(Vec::with_capacity(2 * own.len()));
        if gram > 0 {
            let is_prose =
                |run: &[u8]| PROSE.iter().any(|word| word.as_bytes().windows(run.len()).any(|it| it == run));
            for run in own.windows(gram).filter(|run| !is_prose(run)) {
                runs.push(run.iter().fold(0, |number, byte| number << 8 | u64::from(*byte)));
                runs.push(run.iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte)));
            }
            runs.sort_unstable();
            runs.dedup();
        }
        Self { literal, gram, runs, normal }
    }

    /// Whether the text repeats the secret, or a piece of it. Linear in the text.
    pub fn is_in(&self, text: &str) -> bool {
        if self.literal.is_empty() {
            return false;
        }
        let plain = unescaped(text);
        let mut found = self.meets(text.as_bytes()) || self.meets(plain.as_bytes());
        found = found || text.contains(&*self.literal) || plain.contains(&*self.literal);
        found || self.is_encoded(text.as_bytes()) || plain != text && self.is_encoded(plain.as_bytes())
    }

    /// As [`Self::is_in`], for the name of something: a secret that is a plain word of few letters may stand in it.
    pub fn is_in_name(&self, name: &str) -> bool {
        if self.normal.len() >= MIN_NAME {
            self.is_in(name)
        } else {
            !self.literal.is_empty() && (name == &**self.literal || normal(name.as_bytes()) == *self.normal)
        }
    }

    /// Base64 of both alphabets from every position of four, and hexadecimal digits from both of two: whatever stands
    /// before and between.
    fn is_encoded(&self, text: &[u8]) -> bool {
        let standard = |byte: u8| match byte {
            b'A'..=b'Z' => Some(byte - b'A'),
            b'a'..=b'z' => Some(byte - b'a' + 26),
            b'0'..=b'9' => Some(byte - b'0' + 52),
            b'+' => Some(62),
            b'/' => Some(63),
            _ => None,
        };
        let url_safe = |byte: u8| match byte {
            b'-' => Some(62),
            b'_' => Some(63),
            byte => standard(byte),
        };
        let hexadecimal = |byte: u8| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
        self.is_coded(text, 6, standard) || self.is_coded(text, 6, url_safe) || {
            let text = String::from_utf8_lossy(text).replace("0x", "");
            self.is_coded(text.as_bytes(), 4, hexadecimal)
        }
    }

    /// Characters that stand for `bits` bits each; others are passed over.
    fn is_coded(&self, text: &[u8], bits: u32, value: impl Fn(u8) -> Option<u8>) -> bool {
        let digits: Vec<u8> = text.iter().filter_map(|byte| value(*byte)).collect();
        // So many characters fill whole bytes.
        let period = if bits == 6 { 4 } else { 2 };
        (0..period).any(|start| {
            let mut bytes = Vec::with_capacity(digits.len());
            let (mut held, mut count) = (0_u32, 0);
            for digit in digits.iter().skip(start) {
                held = held << bits | u32::from(*digit);
                count += bits;
                if count >= 8 {
                    count -= 8;
                    bytes.push((held >> count) as u8);
                    held &= (1 << count) - 1;
                }
            }
            self.meets(&bytes) || memmem(&bytes, self.literal.as_bytes())
        })
    }

    /// Whether the normal form of these bytes has a run in common with the secret's.
    fn meets(&self, bytes: &[u8]) -> bool {
        if self.gram == 0 {
            return false;
        }
        let mask = if self.gram >= 8 { u64::MAX } else { (1 << (8 * self.gram)) - 1 };
        let mut number = 0;
        normal(bytes).iter().enumerate().any(|(at, byte)| {
            number = (number << 8 | u64::from(*byte)) & mask;
            at + 1 >= self.gram && self.runs.binary_search(&number).is_ok()
        })
    }
}

fn memmem(text: &[u8], word: &[u8]) -> bool {
    !word.is_empty() && text.windows(word.len()).any(|it| it == word)
}

/// ASCII letters and digits alone, in lower case.
fn normal(bytes: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(bytes.len());
    let mut rest = bytes;
    while let Some((first, after)) = rest.split_first() {
        rest = match rest {
            // Full-width forms, U+FF01 to U+FF5E, in UTF-8.
            [0xEF, 0xBC, third @ 0x81..=0xBF, tail @ ..] => {
                push_normal(&mut out, third - 0x81 + b'!');
                tail
            }
            [0xEF, 0xBD, third @ 0x80..=0x9E, tail @ ..] => {
                push_normal(&mut out, third - 0x80 + b'`');
                tail
            }
            _ => {
                push_normal(&mut out, *first);
                after
            }
        };
    }
    out
}

fn push_normal(out: &mut Vec<u8>, byte: u8) {
    if byte.is_ascii_alphanumeric() {
        out.push(byte.to_ascii_lowercase());
    }
}

/// How often what was unescaped is looked at again: `%2573` stands for `%73` stands for `s`.
const MAX_NESTED: usize = 3;

/// What the escapes in a text stand for.
fn unescaped(text: &str) -> String {
    let mut text = text.to_owned();
    if !text.contains(['%', '=', '\\', '&']) {
        return text;
    }
    for _ in 0..MAX_NESTED {
        let bytes = text.as_bytes();
        let mut out: Vec<u8> = Vec::with_capacity(bytes.len());
        let mut at = 0;
        while let Some(first) = bytes.get(at) {
            match escape(&bytes[at..]) {
                Some((length, Code::Byte(byte))) => {
                    out.push(byte);
                    at += length;
                }
                Some((length, Code::Char(c))) => {
                    out.extend(c.encode_utf8(&mut [0; 4]).bytes());
                    at += length;
                }
                None => {
                    out.push(*first);
                    at += 1;
                }
            }
        }
        let out = String::from_utf8(out)
            .unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned());
        if out == text {
            break;
        }
        text = out;
    }
    text
}

enum Code {
    Byte(u8),
    Char(char),
}

/// The escape at the beginning, and its length in bytes.
fn escape(text: &[u8]) -> Option<(usize, Code)> {
    let digits = |from: usize, most: usize, radix: u32| -> Option<(usize, u32)> {
        let digits =
            text.get(from..)?.iter().take(most).take_while(|byte| char::from(**byte).is_digit(radix));
        let (count, value) = digits.fold((0, 0_u32), |(count, value), byte| {
            let digit = char::from(*byte).to_digit(radix).unwrap_or_default();
            (count + 1, value.saturating_mul(radix).saturating_add(digit))
        });
        (count > 0).then_some((count, value))
    };
    let exactly = |from: usize, count: usize| digits(from, count, 16).filter(|(found, _)| *found == count);
    let byte = |length: usize, value: u32| u8::try_from(value).ok().map(|byte| (length, Code::Byte(byte)));
    let char = |length: usize, value: u32| char::from_u32(value).map(|c| (length, Code::Char(c)));
    match text {
        [b'%' | b'=', ..] if exactly(1, 2).is_some() => byte(3, exactly(1, 2)?.1),
        [b'%', b'u', ..] | [b'\\', b'u' | b'U', ..] => {
            if text.get(2) == Some(&b'{') {
                let (count, value) = digits(3, 6, 16)?;
                (text.get(3 + count) == Some(&b'}')).then(|| char(4 + count, value))?
            } else {
                // `\U` of Python has eight digits, `\u` four.
                let long = exactly(2, 8).filter(|_| text.get(1) == Some(&b'U'));
                let (count, value) = long.or_else(|| exactly(2, 4))?;
                char(2 + count, value)
            }
        }
        [b'\\', b'x' | b'X', ..] => byte(4, exactly(2, 2)?.1),
        [b'\\', b'0'..=b'3', ..] => {
            let (count, value) = digits(1, 3, 8).filter(|(count, _)| *count == 3)?;
            byte(1 + count, value)
        }
        [b'&', b'#', b'x' | b'X', ..] => {
            let (count, value) = digits(3, 7, 16)?;
            char(3 + count + usize::from(text.get(3 + count) == Some(&b';')), value)
        }
        [b'&', b'#', ..] => {
            let (count, value) = digits(2, 8, 10)?;
            char(2 + count + usize::from(text.get(2 + count) == Some(&b';')), value)
        }
        _ => None,
    }
}
