//! Sockets: egress policy, resolving, connecting, TLS, proxies; the measured one-shot client, the pooled streaming
//! client, and the sockets of servers.
//!
//! Deliberately absent: what a provider means by its answers, and what the daemon does with them.

pub mod pool;
