//! Keeps the gateway's picture in step with the database.
//!
//! Its job: read rows when there is a reason to look, build the picture, publish it, keep the sealed copy. Not its job:
//! what a picture means. Invariants: a reading that fails leaves the picture that is served; a reason that arrives
//! while one is read causes another reading; readings are as far apart as they take long, times a few.

use std::{path::PathBuf, sync::Arc, time::Duration};

use gateway::{
    picture::{ConsumerInput, PictureInput},
    serve::Gateway,
};
use tokio::{
    sync::Notify,
    time::{Instant, sleep},
};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::{load, sealed};
use crate::{config, secret::Byok, store::Store};

/// While nothing gives a reason: what other programs and other daemons changed is seen by then.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// Two readings of a busy database are at least so far apart.
const SPACING: Duration = Duration::from_millis(20);
/// A reading that took long is followed by a rest of this many times its duration, so that it costs a fifth of a core.
const REST: u32 = 4;
/// A picture that did not change is published again after this long, so that its age stays true.
const FRESHEN: Duration = Duration::from_secs(30);
/// Between two writes of the sealed copy.
const SEAL_EVERY: Duration = Duration::from_secs(10);

/// What the keeper works with.
pub struct PictureKeeper {
    pub gateway: Arc<Gateway>,
    pub store: Store,
    pub byok: Byok,
    pub settings: config::Gateway,
    /// Consumers that no manifest names.
    pub own: Vec<ConsumerInput>,
    /// A reason to look.
    pub hint: Arc<Notify>,
    /// Where the sealed copy lies.
    pub state: PathBuf,
}

impl PictureKeeper {
    /// Serves from the sealed copy until the database was read, where there is one that may be used.
    pub fn start_from_sealed(&self) {
        let now = unix();
        match sealed::unseal(&self.state, &self.byok, None, self.settings.stale_after, now) {
            Ok(Some(input)) => {
                info!(
                    age_s = now - input.taken_at,
                    "serving from the sealed picture until the database answers"
                );
                self.publish(&input);
            }
            Ok(None) => {}
            Err(error) => warn!(%error, "the sealed picture is not used"),
        }
    }

    /// Until `stop`.
    pub async fn run(self, stop: CancellationToken) {
        let mut last: Option<PictureInput> = None;
        let mut published = Instant::now();
        let mut sealed_at: Option<Instant> = None;
        let mut unsealed = false;
        let mut database = None;
        let mut failing = false;
        while !stop.is_cancelled() {
            let began = Instant::now();
            match self.read(&mut database).await {
                Ok(input) => {
                    if std::mem::take(&mut failing) {
                        info!("the picture follows the database again");
                    }
                    let same = last.as_ref().is_some_and(|last| is_same(last, &input));
                    if !same || published.elapsed() >= FRESHEN {
                        self.publish(&input);
                        published = Instant::now();
                        unsealed |= !same;
                    }
                    let due = sealed_at.is_none_or(|at| at.elapsed() >= SEAL_EVERY);
                    if (unsealed && due) || sealed_at.is_some_and(|at| at.elapsed() >= FRESHEN * 10) {
                        self.seal(database.as_deref().unwrap_or_default(), &input).await;
                        sealed_at = Some(Instant::now());
                        unsealed = false;
                    }
                    last = Some(input);
                }
                Err(error) => {
                    if !std::mem::replace(&mut failing, true) {
                        warn!(%error, "the picture cannot be read; the last one serves on");
                    } else {
                        debug!(%error, "the picture cannot be read");
                    }
                }
            }
            let rest = (began.elapsed() * REST).max(SPACING);
            tokio::select! {
                () = stop.cancelled() => return,
                () = sleep(rest) => {}
            }
            tokio::select! {
                () = stop.cancelled() => return,
                () = self.hint.notified() => {}
                () = sleep(LOOK_EVERY) => {}
            }
        }
    }

    async fn read(&self, database: &mut Option<String>) -> crate::store::Result<PictureInput> {
        if database.is_none() {
            *database =
                Some(self.store.meta_set_if_absent("database_id", &uuid::Uuid::new_v4().to_string()).await?);
        }
        let (mut input, problems) = load::read_input(&self.store, &self.byok, &self.settings).await?;
        for problem in problems {
            debug!(problem, "left out of the picture");
        }
        input.consumers.extend(self.own.iter().cloned());
        Ok(input)
    }

    fn publish(&self, input: &PictureInput) {
        let (picture, problems) = load::build(input, &self.byok);
        for problem in problems {
            debug!(%problem, "left out of the picture");
        }
        self.gateway.publish(picture);
    }

    async fn seal(&self, database: &str, input: &PictureInput) {
        let (state, byok, input) = (self.state.clone(), self.byok.clone(), input.clone());
        let database = database.to_owned();
        let sealing = move || sealed::seal(&state, &byok, &database, &input);
        match tokio::task::spawn_blocking(sealing).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => warn!(%error, "the sealed picture cannot be written"),
            Err(_) => warn!("the sealed picture cannot be written"),
        }
    }
}

/// Equal but for when they were read.
fn is_same(one: &PictureInput, other: &PictureInput) -> bool {
    one.revision == other.revision
        && one.rules == other.rules
        && one.consumers == other.consumers
        && one.tiers == other.tiers
        && one.aliases == other.aliases
        && one.levels == other.levels
        && one.providers == other.providers
        && one.routes == other.routes
}

pub(super) fn unix() -> i64 {
    chrono::Utc::now().timestamp()
}
