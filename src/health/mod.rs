//! Health checks and key tests: two verdicts that are never mixed.
//!
//! A rejected key is a *healthy* provider with a *failed* key. [`protocol`] knows what each type of provider
//! says and means, [`state`] turns a row of results into a status, [`impairment`] suspects ourselves before it
//! declares everybody dead: all of it PURE, the time included. [`egress`] (PURE) says which addresses may be
//! reached at all, [`schedule`] (PURE) whose turn it is, [`probe`] is the thin part that
//! opens sockets, and [`monitor`] drives them all.
//!
//! Not its job: writing statuses down, and sharing the work with other daemons.

pub mod egress;
pub mod impairment;
pub mod monitor;
pub mod probe;
pub mod protocol;
pub mod rollup;
pub mod schedule;
pub mod share;
pub mod state;
