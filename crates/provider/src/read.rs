//! Reads an error reply: the body decides before the status, and a type's own habits before the general rule.

use serde_json::Value;

use super::{
    KeyVerdict, Reply,
    markers::{self, INVALID, OVERLOAD, QUOTA, RATE, REFUSED, RESTRICTED},
};
use crate::{
    ProviderType as P,
    family::{ErrorHabits, family},
};

/// Characters of a provider's message that are kept.
const MAX_SAID: usize = 1024;
/// Lines of a stream that are searched for an error.
const MAX_LINES: usize = 64;

/// What an error body says, whatever its shape.
#[derive(Debug, Default)]
pub(super) struct ErrorSaid {
    /// Codes, types and statuses, lower case.
    pub codes: Vec<String>,
    /// Messages, as written.
    pub message: String,
    /// Messages and codes, lower case: what markers are looked for in.
    pub text: String,
    /// An error is present in the body, whatever the status.
    pub is_error: bool,
    /// A page for people: some gateway in between, not the API.
    pub is_page: bool,
    /// A proxy in between wants a user name and a password (`WWW-Authenticate: Basic` and the like, and no word of an
    /// API): that is not about the key.
    pub is_gate: bool,
    /// How the body is packed, so that it cannot be read.
    pub packed: Option<String>,
}

/// Schemes that no provider's API asks for: people's browsers and companies' proxies speak them.
const GATES: &[&str] = &["basic", "digest", "negotiate", "ntlm"];

impl ErrorSaid {
    pub(super) fn read(reply: &Reply<'_>) -> (Self, Option<Value>) {
        let mut said = Self::default();
        let json = reply.json();
        match &json {
            Some(json) => said.take(json),
            None => {
                said.packed = reply.packed().map(|with| with.chars().take(32).collect());
                if said.packed.is_none() {
                    said.take_text(reply);
                }
                let scheme = reply.header("www-authenticate").and_then(|asks| asks.split_whitespace().next());
                said.is_gate =
                    scheme.is_some_and(|scheme| GATES.iter().any(|it| scheme.eq_ignore_ascii_case(it)));
            }
        }
        said.message = said.message.chars().take(MAX_SAID).collect();
        said.text = format!("{} {}", said.message, said.codes.join(" ")).to_lowercase();
        (said, json)
    }

    fn code(&mut self, value: Option<&Value>) {
        match value {
            Some(Value::String(text)) if !text.is_empty() => {
                self.codes.push(text.chars().take(128).collect::<String>().to_lowercase());
            }
            Some(Value::Number(number)) => self.codes.push(number.to_string()),
            _ => {}
        }
    }

    fn say(&mut self, value: Option<&Value>) {
        let add = |message: &mut String, text: &str| {
            if !text.is_empty() && message.len() < 4 * MAX_SAID {
                if !message.is_empty() {
                    message.push_str("; ");
                }
                message.extend(text.chars().take(MAX_SAID));
            }
        };
        match value {
            Some(Value::String(text)) => add(&mut self.message, text.trim()),
            // A list of validation errors: `[{loc, msg, type}]`.
            Some(Value::Array(items)) => {
                for item in items.iter().take(4) {
                    let text = item.as_str().or_else(|| item.get("msg").and_then(Value::as_str));
                    add(&mut self.message, text.unwrap_or_default().trim());
                }
            }
            _ => {}
        }
    }

    fn take(&mut self, json: &Value) {
        // Google answers streams with a list of one error.
        let json = match json {
            Value::Array(items) if items.first().is_some_and(|item| item.get("error").is_some()) => &items[0],
            other => other,
        };
        let Value::Object(fields) = json else {
            if let Value::String(text) = json {
                self.say(Some(&Value::String(text.clone())));
            }
            return;
        };
        match fields.get("error") {
            Some(Value::String(text)) => {
                self.say(Some(&Value::String(text.clone())));
                self.is_error |= !text.is_empty();
            }
            Some(error @ Value::Object(inner)) => {
                self.is_error |= !inner.is_empty();
                for name in ["code", "type", "status"] {
                    self.code(error.get(name));
                }
                self.say(error.get("message"));
                for detail in error.get("details").and_then(Value::as_array).into_iter().flatten().take(16) {
                    self.code(detail.get("reason"));
                }
            }
            Some(Value::Bool(true)) => self.is_error = true,
            _ => {}
        }
        for name in ["code", "type", "status", "__type"] {
            self.code(fields.get(name));
        }
        for name in ["message", "Message", "detail", "title", "msg"] {
            self.say(fields.get(name));
        }
        if let Some(first) = fields.get("errors").and_then(Value::as_array).and_then(|errors| errors.first())
        {
            self.is_error = true;
            self.code(first.get("code"));
            self.say(first.get("message").or(Some(first)));
        }
        if let Some(fault) = fields.get("fault").filter(|fault| fault.is_object()) {
            self.is_error = true;
            self.say(fault.get("faultstring"));
        }
        if let Some(base) = fields.get("base_resp")
            && base.get("status_code").and_then(Value::as_i64).is_some_and(|code| code != 0)
        {
            self.is_error = true;
            self.code(base.get("status_code"));
            self.say(base.get("status_msg"));
        }
        let text = |name: &str| fields.get(name).and_then(Value::as_str);
        self.is_error |= text("type") == Some("error")
            || text("object") == Some("error")
            || fields.get("success").and_then(Value::as_bool) == Some(false);
    }

    fn take_text(&mut self, reply: &Reply<'_>) {
        let text =
            String::from_utf8_lossy(reply.body.get(..reply.body.len().min(64 * 1024)).unwrap_or_default());
        let text = text.trim_start_matches('\u{feff}').trim();
        let html =
            reply.header("content-type").is_some_and(|kind| kind.to_ascii_lowercase().contains("html"));
        if html || text.starts_with('<') {
            self.is_page = true;
            return;
        }
        // A stream of JSON lines keeps status 200 when it breaks off with an error.
        for line in text.lines().take(MAX_LINES) {
            let line = line.trim().strip_prefix("data:").unwrap_or(line).trim();
            if line.starts_with('{')
                && let Ok(json) = serde_json::from_str::<Value>(line)
                && json.get("error").is_some()
            {
                return self.take(&json);
            }
        }
        if !reply.is_success() {
            self.say(Some(&Value::String(text.chars().take(MAX_SAID).collect())));
        }
    }

    pub(super) fn has_code(&self, codes: &[&str]) -> bool {
        self.codes.iter().any(|code| codes.contains(&code.as_str()))
    }
}

/// What an error reply says about the key; `None` where the reply holds no error.
///
/// A success is never a proof here: that depends on which endpoint gave it.
pub fn read_error(kind: P, reply: &Reply<'_>) -> Option<KeyVerdict> {
    let (said, _) = ErrorSaid::read(reply);
    read_said(kind, reply.status, &said)
}

pub(super) fn read_said(kind: P, status: u16, said: &ErrorSaid) -> Option<KeyVerdict> {
    if (200..300).contains(&status) && !said.is_error {
        return None;
    }
    // Not the API's word, whatever the type is.
    if status == 401 && (said.is_page || said.is_gate || said.packed.is_some()) {
        return Some(KeyVerdict::Inconclusive { reason: reason(status, said) });
    }
    let family = family(kind);
    if let Some(retired) = family.retired {
        return Some(KeyVerdict::Untestable { reason: retired.into() });
    }
    let habits = &family.errors;
    Some(
        (habits.reads)(&Complaint { status, said })
            .or_else(|| general_markers(habits.own_billing, status, said))
            .unwrap_or_else(|| by_status(habits, status, said)),
    )
}

/// The provider's message with its status, for the operator.
fn reason(status: u16, said: &ErrorSaid) -> String {
    let words = if let Some(with) = &said.packed {
        format!("a packed answer (content-encoding: {with}), although none was asked for")
    } else if said.is_gate {
        "something in front of the provider asks for a user name and a password".into()
    } else if !said.message.is_empty() {
        said.message.clone()
    } else if !said.codes.is_empty() {
        said.codes.join(" ")
    } else if said.is_page {
        "a web page instead of an API answer".into()
    } else {
        return format!("HTTP {status}");
    };
    format!("HTTP {status}: {words}")
}

/// An error reply, as the habits of a family look at it. Each verdict comes with the provider's own words.
pub(crate) struct Complaint<'a> {
    pub status: u16,
    said: &'a ErrorSaid,
}

impl Complaint<'_> {
    /// Whether the words, in lower case, stand in a message or a code.
    pub fn has(&self, words: &str) -> bool {
        self.said.text.contains(words)
    }

    /// Whether one of the codes is given.
    pub fn has_code(&self, codes: &[&str]) -> bool {
        self.said.has_code(codes)
    }

    /// The provider's message with its status, for the operator.
    pub fn reason(&self) -> String {
        reason(self.status, self.said)
    }

    /// Only a key that works gets this error.
    pub fn valid(&self) -> Option<KeyVerdict> {
        Some(KeyVerdict::Valid)
    }

    pub fn invalid(&self) -> Option<KeyVerdict> {
        Some(KeyVerdict::Invalid { reason: self.reason() })
    }

    /// `proven`: the answer shows that the key is real; so below.
    pub fn quota(&self, proven: bool) -> Option<KeyVerdict> {
        Some(KeyVerdict::Quota { reason: self.reason(), proven })
    }

    pub fn rate(&self, proven: bool) -> Option<KeyVerdict> {
        Some(KeyVerdict::Rate { reason: self.reason(), proven })
    }

    pub fn restricted(&self, proven: bool) -> Option<KeyVerdict> {
        Some(KeyVerdict::Restricted { reason: self.reason(), proven })
    }

    pub fn overload(&self) -> Option<KeyVerdict> {
        Some(KeyVerdict::Overload { reason: self.reason() })
    }

    /// It does not say, whatever the general rule would read in it.
    pub fn unclear(&self) -> Option<KeyVerdict> {
        Some(KeyVerdict::Inconclusive { reason: self.reason() })
    }
}

/// Quota, then restricted, invalid, rate, overload. Server errors are never read for a verdict on the key:
/// a gateway may be quoting its own upstream there.
fn general_markers(own_billing: bool, status: u16, said: &ErrorSaid) -> Option<KeyVerdict> {
    if (500..600).contains(&status) || said.is_page {
        return None;
    }
    let text = said.text.as_str();
    let reason = || reason(status, said);
    if markers::any(text, QUOTA) {
        return Some(KeyVerdict::Quota { reason: reason(), proven: own_billing });
    }
    if markers::any(text, RESTRICTED) && matches!(status, 200..=299 | 400 | 401 | 403) {
        return Some(KeyVerdict::Restricted { reason: reason(), proven: own_billing });
    }
    // A 401 that calls the key invalid is about the key, whatever else the sentence mentions.
    let invalid = markers::any(text, INVALID) && matches!(status, 200..=299 | 400 | 401 | 403);
    if invalid && status == 401 {
        return Some(KeyVerdict::Invalid { reason: reason() });
    }
    if markers::any(text, REFUSED) && matches!(status, 200..=299 | 400 | 403) {
        return Some(KeyVerdict::Restricted { reason: reason(), proven: false });
    }
    if invalid {
        return Some(KeyVerdict::Invalid { reason: reason() });
    }
    if markers::any(text, OVERLOAD) {
        return Some(KeyVerdict::Overload { reason: reason() });
    }
    if matches!(status, 200..=299 | 429) && markers::any(text, RATE) {
        return Some(KeyVerdict::Rate { reason: reason(), proven: false });
    }
    None
}

fn by_status(habits: &ErrorHabits, status: u16, said: &ErrorSaid) -> KeyVerdict {
    let reason = reason(status, said);
    match status {
        401 => KeyVerdict::Invalid { reason },
        402 => KeyVerdict::Quota { reason, proven: habits.own_billing && !said.is_page },
        403 if habits.forbidden_is_invalid && !said.is_page => KeyVerdict::Invalid { reason },
        403 | 434 | 451 => KeyVerdict::Restricted { reason, proven: false },
        429 => KeyVerdict::Rate { reason, proven: false },
        500..=599 => KeyVerdict::Overload { reason },
        _ => KeyVerdict::Inconclusive { reason },
    }
}
