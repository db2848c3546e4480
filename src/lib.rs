//! providerd: GitOps for LLM providers.
//!
//! Data flows one way: **texts → catalog → plan → transaction → picture**. Everything that decides is pure (it takes
//! values, the time included, and returns values); everything that touches the world is thin and sits at the edge. The
//! crates below this package are the lock on the arrows:
//!
//! - `provider` (pure): what each family speaks; `catalog` (pure): what manifests declare, and the plan
//! - `net`: sockets, egress, TLS; `gateway`: the data plane, which cannot name the database
//!
//! The rooms of this package, from the edge inwards:
//!
//! - [`cli`] and [`daemon`] compose; [`backend`] opens key and database for both; [`process`] is the process itself;
//!   other people's text reaches a terminal or a log through `provider::shown` only
//! - [`admin`] serves what [`status`] judged; [`reconcile`] reads, plans and applies; [`loader`] turns a directory into
//!   a catalog; [`checks`] keeps looking at every provider and key
//! - [`discover`] compares a provider's own list of models with manifests and rows, and adds what is missing; [`edit`]
//!   writes manifests for operators; [`litellm`] goes to and from that program's configuration
//! - [`usage`] ships what the gateway counted from its spool into the database
//! - [`destination`] says where a stored key may travel, for all that send one
//! - [`source`], [`store`], [`embedded`] and [`secret`] each touch one part of the world; [`config`] and [`metrics`]
//!   serve all
//!
//! # Invariants
//! `tests/it/architecture.rs` checks what a test can check of these.
//! 1. Pure crates and modules name no tokio, sqlx, reqwest, axum, file system or clock; no arrow runs up.
//! 2. sqlx appears only in [`store`]. Only [`reconcile`] applies a plan, in one transaction, under the fence; what
//!    [`discover`] adds goes through the same door.
//! 3. `plan` prints the same value that `run` applies: there is no dry-run flag below the command line.
//! 4. An activation carries no data. File event, SIGHUP, timer and drift notice all mean "look again".
//! 5. Nothing unreadable, missing or invalid is ever a reason to delete.
//! 6. A task that ends outside shutdown ends the process with a failure; tasks are spawned by one supervisor.
//! 7. Readers get one immutable picture and never wait for PostgreSQL.
//! 8. A secret is a type that cannot be printed, compared or serialized by accident.
//! 9. The control plane and the data plane meet in values only; nothing on the path of a request can name the database.
//! 10. One question has one answer in one place; a second caller calls it.
//! 11. A name means one thing: no two public types share one.

pub mod admin;
pub mod backend;
pub mod checks;
pub mod cli;
pub mod config;
pub mod daemon;
pub mod dataplane;
pub mod destination;
pub mod discover;
pub mod edit;
pub mod embedded;
pub mod litellm;
pub mod loader;
pub mod metrics;
pub mod process;
pub mod reconcile;
pub mod secret;
pub mod source;
pub mod status;
pub mod store;
pub mod usage;
