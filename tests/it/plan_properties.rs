//! The planner against a database in memory: whatever the manifests and other people do, applying a plan and
//! planning again yields nothing, what nobody declared is untouched, and every declared value is held.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use proptest::prelude::*;
use serde_json::Value;
use uuid::Uuid;

use catalog::{
    model::{
        Catalog, Cell, Frozen, HealthPolicy, JsonMap, ManifestPath, Model, Origin, PowerLevel, Provider,
    },
    plan::{
        Action, ChangedTable, Desired, DesiredKey, FieldChange, Fingerprint, KeyAction, LiveKey, LiveModel,
        LiveObject, LiveProvider, LiveRule, Managed, Plan, PlanInput, Policy, PruneLimit, World, plan,
    },
    policy::DriftPolicy,
    routing::DesiredRule,
    serving::{Allowance, Consumer, GatewayObject, ObjectBody, ObjectKind, OfferSettings, UpstreamSettings},
};
use provider::ProviderType;

fn policy() -> Policy {
    Policy {
        drift: DriftPolicy::Correct,
        prune_limit: PruneLimit { percent: 100, at_least: 1000 },
        confirmed: None,
        suspended: BTreeSet::new(),
        hold_cells: BTreeSet::new(),
        trials: None,
        require_valid: true,
    }
}

fn new_id() -> Uuid {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    Uuid::from_u64_pair(7, NEXT.fetch_add(1, Ordering::Relaxed))
}

/// What the store does with a plan, on values in memory; beside it what is declared for the gateway.
#[derive(Default)]
struct Database(World, Catalog);

impl Database {
    fn plan(&mut self, desired: &BTreeMap<Arc<str>, Desired>, policy: &Policy, frozen: &Frozen) -> Plan {
        self.0.managed_total = self.0.managed.len();
        let with_usage = HashSet::new();
        plan(&PlanInput {
            desired,
            world: &self.0,
            frozen,
            objects: Some(&self.1),
            policy,
            with_usage: &with_usage,
            new_id: &new_id,
        })
    }

    fn live(&mut self, id: Uuid) -> &mut LiveProvider {
        self.0.live.values_mut().find(|live| live.id == id).expect("the provider exists")
    }

    fn model(&mut self, id: Uuid) -> &mut LiveModel {
        self.0
            .live
            .values_mut()
            .flat_map(|live| &mut live.models)
            .find(|model| model.id == id)
            .expect("the model exists")
    }

    fn rule(&mut self, id: Uuid) -> &mut LiveRule {
        let models = self.0.live.values_mut().flat_map(|live| &mut live.models);
        models.flat_map(|model| &mut model.rules).find(|rule| rule.id == id).expect("the rule exists")
    }

    fn apply(&mut self, plan: &Plan) {
        for change in &plan.objects {
            let name = (change.kind, change.name.clone());
            match (&change.spec, change.action) {
                (None, Action::Delete) => {
                    drop(self.0.objects.remove(&name).expect("what is deleted is there"))
                }
                (Some(spec), Action::Create | Action::Update | Action::Release) => {
                    // jsonb keeps values, not how they were written.
                    let spec = serde_json::from_str(&spec.to_string()).unwrap();
                    let applied = Some(change.digest());
                    self.0.objects.insert(name, LiveObject { spec, origin: change.origin.clone(), applied });
                }
                other => panic!("{other:?}"),
            }
        }
        for provider in &plan.providers {
            for change in &provider.changes {
                match (change.kind, change.action) {
                    (ChangedTable::Provider, Action::Create) => {
                        let mut live = blank_provider(&change.name, change.id);
                        change.fields.iter().for_each(|field| set_provider(&mut live, field));
                        assert!(
                            self.0.live.insert(live.name.clone(), live).is_none(),
                            "no row is created twice"
                        );
                    }
                    (ChangedTable::Model, Action::Create) => {
                        let name = change.name.split_once('/').expect("provider/model").1;
                        let mut model = blank_model(name, change.id);
                        change.fields.iter().for_each(|field| set_model(&mut model, field));
                        let live = self.live(change.parent);
                        assert!(
                            live.models.iter().all(|other| other.name != name),
                            "unique (provider_id, name)"
                        );
                        live.models.push(model);
                    }
                    (ChangedTable::Route, Action::Create) => {
                        let mut rule = blank_rule(change.id);
                        change.fields.iter().for_each(|field| set_rule(&mut rule, field));
                        self.model(change.parent).rules.push(rule);
                    }
                    (ChangedTable::Provider, Action::Delete | Action::Retire) => {
                        self.0.live.retain(|_, live| live.id != change.id)
                    }
                    (ChangedTable::Model, Action::Delete) => {
                        self.0
                            .live
                            .values_mut()
                            .for_each(|live| live.models.retain(|model| model.id != change.id));
                    }
                    (ChangedTable::Route, Action::Delete) => {
                        let models = self.0.live.values_mut().flat_map(|live| &mut live.models);
                        models.for_each(|model| model.rules.retain(|rule| rule.id != change.id));
                    }
                    (_, Action::Release) => {}
                    (ChangedTable::Provider, _) => {
                        let live = self.live(change.id);
                        change.fields.iter().for_each(|field| set_provider(live, field));
                    }
                    (ChangedTable::Model, _) => {
                        let model = self.model(change.id);
                        change.fields.iter().for_each(|field| set_model(model, field));
                    }
                    (ChangedTable::Route, _) => {
                        let rule = self.rule(change.id);
                        change.fields.iter().for_each(|field| set_rule(rule, field));
                    }
                }
            }
            if let Some(key) = &provider.key {
                let live = self.live(provider.id);
                match key.action {
                    KeyAction::Set => {
                        live.key =
                            LiveKey::Known { fingerprint: key.new.clone().unwrap(), columns_agree: true }
                    }
                    KeyAction::Wipe => live.key = LiveKey::Absent,
                    KeyAction::Align => {
                        if let LiveKey::Known { columns_agree, .. } = &mut live.key {
                            *columns_agree = true;
                        }
                    }
                    KeyAction::Pending => {}
                }
            }
            if let Some(record) = &provider.record {
                self.0.managed.insert(provider.name.clone(), Managed::clone(record));
            }
            if provider.forget {
                self.0.managed.remove(&provider.name);
            }
        }
        // Renamed rows stand under their new name.
        let rows: Vec<LiveProvider> = std::mem::take(&mut self.0.live).into_values().collect();
        self.0.live = rows.into_iter().map(|live| (live.name.clone(), live)).collect();
    }
}

fn blank_provider(name: &str, id: Uuid) -> LiveProvider {
    LiveProvider {
        id,
        name: name.into(),
        kind: None,
        enabled: None,
        priority: None,
        api_base_url: None,
        api_key_source: None,
        key: LiveKey::Absent,
        key_test_status: None,
        health_status: None,
        config: JsonMap::new(),
        models: Vec::new(),
    }
}

fn blank_model(name: &str, id: Uuid) -> LiveModel {
    LiveModel {
        id,
        name: name.into(),
        display_name: None,
        context_length: None,
        cost_per_1m_tokens: None,
        cost_per_1m_input_tokens: None,
        cost_per_1m_output_tokens: None,
        enabled: None,
        metadata: JsonMap::new(),
        rules: Vec::new(),
    }
}

fn blank_rule(id: Uuid) -> LiveRule {
    LiveRule {
        id,
        power_level: None,
        user_tier: None,
        task_type: None,
        priority: None,
        weight: None,
        is_active: None,
    }
}

fn string(value: &Value) -> Option<String> {
    value.as_str().map(str::to_owned)
}

fn int(value: &Value) -> Option<i32> {
    value.as_i64().and_then(|it| i32::try_from(it).ok())
}

fn set_provider(live: &mut LiveProvider, FieldChange { field, new, .. }: &FieldChange) {
    match &**field {
        "name" => live.name = new.as_str().expect("a name").into(),
        "type" => live.kind = string(new),
        "enabled" => live.enabled = new.as_bool(),
        "priority" => live.priority = int(new),
        "api_base_url" => live.api_base_url = string(new),
        "api_key_source" => live.api_key_source = string(new),
        other => {
            let key = other.strip_prefix("config.").unwrap_or_else(|| panic!("unknown field {other}"));
            live.config.insert(key.into(), new.clone());
        }
    }
}

fn set_model(live: &mut LiveModel, FieldChange { field, new, .. }: &FieldChange) {
    let four = |value: &Value| value.as_f64().map(|it| (it * 10_000.0).round() / 10_000.0);
    match &**field {
        "name" => live.name = new.as_str().expect("a name").into(),
        "display_name" => live.display_name = string(new),
        "context_length" => live.context_length = int(new),
        "cost_per_1m_tokens" => live.cost_per_1m_tokens = four(new),
        "cost_per_1m_input_tokens" => live.cost_per_1m_input_tokens = four(new),
        "cost_per_1m_output_tokens" => live.cost_per_1m_output_tokens = four(new),
        "enabled" => live.enabled = new.as_bool(),
        other => {
            let key = other.strip_prefix("metadata.").unwrap_or_else(|| panic!("unknown field {other}"));
            live.metadata.insert(key.into(), new.clone());
        }
    }
}

fn set_rule(live: &mut LiveRule, FieldChange { field, new, .. }: &FieldChange) {
    match &**field {
        "power_level" => live.power_level = string(new),
        "user_tier" => live.user_tier = string(new),
        "task_type" => live.task_type = string(new),
        "priority" => live.priority = int(new),
        "weight" => live.weight = int(new),
        "is_active" => live.is_active = new.as_bool(),
        other => panic!("unknown field {other}"),
    }
}

// ---------------------------------------------------------------- what may happen

#[derive(Debug, Clone)]
enum Step {
    /// The whole directory now declares this.
    Manifests(Vec<DesiredSpec>),
    /// The whole directory now declares these callers.
    Callers(Vec<CallerSpec>),
    /// Another program writes.
    Foreign(Foreign),
}

/// A consumer or a tier, in one of two files.
#[derive(Debug, Clone)]
struct CallerSpec {
    name: u8,
    is_tier: bool,
    file: u8,
    requests: Option<u8>,
}

#[derive(Debug, Clone)]
struct DesiredSpec {
    name: u8,
    enabled: Option<bool>,
    priority: Option<i32>,
    region: Option<u8>,
    in_flight: Option<u8>,
    key: Option<u8>,
    models: Vec<(u8, Option<bool>, Option<u16>)>,
    rules: Vec<(u8, bool, Option<i32>)>,
}

#[derive(Debug, Clone)]
enum Foreign {
    Enable(u8, bool),
    Priority(u8, i32),
    Rename(u8),
    Delete(u8),
    Config(u8, u8),
    Key(u8, Option<u8>),
    DeleteModel(u8),
    DisableModel(u8),
    DeleteRules(u8),
    AddRule(u8),
    AddProvider(u8),
    /// Rows of `gateway_object`, counted from the first: another spec, none, one more.
    ChangeObject(u8, u8),
    DeleteObject(u8),
    AddObject(u8, bool),
}

fn spec() -> impl Strategy<Value = DesiredSpec> {
    let models =
        prop::collection::btree_map(0..3u8, (any::<Option<bool>>(), prop::option::of(0..5000u16)), 0..3);
    let rules = prop::collection::btree_map((0..3u8, any::<bool>()), prop::option::of(0..9i32), 0..3);
    (
        0..4u8,
        any::<Option<bool>>(),
        prop::option::of(0..9i32),
        prop::option::of(0..3u8),
        prop::option::of(0..3u8),
        prop::option::of(0..3u8),
        models,
        rules,
    )
        .prop_map(|(name, enabled, priority, region, in_flight, key, models, rules)| DesiredSpec {
            name,
            enabled,
            priority,
            region,
            in_flight,
            key,
            models: models.into_iter().map(|(model, (enabled, cost))| (model, enabled, cost)).collect(),
            rules: rules.into_iter().map(|((model, eco), priority)| (model, eco, priority)).collect(),
        })
}

fn callers() -> impl Strategy<Value = Vec<CallerSpec>> {
    let one = (0..4u8, any::<bool>(), 0..2u8, prop::option::of(0..3u8));
    let one = one.prop_map(|(name, is_tier, file, requests)| CallerSpec { name, is_tier, file, requests });
    prop::collection::vec(one, 0..5)
}

/// The catalog that these callers make; of two with one name the last counts.
fn catalog_of(callers: &[CallerSpec]) -> Catalog {
    let mut catalog = Catalog::default();
    let mut files = BTreeSet::new();
    for caller in callers {
        let file: ManifestPath = format!("callers{}.toml", caller.file).into();
        files.insert(file.clone());
        let allowance =
            Allowance { requests_per_minute: caller.requests.map(u64::from), ..Allowance::default() };
        let body = if caller.is_tier {
            ObjectBody::Tier(allowance)
        } else {
            ObjectBody::Consumer(Consumer { allowance, ..Consumer::default() })
        };
        let origin = Origin { file, line: 1 };
        let object = GatewayObject { name: format!("c{}", caller.name).into(), origin, body };
        catalog.objects.insert(object.object_name(), Arc::new(object));
    }
    catalog.files = Arc::new(files);
    catalog
}

fn step() -> impl Strategy<Value = Step> {
    let foreign = prop_oneof![
        (0..5u8, any::<bool>()).prop_map(|(a, b)| Foreign::Enable(a, b)),
        (0..5u8, 0..9i32).prop_map(|(a, b)| Foreign::Priority(a, b)),
        (0..5u8).prop_map(Foreign::Rename),
        (0..5u8).prop_map(Foreign::Delete),
        (0..5u8, 0..3u8).prop_map(|(a, b)| Foreign::Config(a, b)),
        (0..5u8, prop::option::of(0..3u8)).prop_map(|(a, b)| Foreign::Key(a, b)),
        (0..5u8).prop_map(Foreign::DeleteModel),
        (0..5u8).prop_map(Foreign::DisableModel),
        (0..5u8).prop_map(Foreign::DeleteRules),
        (0..5u8).prop_map(Foreign::AddRule),
        (0..5u8).prop_map(Foreign::AddProvider),
        (0..5u8, 0..4u8).prop_map(|(a, b)| Foreign::ChangeObject(a, b)),
        (0..5u8).prop_map(Foreign::DeleteObject),
        (0..5u8, any::<bool>()).prop_map(|(a, b)| Foreign::AddObject(a, b)),
    ];
    prop_oneof![
        prop::collection::vec(spec(), 0..4).prop_map(Step::Manifests),
        callers().prop_map(Step::Callers),
        foreign.prop_map(Step::Foreign)
    ]
}

fn fingerprint(key: u8) -> Fingerprint {
    Fingerprint(format!("{key:016x}").into())
}

fn desired(specs: &[DesiredSpec]) -> BTreeMap<Arc<str>, Desired> {
    let one = |spec: &DesiredSpec| {
        let name: Arc<str> = format!("p{}", spec.name).into();
        let origin = Origin { file: format!("{name}.toml").into(), line: 1 };
        let model = |&(model, enabled, cost): &(u8, Option<bool>, Option<u16>)| Model {
            name: format!("m{model}").into(),
            line: 2,
            display_name: None,
            context_length: cost.map(i32::from),
            cost_per_1m_input_tokens: cost.map(|it| f64::from(it) / 1000.0),
            cost_per_1m_output_tokens: cost.map(|it| f64::from(it) / 500.0),
            enabled,
            metadata: JsonMap::new(),
            gateway: spec.in_flight.filter(|_| cost.is_some()).map(|most| {
                Box::new(OfferSettings {
                    max_output_tokens: Some(u32::from(most)),
                    ..OfferSettings::default()
                })
            }),
        };
        let rules = spec
            .rules
            .iter()
            .filter(|(model, ..)| spec.models.iter().any(|(declared, ..)| declared == model))
            .map(|&(model, eco, priority)| DesiredRule {
                model: format!("m{model}").into(),
                cell: Cell {
                    power_level: if eco { PowerLevel::Eco } else { PowerLevel::Precision },
                    user_tier: "all".into(),
                    task_type: None,
                },
                priority,
                weight: None,
                enabled: None,
                origin: origin.clone(),
            })
            .collect();
        let mut config = JsonMap::new();
        if let Some(region) = spec.region {
            // A float that jsonb keeps as it was written, and one that looks like an integer.
            config.insert("region".into(), Value::from(f64::from(region) / 2.0));
        }
        let provider = Provider {
            name: name.clone(),
            origin: origin.clone(),
            kind: ProviderType::OllamaCloud,
            enabled: spec.enabled,
            priority: spec.priority,
            base_url: None,
            model_prefixes: None,
            description: None,
            api_key: None,
            api_key_source: None,
            config,
            health: HealthPolicy::default(),
            discover: None,
            gateway: spec.in_flight.map(|most| {
                let max_in_flight = Some(u32::from(most));
                Box::new(UpstreamSettings { max_in_flight, ..UpstreamSettings::default() })
            }),
            models: spec.models.iter().map(model).collect(),
        };
        let key = spec.key.map_or(DesiredKey::Undeclared, |key| match key {
            2 => DesiredKey::Unresolved("variable UNSET is not set".into()),
            key => DesiredKey::Resolved(fingerprint(key)),
        });
        (name, Desired { provider: Arc::new(provider), rules, key })
    };
    specs.iter().map(one).collect()
}

fn name_of(kind: ObjectKind, at: u8) -> String {
    if kind == ObjectKind::Provider { format!("p{at}") } else { format!("c{at}") }
}

/// Rows of the gateway beside what declares them.
fn check_objects(database: &Database, declared: &BTreeMap<Arc<str>, Desired>) {
    let rows = &database.0.objects;
    for (name, object) in &database.1.objects {
        assert_eq!(rows[name].spec, object.spec());
        assert_eq!(rows[name].origin.as_ref().map(|it| &it.file), Some(&object.origin.file));
    }
    let of_providers = declared.values().flat_map(|desired| catalog::serving::of_provider(&desired.provider));
    let of_providers: BTreeMap<_, _> =
        of_providers.map(|(kind, name, _, spec)| ((kind, Arc::from(name)), spec)).collect();
    for (name, spec) in &of_providers {
        assert_eq!(rows[name].spec, *spec);
    }
    for name in rows.keys() {
        assert!(database.1.objects.contains_key(name) || of_providers.contains_key(name), "{name:?} stays");
    }
}

fn foreign(database: &mut Database, what: &Foreign) {
    let name = |index: u8| -> Arc<str> { format!("p{index}").into() };
    let on = |database: &mut Database, index: u8, change: &dyn Fn(&mut LiveProvider)| {
        if let Some(live) = database.0.live.get_mut(&name(index)) {
            change(live);
        }
    };
    match *what {
        Foreign::Enable(at, to) => on(database, at, &|live| live.enabled = Some(to)),
        Foreign::Priority(at, to) => on(database, at, &|live| live.priority = Some(to)),
        Foreign::Rename(at) => {
            if let Some(mut live) = database.0.live.remove(&name(at)) {
                live.name = format!("renamed-{}", live.id).into();
                database.0.live.insert(live.name.clone(), live);
            }
        }
        Foreign::Delete(at) => drop(database.0.live.remove(&name(at))),
        Foreign::Config(at, to) => on(database, at, &|live| {
            live.config.insert("region".into(), to.into());
            live.config.insert("theirs".into(), to.into());
        }),
        Foreign::Key(at, to) => on(database, at, &|live| {
            live.key = to.map_or(LiveKey::Absent, |to| match to {
                2 => LiveKey::Undecryptable,
                to => LiveKey::Known { fingerprint: fingerprint(to + 10), columns_agree: to == 0 },
            });
        }),
        Foreign::DeleteModel(at) => on(database, at, &|live| drop(live.models.pop())),
        Foreign::DisableModel(at) => on(database, at, &|live| {
            live.models.iter_mut().for_each(|model| model.enabled = Some(false));
        }),
        Foreign::DeleteRules(at) => {
            on(database, at, &|live| live.models.iter_mut().for_each(|model| model.rules.clear()))
        }
        Foreign::AddRule(at) => on(database, at, &|live| {
            if let Some(model) = live.models.first_mut() {
                let all = Some("all".to_owned());
                model.rules.push(LiveRule {
                    power_level: Some("eco".into()),
                    user_tier: all,
                    ..blank_rule(new_id())
                });
            }
        }),
        Foreign::ChangeObject(at, to) => {
            if let Some(object) = database.0.objects.values_mut().nth(at.into()) {
                object.spec = match to {
                    0 => Value::Null,
                    1 => serde_json::json!({ "limits": { "requests_per_minute": 7 }, "theirs": [1] }),
                    2 => serde_json::json!({ "max_in_flight": 99 }),
                    _ => serde_json::json!([]),
                };
            }
        }
        Foreign::DeleteObject(at) => {
            let name = database.0.objects.keys().nth(at.into()).cloned();
            name.and_then(|name| database.0.objects.remove(&name));
        }
        Foreign::AddObject(at, of_provider) => {
            let kind = if of_provider { ObjectKind::Provider } else { ObjectKind::Consumer };
            let name = (kind, name_of(kind, at).into());
            let object = LiveObject { spec: Value::Null, origin: None, applied: None };
            database.0.objects.entry(name).or_insert(object);
        }
        Foreign::AddProvider(at) => {
            let name = name(at);
            if !database.0.live.contains_key(&name) {
                database.0.live.insert(name.clone(), blank_provider(&name, new_id()));
            }
        }
    }
}

/// Values that nobody declared, which a plan must leave as they are.
fn undeclared(database: &Database, desired: &BTreeMap<Arc<str>, Desired>) -> BTreeMap<Uuid, LiveProvider> {
    let foreign = |live: &&LiveProvider| {
        !desired.contains_key(&live.name)
            && !database.0.managed.values().any(|managed| managed.provider_id == live.id)
    };
    database.0.live.values().filter(foreign).map(|live| (live.id, live.clone())).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_history_converges(steps in prop::collection::vec(step(), 1..12)) {
        let mut database = Database::default();
        let mut declared = BTreeMap::new();
        for step in &steps {
            match step {
                Step::Manifests(specs) => declared = desired(specs),
                Step::Callers(callers) => database.1 = catalog_of(callers),
                Step::Foreign(what) => foreign(&mut database, what),
            }
            let theirs = undeclared(&database, &declared);
            let first = database.plan(&declared, &policy(), &Frozen::default());
            database.apply(&first);
            let everything = declared.is_empty() && !first.held.is_empty();
            let second = database.plan(&declared, &policy(), &Frozen::default());
            prop_assert!(everything || first.held.is_empty(), "only a prune of everything waits:\n{first}");
            prop_assert!(second.is_empty(), "after {step:?}\nfirst:\n{first}\nsecond:\n{second}");
            if first.held.is_empty() {
                check_objects(&database, &declared);
            }
            for (id, before) in theirs {
                let now = database.0.live.values().find(|live| live.id == id);
                prop_assert_eq!(now, Some(&before), "nobody declared it");
            }
            for (name, desired) in &declared {
                let live = &database.0.live[name];
                if let Some(enabled) = desired.provider.enabled {
                    prop_assert_eq!(live.enabled, Some(enabled));
                }
                if let Some(priority) = desired.provider.priority {
                    prop_assert_eq!(live.priority, Some(priority));
                }
                prop_assert!(desired.provider.models.iter().all(|model| live.models.iter().any(|it| it.name == *model.name)));
                for rule in &desired.rules {
                    let model = live.models.iter().find(|model| model.name == *rule.model).expect("its model is there");
                    let power = rule.cell.power_level.as_str();
                    prop_assert!(model.rules.iter().any(|live| live.power_level.as_deref() == Some(power)));
                }
            }
        }
    }

    /// The order in which files change does not matter for where the database ends.
    #[test]
    fn any_order_of_edits_ends_the_same(specs in prop::collection::vec(spec(), 1..4), detour in prop::collection::vec(spec(), 0..4)) {
        let end = desired(&specs);
        let run = |first: &BTreeMap<Arc<str>, Desired>| {
            let mut database = Database::default();
            let plan = database.plan(first, &policy(), &Frozen::default());
            database.apply(&plan);
            let plan = database.plan(&end, &policy(), &Frozen::default());
            database.apply(&plan);
            database.0.live.keys().cloned().collect::<BTreeSet<Arc<str>>>()
        };
        prop_assert_eq!(run(&BTreeMap::new()), run(&desired(&detour)));
    }

    /// A bad file is never a reason to delete or change.
    #[test]
    fn frozen_files_lose_nothing(specs in prop::collection::vec(spec(), 1..4), callers in callers()) {
        let mut database = Database(World::default(), catalog_of(&callers));
        let all = desired(&specs);
        let plan = database.plan(&all, &policy(), &Frozen::default());
        database.apply(&plan);
        let files = all.values().map(|it| it.provider.origin.file.clone());
        let files = files.chain(database.1.files.iter().cloned()).collect();
        let frozen = Frozen { files, ..Frozen::default() };
        database.1 = Catalog::default();
        let plan = database.plan(&BTreeMap::new(), &policy(), &frozen);
        prop_assert!(plan.is_empty() && plan.held.is_empty());
    }
}

#[test]
fn a_large_prune_waits_for_its_digest() {
    let specs: Vec<DesiredSpec> = (0..20)
        .map(|name| DesiredSpec {
            name,
            enabled: None,
            priority: None,
            region: None,
            in_flight: None,
            key: None,
            models: vec![],
            rules: vec![],
        })
        .collect();
    let limited = Policy { prune_limit: PruneLimit { percent: 20, at_least: 3 }, ..policy() };
    let check = |left: usize, prunes: bool| {
        let mut database = Database::default();
        let plan = database.plan(&desired(&specs), &limited, &Frozen::default());
        database.apply(&plan);
        let rest = desired(&specs[..left]);
        let plan = database.plan(&rest, &limited, &Frozen::default());
        assert_eq!(!plan.is_empty(), prunes, "{left} left:\n{plan}");
        if !prunes {
            let digest = plan.held[0].digest.clone();
            assert!(digest.is_some() && plan.held[0].objects.len() == 20 - left);
            let confirmed = Policy { confirmed: digest, ..limited.clone() };
            // One fewer is another prune, and so another digest.
            let other = database.plan(&desired(&specs[..left + 1]), &confirmed, &Frozen::default());
            assert!(left + 1 >= 16 || other.is_empty(), "a digest permits exactly what it shows");
            let plan = database.plan(&rest, &confirmed, &Frozen::default());
            assert_eq!(plan.providers.len(), 20 - left);
        }
    };
    check(19, true);
    check(16, true);
    check(15, false);
    check(0, false);
}

/// What an edit takes out of a file goes whatever is held back; what goes with its file is pruned like a provider.
#[test]
fn callers_go_at_once_with_an_edit_and_wait_with_their_file() {
    let caller = |name: u8, file: u8| CallerSpec { name, is_tier: false, file, requests: None };
    let all: Vec<CallerSpec> = (0..9).map(|name| caller(name, u8::from(name > 0))).collect();
    let limited = Policy { prune_limit: PruneLimit { percent: 20, at_least: 3 }, ..policy() };
    let after = |left: &[CallerSpec], frozen: &Frozen, limited: &Policy| {
        let mut database = Database(World::default(), catalog_of(&all));
        let first = database.plan(&BTreeMap::new(), limited, &Frozen::default());
        database.apply(&first);
        database.1 = catalog_of(left);
        database.plan(&BTreeMap::new(), limited, frozen)
    };
    let unknown = Frozen { no_prune: Some("a file cannot be read".into()), ..Frozen::default() };

    // One of two files keeps one of its eight: seven are taken out of it.
    let plan = after(&all[..2], &unknown, &limited);
    assert_eq!((plan.objects.len(), plan.held.len()), (7, 0));
    assert!(plan.objects.iter().all(|change| change.action == Action::Delete && !change.pruned));

    // The file of one is gone.
    let plan = after(&all[1..], &Frozen::default(), &limited);
    assert!(plan.objects.len() == 1 && plan.objects[0].pruned);
    let plan = after(&all[1..], &unknown, &limited);
    assert_eq!((plan.objects.len(), plan.held[0].objects.len(), &plan.held[0].digest), (0, 1, &None));

    // The file of eight is gone: that wants a word.
    let plan = after(&all[..1], &Frozen::default(), &limited);
    assert_eq!((plan.objects.len(), plan.held[0].objects.len()), (0, 8), "{plan}");
    let confirmed = Policy { confirmed: plan.held[0].digest.clone(), ..limited };
    let plan = after(&all[..1], &Frozen::default(), &confirmed);
    assert_eq!((plan.objects.len(), plan.held.len()), (8, 0));
}

/// How long a plan takes that finds nothing to do, at best, for so many models and rules of each.
fn idle_plan(models: usize, rules: usize) -> std::time::Duration {
    let provider = {
        let model = |at: usize| Model {
            name: format!("model-{at}").into(),
            line: 1,
            display_name: None,
            context_length: None,
            cost_per_1m_input_tokens: None,
            cost_per_1m_output_tokens: None,
            enabled: None,
            metadata: JsonMap::new(),
            gateway: Default::default(),
        };
        Provider {
            name: "large".into(),
            origin: Origin { file: "a.toml".into(), line: 1 },
            kind: ProviderType::OpenAi,
            enabled: None,
            priority: None,
            base_url: None,
            model_prefixes: None,
            description: None,
            api_key: None,
            api_key_source: None,
            config: JsonMap::new(),
            health: HealthPolicy::default(),
            discover: None,
            gateway: Default::default(),
            models: (0..models).map(model).collect(),
        }
    };
    let routes: Vec<Arc<catalog::model::Route>> = (0..rules)
        .map(|at| {
            Arc::new(catalog::model::Route {
                origin: Origin { file: "a.toml".into(), line: 1 },
                models: "large/*".into(),
                power_level: PowerLevel::Eco,
                user_tier: format!("tier-{at}").into(),
                task_type: None,
                priority: None,
                weight: None,
                enabled: None,
            })
        })
        .collect();
    let index = catalog::routing::RouteIndex::new(&routes);
    let mut database = Database::default();
    let desired = || {
        let rules = index.rules_for(&provider);
        let desired = Desired { provider: Arc::new(provider.clone()), rules, key: DesiredKey::Undeclared };
        BTreeMap::from([(provider.name.clone(), desired)])
    };
    let first = database.plan(&desired(), &policy(), &Frozen::default());
    database.apply(&first);
    let time = |_| {
        let began = std::time::Instant::now();
        let plan = database.plan(&desired(), &policy(), &Frozen::default());
        assert!(plan.is_empty());
        began.elapsed()
    };
    (0..3).map(time).min().expect("three times")
}

#[test]
fn a_plan_that_finds_nothing_is_linear_in_its_rules() {
    // Eight times as many; a quadratic step would take sixty-four times as long.
    for (small, large) in [((500, 10), (4_000, 10)), ((10, 500), (10, 4_000)), ((1, 4_000), (1, 32_000))] {
        // A busy machine may disturb any one measurement, not all of them.
        let ratio = || {
            let (before, after) = (idle_plan(small.0, small.1), idle_plan(large.0, large.1));
            after.as_secs_f64() / before.as_secs_f64()
        };
        let ratios: Vec<f64> = (0..5).map(|_| ratio()).take_while(|ratio| *ratio >= 30.0).collect();
        assert!(ratios.len() < 5, "{small:?} to {large:?}: {ratios:?}");
    }
}

/// Figures: `cargo test --release --test it idle_plans -- --ignored --nocapture`.
#[test]
#[ignore = "prints figures"]
fn idle_plans_in_figures() {
    for (models, rules) in [(2_000, 10), (2_000, 30), (2_000, 60), (2_000, 100), (200, 1_000), (20, 10_000)] {
        println!("{} rules ({models} models): {:?}", models * rules, idle_plan(models, rules));
    }
}
