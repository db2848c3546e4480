//! What the daemon does for the gateway: makes its picture from rows, keeps a sealed copy, serves, leases budgets, and
//! ships what was used.
//!
//! Not its job: deciding and relaying (the crate `gateway`, which cannot name the database). Invariant: values go in
//! (a picture) and values come out (usage, outcomes); no request waits for anything here.

pub mod budgets;
pub mod explain;
pub mod first_consumer;
mod keeper;
pub mod leases;
pub mod load;
pub mod nodes;
pub mod picture;
pub mod sealed;
pub mod serving;

pub use keeper::PictureKeeper;
pub use leases::BudgetMeters;
pub use picture::picture_input;
pub use serving::{EMBEDDED_LISTEN, ListeningGateway};
