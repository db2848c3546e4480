//! What happens to a provider's key: the declared one, the stored one, and what their provider said about them.
//!
//! PURE. Not its job: asking providers, or holding a key; here a key is its fingerprint. Invariants: a working key is
//! never replaced by one that its provider rejects; a key that another program stored is replaced only if it does not
//! work while the declared one does, or if it is another provider's.

use std::sync::Arc;

use super::{
    DesiredKey, KeyAction, KeyChange, KeyTrial, LiveKey, Notice, NoticeKind, Record,
    planner::{One, notice},
    record::KeyRecord,
};
use crate::model::KeyStatus;

impl Notice {
    fn untried(provider: &Arc<str>, declared: &str) -> Self {
        let message = format!(
            "the declared key ({declared}) is tried at its provider before it replaces the stored one"
        );
        notice(provider, NoticeKind::KeyUntried, message)
    }

    fn refused(provider: &Arc<str>, declared: &str) -> Self {
        let message = format!("the provider rejects the declared key ({declared}); the working one stays");
        notice(provider, NoticeKind::KeyRefused, message)
    }

    /// The fingerprint of the key that a trial is about.
    fn tried(&self) -> Option<&str> {
        let is_trial = matches!(self.kind, NoticeKind::KeyUntried | NoticeKind::KeyRefused);
        let (_, rest) = self.message.split_once('(').filter(|_| is_trial)?;
        Some(rest.split_once(')')?.0)
    }

    /// The other notice of the same trial: a verdict is forgotten after a while, and then the two take turns.
    pub fn twin(&self) -> Option<Self> {
        let declared = self.tried()?;
        Some(match self.kind {
            NoticeKind::KeyUntried => Self::refused(&self.provider, declared),
            _ => Self::untried(&self.provider, declared),
        })
    }
}

impl One<'_> {
    pub(super) fn key(&mut self, record: &Record, next: &mut KeyRecord) -> Option<KeyChange> {
        let name = self.desired.provider.name.clone();
        let live = self.live.map_or(&LiveKey::Absent, |live| &live.key);
        let stored = match live {
            LiveKey::Known { fingerprint, .. } => Some(fingerprint.clone()),
            LiveKey::Absent | LiveKey::Undecryptable => None,
        };
        let declared = match &self.desired.key {
            DesiredKey::Undeclared => return None,
            DesiredKey::Unresolved(why) => {
                next.key.clone_from(&record.key);
                self.notices.push(notice(&name, NoticeKind::KeyUnresolved, why.clone()));
                return self.align(live);
            }
            DesiredKey::Resolved(declared) => declared.clone(),
        };
        next.key = Some(declared.clone());
        let source_changed = record.key.as_ref() != Some(&declared);
        let trials = self.input.policy.trials.as_ref();
        let trial = trials.and_then(|trials| trials.get(&(name.clone(), declared.clone())).copied());
        let status = self.live.and_then(|live| live.key_test_status.as_deref());
        let stored_works = status == Some(KeyStatus::Valid.as_str());
        let stored_is_bad = status == Some(KeyStatus::Failed.as_str());
        let untried = |notices: &mut Vec<Notice>| {
            if trials.is_some() && trial.is_none() {
                notices.push(Notice::untried(&name, &declared.0));
            }
        };
        let set = |reason: &'static str| {
            let (action, old, new) = (KeyAction::Set, stored.clone(), Some(declared.clone()));
            Some(KeyChange { action, old, new, reason: reason.into() })
        };
        match live {
            LiveKey::Absent if self.live.is_none() => set("new provider"),
            LiveKey::Absent => set("no key is stored"),
            LiveKey::Known { fingerprint, .. } if *fingerprint == declared => self.align(live),
            LiveKey::Known { .. } if self.input.world.copied_keys.contains(&name) => {
                set("the key of another provider was copied into its row")
            }
            LiveKey::Undecryptable if source_changed => set("the stored key does not open with the BYOK key"),
            LiveKey::Undecryptable if trial == Some(KeyTrial::Works) => {
                set("the stored key does not open and the declared one works")
            }
            LiveKey::Undecryptable => {
                untried(&mut self.notices);
                let message = "the stored key does not open with the BYOK key and stays";
                self.notices.push(notice(&name, NoticeKind::KeyUndecryptable, message));
                None
            }
            LiveKey::Known { .. } if source_changed => {
                let guarded = self.input.policy.require_valid && trials.is_some() && stored_works;
                match trial {
                    None if guarded => {
                        untried(&mut self.notices);
                        next.key.clone_from(&record.key);
                        None
                    }
                    Some(KeyTrial::Rejected) if guarded => {
                        self.notices.push(Notice::refused(&name, &declared.0));
                        next.key.clone_from(&record.key);
                        None
                    }
                    _ => set("its source changed"),
                }
            }
            LiveKey::Known { .. } if stored_is_bad && trial == Some(KeyTrial::Works) => {
                set("someone else's key is rejected and the declared one works")
            }
            LiveKey::Known { fingerprint, .. } => {
                if stored_is_bad {
                    untried(&mut self.notices);
                }
                let message = format!("someone else changed the key ({declared} → {fingerprint}); it stays");
                self.notices.push(notice(&name, NoticeKind::KeyForeign, message));
                next.foreign_key = Some(fingerprint.clone());
                let seen = record.foreign_key.as_ref() == Some(fingerprint);
                (!seen).then(|| KeyChange {
                    action: KeyAction::Pending,
                    old: Some(declared),
                    new: Some(fingerprint.clone()),
                    reason: "changed by someone else".into(),
                })
            }
        }
    }

    /// The two key columns always hold the same token.
    fn align(&self, live: &LiveKey) -> Option<KeyChange> {
        let LiveKey::Known { fingerprint, columns_agree: false } = live else { return None };
        let key = Some(fingerprint.clone());
        Some(KeyChange {
            action: KeyAction::Align,
            old: key.clone(),
            new: key,
            reason: "the two key columns differ".into(),
        })
    }
}
