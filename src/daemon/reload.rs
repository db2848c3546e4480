//! A reload: reads the settings again and takes what can change while the daemon runs.
//!
//! Not its job: the manifests, which the same signal makes the loop look at. Invariant: settings with a mistake
//! change nothing at all; what needs a restart is named, and goes on as it was.

use std::time::Duration;

use tokio::sync::watch;
use tracing::{error, info, warn};

use crate::{
    checks::Checks,
    config::{Retention, Settings},
    process::logging,
    reconcile::Rules,
};

/// Keys that change while the daemon runs; any other needs a restart.
const LIVE: [&str; 12] = [
    "manifests.resync_interval",
    "keys.require_valid",
    "reconcile.drift",
    "reconcile.prune_limit",
    "reconcile.prune_limit_min",
    "reconcile.route_guard",
    "health.interval",
    "health.timeout",
    "health.slow_after",
    "log.level",
    "retention.events",
    "retention.history",
];

/// Reads all layers of the settings again, with what the command line overrides.
pub type Read = Box<dyn Fn() -> anyhow::Result<Settings> + Send>;

/// Where changed settings go.
pub struct Reload {
    /// What is in force.
    pub running: Settings,
    pub read: Read,
    pub rules: Rules,
    pub checks: Option<Checks>,
    pub retention: watch::Sender<Retention>,
    pub resync: watch::Sender<Duration>,
}

impl Reload {
    /// Takes what changed and says so.
    pub fn again(&mut self) {
        let new = match (self.read)() {
            Ok(new) => new,
            Err(error) => {
                error!(error = format!("{error:#}"), "the settings are not valid; those in force stay");
                return;
            }
        };
        let (live, restart) = sort(self.running.differences(&new));
        if !live.is_empty() {
            self.take(&new);
            info!(keys = live.join(", "), "the settings changed");
        }
        if live.contains(&"log.level") && logging::is_overridden() {
            warn!("log.level changed, but RUST_LOG overrides it");
        }
        if !restart.is_empty() {
            warn!(keys = restart.join(", "), "changed settings that take effect at the next start");
        }
    }

    fn take(&mut self, new: &Settings) {
        let running = &mut self.running;
        running.manifests.resync_interval = new.manifests.resync_interval;
        running.keys.require_valid = new.keys.require_valid;
        running.reconcile.clone_from(&new.reconcile);
        running.health.interval = new.health.interval;
        running.health.timeout = new.health.timeout;
        running.health.slow_after = new.health.slow_after;
        running.log.level.clone_from(&new.log.level);
        running.retention.clone_from(&new.retention);
        self.rules.set(&running.reconcile, running.keys.require_valid);
        if let Some(checks) = &self.checks {
            checks.set_policy(running.health.policy());
        }
        self.retention.send_replace(running.retention.clone());
        self.resync.send_if_modified(|interval| {
            std::mem::replace(interval, running.manifests.resync_interval)
                != running.manifests.resync_interval
        });
        if let Err(error) = logging::set_level(&running.log.level) {
            warn!(%error, "log.level stays as it was");
        }
    }
}

/// Changed keys: those that are taken now, and those that need a restart.
fn sort(changed: Vec<&'static str>) -> (Vec<&'static str>, Vec<&'static str>) {
    changed.into_iter().partition(|key| LIVE.contains(key))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    fn settings(text: &str) -> Settings {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("s.toml");
        std::fs::write(&file, text).unwrap();
        let read = |path: &Path| Settings::load(Some(path), std::iter::empty()).unwrap();
        read(&file)
    }

    #[test]
    fn changed_keys_are_told_apart() {
        let check = |before: &str, after: &str, live: &[&str], restart: &[&str]| {
            let changed = settings(before).differences(&settings(after));
            assert_eq!(sort(changed), (live.to_vec(), restart.to_vec()), "{before} {after}");
        };
        check("", "", &[], &[]);
        check("", "log.level = \"debug\"", &["log.level"], &[]);
        check("", "log.format = \"json\"", &[], &["log.format"]);
        check(
            "",
            "reconcile.prune_limit = 7\nserver.listen = \"127.0.0.1:1\"",
            &["reconcile.prune_limit"],
            &["server.listen"],
        );
        // Secrets print alike and differ all the same.
        let url = |password: &str| format!("database.url = \"postgres://u:{password}@h/d\"");
        check(&url("one"), &url("two"), &[], &["database.url"]);
        check(&url("one"), &url("one"), &[], &[]);
        check(&url("one"), "", &[], &["database.url"]);
    }

    #[test]
    fn live_keys_exist_and_are_taken() {
        let all = "manifests.resync_interval = \"7s\"\nkeys.require_valid = false\n[reconcile]\ndrift = \"report\"\n\
                   prune_limit = 7\nprune_limit_min = 7\nroute_guard = \"off\"\n[health]\ninterval = \"7s\"\n\
                   timeout = \"6s\"\nslow_after = \"5s\"\n[log]\nlevel = \"warn\"\n[retention]\nevents = \"7d\"\n\
                   history = \"7d\"\n";
        let new = settings(all);
        let running = settings("");
        assert_eq!(running.differences(&new), LIVE);
        let rules = Rules::new(&running.reconcile, running.keys.require_valid);
        let (retention, _) = watch::channel(running.retention.clone());
        let (resync, _) = watch::channel(running.manifests.resync_interval);
        let read: Read = Box::new(|| anyhow::bail!("unused"));
        let mut reload = Reload { running, read, rules, checks: None, retention, resync };
        reload.take(&new);
        assert!(reload.running.differences(&new).is_empty());
        assert_eq!(*reload.resync.borrow(), Duration::from_secs(7));
        // What cannot be read changes nothing.
        reload.again();
        assert!(reload.running.differences(&new).is_empty());
    }
}
