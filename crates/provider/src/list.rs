//! A provider's own list of models, page by page, through a parser that forgives.
//!
//! Invariant: bounded in pages, models and lengths, and a page is never fetched from another origin than the
//! base URL's.

use std::collections::HashSet;

use secrecy::ExposeSecret as _;
use serde::Serialize;
use serde_json::{Map, Value};
use url::Url;

use crate::{
    KeyEcho, KeyVerdict, ProviderType as P, Reply, Request,
    family::{ListedPrices, ModelIds, family, number},
    read::{ErrorSaid, read_said},
    wire::{LIST_BODY, Method, locate, request},
};

/// The column that stores names takes this many characters.
const MAX_ID: usize = 255;
const MAX_MODELS: usize = 5_000;
const MAX_PAGES: usize = 50;
/// Tokens; a larger figure is a mistake.
const MAX_CONTEXT: f64 = 2_000_000_000.0;
/// USD per million tokens; a larger figure is a mistake, and the column could not hold it.
const MAX_COST: f64 = 1_000_000.0;

/// A model as its provider lists it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ListedModel {
    pub id: String,
    pub display_name: Option<String>,
    /// Tokens.
    pub context_length: Option<u32>,
    /// USD per million input tokens.
    pub cost_in: Option<f64>,
    /// USD per million output tokens.
    pub cost_out: Option<f64>,
}

/// Everything a provider lists, in its order, without duplicates.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Models {
    pub models: Vec<ListedModel>,
    /// A limit was reached; there is more.
    pub truncated: bool,
    /// Entries left out because their id or name repeats the key (count).
    pub withheld: usize,
}

/// Why there is no list.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ListError {
    #[error("the list of models was refused: {}", .0.reason())]
    Refused(KeyVerdict),
    #[error("the list of models could not be fetched")]
    NoAnswer,
    #[error("the list of models is larger than {LIST_BODY} bytes a page")]
    TooLarge,
    #[error("the answer is not a list of models\nhint: is base_url right?")]
    Shape,
    #[error(
        "the list of models is packed (content-encoding: {0}), although none was asked for\n\
         hint: turn compression off in what stands before the provider"
    )]
    Packed(String),
    #[error("{0}")]
    Unsupported(&'static str),
}

/// What to do next.
#[derive(Debug)]
pub enum ListStep {
    Ask(Box<Request>),
    Done(Result<Models, ListError>),
}

/// One fetching of a list.
pub struct ModelList {
    kind: P,
    key: Option<secrecy::SecretString>,
    /// Lists still to be asked; the first is the current one.
    sources: Vec<Url>,
    current: Option<Url>,
    pages: usize,
    seen: HashSet<String>,
    found: Models,
}

impl ModelList {
    pub fn new(kind: P, base: &Url, key: Option<&str>) -> Self {
        let family = family(kind);
        let sources = family.list.asks.iter().rev().map(|ask| locate(family, base, ask.at)).collect();
        Self {
            kind,
            key: key.map(secrecy::SecretString::from),
            sources,
            current: None,
            pages: 0,
            seen: HashSet::new(),
            found: Models::default(),
        }
    }

    /// Says what to ask next. The first call's argument is ignored; later `None` means that there was no answer.
    pub fn next(&mut self, answer: Option<Reply<'_>>) -> ListStep {
        let Some(url) = self.current.take() else {
            let family = family(self.kind);
            return match family.retired.or(family.list.unsupported) {
                Some(why) => ListStep::Done(Err(ListError::Unsupported(why))),
                None => self.next_source(ListError::Shape),
            };
        };
        let Some(reply) = answer else { return self.next_source(ListError::NoAnswer) };
        if reply.truncated {
            return self.next_source(ListError::TooLarge);
        }
        let (said, json) = ErrorSaid::read(&reply);
        if let Some(verdict) = read_said(self.kind, reply.status, &said) {
            return self.next_source(ListError::Refused(verdict));
        }
        let Some(json) = json else {
            return self.next_source(said.packed.map_or(ListError::Shape, ListError::Packed));
        };
        let Some(items) = envelope(&json) else { return self.next_source(ListError::Shape) };
        // Ids and names are stored and shown: one that repeats the key would be the key in clear.
        let echo = KeyEcho::of(self.key.as_ref().map_or("", |key| key.expose_secret()));
        for item in items {
            if self.found.models.len() >= MAX_MODELS {
                self.found.truncated = true;
                break;
            }
            if let Some(model) = listed(self.kind, item)
                && self.seen.insert(model.id.clone())
            {
                if echo.is_in_name(&model.id)
                    || model.display_name.as_ref().is_some_and(|name| echo.is_in_name(name))
                {
                    self.found.withheld += 1;
                } else {
                    self.found.models.push(model);
                }
            }
        }
        self.pages += 1;
        match next_page(&json, &url) {
            // An empty page with a pointer to the next would go on for ever.
            Some(next) if !items.is_empty() && !self.found.truncated => {
                if self.pages >= MAX_PAGES {
                    self.found.truncated = true;
                    return self.done();
                }
                self.ask(next)
            }
            _ if family(self.kind).list.joined && !self.sources.is_empty() => {
                self.next_source(ListError::Shape)
            }
            _ => self.done(),
        }
    }

    fn ask(&mut self, url: Url) -> ListStep {
        let key = self.key.as_ref().map(|key| key.expose_secret());
        let ask = request(self.kind, Method::Get, url.clone(), key, None, LIST_BODY);
        self.current = Some(url);
        ListStep::Ask(Box::new(ask))
    }

    /// The next list, or the end: with what was found, if anything was, else with the error.
    fn next_source(&mut self, error: ListError) -> ListStep {
        let refused_key =
            matches!(&error, ListError::Refused(verdict) if matches!(verdict, KeyVerdict::Invalid { .. }));
        // A page lost in the middle makes the list incomplete; asking another list would mix two.
        let part = self.pages > 0 && !family(self.kind).list.joined;
        match self.sources.pop() {
            Some(url) if !refused_key && !part => self.ask(url),
            _ if self.pages > 0 => {
                self.found.truncated |= part;
                self.done()
            }
            _ => ListStep::Done(Err(error)),
        }
    }

    fn done(&mut self) -> ListStep {
        self.sources.clear();
        ListStep::Done(Ok(std::mem::take(&mut self.found)))
    }
}

/// The array that holds the models, at the top or one level below.
fn envelope(json: &Value) -> Option<&Vec<Value>> {
    const NAMES: &[&str] = &[
        "data",
        "models",
        "result",
        "results",
        "items",
        "modelSummaries",
        "inferenceProfileSummaries",
        "publisherModels",
    ];
    fn arrays(fields: &Map<String, Value>) -> Option<&Vec<Value>> {
        NAMES.iter().filter_map(|name| fields.get(*name)).find_map(Value::as_array)
    }
    match json {
        Value::Array(items) => Some(items),
        Value::Object(fields) => arrays(fields)
            .or_else(|| NAMES.iter().filter_map(|name| fields.get(*name)?.as_object()).find_map(arrays)),
        _ => None,
    }
}

/// Where the next page is; of the same origin as this one.
fn next_page(json: &Value, url: &Url) -> Option<Url> {
    let text = |name: &str| {
        json.get(name).and_then(Value::as_str).filter(|text| !text.is_empty() && text.len() <= 4096)
    };
    let with = |name: &str, value: &str| {
        let mut next = url.clone();
        let kept: Vec<(String, String)> = url
            .query_pairs()
            .filter(|(have, _)| have != name)
            .map(|(a, b)| (a.into_owned(), b.into_owned()))
            .collect();
        next.query_pairs_mut().clear().extend_pairs(kept).append_pair(name, value);
        next
    };
    let next = if let Some(token) = text("nextPageToken") {
        with("pageToken", token)
    } else if let Some(token) = text("next_page_token") {
        with("page_token", token)
    } else if let Some(token) = text("nextToken") {
        with("nextToken", token)
    } else if json.get("has_more").and_then(Value::as_bool) == Some(true)
        && let Some(last) = text("last_id")
    {
        with("after_id", last)
    } else {
        let link = text("next")
            .or_else(|| json.get("links")?.get("next")?.as_str())
            .filter(|link| !link.is_empty())?;
        url.join(link).ok()?
    };
    (next.origin() == url.origin() && next != *url).then_some(next)
}

/// One model; `None` for what cannot be named or is not offered for conversation.
fn listed(kind: P, item: &Value) -> Option<ListedModel> {
    if let Value::String(id) = item {
        return Some(ListedModel {
            id: id_of(kind, id)?,
            display_name: None,
            context_length: None,
            cost_in: None,
            cost_out: None,
        });
    }
    let fields = item.as_object()?;
    let text = |name: &str| fields.get(name).and_then(Value::as_str).filter(|text| !text.is_empty());
    let list = &family(kind).list;
    if !(list.offers)(fields) {
        return None;
    }
    const IDS: &[&str] = &["id", "name", "model", "model_id", "modelId", "slug", "inferenceProfileId"];
    let id = match list.ids {
        ModelIds::OwnerAndName => format!("{}/{}", text("owner")?, text("name")?),
        _ => IDS.iter().find_map(|name| text(name))?.to_owned(),
    };
    let id = id_of(kind, &id)?;
    let named = ["display_name", "displayName", "modelName", "inferenceProfileName"]
        .iter()
        .find_map(|name| text(name));
    // Where `id` names the model, `name` is for people.
    let named = named.or_else(|| if fields.contains_key("id") { text("name") } else { None });
    let display_name = named.map(clean).filter(|name| !name.is_empty() && *name != id);
    let (cost_in, cost_out) = costs(kind, item);
    Some(ListedModel { id, display_name, context_length: context(item), cost_in, cost_out })
}

fn id_of(kind: P, id: &str) -> Option<String> {
    let id = id.trim();
    let id = match family(kind).list.ids {
        ModelIds::After(word) => id.rsplit_once(word).map_or(id, |(_, id)| id),
        ModelIds::AsListed | ModelIds::OwnerAndName => id,
    };
    let fits = !id.is_empty() && id.chars().count() <= MAX_ID && !id.chars().any(char::is_control);
    fits.then(|| id.to_owned())
}

fn clean(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(MAX_ID).collect::<String>().trim().to_owned()
}

fn context(item: &Value) -> Option<u32> {
    const NAMES: &[&str] = &[
        "context_length",
        "context_window",
        "max_model_len",
        "max_context_length",
        "max_context_tokens",
        "ctx_len",
        "contextWindow",
        "contextLength",
        "inputTokenLimit",
        "max_input_tokens",
        "n_ctx_train",
    ];
    let of = |item: &Value| {
        NAMES
            .iter()
            .filter_map(|name| item.get(*name))
            .filter_map(number)
            .find(|tokens| (1.0..=MAX_CONTEXT).contains(tokens))
    };
    let nested =
        || ["top_provider", "metadata", "meta"].iter().filter_map(|name| item.get(*name)).find_map(of);
    let largest = || item.get("providers")?.as_array()?.iter().take(64).filter_map(of).reduce(f64::max);
    of(item).or_else(nested).or_else(largest).map(|tokens| tokens as u32)
}

fn costs(kind: P, item: &Value) -> (Option<f64>, Option<f64>) {
    let first =
        |from: &Value, names: &[&str]| names.iter().filter_map(|name| from.get(*name)).find_map(number);
    const IN: &[&str] = &["prompt", "input", "input_tokens"];
    const OUT: &[&str] = &["completion", "output", "output_tokens"];
    let quoted = family(kind).list.prices;
    if let ListedPrices::Fields { input, output, parts } = quoted {
        let price = |name: &str| first(item, &[name]).map(|price| price / parts).and_then(sane_cost);
        return (price(input), price(output));
    }
    let pricing = item
        .get("pricing")
        .or_else(|| item.get("metadata")?.get("pricing"))
        .or_else(|| cheapest(item.get("providers")?.as_array()?));
    let Some(pricing) = pricing else { return (None, None) };
    let (input, output) = (first(pricing, IN), first(pricing, OUT));
    let per_token = match quoted {
        ListedPrices::PerToken => true,
        ListedPrices::PerMillion => false,
        // Both figures are below any price per million.
        ListedPrices::Guessed | ListedPrices::Fields { .. } => {
            input.unwrap_or(0.0).max(output.unwrap_or(0.0)) < 0.01
        }
    };
    let scale = if per_token { 1_000_000.0 } else { 1.0 };
    let price = |price: Option<f64>| price.map(|price| price * scale).and_then(sane_cost);
    (price(input), price(output))
}

/// Of several hosts of one model, the pricing with the lowest input price.
fn cheapest(providers: &[Value]) -> Option<&Value> {
    providers
        .iter()
        .take(64)
        .filter_map(|provider| provider.get("pricing"))
        .filter_map(|pricing| Some((number(pricing.get("input")?)?, pricing)))
        .min_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, pricing)| pricing)
}

/// Rounded to a millionth of a cent, so that 0.0000001 per token is 0.1 and not 0.09999999999999999.
fn sane_cost(cost: f64) -> Option<f64> {
    let rounded = (cost * 1e8).round() / 1e8;
    (cost.is_finite() && (0.0..MAX_COST).contains(&rounded)).then_some(rounded)
}
