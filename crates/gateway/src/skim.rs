//! One forward look over a request's body: where the top-level fields stand that decide, and that the whole is JSON.
//!
//! Not its job: what the fields mean (`ask`), changing them (`splice`), looking into messages beyond their size.
//!
//! Invariants: nothing is built from the body but ranges and short words; one byte is looked at a bounded number of
//! times; what is accepted here is one JSON object that every parser reads alike (no key twice, whatever its escapes).

use std::borrow::Cow;
use std::ops::Range;

/// Levels of nesting; serde_json's own limit, so that whatever parses the body later can.
pub const DEPTH_MAX: u32 = 128;
/// A string longer than this without a space among its first bytes is a picture or a file in base64, not text.
const MEDIA_MIN: usize = 1024;
/// How far such a string is looked at.
const MEDIA_LOOK: usize = 64;
/// Above this many top-level fields they are sorted to find equal ones; below it comparing each pair is faster.
const PAIRWISE: usize = 24;

macro_rules! fields {
    ($($(#[$meta:meta])* $variant:ident = $word:literal),+ $(,)?) => {
        /// The top-level fields that the gateway looks at, over all dialects.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum BodyField { $($(#[$meta])* $variant),+ }

        impl BodyField {
            /// All of them, in the order of their discriminants.
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];

            /// The key as it stands in a body.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $word),+ }
            }

            fn of(key: &[u8]) -> Option<Self> {
                match std::str::from_utf8(key).ok()? { $($word => Some(Self::$variant),)+ _ => None }
            }
        }
    };
}

fields! {
    Model = "model",
    Stream = "stream",
    StreamOptions = "stream_options",
    MaxTokens = "max_tokens",
    MaxCompletionTokens = "max_completion_tokens",
    MaxOutputTokens = "max_output_tokens",
    N = "n",
    Temperature = "temperature",
    User = "user",
    Metadata = "metadata",
    PowerLevel = "power_level",
    TaskType = "task_type",
    PrivacyRequired = "privacy_required",
    PromptCacheKey = "prompt_cache_key",
    SessionId = "session_id",
    Messages = "messages",
    Input = "input",
    Prompt = "prompt",
    System = "system",
    Instructions = "instructions",
    Tools = "tools",
    Functions = "functions",
    ResponseFormat = "response_format",
    Text = "text",
    PreviousResponseId = "previous_response_id",
    Conversation = "conversation",
    Background = "background",
}

/// What the model reads: together they give the size of the input.
const READ_BY_MODEL: [BodyField; 9] = [
    BodyField::Messages,
    BodyField::Input,
    BodyField::Prompt,
    BodyField::System,
    BodyField::Instructions,
    BodyField::Tools,
    BodyField::Functions,
    BodyField::ResponseFormat,
    BodyField::Text,
];

/// Fields that only the gateway understands; no provider sees them.
pub const OWN_FIELDS: [BodyField; 4] =
    [BodyField::PowerLevel, BodyField::TaskType, BodyField::PrivacyRequired, BodyField::SessionId];

/// Why a body is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SkimError {
    /// Not one JSON object.
    #[error("the body is no valid JSON at byte {at}: {what}")]
    Json {
        /// Offset of the first byte that does not fit.
        at: usize,
        /// What was wrong there.
        what: &'static str,
    },
    /// JSON, but an array or a word.
    #[error("the body is no JSON object")]
    NoObject,
    /// A top-level key twice: two readers could read two requests.
    #[error("the field `{0}` stands twice")]
    Duplicate(String),
    /// A field that decides is of a type that it cannot be.
    #[error("the field `{}` must be {wanted}", .field.as_str())]
    Type {
        /// Which.
        field: BodyField,
        /// What it must be.
        wanted: &'static str,
    },
}

/// One member of an object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BodyMember {
    /// Place among the members, from 0.
    pub ordinal: usize,
    /// From the key's opening quote.
    pub start: usize,
    /// The value, without spaces around it.
    pub value: Range<usize>,
    /// End of the value before; `None` for the first.
    pub before: Option<usize>,
    /// Opening quote of the next key; `None` for the last.
    pub next: Option<usize>,
}

/// Where things stand in one body.
#[derive(Debug, Clone)]
pub struct Skim {
    /// Those that stand in the body, in its order.
    fields: Vec<(BodyField, BodyMember)>,
    /// After the opening brace.
    pub(crate) inside: usize,
    /// Number of members.
    pub(crate) members: usize,
    media_bytes: u64,
    /// Pictures, sounds and files inside what the model reads.
    pub media_parts: u64,
}

impl Skim {
    /// Looks over a body once.
    ///
    /// # Errors
    /// No JSON object, deeper than [`DEPTH_MAX`], no UTF-8, or a key twice.
    pub fn of(body: &[u8]) -> Result<Self, SkimError> {
        if let Err(error) = std::str::from_utf8(body) {
            return Err(SkimError::Json { at: error.valid_up_to(), what: "no UTF-8" });
        }
        let mut fields: Vec<(BodyField, BodyMember)> = Vec::with_capacity(8);
        let mut keys: Vec<Cow<'_, [u8]>> = Vec::with_capacity(16);
        // The member before was a known field.
        let mut known = false;
        let mut media = Media::default();
        let (inside, members) = walk(body, &mut media, &mut |key, member| {
            if std::mem::take(&mut known)
                && let Some((_, before)) = fields.last_mut()
            {
                before.next = Some(member.start);
            }
            let key = unescaped(key);
            if let Some(field) = BodyField::of(&key) {
                known = true;
                fields.push((field, member));
            }
            keys.push(key);
        })?;
        no_key_twice(keys)?;
        Ok(Self { fields, inside, members, media_bytes: media.bytes, media_parts: media.parts })
    }

    /// Where a field stands.
    pub fn member(&self, field: BodyField) -> Option<&BodyMember> {
        self.fields.iter().find(|(found, _)| *found == field).map(|(_, member)| member)
    }

    /// The bytes of a field's value; `None` where it is absent or null.
    pub fn value<'a>(&self, body: &'a [u8], field: BodyField) -> Option<&'a [u8]> {
        let value = body.get(self.member(field)?.value.clone())?;
        (value != b"null").then_some(value)
    }

    /// A text.
    ///
    /// # Errors
    /// It is something else, or holds half a surrogate pair.
    pub fn text<'a>(&self, body: &'a [u8], field: BodyField) -> Result<Option<Cow<'a, str>>, SkimError> {
        let Some(value) = self.value(body, field) else { return Ok(None) };
        text_of(value).map(Some).ok_or(SkimError::Type { field, wanted: "a text" })
    }

    /// True or false; absent and null are false.
    ///
    /// # Errors
    /// It is something else.
    pub fn flag(&self, body: &[u8], field: BodyField) -> Result<bool, SkimError> {
        match self.value(body, field) {
            None | Some(b"false") => Ok(false),
            Some(b"true") => Ok(true),
            Some(_) => Err(SkimError::Type { field, wanted: "true or false" }),
        }
    }

    /// A count; a fraction is rounded up, as it is where it is reserved for.
    ///
    /// # Errors
    /// It is something else, or negative.
    pub fn count(&self, body: &[u8], field: BodyField) -> Result<Option<u64>, SkimError> {
        let Some(value) = self.value(body, field) else { return Ok(None) };
        let wrong = SkimError::Type { field, wanted: "a whole number" };
        let text = std::str::from_utf8(value).map_err(|_| wrong.clone())?;
        if let Ok(number) = text.parse::<u64>() {
            return Ok(Some(number));
        }
        match text.parse::<f64>() {
            // `as` saturates, which is right for a limit.
            Ok(number) if number >= 0.0 => Ok(Some(number.ceil() as u64)),
            _ => Err(wrong),
        }
    }

    /// The largest of the names for the most tokens of an answer.
    ///
    /// # Errors
    /// One of them is no count.
    pub fn max_tokens(&self, body: &[u8]) -> Result<Option<u64>, SkimError> {
        let mut most = None;
        for field in [BodyField::MaxTokens, BodyField::MaxCompletionTokens, BodyField::MaxOutputTokens] {
            most = most.max(self.count(body, field)?);
        }
        Ok(most)
    }

    /// `stream_options.include_usage`.
    pub fn wants_usage(&self, body: &[u8]) -> bool {
        self.value(body, BodyField::StreamOptions)
            .and_then(|options| {
                value_in(options, "include_usage").map(|(value, _)| options.get(value) == Some(b"true"))
            })
            .unwrap_or(false)
    }

    /// Anthropic's `metadata.user_id`.
    pub fn metadata_user<'a>(&self, body: &'a [u8]) -> Option<Cow<'a, str>> {
        let metadata = self.value(body, BodyField::Metadata)?;
        let (value, _) = value_in(metadata, "user_id")?;
        text_of(metadata.get(value)?)
    }

    /// Bytes of what the model shall read: messages, input, prompt, system text, tools and formats, without pictures,
    /// sounds and files.
    pub fn text_bytes(&self) -> u64 {
        let all: u64 = READ_BY_MODEL
            .iter()
            .filter_map(|field| self.member(*field))
            .map(|member| member.value.len() as u64)
            .sum();
        all.saturating_sub(self.media_bytes)
    }
}

/// A member of a small object by its plain key: its value, and the offset after the opening brace. The object is part
/// of a body that was looked over already.
pub(crate) fn value_in(object: &[u8], name: &str) -> Option<(Range<usize>, usize)> {
    let mut found = None;
    let (inside, _) = walk(object, &mut Media::default(), &mut |key, member| {
        if unescaped(key).as_ref() == name.as_bytes() {
            found = Some(member.value);
        }
    })
    .ok()?;
    found.map(|value| (value, inside))
}

/// A JSON text decoded; `None` if it is not valid.
pub(crate) fn text_of(value: &[u8]) -> Option<Cow<'_, str>> {
    let inner = value.strip_prefix(b"\"")?.strip_suffix(b"\"")?;
    if memchr::memchr(b'\\', inner).is_none() {
        return std::str::from_utf8(inner).ok().map(Cow::Borrowed);
    }
    serde_json::from_slice::<String>(value).ok().map(Cow::Owned)
}

/// A key without its escapes. Half a surrogate pair, which no text can hold, stays as it is written: it is no known
/// field, and equal to itself.
fn unescaped(key: &[u8]) -> Cow<'_, [u8]> {
    if memchr::memchr(b'\\', key).is_none() {
        return Cow::Borrowed(key);
    }
    let mut quoted = Vec::with_capacity(key.len() + 2);
    quoted.push(b'"');
    quoted.extend_from_slice(key);
    quoted.push(b'"');
    match serde_json::from_slice::<String>(&quoted) {
        Ok(text) => Cow::Owned(text.into_bytes()),
        Err(_) => Cow::Borrowed(key),
    }
}

fn no_key_twice(mut keys: Vec<Cow<'_, [u8]>>) -> Result<(), SkimError> {
    let duplicate = |key: &[u8]| {
        let key = String::from_utf8_lossy(key.get(..key.len().min(80)).unwrap_or(key)).into_owned();
        Err(SkimError::Duplicate(key))
    };
    if keys.len() <= PAIRWISE {
        for (at, key) in keys.iter().enumerate() {
            if keys.iter().take(at).any(|earlier| earlier == key) {
                return duplicate(key);
            }
        }
        return Ok(());
    }
    keys.sort_unstable();
    match keys.windows(2).find(|pair| matches!(pair, [a, b] if a == b)) {
        Some([key, _]) => duplicate(key),
        _ => Ok(()),
    }
}

/// Pictures, sounds and files that were passed by.
#[derive(Default)]
struct Media {
    bytes: u64,
    parts: u64,
}

impl Media {
    fn long_string(&mut self, text: &[u8]) {
        let look = text.get(..MEDIA_LOOK).unwrap_or(text);
        let base64 =
            |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'/' | b'-' | b'_' | b'=');
        if look.starts_with(b"data:") || look.iter().all(base64) {
            self.bytes += text.len() as u64;
        }
    }

    fn kind(&mut self, word: &[u8]) {
        const KINDS: [&[u8]; 9] = [
            b"image_url",
            b"image",
            b"input_image",
            b"input_audio",
            b"audio",
            b"video_url",
            b"file",
            b"input_file",
            b"document",
        ];
        if KINDS.contains(&word) {
            self.parts += 1;
        }
    }
}

/// Walks over the members of one object, which is all that `bytes` holds but for spaces. Returns the offset after the
/// opening brace and the number of members.
fn walk<'a>(
    bytes: &'a [u8],
    media: &mut Media,
    on: &mut dyn FnMut(&'a [u8], BodyMember),
) -> Result<(usize, usize), SkimError> {
    let mut at = spaces(bytes, 0);
    if bytes.get(at) != Some(&b'{') {
        // Not an object: say which of the two it is.
        let end = skip(bytes, at, 0, media)?;
        return match bytes.get(spaces(bytes, end)) {
            None => Err(SkimError::NoObject),
            Some(_) => Err(SkimError::Json { at: spaces(bytes, end), what: "more than one value" }),
        };
    }
    let inside = at + 1;
    at = spaces(bytes, inside);
    let mut ordinal = 0;
    let mut before = None;
    if bytes.get(at) == Some(&b'}') {
        at += 1;
    } else {
        loop {
            let start = at;
            if bytes.get(at) != Some(&b'"') {
                return Err(SkimError::Json { at, what: "expected a key in quotes" });
            }
            let key_end = string_end(bytes, at + 1)?;
            let key = bytes.get(at + 1..key_end).unwrap_or_default();
            at = spaces(bytes, key_end + 1);
            if bytes.get(at) != Some(&b':') {
                return Err(SkimError::Json { at, what: "expected a colon" });
            }
            let value = spaces(bytes, at + 1);
            let end = skip(bytes, value, 1, media)?;
            on(key, BodyMember { ordinal, start, value: value..end, before, next: None });
            ordinal += 1;
            before = Some(end);
            at = spaces(bytes, end);
            match bytes.get(at) {
                Some(b',') => at = spaces(bytes, at + 1),
                Some(b'}') => {
                    at += 1;
                    break;
                }
                _ => return Err(SkimError::Json { at, what: "expected a comma or the end of the object" }),
            }
        }
    }
    at = spaces(bytes, at);
    match bytes.get(at) {
        None => Ok((inside, ordinal)),
        Some(_) => Err(SkimError::Json { at, what: "something after the object" }),
    }
}

/// The offset after the value that begins at `at`, inside `outer` containers.
fn skip(bytes: &[u8], mut at: usize, outer: u32, media: &mut Media) -> Result<usize, SkimError> {
    // One bit per open container, the innermost lowest: 1 is an object.
    let mut open: u128 = 0;
    let mut depth = 0u32;
    // The key before was `type`.
    let mut kind = false;
    loop {
        // A value begins at `at`.
        match bytes.get(at) {
            Some(b'"') => {
                let end = string_end(bytes, at + 1)?;
                let text = bytes.get(at + 1..end).unwrap_or_default();
                if kind {
                    media.kind(text);
                } else if text.len() >= MEDIA_MIN {
                    media.long_string(text);
                }
                at = end + 1;
            }
            Some(bracket @ (b'{' | b'[')) => {
                depth += 1;
                if depth + outer > DEPTH_MAX {
                    return Err(SkimError::Json { at, what: "nested deeper than 128 levels" });
                }
                let object = *bracket == b'{';
                open = open << 1 | u128::from(object);
                at = spaces(bytes, at + 1);
                let close = if object { b'}' } else { b']' };
                if bytes.get(at) == Some(&close) {
                    at += 1;
                    depth -= 1;
                    open >>= 1;
                } else {
                    if object {
                        (at, kind) = key(bytes, at)?;
                    } else {
                        kind = false;
                    }
                    continue;
                }
            }
            Some(b't') => at = word(bytes, at, b"true")?,
            Some(b'f') => at = word(bytes, at, b"false")?,
            Some(b'n') => at = word(bytes, at, b"null")?,
            Some(b'-' | b'0'..=b'9') => at = number(bytes, at)?,
            Some(_) => return Err(SkimError::Json { at, what: "expected a value" }),
            None => return Err(SkimError::Json { at, what: "it ends too early" }),
        }
        // A value ended before `at`: what closes, or what follows.
        loop {
            if depth == 0 {
                return Ok(at);
            }
            at = spaces(bytes, at);
            let object = open & 1 == 1;
            match bytes.get(at) {
                Some(b',') => {
                    at = spaces(bytes, at + 1);
                    if object {
                        (at, kind) = key(bytes, at)?;
                    } else {
                        kind = false;
                    }
                    break;
                }
                Some(b'}') if object => {}
                Some(b']') if !object => {}
                Some(_) => return Err(SkimError::Json { at, what: "expected a comma or an end" }),
                None => return Err(SkimError::Json { at, what: "it ends too early" }),
            }
            at += 1;
            depth -= 1;
            open >>= 1;
        }
    }
}

/// Passes a key and its colon: the offset of the value, and whether the key is `type`.
fn key(bytes: &[u8], at: usize) -> Result<(usize, bool), SkimError> {
    if bytes.get(at) != Some(&b'"') {
        return Err(SkimError::Json { at, what: "expected a key in quotes" });
    }
    let end = string_end(bytes, at + 1)?;
    let kind = bytes.get(at + 1..end) == Some(b"type");
    let colon = spaces(bytes, end + 1);
    if bytes.get(colon) != Some(&b':') {
        return Err(SkimError::Json { at: colon, what: "expected a colon" });
    }
    Ok((spaces(bytes, colon + 1), kind))
}

fn spaces(bytes: &[u8], mut at: usize) -> usize {
    while let Some(b' ' | b'\n' | b'\r' | b'\t') = bytes.get(at) {
        at += 1;
    }
    at
}

fn word(bytes: &[u8], at: usize, word: &'static [u8]) -> Result<usize, SkimError> {
    match bytes.get(at..at + word.len()) == Some(word) {
        true => Ok(at + word.len()),
        false => Err(SkimError::Json { at, what: "expected a value" }),
    }
}

fn number(bytes: &[u8], start: usize) -> Result<usize, SkimError> {
    let digits = |mut at: usize| {
        let from = at;
        while bytes.get(at).is_some_and(u8::is_ascii_digit) {
            at += 1;
        }
        if at == from { Err(SkimError::Json { at, what: "expected a digit" }) } else { Ok(at) }
    };
    let mut at = start + usize::from(bytes.get(start) == Some(&b'-'));
    at = if bytes.get(at) == Some(&b'0') { at + 1 } else { digits(at)? };
    if bytes.get(at) == Some(&b'.') {
        at = digits(at + 1)?;
    }
    if let Some(b'e' | b'E') = bytes.get(at) {
        at += 1;
        at += usize::from(matches!(bytes.get(at), Some(b'+' | b'-')));
        at = digits(at)?;
    }
    Ok(at)
}

/// The closing quote of the string whose first byte is at `at`.
fn string_end(bytes: &[u8], mut at: usize) -> Result<usize, SkimError> {
    loop {
        at += plain_run(bytes.get(at..).unwrap_or_default());
        match bytes.get(at) {
            Some(b'"') => return Ok(at),
            Some(b'\\') => match bytes.get(at + 1) {
                Some(b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't') => at += 2,
                Some(b'u') => {
                    let digits = bytes.get(at + 2..at + 6);
                    if !digits.is_some_and(|digits| digits.iter().all(u8::is_ascii_hexdigit)) {
                        return Err(SkimError::Json { at, what: "a broken escape" });
                    }
                    at += 6;
                }
                _ => return Err(SkimError::Json { at, what: "a broken escape" }),
            },
            Some(_) => return Err(SkimError::Json { at, what: "a control character in a string" }),
            None => return Err(SkimError::Json { at, what: "it ends too early" }),
        }
    }
}

/// How many bytes at the beginning are neither a quote, a backslash nor a control character. Keys and short texts end
/// within the first words; of longer ones the end is found first, and then whether a control character lies before it:
/// both by vector instructions, so that long prompts pass at the speed of memory.
pub(crate) fn plain_run(bytes: &[u8]) -> usize {
    if let Some(found) = special_in_words(bytes, 0, 4) {
        return found;
    }
    let special = |byte: u8| (byte < 0x20) | (byte == b'"') | (byte == b'\\');
    let passed = (4 * WORD).min(bytes.len() / WORD * WORD);
    let rest = bytes.get(passed..).unwrap_or_default();
    if rest.len() < WORD {
        return passed + rest.iter().position(|byte| special(*byte)).unwrap_or(rest.len());
    }
    let rest = rest.get(..memchr::memchr2(b'"', b'\\', rest).unwrap_or(rest.len())).unwrap_or_default();
    passed + first_control(rest).unwrap_or(rest.len())
}

/// The place of the first control character.
fn first_control(bytes: &[u8]) -> Option<usize> {
    const BLOCK: usize = 128;
    let mut passed = 0;
    for block in bytes.chunks_exact(BLOCK) {
        if block.iter().fold(u8::MAX, |least, byte| least.min(*byte)) < 0x20 {
            break;
        }
        passed += BLOCK;
    }
    let rest = bytes.get(passed..).unwrap_or_default();
    rest.iter().position(|byte| *byte < 0x20).map(|at| passed + at)
}

const WORD: usize = 8;

/// The place of the first special byte in so many whole words from `from` on.
fn special_in_words(bytes: &[u8], from: usize, words: usize) -> Option<usize> {
    const ONES: u64 = 0x0101_0101_0101_0101;
    const HIGH: u64 = 0x8080_8080_8080_8080;
    let mut at = from;
    for _ in 0..words {
        let word = u64::from_le_bytes(*bytes.get(at..)?.first_chunk()?);
        // The classic tests for "some byte is zero" and "some byte is less": exact for the lowest byte that they find,
        // which is the first one here.
        let zero = |word: u64| word.wrapping_sub(ONES) & !word & HIGH;
        let less = word.wrapping_sub(ONES * 0x20) & !word & HIGH;
        let hit = zero(word ^ (ONES * 0x22)) | zero(word ^ (ONES * 0x5c)) | less;
        if hit != 0 {
            return Some(at + hit.trailing_zeros() as usize / 8);
        }
        at += WORD;
    }
    None
}

#[cfg(test)]
mod tests;
