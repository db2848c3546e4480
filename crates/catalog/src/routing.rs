//! Routes → rules of each model, and the resolved table of power level × user tier.
//!
//! PURE. One rule for each (model, power level, user tier, task type). Where several routes match, one without a
//! glob is stronger than one with, then the higher priority, then the one declared first.

use std::{
    cmp::Ordering,
    collections::{BTreeMap, BTreeSet, HashMap},
    fmt,
    sync::Arc,
};

use serde::Serialize;
use wildmatch::WildMatch;

use provider::shown::one_line;

use crate::model::{Catalog, Cell, Model, Origin, PowerLevel, Provider, Route};

/// Priority and weight of a route that sets none, and of a rule that says none.
pub const DEFAULT_SHARE: i32 = 100;

/// A literal, or a glob of `*` and `?`.
pub enum Pattern<'a> {
    Literal(&'a str),
    Glob(WildMatch),
}

impl<'a> Pattern<'a> {
    pub fn new(text: &'a str) -> Self {
        if text.contains(['*', '?']) { Self::Glob(WildMatch::new(text)) } else { Self::Literal(text) }
    }

    pub fn matches(&self, name: &str) -> bool {
        match self {
            Self::Literal(text) => *text == name,
            Self::Glob(glob) => glob.matches(name),
        }
    }
}

/// One rule that a model shall have.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct DesiredRule {
    pub model: Box<str>,
    pub cell: Cell,
    pub priority: Option<i32>,
    pub weight: Option<i32>,
    pub enabled: Option<bool>,
    pub origin: Origin,
}

/// Routes by the provider they name. A copy shares all of them.
#[derive(Debug, Clone, Default)]
pub struct RouteIndex {
    literal: HashMap<Arc<str>, Arc<[Arc<Route>]>>,
    /// Routes with a glob in their provider part, which may concern any provider.
    anywhere: Arc<[Anywhere]>,
}

/// A route that is held against every provider: its glob is made ready once.
#[derive(Debug, Clone)]
struct Anywhere {
    route: Arc<Route>,
    /// What a name begins with to be meant: most are ruled out by this.
    begins: Box<str>,
    provider: WildMatch,
}

impl Anywhere {
    fn new(route: Arc<Route>) -> Self {
        let (provider, _) = route.pattern();
        let begins = provider.split(['*', '?']).next().unwrap_or_default().into();
        let provider = WildMatch::new(provider);
        Self { route, begins, provider }
    }

    fn means(&self, name: &str) -> bool {
        name.starts_with(&*self.begins) && self.provider.matches(name)
    }
}

impl RouteIndex {
    pub fn new(routes: &[Arc<Route>]) -> Self {
        let mut literal: HashMap<&str, Vec<Arc<Route>>> = HashMap::with_capacity(routes.len());
        let mut anywhere = Vec::new();
        for route in routes {
            match route.literal_provider() {
                Some(provider) => literal.entry(provider).or_default().push(route.clone()),
                None => anywhere.push(Anywhere::new(route.clone())),
            }
        }
        let literal =
            literal.into_iter().map(|(provider, routes)| (provider.into(), routes.into())).collect();
        Self { literal, anywhere: anywhere.into() }
    }

    /// Takes one file's routes in place of those it had. None of them has a glob in its provider part, and they name
    /// the same providers as before.
    pub(crate) fn replace(&mut self, file: &str, routes: &[Arc<Route>]) {
        let mut named: BTreeMap<&str, Vec<Arc<Route>>> = BTreeMap::new();
        for route in routes {
            if let Some(provider) = route.literal_provider() {
                named.entry(provider).or_default().push(route.clone());
            }
        }
        for (provider, mut routes) in named {
            let others = self.literal.get(provider).into_iter().flat_map(|all| all.iter());
            routes.extend(others.filter(|route| *route.origin.file != *file).cloned());
            self.literal.insert(provider.into(), routes.into());
        }
    }

    /// The rules of one provider's models, by model and cell.
    pub fn rules_for<'m>(&'m self, provider: &'m Provider) -> Vec<DesiredRule> {
        let named = self.literal.get(&*provider.name).into_iter().flat_map(|routes| routes.iter());
        let anywhere = self.anywhere.iter().filter(|any| any.means(&provider.name)).map(|any| &any.route);
        let by_name: HashMap<&str, &Model> =
            provider.models.iter().map(|model| (&*model.name, model)).collect();
        let mut best: BTreeMap<(&str, CellKey<'_>), (&Route, bool)> = BTreeMap::new();
        for route in named.chain(anywhere) {
            let (provider_part, model_part) = route.pattern();
            let glob = provider_part.contains(['*', '?']) || model_part.contains(['*', '?']);
            let cell = (route.power_level, &*route.user_tier, route.task_type.as_deref());
            let mut offer = |model: &'m Model| {
                let entry = best.entry((&model.name, cell)).or_insert((route, glob));
                if strength(route, glob) > strength(entry.0, entry.1) {
                    *entry = (route, glob);
                }
            };
            match Pattern::new(model_part) {
                Pattern::Literal(name) => by_name.get(name).copied().into_iter().for_each(&mut offer),
                Pattern::Glob(glob) => {
                    provider.models.iter().filter(|model| glob.matches(&model.name)).for_each(offer);
                }
            }
        }
        best.into_iter()
            .map(|((model, (power_level, user_tier, task_type)), (route, _))| DesiredRule {
                model: model.into(),
                cell: Cell { power_level, user_tier: user_tier.into(), task_type: task_type.map(Into::into) },
                priority: route.priority,
                weight: route.weight,
                enabled: route.enabled,
                origin: route.origin.clone(),
            })
            .collect()
    }
}

/// Power level, user tier and task type, in the order of [`Cell`].
type CellKey<'a> = (PowerLevel, &'a str, Option<&'a str>);

/// Stronger is greater: literal first, then priority, then the earlier place.
fn strength(route: &Route, glob: bool) -> (bool, i32, std::cmp::Reverse<&Origin>) {
    (!glob, route.priority.unwrap_or(DEFAULT_SHARE), std::cmp::Reverse(&route.origin))
}

/// One model in one cell.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct CellRow {
    pub power_level: PowerLevel,
    pub user_tier: Box<str>,
    pub task_type: Option<Box<str>>,
    pub priority: i32,
    pub weight: i32,
    pub provider: Arc<str>,
    pub provider_priority: i32,
    pub model: Box<str>,
    pub origin: Origin,
}

impl CellRow {
    fn place(&self) -> CellPlace<'_> {
        let Self { priority, provider_priority, weight, provider, model, .. } = self;
        CellPlace {
            priority: *priority,
            provider_priority: *provider_priority,
            weight: *weight,
            provider,
            model,
        }
    }
}

/// What decides about the place of a model in its cell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CellPlace<'a> {
    pub priority: i32,
    /// The provider's own.
    pub provider_priority: i32,
    pub weight: i32,
    pub provider: &'a str,
    pub model: &'a str,
}

/// The order in which the models of a cell are listed: the higher priority first, then the higher priority of the
/// provider, then the greater share, then by name.
pub fn order(a: &CellPlace<'_>, b: &CellPlace<'_>) -> Ordering {
    let rank = |it: &CellPlace<'_>| (it.priority, it.provider_priority, it.weight);
    rank(b).cmp(&rank(a)).then_with(|| (a.provider, a.model).cmp(&(b.provider, b.model)))
}

/// What serves each power level and user tier, as the manifests declare it: enabled models only, in the order in
/// which they are tried.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Table {
    rows: Vec<CellRow>,
}

impl Table {
    pub fn resolve(catalog: &Catalog) -> Self {
        let index = RouteIndex::new(&catalog.routes);
        let mut rows = Vec::new();
        for provider in catalog.providers.values().filter(|provider| provider.enabled != Some(false)) {
            let off: BTreeSet<&str> = provider
                .models
                .iter()
                .filter(|model| model.enabled == Some(false))
                .map(|model| &*model.name)
                .collect();
            for rule in index.rules_for(provider) {
                if rule.enabled == Some(false) || off.contains(&*rule.model) {
                    continue;
                }
                rows.push(CellRow {
                    power_level: rule.cell.power_level,
                    user_tier: rule.cell.user_tier,
                    task_type: rule.cell.task_type,
                    priority: rule.priority.unwrap_or(DEFAULT_SHARE),
                    weight: rule.weight.unwrap_or(DEFAULT_SHARE),
                    provider: provider.name.clone(),
                    provider_priority: provider.priority.unwrap_or(0),
                    model: rule.model,
                    origin: rule.origin,
                });
            }
        }
        rows.sort_by(|a, b| {
            let cell = |row: &CellRow| (row.power_level, row.user_tier.clone(), row.task_type.clone());
            cell(a).cmp(&cell(b)).then_with(|| order(&a.place(), &b.place()))
        });
        Self { rows }
    }

    /// Cell by cell, the first to be tried first.
    pub fn rows(&self) -> &[CellRow] {
        &self.rows
    }

    fn cells(&self) -> BTreeMap<(PowerLevel, &str, Option<&str>), Vec<String>> {
        let mut cells: BTreeMap<_, Vec<String>> = BTreeMap::new();
        for row in &self.rows {
            let key = (row.power_level, &*row.user_tier, row.task_type.as_deref());
            let share =
                format!("{}/{} (priority {}, weight {})", row.provider, row.model, row.priority, row.weight);
            cells.entry(key).or_default().push(share);
        }
        cells
    }

    /// What changes from one table to the next.
    pub fn diff(before: &Self, after: &Self) -> TableDiff {
        let (old, new) = (before.cells(), after.cells());
        let keys: BTreeSet<_> = old.keys().chain(new.keys()).copied().collect();
        let none = Vec::new();
        let cells = keys.into_iter().filter_map(|key| {
            let (old, new) = (old.get(&key).unwrap_or(&none), new.get(&key).unwrap_or(&none));
            let (power_level, user_tier, task_type) = key;
            (old != new).then(|| CellDiff {
                power_level,
                user_tier: user_tier.into(),
                task_type: task_type.map(Into::into),
                becomes_empty: new.is_empty(),
                before: old.clone(),
                after: new.clone(),
            })
        });
        TableDiff { cells: cells.collect() }
    }
}

/// The cells that differ between two tables.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct TableDiff {
    pub cells: Vec<CellDiff>,
}

/// One cell that differs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct CellDiff {
    pub power_level: PowerLevel,
    pub user_tier: String,
    pub task_type: Option<String>,
    /// No model would serve it any more.
    pub becomes_empty: bool,
    pub before: Vec<String>,
    pub after: Vec<String>,
}

impl TableDiff {
    pub fn empties_a_cell(&self) -> bool {
        self.cells.iter().any(|cell| cell.becomes_empty)
    }
}

impl fmt::Display for TableDiff {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.cells.is_empty() {
            return writeln!(f, "no route changes");
        }
        for cell in &self.cells {
            write!(f, "{} × {}", cell.power_level, one_line(&cell.user_tier))?;
            if let Some(task) = &cell.task_type {
                write!(f, " ({})", one_line(task))?;
            }
            writeln!(f, "{}", if cell.becomes_empty { ": BECOMES EMPTY" } else { "" })?;
            for line in cell.before.iter().filter(|line| !cell.after.contains(line)) {
                writeln!(f, "  - {}", one_line(line))?;
            }
            for (at, line) in cell.after.iter().enumerate() {
                let mark = if cell.before.contains(line) { ' ' } else { '+' };
                writeln!(f, "  {mark} {}. {}", at + 1, one_line(line))?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cell_is_listed_in_one_order() {
        let place = |priority, provider_priority, weight, provider, model| CellPlace {
            priority,
            provider_priority,
            weight,
            provider,
            model,
        };
        let sorted = [
            place(200, 0, 1, "z", "z"),
            place(100, 50, 1, "z", "z"),
            place(100, 0, 100, "b", "a"),
            place(100, 0, 1, "a", "a"),
            place(100, 0, 1, "a", "b"),
            place(100, 0, 1, "b", "a"),
        ];
        let mut found = sorted;
        found.reverse();
        found.sort_by(order);
        assert_eq!(found, sorted);
    }

    #[test]
    fn a_glob_means_the_providers_that_it_matches() {
        let origin = |line| Origin { file: "a.toml".into(), line };
        let route = |models: &str| Route {
            origin: origin(1),
            models: models.into(),
            power_level: PowerLevel::Eco,
            user_tier: "all".into(),
            task_type: None,
            priority: None,
            weight: None,
            enabled: None,
        };
        let check = |pattern: &str, name: &str, means: bool| {
            assert_eq!(Anywhere::new(Arc::new(route(pattern))).means(name), means, "{pattern} {name}");
        };
        check("*/x", "any", true);
        check("team-*/x", "team-a", true);
        check("team-*/x", "team-", true);
        check("team-*/x", "tea", false);
        check("team-*/x", "my-team-a", false);
        check("team-?-eu/*", "team-a-eu", true);
        check("team-?-eu/*", "team-ab-eu", false);
        check("?eam/*", "team", true);
        check("*-eu/*", "team-eu", true);
        check("*-eu/*", "team-us", false);
    }
}
