//! What pulling from Git has to say, written to the audit trail.
//!
//! Not its job: pulling (`source::pull`). Invariant: of several daemons that pull, the one that reconciles records it.

use std::time::Duration;

use serde_json::json;
use tokio::{sync::mpsc, time::timeout};
use tokio_util::sync::CancellationToken;
use tracing::debug;

use catalog::{model::Revision, plan::EventKind};

use crate::{
    daemon::{Leader, Leadership},
    source::pull::{CommitRelation, News},
    store::{NewEvent, Store},
};

/// A crashed leader is replaced within 10 s; by then, another daemon leads and records it.
const LEAD_WITHIN: Duration = Duration::from_secs(15);
/// First and longest wait before writing is tried again.
const RETRY: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(15));

/// Writes all news until `stop`.
pub(crate) async fn record(
    store: Store,
    mut news: mpsc::Receiver<News>,
    mut leadership: Leadership,
    stop: CancellationToken,
) {
    while let Some(Some(news)) = stop.run_until_cancelled(news.recv()).await {
        let event = event_of(news);
        if stop.run_until_cancelled(write(&store, &event, &mut leadership)).await.is_none() {
            return;
        }
    }
    // Ending before the stop would end the process; the senders are gone only when it is stopping.
    stop.cancelled().await;
}

async fn write(store: &Store, event: &NewEvent, leadership: &mut Leadership) {
    let mut wait = RETRY.0;
    loop {
        let leads = timeout(LEAD_WITHIN, leadership.wait_for(|it| matches!(it, Leader::Us(_)))).await;
        match leads.map(|leads| leads.is_ok()) {
            Ok(true) => match store.record(std::slice::from_ref(event)).await {
                Ok(()) => return,
                Err(error) => debug!(%error, "an event of Git is not recorded yet"),
            },
            Ok(false) => return,
            Err(_) if *leadership.borrow() == Leader::Another => return,
            Err(_) => {}
        }
        tokio::time::sleep(wait).await;
        wait = (wait * 2).min(RETRY.1);
    }
}

/// The audit row of one piece of news.
pub fn event_of(news: News) -> NewEvent {
    let of = |detail, reason: String, commit| NewEvent {
        revision: Some(Revision { commit, dirty: false }),
        ..NewEvent::about(EventKind::Source, None, None, detail, reason)
    };
    match news {
        News::Switched { from, to, history } => {
            let reason = match history {
                CommitRelation::Rewritten => "the history was rewritten (a forced push?); it is followed",
                CommitRelation::Unknown => "a new commit; whether it came after the last one is not known",
                CommitRelation::First | CommitRelation::Forward => "a new commit",
            };
            let detail = json!({ "from": from, "to": to, "history": history.as_str() });
            of(detail, reason.to_owned(), to)
        }
        News::Refused { commit, signed, reason } => {
            let detail = json!({ "refused": commit, "why": reason });
            let why = match signed {
                true => "the commit does not come after the one that is applied; it is not applied",
                false => "the commit is not signed by an allowed signer; it is not applied",
            };
            of(detail, why.to_owned(), commit)
        }
    }
}
