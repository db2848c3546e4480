//! providerd: GitOps for LLM providers.
//!
//! Data flows one way: **texts → catalog → plan → transaction → snapshot**. Everything that decides is
//! pure (it takes values, the time included, and returns values); everything that touches the world is thin
//! and sits at the edge. From the edge inwards:
//!
//! - [`cli`] and [`daemon`] compose; [`app`] is what they share, [`lifecycle`] and [`logging`] serve them
//! - [`reconcile`] reads, plans and applies; [`loader`] turns a directory into a catalog; [`checks`] keeps looking at
//!   every provider and key; [`trial`] asks about a new key before it replaces one that works; [`snapshot`] keeps what
//!   the admin API shows, judged by [`overview`]; [`follow`] records what came from Git
//! - [`discover`] stands a provider's own list of models beside manifests and rows, and adds what is missing
//! - [`source`], [`store`], [`embedded`], [`secret`], [`http`] and the prober of [`health`] each touch one part of
//!   the world
//! - [`manifest`], [`plan`], [`routing`], [`model`] and the protocols and state machines of [`health`] are pure
//!
//! # Invariants
//! `tests/architecture.rs` checks what a test can check of these.
//! 1. Pure modules name no tokio, sqlx, reqwest, axum, file system or clock.
//! 2. sqlx appears only in [`store`]. Only [`reconcile`] applies a plan, in one transaction, under the fence; what
//!    [`discover`] adds goes the same way, under the same lock and lease.
//! 3. `plan` prints the same value that `run` applies: there is no dry-run flag below the command line.
//! 4. An activation carries no data. File event, SIGHUP, timer and drift notice all mean "look again".
//! 5. Nothing unreadable, missing or invalid is ever a reason to delete.
//! 6. A task that ends outside shutdown ends the process with a failure; tasks are spawned by one supervisor.
//! 7. A secret is a type that cannot be printed, compared or serialized by accident.

pub mod app;
pub mod checks;
pub mod cli;
pub mod config;
pub mod daemon;
pub mod discover;
pub mod embedded;
pub mod follow;
pub mod health;
pub mod http;
pub mod import;
pub mod lifecycle;
pub mod loader;
pub mod logging;
pub mod manifest;
pub mod memory;
pub mod metrics;
pub mod model;
pub mod overview;
pub mod plan;
pub mod reconcile;
pub mod reload;
pub mod routing;
pub mod secret;
pub mod snapshot;
pub mod source;
pub mod store;
pub mod trial;
