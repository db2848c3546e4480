//! Sockets: egress policy, resolving, connecting, TLS, proxies; the measured one-shot client, and the sockets of
//! servers.
//!
//! Not its job: what to ask and what an answer means (`provider`), when to ask, and what is served.
//!
//! - [`egress`] (pure): which addresses may be reached at all
//! - [`resolve`], [`connect`], [`tls`]: from a name to a checked connection
//! - [`fault`]: why there is no answer, and whose fault that is
//! - [`pool`]: kept connections to upstreams, one pool per origin
//! - [`probe`]: one request, measured phase by phase and bounded in every direction; lists of models
//! - [`server`]: accepting connections, with TLS whose files may change

pub mod connect;
mod dial;
pub mod egress;
pub mod fault;
pub mod pool;
pub mod probe;
pub mod resolve;
pub mod server;
pub mod tls;

pub use connect::{Dialer, NetConfig, PhaseLimits, Phases, SetupError};
pub use fault::ProbeError;
pub use resolve::{Resolve, SystemResolver};
pub use tls::{PemError, certificates_from_pem};
