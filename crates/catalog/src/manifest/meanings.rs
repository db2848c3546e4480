//! What the gateway's objects mean beside all other files: names and keys that are declared twice, aliases that lead in a
//! circle, names and patterns that nothing answers to, keys whose time is over.
//!
//! PURE. Invariants: an object that is declared twice is in no catalog and its name is frozen; a warning is given only
//! where all files together are sure to declare no such thing; no step is quadratic, whatever the manifests hold.

use std::{
    cell::Cell,
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
};

use wildmatch::WildMatch;

use super::{
    Diagnostic, ParsedFile, Severity,
    callers::{AUTO, Mention, Mentioned},
    diagnostic::SourcePlace,
    values::nearest,
};
use crate::{
    model::{Catalog, ManifestPath, PowerLevel, Provider},
    serving::{ConsumerKey, GatewayObject, ObjectBody, ObjectKind, ObjectName},
};

/// What was probably meant is looked for so many times among all names; the rest is reported without.
const MAX_GUESSES: usize = 100;
/// Names that patterns are held against in one build: a tenth of a second. Patterns beyond are believed.
const MAX_MATCHES: usize = 2_000_000;

/// Objects with what they mention, as their files hold them.
#[derive(Default)]
pub(super) struct FoundObjects<'a> {
    declared: Vec<(&'a Arc<GatewayObject>, &'a SourcePlace)>,
    /// The object's index in `declared`, and what it says.
    mentions: Vec<(usize, &'a Mention)>,
}

impl<'a> FoundObjects<'a> {
    /// Takes a file's objects but for those that `skip` names.
    pub fn add(&mut self, file: &'a ParsedFile, skip: impl Fn(&GatewayObject) -> bool) {
        let mut at: Vec<Option<usize>> = Vec::with_capacity(file.objects.len());
        for (object, place) in file.objects.iter().zip(&file.object_places) {
            let taken = !skip(object);
            at.push(taken.then_some(self.declared.len()));
            if taken {
                self.declared.push((object, place));
            }
        }
        let found = file.mentions.iter().filter_map(|it| Some((at.get(it.object).copied().flatten()?, it)));
        self.mentions.extend(found);
    }

    /// Fills the catalog with what is declared once, and says what is wrong with the rest. `now`: Unix seconds.
    pub fn settle(self, catalog: &mut Catalog, now: Option<i64>, diagnostics: &mut Vec<Diagnostic>) {
        if self.declared.is_empty() {
            return;
        }
        let mut bad: HashSet<usize> = HashSet::new();
        self.names(&mut bad, diagnostics);
        self.keys(&mut bad, diagnostics);
        for (at, (object, _)) in self.declared.iter().enumerate() {
            if bad.contains(&at) {
                catalog.frozen.objects.insert(object.object_name());
            }
        }
        for (object, _) in &self.declared {
            let name = object.object_name();
            if !catalog.frozen.objects.contains(&name) {
                catalog.objects.insert(name, (*object).clone());
            }
        }
        if let Some(now) = now {
            self.expired(now, diagnostics);
        }
        // What a bad file declares may be what is meant.
        if catalog.frozen.files.is_empty() {
            self.idle(catalog, diagnostics);
        }
        self.circles(diagnostics);
    }

    fn path(&self, object: usize) -> Option<&'a ManifestPath> {
        self.declared.get(object).map(|(object, _)| &object.origin.file)
    }

    fn names(&self, bad: &mut HashSet<usize>, diagnostics: &mut Vec<Diagnostic>) {
        let mut groups: BTreeMap<ObjectName, Vec<usize>> = BTreeMap::new();
        for (at, (object, _)) in self.declared.iter().enumerate() {
            groups.entry(object.object_name()).or_default().push(at);
        }
        for group in groups.into_values().filter(|group| group.len() > 1) {
            bad.extend(&group);
            let said = group.iter().filter_map(|at| self.declared.get(*at));
            for (object, place) in said.clone() {
                let message =
                    format!("{} `{}` is declared in several files", object.kind().noun(), object.name);
                let found = Diagnostic::at(
                    Severity::Error,
                    "duplicate-object",
                    &object.origin.file,
                    Some(place),
                    message,
                )
                .with_help("a name is unique over all files; until then it stays at its last good state");
                let others = said.clone().filter(|(other, _)| other.origin != object.origin).take(3);
                diagnostics.push(others.fold(found, |found, (other, _)| {
                    found.with_related(&other.origin.file, other.origin.line, "also declared here")
                }));
            }
        }
    }

    fn keys(&self, bad: &mut HashSet<usize>, diagnostics: &mut Vec<Diagnostic>) {
        let mut groups: BTreeMap<&str, Vec<(usize, &Mention)>> = BTreeMap::new();
        for (at, mention) in &self.mentions {
            if let Mentioned::Key(ConsumerKey { sha256, .. }) = &mention.what {
                groups.entry(sha256).or_default().push((*at, mention));
            }
        }
        for group in groups.into_values().filter(|group| group.len() > 1) {
            bad.extend(group.iter().map(|(at, _)| *at));
            for (at, mention) in &group {
                let Some(path) = self.path(*at) else { continue };
                let found = Diagnostic::at(
                    Severity::Error,
                    "duplicate-key",
                    path,
                    Some(&mention.place),
                    "this key is declared several times",
                )
                .with_help("a key opens one consumer; until then each of them stays at its last good state");
                let others = group.iter().filter(|(_, other)| !std::ptr::eq(*other, *mention)).take(3);
                diagnostics.push(others.fold(found, |found, (at, other)| match self.path(*at) {
                    Some(path) => found.with_related(path, other.place.line, "also declared here"),
                    None => found,
                }));
            }
        }
    }

    fn expired(&self, now: i64, diagnostics: &mut Vec<Diagnostic>) {
        for (at, mention) in &self.mentions {
            if let (Mentioned::Key(ConsumerKey { expires: Some(expires), .. }), Some(path)) =
                (&mention.what, self.path(*at))
                && *expires <= now
            {
                let message = "this key has expired and opens nothing";
                diagnostics.push(warn_at("expired-key", path, &mention.place, message).with_help(
                    "take it out, or give its consumer a later one: `providerd key consumer NAME`",
                ));
            }
        }
    }

    /// Aliases and patterns that nothing answers to.
    fn idle(&self, catalog: &Catalog, diagnostics: &mut Vec<Diagnostic>) {
        if self.mentions.is_empty() {
            return;
        }
        let names = Names::new(catalog);
        let mut guesses = MAX_GUESSES;
        for (at, mention) in &self.mentions {
            let Some(path) = self.path(*at) else { continue };
            match &mention.what {
                Mentioned::Key(_) => {}
                Mentioned::Target(text) => {
                    if names.answers(text) {
                        continue;
                    }
                    let guess = take_one(&mut guesses);
                    let found = warn_at(
                        "idle-alias",
                        path,
                        &mention.place,
                        format!("`{text}` is not a declared model, alias or power level"),
                    );
                    diagnostics.push(match guess.then(|| names.meant(text)).flatten() {
                        Some(close) => found.with_help(format!("did you mean `{close}`?")),
                        None => found.with_help("until it is declared, the alias passes it over"),
                    });
                }
                Mentioned::Pattern(text) => {
                    if names.matches(text) {
                        continue;
                    }
                    let guess = take_one(&mut guesses);
                    let plain = text.trim_start_matches('!');
                    let found = warn_at(
                        "idle-pattern",
                        path,
                        &mention.place,
                        format!("`{text}` matches no declared model, alias or power level"),
                    );
                    let close = guess.then(|| names.meant(plain)).flatten();
                    diagnostics.push(match close {
                        Some(close) => {
                            let mark = if text.starts_with('!') { "!" } else { "" };
                            found.with_help(format!("did you mean `{mark}{close}`?"))
                        }
                        None => {
                            found.with_help("patterns stand for `provider/model`, aliases and power levels")
                        }
                    });
                }
            }
        }
    }

    /// Aliases that lead back to themselves: each is said where the circle closes.
    fn circles(&self, diagnostics: &mut Vec<Diagnostic>) {
        let mut aliases: HashMap<&str, usize> = HashMap::new();
        for (at, (object, _)) in self.declared.iter().enumerate() {
            if matches!(object.body, ObjectBody::Alias(_)) {
                aliases.entry(&object.name).or_insert(at);
            }
        }
        let mut leads: HashMap<usize, Vec<(usize, &Mention)>> = HashMap::new();
        for (at, mention) in &self.mentions {
            if let Mentioned::Target(text) = &mention.what
                && let Some(to) = aliases.get(&**text)
            {
                leads.entry(*at).or_default().push((*to, mention));
            }
        }
        // Without recursion: a chain may be as long as a file.
        let mut done: HashSet<usize> = HashSet::new();
        let mut from: Vec<usize> = leads.keys().copied().collect();
        from.sort_unstable();
        for start in from {
            let mut open: HashSet<usize> = HashSet::from([start]);
            let mut path: Vec<(usize, usize)> = vec![(start, 0)];
            if done.contains(&start) {
                continue;
            }
            while let Some((at, next)) = path.last_mut() {
                let (here, step) = (*at, *next);
                *next += 1;
                match leads.get(&here).and_then(|all| all.get(step)) {
                    None => {
                        done.insert(here);
                        open.remove(&here);
                        path.pop();
                    }
                    Some((to, mention)) if open.contains(to) => {
                        let (Some(file), Some((alias, _))) = (self.path(here), self.declared.get(*to)) else {
                            continue;
                        };
                        let found = warn_at(
                            "alias-circle",
                            file,
                            &mention.place,
                            format!("alias `{}` leads back to itself here", alias.name),
                        )
                        .with_help("a circle is followed once and then left");
                        diagnostics.push(found.with_related(
                            &alias.origin.file,
                            alias.origin.line,
                            "declared here",
                        ));
                    }
                    Some((to, _)) if !done.contains(to) => {
                        open.insert(*to);
                        path.push((*to, 0));
                    }
                    Some(_) => {}
                }
            }
        }
    }
}

/// Whether there was one left.
const fn take_one(left: &mut usize) -> bool {
    let any = *left > 0;
    *left = left.saturating_sub(1);
    any
}

fn warn_at(
    code: &'static str,
    path: &ManifestPath,
    place: &SourcePlace,
    message: impl Into<String>,
) -> Diagnostic {
    Diagnostic::at(Severity::Warning, code, path, Some(place), message)
}

/// Whether names that no manifest declares may be served too.
fn is_open(provider: &Provider) -> bool {
    provider.discover.is_some()
        || provider.gateway.as_ref().is_some_and(|gateway| gateway.unlisted_models == Some(true))
}

/// Everything that may be asked for.
struct Names<'a> {
    catalog: &'a Catalog,
    models: HashSet<(&'a str, &'a str)>,
    bare: HashSet<&'a str>,
    prefixes: HashMap<&'a str, &'a Provider>,
    prefix_lengths: Vec<usize>,
    aliases: HashSet<&'a str>,
    /// Some provider serves what is not declared.
    any_open: bool,
    /// How many more names patterns may be held against.
    matches_left: Cell<usize>,
}

impl<'a> Names<'a> {
    fn new(catalog: &'a Catalog) -> Self {
        let each = || {
            catalog
                .providers
                .values()
                .flat_map(|provider| provider.models.iter().map(move |it| (provider, it)))
        };
        let prefixes: HashMap<&str, &Provider> = catalog
            .providers
            .values()
            .flat_map(|provider| {
                let prefixes = provider.model_prefixes.iter().flatten();
                prefixes.filter(|it| !it.is_empty()).map(|prefix| (&**prefix, &**provider))
            })
            .collect();
        let mut prefix_lengths: Vec<usize> = prefixes.keys().map(|it| it.len()).collect();
        prefix_lengths.sort_unstable_by(|a, b| b.cmp(a));
        prefix_lengths.dedup();
        let objects = catalog.objects.keys().chain(&catalog.frozen.objects);
        Self {
            catalog,
            models: each().map(|(provider, model)| (&*provider.name, &*model.name)).collect(),
            bare: each().map(|(_, model)| &*model.name).collect(),
            prefixes,
            prefix_lengths,
            aliases: objects
                .filter(|(kind, _)| *kind == ObjectKind::Alias)
                .map(|(_, name)| &**name)
                .collect(),
            any_open: catalog.providers.values().any(|it| is_open(it)),
            matches_left: Cell::new(MAX_MATCHES),
        }
    }

    fn is_word(&self, text: &str) -> bool {
        PowerLevel::parse(text).is_some() || text == AUTO || self.aliases.contains(text)
    }

    /// Whether a provider may serve a model of this name. `None`: there is no such provider.
    fn serves(&self, provider: &str, model: &str) -> Option<bool> {
        if self.catalog.frozen.providers.contains(provider) {
            return Some(true);
        }
        let provider = self.catalog.providers.get(provider)?;
        Some(is_open(provider) || self.models.contains(&(&*provider.name, model)))
    }

    /// Whether something may answer to what an alias stands for.
    fn answers(&self, text: &str) -> bool {
        if self.is_word(text) || self.bare.contains(text) {
            return true;
        }
        if let Some((provider, model)) = text.split_once('/')
            && let Some(serves) = self.serves(provider, model)
        {
            return serves;
        }
        let prefixed = self.prefix_lengths.iter().find_map(|length| {
            let (prefix, rest) = text.split_at_checked(*length)?;
            self.prefixes.get(prefix).map(|provider| (*provider, rest))
        });
        match prefixed {
            Some((provider, rest)) => self.serves(&provider.name, rest).unwrap_or(false),
            // Some catalogue may list a name of any form.
            None => self.any_open,
        }
    }

    /// Whether a consumer's pattern stands for anything.
    fn matches(&self, text: &str) -> bool {
        let (refuses, text) = match text.strip_prefix('!') {
            Some(rest) => (true, rest),
            None => (false, text),
        };
        if !text.contains(['*', '?']) {
            let serves = text.split_once('/').and_then(|(provider, model)| self.serves(provider, model));
            return self.is_word(text)
                || serves.unwrap_or(false)
                || refuses && (self.bare.contains(text) || self.any_open && !text.contains('/'));
        }
        if refuses {
            // A precaution: it may well match nothing.
            return true;
        }
        let pattern = WildMatch::new(text);
        let mut words = PowerLevel::ALL.iter().map(|it| it.as_str()).chain(self.aliases.iter().copied());
        if words.any(|word| pattern.matches(word)) {
            return true;
        }
        match text.split_once('/').filter(|(provider, _)| !provider.contains(['*', '?'])) {
            Some((name, _)) => {
                self.catalog.frozen.providers.contains(name)
                    || self
                        .catalog
                        .providers
                        .get(name)
                        .is_some_and(|provider| is_open(provider) || self.any_model(provider, &pattern))
            }
            None => {
                self.any_open
                    || !self.catalog.frozen.providers.is_empty()
                    || self.catalog.providers.values().any(|it| self.any_model(it, &pattern))
            }
        }
    }

    fn any_model(&self, provider: &Provider, pattern: &WildMatch) -> bool {
        let mut full = format!("{}/", provider.name);
        let length = full.len();
        provider.models.iter().any(|model| {
            let left = self.matches_left.get();
            self.matches_left.set(left.saturating_sub(1));
            full.truncate(length);
            full.push_str(&model.name);
            left == 0 || pattern.matches(&full)
        })
    }

    /// The name that was probably meant.
    fn meant(&self, text: &str) -> Option<String> {
        if let Some((provider, model)) = text.split_once('/') {
            return match self.catalog.providers.get(provider) {
                Some(found) => {
                    let close = nearest(model, found.models.iter().map(|it| &*it.name))?;
                    Some(format!("{provider}/{close}"))
                }
                None => {
                    let close = nearest(provider, self.catalog.providers.keys().map(|it| &**it))?;
                    Some(format!("{close}/{model}"))
                }
            };
        }
        let words = PowerLevel::ALL.iter().map(|it| it.as_str());
        let mut names: Vec<&str> = words.chain(self.aliases.iter().copied()).collect();
        names.extend(&self.bare);
        // Equally near ones must not depend on how a set is ordered.
        names.sort_unstable();
        nearest(text, names).map(str::to_owned)
    }
}
