//! The stream of events: one reader of the database for all who follow.
//!
//! Numbers are given out before their transactions commit, so a lower number can become visible after a higher one.
//! The reader therefore looks again at the last few numbers and passes on what it has not seen. Invariants: without
//! followers it costs nothing; a follower that is too slow is cut off and can resume after the last event it received.

use std::{
    collections::BTreeSet,
    convert::Infallible,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use axum::{
    body::{Body, Bytes},
    http::header,
    response::{IntoResponse as _, Response},
};
use tokio::{
    sync::{Notify, OwnedSemaphorePermit, Semaphore, broadcast, watch},
    time::timeout,
};
use tokio_util::sync::CancellationToken;
use tracing::debug;

use super::{
    AdminShared,
    error::ApiError,
    events::{EventItem, Filter},
};
use crate::store::{EventFilter, Store};

/// Streams at once.
const MAX_STREAMS: usize = 32;
/// Between two looks while there are followers.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// How long the reader may take to find its position.
const JOIN: Duration = Duration::from_secs(5);
/// Between two signs of life on a quiet stream.
const BREATH: Duration = Duration::from_secs(15);
/// How far back late numbers are looked for. A reconcile of 10,000 providers writes as many rows at once, but holds
/// the numbers of others for no longer than its own transaction takes.
const WINDOW: i64 = 2000;
/// Events that may wait for one follower.
const WAITING: usize = 1024;
/// Rows that a follower that resumes is sent before what is new.
const CATCH_UP: u32 = 10_000;

/// Where followers meet the reader.
#[derive(Clone)]
pub struct Tail {
    events: broadcast::Sender<Arc<EventItem>>,
    streams: Arc<Semaphore>,
    wanted: Arc<Notify>,
    /// The reader has a position, so that nothing after it is missed.
    live: watch::Sender<bool>,
    /// Held while a follower joins, and while the reader counts them.
    gate: Arc<Mutex<()>>,
    stopping: CancellationToken,
}

impl Tail {
    pub fn new(stopping: CancellationToken) -> Self {
        Self {
            events: broadcast::Sender::new(WAITING),
            streams: Arc::new(Semaphore::new(MAX_STREAMS)),
            wanted: Arc::default(),
            live: watch::Sender::new(false),
            gate: Arc::default(),
            stopping,
        }
    }

    /// Reads what is new while there are followers, until the stop.
    pub async fn read(self, store: Store) {
        loop {
            if self.rests() {
                tokio::select! {
                    () = self.stopping.cancelled() => return,
                    () = self.wanted.notified() => continue,
                }
            }
            self.read_for_followers(&store).await;
            if self.stopping.is_cancelled() {
                return;
            }
        }
    }

    /// Gives up the position if there is no follower.
    fn rests(&self) -> bool {
        let _gate = self.gate.lock().unwrap_or_else(PoisonError::into_inner);
        let deserted = self.events.receiver_count() == 0;
        if deserted {
            self.live.send_replace(false);
        }
        deserted
    }

    /// What happens from now on, as soon as the watch says `true`.
    fn join(&self) -> (broadcast::Receiver<Arc<EventItem>>, watch::Receiver<bool>) {
        let _gate = self.gate.lock().unwrap_or_else(PoisonError::into_inner);
        let joined = (self.events.subscribe(), self.live.subscribe());
        self.wanted.notify_one();
        joined
    }

    async fn read_for_followers(&self, store: &Store) {
        let mut seen: Option<BTreeSet<i64>> = None;
        while !self.rests() {
            match look(store, &mut seen).await {
                Ok(fresh) => {
                    for event in fresh {
                        // That the last follower has left is no failure.
                        let _ = self.events.send(Arc::new(event));
                    }
                    self.live.send_replace(true);
                }
                Err(error) => debug!(error = %error, "the audit trail cannot be followed now"),
            }
            let pause = tokio::time::sleep(LOOK_EVERY);
            if self.stopping.run_until_cancelled(pause).await.is_none() {
                return;
            }
        }
    }
}

/// What is there now and was not at the last look; at the first one, only notes what is there.
async fn look(
    store: &Store,
    seen: &mut Option<BTreeSet<i64>>,
) -> Result<Vec<EventItem>, crate::store::StoreError> {
    let Some(known) = seen else {
        let newest = store.events_newest().await?;
        let after =
            EventFilter { after_id: Some(newest - WINDOW), limit: CATCH_UP, ..EventFilter::default() };
        let ids = store.events(after).await?.into_iter().map(|event| event.id);
        // The position itself, also where no row is left.
        *seen = Some(ids.chain([newest]).collect());
        return Ok(Vec::new());
    };
    let newest = known.last().copied().unwrap_or_default();
    let after = EventFilter { after_id: Some(newest - WINDOW), limit: CATCH_UP, ..EventFilter::default() };
    let fresh: Vec<EventItem> = store
        .events(after)
        .await?
        .into_iter()
        .filter(|event| known.insert(event.id))
        .map(Into::into)
        .collect();
    let newest = known.last().copied().unwrap_or_default();
    *known = known.split_off(&(newest - WINDOW));
    Ok(fresh)
}

/// A stream of events that fit, after `last` or from now on.
pub(super) async fn stream(
    shared: &AdminShared,
    filter: Filter,
    last: Option<i64>,
) -> Result<Response, ApiError> {
    let tail = shared.tail.clone();
    let permit = tail.streams.clone().try_acquire_owned().map_err(|_| ApiError::TooManyStreams)?;
    let (heard, mut live) = tail.join();
    if !matches!(timeout(JOIN, live.wait_for(|live| *live)).await, Ok(Ok(_))) {
        return Err(ApiError::Unavailable("the audit trail cannot be read now"));
    }
    let mut missed = Vec::new();
    if let Some(last) = last {
        let after = EventFilter { after_id: Some(last), limit: CATCH_UP, ..EventFilter::default() };
        missed = shared.store.events(after).await?;
    }
    let follower = Follower {
        missed: missed.into_iter().map(EventItem::from).collect::<Vec<_>>().into_iter(),
        sent: BTreeSet::new(),
        greeted: false,
        heard,
        filter,
        stopping: tail.stopping.clone(),
        _permit: permit,
    };
    let texts = futures_util::stream::unfold(follower, |mut follower| async move {
        let text = follower.next().await?;
        Some((Ok::<Bytes, Infallible>(text), follower))
    });
    let kind = [(header::CONTENT_TYPE, "text/event-stream")];
    Ok((kind, Body::from_stream(texts)).into_response())
}

/// One who follows.
struct Follower {
    missed: std::vec::IntoIter<EventItem>,
    /// What was sent of `missed`, so that it is not sent again.
    sent: BTreeSet<i64>,
    greeted: bool,
    heard: broadcast::Receiver<Arc<EventItem>>,
    filter: Filter,
    stopping: CancellationToken,
    _permit: OwnedSemaphorePermit,
}

impl Follower {
    /// The next text; `None` ends the stream.
    async fn next(&mut self) -> Option<Bytes> {
        // Something at once, so that proxies and browsers see the answer begin.
        if !std::mem::replace(&mut self.greeted, true) {
            return Some(Bytes::from_static(b": providerd\n\n"));
        }
        for event in self.missed.by_ref() {
            self.sent.insert(event.id);
            if self.filter.fits(&event) {
                return Some(message(&event));
            }
        }
        loop {
            let event = tokio::select! {
                () = self.stopping.cancelled() => return None,
                () = tokio::time::sleep(BREATH) => return Some(Bytes::from_static(b": still here\n\n")),
                // Too slow, or the daemon stops: it comes back with the number of the last event.
                event = self.heard.recv() => event.ok()?,
            };
            if !self.sent.remove(&event.id) && self.filter.fits(&event) {
                return Some(message(&event));
            }
        }
    }
}

fn message(event: &EventItem) -> Bytes {
    // JSON texts have no line breaks of their own.
    let data = serde_json::to_string(event).unwrap_or_default();
    format!("id: {}\ndata: {data}\n\n", event.id).into()
}
