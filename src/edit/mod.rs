//! What writes manifests for operators: for rows that exist already, and for models that a provider offers.
//!
//! Not its job: reading manifests (`catalog`), and what the database holds.

pub mod file;
pub mod import;
pub mod models;
