//! Usage on its way from the gateway's spool into the database.
//!
//! - [`rows`] (pure): what the spool holds as what the database stores
//! - [`view`] (pure): how sums are shown
//! - [`ship`]: reading, storing, setting aside, letting go
//!
//! Not its job: counting tokens and money (the gateway), SQL (`store`).

mod meter;
pub mod rows;
pub mod ship;
pub mod view;

pub use meter::UsageMeters;
pub use ship::{ShipReport, Shipper, ShipperSettings};
