//! What manifests declare, and what follows from it: the words of the domain, texts to objects with diagnostics, the
//! table of routes, and the plan.
//!
//! PURE: this crate depends on no runtime, socket, clock or database: it takes values, the time included, and returns
//! values.
//!
//! - [`model`]: providers, models, routes and the catalog they form
//! - [`manifest`]: text to objects and diagnostics; all files to one catalog
//! - [`routing`]: routes to the rules of each model; the resolved table
//! - [`plan`]: what differs between catalog and database; audit rows; printing
//! - [`serving`]: consumers, tiers, aliases, levels, and what providers and models add for the gateway
//! - [`price`]: exact money; [`sketch`]: how long requests took
//! - [`policy`]: the settings that plans obey; [`duration`]: how durations are written

pub mod duration;
pub mod manifest;
pub mod model;
pub mod plan;
pub mod policy;
pub mod price;
pub mod routing;
pub mod serving;
pub mod sketch;
