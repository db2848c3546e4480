//! All files together: names that are declared twice, routes that match nothing, what is frozen.
//!
//! Incremental: a file that changes within itself costs what it holds, not what the directory holds.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    sync::Arc,
};

use super::{Diagnostic, ParsedFile, ReadFile, Severity, parse::nearest};
use crate::{
    model::{Catalog, Frozen, HealthPolicy, ManifestPath, Provider, Route},
    routing::{Pattern, RouteIndex},
};

/// Providers, models and routes over all files.
const MAX_OBJECTS: usize = 100_000;

/// Routes that match nothing and get the nearest name as a hint. Each compares all names; where more than these are
/// wrong, one cause has made them so.
const MAX_SUGGESTIONS: usize = 20;

/// Which providers' desired state may differ from the previous build's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Changed {
    All,
    Providers(BTreeSet<Arc<str>>),
}

/// How many files there are of each kind.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
pub struct FileCounts {
    pub valid: usize,
    pub invalid: usize,
    pub unreadable: usize,
}

/// What all files together say.
#[derive(Debug, Clone)]
pub struct Build {
    pub catalog: Arc<Catalog>,
    pub index: Arc<RouteIndex>,
    /// Every problem, in order of file and line.
    pub diagnostics: Vec<Diagnostic>,
    pub changed: Changed,
    pub files: FileCounts,
}

/// Every file, parsed.
#[derive(Default)]
pub struct Workspace {
    files: BTreeMap<ManifestPath, ReadFile>,
    /// Files that were read and valid at some time: what they declared is on record.
    known: HashSet<ManifestPath>,
    built: Option<Build>,
    /// Providers touched since the last build; `None`: everything.
    touched: Option<BTreeSet<Arc<str>>>,
    /// Nothing but values inside providers changed since the last build.
    shape_kept: bool,
}

impl Workspace {
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes a file's new content.
    pub fn set_parsed(&mut self, path: ManifestPath, file: ReadFile) {
        let old = self.files.get(&path);
        if old.is_some_and(|old| old.hash == file.hash) {
            return;
        }
        let kept = old.is_some_and(|old| same_shape(old, &file));
        self.shape_kept &= kept;
        let (old_parsed, new_parsed) = (old.and_then(|old| old.parsed.as_ref()), file.parsed.as_ref());
        let good = |parsed: Option<&ParsedFile>| parsed.is_some_and(|parsed| !parsed.has_errors());
        let was_good = old.is_none() || good(old_parsed);
        if was_good && good(new_parsed) {
            let names = old_parsed.into_iter().chain(new_parsed).flat_map(touches);
            match names.collect::<Option<BTreeSet<_>>>() {
                Some(names) => self.touch(names),
                None => self.touched = None,
            }
            self.known.insert(path.clone());
        } else {
            self.touched = None;
        }
        self.files.insert(path, file);
    }

    /// Forgets a file that is gone.
    pub fn remove(&mut self, path: &str) {
        let Some(old) = self.files.remove(path) else { return };
        self.shape_kept = false;
        self.known.remove(path);
        match old.parsed.as_ref().filter(|parsed| !parsed.has_errors()) {
            Some(parsed) => match touches(parsed).collect::<Option<BTreeSet<_>>>() {
                Some(names) => self.touch(names),
                None => self.touched = None,
            },
            None => self.touched = None,
        }
    }

    fn touch(&mut self, names: BTreeSet<Arc<str>>) {
        if let Some(touched) = &mut self.touched {
            touched.extend(names);
        }
    }

    /// The catalog that the files declare now.
    pub fn build(&mut self) -> Build {
        let touched = self.touched.replace(BTreeSet::new());
        let kept = std::mem::replace(&mut self.shape_kept, true);
        let mut build = match (&self.built, &touched) {
            (Some(built), Some(touched)) if kept => self.refresh(built, touched),
            _ => self.rebuild(),
        };
        build.changed = match (&self.built, touched) {
            // What a file's routes made may belong to any provider.
            (Some(built), _) if built.catalog.frozen.files != build.catalog.frozen.files => Changed::All,
            (Some(built), Some(mut touched)) => {
                // A name that is declared twice now, or no longer, concerns its providers too.
                touched.extend(
                    built
                        .catalog
                        .frozen
                        .providers
                        .symmetric_difference(&build.catalog.frozen.providers)
                        .cloned(),
                );
                Changed::Providers(touched)
            }
            _ => Changed::All,
        };
        self.built = Some(build.clone());
        build
    }

    /// The previous build, with new values in the providers that were touched.
    fn refresh(&self, built: &Build, touched: &BTreeSet<Arc<str>>) -> Build {
        let mut build = built.clone();
        if !touched.is_empty() {
            let catalog = Arc::make_mut(&mut build.catalog);
            for name in touched {
                let file = catalog.providers.get(name).map(|provider| provider.origin.file.clone());
                let parsed =
                    file.and_then(|file| self.files.get(&file)).and_then(|file| file.parsed.as_ref());
                let provider = parsed.and_then(|parsed| parsed.providers.iter().find(|it| it.name == *name));
                if let Some(provider) = provider {
                    catalog.providers.insert(name.clone(), provider.clone());
                }
            }
        }
        build
    }

    fn rebuild(&self) -> Build {
        let mut diagnostics: Vec<Diagnostic> = Vec::new();
        let mut catalog = Catalog::default();
        let mut files = FileCounts::default();
        let mut objects = 0usize;
        let mut declared: HashMap<&str, &Provider> = HashMap::with_capacity(self.files.len());
        let mut twice: BTreeMap<Arc<str>, Vec<&Provider>> = BTreeMap::new();
        let mut defaults: BTreeMap<&str, Vec<(&ManifestPath, &HealthPolicy)>> = BTreeMap::new();
        for (path, file) in &self.files {
            if let Some(unreadable) = &file.unreadable {
                files.unreadable += 1;
                diagnostics.push(unreadable.clone());
                catalog.frozen.files.insert(path.clone());
                if !self.known.contains(path) {
                    let why = format!("{path} cannot be read, so nobody knows what it declares");
                    catalog.frozen.no_prune.get_or_insert_with(|| why.into());
                }
            }
            let Some(parsed) = &file.parsed else { continue };
            diagnostics.extend(parsed.diagnostics.iter().cloned());
            if parsed.has_errors() {
                files.invalid += 1;
                freeze(&mut catalog.frozen, path, parsed);
                continue;
            }
            objects +=
                parsed.routes.len() + parsed.providers.iter().map(|it| 1 + it.models.len()).sum::<usize>();
            if objects > MAX_OBJECTS {
                files.invalid += 1;
                let message =
                    format!("more than {MAX_OBJECTS} objects are declared up to this file; it is left out");
                diagnostics.push(Diagnostic::of_file("too-many-objects", path, message));
                freeze(&mut catalog.frozen, path, parsed);
                continue;
            }
            files.valid += 1;
            for provider in &parsed.providers {
                match declared.insert(&provider.name, provider) {
                    None => drop(catalog.providers.insert(provider.name.clone(), provider.clone())),
                    Some(first) => {
                        twice.entry(provider.name.clone()).or_insert_with(|| vec![first]).push(provider)
                    }
                }
            }
            catalog.routes.extend(parsed.routes.iter().cloned());
            if let Some(policy) = &parsed.default_health {
                defaults.entry(parent(path)).or_default().push((path, policy));
            }
        }
        for (name, providers) in twice {
            catalog.providers.remove(&name);
            for provider in &providers {
                let others = providers.iter().filter(|other| other.origin != provider.origin);
                diagnostics.push(others.fold(
                    at_object("duplicate-provider", &provider.origin, format!("provider `{name}` is declared in several files"))
                        .with_help("a name is unique over all files; until then the provider stays at its last good state"),
                    |found, other| found.with_related(&other.origin.file, other.origin.line, "also declared here"),
                ));
            }
            catalog.frozen.providers.insert(name);
        }
        catalog.defaults = merge_defaults(&defaults, &mut diagnostics);
        check_routes(&mut catalog, &mut diagnostics);
        diagnostics.sort_by(|a, b| (&a.path, a.line, a.column).cmp(&(&b.path, b.line, b.column)));
        let with_errors: HashSet<&ManifestPath> =
            diagnostics.iter().filter(|it| it.severity == Severity::Error).map(|it| &it.path).collect();
        files.invalid = with_errors.len().saturating_sub(files.unreadable);
        files.valid = self.files.len().saturating_sub(with_errors.len());
        let index = Arc::new(RouteIndex::new(&catalog.routes));
        Build { catalog: Arc::new(catalog), index, diagnostics, changed: Changed::All, files }
    }
}

fn freeze(frozen: &mut Frozen, path: &ManifestPath, parsed: &ParsedFile) {
    frozen.files.insert(path.clone());
    frozen.providers.extend(parsed.mentioned.iter().cloned());
    frozen.providers.extend(parsed.providers.iter().map(|provider| provider.name.clone()));
}

fn at_object(code: &'static str, origin: &crate::model::Origin, message: String) -> Diagnostic {
    Diagnostic::at(Severity::Error, code, &origin.file, None, origin.line, message)
}

/// The directory of a path, `""` for the top.
fn parent(path: &str) -> &str {
    path.rsplit_once('/').map_or("", |(directory, _)| directory)
}

/// One policy for each directory that has defaults, its parents' included.
fn merge_defaults(
    found: &BTreeMap<&str, Vec<(&ManifestPath, &HealthPolicy)>>,
    diagnostics: &mut Vec<Diagnostic>,
) -> BTreeMap<Box<str>, HealthPolicy> {
    let mut merged: BTreeMap<Box<str>, HealthPolicy> = BTreeMap::new();
    // Parents come before their children in this order.
    for (directory, policies) in found {
        let mut policy = HealthPolicy::default();
        for (path, more) in policies {
            let mut others = policies.iter().filter(|(other, _)| other != path);
            if others.any(|(_, other)| overlap(other, more)) {
                let message = "another file of this directory sets the same `defaults.health` key";
                let mut clash = Diagnostic::of_file("duplicate-defaults", path, message);
                for (other, _) in policies.iter().filter(|(other, _)| other != path) {
                    clash = clash.with_related(other, 1, "also set here");
                }
                diagnostics.push(clash);
            }
            policy = policy.or(more);
        }
        let outer = crate::model::nearest_defaults(&merged, directory).cloned().unwrap_or_default();
        merged.insert((*directory).into(), policy.or(&outer));
    }
    merged
}

fn overlap(a: &HealthPolicy, b: &HealthPolicy) -> bool {
    (a.schedule.is_some() && b.schedule.is_some())
        || (a.timeout.is_some() && b.timeout.is_some())
        || (a.slow_after.is_some() && b.slow_after.is_some())
        || (a.path.is_some() && b.path.is_some())
        || (a.expect_status.is_some() && b.expect_status.is_some())
}

/// Routes that match nothing, and routes that say the same: none of them is applied, and the rules that their files
/// made before stay as they are.
fn check_routes(catalog: &mut Catalog, diagnostics: &mut Vec<Diagnostic>) {
    let mut said: HashMap<(&str, &str, &str, Option<&str>), usize> =
        HashMap::with_capacity(catalog.routes.len());
    let mut bad: BTreeSet<usize> = BTreeSet::new();
    let mut suggestions = MAX_SUGGESTIONS;
    for (at, route) in catalog.routes.iter().enumerate() {
        let key = (&*route.models, route.power_level.as_str(), &*route.user_tier, route.task_type.as_deref());
        if let Some(first) = said.insert(key, at)
            && let Some(other) = catalog.routes.get(first)
        {
            for (this, other) in [(other, route), (route, other)] {
                let message = format!(
                    "two routes say where `{}` serves {} × {}",
                    this.models, this.power_level, this.user_tier
                );
                let found = at_object("duplicate-route", &this.origin, message);
                diagnostics.push(found.with_related(&other.origin.file, other.origin.line, "the other one"));
            }
            bad.extend([first, at]);
        }
        if let Some(found) = dangling(catalog, route, &mut suggestions) {
            diagnostics.push(found);
            bad.insert(at);
        }
    }
    drop(said);
    if bad.is_empty() {
        return;
    }
    // Only now: what is frozen silences the search for routes that match nothing.
    let (routes, frozen) = (std::mem::take(&mut catalog.routes), &mut catalog.frozen.files);
    for (at, route) in routes.into_iter().enumerate() {
        if bad.contains(&at) {
            frozen.insert(route.origin.file.clone());
        } else {
            catalog.routes.push(route);
        }
    }
}

fn dangling(catalog: &Catalog, route: &Route, suggestions: &mut usize) -> Option<Diagnostic> {
    let (provider, model) = route.pattern();
    let model_pattern = Pattern::new(model);
    let is_glob = provider.contains(['*', '?']);
    if !is_glob {
        let found = catalog.providers.get(provider);
        if found.is_some_and(|it| {
            it.discover.is_some() || it.models.iter().any(|model| model_pattern.matches(&model.name))
        }) {
            return None;
        }
        // A provider in a bad file may have the model; nobody can say now.
        if catalog.frozen.providers.contains(provider)
            || (found.is_none() && !catalog.frozen.files.is_empty())
        {
            return None;
        }
    } else {
        let provider_pattern = Pattern::new(provider);
        let mut matching = catalog.providers.values().filter(|it| provider_pattern.matches(&it.name));
        if matching.any(|it| {
            it.discover.is_some() || it.models.iter().any(|model| model_pattern.matches(&model.name))
        }) || !catalog.frozen.files.is_empty()
            || !catalog.frozen.providers.is_empty()
        {
            return None;
        }
    }
    let found =
        at_object("dangling-route", &route.origin, format!("`{}` matches no declared model", route.models));
    if *suggestions == 0 {
        return Some(found);
    }
    *suggestions -= 1;
    Some(match catalog.providers.get(provider) {
        None if is_glob => found,
        None => match nearest(provider, catalog.providers.keys().map(|name| &**name)) {
            Some(close) => {
                found.with_help(format!("no provider is called `{provider}`; did you mean `{close}`?"))
            }
            None => found.with_help(format!("no provider is called `{provider}`")),
        },
        Some(it) => match nearest(model, it.models.iter().map(|model| &*model.name)) {
            Some(close) => found.with_help(format!("did you mean `{provider}/{close}`?")),
            None => found.with_help(format!(
                "`{provider}` declares {} models; none matches `{model}`",
                it.models.len()
            )),
        },
    })
}

/// The names of what a file declares; `None` stands for a route over several providers or for defaults.
fn touches(parsed: &ParsedFile) -> impl Iterator<Item = Option<Arc<str>>> {
    let providers = parsed.providers.iter().map(|provider| Some(provider.name.clone()));
    let routes = parsed.routes.iter().map(|route| {
        let (provider, _) = route.pattern();
        (!provider.contains(['*', '?'])).then(|| Arc::from(provider))
    });
    let defaults = parsed.default_health.iter().map(|_| None);
    providers.chain(routes).chain(defaults)
}

/// Whether two versions of a file differ in nothing that another file could notice.
fn same_shape(old: &ReadFile, new: &ReadFile) -> bool {
    let (Some(old), Some(new)) = (&old.parsed, &new.parsed) else { return false };
    let models =
        |provider: &Provider| provider.models.iter().map(|model| model.name.clone()).collect::<Vec<_>>();
    old.diagnostics.is_empty()
        && new.diagnostics.is_empty()
        && old.default_health == new.default_health
        && old.routes == new.routes
        && old.providers.len() == new.providers.len()
        && old.providers.iter().zip(&new.providers).all(|(old, new)| {
            old.name == new.name
                && old.discover.is_some() == new.discover.is_some()
                && models(old) == models(new)
        })
}
