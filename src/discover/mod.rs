//! A provider's own list of models, beside what is declared and what is stored.
//!
//! Not its job: fetching the list (`health::probe`), SQL (`store`). Invariant: discovery adds rows and marks; it changes
//! no row that is there, deletes none, and believes no empty, failed or shortened list.

pub mod edit;
