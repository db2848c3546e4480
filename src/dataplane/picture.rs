//! From rows to what a picture is made of.
//!
//! PURE. Not its job: reading rows (`store`), opening keys, building the picture (`gateway::picture`). Invariants: a
//! managed provider is asked at the URL that manifests declared, and while its row says another its key goes nowhere;
//! an object that cannot be read spoils nothing else.

use std::{collections::HashMap, sync::Arc};

use catalog::{plan::LiveKey, price::TokenPrice};
use gateway::picture::{
    AliasInput, Api, ApiSet, ClocksInput, ConsumerInput, HealthStatus, KeyPlacement, KeyStatus, LevelInput,
    OfferInput, PictureInput, PictureRules, PowerLevel, PriceInput, RouteInput, TierInput, UpstreamInput,
};
use provider::{KeyHeader, ProviderType, key_header, native_apis, origin_of, parse_base, serving_base};
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use url::Url;
use uuid::Uuid;

use crate::{
    config::{Gateway, UnhealthyPolicy},
    destination::{HeldKey, copied},
    secret::Keyring,
    store::{PictureModel, PictureProvider, PictureRows},
};

/// One object of the gateway tables of manifests, as it is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GatewayObjectText {
    /// `consumer`, `tier`, `alias`, `power_level`, `provider` or `model`.
    pub kind: String,
    pub name: String,
    /// JSON of the input that it becomes.
    pub spec: String,
    /// `file:line`.
    pub origin: Option<String>,
}

/// Fields of a provider that its `gateway` table may set.
const PROVIDER_FIELDS: [&str; 7] =
    ["apis", "local", "unlisted_models", "max_in_flight", "clocks", "headers", "drain"];
/// Fields of a model that a manifest may set for the gateway.
const MODEL_FIELDS: [&str; 3] = ["upstream_name", "max_output_tokens", "takes"];

/// What a picture is made of. Without a keyring nothing was applied yet, and there is no key. `now`: Unix seconds.
pub fn picture_input(
    rows: &PictureRows,
    objects: &[GatewayObjectText],
    settings: &Gateway,
    keyring: Option<&Keyring>,
    now: i64,
) -> (PictureInput, Vec<String>) {
    let copied = keyring.map(|keyring| copied_keys(rows, keyring)).unwrap_or_default();
    let mut problems = Vec::new();
    let mut input = PictureInput {
        revision: rows.revision.clone(),
        taken_at: now,
        rules: rules(settings),
        ..PictureInput::default()
    };
    let mut of_providers: HashMap<&str, &GatewayObjectText> = HashMap::new();
    let mut of_models: HashMap<&str, &GatewayObjectText> = HashMap::new();
    for object in objects {
        match object.kind.as_str() {
            "consumer" => input.consumers.extend(named::<ConsumerInput>(object, &mut problems)),
            "tier" => input.tiers.extend(named::<TierInput>(object, &mut problems)),
            "alias" => input.aliases.extend(named::<AliasInput>(object, &mut problems)),
            "power_level" => input.levels.extend(level(object, &mut problems)),
            "provider" => {
                of_providers.insert(&object.name, object);
            }
            "model" => {
                of_models.insert(&object.name, object);
            }
            other => {
                problems.push(format!("{other} {}: a kind that this version does not know", object.name))
            }
        }
    }
    let mut models: HashMap<Uuid, Vec<&PictureModel>> = HashMap::new();
    for model in &rows.models {
        models.entry(model.provider_id).or_default().push(model);
    }
    for row in &rows.providers {
        let offers = models.remove(&row.id).unwrap_or_default();
        let offers = offers.into_iter().map(|model| {
            let full = format!("{}/{}", row.name, model.name);
            offer(model, of_models.get(full.as_str()).copied(), &mut problems)
        });
        let offers = offers.collect();
        match upstream(row, offers, copied.get(&row.id)) {
            Ok(mut upstream) => {
                if let Some(object) = of_providers.get(row.name.as_str()) {
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
fn named<T: DeserializeOwned>(object: &GatewayObjectText, problems: &mut Vec<String>) -> Option<T> {
    let mut spec = spec(object, problems)?;
    spec.insert("name".to_owned(), Value::String(object.name.clone()));
    if let Some(origin) = &object.origin {
        spec.insert("origin".to_owned(), Value::String(origin.clone()));
    }
    read(object, Value::Object(spec), problems)
}

/// A consumer as its row says it; what cannot be read is nothing here, and a problem of the picture.
pub(super) fn consumer(object: &GatewayObjectText) -> Option<ConsumerInput> {
    named(object, &mut Vec::new())
}

/// As [`consumer`], for a tier.
pub(super) fn tier(object: &GatewayObjectText) -> Option<TierInput> {
    named(object, &mut Vec::new())
}

fn level(object: &GatewayObjectText, problems: &mut Vec<String>) -> Option<LevelInput> {
    let spec = spec(object, problems)?;
    let Some(level) = PowerLevel::parse(&object.name) else {
        problems.push(format!("power_level {}: not a power level", object.name));
        return None;
    };
    let defaults = spec.get("defaults").cloned().unwrap_or_else(|| Value::Object(spec.clone()));
    Some(LevelInput { level, defaults: read(object, defaults, problems)? })
}

fn spec(object: &GatewayObjectText, problems: &mut Vec<String>) -> Option<Map<String, Value>> {
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
    object: &GatewayObjectText,
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
    object: &GatewayObjectText,
    fields: &[&str],
    problems: &mut Vec<String>,
) -> T {
    let Some(spec) = spec(object, problems) else { return base };
    let Ok(Value::Object(mut whole)) = serde_json::to_value(&base) else { return base };
    whole.extend(spec.into_iter().filter(|(field, _)| fields.contains(&field.as_str())));
    read(object, Value::Object(whole), problems).unwrap_or(base)
}

type Whereabouts = Result<(ProviderType, Url), String>;

/// Where a row says that it is, and where manifests said so if it is managed.
fn whereabouts(row: &PictureProvider) -> (Whereabouts, Option<Whereabouts>) {
    let parse = |kind: &Option<String>, url: Option<&str>| {
        let word = kind.as_deref().unwrap_or_default();
        let kind = ProviderType::parse(word).ok_or_else(|| {
            format!("its type `{}` is not known", word.chars().take(64).collect::<String>())
        })?;
        let base = parse_base(kind, url).map_err(|error| error.to_string())?;
        Ok::<_, String>((kind, base))
    };
    let urls = provider::RowUrls {
        api_base_url: row.api_base_url.as_deref(),
        config_base_url: row.config_base_url.as_deref(),
        any: row.any_url,
    };
    let of_row = || {
        let (kind, _) = parse(&row.kind, Some("https://placeholder.invalid"))?;
        let base = provider::row_base(kind, urls).map_err(|error| error.to_string())?;
        Ok::<_, String>((kind, base))
    };
    let declared = row.applied.as_ref().map(|applied| parse(&applied.kind, applied.base_url.as_deref()));
    (of_row(), declared)
}

/// Which rows hold another row's key, by their ids, with the other's name.
fn copied_keys(rows: &PictureRows, keyring: &Keyring) -> HashMap<Uuid, Arc<str>> {
    let held = |row: &PictureProvider| {
        let [first, second] = &row.tokens;
        let (own, declared) = whereabouts(row);
        HeldKey {
            id: row.id,
            name: row.name.as_str().into(),
            held: match keyring.live_key(first, Some(second)) {
                LiveKey::Known { fingerprint, .. } => Some(fingerprint.0),
                LiveKey::Absent | LiveKey::Undecryptable => None,
            },
            applied: row.applied.as_ref().and_then(|applied| applied.key.as_deref()).map(Into::into),
            origin: declared.unwrap_or(own).ok().map(|(_, base)| origin_of(&base)),
        }
    };
    copied(&rows.providers.iter().map(held).collect::<Vec<_>>())
}

/// `owner`: whose key the row holds, if not its own.
fn upstream(
    row: &PictureProvider,
    models: Vec<OfferInput>,
    owner: Option<&Arc<str>>,
) -> Result<UpstreamInput, String> {
    let (own, declared) = whereabouts(row);
    let mut drifted = owner.map(|owner| {
        format!("its key belongs to `{}`, which is another host", owner.chars().take(100).collect::<String>())
    });
    let (kind, base): (ProviderType, Url) = match declared {
        None => own?,
        Some(declared) => {
            let declared = declared?;
            if own.ok().as_ref() != Some(&declared) {
                drifted = Some("drifted: its row says another type or URL than its manifest".to_owned());
            }
            declared
        }
    };
    let token = row.tokens.iter().find(|token| !token.is_empty()).cloned();
    let declares_key = row.applied.as_ref().is_some_and(|applied| applied.has_key);
    let key_token = token.filter(|_| drifted.is_none());
    Ok(UpstreamInput {
        id: row.id,
        name: row.name.clone(),
        kind: kind.as_str().to_owned(),
        base_url: serving_base(kind, &base).into(),
        key_missing: drifted.is_some() || (declares_key && key_token.is_none()),
        key_token,
        key_placement: match key_header(kind) {
            KeyHeader::Bearer => KeyPlacement::Bearer,
            KeyHeader::Named(name) => KeyPlacement::Header(name.to_owned()),
        },
        key_status: row.key_status.as_deref().and_then(KeyStatus::parse),
        key_note: drifted,
        apis: native_apis(kind).iter().filter_map(|word| Api::parse(word)).collect(),
        translated: translated(kind),
        priority: row.priority,
        prefixes: row
            .prefixes
            .as_deref()
            .and_then(|text| serde_json::from_str::<Vec<String>>(text).ok())
            .unwrap_or_default(),
        health: row.health_status.as_deref().and_then(HealthStatus::parse).unwrap_or(HealthStatus::Unknown),
        enabled: row.enabled,
        managed: row.applied.is_some(),
        models,
        origin: row.applied.as_ref().map(|applied| applied.origin.clone()),
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

fn offer(model: &PictureModel, object: Option<&GatewayObjectText>, problems: &mut Vec<String>) -> OfferInput {
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

impl From<crate::store::GatewayObjectRow> for GatewayObjectText {
    fn from(row: crate::store::GatewayObjectRow) -> Self {
        Self {
            kind: row.kind.to_string(),
            name: row.name,
            spec: row.spec,
            origin: row.origin.map(|it| it.to_string()),
        }
    }
}
