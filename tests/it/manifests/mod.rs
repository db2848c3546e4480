//! Manifests from their text to what people read: every fixture in `tests/manifests`, every promise about all texts.
//!
//! `UPDATE_SNAPSHOTS=1 cargo test --test it manifests::` rewrites what is expected; read the difference before keeping it.

#[path = "../../../fuzz/entry.rs"]
mod entry;
mod fixtures;
mod hostile;
mod properties;
mod workspace;
