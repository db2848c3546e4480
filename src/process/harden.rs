//! What the process does for itself before it reads the first secret.
//!
//! Invariant: called from `main` before any thread starts; nothing here ends the process.

use std::{ffi::CString, fs};

use nix::{
    errno::Errno,
    sys::{
        prctl,
        resource::{Resource, setrlimit},
    },
};
use zeroize::{Zeroize as _, Zeroizing};

/// Why the process could not be closed to core dumps and debuggers.
#[derive(Debug, thiserror::Error)]
#[error("cannot switch off {what}: secrets in memory may reach a core dump")]
pub struct HardenError {
    what: &'static str,
    #[source]
    source: Errno,
}

/// No core dump, and no reading of this process's memory or environment by others of the same user.
///
/// # Errors
/// [`HardenError`]; a caller may warn and go on.
pub fn harden_process() -> Result<(), HardenError> {
    setrlimit(Resource::RLIMIT_CORE, 0, 0)
        .map_err(|source| HardenError { what: "core dumps (RLIMIT_CORE)", source })?;
    prctl::set_dumpable(false).map_err(|source| HardenError { what: "dumpability (PR_SET_DUMPABLE)", source })
}

/// Takes a variable out of the process's environment, so that children do not inherit it and
/// `/proc/PID/environ` does not show it.
///
/// Call it before the first thread starts: later, the value is returned but stays where it is, because
/// another thread may be reading the environment. `None` if unset or not UTF-8.
pub fn take_env(name: &str) -> Option<Zeroizing<String>> {
    let value = std::env::var(name).ok().map(Zeroizing::new)?;
    if single_threaded() {
        wipe_env(name);
    }
    Some(value)
}

fn single_threaded() -> bool {
    fs::read_dir("/proc/self/task").is_ok_and(|tasks| tasks.count() == 1)
}

/// Overwrites and removes the variable. Only for a process of one thread.
fn wipe_env(name: &str) {
    let Ok(c_name) = CString::new(name) else { return };
    // SAFETY: this is the only thread, so nothing else reads or changes the environment meanwhile.
    // `getenv` returns null or a NUL-terminated string within the environment, which C leaves to the
    // process to change; the bytes before its NUL are ours to overwrite.
    unsafe {
        let value = nix::libc::getenv(c_name.as_ptr());
        if !value.is_null() {
            let length = nix::libc::strlen(value);
            std::slice::from_raw_parts_mut(value.cast::<u8>(), length).zeroize();
        }
        std::env::remove_var(name);
    }
}
