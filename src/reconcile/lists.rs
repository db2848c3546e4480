//! What plans and statuses say about providers' own lists of models.
//!
//! PURE. Not its job: reading lists (`discover`), or the notes about them (`store`).

use std::{collections::BTreeMap, sync::Arc};

use chrono::{DateTime, Utc};

use catalog::{
    model::Catalog,
    plan::{ListEnd, Notice, NoticeKind},
};

use crate::store::DiscoveryNotice;

/// Vanished models without routes that are named; the rest is counted.
const NAMED: usize = 5;

/// What `plan` and `status` say about lists, of providers whose manifests ask for discovery.
pub(super) fn notices(found: Vec<DiscoveryNotice>, catalog: &Catalog) -> Vec<Notice> {
    let asks = |name: &str| catalog.providers.get(name).is_some_and(|it| it.discover.is_some());
    let day = |at: DateTime<Utc>| at.format("%Y-%m-%d %H:%M UTC");
    let mut notices = Vec::new();
    let mut unrouted: BTreeMap<Arc<str>, Vec<String>> = BTreeMap::new();
    let mut say = |provider, kind, message| {
        notices.push(Notice { provider, kind, message, fields: Vec::new() });
    };
    for notice in found {
        match notice {
            DiscoveryNotice::Trouble { provider, ended, detail, since } if asks(&provider) => {
                let what = match ended {
                    ListEnd::Suspect => "its list of models is not believed",
                    ListEnd::Empty => "its list of models is empty",
                    _ => "its list of models cannot be read",
                };
                let why = if ended == ListEnd::Empty { String::new() } else { format!(": {detail}") };
                say(provider, NoticeKind::Discovery, format!("{what} since {}{why}", day(since)));
            }
            DiscoveryNotice::Vanished { provider, model, since, routes } if asks(&provider) => {
                if routes.is_empty() {
                    unrouted.entry(provider).or_default().push(model);
                    continue;
                }
                let routes = routes.join(", ");
                let message =
                    format!("{model} is no longer offered since {} and still serves {routes}", day(since));
                say(provider, NoticeKind::Vanished, message);
            }
            _ => {}
        }
    }
    for (provider, models) in unrouted {
        let named = models.iter().take(NAMED).cloned().collect::<Vec<_>>().join(", ");
        let more = models.len().saturating_sub(NAMED);
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        say(provider, NoticeKind::Vanished, format!("no longer offered: {named}{more}"));
    }
    notices
}
