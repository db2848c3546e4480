//! How rows stand to manifests: what passes found, until a reading says otherwise.
//!
//! A pass that read everything and had nothing to write knows what the picture shows, so nothing is planned again for it.
//! After a pass that wrote, what it concerned is read again, and only that: a picture says "synced" from what the database
//! was read to hold, never from what was written to it. Not its job: reading.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, PoisonError},
};

use catalog::{
    manifest::Changed,
    plan::{NoticeKind, Plan},
};

/// What a turn of the reconcile loop says about how rows stand to manifests.
#[derive(Debug)]
pub enum TurnFound {
    /// Everything was read, and nothing was written.
    Everything(Plan),
    /// This may stand otherwise than it did before.
    Maybe(Changed),
}

/// Findings that the picture has not taken yet; clones share them.
#[derive(Debug, Clone)]
pub(super) struct Findings(Arc<Mutex<PlanStanding>>);

/// A plan, and what of it is to be read again.
#[derive(Debug, Clone)]
pub(super) struct PlanStanding {
    /// `None`: everything is to be read.
    pub plan: Option<Arc<Plan>>,
    pub stale: Changed,
}

impl Default for PlanStanding {
    fn default() -> Self {
        Self { plan: None, stale: Changed::NONE }
    }
}

impl Default for Findings {
    fn default() -> Self {
        Self(Arc::new(Mutex::new(PlanStanding::default())))
    }
}

impl Findings {
    pub fn add(&self, found: TurnFound) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take_in(found);
    }

    /// Moves them into what the picture goes by.
    pub fn move_to(&self, standing: &mut PlanStanding) {
        let new = std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner));
        if let Some(plan) = new.plan {
            *standing = PlanStanding { plan: Some(plan), stale: Changed::NONE };
        }
        standing.take_in(TurnFound::Maybe(new.stale));
    }
}

impl PlanStanding {
    fn take_in(&mut self, found: TurnFound) {
        match found {
            TurnFound::Everything(plan) => {
                *self = Self { plan: Some(Arc::new(slim(plan))), stale: Changed::NONE };
            }
            TurnFound::Maybe(more) => self.stale.add(more),
        }
    }

    /// The plan, where nothing is to be read.
    pub fn current(&self) -> Option<&Arc<Plan>> {
        self.plan.as_ref().filter(|_| self.stale.is_none())
    }

    /// The providers that a look at these alone would bring up to date; `None`: a look at everything is due. What is held
    /// back follows from all providers together, and so do consumers and the like.
    pub fn some(&self) -> Option<&BTreeSet<Arc<str>>> {
        let plan = self.plan.as_ref()?;
        self.stale.names().filter(|_| plan.held.is_empty() && !self.stale.objects())
    }

    /// Takes a reading of everything.
    pub fn whole(&mut self, plan: Plan) -> Arc<Plan> {
        let plan = Arc::new(slim(plan));
        *self = Self { plan: Some(plan.clone()), stale: Changed::NONE };
        plan
    }

    /// Takes a reading of [`Self::some`]; `None`: it does not fit the rest, and everything is to be read.
    pub fn part(&mut self, part: Plan) -> Option<Arc<Plan>> {
        let (Some(names), Some(before)) = (self.some(), self.plan.as_ref()) else { return None };
        if !part.held.is_empty() {
            return None;
        }
        Some(self.whole(merged(before, slim(part), names)))
    }
}

/// `before`, with what a later reading of the providers `names` found in its place. A reading of some reports all lists.
fn merged(before: &Plan, part: Plan, names: &BTreeSet<Arc<str>>) -> Plan {
    let stays = |name: &Arc<str>| !names.contains(name);
    let is_list = |kind: NoticeKind| matches!(kind, NoticeKind::Discovery | NoticeKind::Vanished);
    let mut plan = Plan {
        providers: before.providers.iter().filter(|it| stays(&it.name)).cloned().collect(),
        objects: before.objects.iter().filter(|it| it.provider.as_ref().is_none_or(stays)).cloned().collect(),
        held: Vec::new(),
        notices: before
            .notices
            .iter()
            .filter(|it| stays(&it.provider) && !is_list(it.kind))
            .cloned()
            .collect(),
    };
    plan.providers.extend(part.providers);
    plan.providers.sort_by(|a, b| a.name.cmp(&b.name));
    plan.objects.extend(part.objects);
    plan.notices.extend(part.notices);
    plan
}

/// A plan is kept for what it says, not for what it would write.
fn slim(mut plan: Plan) -> Plan {
    for provider in &mut plan.providers {
        provider.changes = Vec::new();
        provider.record = None;
    }
    for object in &mut plan.objects {
        object.fields = Vec::new();
        object.spec = None;
    }
    plan
}

#[cfg(test)]
mod tests {
    use catalog::plan::{Hold, HoldKind, Notice, ProviderPlan};

    use super::*;

    fn plan(providers: &[&str], notices: &[(&str, NoticeKind)]) -> Plan {
        let provider = |name: &&str| ProviderPlan {
            name: (*name).into(),
            id: uuid::Uuid::nil(),
            changes: Vec::new(),
            key: None,
            record: None,
            forget: false,
        };
        let notice = |(name, kind): &(&str, NoticeKind)| Notice {
            provider: (*name).into(),
            kind: *kind,
            message: String::new(),
            fields: Vec::new(),
        };
        Plan {
            providers: providers.iter().map(provider).collect(),
            notices: notices.iter().map(notice).collect(),
            ..Plan::default()
        }
    }

    fn said(plan: &Plan) -> (Vec<&str>, Vec<(&str, NoticeKind)>) {
        let providers = plan.providers.iter().map(|it| &*it.name).collect();
        let mut notices: Vec<_> = plan.notices.iter().map(|it| (&*it.provider, it.kind)).collect();
        notices.sort_by_key(|(name, _)| name.to_owned());
        (providers, notices)
    }

    fn some(names: &[&str]) -> TurnFound {
        TurnFound::Maybe(Changed::providers(names.iter().map(|name| (*name).into()).collect()))
    }

    #[test]
    fn what_a_pass_read_is_not_read_again() {
        let (findings, mut standing) = (Findings::default(), PlanStanding::default());
        findings.move_to(&mut standing);
        assert!(standing.current().is_none() && standing.some().is_none(), "nothing is known at first");
        findings.add(TurnFound::Everything(plan(&["a"], &[])));
        findings.move_to(&mut standing);
        assert_eq!(said(standing.current().unwrap()).0, ["a"]);
        // A turn that found nothing new leaves it so.
        findings.add(TurnFound::Maybe(Changed::NONE));
        findings.move_to(&mut standing);
        assert!(standing.current().is_some());
        findings.add(TurnFound::Maybe(Changed::All));
        findings.move_to(&mut standing);
        assert!(standing.current().is_none() && standing.some().is_none());
    }

    #[test]
    fn findings_come_in_order() {
        let (findings, mut standing) = (Findings::default(), PlanStanding::default());
        findings.add(some(&["a"]));
        findings.add(TurnFound::Everything(plan(&[], &[])));
        findings.add(some(&["b"]));
        findings.add(some(&["c"]));
        findings.move_to(&mut standing);
        assert!(standing.current().is_none());
        let names: Vec<_> = standing.some().unwrap().iter().map(|name| name.to_string()).collect();
        assert_eq!(names, ["b", "c"]);
    }

    #[test]
    fn a_part_replaces_what_it_is_about() {
        use NoticeKind as N;
        let mut standing = PlanStanding::default();
        standing.whole(plan(&["a", "b"], &[("a", N::Drift), ("b", N::Frozen), ("c", N::Vanished)]));
        standing.take_in(some(&["a", "d"]));
        let part = plan(&["d"], &[("d", N::Drift), ("e", N::Discovery)]);
        let merged = standing.part(part).unwrap();
        let expected = vec![("b", N::Frozen), ("d", N::Drift), ("e", N::Discovery)];
        assert_eq!(said(&merged), (vec!["b", "d"], expected));
        assert!(standing.current().is_some());
    }

    #[test]
    fn what_is_held_back_follows_from_everything() {
        let held = || {
            let hold = Hold {
                kind: HoldKind::Prune,
                objects: vec!["a".to_owned()],
                digest: None,
                reason: String::new(),
            };
            Plan { held: vec![hold], ..Plan::default() }
        };
        let mut standing = PlanStanding::default();
        standing.whole(held());
        standing.take_in(some(&["a"]));
        assert!(standing.some().is_none(), "the prune may be another");
        standing.whole(Plan::default());
        standing.take_in(some(&["a"]));
        assert!(standing.part(held()).is_none() && standing.current().is_none());
        standing.take_in(TurnFound::Maybe(Changed::Some { providers: BTreeSet::new(), objects: true }));
        assert!(standing.some().is_none(), "consumers follow from all files");
    }
}
