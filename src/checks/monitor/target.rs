//! What is checked, how, and how often.

use std::{sync::Arc, time::Duration};

use chrono::{DateTime, Utc};
use croner::parser::{CronParser, Seconds};
use secrecy::{ExposeSecret as _, SecretString};
use url::Url;
use uuid::Uuid;

use catalog::model::{HealthPolicy, Provider, Schedule};
use net::PhaseLimits;
use provider::{BaseError, ProviderType, origin_of, parse_base};

/// The defaults where neither manifest nor settings say otherwise.
const INTERVAL: Duration = Duration::from_secs(30);
const SLOW_AFTER: Duration = Duration::from_secs(3);
/// The shortest interval that a manifest may ask for.
const MIN_INTERVAL: Duration = Duration::from_secs(1);
/// Where a cron expression never comes true again.
const NEVER: Duration = Duration::from_secs(365 * 24 * 3600);

/// When checks come round.
#[derive(Debug, Clone)]
pub enum Rhythm {
    Every(Duration),
    Cron(Arc<croner::Cron>),
}

impl Rhythm {
    /// From the last check to the next.
    pub fn regular(&self, last: DateTime<Utc>) -> Duration {
        match self {
            Self::Every(interval) => *interval,
            Self::Cron(cron) => {
                let next = cron.find_next_occurrence(&last, false).ok();
                next.and_then(|next| (next - last).to_std().ok()).unwrap_or(NEVER)
            }
        }
    }
}

/// Which row, and which key, a target stands for; the monitor only hands it back.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Label {
    pub id: Uuid,
    /// `api_key_updated_at` of the key.
    pub key_updated_at: Option<DateTime<Utc>>,
    /// Keyed fingerprint of the key.
    pub key_fingerprint: Option<Box<str>>,
}

/// One provider as the monitor sees it.
#[derive(Debug, Clone)]
pub struct CheckTarget {
    pub name: Arc<str>,
    pub label: Label,
    pub kind: ProviderType,
    pub base: Url,
    /// The base URL's origin: what the caps are about.
    pub origin: Arc<str>,
    pub key: Option<SecretString>,
    /// Why the key may not be sent now.
    pub withheld: Option<Box<str>>,
    pub rhythm: Rhythm,
    pub slow_after: Duration,
    pub path: Option<Box<str>>,
    pub expect_status: Option<Vec<u16>>,
    pub limits: PhaseLimits,
}

/// Why a provider cannot be checked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TargetError {
    #[error(transparent)]
    Base(#[from] BaseError),
    #[error("the cron expression `{0}` cannot be read\nhint: second minute hour day month weekday")]
    Cron(Arc<str>),
}

impl CheckTarget {
    /// From a manifest's provider, the daemon's own policy and the key that its reference resolved to.
    pub fn new(
        provider: &Provider,
        outer: &HealthPolicy,
        key: Option<SecretString>,
    ) -> Result<Self, TargetError> {
        let policy = provider.health.clone().or(outer);
        let base_url = provider.base_url.as_deref();
        Self::from_parts(provider.name.clone(), provider.kind, base_url, policy, key)
    }

    /// From what a database row and a manifest say. `base_url` of `None` is the type's own.
    pub fn from_parts(
        name: Arc<str>,
        kind: ProviderType,
        base_url: Option<&str>,
        policy: HealthPolicy,
        key: Option<SecretString>,
    ) -> Result<Self, TargetError> {
        let base = parse_base(kind, base_url)?;
        let rhythm = match &policy.schedule {
            None => Rhythm::Every(INTERVAL),
            Some(Schedule::Every(interval)) => Rhythm::Every((*interval).max(MIN_INTERVAL)),
            Some(Schedule::Cron(text)) => {
                let parser = CronParser::builder().seconds(Seconds::Required).build();
                Rhythm::Cron(Arc::new(parser.parse(text).map_err(|_| TargetError::Cron(text.clone()))?))
            }
        };
        let mut limits = PhaseLimits::default();
        if let Some(timeout) = policy.timeout {
            limits.total = timeout;
        }
        Ok(Self {
            name,
            label: Label::default(),
            kind,
            origin: origin_of(&base),
            base,
            key,
            withheld: None,
            rhythm,
            slow_after: policy.slow_after.unwrap_or(SLOW_AFTER),
            path: policy.path,
            expect_status: policy.expect_status,
            limits,
        })
    }

    /// The key, if it may be sent.
    pub fn sent_key(&self) -> Option<&str> {
        self.key.as_ref().filter(|_| self.withheld.is_none()).map(|key| key.expose_secret())
    }

    /// Whether both hold the same key, or none.
    pub(super) fn has_key_of(&self, other: &Self) -> bool {
        let expose = |target: &Self| {
            target.key.as_ref().map(|key| key.expose_secret().to_owned()).map(zeroize::Zeroizing::new)
        };
        expose(self) == expose(other)
    }
}
