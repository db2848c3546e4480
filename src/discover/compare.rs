//! What a provider offers beside what is declared and what is stored, model by model.
//!
//! PURE. Not its job: fetching or reading any of the three.

use std::collections::{BTreeMap, HashMap};

use chrono::{DateTime, Utc};
use serde::Serialize;
use uuid::Uuid;

use catalog::{
    model::{Discover, Provider},
    plan::LiveProvider,
    routing::Pattern,
};
use provider::{ListedModel, Models};

/// One model, wherever it was found.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ComparedModel {
    pub name: String,
    /// The provider lists it.
    pub offered: bool,
    /// A manifest declares it.
    pub declared: bool,
    /// `llm_models` has it.
    pub stored: bool,
    /// Whether consumers may use it, as stored.
    pub enabled: Option<bool>,
    /// `[discover]` would import it.
    pub selected: bool,
    /// As the provider says.
    pub display_name: Option<String>,
    /// Tokens, as the provider says.
    pub context_length: Option<u32>,
    /// USD, as the provider says.
    pub cost_per_1m_input_tokens: Option<f64>,
    pub cost_per_1m_output_tokens: Option<f64>,
    /// Line of its declaration.
    pub line: Option<u32>,
    /// When discovery found that the provider no longer lists it.
    pub vanished_at: Option<DateTime<Utc>>,
    /// Power levels and user tiers that it serves.
    pub routes: Vec<String>,
}

impl ComparedModel {
    /// A manifest or a rule relies on it, and the provider does not list it.
    pub const fn is_missing(&self) -> bool {
        self.declared && !self.offered
    }

    /// The provider lists it, and no manifest declares it.
    pub const fn is_new(&self) -> bool {
        self.offered && !self.declared
    }
}

/// Whether `[discover]` takes a model of this name; without one, every name is taken.
pub struct Selection<'a> {
    include: Vec<Pattern<'a>>,
    exclude: Vec<Pattern<'a>>,
}

impl<'a> Selection<'a> {
    pub fn new(discover: Option<&'a Discover>) -> Self {
        let patterns = |globs: &'a [Box<str>]| globs.iter().map(|glob| Pattern::new(glob)).collect();
        match discover {
            Some(discover) => {
                Self { include: patterns(&discover.include), exclude: patterns(&discover.exclude) }
            }
            None => Self { include: vec![Pattern::new("*")], exclude: Vec::new() },
        }
    }

    pub fn takes(&self, name: &str) -> bool {
        let any = |patterns: &[Pattern<'_>]| patterns.iter().any(|pattern| pattern.matches(name));
        any(&self.include) && !any(&self.exclude)
    }
}

/// Everything of the three, by name. `vanished`: the marks of discovery, by row.
pub fn compare(
    offered: &Models,
    declared: Option<&Provider>,
    stored: Option<&LiveProvider>,
    vanished: &HashMap<Uuid, DateTime<Utc>>,
) -> Vec<ComparedModel> {
    let selection = Selection::new(declared.and_then(|provider| provider.discover.as_ref()));
    let mut rows: BTreeMap<&str, ComparedModel> = BTreeMap::new();
    let row = |name: &str| ComparedModel {
        name: name.to_owned(),
        offered: false,
        declared: false,
        stored: false,
        enabled: None,
        selected: selection.takes(name),
        display_name: None,
        context_length: None,
        cost_per_1m_input_tokens: None,
        cost_per_1m_output_tokens: None,
        line: None,
        vanished_at: None,
        routes: Vec::new(),
    };
    for model in &offered.models {
        let ListedModel { id, display_name, context_length, cost_in, cost_out } = model;
        let found = rows.entry(id).or_insert_with(|| row(id));
        found.offered = true;
        found.display_name.clone_from(display_name);
        found.context_length = *context_length;
        found.cost_per_1m_input_tokens = *cost_in;
        found.cost_per_1m_output_tokens = *cost_out;
    }
    for model in declared.iter().flat_map(|provider| &provider.models) {
        let found = rows.entry(&model.name).or_insert_with(|| row(&model.name));
        found.declared = true;
        found.line = Some(model.line);
    }
    for model in stored.iter().flat_map(|provider| &provider.models) {
        let found = rows.entry(&model.name).or_insert_with(|| row(&model.name));
        found.stored = true;
        found.enabled = model.enabled;
        found.vanished_at = vanished.get(&model.id).copied();
        let active = model.rules.iter().filter(|rule| rule.is_active != Some(false));
        found.routes.extend(active.filter_map(super::cell));
        found.routes.sort();
        found.routes.dedup();
    }
    rows.into_values().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn globs_select() {
        let check = |include: &[&str], exclude: &[&str], name: &str, expected: bool| {
            let globs = |all: &[&str]| all.iter().map(|glob| Box::from(*glob)).collect();
            let discover = Discover {
                include: globs(include),
                exclude: globs(exclude),
                cron: "0 0 3 * * *".into(),
                enabled: false,
            };
            assert_eq!(
                Selection::new(Some(&discover)).takes(name),
                expected,
                "{include:?} {exclude:?} {name}"
            );
        };
        check(&["*"], &[], "a/b-preview", true);
        check(&["*"], &["*-preview"], "a/b-preview", false);
        check(&["*"], &["*-preview"], "a/b-preview-2", true);
        check(&["gpt-*", "o?"], &[], "o3", true);
        check(&["gpt-*", "o?"], &[], "o33", false);
        check(&[], &[], "o3", false);
        assert!(Selection::new(None).takes("anything"));
    }
}
