//! The series that carry a provider's name, written for a scrape straight from the ledger.
//!
//! A registry would have to hear of every provider that comes and goes; this is the truth at the moment of the
//! scrape, of this daemon's share alone, so that sums over daemons are right.

use std::io::Write as _;

use catalog::model::{HealthStatus, KeyStatus};

use super::ledger::{CheckLedger, LedgerProvider};

/// Name and help of a family; all are gauges.
pub type GaugeFamily = (&'static str, &'static str);

pub const PROVIDERS: GaugeFamily = ("providerd_providers", "Providers that this daemon checks, by health.");
pub const KEYS: GaugeFamily = ("providerd_provider_keys", "Keys that this daemon tests, by status.");
pub const HEALTH: GaugeFamily = (
    "providerd_provider_health_status",
    "Whether this is the provider's health: 1 for one status, 0 for the others.",
);
pub const KEY: GaugeFamily = (
    "providerd_provider_api_key_test_status",
    "Whether this is the status of the provider's key: 1 for one status, 0 for the others.",
);
pub const LAST_CHECK: GaugeFamily = (
    "providerd_provider_last_check_timestamp_seconds",
    "When the provider was last checked, in seconds since 1970.",
);
pub const LAST_TOOK: GaugeFamily =
    ("providerd_provider_last_check_duration_seconds", "How long the provider's last check took.");
pub const TLS: GaugeFamily = (
    "providerd_provider_tls_not_after_timestamp_seconds",
    "When the provider's certificate expires, in seconds since 1970.",
);
pub const INFO: GaugeFamily =
    ("providerd_provider_info", "Always 1; the provider's type and whether its key can serve, as labels.");

/// Everything here with its labels, for the documentation's table.
pub const ALL: [(GaugeFamily, &str); 8] = [
    (PROVIDERS, "status"),
    (KEYS, "status"),
    (HEALTH, "provider, status"),
    (KEY, "provider, status"),
    (LAST_CHECK, "provider"),
    (LAST_TOOK, "provider"),
    (TLS, "provider"),
    (INFO, "provider, type, can_serve"),
];

/// Appends all series to `text`.
pub(super) fn encode(ledger: &CheckLedger, text: &mut Vec<u8>, per_provider: bool) {
    let mut out = Out(text);
    out.head(PROVIDERS);
    for status in HealthStatus::ALL {
        let count = ledger.iter().filter(|live| live.kept.memory.health.status() == *status).count();
        out.line(format_args!("{}{{status=\"{status}\"}} {count}", PROVIDERS.0));
    }
    out.head(KEYS);
    for status in KeyStatus::ALL {
        let with_key = ledger.iter().filter(|live| live.target.key.is_some());
        let count = with_key.filter(|live| live.kept.memory.key.status() == *status).count();
        out.line(format_args!("{}{{status=\"{status}\"}} {count}", KEYS.0));
    }
    if !per_provider {
        return;
    }
    let mut all: Vec<&LedgerProvider> = ledger.iter().collect();
    all.sort_unstable_by(|a, b| a.target.name.cmp(&b.target.name));
    out.head(HEALTH);
    for live in &all {
        for status in HealthStatus::ALL {
            let is = u8::from(live.kept.memory.health.status() == *status);
            out.line(format_args!(
                "{}{{provider=\"{}\",status=\"{status}\"}} {is}",
                HEALTH.0, live.target.name
            ));
        }
    }
    out.head(KEY);
    for live in all.iter().filter(|live| live.target.key.is_some()) {
        for status in KeyStatus::ALL {
            let is = u8::from(live.kept.memory.key.status() == *status);
            out.line(format_args!("{}{{provider=\"{}\",status=\"{status}\"}} {is}", KEY.0, live.target.name));
        }
    }
    out.head(LAST_CHECK);
    for live in &all {
        if let Some(at) = live.last_check {
            let seconds = at.timestamp_millis() as f64 / 1000.0;
            out.line(format_args!("{}{{provider=\"{}\"}} {seconds}", LAST_CHECK.0, live.target.name));
        }
    }
    out.head(LAST_TOOK);
    for live in all.iter().filter(|live| !live.last_took.is_zero()) {
        let seconds = live.last_took.as_secs_f64();
        out.line(format_args!("{}{{provider=\"{}\"}} {seconds}", LAST_TOOK.0, live.target.name));
    }
    out.head(TLS);
    for live in &all {
        if let Some(at) = live.kept.tls_not_after {
            out.line(format_args!("{}{{provider=\"{}\"}} {}", TLS.0, live.target.name, at.timestamp()));
        }
    }
    out.head(INFO);
    for live in &all {
        let can_serve = match live.kept.facts.can_serve {
            Some(true) => "yes",
            Some(false) => "no",
            None => "unknown",
        };
        let (name, kind) = (&live.target.name, live.target.kind);
        out.line(format_args!(
            "{}{{provider=\"{name}\",type=\"{kind}\",can_serve=\"{can_serve}\"}} 1",
            INFO.0
        ));
    }
}

/// Names and statuses need no escaping: the grammar of names has neither quotes nor backslashes.
struct Out<'a>(&'a mut Vec<u8>);

impl Out<'_> {
    fn head(&mut self, (name, help): GaugeFamily) {
        self.line(format_args!("# HELP {name} {help}"));
        self.line(format_args!("# TYPE {name} gauge"));
    }

    fn line(&mut self, line: std::fmt::Arguments<'_>) {
        // Writing to memory cannot fail.
        let _ = self.0.write_fmt(line);
        self.0.push(b'\n');
    }
}
