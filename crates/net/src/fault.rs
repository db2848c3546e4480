//! Why there is no answer, and whose fault that is.
//!
//! Invariant: what our own resolver, descriptors, routes or proxy did is never blamed on the provider.

use std::io;

use nix::libc;

use provider::{CheckOutcome, Failure};

/// Why there is no reply.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProbeError {
    /// The other side's fault, as far as can be seen.
    #[error("{reason}")]
    Failed { failure: Failure, reason: String },
    /// Our own resolver, socket, route or proxy: says nothing about the provider.
    #[error("{reason}")]
    Local { reason: String },
}

impl ProbeError {
    pub(crate) fn failed(failure: Failure, reason: impl Into<String>) -> Self {
        Self::Failed { failure, reason: reason.into() }
    }

    pub(crate) fn local(reason: impl Into<String>) -> Self {
        Self::Local { reason: reason.into() }
    }

    /// The same as the outcome of a check.
    pub fn outcome(self) -> CheckOutcome {
        match self {
            Self::Failed { failure, reason } => CheckOutcome::Hard { failure, reason, retry_after: None },
            Self::Local { reason } => CheckOutcome::Local { reason },
        }
    }
}

/// Whether the operating system refused us something of ours: descriptors, ports, memory, a route.
pub(crate) fn is_local(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(
            libc::EMFILE
                | libc::ENFILE
                | libc::ENOBUFS
                | libc::ENOMEM
                | libc::ENETUNREACH
                | libc::ENETDOWN
                | libc::EADDRNOTAVAIL
                | libc::EPERM
                | libc::EACCES
                | libc::EAFNOSUPPORT
        )
    )
}

/// Whether a failed lookup is our own resolver's fault. The standard library keeps only the C library's text; it
/// is not translated, since no locale is set.
pub(crate) fn is_own_fault(error: &io::Error) -> bool {
    const OWN: &[&str] = &[
        // glibc: EAI_AGAIN, EAI_SYSTEM, EAI_MEMORY
        "Temporary failure in name resolution",
        "System error",
        "Memory allocation failure",
        // musl
        "Try again",
        "Out of memory",
        "resolver hangs",
    ];
    let text = error.to_string();
    is_local(error) || OWN.iter().any(|own| text.contains(own))
}
