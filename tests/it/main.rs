//! All integration tests in one binary: linked once, with one PostgreSQL for all of them.
//!
//! Each module says what it proves. `support` is what they share: a real PostgreSQL, fake providers on real sockets, and
//! the real program.

mod adoption;
mod api;
mod architecture;
mod checks;
mod cli;
mod config;
mod daemon;
mod demo;
mod discover;
mod doctor;
mod embedded;
mod expansion;
mod fernet_interop;
mod gateway;
mod gateway_nodes;
mod gateway_objects;
mod git_source;
mod health_freeze;
mod health_monitor;
mod health_schedule;
mod health_state;
mod hostile_hour;
mod hostile_rows;
mod key_travel;
mod language;
mod lifecycle;
mod lists;
mod load;
mod logging;
mod manifest_hostile;
mod manifests;
mod migrations;
mod models;
mod monitoring;
mod operations;
mod ops_pages;
mod output;
mod page;
mod plan_properties;
mod probe;
mod prometheus;
mod protocols;
mod refused;
mod rotation;
mod secrets;
mod several;
mod source;
mod store;
mod support;
mod terminal;
mod usage;
mod usage_kills;
mod usage_outage;
