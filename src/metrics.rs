//! What Prometheus reads: one struct, whose help texts stand beside the names.
//!
//! Not its job: series that carry a provider's name; they are encoded from the snapshot when scraped.

use prometheus::{
    Encoder, Gauge, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec,
    Opts, Registry, TextEncoder,
};

use catalog::model::{HealthStatus, KeyStatus};

/// Bounds in seconds: a one-file reconcile takes milliseconds, ten thousand new providers take seconds.
const RECONCILE_BUCKETS: &[f64] = &[0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0];

/// Bounds in seconds: an answer takes tens to hundreds of milliseconds, a hanging provider 10 s.
const PROBE_BUCKETS: &[f64] = &[0.01, 0.025, 0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0, 2.0, 3.0, 5.0, 10.0];
const PHASE_BUCKETS: &[f64] = &[0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];
/// Bounds in seconds: on time is within a tenth; a second is late.
const LAG_BUCKETS: &[f64] = &[0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 15.0, 60.0];

macro_rules! metrics {
    ($($(#[doc = $help:literal])+ $field:ident : $type:ident $name:literal $([$($label:literal),+])? $(buckets $buckets:expr)?;)+) => {
        /// All series that carry no provider's name.
        pub struct Metrics {
            registry: Registry,
            $($(#[doc = $help])+ pub $field: $type,)+
        }

        impl Metrics {
            /// Name, type, labels and help of every metric, for the documentation's table.
            pub const ALL: &'static [(&'static str, &'static str, &'static [&'static str], &'static str)] =
                &[$(($name, stringify!($type), &[$($($label),+)?], concat!($($help),+)),)+];

            /// # Errors
            /// Never in practice: a test registers them all.
            pub fn new() -> prometheus::Result<Self> {
                let registry = Registry::new();
                Ok(Self {
                    $($field: {
                        let help = concat!($($help),+).trim();
                        let metric = make!($type, $name, help, [$($($label),+)?], $($buckets)?);
                        registry.register(Box::new(metric.clone()))?;
                        metric
                    },)+
                    registry,
                })
            }
        }
    };
}

macro_rules! make {
    (Histogram, $name:literal, $help:expr, [], $buckets:expr) => {
        Histogram::with_opts(HistogramOpts::new($name, $help).buckets($buckets.to_vec()))?
    };
    (HistogramVec, $name:literal, $help:expr, [$($label:literal),+], $buckets:expr) => {
        HistogramVec::new(HistogramOpts::new($name, $help).buckets($buckets.to_vec()), &[$($label),+])?
    };
    (IntCounterVec, $name:literal, $help:expr, [$($label:literal),+],) => {
        IntCounterVec::new(Opts::new($name, $help), &[$($label),+])?
    };
    (IntGaugeVec, $name:literal, $help:expr, [$($label:literal),+],) => {
        IntGaugeVec::new(Opts::new($name, $help), &[$($label),+])?
    };
    ($type:ident, $name:literal, $help:expr, [],) => { $type::with_opts(Opts::new($name, $help))? };
}

metrics! {
    /// Always 1; the version and the commit of the program as labels.
    build_info: IntGaugeVec "providerd_build_info" ["version", "revision"];
    /// Reconcile passes, by what asked for them.
    reconcile_runs: IntCounterVec "providerd_reconcile_runs_total" ["trigger"];
    /// Reconcile passes that failed as a whole, by reason.
    reconcile_failures: IntCounterVec "providerd_reconcile_failures_total" ["reason"];
    /// Time of one reconcile pass, from reading the manifests to the commit.
    reconcile_duration: Histogram "providerd_reconcile_duration_seconds" buckets RECONCILE_BUCKETS;
    /// Rows changed by reconciling, by kind of row and action.
    reconcile_changes: IntCounterVec "providerd_reconcile_changes_total" ["kind", "action"];
    /// Fields found changed by someone else.
    drift_detected: IntCounter "providerd_drift_detected_total";
    /// Providers whose prune is held back until it is confirmed.
    prune_held: IntGauge "providerd_prune_held";
    /// Route cells whose last usable model is kept although the manifests take it away.
    route_cells_held: IntGauge "providerd_route_cells_held";
    /// Cells of the route table (power level, user tier, task), by what can answer: working, unproven (none of their models
    /// was seen to answer yet) or without_model.
    route_cells: IntGaugeVec "providerd_route_cells" ["state"];
    /// Providers that the database refused in the last pass.
    refused_providers: IntGauge "providerd_refused_providers";
    /// Manifest files, by state: valid, invalid or unreadable.
    manifest_files: IntGaugeVec "providerd_manifest_files" ["state"];
    /// Whether the last look at the manifests found every file valid.
    manifest_last_reload_successful: IntGauge "providerd_manifest_last_reload_successful";
    /// When every manifest was last found valid, in seconds since 1970.
    manifest_last_success: Gauge "providerd_manifest_last_success_timestamp_seconds";
    /// Looks at the Git repository of the manifests, by result: unchanged, updated, refused or failed.
    source_fetches: IntCounterVec "providerd_source_fetches_total" ["result"];
    /// When the Git repository of the manifests was last seen and what it has was applied, in seconds since 1970.
    source_last_success: Gauge "providerd_source_last_success_timestamp_seconds";
    /// Always 1; the commit whose manifests were last applied as a label.
    applied_revision: IntGaugeVec "providerd_applied_revision_info" ["revision"];
    /// Stored keys that the BYOK key does not open.
    undecryptable_keys: IntGauge "providerd_undecryptable_keys";
    /// Declared keys whose reference cannot be resolved.
    unresolved_keys: IntGauge "providerd_unresolved_keys";
    /// Whether the database answered the last time it was asked.
    database_up: IntGauge "providerd_database_up";
    /// Whether this daemon is the one that reconciles.
    leader: IntGauge "providerd_leader";
    /// Health checks and key tests that have ended, by kind of check.
    probes: IntCounterVec "providerd_probes_total" ["check"];
    /// Checks and tests that were not good, by kind of check and reason.
    probe_failures: IntCounterVec "providerd_probe_failures_total" ["check", "reason"];
    /// Time of one check or test, by kind of check.
    probe_duration: HistogramVec "providerd_probe_duration_seconds" ["check"] buckets PROBE_BUCKETS;
    /// Time of each phase of the checks that were answered.
    probe_phase_duration: HistogramVec "providerd_probe_phase_duration_seconds" ["phase"] buckets PHASE_BUCKETS;
    /// How long after its time a check began.
    probe_schedule_lag: Histogram "providerd_probe_schedule_lag_seconds" buckets LAG_BUCKETS;
    /// Checks and tests under way.
    probes_in_flight: IntGauge "providerd_probes_in_flight";
    /// Results that were not believed, by reason: our own failure, or the prober suspects itself.
    probes_skipped: IntCounterVec "providerd_probes_skipped_total" ["reason"];
    /// Changes of providers' health.
    health_transitions: IntCounterVec "providerd_health_transitions_total" ["from", "to"];
    /// Changes of keys' status.
    api_key_transitions: IntCounterVec "providerd_api_key_transitions_total" ["from", "to"];
    /// Whether the prober suspects itself and believes no failure.
    prober_impaired: IntGauge "providerd_prober_impaired";
    /// Leases that this daemon holds: for reconciling, and for its share of the checks.
    leases_held: IntGauge "providerd_leases_held";
    /// Looks at providers' own lists of models, by how they ended: ok, empty, failed, suspect, suspended, not-applied,
    /// not-leader or database.
    discovery_runs: IntCounterVec "providerd_discovery_runs_total" ["outcome"];
    /// Rows written to the audit trail.
    events: IntCounter "providerd_events_total";
}

impl Metrics {
    /// Shows every transition that there can be as 0: `increase()` misses a counter's first appearance.
    pub fn expect_transitions(&self) {
        for (from, to) in pairs(HealthStatus::ALL) {
            self.health_transitions.with_label_values(&[from.as_str(), to.as_str()]).inc_by(0);
        }
        for (from, to) in pairs(KeyStatus::ALL) {
            self.api_key_transitions.with_label_values(&[from.as_str(), to.as_str()]).inc_by(0);
        }
    }

    /// Where others register theirs, such as the gateway.
    pub const fn registry(&self) -> &Registry {
        &self.registry
    }

    /// The text format that Prometheus scrapes.
    ///
    /// # Errors
    /// Never in practice: what is registered can be encoded.
    pub fn encode(&self) -> prometheus::Result<Vec<u8>> {
        let mut text = Vec::with_capacity(16 * 1024);
        TextEncoder::new().encode(&self.registry.gather(), &mut text)?;
        Ok(text)
    }
}

/// All pairs of different values.
fn pairs<T: Copy + PartialEq>(all: &[T]) -> impl Iterator<Item = (T, T)> {
    all.iter().flat_map(move |from| all.iter().map(move |to| (*from, *to))).filter(|(from, to)| from != to)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_can_be_registered_and_encoded() {
        let metrics = Metrics::new().unwrap();
        metrics.leader.set(1);
        let text = String::from_utf8(metrics.encode().unwrap()).unwrap();
        assert!(text.contains("\nproviderd_leader 1\n"), "{text}");
    }
}
