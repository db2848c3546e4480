//! What the spool and the shipper show Prometheus.
//!
//! Not its job: counting requests (the gateway's own meters). Invariant: gauges are read when they are scraped, so that
//! they are true while nothing is shipped.

use std::sync::{Arc, Mutex, PoisonError};

use gateway::spool::{Spool, SpoolStats};
use prometheus::{
    IntCounter, IntGauge, Registry,
    core::{Collector, Desc},
    proto::MetricFamily,
};
use tokio::time::Instant;

use super::ShipReport;

/// The series `providerd_usage_*`. Made once and registered once.
#[derive(Clone)]
pub struct UsageMeters {
    shipped: IntCounter,
    gauges: SpoolGauges,
}

/// Gauges that read the spool when they are collected.
#[derive(Clone)]
struct SpoolGauges {
    spool: Arc<Spool>,
    bytes: IntGauge,
    oldest: IntGauge,
    rejected: IntCounter,
    lost: IntCounter,
    /// Since when rows have been waiting.
    waiting: Arc<Mutex<Option<Instant>>>,
}

impl UsageMeters {
    /// # Errors
    /// One of the names is taken in this registry.
    pub fn register(registry: &Registry, spool: Arc<Spool>) -> Result<Self, prometheus::Error> {
        let gauges = SpoolGauges {
            spool,
            bytes: IntGauge::new(
                "providerd_usage_spool_bytes",
                "Bytes of the local spool that wait for the database",
            )?,
            oldest: IntGauge::new(
                "providerd_usage_spool_oldest_seconds",
                "For how long the spool has not been empty; an upper bound of the age of its oldest row",
            )?,
            rejected: IntCounter::new(
                "providerd_usage_rejected_total",
                "Rows that the database refused and that were set aside since the start",
            )?,
            lost: IntCounter::new(
                "providerd_usage_lost_total",
                "Requests that were served without a row since the start (usage.when_full = serve)",
            )?,
            waiting: Arc::default(),
        };
        registry.register(Box::new(gauges.clone()))?;
        let shipped =
            IntCounter::new("providerd_usage_shipped_total", "Rows stored in the usage log since the start")?;
        registry.register(Box::new(shipped.clone()))?;
        Ok(Self { shipped, gauges })
    }

    /// After a round of the shipper.
    pub fn shipped(&self, report: &ShipReport, left: &SpoolStats) {
        self.shipped.inc_by(report.stored as u64);
        self.gauges.wait(report.stored + report.known + report.rejected > 0 || left.open > 0);
    }
}

impl SpoolGauges {
    /// Whether rows are waiting now.
    fn wait(&self, waits: bool) {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        *waiting = if waits { waiting.or_else(|| Some(Instant::now())) } else { None };
    }
}

impl Collector for SpoolGauges {
    fn desc(&self) -> Vec<&Desc> {
        let gauges = [&self.bytes, &self.oldest].into_iter().flat_map(Collector::desc);
        gauges.chain([&self.rejected, &self.lost].into_iter().flat_map(Collector::desc)).collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let stats = self.spool.stats();
        let signed = |count: u64| i64::try_from(count).unwrap_or(i64::MAX);
        self.bytes.set(signed(stats.bytes));
        // Held to the end: two scrapes at once must not add the same rows twice.
        let since = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        self.rejected.inc_by(stats.rejected.saturating_sub(self.rejected.get()));
        self.lost.inc_by(stats.lost.saturating_sub(self.lost.get()));
        self.oldest.set(since.map_or(0, |since| signed(since.elapsed().as_secs())));
        let gauges = [&self.bytes, &self.oldest].into_iter().flat_map(Collector::collect);
        gauges.chain([&self.rejected, &self.lost].into_iter().flat_map(Collector::collect)).collect()
    }
}
