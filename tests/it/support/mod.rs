//! What integration tests share: a real PostgreSQL, and the real program run on it.

pub mod bouncer;
pub mod fake;
pub mod http;
pub mod lab;
pub mod monitoring;
pub mod offering;
pub mod pg;
pub mod process;
pub mod python;
pub mod targets;
pub mod traffic;
