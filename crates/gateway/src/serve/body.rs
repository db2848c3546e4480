//! The bodies of requests: read whole, within the memory that all of them share.
//!
//! Not its job: what stands in them (`skim`).

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use hyper::body::{Body, Incoming};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

use crate::error::{ErrorCode, GatewayError};

/// A body must be there by then; a slower one holds memory that others wait for.
const BODY_WITHIN: Duration = Duration::from_secs(120);
/// How long a body waits for memory.
const MEMORY_WITHIN: Duration = Duration::from_secs(2);
/// Memory for bodies is counted in these.
const MEMORY_UNIT: usize = 1024;
/// Bodies below this ride in the buffer of their connection and are not counted.
const UNCOUNTED: usize = 16 * 1024;

/// Reads bodies.
pub(super) struct BodyReader {
    /// Bytes of one body.
    max: usize,
    memory: Arc<Semaphore>,
}

impl BodyReader {
    /// At most `max` bytes each, and `memory` bytes in all.
    pub(super) fn new(max: usize, memory: usize) -> Self {
        let permits = (memory / MEMORY_UNIT).min(Semaphore::MAX_PERMITS);
        Self { max, memory: Arc::new(Semaphore::new(permits)) }
    }

    /// Reads a body whole, within the memory that all bodies share.
    pub(super) async fn read(
        &self,
        mut body: Incoming,
    ) -> Result<(Bytes, Option<OwnedSemaphorePermit>), GatewayError> {
        let max = self.max;
        let too_large = || {
            let message = format!("the body is longer than {max} bytes");
            GatewayError::new(ErrorCode::RequestTooLarge, message)
        };
        let declared = body.size_hint().exact();
        if declared.is_some_and(|length| length > max as u64) {
            return Err(too_large());
        }
        let mut permit: Option<OwnedSemaphorePermit> = None;
        if let Some(length) =
            declared.and_then(|length| usize::try_from(length).ok()).filter(|it| *it > UNCOUNTED)
        {
            permit = Some(self.memory(length).await?);
        }
        let reading = async {
            let mut whole = Bytes::new();
            let mut gathered: Vec<u8> = Vec::new();
            while let Some(frame) =
                std::future::poll_fn(|context| Pin::new(&mut body).poll_frame(context)).await
            {
                let broken = |_| GatewayError::new(ErrorCode::InvalidRequest, "the body ended early");
                let Ok(data) = frame.map_err(broken)?.into_data() else { continue };
                if whole.len() + gathered.len() + data.len() > max {
                    return Err(too_large());
                }
                if whole.is_empty() && gathered.is_empty() {
                    whole = data;
                    continue;
                }
                if gathered.is_empty() {
                    let length = declared.and_then(|length| usize::try_from(length).ok()).unwrap_or(0);
                    gathered.reserve_exact(length.max(whole.len() + data.len()));
                    gathered.extend_from_slice(&std::mem::take(&mut whole));
                }
                gathered.extend_from_slice(&data);
                // Without a declared length, memory is taken as the body grows.
                let held = permit.as_ref().map_or(UNCOUNTED, |permit| permit.num_permits() * MEMORY_UNIT);
                if gathered.len() > held {
                    let more = self.memory(gathered.len().max(64 * 1024)).await?;
                    match &mut permit {
                        Some(permit) => permit.merge(more),
                        None => permit = Some(more),
                    }
                }
            }
            Ok((if gathered.is_empty() { whole } else { gathered.into() }, permit))
        };
        match timeout(BODY_WITHIN, reading).await {
            Ok(read) => read,
            Err(_) => Err(GatewayError::new(ErrorCode::InvalidRequest, "the body did not come in time")),
        }
    }

    async fn memory(&self, bytes: usize) -> Result<OwnedSemaphorePermit, GatewayError> {
        let overloaded = || {
            let message = "the bodies of other requests use all memory that bodies may";
            GatewayError::new(ErrorCode::Overloaded, message).retry_after(Duration::from_secs(1))
        };
        let permits = u32::try_from(bytes.div_ceil(MEMORY_UNIT)).map_err(|_| overloaded())?;
        if let Ok(permit) = Arc::clone(&self.memory).try_acquire_many_owned(permits) {
            return Ok(permit);
        }
        match timeout(MEMORY_WITHIN, Arc::clone(&self.memory).acquire_many_owned(permits)).await {
            Ok(Ok(permit)) => Ok(permit),
            _ => Err(overloaded()),
        }
    }
}
