//! Short, total look-ups in JSON that others wrote, and the few shapes written often.
//!
//! Not its job: meaning. Invariant: no look-up panics; what is missing or of another type is absent.

use serde_json::{Map, Value};

static NULL: Value = Value::Null;

/// Look-ups that never fail loudly: a missing key, a `null` and a wrong type read alike.
pub(crate) trait JsonLook {
    /// The member, or `null`.
    fn at(&self, key: &str) -> &Value;
    /// The member as a string; empty where there is none.
    fn text(&self, key: &str) -> &str;
    /// The member as a string that is not empty.
    fn word(&self, key: &str) -> Option<&str>;
    /// The member as a whole number that is not negative; floats are cut (Cohere counts tokens in floats).
    fn count(&self, key: &str) -> Option<u64>;
    /// The member's items; none where it is no array.
    fn items(&self, key: &str) -> &[Value];
    /// The member as a truth value.
    fn flag(&self, key: &str) -> Option<bool>;
    /// Whether the member exists and is not `null`.
    fn given(&self, key: &str) -> bool;
}

impl JsonLook for Value {
    fn at(&self, key: &str) -> &Value {
        self.get(key).unwrap_or(&NULL)
    }

    fn text(&self, key: &str) -> &str {
        self.get(key).and_then(Value::as_str).unwrap_or_default()
    }

    fn word(&self, key: &str) -> Option<&str> {
        self.get(key).and_then(Value::as_str).filter(|text| !text.is_empty())
    }

    fn count(&self, key: &str) -> Option<u64> {
        let number = self.get(key)?;
        number.as_u64().or_else(|| {
            let float = number.as_f64()?;
            // Saturating: `as` cuts what does not fit.
            (float.is_finite() && float >= 0.0).then_some(float as u64)
        })
    }

    fn items(&self, key: &str) -> &[Value] {
        self.get(key).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default()
    }

    fn flag(&self, key: &str) -> Option<bool> {
        self.get(key).and_then(Value::as_bool)
    }

    fn given(&self, key: &str) -> bool {
        self.get(key).is_some_and(|value| !value.is_null())
    }
}

/// An object that leaves out what is absent.
#[derive(Debug, Default)]
pub(crate) struct Obj(Map<String, Value>);

impl Obj {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    pub(crate) fn with(mut self, key: &str, value: impl Into<Value>) -> Self {
        self.0.insert(key.to_owned(), value.into());
        self
    }

    pub(crate) fn maybe<T: Into<Value>>(mut self, key: &str, value: Option<T>) -> Self {
        if let Some(value) = value {
            self.0.insert(key.to_owned(), value.into());
        }
        self
    }

    pub(crate) fn set(&mut self, key: &str, value: impl Into<Value>) {
        self.0.insert(key.to_owned(), value.into());
    }

    /// The object, or nothing where it has no member.
    pub(crate) fn filled(self) -> Option<Value> {
        (!self.0.is_empty()).then_some(Value::Object(self.0))
    }

    pub(crate) fn inner(&mut self) -> &mut Map<String, Value> {
        &mut self.0
    }
}

impl From<Obj> for Value {
    fn from(obj: Obj) -> Self {
        Self::Object(obj.0)
    }
}

/// A float as JSON; what JSON cannot hold (NaN, infinity) is `null`. Whole numbers are written without a point.
pub(crate) fn number(value: f64) -> Value {
    if value.fract() == 0.0 && value.abs() < 1e15 {
        return Value::from(value as i64);
    }
    serde_json::Number::from_f64(value).map_or(Value::Null, Value::Number)
}

/// The text of an object, for wires that carry arguments as a string; anything else is the empty object.
pub(crate) fn object_text(value: &Value) -> String {
    match value {
        Value::Object(_) => value.to_string(),
        Value::String(text) if !text.trim().is_empty() => text.clone(),
        _ => "{}".to_owned(),
    }
}

/// Arguments as an object, for wires that carry them so; blank text is the empty object, anything else that is no
/// object is nothing.
pub(crate) fn text_object(text: &str) -> Option<Value> {
    if text.trim().is_empty() {
        return Some(Value::Object(Map::new()));
    }
    serde_json::from_str::<Value>(text).ok().filter(Value::is_object)
}
