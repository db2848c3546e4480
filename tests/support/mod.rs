//! What integration tests share: a real PostgreSQL, and the real program run on it.

pub mod fake;
pub mod http;
pub mod lab;
pub mod pg;
