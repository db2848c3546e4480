//! The bookkeeping of one provider as it is going to be, and the digest of what its manifests say.
//!
//! PURE. Made of the values that were compared, not of copies: most passes find that nothing differs and drop it.
//! Invariant: what [`NextRecord`] writes, [`super::Record`] reads.

use std::collections::BTreeMap;

use serde::{Serialize, Serializer};
use sha2::{Digest as _, Sha256};
use uuid::Uuid;

use super::{
    DesiredKey, Digest, Fields, Fingerprint, LiveKey, RecordedRule,
    diff::{self, Lowered},
};
use crate::{
    model::{Cell, ManifestPath, Provider},
    routing::DesiredRule,
};

/// See [`super::Record`].
#[derive(Default, Serialize)]
pub(super) struct NextRecord<'a> {
    pub provider: NextFields<'a>,
    pub models: BTreeMap<&'a str, NextRow<'a>>,
    pub rules: Vec<NextRule<'a>>,
    #[serde(flatten)]
    pub keys: KeyRecord,
}

/// What is remembered about a key.
#[derive(Default, Serialize)]
pub(super) struct KeyRecord {
    pub key: Option<Fingerprint>,
    pub foreign_key: Option<Fingerprint>,
}

/// See [`super::RecordedRow`].
#[derive(Serialize)]
pub(super) struct NextRow<'a> {
    pub id: Uuid,
    pub fields: NextFields<'a>,
}

/// See [`RecordedRule`].
#[derive(Serialize)]
pub(super) struct NextRule<'a> {
    pub id: Uuid,
    pub model: &'a str,
    #[serde(flatten)]
    pub cell: &'a Cell,
    pub file: &'a ManifestPath,
    pub fields: NextFields<'a>,
}

impl<'a> NextRule<'a> {
    /// A rule that stays as it was recorded.
    pub fn kept(rule: &'a RecordedRule) -> Self {
        let fields = NextFields::Kept(&rule.fields);
        Self { id: rule.id, model: &rule.model, cell: &rule.cell, file: &rule.file, fields }
    }
}

/// Owned fields with their values.
pub(super) enum NextFields<'a> {
    /// As the manifests declare them.
    New(Lowered),
    /// As they were recorded.
    Kept(&'a Fields),
}

impl Default for NextFields<'_> {
    fn default() -> Self {
        Self::New(Lowered::default())
    }
}

impl Serialize for NextFields<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::New(lowered) => {
                serializer.collect_map(lowered.owned.iter().map(|(field, value)| (field, value)))
            }
            Self::Kept(fields) => fields.serialize(serializer),
        }
    }
}

/// What the manifests say, as one number: equal means that bookkeeping needs no rewriting.
pub(super) struct SaidDigest(Sha256);

impl SaidDigest {
    pub fn new(provider: &Provider) -> Self {
        let mut said = Self(Sha256::new());
        said.part(provider.origin.file.as_bytes());
        said
    }

    fn part(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
        // Keeps neighbours apart.
        self.0.update([0x1f]);
    }

    pub fn fields(&mut self, lowered: &Lowered) {
        // The price that follows from the other two says nothing of its own.
        for (field, value) in lowered.owned.iter().filter(|(field, _)| field != "cost_per_1m_tokens") {
            self.part(field.as_bytes());
            // Writing plain values into a hash cannot fail.
            let _ = serde_json::to_writer(&mut *self, value);
        }
        self.part(b"\0");
    }

    pub fn model(&mut self, name: &str, lowered: &Lowered) {
        self.part(name.as_bytes());
        self.fields(lowered);
    }

    /// Something that is left out for now: once it is not, the bookkeeping is written again.
    pub fn waits(&mut self, object: &str) {
        self.part(b"waits");
        self.part(object.as_bytes());
    }

    pub fn finish(mut self, rules: &[DesiredRule], key: &DesiredKey, live: Option<&LiveKey>) -> Digest {
        for rule in rules {
            self.part(rule.origin.file.as_bytes());
            self.part(rule.model.as_bytes());
            self.part(rule.cell.power_level.as_str().as_bytes());
            self.part(rule.cell.user_tier.as_bytes());
            self.part(rule.cell.task_type.as_deref().unwrap_or_default().as_bytes());
            self.fields(&diff::lower_rule(rule));
        }
        match (key, live) {
            (DesiredKey::Resolved(key), _) => self.part(key.0.as_bytes()),
            (DesiredKey::Unresolved(_), Some(LiveKey::Known { fingerprint, .. })) => {
                self.part(fingerprint.0.as_bytes());
            }
            (DesiredKey::Unresolved(_), _) => self.part(b"unresolved"),
            (DesiredKey::Undeclared, _) => self.part(b"undeclared"),
        }
        let mut digest = [0; 16];
        digest.copy_from_slice(self.0.finalize().get(..16).unwrap_or(&[0; 16]));
        Digest(digest)
    }
}

impl std::io::Write for SaidDigest {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
