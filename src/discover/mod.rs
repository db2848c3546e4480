//! A provider's own list of models, beside what is declared and what is stored.
//!
//! Not its job: fetching the list (`health::probe`), SQL (`store`). Invariant: discovery adds rows and marks; it changes
//! no row that is there, deletes none, and believes no empty, failed or shortened list.

pub mod compare;
pub mod decide;
pub mod run;
pub mod schedule;

use std::{collections::BTreeMap, sync::Arc};

use chrono::{DateTime, Utc};
use url::Url;

use catalog::{
    model::{Catalog, Provider, SecretRef},
    plan::{ListEnd, LiveRule, Notice, NoticeKind},
};
use net::probe::{ListFailure, Lister};
use provider::{BaseError, Models, ProviderType, parse_base};

use crate::{
    secret::{Byok, ResolveError, Resolver, Secret},
    store::DiscoveryNotice,
};

/// Why a provider's list could not be had.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    #[error("its key cannot be had")]
    Key(#[source] ResolveError),
    #[error(
        "its base URL is plain http, and no manifest says that its key may travel so\nhint: declare the provider"
    )]
    Plain,
    #[error(transparent)]
    Base(#[from] BaseError),
    #[error(transparent)]
    List(#[from] ListFailure),
}

/// Whom to ask, as the manifest says and, where it is silent, as the database does.
#[derive(Debug)]
pub struct Target {
    pub kind: ProviderType,
    pub base: Url,
    pub key: Option<Secret>,
}

/// What is stored of one provider.
#[derive(Debug, Clone, Copy)]
pub struct Stored<'a> {
    pub base_url: Option<&'a str>,
    /// The tokens of both key columns.
    pub tokens: [&'a str; 2],
}

impl Target {
    /// # Errors
    /// [`AskError`]; the declared key's reference cannot be resolved and no stored key opens, or there is no base URL.
    pub fn new(
        kind: ProviderType,
        declared: Option<&Provider>,
        stored: Option<Stored<'_>>,
        resolver: &Resolver,
        byok: &Byok,
    ) -> Result<Self, AskError> {
        // A declared provider's key goes where the manifest or its type says, never where a row of the database says:
        // whoever may write there shall not have it sent to them.
        let url = match declared {
            Some(provider) => provider.base_url.as_deref(),
            None => stored.and_then(|it| it.base_url),
        };
        let base = parse_base(kind, url)?;
        let tokens = stored.map_or([""; 2], |it| it.tokens);
        let kept = tokens.into_iter().filter(|token| !token.is_empty()).find_map(|it| byok.decrypt(it).ok());
        let reference: Option<&SecretRef> = declared.and_then(|provider| provider.api_key.as_ref());
        let key = match reference.map(|reference| resolver.resolve(reference)) {
            Some(Ok(secret)) => Some(secret),
            // A command may run where the daemon's variables and credentials are not.
            Some(Err(error)) => Some(kept.ok_or(AskError::Key(error))?),
            None => kept,
        };
        if declared.is_none() && key.is_some() && base.scheme() == "http" {
            return Err(AskError::Plain);
        }
        Ok(Self { kind, base, key })
    }

    /// # Errors
    /// [`AskError::List`]
    pub async fn list(&self, lister: &Lister) -> Result<Models, AskError> {
        let key = self.key.as_ref().map(Secret::expose);
        Ok(lister.models(self.kind, &self.base, key).await?)
    }
}

/// `eco × all`, for a rule that names both.
fn cell(rule: &LiveRule) -> Option<String> {
    Some(format!("{} × {}", rule.power_level.as_deref()?, rule.user_tier.as_deref()?))
}

/// Vanished models without routes that are named; the rest is counted.
const NAMED: usize = 5;

/// What `plan` and `status` say about lists, of providers whose manifests ask for discovery.
pub fn notices(found: Vec<DiscoveryNotice>, catalog: &Catalog) -> Vec<Notice> {
    let asks = |name: &str| catalog.providers.get(name).is_some_and(|it| it.discover.is_some());
    let day = |at: DateTime<Utc>| at.format("%Y-%m-%d %H:%M UTC");
    let mut notices = Vec::new();
    let mut unrouted: BTreeMap<Arc<str>, Vec<String>> = BTreeMap::new();
    let mut say = |provider, kind, message| {
        notices.push(Notice { provider, kind, message, fields: Vec::new() });
    };
    for notice in found {
        match notice {
            DiscoveryNotice::Trouble { provider, ended, detail, since } if asks(&provider) => {
                let what = match ended {
                    ListEnd::Suspect => "its list of models is not believed",
                    ListEnd::Empty => "its list of models is empty",
                    _ => "its list of models cannot be had",
                };
                let why = if ended == ListEnd::Empty { String::new() } else { format!(": {detail}") };
                say(provider, NoticeKind::Discovery, format!("{what} since {}{why}", day(since)));
            }
            DiscoveryNotice::Vanished { provider, model, since, routes } if asks(&provider) => {
                if routes.is_empty() {
                    unrouted.entry(provider).or_default().push(model);
                    continue;
                }
                let routes = routes.join(", ");
                let message =
                    format!("{model} is no longer offered since {} and still serves {routes}", day(since));
                say(provider, NoticeKind::Vanished, message);
            }
            _ => {}
        }
    }
    for (provider, models) in unrouted {
        let named = models.iter().take(NAMED).cloned().collect::<Vec<_>>().join(", ");
        let more = models.len().saturating_sub(NAMED);
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        say(provider, NoticeKind::Vanished, format!("no longer offered: {named}{more}"));
    }
    notices
}
