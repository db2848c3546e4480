//! The shipper: spool → database, in batches, exactly once.
//!
//! Not its job: when to give up (never), what a row means.
//! Invariants: rows leave the spool in its order; nothing is released before it is stored; what the cursor in the
//! database says is believed over any memory of ours.

use std::{collections::HashMap, sync::Arc, time::Duration};

use gateway::spool::{Spool, SpoolBatch, SpoolError, SpoolId, SpoolOffset, UsageRow};
use tokio_util::sync::CancellationToken;

use super::rows;
use crate::store::{NewUsage, Store, StoreError, UsageBatch, UsageCursor, UsageTable};

#[derive(Debug, Clone)]
pub struct ShipperSettings {
    /// Whose usage it is: this machine's name.
    pub node: String,
    /// Rows per transaction.
    pub batch: usize,
    /// How long to wait when there was nothing to ship.
    pub idle: Duration,
}

impl ShipperSettings {
    pub fn new(node: String) -> Self {
        // Measured: beyond 5,000 rows a batch is not faster, and what one refused row costs grows with it.
        Self { node, batch: 5_000, idle: Duration::from_millis(250) }
    }
}

/// What one round did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ShipReport {
    /// Rows stored now.
    pub stored: usize,
    /// Rows that were there already.
    pub known: usize,
    /// Rows set aside.
    pub rejected: usize,
}

#[derive(Debug, thiserror::Error)]
pub enum ShipError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Spool(#[from] SpoolError),
    #[error("a thread that reads the spool ended")]
    Reader,
}

/// Waiting after a failure doubles from the first to the second.
const RETRY: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(10));

pub struct Shipper {
    spool: Arc<Spool>,
    store: Store,
    settings: ShipperSettings,
    table: Option<UsageTable>,
    cursors: HashMap<SpoolId, Option<SpoolOffset>>,
    recovered: bool,
}

impl Shipper {
    pub fn new(spool: Arc<Spool>, store: Store, settings: ShipperSettings) -> Self {
        Self { spool, store, settings, table: None, cursors: HashMap::new(), recovered: false }
    }

    /// Ships until the stop, then once more what is there. `seen` hears of each round.
    pub async fn run(
        mut self,
        stop: CancellationToken,
        mut seen: impl FnMut(Result<ShipReport, &ShipError>),
    ) {
        let mut pause = RETRY.0;
        loop {
            let wait = match self.round().await {
                Ok(report) => {
                    pause = RETRY.0;
                    let busy = report.stored + report.known + report.rejected > 0;
                    seen(Ok(report));
                    if busy { Duration::ZERO } else { self.settings.idle }
                }
                Err(error) => {
                    seen(Err(&error));
                    let wait = pause;
                    pause = (pause * 2).min(RETRY.1);
                    wait
                }
            };
            if stop.is_cancelled() {
                return;
            }
            tokio::select! {
                () = stop.cancelled() => {}
                () = tokio::time::sleep(wait) => {}
            }
        }
    }

    /// Ships one batch of each spool that has one.
    ///
    /// # Errors
    /// The database or the disk refuses; nothing is lost, and the next round begins with what the database says.
    pub async fn round(&mut self) -> Result<ShipReport, ShipError> {
        let result = self.try_round().await;
        if result.is_err() {
            // Columns may have changed, and a commit may have succeeded without an answer.
            self.table = None;
            self.cursors.clear();
        }
        result
    }

    async fn try_round(&mut self) -> Result<ShipReport, ShipError> {
        if !self.recovered {
            let spool = Arc::clone(&self.spool);
            blocking(move || spool.recover()).await??;
            self.recovered = true;
        }
        let mut report = ShipReport::default();
        for id in self.spool.spools() {
            self.ship(id, &mut report).await?;
        }
        Ok(report)
    }

    async fn ship(&mut self, id: SpoolId, report: &mut ShipReport) -> Result<(), ShipError> {
        let after = match self.cursors.get(&id) {
            Some(after) => *after,
            None => {
                let stored = self.store.usage_cursor(id).await?;
                let after = stored.map(|it| SpoolOffset { segment: it.segment, offset: it.offset });
                self.cursors.insert(id, after);
                after
            }
        };
        let (spool, size) = (Arc::clone(&self.spool), self.settings.batch);
        let batch = blocking(move || spool.read(id, after, size)).await??;
        let Some(next) = batch.next() else { return Ok(()) };
        if Some(next) == after {
            return Ok(());
        }
        if !batch.is_empty() {
            self.store_batch(id, after, next, &batch, report).await?;
            self.cursors.insert(id, Some(next));
        }
        // Without rows there is nothing to store: what the database knows of this spool stays right.
        let spool = Arc::clone(&self.spool);
        blocking(move || spool.release(id, next)).await??;
        Ok(())
    }

    async fn store_batch(
        &mut self,
        id: SpoolId,
        after: Option<SpoolOffset>,
        next: SpoolOffset,
        batch: &SpoolBatch,
        report: &mut ShipReport,
    ) -> Result<(), ShipError> {
        let table = match &self.table {
            Some(table) => table.clone(),
            None => self.table.insert(self.store.usage_table().await?).clone(),
        };
        let found: Vec<(u64, UsageRow<'_>)> = batch.rows().collect();
        let rows: Vec<NewUsage<'_>> = found.iter().map(|(_, row)| rows::stored(row)).collect();
        let cursor = |it: SpoolOffset| UsageCursor { segment: it.segment, offset: it.offset };
        let wanted = UsageBatch {
            spool: id,
            node: &self.settings.node,
            from: after.map(cursor),
            to: cursor(next),
            rows: &rows,
        };
        let shipment = self.store.usage_ship(&table, &wanted).await?;
        let (stored, rejected) = (shipment.stored(), shipment.rejected().len());
        for (at, why) in shipment.rejected() {
            if let Some((segment, row)) = found.get(*at) {
                let (spool, segment, line) = (Arc::clone(&self.spool), *segment, refused(row, why));
                blocking(move || spool.reject(id, segment, &line)).await??;
            }
        }
        shipment.commit().await?;
        report.stored += stored;
        report.rejected += rejected;
        report.known += rows.len() - stored - rejected;
        Ok(())
    }
}

/// The line that is set aside for a row: all that its row would have said, and why there is none.
fn refused(row: &UsageRow<'_>, why: &str) -> String {
    let it = rows::stored(row);
    let money = |it: Option<catalog::price::Money>| it.map(|it| it.to_string());
    serde_json::json!({
        "reason": why,
        "id": it.id,
        "created_at": it.at,
        "user_id": it.user_id,
        "provider": it.provider,
        "provider_id": it.provider_id,
        "model": it.model,
        "model_id": it.model_id,
        "consumer": it.consumer,
        "request_id": it.request_id,
        "power_level": it.power_level,
        "input_tokens": it.input,
        "output_tokens": it.output,
        "cost_input_usd": money(it.cost_input),
        "cost_output_usd": money(it.cost_output),
        "cost_total_usd": money(it.cost_total),
        "latency_ms": it.latency_ms,
        "status_code": it.status_code,
        "success": it.success,
        "error_message": it.error,
        "was_fallback": it.was_fallback,
        "metadata": it.metadata,
    })
    .to_string()
}

/// Runs what waits for the disk where it holds up no other task.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, ShipError> {
    tokio::task::spawn_blocking(work).await.map_err(|_| ShipError::Reader)
}
