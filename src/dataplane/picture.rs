//! From rows to what a picture is made of.
//!
//! Not its job: reading rows (`store`), where a key may go (`destination`), building the picture (`gateway::picture`).
//! Invariants: what is sealed on disk holds tokens, never keys; an object that cannot be read spoils nothing else.

use std::{collections::HashMap, sync::Arc};

use catalog::{price::TokenPrice, serving::ObjectKind};
use gateway::picture::{
    AliasInput, Api, ApiSet, ClocksInput, ConsumerInput, HealthStatus, KeyPlacement, KeyStatus, LevelInput,
    OfferInput, PictureInput, PictureRules, PowerLevel, PriceInput, RouteInput, TierInput, UpstreamInput,
};
use provider::{KeyHeader, ProviderType, key_header, native_apis, serving_base};
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use uuid::Uuid;

use crate::{
    config::{Gateway, UnhealthyPolicy},
    destination::{Misplaced, copied, counting_token},
    secret::{Byok, Keyring},
    store::{GatewayObjectRow, PictureModel, PictureProvider, PictureRows},
};

/// Fields of a provider that its `gateway` table may set.
const PROVIDER_FIELDS: [&str; 7] =
    ["apis", "local", "unlisted_models", "max_in_flight", "clocks", "headers", "drain"];
/// Fields of a model that a manifest may set for the gateway.
const MODEL_FIELDS: [&str; 3] = ["upstream_name", "max_output_tokens", "takes"];

/// What a picture is made of, and what was left out of it, in words. `keyring`: without one, copied keys
/// are not looked for. `now`: Unix seconds.
pub fn picture_input(
    rows: &PictureRows,
    settings: &Gateway,
    byok: &Byok,
    keyring: Option<&Keyring>,
    now: i64,
) -> (PictureInput, Vec<String>) {
    let mut problems = Vec::new();
    let mut input = PictureInput {
        revision: rows.revision.clone(),
        taken_at: now,
        rules: rules(settings),
        ..PictureInput::default()
    };
    let mut of_providers: HashMap<&str, &GatewayObjectRow> = HashMap::new();
    let mut of_models: HashMap<&str, &GatewayObjectRow> = HashMap::new();
    for object in &rows.objects {
        match object.kind {
            ObjectKind::Consumer => input.consumers.extend(named::<ConsumerInput>(object, &mut problems)),
            ObjectKind::Tier => input.tiers.extend(named::<TierInput>(object, &mut problems)),
            ObjectKind::Alias => input.aliases.extend(named::<AliasInput>(object, &mut problems)),
            ObjectKind::PowerLevel => input.levels.extend(level(object, &mut problems)),
            ObjectKind::Provider => {
                of_providers.insert(&object.name, object);
            }
            ObjectKind::Model => {
                of_models.insert(&object.name, object);
            }
        }
    }
    let held = |keyring| rows.providers.iter().map(|it| it.row.held(None, keyring)).collect::<Vec<_>>();
    let copied = keyring.map(|keyring| copied(&held(keyring))).unwrap_or_default();
    let mut models: HashMap<Uuid, Vec<&PictureModel>> = HashMap::new();
    for model in &rows.models {
        models.entry(model.provider_id).or_default().push(model);
    }
    for provider in &rows.providers {
        let row = &provider.row;
        let offers = models.remove(&row.id).unwrap_or_default();
        let offers = offers.into_iter().map(|model| {
            let full = format!("{}/{}", row.name, model.name);
            offer(model, of_models.get(full.as_str()).copied(), &mut problems)
        });
        let offers = offers.collect();
        match upstream(provider, offers, copied.get(&row.id), byok) {
            Ok(mut upstream) => {
                if let Some(object) = of_providers.get(&*row.name) {
                    upstream = overlaid(upstream, object, &PROVIDER_FIELDS, &mut problems);
                }
                input.providers.push(upstream);
            }
            Err(problem) => problems.push(format!("provider {}: {problem}", row.name)),
        }
    }
    input.routes = rows
        .rules
        .iter()
        .filter_map(|rule| {
            Some(RouteInput {
                model_id: rule.model_id,
                level: PowerLevel::parse(&rule.power_level)?,
                tier: rule.user_tier.clone(),
                task: rule.task_type.clone().filter(|task| !task.is_empty()),
                priority: rule.priority,
                weight: rule.weight,
                enabled: rule.enabled,
                origin: None,
            })
        })
        .collect();
    (input, problems)
}

fn rules(settings: &Gateway) -> PictureRules {
    let millis = |time: std::time::Duration| Some(u64::try_from(time.as_millis()).unwrap_or(u64::MAX));
    PictureRules {
        unmanaged: settings.unmanaged,
        exclude_unhealthy: settings.unhealthy == UnhealthyPolicy::Exclude,
        clocks: ClocksInput {
            connect: millis(settings.connect),
            first_token: settings.first_token.and_then(millis),
            idle: millis(settings.idle),
            total: millis(settings.total),
            total_streaming: millis(settings.total_streaming),
        },
    }
}

/// An object whose input carries its own name and origin.
fn named<T: DeserializeOwned>(object: &GatewayObjectRow, problems: &mut Vec<String>) -> Option<T> {
    let mut spec = spec(object, problems)?;
    spec.insert("name".to_owned(), Value::String(object.name.clone()));
    if let Some(origin) = &object.origin {
        spec.insert("origin".to_owned(), Value::String(origin.to_string()));
    }
    read(object, Value::Object(spec), problems)
}

/// A consumer as its row says it; what cannot be read is nothing here, and a problem of the picture.
pub(super) fn consumer(object: &GatewayObjectRow) -> Option<ConsumerInput> {
    named(object, &mut Vec::new())
}

/// As [`consumer`], for a tier.
pub(super) fn tier(object: &GatewayObjectRow) -> Option<TierInput> {
    named(object, &mut Vec::new())
}

fn level(object: &GatewayObjectRow, problems: &mut Vec<String>) -> Option<LevelInput> {
    let spec = spec(object, problems)?;
    let Some(level) = PowerLevel::parse(&object.name) else {
        problems.push(format!("power_level {}: not a power level", object.name));
        return None;
    };
    let defaults = spec.get("defaults").cloned().unwrap_or_else(|| Value::Object(spec.clone()));
    Some(LevelInput { level, defaults: read(object, defaults, problems)? })
}

fn spec(object: &GatewayObjectRow, problems: &mut Vec<String>) -> Option<Map<String, Value>> {
    match serde_json::from_str(&object.spec) {
        Ok(Value::Object(spec)) => Some(spec),
        Ok(_) => {
            problems.push(format!("{} {}: its specification is not an object", object.kind, object.name));
            None
        }
        Err(error) => {
            problems.push(format!("{} {}: {error}", object.kind, object.name));
            None
        }
    }
}

fn read<T: DeserializeOwned>(
    object: &GatewayObjectRow,
    value: Value,
    problems: &mut Vec<String>,
) -> Option<T> {
    match serde_json::from_value(value) {
        Ok(read) => Some(read),
        Err(error) => {
            problems.push(format!("{} {}: {error}", object.kind, object.name));
            None
        }
    }
}

/// `base` with the fields that the object sets; `base` as it is where they cannot be read.
fn overlaid<T: serde::Serialize + DeserializeOwned>(
    base: T,
    object: &GatewayObjectRow,
    fields: &[&str],
    problems: &mut Vec<String>,
) -> T {
    let Some(spec) = spec(object, problems) else { return base };
    let Ok(Value::Object(mut whole)) = serde_json::to_value(&base) else { return base };
    whole.extend(spec.into_iter().filter(|(field, _)| fields.contains(&field.as_str())));
    read(object, Value::Object(whole), problems).unwrap_or(base)
}

/// `owner`: whose key the row holds, if not its own.
fn upstream(
    provider: &PictureProvider,
    models: Vec<OfferInput>,
    owner: Option<&Arc<str>>,
    byok: &Byok,
) -> Result<UpstreamInput, Misplaced> {
    let row = &provider.row;
    // A managed provider is asked where manifests declared it, even while its row says another place: then without a key.
    let (kind, base) = row.asked_at(None)?;
    let shared = owner.map(|owner| Misplaced::Shared(owner.clone()));
    let misplaced = row.destination(None).err().or(shared);
    let declares_key = row.place.applied.as_ref().is_some_and(|applied| applied.key.is_some());
    let key_token = counting_token(&row.tokens, byok).filter(|_| misplaced.is_none());
    Ok(UpstreamInput {
        id: row.id,
        name: row.name.to_string(),
        kind: kind.as_str().to_owned(),
        base_url: serving_base(kind, &base).into(),
        key_missing: misplaced.is_some() || (declares_key && key_token.is_none()),
        key_token: key_token.map(str::to_owned),
        key_placement: match key_header(kind) {
            KeyHeader::Bearer => KeyPlacement::Bearer,
            KeyHeader::Named(name) => KeyPlacement::Header(name.to_owned()),
        },
        key_status: provider.key_status.as_deref().and_then(KeyStatus::parse),
        key_note: misplaced.map(|why| why.to_string()),
        apis: native_apis(kind).iter().filter_map(|word| Api::parse(word)).collect(),
        translated: translated(kind),
        priority: provider.priority,
        prefixes: provider
            .prefixes
            .as_deref()
            .and_then(|text| serde_json::from_str::<Vec<String>>(text).ok())
            .unwrap_or_default(),
        health: provider
            .health_status
            .as_deref()
            .and_then(HealthStatus::parse)
            .unwrap_or(HealthStatus::Unknown),
        enabled: provider.enabled,
        managed: row.managed,
        models,
        origin: provider.origin.clone(),
        ..UpstreamInput::default()
    })
}

/// The dialects in which a type can be asked through a translation.
fn translated(kind: ProviderType) -> ApiSet {
    if provider::dialect::UpstreamDialect::of_provider(kind.as_str(), "").is_none() {
        return ApiSet::default();
    }
    [Api::Chat, Api::Responses, Api::Messages].into_iter().collect()
}

fn offer(model: &PictureModel, object: Option<&GatewayObjectRow>, problems: &mut Vec<String>) -> OfferInput {
    let price = |text: &Option<String>| {
        text.as_deref().and_then(|it| it.parse::<TokenPrice>().ok()).map(TokenPrice::units)
    };
    let base = OfferInput {
        id: model.id,
        name: model.name.clone(),
        display_name: model.display_name.clone(),
        context_length: model.context_length.and_then(|tokens| u64::try_from(tokens).ok()),
        prices: PriceInput {
            input: price(&model.cost_input),
            output: price(&model.cost_output),
            ..PriceInput::default()
        },
        enabled: model.enabled,
        created_at: model.created_at,
        ..OfferInput::default()
    };
    let Some(object) = object else { return base };
    let mut whole = overlaid(base, object, &MODEL_FIELDS, problems);
    // Prices of the row stay: only what no column holds comes from here.
    if let Some(prices) = spec(object, problems).and_then(|mut spec| spec.remove("prices"))
        && let Some(own) = read::<PriceInput>(object, prices, problems)
    {
        let (input, output) = (whole.prices.input, whole.prices.output);
        whole.prices = PriceInput { input, output, ..own };
    }
    whole
}
