//! From rows and a plan to one picture.
//!
//! PURE but for the keyring, which opens the stored keys to preview and fingerprint them; each is wiped at once.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use chrono::{DateTime, Utc};
use rayon::prelude::*;
use serde::Serialize;
use sha2::{Digest as _, Sha256};
use uuid::Uuid;

use catalog::{
    manifest::Build,
    model::{JsonMap, KeyStatus, Provider},
    plan::{HoldKind, NoticeKind, Plan},
    routing::{CellPlace, order},
};

use super::{
    JsonText, ModelEntry, ProviderEntry, SeenByLoop, Snapshot, Sort,
    live::{LedgerView, Strips},
    mask,
    view::{
        Attention, AttentionKind, CellCounts, GatewayCounts, Health, HeldItem, HeldKind, KeyCounts, KeyFrom,
        KeyState, ManifestProblem, ModelItem, ProviderCounts, ProviderItem, ProviderKey, ProviderKeys,
        RouteCell, RouteModel, RoutesView, State, StatusView,
    },
};
use crate::{
    destination::{every_opened, opened},
    secret::{self, Keyring},
    status::judge::{Judge, JudgedProvider, Unsettled, is_synced, problems},
    store::{CatalogRows, ModelRow, ProviderRow, ProviderStatus, Suspended},
};

/// Matters of attention, and problems of manifests, that one answer lists.
const LISTED: usize = 200;

pub(super) struct StatusInput<'a> {
    pub build: &'a Build,
    pub seen: &'a SeenByLoop,
    pub plan: &'a Plan,
    pub rows: Vec<ProviderStatus>,
    pub catalog: CatalogRows,
    pub suspended: Suspended,
    pub live: LedgerView,
    pub strips: Option<&'a Strips>,
    /// Why the Git repository is not followed.
    pub pulled: Option<String>,
}

/// What all drafts are made with.
struct Common<'a> {
    judge: Judge<'a>,
    seen: &'a SeenByLoop,
    keyring: &'a Keyring,
    suspended: &'a Suspended,
    live: &'a LedgerView,
    strips: Option<&'a Strips>,
    /// See [`StatusInput::pulled`].
    pulled: Option<String>,
    /// Other programs filled the tables with more rows than are shown.
    more: bool,
    at: DateTime<Utc>,
}

/// One provider before it is written down.
struct Draft {
    name: Arc<str>,
    item: ProviderItem,
    has_key: bool,
    managed: bool,
    test_status: Option<String>,
    config: JsonMap,
    preview: Option<String>,
    fingerprint: Option<String>,
}

pub(super) fn snapshot(input: StatusInput<'_>, keyring: &Keyring, at: DateTime<Utc>) -> Snapshot {
    let StatusInput { build, seen, plan, rows, catalog, suspended, live, strips, pulled } = input;
    let judge = Judge::new(build, plan, &suspended);
    let CatalogRows { providers, mut models, rules, more } = catalog;
    let common =
        Common { judge, seen, keyring, suspended: &suspended, live: &live, strips, pulled, more, at };
    let judge = &common.judge;
    let mut details: HashMap<Uuid, ProviderRow> = providers.into_iter().map(|row| (row.id, row)).collect();

    let paired: Vec<(ProviderStatus, Option<ProviderRow>)> =
        rows.into_iter().map(|row| (row.id, row)).map(|(id, row)| (row, details.remove(&id))).collect();
    let mut drafts: Vec<Draft> =
        paired.into_par_iter().map(|(row, detail)| draft(row, detail, &common)).collect();
    let known: std::collections::HashSet<&str> = drafts.iter().map(|draft| &*draft.name).collect();
    let absent = judge.absent(|name| known.contains(name));
    drop(known);
    drafts.extend(absent.iter().map(|provider| absent_draft(provider, judge)));
    drafts.sort_by(|a, b| a.name.cmp(&b.name));

    let mut status = status(&drafts, build, plan, &common);
    let names: Places = drafts
        .iter()
        .filter_map(|draft| {
            let item = &draft.item;
            let place = RoutePlace {
                provider: draft.name.clone(),
                health: item.health,
                key: item.key,
                enabled: item.enabled,
                priority: item.priority.unwrap_or(0),
            };
            Some((item.id?, place))
        })
        .collect();
    models.retain(|model| names.contains_key(&model.provider_id));
    let name_of = |model: &ModelRow| {
        names.get(&model.provider_id).map(|place| place.provider.clone()).unwrap_or_default()
    };
    models.sort_by(|a, b| (name_of(a), &a.name, a.id).cmp(&(name_of(b), &b.name, b.id)));
    let routes = routes(&models, &rules, &names);
    status.cells = CellCounts::of(&routes);
    let routes = json(&routes);
    let written: Vec<ModelEntry> = models
        .iter()
        .map(|row| {
            let provider = name_of(row);
            let sort_key = hex(&[provider.as_bytes(), b"\0", row.name.as_bytes(), b"\0", row.id.as_bytes()]);
            let item = text(&model_item(&provider, row));
            ModelEntry { provider, sort_key, item }
        })
        .collect();

    let mut best: HashMap<String, (i32, Arc<str>)> = HashMap::new();
    // By type only what manifests manage: a row of another program could draw a copied key to another host.
    let usable = |draft: &&Draft| draft.has_key && draft.managed && draft.item.enabled;
    for draft in drafts.iter().filter(usable) {
        let Some(kind) = draft.item.kind.clone() else { continue };
        let priority = draft.item.priority.unwrap_or(0);
        // Names come in order, so the first of equals stays.
        if best.get(&kind).is_none_or(|(other, _)| priority > *other) {
            best.insert(kind, (priority, draft.name.clone()));
        }
    }
    let best_with_key = best.into_iter().map(|(kind, (_, name))| (kind, name)).collect();

    let mut keys: Vec<(i32, ProviderKey)> = drafts
        .iter()
        .filter_map(|draft| Some((draft.item.priority.unwrap_or(0), provider_key(draft, judge)?)))
        .collect();
    // As Ops-Center's pages list them: those with a key first, then the preferred ones.
    keys.sort_by(|(a_priority, a), (b_priority, b)| {
        (b.has_key, b_priority).cmp(&(a.has_key, a_priority)).then_with(|| a.name.cmp(&b.name))
    });
    let keys: Vec<ProviderKey> = keys.into_iter().map(|(_, key)| key).collect();
    let keys = json(&ProviderKeys { success: true, total: keys.len(), providers: keys });
    let mut at_model = 0;
    let mut finished: Vec<ProviderEntry> = Vec::with_capacity(drafts.len());
    for draft in drafts {
        let from = at_model;
        while written.get(at_model).is_some_and(|model| model.provider == draft.name) {
            at_model += 1;
        }
        finished.push(row(draft, from..at_model));
    }
    let by_name = finished.iter().enumerate().map(|(at, row)| (row.name.clone(), at)).collect();
    let orders = Sort::ALL.map(|sort| {
        let mut order: Vec<u32> = (0..u32::try_from(finished.len()).unwrap_or(u32::MAX)).collect();
        let key = |at: &u32| finished.get(*at as usize).map(|row| row.sort_keys[sort as usize].clone());
        order.sort_by_cached_key(key);
        order
    });

    let mut digest = Sha256::new();
    for row in &finished {
        digest.update(row.item.as_bytes());
        digest.update(row.config.as_bytes());
    }
    written.iter().for_each(|model| digest.update(model.item.as_bytes()));
    digest.update(keys.digest.as_bytes());
    let digest = short(digest);
    Snapshot {
        at,
        digest,
        status,
        keys,
        routes,
        rows: finished,
        orders,
        by_name,
        models: written,
        best_with_key,
    }
}

fn draft(status: ProviderStatus, detail: Option<ProviderRow>, common: &Common<'_>) -> Draft {
    let Common { judge, keyring, .. } = common;
    let (name, id, key_source, has_key) =
        (status.name.clone(), status.id, status.key_source.clone(), status.has_key);
    let base_url = status.api_base_url.clone();
    let (test_status, managed) = (status.key_test_status.clone(), status.managed.is_some());
    let mut line = judge.line(status);
    let live = common.live.providers.get(&name);
    if let Some(live) = live {
        line.health_since = live.memory.health.since();
        line.health_reason = live.memory.health.last_reason().to_owned();
        line.key_reason = live.memory.key.last_reason().to_owned();
        line.latency_ms = live.latency_ms;
        line.last_check = live.last_check.max(line.last_check);
    }
    let unwritten = live.map_or(&[][..], |live| &live.hours);
    let strip = common.strips.and_then(|strips| strips.of(id, unwritten));
    let (tokens, priority, config, odd) =
        detail.map_or_else(Default::default, |row| (row.tokens, row.priority, row.config, row.odd));
    line.notices.extend(odd);
    let every = every_opened(&tokens, &keyring.byok);
    let config = mask::config(config, &every.iter().map(|key| &**key).collect::<Vec<_>>());
    let key = opened(&tokens, &keyring.byok);
    let item = ProviderItem {
        id: Some(id),
        name: line.name.clone(),
        kind: line.kind.clone(),
        state: line.state,
        enabled: line.enabled.unwrap_or(true),
        priority,
        base_url: base_url.as_deref().map(mask::base_url),
        health: Health::of(line.health.as_deref()),
        health_since: line.health_since,
        health_reason: said(&line.health_reason),
        latency_ms: line.latency_ms,
        last_check: line.last_check,
        next_check: live.and_then(|live| live.next_check),
        key: key_word(&line),
        key_reason: key_notice(&name, judge).or_else(|| said(&line.key_reason)),
        key_last_tested: line.key_last_tested,
        key_source,
        models: u64::try_from(line.models).unwrap_or_default(),
        source: line.source,
        revision: line.revision,
        notices: line.notices,
        checks_paused: line.checks_paused,
        strip,
    };
    Draft {
        name,
        item,
        has_key,
        managed,
        test_status: test_status.filter(|_| has_key),
        config,
        preview: key.as_ref().map(|key| secret::preview(key)),
        fingerprint: key.as_ref().map(|key| keyring.fp.fingerprint(key).to_string()),
    }
}

fn absent_draft(provider: &Provider, judge: &Judge<'_>) -> Draft {
    let notices = judge.notices(&provider.name);
    let unresolved = notices.iter().any(|notice| notice.kind == NoticeKind::KeyUnresolved);
    let item = ProviderItem {
        id: None,
        name: provider.name.to_string(),
        kind: Some(provider.kind.to_string()),
        state: State::Pending,
        enabled: provider.enabled.unwrap_or(true),
        priority: provider.priority,
        base_url: provider.effective_base_url().map(mask::base_url),
        health: Health::Unknown,
        health_since: None,
        health_reason: None,
        latency_ms: None,
        last_check: None,
        next_check: None,
        key: match (&provider.api_key, unresolved) {
            (None, _) => KeyState::None,
            (Some(_), true) => KeyState::Missing,
            (Some(_), false) => KeyState::Pending,
        },
        key_reason: key_notice(&provider.name, judge),
        key_last_tested: None,
        key_source: provider.api_key_source.map(|source| source.to_string()),
        models: 0,
        source: Some(provider.origin.to_string()),
        revision: None,
        notices: notices.iter().map(|notice| notice.message.clone()).collect(),
        checks_paused: false,
        strip: None,
    };
    let config = mask::config(provider.config.clone(), &[]);
    Draft {
        name: provider.name.clone(),
        item,
        has_key: false,
        managed: true,
        test_status: None,
        config,
        preview: None,
        fingerprint: None,
    }
}

fn said(reason: &str) -> Option<String> {
    (!reason.is_empty()).then(|| reason.to_owned())
}

fn key_word(line: &JudgedProvider) -> KeyState {
    if line.key.as_deref() == Some("missing") {
        return KeyState::Missing;
    }
    if !line.has_key {
        return KeyState::None;
    }
    match line.key.as_deref().and_then(KeyStatus::parse) {
        Some(KeyStatus::Valid) => KeyState::Valid,
        Some(KeyStatus::Failed) => KeyState::Failed,
        Some(KeyStatus::Error) => KeyState::Error,
        Some(KeyStatus::Pending) | None => KeyState::Pending,
    }
}

/// Why a key is missing, or cannot be opened.
fn key_notice(name: &str, judge: &Judge<'_>) -> Option<String> {
    let about = |kind: &NoticeKind| matches!(kind, NoticeKind::KeyUnresolved | NoticeKind::KeyUndecryptable);
    judge.notices(name).iter().find(|notice| about(&notice.kind)).map(|notice| notice.message.clone())
}

fn provider_key(draft: &Draft, judge: &Judge<'_>) -> Option<ProviderKey> {
    let item = &draft.item;
    let source = if draft.has_key {
        KeyFrom::Database
    } else if judge.key_variable_is_set(&item.name) {
        KeyFrom::Environment
    } else {
        KeyFrom::NotSet
    };
    Some(ProviderKey {
        id: item.id?,
        name: item.name.clone(),
        provider_type: item.kind.clone(),
        has_key: draft.has_key,
        key_source: source,
        enabled: item.enabled,
        health_status: item.health,
        test_status: draft.test_status.clone(),
        last_tested: item.key_last_tested,
        key_preview: draft.preview.clone(),
        key_fingerprint: draft.fingerprint.clone(),
        config: draft.config.clone(),
    })
}

fn model_item(provider: &str, row: &ModelRow) -> ModelItem {
    ModelItem {
        id: row.id,
        provider: provider.to_owned(),
        name: row.name.clone(),
        display_name: row.display_name.clone(),
        enabled: row.enabled,
        context_length: row.context_length,
        cost_per_1m_input_tokens: row.cost_per_1m_input_tokens,
        cost_per_1m_output_tokens: row.cost_per_1m_output_tokens,
        avg_latency_ms: row.avg_latency_ms,
    }
}

fn row(draft: Draft, models: std::ops::Range<usize>) -> ProviderEntry {
    let item = &draft.item;
    let name = item.name.as_bytes();
    // The slowest and the one not looked at for longest come first; what is not known comes last, and first.
    let slowness = item.latency_ms.map_or(u64::MAX, |latency| u64::MAX - 1 - latency.min(u64::MAX / 2));
    let checked = item.last_check.map_or(0, |at| u64::try_from(at.timestamp_millis()).unwrap_or_default());
    let sort_keys = [
        hex(&[name]),
        hex(&[&[item.health as u8], name]),
        hex(&[&slowness.to_be_bytes(), name]),
        hex(&[&checked.to_be_bytes(), name]),
    ];
    let words = [Some(&item.name), item.kind.as_ref(), item.base_url.as_ref(), item.source.as_ref()];
    let haystack: Vec<&str> = words.into_iter().flatten().map(String::as_str).collect();
    ProviderEntry {
        haystack: haystack.join("\n").to_lowercase().into(),
        id: item.id,
        health: item.health,
        key: item.key,
        sort_keys,
        item: text(item),
        config: text(&draft.config),
        key_preview: draft.preview.map(Into::into),
        key_fingerprint: draft.fingerprint.map(Into::into),
        models,
        name: draft.name,
    }
}

/// What a cell shows of a model's provider.
struct RoutePlace {
    provider: Arc<str>,
    health: Health,
    key: KeyState,
    enabled: bool,
    priority: i32,
}

type Places = HashMap<Uuid, RoutePlace>;

fn routes(models: &[ModelRow], rules: &[crate::store::RuleRow], places: &Places) -> RoutesView {
    let by_id: HashMap<Uuid, &ModelRow> = models.iter().map(|model| (model.id, model)).collect();
    let mut cells: BTreeMap<_, Vec<(i32, RouteModel)>> = BTreeMap::new();
    for rule in rules {
        let Some(model) = by_id.get(&rule.model_id) else { continue };
        let Some(place) = places.get(&model.provider_id) else { continue };
        let cell = (level_rank(&rule.power_level), &rule.power_level, &rule.user_tier, &rule.task_type);
        let entry = RouteModel {
            provider: place.provider.to_string(),
            model: model.name.clone(),
            priority: rule.priority,
            weight: rule.weight,
            enabled: rule.enabled && model.enabled && place.enabled,
            health: place.health,
            key: place.key,
        };
        cells.entry(cell).or_default().push((place.priority, entry));
    }
    let cells = cells.into_iter().map(|((_, level, tier, task), mut models)| {
        models.sort_by(|a, b| order(&place(a), &place(b)));
        RouteCell {
            power_level: level.clone(),
            user_tier: tier.clone(),
            task_type: task.clone(),
            models: models.into_iter().map(|(_, model)| model).collect(),
        }
    });
    RoutesView { cells: cells.collect() }
}

fn place((provider_priority, model): &(i32, RouteModel)) -> CellPlace<'_> {
    let RouteModel { provider, model, priority, weight, .. } = model;
    CellPlace { priority: *priority, provider_priority: *provider_priority, weight: *weight, provider, model }
}

/// The cheap level first; what others made up comes last.
fn level_rank(level: &str) -> usize {
    catalog::model::PowerLevel::ALL.iter().position(|known| known.as_str() == level).unwrap_or(usize::MAX)
}

fn status(drafts: &[Draft], build: &Build, plan: &Plan, common: &Common<'_>) -> StatusView {
    let Common { judge, seen, suspended, .. } = common;
    let mut providers = ProviderCounts { total: drafts.len(), ..ProviderCounts::default() };
    let mut keys = KeyCounts::default();
    for item in drafts.iter().map(|draft| &draft.item) {
        *match (item.enabled, item.health) {
            (false, _) => &mut providers.disabled,
            (true, Health::Healthy) => &mut providers.healthy,
            (true, Health::Degraded) => &mut providers.degraded,
            (true, Health::Unhealthy) => &mut providers.unhealthy,
            (true, Health::Unknown) => &mut providers.unknown,
        } += 1;
        *match item.key {
            KeyState::Valid => &mut keys.valid,
            KeyState::Failed => &mut keys.failed,
            KeyState::Error => &mut keys.error,
            KeyState::Pending => &mut keys.pending,
            KeyState::None | KeyState::Missing => &mut keys.none,
        } += 1;
    }
    let gateway = GatewayCounts::of(build, plan);
    let held: Vec<HeldItem> = plan
        .held
        .iter()
        .map(|hold| HeldItem {
            kind: match hold.kind {
                HoldKind::Prune => HeldKind::Prune,
                HoldKind::Route => HeldKind::Route,
            },
            reason: hold.reason.clone(),
            objects: hold.objects.clone(),
            digest: hold.digest.clone(),
            command: hold.digest.as_ref().map(|digest| format!("providerd apply --confirm-prune {digest}")),
        })
        .collect();
    let mut manifests = problems(&build.diagnostics, seen.problem.as_deref(), common.pulled.clone());
    manifests.truncate(LISTED);
    let unsettled = Unsettled {
        held: held.len(),
        problems: manifests.len(),
        refused: seen.refused.len(),
        objects: gateway.pending,
        suspended: suspended.all.is_some(),
    };
    let synced = is_synced(drafts.iter().map(|draft| draft.item.state), unsettled);
    let mut attention = attention(drafts, seen, judge, suspended, &held, &manifests);
    if common.more {
        let message = "the shared tables hold more rows than are shown here".to_owned();
        attention.push(Attention { provider: None, kind: AttentionKind::Refused, message, command: None });
    }
    StatusView {
        synced,
        suspended: suspended.all.is_some(),
        leader: false,
        database: false,
        impaired: common.live.impaired.clone(),
        revision: seen.revision.clone(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        providers,
        keys,
        gateway,
        cells: CellCounts::default(),
        attention,
        held,
        manifests,
        checked_at: Some(common.at),
    }
}

fn attention(
    drafts: &[Draft],
    seen: &SeenByLoop,
    judge: &Judge<'_>,
    suspended: &Suspended,
    held: &[HeldItem],
    manifests: &[ManifestProblem],
) -> Vec<Attention> {
    let mut found = Vec::new();
    let mut add = |provider: Option<&str>, kind, message: String, command: Option<String>| {
        found.push(Attention { provider: provider.map(str::to_owned), kind, message, command });
    };
    if let Some(all) = &suspended.all {
        let message = format!("applying is suspended: {}", all.reason);
        add(None, AttentionKind::Suspended, message, Some("providerd resume".to_owned()));
    }
    for hold in held {
        add(None, AttentionKind::Held, hold.reason.clone(), hold.command.clone());
    }
    for problem in manifests {
        let message = format!("{}:{}:{}: {}", problem.file, problem.line, problem.column, problem.message);
        add(None, AttentionKind::Invalid, message, Some("providerd validate".to_owned()));
    }
    for refusal in &seen.refused {
        add(Some(&refusal.provider), AttentionKind::Refused, refusal.message.clone(), None);
    }
    for item in drafts.iter().map(|draft| &draft.item) {
        let name = Some(item.name.as_str());
        let reason =
            |text: &Option<String>, otherwise: &str| text.clone().unwrap_or_else(|| otherwise.into());
        let check = || Some(format!("providerd check {}", item.name));
        if item.enabled && item.health == Health::Unhealthy {
            let message = reason(&item.health_reason, "does not answer properly");
            add(name, AttentionKind::Unhealthy, message, check());
        }
        if item.enabled && item.key == KeyState::Failed {
            add(name, AttentionKind::KeyFailed, reason(&item.key_reason, "the key is rejected"), check());
        }
        if item.key == KeyState::Missing {
            let message = reason(&item.key_reason, "the declared key cannot be found");
            add(name, AttentionKind::KeyMissing, message, None);
        }
        for notice in judge.notices(&item.name) {
            let (kind, command) = match notice.kind {
                NoticeKind::Drift | NoticeKind::KeyForeign => {
                    (AttentionKind::Drift, Some("providerd plan".into()))
                }
                NoticeKind::KeyUndecryptable => {
                    (AttentionKind::Undecryptable, Some("providerd key verify".to_owned()))
                }
                NoticeKind::Suspended => {
                    (AttentionKind::Suspended, Some(format!("providerd resume {}", item.name)))
                }
                NoticeKind::KeyRefused => (AttentionKind::Refused, None),
                // A missing key is reported above, and a frozen provider by its file's problem; the others can wait.
                NoticeKind::KeyUnresolved
                | NoticeKind::Frozen
                | NoticeKind::KeyUntried
                | NoticeKind::Vanished
                | NoticeKind::Discovery => continue,
                NoticeKind::Unreadable | NoticeKind::Locked | NoticeKind::Refused | NoticeKind::Twin => {
                    (AttentionKind::Refused, None)
                }
            };
            add(name, kind, notice.message.clone(), command);
        }
    }
    found.sort_by_key(|matter| matter.kind);
    found.truncate(LISTED);
    found
}

fn text(value: &impl Serialize) -> Box<str> {
    // Maps with text keys and finite numbers: nothing that JSON cannot hold.
    serde_json::to_string(value).unwrap_or_default().into()
}

fn json(value: &impl Serialize) -> JsonText {
    let text = serde_json::to_vec(value).unwrap_or_default();
    let digest = short(Sha256::new_with_prefix(&text));
    JsonText { text: text.into(), digest }
}

fn short(digest: Sha256) -> Box<str> {
    let bytes = digest.finalize();
    hex(&[bytes.get(..8).unwrap_or_default()])
}

fn hex(parts: &[&[u8]]) -> Box<str> {
    use std::fmt::Write as _;
    let mut text = String::with_capacity(2 * parts.iter().map(|part| part.len()).sum::<usize>());
    for byte in parts.iter().copied().flatten() {
        // Writing to a text cannot fail.
        let _ = write!(text, "{byte:02x}");
    }
    text.into()
}
