//! What pulling has come to, in a small file beside the checkouts: for the next start, and for `status`.
//!
//! Not its job: logs and metrics. Invariant: it holds no secret, and losing it costs one fetch.

use std::{fs, io};

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use super::{PullOptions, place::MirrorPlace};

const FILE: &str = "state.json";
/// A few fields and a sentence.
const MAX_BYTES: u64 = 64 * 1024;

/// How pulling stands.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct PullReport {
    pub url: String,
    /// As the remote lists it: `HEAD`, `refs/heads/…` or `refs/tags/…`.
    pub reference: String,
    /// What the reference was on the remote when it was last applied: a commit, or a tag.
    pub tip: Option<String>,
    /// The commit that is applied.
    pub commit: Option<String>,
    /// When a look at the remote last ended, however it ended.
    pub last_look: Option<DateTime<Utc>>,
    /// When the remote was last seen, and what it has is what is applied.
    pub last_success: Option<DateTime<Utc>>,
    /// Since when that fails, and why.
    pub failing_since: Option<DateTime<Utc>>,
    pub error: Option<String>,
}

impl PullReport {
    pub(super) fn new(options: &PullOptions) -> Self {
        Self { url: options.url.clone(), reference: options.reference.full(), ..Self::default() }
    }

    /// What the daemon with these options wrote last; `None` if there is nothing, or nothing to be read.
    pub fn read(options: &PullOptions) -> Option<Self> {
        let path = MirrorPlace::of(options).dir().join(FILE);
        let meta = fs::symlink_metadata(&path).ok()?;
        if !meta.is_file() || meta.len() > MAX_BYTES {
            return None;
        }
        serde_json::from_slice(&fs::read(&path).ok()?).ok()
    }

    /// Goes on from an earlier run.
    pub(super) fn load(&mut self, place: &MirrorPlace) {
        let earlier = fs::read(place.dir().join(FILE)).ok();
        let earlier: Option<Self> = earlier.and_then(|text| serde_json::from_slice(&text).ok());
        if let Some(earlier) = earlier {
            *self = Self { url: self.url.clone(), reference: self.reference.clone(), ..earlier };
        }
    }

    pub(super) fn save(&self, place: &MirrorPlace) -> io::Result<()> {
        let (path, new) = (place.dir().join(FILE), place.dir().join("state.json.new"));
        fs::write(&new, serde_json::to_vec(self)?)?;
        fs::rename(new, path)
    }

    pub(super) fn succeeded(&mut self, now: DateTime<Utc>) {
        self.last_look = Some(now);
        self.last_success = Some(now);
        self.failing_since = None;
        self.error = None;
    }

    pub(super) fn failed(&mut self, now: DateTime<Utc>, error: &str) {
        self.last_look = Some(now);
        self.failing_since.get_or_insert(now);
        self.error = Some(error.to_owned());
    }

    /// One line for people, while something is wrong.
    pub fn problem(&self) -> Option<String> {
        let error = self.error.as_deref()?;
        let commit = self.commit.as_deref().and_then(|it| it.get(..12)).unwrap_or("nothing");
        let since =
            self.failing_since.map_or_else(String::new, |at| format!(" since {}", at.format("%F %TZ")));
        Some(format!("{} is not followed{since}, {commit} is applied: {error}", self.url))
    }
}
