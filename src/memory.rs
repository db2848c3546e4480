//! Gives memory back to the system after a pass over everything.
//!
//! Such a pass holds every row and every change for a moment. The C library keeps what was freed for its next
//! use, which for a daemon that then changes one file at a time means for ever.

/// Returns free pages of the heap to the system. Takes milliseconds; nothing but the resident size changes.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
pub fn give_back() {
    // SAFETY: malloc_trim takes no pointer, may be called from any thread, and touches free memory only.
    unsafe { nix::libc::malloc_trim(0) };
}

/// Other C libraries return memory by themselves.
#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
pub fn give_back() {}
