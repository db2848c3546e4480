//! What happens to a provider's key: the declared one, the stored one, and what their provider said about them.
//!
//! PURE. Not its job: asking providers, or holding a key; here a key is its fingerprint. Invariants: a working key is
//! never replaced by one that its provider rejects; a key that somebody else stored is replaced only if it does not
//! work while the declared one does.

use super::{
    DesiredKey, KeyAction, KeyChange, LiveKey, NoticeKind, Record,
    planner::{One, notice},
    record::KeyRecord,
};

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
        let said = self.input.policy.keys.get(&name).copied().unwrap_or_default();
        let set = |reason: &'static str| {
            let (action, old, new) = (KeyAction::Set, stored.clone(), Some(declared.clone()));
            Some(KeyChange { action, old, new, reason: reason.into() })
        };
        match live {
            LiveKey::Absent if self.live.is_none() => set("new provider"),
            LiveKey::Absent => set("no key is stored"),
            LiveKey::Known { fingerprint, .. } if *fingerprint == declared => self.align(live),
            LiveKey::Undecryptable if source_changed => set("the stored key does not open with the BYOK key"),
            LiveKey::Undecryptable if said.declared_works => {
                set("the stored key does not open and the declared one works")
            }
            LiveKey::Undecryptable => {
                let message = "the stored key does not open with the BYOK key and stays";
                self.notices.push(notice(&name, NoticeKind::KeyUndecryptable, message));
                None
            }
            LiveKey::Known { .. } if source_changed => {
                if self.input.policy.require_valid && said.stored_works && said.declared_rejected {
                    let message = "the provider rejects the declared key; the working one stays";
                    self.notices.push(notice(&name, NoticeKind::KeyForeign, message));
                    return None;
                }
                set("its source changed")
            }
            LiveKey::Known { .. } if said.stored_rejected && said.declared_works => {
                set("someone else's key is rejected and the declared one works")
            }
            LiveKey::Known { fingerprint, .. } => {
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
