//! One look at one provider's list: fetch, read, decide, write.
//!
//! Not its job: when (`schedule`), what a list means (`decide`). Invariants: the list is fetched before the transaction
//! begins, so that a slow provider holds up no reconcile; everything is read and written in one transaction, under the
//! reconcile's lock and the daemon's lease; where nothing differs nothing is written.

use std::{
    collections::HashMap,
    sync::{Arc, OnceLock},
};

use chrono::Utc;
use sha2::Digest as _;
use uuid::Uuid;

use catalog::{
    model::{Provider, Revision},
    plan::{AuditEntry, DiscoveryDecision, EventKind, ListEnd, ProviderPlan},
};
use net::probe::Lister;
use provider::Models;

use super::{
    AskError, ListTarget,
    decide::{DecisionInput, decide},
};
use crate::{
    config::Egress,
    reconcile::{self, ReconcileError},
    secret::{Keyring, Resolver},
    store::{Lease, NewEvent, ReconcileTx, Scope, Store, StoreError},
};

/// Others write to the same rows at the same time; who lost against them reads again so many times at once.
const CONFLICT_TRIES: u32 = 3;

/// Why a look had no end that can be remembered.
#[derive(Debug, thiserror::Error)]
pub enum DiscoverError {
    #[error("the database could not be asked")]
    Store(#[from] StoreError),
    #[error("another daemon reconciles this database now")]
    NotLeader,
    #[error("its declaration is not applied yet")]
    NotApplied,
    #[error("applying is suspended")]
    Suspended,
}

impl From<ReconcileError> for DiscoverError {
    fn from(error: ReconcileError) -> Self {
        match error {
            ReconcileError::Store(error) => Self::Store(error),
            ReconcileError::NotLeader => Self::NotLeader,
        }
    }
}

/// Names what a decision adds.
fn digest(decision: &DiscoveryDecision) -> String {
    let mut hash = sha2::Sha256::new();
    decision.create.iter().for_each(|change| hash.update(change.id));
    hash.finalize().iter().take(16).map(|byte| format!("{byte:02x}")).collect()
}

/// What a look found and wrote.
#[derive(Debug)]
pub struct Looked {
    pub decision: DiscoveryDecision,
    /// Rows of the audit trail that were written.
    pub events: usize,
}

/// Looks at providers' lists.
pub struct Discoverer {
    pub(super) store: Store,
    keyring: Arc<Keyring>,
    resolver: Arc<Resolver>,
    lister: LazyLister,
    turn: tokio::sync::Mutex<()>,
}

/// A lister that is made when it is first needed: most installations discover nothing, and a client costs a reading of
/// the trusted roots.
struct LazyLister {
    settings: Egress,
    made: OnceLock<Result<Lister, String>>,
}

impl LazyLister {
    fn new(settings: &Egress) -> Self {
        Self { settings: settings.clone(), made: OnceLock::new() }
    }

    fn get(&self) -> Result<&Lister, &str> {
        let make = || {
            self.settings
                .net_config()
                .and_then(|config| Ok(Lister::new(config, Lister::LIMITS)?))
                .map_err(|error| format!("{error:#}"))
        };
        self.made.get_or_init(make).as_ref().map_err(String::as_str)
    }
}

/// Names what a manifest asks for: another name means that the list is worth a look at once.
pub fn policy(provider: &Provider) -> String {
    let mut hash = sha2::Sha256::new();
    let mut part = |text: &str| {
        hash.update(text.as_bytes());
        hash.update([0x1f]);
    };
    part(provider.kind.as_str());
    part(provider.effective_base_url().unwrap_or_default());
    if let Some(discover) = &provider.discover {
        discover.include.iter().for_each(|glob| part(glob));
        part("\0");
        discover.exclude.iter().for_each(|glob| part(glob));
        part(if discover.enabled { "on" } else { "off" });
    }
    hash.finalize().iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}

impl Discoverer {
    pub fn new(store: Store, keyring: Arc<Keyring>, resolver: Arc<Resolver>, egress: &Egress) -> Self {
        Self {
            store,
            keyring,
            resolver,
            lister: LazyLister::new(egress),
            turn: tokio::sync::Mutex::default(),
        }
    }

    /// Looks at one declared provider's list and writes what follows from it.
    ///
    /// # Errors
    /// [`DiscoverError`]; nothing was written. A list that cannot be read is no error: it is remembered as failed.
    pub async fn look(
        &self,
        provider: &Provider,
        lease: Option<&Lease>,
        revision: Option<&Revision>,
    ) -> Result<Looked, DiscoverError> {
        let list = self.ask(provider).await?;
        let list = list.as_ref().map_err(|why| &**why);
        // Most looks find nothing new: they hold up no reconcile, because they take no lock.
        let mut tx = self.store.look_begin().await?;
        let read = self.read(&mut tx, provider, list).await;
        tx.rollback().await?;
        let (_, decision) = read?;
        if decision.is_empty() {
            return Ok(Looked { decision, events: 0 });
        }
        // One of ours at a time contends for it.
        let _turn = self.turn.lock().await;
        let mut tries = CONFLICT_TRIES;
        loop {
            match self.settle(provider, list, lease, revision).await {
                Err(DiscoverError::Store(StoreError::Conflict(_))) if tries > 0 => tries -= 1,
                // A model that the database refuses is reported with its words, like any list that cannot be read.
                Err(DiscoverError::Store(error)) if error.is_data() && list.is_ok() => {
                    let why = format!("the database refuses a model: {error}");
                    return self.settle(provider, Err(&why), lease, revision).await;
                }
                result => return result,
            }
        }
    }

    /// The list, or in words why there is none.
    async fn ask(&self, provider: &Provider) -> Result<Result<Models, String>, StoreError> {
        let lister = match self.lister.get() {
            Ok(lister) => lister,
            Err(why) => return Ok(Err(why.to_owned())),
        };
        let rows = match &provider.api_key {
            Some(_) => super::key_rows(&self.store, &provider.name, &self.keyring).await?,
            None => Vec::new(),
        };
        let asked = match ListTarget::declared(provider, &rows, &self.resolver, &self.keyring) {
            Ok(target) => target.list(lister).await,
            Err(error) => Err(error),
        };
        if let Ok(Models { withheld: withheld @ 1.., .. }) = &asked {
            tracing::warn!(provider = %provider.name, withheld, "models are left out: their names repeat the API key");
        }
        Ok(asked.map_err(|error| match &error {
            AskError::Key(why) => format!("{error}: {why}"),
            _ => error.to_string(),
        }))
    }

    async fn settle(
        &self,
        provider: &Provider,
        list: Result<&Models, &str>,
        lease: Option<&Lease>,
        revision: Option<&Revision>,
    ) -> Result<Looked, DiscoverError> {
        let mut tx = self.store.reconcile_begin().await?;
        let (id, decision) = self.read(&mut tx, provider, list).await?;
        if decision.is_empty() {
            tx.rollback().await?;
            return Ok(Looked { decision, events: 0 });
        }
        if decision.create.is_empty() {
            if let Some(lease) = lease
                && !tx.lease_check(lease).await?
            {
                return Err(DiscoverError::NotLeader);
            }
        } else {
            reconcile::fence(&mut tx, lease, revision, &digest(&decision)).await?;
            let plan = ProviderPlan {
                name: provider.name.clone(),
                id,
                changes: decision.create.clone(),
                key: None,
                record: None,
                forget: false,
            };
            reconcile::carry_out(&mut tx, &[plan], &HashMap::new(), revision).await?;
        }
        tx.discovery_remember(id, &decision).await?;
        let events: Vec<NewEvent> =
            decision.audit(provider, id).into_iter().map(|entry| NewEvent::of(entry, revision)).collect();
        tx.record(&events).await?;
        tx.commit().await?;
        Ok(Looked { decision, events: events.len() })
    }

    /// The provider's row and what is to be done, as this transaction sees it.
    async fn read(
        &self,
        tx: &mut ReconcileTx,
        provider: &Provider,
        list: Result<&Models, &str>,
    ) -> Result<(Uuid, DiscoveryDecision), DiscoverError> {
        let suspended = tx.suspended().await?;
        if suspended.all.is_some() || suspended.providers.contains_key(&provider.name) {
            return Err(DiscoverError::Suspended);
        }
        let scope = Scope::Providers(vec![provider.name.clone()]);
        let world = tx.world(&scope, &|token| self.keyring.open(token)).await?;
        let managed = world.managed.get(&provider.name);
        let live =
            world.live.get(&provider.name).filter(|live| managed.is_some_and(|it| it.provider_id == live.id));
        let live = live.ok_or(DiscoverError::NotApplied)?;
        let memory = tx.discovery(live.id).await?;
        let policy = policy(provider);
        let input = DecisionInput {
            provider,
            policy: &policy,
            list,
            live,
            memory: &memory,
            now: Utc::now(),
            new_id: &Uuid::new_v4,
        };
        Ok((live.id, decide(&input)))
    }

    /// Forgets providers whose manifest no longer asks for discovery (by id and name), and those whose row is gone. Their
    /// models stay, and no manifest manages them from now on.
    ///
    /// # Errors
    /// [`DiscoverError`]; nothing was written.
    pub async fn forget(
        &self,
        providers: &[(Uuid, Option<Arc<str>>)],
        lease: Option<&Lease>,
        revision: Option<&Revision>,
    ) -> Result<(), DiscoverError> {
        if providers.is_empty() {
            return Ok(());
        }
        let mut tx = self.store.reconcile_begin().await?;
        if let Some(lease) = lease
            && !tx.lease_check(lease).await?
        {
            return Err(DiscoverError::NotLeader);
        }
        let ids: Vec<Uuid> = providers.iter().map(|(id, _)| *id).collect();
        tx.discovery_forget(&ids).await?;
        let entries = providers.iter().filter_map(|(id, name)| {
            let name = name.as_ref()?;
            Some(AuditEntry {
                kind: EventKind::Discovery,
                provider: Some(name.clone()),
                provider_id: Some(*id),
                detail: serde_json::json!({}),
                reason: "no manifest asks for discovery any more; the models it found stay, unmanaged"
                    .to_owned(),
                origin: None,
            })
        });
        let events: Vec<NewEvent> = entries.map(|entry| NewEvent::of(entry, revision)).collect();
        tx.record(&events).await?;
        tx.commit().await?;
        Ok(())
    }
}

impl Looked {
    /// Says in the log what the operator should know.
    pub fn log(&self, provider: &str) {
        let decision = &self.decision;
        match decision.ended {
            ListEnd::Ok => {}
            ended if decision.state.is_some() => {
                tracing::warn!(%provider, ended = ended.as_str(), "discovery: {}", decision.detail);
            }
            // Said once is enough.
            ended => tracing::debug!(%provider, ended = ended.as_str(), "discovery: {}", decision.detail),
        }
        if !decision.create.is_empty() || !decision.gone.is_empty() || !decision.back.is_empty() {
            tracing::info!(
                %provider,
                found = decision.create.len(),
                vanished = decision.gone.len(),
                returned = decision.back.len(),
                "discovery changed the models"
            );
        }
        for gone in decision.gone.iter().filter(|gone| !gone.routes.is_empty()) {
            tracing::warn!(
                %provider,
                model = gone.name,
                routes = gone.routes.join(", "),
                "the provider no longer offers a model that serves routes"
            );
        }
    }
}
