//! All files together: names that are declared twice, routes that match nothing, what is frozen.
//!
//! Incremental: a file that changes within itself costs what it holds, not what the directory holds.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    sync::Arc,
};

use super::{
    Diagnostic, ParsedFile, ReadFile, Severity,
    callers::{Mention, Mentioned},
    diagnostic::SourcePlace,
    meanings::FoundObjects,
    values::nearest,
};
use crate::{
    model::{Catalog, Frozen, HealthPolicy, ManifestPath, Provider, Route, spelled_alike},
    routing::{Pattern, RouteIndex},
    serving::{GatewayObject, ObjectKind},
};

/// Providers, models and routes over all files.
const MAX_OBJECTS: usize = 100_000;
/// Rules that all routes together may expand to: one for each model that a route means. A few lines can mean a million.
pub const MAX_RULES: usize = 200_000;
/// Names that patterns may be held against: ten thousand providers by a thousand patterns, and a second's work.
const MAX_MATCHES: usize = 20_000_000;
/// What was probably meant is looked for among all names for so many routes; the rest are reported without.
const MAX_GUESSES: usize = 100;

/// What may differ from the previous build's desired state; what is to be looked at again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Changed {
    All,
    Some {
        providers: BTreeSet<Arc<str>>,
        /// Also consumers, tiers, aliases and power levels.
        objects: bool,
    },
}

impl Changed {
    pub const NONE: Self = Self::Some { providers: BTreeSet::new(), objects: false };

    pub const fn providers(providers: BTreeSet<Arc<str>>) -> Self {
        Self::Some { providers, objects: false }
    }

    pub fn add(&mut self, more: Self) {
        match (&mut *self, more) {
            (Self::All, _) => {}
            (_, Self::All) => *self = Self::All,
            (Self::Some { providers, objects }, Self::Some { providers: more, objects: too }) => {
                providers.extend(more);
                *objects |= too;
            }
        }
    }

    pub fn is_none(&self) -> bool {
        matches!(self, Self::Some { providers, objects: false } if providers.is_empty())
    }

    /// Names of providers; `None` means all.
    pub const fn names(&self) -> Option<&BTreeSet<Arc<str>>> {
        match self {
            Self::All => None,
            Self::Some { providers, .. } => Some(providers),
        }
    }

    /// Whether consumers, tiers, aliases and power levels are meant too.
    pub const fn objects(&self) -> bool {
        match self {
            Self::All => true,
            Self::Some { objects, .. } => *objects,
        }
    }
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
    /// The defaults that a file set when it was last valid. Objects are on record in the database; these are not.
    last_defaults: BTreeMap<ManifestPath, HealthPolicy>,
    built: Option<Build>,
    /// Providers touched since the last build; `None`: everything.
    touched: Option<BTreeSet<Arc<str>>>,
    /// Nothing but values inside providers changed since the last build.
    shape_kept: bool,
    /// Files that are not there at present; whether they are removed shows only when the directory has settled. What
    /// another file declares meanwhile has moved there.
    gone: BTreeSet<ManifestPath>,
    /// Problems between files that were reported already, by code and file.
    reported: BTreeSet<(&'static str, ManifestPath)>,
    /// Files with other routes than at the last build, of the same patterns and cells.
    rerouted: BTreeSet<ManifestPath>,
    /// Files with other consumers, tiers, aliases or power levels than at the last build, of the same names.
    restated: BTreeSet<ManifestPath>,
    /// Some of these objects may differ from the last build's.
    objects_touched: bool,
    /// Unix seconds: by when keys have expired.
    now: Option<i64>,
}

impl Workspace {
    pub fn new() -> Self {
        Self::default()
    }

    /// Says what time it is, in Unix seconds; without it no key is said to have expired.
    pub fn set_now(&mut self, now: i64) {
        let before = self.now.replace(now);
        let passed = |mention: &Mention| match &mention.what {
            Mentioned::Key(key) => {
                key.expires.is_some_and(|at| at <= now && before.is_none_or(|before| before < at))
            }
            Mentioned::Pattern(_) | Mentioned::Target(_) => false,
        };
        let mentions =
            self.files.values().filter_map(|file| file.parsed.as_ref()).flat_map(|it| &it.mentions);
        if mentions.into_iter().any(passed) {
            self.shape_kept = false;
        }
    }

    /// Takes a file's new content.
    pub fn set_parsed(&mut self, path: ManifestPath, file: ReadFile) {
        let old = self.files.get(&path);
        if old.is_some_and(|old| old.hash == file.hash) {
            return;
        }
        let kept = old.is_some_and(|old| same_shape(old, &file)) && !self.is_concerned(&path);
        self.shape_kept &= kept;
        if kept && routes(old) != routes(Some(&file)) {
            self.rerouted.insert(path.clone());
        }
        if objects(old) != objects(Some(&file)) {
            self.objects_touched = true;
            if kept {
                self.restated.insert(path.clone());
            }
        }
        let (old_parsed, new_parsed) = (old.and_then(|old| old.parsed.as_ref()), file.parsed.as_ref());
        let good = |parsed: Option<&ParsedFile>| parsed.is_some_and(|parsed| !parsed.has_errors());
        let was_good = old.is_none() || good(old_parsed);
        if was_good && good(new_parsed) {
            let names = old_parsed.into_iter().chain(new_parsed).flat_map(touches);
            match names.collect::<Option<BTreeSet<_>>>() {
                Some(names) => self.touch(names),
                None => self.touched = None,
            }
        } else {
            self.touched = None;
        }
        if good(file.parsed.as_ref()) {
            self.known.insert(path.clone());
            match file.parsed.as_ref().and_then(|parsed| parsed.default_health.clone()) {
                Some(policy) => drop(self.last_defaults.insert(path.clone(), policy)),
                None => drop(self.last_defaults.remove(&path)),
            }
        }
        self.files.insert(path, file);
    }

    /// Whether a problem over several files points into this one: its lines must follow every change.
    fn is_concerned(&self, path: &ManifestPath) -> bool {
        let mut found = self.built.iter().flat_map(|built| &built.diagnostics);
        found.any(|it| it.path == *path || it.related.iter().any(|related| related.path == *path))
    }

    /// Forgets a file that is gone.
    pub fn remove(&mut self, path: &str) {
        let Some(old) = self.files.remove(path) else { return };
        self.shape_kept = false;
        self.known.remove(path);
        self.last_defaults.remove(path);
        self.objects_touched |= !objects(Some(&old)).is_empty();
        match old.parsed.as_ref().filter(|parsed| !parsed.has_errors()) {
            Some(parsed) => match touches(parsed).collect::<Option<BTreeSet<_>>>() {
                Some(names) => self.touch(names),
                None => self.touched = None,
            },
            None => self.touched = None,
        }
    }

    /// Which files are missing, until they are removed or come back.
    pub fn set_gone(&mut self, gone: &BTreeSet<ManifestPath>) {
        let other: Vec<ManifestPath> = self.gone.symmetric_difference(gone).cloned().collect();
        for path in other {
            let Some(file) = self.files.get(&path) else { continue };
            self.shape_kept = false;
            self.objects_touched |= !objects(Some(file)).is_empty();
            match file.parsed.iter().flat_map(touches).collect::<Option<BTreeSet<_>>>() {
                Some(names) => self.touch(names),
                None => self.touched = None,
            }
        }
        self.gone.clone_from(gone);
    }

    fn touch(&mut self, names: BTreeSet<Arc<str>>) {
        if let Some(touched) = &mut self.touched {
            touched.extend(names);
        }
    }

    /// The catalog that the files declare now.
    pub fn build(&mut self) -> Build {
        self.build_at(true)
    }

    /// As [`Self::build`], while files may still be on their way. That one name stands in two of them may be half of a
    /// rename: such objects stay at their last good state as always, but nothing is said before the directory has settled,
    /// unless it was said before.
    pub fn build_unsettled(&mut self) -> Build {
        self.build_at(false)
    }

    /// Files that claim the same, reported or not: a look at them may show one half of a rename.
    pub fn rivals(&self) -> BTreeSet<ManifestPath> {
        let mut rivals = BTreeSet::new();
        for found in self.built.iter().flat_map(|built| &built.diagnostics).filter(|it| is_rivalry(it)) {
            rivals.insert(found.path.clone());
            rivals.extend(found.related.iter().map(|it| it.path.clone()));
        }
        rivals
    }

    fn build_at(&mut self, settled: bool) -> Build {
        let mut build = self.build_all();
        if !settled {
            let count = build.diagnostics.len();
            let reported = &self.reported;
            build.diagnostics.retain(|it| !is_rivalry(it) || reported.contains(&(it.code, it.path.clone())));
            if build.diagnostics.len() < count {
                build.files = self.count(&with_errors(&build.diagnostics), build.files.unreadable);
            }
        }
        let rivalries = build.diagnostics.iter().filter(|it| is_rivalry(it));
        self.reported = rivalries.map(|it| (it.code, it.path.clone())).collect();
        build
    }

    /// What [`Build::files`] says, where these files have errors.
    fn count(&self, bad: &HashSet<ManifestPath>, unreadable: usize) -> FileCounts {
        FileCounts {
            valid: self.files.len().saturating_sub(bad.len()),
            invalid: bad.len().saturating_sub(unreadable),
            unreadable,
        }
    }

    fn build_all(&mut self) -> Build {
        let touched = self.touched.replace(BTreeSet::new());
        let kept = std::mem::replace(&mut self.shape_kept, true);
        let rerouted = std::mem::take(&mut self.rerouted);
        let restated = std::mem::take(&mut self.restated);
        let objects_touched = std::mem::take(&mut self.objects_touched);
        let mut build = match (&self.built, &touched) {
            (Some(built), Some(touched)) if kept => self.refresh(built, touched, &rerouted, &restated),
            _ => self.rebuild(),
        };
        build.changed = match (&self.built, touched) {
            // What does not fit any more may take routes of any provider with it.
            (Some(built), Some(_)) if is_cut(built) || is_cut(&build) => Changed::All,
            // A route that becomes good, or bad, through another file lets go of what it held, or takes hold of it.
            (Some(built), Some(_)) if built.catalog.frozen.files != build.catalog.frozen.files => {
                Changed::All
            }
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
                // So does a key or a name that two objects share now, or no longer.
                let objects = objects_touched
                    || built.catalog.frozen.objects != build.catalog.frozen.objects
                    || built.catalog.files != build.catalog.files;
                Changed::Some { providers: touched, objects }
            }
            _ => Changed::All,
        };
        self.built = Some(build.clone());
        build
    }

    /// The previous build, with new values in the providers that were touched and in the routes of these files.
    fn refresh(
        &self,
        built: &Build,
        touched: &BTreeSet<Arc<str>>,
        rerouted: &BTreeSet<ManifestPath>,
        restated: &BTreeSet<ManifestPath>,
    ) -> Build {
        let mut build = built.clone();
        for path in restated {
            let catalog = Arc::make_mut(&mut build.catalog);
            for object in objects(self.files.get(path)) {
                catalog.objects.insert(object.object_name(), object.clone());
            }
        }
        for path in rerouted {
            let catalog = Arc::make_mut(&mut build.catalog);
            let new = routes(self.files.get(path));
            // Routes are in the order of their files.
            let from = catalog.routes.partition_point(|route| *route.origin.file < **path);
            let old = catalog.routes.iter().skip(from).take_while(|route| route.origin.file == *path).count();
            catalog.routes.splice(from..from + old, new.iter().cloned());
            Arc::make_mut(&mut build.index).replace(path, new);
        }
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

    /// What files that are there declare, where others are missing: of the same, theirs is the newer word.
    fn moved(&self) -> Moved<'_> {
        let mut moved = Moved::default();
        if self.gone.is_empty() {
            return moved;
        }
        let here = self.files.iter().filter(|(path, _)| !self.gone.contains(*path));
        for parsed in here.filter_map(|(_, file)| file.parsed.as_ref()) {
            moved.providers.extend(parsed.providers.iter().map(|it| &*it.name));
            // A file with errors says nothing about routes, and which providers it means only by their names.
            if parsed.has_errors() {
                moved.providers.extend(parsed.mentioned.iter().map(|it| &**it));
            } else {
                moved.routes.extend(parsed.routes.iter().map(|it| said(it)));
                moved.objects.extend(parsed.objects.iter().map(|it| (it.kind(), &*it.name)));
            }
        }
        moved
    }

    fn rebuild(&self) -> Build {
        let mut diagnostics: Vec<Diagnostic> = Vec::new();
        let mut catalog = Catalog::default();
        let mut files = FileCounts::default();
        let mut objects = 0usize;
        let mut declared: HashMap<&str, Declared<'_>> = HashMap::with_capacity(self.files.len());
        let mut twice: BTreeMap<Arc<str>, Vec<Declared<'_>>> = BTreeMap::new();
        let mut route_places: Vec<&SourcePlace> = Vec::new();
        let mut defaults: BTreeMap<&str, DirectoryDefaults<'_>> = BTreeMap::new();
        let moved = self.moved();
        let mut callers = FoundObjects::default();
        let mut valid = BTreeSet::new();
        for (path, file) in &self.files {
            if let Some(unreadable) = &file.unreadable {
                files.unreadable += 1;
                diagnostics.push(unreadable.clone());
                catalog.frozen.files.insert(path.clone());
                if !self.known.contains(path) {
                    let why = format!("{path} cannot be read, so what it declares is not known");
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
            objects += parsed.objects.len() + parsed.mentions.len();
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
            let is_gone = self.gone.contains(path);
            if !parsed.is_empty() && !is_gone {
                valid.insert(path.clone());
            }
            callers.add(parsed, |object| is_gone && moved.objects.contains(&(object.kind(), &*object.name)));
            for (provider, place) in parsed.providers.iter().zip(&parsed.provider_places) {
                if is_gone && moved.providers.contains(&*provider.name) {
                    continue;
                }
                match declared.insert(&provider.name, (provider, place)) {
                    None => drop(catalog.providers.insert(provider.name.clone(), provider.clone())),
                    Some(before) => twice
                        .entry(provider.name.clone())
                        .or_insert_with(|| vec![before])
                        .push((provider, place)),
                }
            }
            for (route, place) in parsed.routes.iter().zip(&parsed.route_places) {
                if !(is_gone && moved.routes.contains(&said(route))) {
                    catalog.routes.push(route.clone());
                    route_places.push(place);
                }
            }
            if let Some(policy) = &parsed.default_health {
                if is_gone {
                    defaults.entry(parent(path)).or_default().kept.push(policy);
                    continue;
                }
                let place = parsed.defaults_place.as_ref();
                defaults.entry(parent(path)).or_default().set.push((path, policy, place));
            }
        }
        for (path, policy) in &self.last_defaults {
            if catalog.frozen.files.contains(path) {
                defaults.entry(parent(path)).or_default().kept.push(policy);
            }
        }
        for (name, providers) in twice {
            catalog.providers.remove(&name);
            for (provider, place) in &providers {
                let others =
                    providers.iter().map(|(other, _)| other).filter(|it| it.origin != provider.origin);
                let path = &provider.origin.file;
                diagnostics.push(others.fold(
                    at_object("duplicate-provider", path, place, format!("provider `{name}` is declared in several files"))
                        .with_help("a name is unique over all files; until then the provider stays at its last good state"),
                    |found, other| found.with_related(&other.origin.file, other.origin.line, "also declared here"),
                ));
            }
            catalog.frozen.providers.insert(name);
        }
        case_twins(&declared, &mut diagnostics);
        catalog.defaults = merge_defaults(&defaults, &mut diagnostics);
        let bad = check_routes(&catalog, &route_places, &mut diagnostics);
        let mut at = 0..;
        catalog.routes.retain(|_| !at.next().is_some_and(|at| bad.contains(&at)));
        callers.settle(&mut catalog, self.now, &mut diagnostics);
        catalog.files = Arc::new(valid);
        diagnostics.sort_by(|a, b| (&a.path, a.line, a.column).cmp(&(&b.path, b.line, b.column)));
        let with_errors = with_errors(&diagnostics);
        // Of a file with any error nothing is pruned: what a bad route made earlier stays, and so does whatever else the
        // file is the source of.
        catalog.frozen.files.extend(with_errors.iter().cloned());
        let files = self.count(&with_errors, files.unreadable);
        let index = Arc::new(RouteIndex::new(&catalog.routes));
        Build { catalog: Arc::new(catalog), index, diagnostics, changed: Changed::All, files }
    }
}

/// Whether it is about objects that several files claim.
fn is_rivalry(found: &Diagnostic) -> bool {
    matches!(
        found.code,
        "duplicate-provider"
            | "duplicate-route"
            | "duplicate-defaults"
            | "duplicate-object"
            | "duplicate-key"
    )
}

fn with_errors(diagnostics: &[Diagnostic]) -> HashSet<ManifestPath> {
    diagnostics.iter().filter(|it| it.severity == Severity::Error).map(|it| it.path.clone()).collect()
}

fn freeze(frozen: &mut Frozen, path: &ManifestPath, parsed: &ParsedFile) {
    frozen.files.insert(path.clone());
    frozen.providers.extend(parsed.mentioned.iter().cloned());
    frozen.providers.extend(parsed.providers.iter().map(|provider| provider.name.clone()));
}

/// A provider and where its name stands.
type Declared<'a> = (&'a Provider, &'a SourcePlace);

/// The defaults of one directory.
#[derive(Default)]
struct DirectoryDefaults<'a> {
    /// What its files set, and where that stands.
    set: Vec<(&'a ManifestPath, &'a HealthPolicy, Option<&'a SourcePlace>)>,
    /// What files that are bad now had set. A file that sets the same meanwhile is right.
    kept: Vec<&'a HealthPolicy>,
}

/// Warns of providers whose names differ only in case, at each of them.
fn case_twins(declared: &HashMap<&str, Declared<'_>>, diagnostics: &mut Vec<Diagnostic>) {
    let plain = |lower: &str| declared.get_key_value(lower).map(|(name, _)| *name);
    for names in spelled_alike(declared.keys().copied(), plain) {
        let mut group: Vec<&Declared<'_>> = names.iter().filter_map(|name| declared.get(name)).collect();
        group.sort_by(|a, b| (&a.0.origin, &a.0.name).cmp(&(&b.0.origin, &b.0.name)));
        for (provider, place) in group.iter().copied() {
            let message = format!("provider `{}` differs from another only in case", provider.name);
            let found =
                Diagnostic::at(Severity::Warning, "case-twin", &provider.origin.file, Some(place), message)
                    .with_help("programs that look names up without case take one for the other");
            let others = group.iter().map(|(other, _)| other).filter(|it| it.name != provider.name).take(3);
            diagnostics.push(others.fold(found, |found, other| {
                let said = format!("`{}` is declared here", other.name);
                found.with_related(&other.origin.file, other.origin.line, said)
            }));
        }
    }
}

fn at_object(code: &'static str, path: &ManifestPath, place: &SourcePlace, message: String) -> Diagnostic {
    Diagnostic::at(Severity::Error, code, path, Some(place), message)
}

/// Whether something was left out because there is too much of it.
fn is_cut(build: &Build) -> bool {
    build.diagnostics.iter().any(|it| matches!(it.code, "too-many-objects" | "too-many-rules"))
}

/// The directory of a path, `""` for the top.
fn parent(path: &str) -> &str {
    path.rsplit_once('/').map_or("", |(directory, _)| directory)
}

/// One policy for each directory that has defaults, its parents' included.
fn merge_defaults(
    found: &BTreeMap<&str, DirectoryDefaults<'_>>,
    diagnostics: &mut Vec<Diagnostic>,
) -> BTreeMap<Box<str>, HealthPolicy> {
    let mut merged: BTreeMap<Box<str>, HealthPolicy> = BTreeMap::new();
    // Parents come before their children in this order.
    for (directory, DirectoryDefaults { set: policies, kept }) in found {
        let mut policy = HealthPolicy::default();
        for (path, more, place) in policies {
            policy = policy.or(more);
            let clashing: Vec<_> = policies
                .iter()
                .filter(|(other, theirs, _)| other != path && !overlap(more, theirs).is_empty())
                .collect();
            let keys: BTreeSet<&str> =
                clashing.iter().flat_map(|(_, theirs, _)| overlap(more, theirs)).collect();
            if keys.is_empty() {
                continue;
            }
            let keys: Vec<String> = keys.iter().map(|key| format!("`{key}`")).collect();
            let message = format!("several files of this directory set the default {}", keys.join(", "));
            let clash = Diagnostic::at(Severity::Error, "duplicate-defaults", path, *place, message)
                .with_help(
                    "set each default in one file of a directory; until then the first file's is used",
                );
            diagnostics.push(clashing.iter().fold(clash, |clash, (other, _, place)| {
                clash.with_related(other, place.map_or(1, |it| it.line), "also set here")
            }));
        }
        for last_good in kept {
            policy = policy.or(last_good);
        }
        let outer = crate::model::nearest_defaults(&merged, directory).cloned().unwrap_or_default();
        merged.insert((*directory).into(), policy.or(&outer));
    }
    merged
}

/// The keys that both set.
fn overlap(a: &HealthPolicy, b: &HealthPolicy) -> Vec<&'static str> {
    let both = [
        ("interval", a.schedule.is_some() && b.schedule.is_some()),
        ("timeout", a.timeout.is_some() && b.timeout.is_some()),
        ("slow_after", a.slow_after.is_some() && b.slow_after.is_some()),
        ("path", a.path.is_some() && b.path.is_some()),
        ("expect_status", a.expect_status.is_some() && b.expect_status.is_some()),
    ];
    both.into_iter().filter_map(|(key, both)| both.then_some(key)).collect()
}

/// What two routes must not share: the models and the cell they speak about.
type Said<'a> = (&'a str, &'a str, &'a str, Option<&'a str>);

fn said(route: &Route) -> Said<'_> {
    (&route.models, route.power_level.as_str(), &route.user_tier, route.task_type.as_deref())
}

/// What may have moved out of a file that is missing.
#[derive(Default)]
struct Moved<'a> {
    providers: HashSet<&'a str>,
    routes: HashSet<Said<'a>>,
    objects: HashSet<(ObjectKind, &'a str)>,
}

/// Routes that match nothing, and routes that say the same: which ones they are. `places` has one for each route.
fn check_routes(
    catalog: &Catalog,
    places: &[&SourcePlace],
    diagnostics: &mut Vec<Diagnostic>,
) -> BTreeSet<usize> {
    let mut bad = BTreeSet::new();
    let mut first: HashMap<Said<'_>, usize> = HashMap::with_capacity(catalog.routes.len());
    let mut same: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
    let mut guesses = MAX_GUESSES;
    let mut expansion = Expansion::of(catalog);
    for (at, (route, place)) in catalog.routes.iter().zip(places).enumerate() {
        let key = said(route);
        let first = *first.entry(key).or_insert(at);
        if first != at {
            same.entry(first).or_insert_with(|| vec![first]).push(at);
        }
        let Some(models) = expansion.models(route) else {
            bad.insert(at);
            let message = format!(
                "up to this route all routes together mean more than {MAX_RULES} rules, or hold too many patterns against \
                 too many names; it is left out"
            );
            diagnostics.push(
                at_object("too-many-rules", &route.origin.file, place, message)
                    .with_help("name models, or fewer of them, in place of `*`"),
            );
            continue;
        };
        match if models > 0 { Reach::Models } else { reach(catalog, route) } {
            Reach::Models | Reach::Unknown => {}
            Reach::Discovered => diagnostics.push(idle(route, place)),
            Reach::Nothing => {
                bad.insert(at);
                let guess = guesses > 0;
                guesses = guesses.saturating_sub(1);
                diagnostics.push(dangling(catalog, route, place, guess));
            }
        }
    }
    for group in same.values() {
        bad.extend(group);
        let group = || group.iter().filter_map(|at| Some((&**catalog.routes.get(*at)?, *places.get(*at)?)));
        for (route, place) in group() {
            let message = format!(
                "several routes say where `{}` serves {} × {}",
                route.models, route.power_level, route.user_tier
            );
            let found = at_object("duplicate-route", &route.origin.file, place, message)
                .with_help("keep one of them, or give them different values of `task_type`");
            // A few others say enough; thousands of copies must not each name all of their like.
            let others = group().filter(|(other, _)| other.origin != route.origin).take(3);
            diagnostics.push(others.fold(found, |found, (other, _)| {
                found.with_related(&other.origin.file, other.origin.line, "said here too")
            }));
        }
    }
    bad
}

/// What a route stands for.
enum Reach {
    /// Declared models.
    Models,
    /// Nothing but what discovery may find.
    Discovered,
    /// What a bad file declares may be what it means; that is not known now.
    Unknown,
    Nothing,
}

/// What a route means that means no declared model.
fn reach(catalog: &Catalog, route: &Route) -> Reach {
    let (provider, _) = route.pattern();
    let frozen = &catalog.frozen;
    if provider.contains(['*', '?']) {
        let pattern = Pattern::new(provider);
        let mut matching = catalog.providers.values().filter(|it| pattern.matches(&it.name));
        if !frozen.files.is_empty() || !frozen.providers.is_empty() {
            Reach::Unknown
        } else if matching.any(|it| it.discover.is_some()) {
            Reach::Discovered
        } else {
            Reach::Nothing
        }
    } else {
        match catalog.providers.get(provider) {
            _ if frozen.providers.contains(provider) => Reach::Unknown,
            Some(found) if found.discover.is_some() => Reach::Discovered,
            Some(_) => Reach::Nothing,
            None if frozen.files.is_empty() => Reach::Nothing,
            None => Reach::Unknown,
        }
    }
}

/// Counts what routes expand to. Invariant: the work is bounded, and a name is looked up where it is not a pattern.
struct Expansion<'a> {
    catalog: &'a Catalog,
    names: HashMap<&'a str, HashSet<&'a str>>,
    rules: usize,
    matches: usize,
}

impl<'a> Expansion<'a> {
    fn of(catalog: &'a Catalog) -> Self {
        let models = |it: &'a Provider| it.models.iter().map(|model| &*model.name).collect();
        let names = catalog.providers.values().map(|it| (&*it.name, models(it))).collect();
        Self { catalog, names, rules: 0, matches: 0 }
    }

    /// How many declared models a route means; `None` where that is too much, and it is not counted.
    fn models(&mut self, route: &Route) -> Option<usize> {
        let (provider, model) = route.pattern();
        let mut found = 0;
        if provider.contains(['*', '?']) {
            let pattern = Pattern::new(provider);
            self.looked(self.catalog.providers.len())?;
            let catalog = self.catalog;
            for it in catalog.providers.values().filter(|it| pattern.matches(&it.name)) {
                found += self.of_provider(&it.name, model)?;
            }
        } else {
            found = self.of_provider(provider, model)?;
        }
        let rules = self.rules + found;
        (rules <= MAX_RULES).then(|| {
            self.rules = rules;
            found
        })
    }

    fn of_provider(&mut self, provider: &str, model: &str) -> Option<usize> {
        let looked =
            if model.contains(['*', '?']) { self.names.get(provider).map_or(0, HashSet::len) } else { 1 };
        self.looked(looked)?;
        let Some(names) = self.names.get(provider) else { return Some(0) };
        Some(match Pattern::new(model) {
            Pattern::Literal(name) => usize::from(names.contains(name)),
            Pattern::Glob(glob) => names.iter().filter(|name| glob.matches(name)).count(),
        })
    }

    fn looked(&mut self, names: usize) -> Option<()> {
        self.matches = self.matches.saturating_add(names);
        (self.matches <= MAX_MATCHES).then_some(())
    }
}

/// What to say about a route that waits for a model to be declared.
fn idle(route: &Route, place: &SourcePlace) -> Diagnostic {
    let (provider, model) = route.pattern();
    let message = format!("`{}` matches no declared model, so it routes nothing yet", route.models);
    let found = Diagnostic::at(Severity::Warning, "idle-route", &route.origin.file, Some(place), message)
        .with_label("what discovery finds is not routed before a manifest declares it");
    if provider.contains(['*', '?']) {
        return found
            .with_help("declare the models: `providerd models NAME --write` adds what a provider offers");
    }
    let glob = if model == "*" { String::new() } else { format!(" --match '{model}'") };
    found.with_help(format!("declare them: `providerd models {provider} --write{glob}` adds what it offers"))
}

/// What to say about a route that matches nothing; a guess at what was meant costs a look at all names.
fn dangling(catalog: &Catalog, route: &Route, place: &SourcePlace, guess: bool) -> Diagnostic {
    let (provider, model) = route.pattern();
    let message = format!("`{}` matches no declared model", route.models);
    let found = at_object("dangling-route", &route.origin.file, place, message);
    let is_glob = provider.contains(['*', '?']);
    match catalog.providers.get(provider) {
        None if is_glob => found.with_label("no provider of such a name has such a model"),
        None => {
            let close = guess.then(|| nearest(provider, catalog.providers.keys().map(|name| &**name)));
            let found = found.with_label(format!("no provider is called `{provider}`"));
            match close.flatten() {
                Some(close) => found.with_help(format!("did you mean `{close}/{model}`?")),
                None => found.with_help("declare the provider, or remove the route"),
            }
        }
        Some(it) if it.models.is_empty() => {
            found.with_label(format!("`{provider}` declares no model")).with_help(format!(
                "declare the model; `providerd models {provider} --write` adds what it offers"
            ))
        }
        Some(it) => {
            let close = guess.then(|| nearest(model, it.models.iter().map(|model| &*model.name)));
            match close.flatten() {
                Some(close) => found
                    .with_label(format!("`{provider}` has no model `{model}`"))
                    .with_help(format!("did you mean `{provider}/{close}`?")),
                None => found.with_label(format!("no model of `{provider}` is called so")).with_help(
                    format!("declare the model; `providerd models {provider} --write` adds what it offers"),
                ),
            }
        }
    }
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

/// The gateway's objects of a file that was read.
fn objects(file: Option<&ReadFile>) -> &[Arc<GatewayObject>] {
    file.and_then(|file| file.parsed.as_ref()).map_or(&[], |parsed| &parsed.objects)
}

/// Whether the gateway's objects of a file have the same names and mention the same things; keys may go.
fn same_objects(old: &ParsedFile, new: &ParsedFile) -> bool {
    let names = |file: &ParsedFile| file.objects.iter().map(|it| it.object_name()).collect::<Vec<_>>();
    let texts = |file: &ParsedFile| {
        let texts = file.mentions.iter().filter_map(|it| match &it.what {
            Mentioned::Key(_) => None,
            Mentioned::Pattern(text) | Mentioned::Target(text) => Some((it.object, text.clone())),
        });
        texts.collect::<Vec<_>>()
    };
    let keys = |file: &ParsedFile| {
        let keys = file.mentions.iter().filter_map(|it| match &it.what {
            // With another end, a key may have expired, or not any more.
            Mentioned::Key(key) => Some((key.sha256.clone(), key.expires)),
            Mentioned::Pattern(_) | Mentioned::Target(_) => None,
        });
        keys.collect::<HashSet<_>>()
    };
    names(old) == names(new) && texts(old) == texts(new) && keys(new).is_subset(&keys(old))
}

/// The routes of a file that was read.
fn routes(file: Option<&ReadFile>) -> &[Arc<Route>] {
    file.and_then(|file| file.parsed.as_ref()).map_or(&[], |parsed| &parsed.routes)
}

/// Whether routes speak about the same models and cells, in the same order; a route over several providers must be
/// the same throughout, because it concerns them all.
fn same_cells(old: &[Arc<Route>], new: &[Arc<Route>]) -> bool {
    let cell = |route: &Route| {
        (route.models.clone(), route.power_level, route.user_tier.clone(), route.task_type.clone())
    };
    old.len() == new.len()
        && old
            .iter()
            .zip(new)
            .all(|(old, new)| old == new || (old.literal_provider().is_some() && cell(old) == cell(new)))
}

/// Whether two versions of a file differ in nothing that another file could notice.
fn same_shape(old: &ReadFile, new: &ReadFile) -> bool {
    let (Some(old), Some(new)) = (&old.parsed, &new.parsed) else { return false };
    let unlisted =
        |provider: &Provider| provider.gateway.as_ref().and_then(|gateway| gateway.unlisted_models);
    let models =
        |provider: &Provider| provider.models.iter().map(|model| model.name.clone()).collect::<Vec<_>>();
    old.diagnostics.is_empty()
        && new.diagnostics.is_empty()
        && old.default_health == new.default_health
        && same_cells(&old.routes, &new.routes)
        && same_objects(old, new)
        && old.is_empty() == new.is_empty()
        && old.providers.len() == new.providers.len()
        && old.providers.iter().zip(&new.providers).all(|(old, new)| {
            old.name == new.name
                && old.discover.is_some() == new.discover.is_some()
                && unlisted(old) == unlisted(new)
                && old.model_prefixes == new.model_prefixes
                && models(old) == models(new)
        })
}
