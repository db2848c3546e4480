//! Desired fields beside live values, field by field.
//!
//! Not its job: deciding about rows. Invariant: a field that compares as the same is never written.

use std::collections::HashSet;

use serde_json::Value;

use super::{Cause, Field, FieldChange, Fields, LiveModel, LiveProvider, LiveRule};
use crate::{
    model::{JsonMap, Model, Provider},
    routing::{DEFAULT_SHARE, DesiredRule},
};

/// `numeric(10,4)` is the narrowest cost column in the field: costs closer than half its step are equal.
const COST_STEP: f64 = 0.0001;

/// What a set of fields is going to be: `owned` by manifests, and `initial` for a new row only.
#[derive(Default)]
pub(super) struct Lowered {
    pub owned: Vec<(Field, Value)>,
    pub initial: Vec<(Field, Value)>,
}

impl Lowered {
    fn own(&mut self, field: &'static str, value: Option<impl Into<Value>>) -> bool {
        match value {
            Some(value) => {
                self.owned.push((Field::Borrowed(field), value.into()));
                true
            }
            None => false,
        }
    }

    fn own_or(&mut self, field: &'static str, value: Option<impl Into<Value>>, initial: impl Into<Value>) {
        if !self.own(field, value) {
            self.initial.push((Field::Borrowed(field), initial.into()));
        }
    }

    fn own_keys(&mut self, column: &str, keys: &JsonMap) {
        self.owned
            .extend(keys.iter().map(|(key, value)| (Field::Owned(format!("{column}.{key}")), value.clone())));
    }
}

pub(super) fn lower_provider(provider: &Provider) -> Lowered {
    let mut to = Lowered::default();
    to.own("type", Some(provider.kind.as_str()));
    to.own_or("enabled", provider.enabled, true);
    to.own_or("priority", provider.priority, 0);
    to.own_or("api_key_source", provider.api_key_source.map(|it| it.as_str()), "database");
    let url = provider.base_url.as_deref();
    if !to.own("api_base_url", url)
        && let Some(url) = provider.kind.default_base_url()
    {
        to.initial.push(("api_base_url".into(), url.into()));
        to.initial.push(("config.base_url".into(), url.into()));
    }
    to.own("config.base_url", url);
    let prefixes = provider.model_prefixes.as_ref();
    to.own(
        "config.model_prefixes",
        prefixes.map(|all| all.iter().map(|it| Value::from(&**it)).collect::<Vec<_>>()),
    );
    to.own("config.description", provider.description.as_deref());
    to.own_keys("config", &provider.config);
    to
}

/// `blended`: whether the row's `cost_per_1m_tokens` follows the two prices (it does where providerd set it).
pub(super) fn lower_model(model: &Model, blended: bool) -> Lowered {
    let mut to = Lowered::default();
    to.own_or("display_name", model.display_name.as_deref(), &*model.name);
    to.own("context_length", model.context_length);
    let (input, output) = (model.cost_per_1m_input_tokens, model.cost_per_1m_output_tokens);
    to.own("cost_per_1m_input_tokens", input);
    to.own("cost_per_1m_output_tokens", output);
    if blended && let (Some(input), Some(output)) = (input, output) {
        // Older readers know one price only: the mean of both, at the older column's precision.
        let mean = f64::midpoint(input, output);
        to.own("cost_per_1m_tokens", Some((mean / COST_STEP).round() * COST_STEP));
    }
    to.own_or("enabled", model.enabled, true);
    to.own_keys("metadata", &model.metadata);
    to
}

pub(super) fn lower_rule(rule: &DesiredRule) -> Lowered {
    let mut to = Lowered::default();
    to.own_or("priority", rule.priority, DEFAULT_SHARE);
    to.own_or("weight", rule.weight, DEFAULT_SHARE);
    to.own_or("is_active", rule.enabled, true);
    to
}

/// The value a live row has for a field that a manifest may own; `Null` for NULL and for an absent key.
pub(super) trait LiveRow {
    fn value(&self, field: &str) -> Value;
}

fn key_of(map: &JsonMap, field: &str, column: &str) -> Value {
    let key = field.strip_prefix(column).and_then(|rest| rest.strip_prefix('.'));
    key.and_then(|key| map.get(key)).cloned().unwrap_or(Value::Null)
}

impl LiveRow for LiveProvider {
    fn value(&self, field: &str) -> Value {
        match field {
            "name" => (&*self.name).into(),
            "type" => self.kind.as_deref().into(),
            "enabled" => self.enabled.into(),
            "priority" => self.priority.into(),
            "api_base_url" => self.api_base_url.as_deref().into(),
            "api_key_source" => self.api_key_source.as_deref().into(),
            other => key_of(&self.config, other, "config"),
        }
    }
}

impl LiveRow for LiveModel {
    fn value(&self, field: &str) -> Value {
        match field {
            "name" => self.name.as_str().into(),
            "display_name" => self.display_name.as_deref().into(),
            "context_length" => self.context_length.into(),
            "cost_per_1m_tokens" => self.cost_per_1m_tokens.into(),
            "cost_per_1m_input_tokens" => self.cost_per_1m_input_tokens.into(),
            "cost_per_1m_output_tokens" => self.cost_per_1m_output_tokens.into(),
            "enabled" => self.enabled.into(),
            other => key_of(&self.metadata, other, "metadata"),
        }
    }
}

impl LiveRow for LiveRule {
    fn value(&self, field: &str) -> Value {
        match field {
            "priority" => self.priority.into(),
            "weight" => self.weight.into(),
            "is_active" => self.is_active.into(),
            _ => Value::Null,
        }
    }
}

/// Whether the database already holds `desired`, given what it can represent: `jsonb` does not distinguish 1 from
/// 1.0, and a cost column keeps four decimals.
pub(super) fn same(field: &str, desired: &Value, live: &Value) -> bool {
    match (desired, live) {
        (Value::Number(a), Value::Number(b)) => {
            if let (Some(a), Some(b)) = (a.as_i64(), b.as_i64()) {
                return a == b;
            }
            match (a.as_f64(), b.as_f64()) {
                (Some(a), Some(b)) if field.starts_with("cost_") => (a - b).abs() <= COST_STEP * 0.500_001,
                (Some(a), Some(b)) => a == b,
                _ => false,
            }
        }
        (Value::Array(a), Value::Array(b)) => {
            a.len() == b.len() && a.iter().zip(b).all(|(a, b)| same("", a, b))
        }
        (Value::Object(a), Value::Object(b)) => {
            a.len() == b.len() && a.iter().all(|(key, a)| b.get(key).is_some_and(|b| same("", a, b)))
        }
        (a, b) => a == b,
    }
}

/// The owned fields that the live row does not hold, and why: `recorded` distinguishes drift from a new declaration.
pub(super) fn changes(desired: &Lowered, live: &impl LiveRow, recorded: Option<&Fields>) -> Vec<FieldChange> {
    let differs = |(field, new): &(Field, Value)| {
        let old = live.value(field);
        if same(field, new, &old) {
            return None;
        }
        let known = recorded.and_then(|fields| fields.get(field));
        let cause =
            if known.is_some_and(|known| same(field, new, known)) { Cause::Drift } else { Cause::Declared };
        Some(FieldChange { field: field.clone(), old: Some(old), new: new.clone(), cause })
    };
    desired.owned.iter().filter_map(differs).collect()
}

/// All fields of a new row.
pub(super) fn creation(desired: &Lowered) -> Vec<FieldChange> {
    let with = |cause| {
        move |(field, new): &(Field, Value)| FieldChange {
            field: field.clone(),
            old: None,
            new: new.clone(),
            cause,
        }
    };
    desired
        .owned
        .iter()
        .map(with(Cause::Declared))
        .chain(desired.initial.iter().map(with(Cause::Default)))
        .collect()
}

/// The fields that were owned and are no longer declared; their values stay.
pub(super) fn released(desired: &Lowered, recorded: &Fields) -> Vec<FieldChange> {
    if recorded.is_empty() {
        return Vec::new();
    }
    let owned: HashSet<&str> = desired.owned.iter().map(|(owned, _)| &**owned).collect();
    let gone = recorded.iter().filter(|(field, _)| !owned.contains(&***field));
    gone.map(|(field, value)| FieldChange {
        field: field.clone(),
        old: Some(value.clone()),
        new: value.clone(),
        cause: Cause::Released,
    })
    .collect()
}
