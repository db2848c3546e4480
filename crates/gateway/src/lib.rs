//! The data plane: a caller asks in a dialect, the gateway chooses who answers, relays the answer, and accounts for
//! it. It takes a picture (values) and hands out outcomes and usage (values).
//!
//! Deliberately absent: the database, the admin API, the daemon. Nothing here can name them.

pub mod accept;
pub mod account;
pub mod allow;
pub mod ask;
mod blocking;
pub mod course;
pub mod decide;
pub mod error;
pub mod explain;
mod guard;
mod learned;
pub mod limit;
mod list;
pub mod meter;
mod payload;
pub mod picture;
pub mod pulse;
mod reading;
pub mod relay;
pub mod serve;
pub mod skim;
pub mod splice;
pub mod spool;
pub mod tap;
pub mod tick;
mod trip;
mod upstream;
