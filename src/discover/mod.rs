//! A provider's own list of models, beside what is declared and what is stored.
//!
//! Not its job: fetching the list (`health::probe`), SQL (`store`). Invariant: discovery adds rows and marks; it changes
//! no row that is there, deletes none, and believes no empty, failed or shortened list.

pub mod compare;
pub mod decide;
pub mod run;
pub mod schedule;

use std::sync::Arc;

use url::Url;

use catalog::{model::Provider, plan::LiveRule};
use net::probe::{ListFailure, Lister};
use provider::{BaseError, Models, ProviderType, parse_base};

use crate::{
    destination::{Declared, Destination, Misplaced, destination, opened},
    secret::{Keyring, ResolveError, Resolver, Secret},
    store::{self, KeyRow, Store},
};

/// Why a provider's list could not be read.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    #[error("its key could not be resolved")]
    Key(#[source] ResolveError),
    #[error(
        "its base URL is plain http, and no manifest says that its key may travel so\nhint: declare the provider"
    )]
    Plain,
    #[error(transparent)]
    Base(#[from] BaseError),
    #[error(transparent)]
    Misplaced(#[from] Misplaced),
    #[error(transparent)]
    List(#[from] ListFailure),
}

/// Which provider to ask, as the manifest says and, where it is silent, as the database does.
#[derive(Debug)]
pub struct ListTarget {
    pub kind: ProviderType,
    pub base: Url,
    pub key: Option<Arc<Secret>>,
}

impl ListTarget {
    /// A declared provider: it is asked where the manifest or its type says, never where a row of the database says, and
    /// without its key only if it has none: while its row names another place, it is not asked.
    ///
    /// # Errors
    /// [`AskError`]; the declared key's reference cannot be resolved and no stored key may stand in, or there is no base
    /// URL, or the row has drifted.
    pub fn declared(
        provider: &Provider,
        rows: &[KeyRow],
        resolver: &Resolver,
        keyring: &Keyring,
    ) -> Result<Self, AskError> {
        let row = rows.iter().find(|row| row.name == provider.name);
        let (kind, base) = (provider.kind, parse_base(provider.kind, provider.base_url.as_deref())?);
        let declared = Declared { kind, base };
        let drifted = row.and_then(|row| row.place.agrees(&declared).err());
        let kept = row.filter(|_| drifted.is_none()).and_then(|row| opened(&row.tokens, &keyring.byok));
        let own = |kept: Arc<Secret>| match row.map(|row| row.is_not_copied(rows, None, keyring)) {
            Some(Err(why)) => Err(AskError::from(why)),
            _ => Ok(kept),
        };
        let key = match provider.api_key.as_ref().map(|reference| resolver.resolve(reference)) {
            Some(Ok(secret)) => Some(Arc::new(secret)),
            // A command may run where the daemon's variables and credentials are not.
            Some(Err(error)) => Some(own(kept.ok_or(AskError::Key(error))?)?),
            None => kept.map(own).transpose()?,
        };
        let holds_key =
            key.is_some() || row.is_some_and(|row| row.tokens.iter().any(|token| !token.is_empty()));
        match drifted.filter(|_| holds_key && row.is_some_and(|row| row.managed)) {
            Some(why) => Err(why.into()),
            None => Ok(Self { kind, base: declared.base, key }),
        }
    }

    /// A provider that no readable manifest declares, as its row says or as it was applied last. `rows` are all rows that
    /// hold keys, and this one. `None`: there is no such row.
    ///
    /// # Errors
    /// [`AskError`]; its key may go nowhere.
    pub fn stored(rows: &[KeyRow], name: &str, keyring: &Keyring) -> Result<Option<Self>, AskError> {
        let Some(Destination { kind, base, key }) = destination(rows, name, None, keyring)? else {
            return Ok(None);
        };
        let managed = rows.iter().any(|row| &*row.name == name && row.managed);
        if !managed && key.is_some() && base.scheme() == "http" {
            return Err(AskError::Plain);
        }
        Ok(Some(Self { kind, base, key }))
    }

    /// # Errors
    /// [`AskError::List`]
    pub async fn list(&self, lister: &Lister) -> Result<Models, AskError> {
        let key = self.key.as_ref().map(|key| key.expose());
        Ok(lister.models(self.kind, &self.base, key).await?)
    }
}

/// The row of this name and, where it holds another key than was applied, all rows that hold keys: whose it is must be
/// known before it travels.
///
/// # Errors
/// The database cannot be read.
pub async fn key_rows(store: &Store, name: &str, keyring: &Keyring) -> store::Result<Vec<KeyRow>> {
    let rows = store.key_rows(name, false).await?;
    let is_own = rows.iter().all(|row| {
        let held = row.held(None, keyring);
        held.held.is_none() || held.held == held.applied
    });
    if is_own { Ok(rows) } else { store.key_rows(name, true).await }
}

/// `eco × all`, for a rule that names both.
fn cell(rule: &LiveRule) -> Option<String> {
    Some(format!("{} × {}", rule.power_level.as_deref()?, rule.user_tier.as_deref()?))
}
