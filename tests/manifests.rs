//! Manifests from their text to what people read: every fixture in `tests/manifests`, every promise about all texts.
//!
//! `UPDATE_SNAPSHOTS=1 cargo test --test manifests` rewrites what is expected; read the difference before keeping it.

#[path = "../fuzz/entry.rs"]
mod entry;
#[path = "manifests/fixtures.rs"]
mod fixtures;
#[path = "manifests/hostile.rs"]
mod hostile;
#[path = "manifests/properties.rs"]
mod properties;
#[path = "manifests/workspace.rs"]
mod workspace;
