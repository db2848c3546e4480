//! What the C library does with memory, set to suit the process: a daemon gives back what it does not need, a command
//! that ends soon does not bother.
//!
//! A pass over everything holds every row and every change for a moment. The C library keeps what was freed for its
//! next use, which for a daemon that then changes one file at a time means for ever.

/// Returns free pages of the heap to the system. Takes milliseconds; nothing but the resident size changes.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
pub fn give_back() {
    // SAFETY: malloc_trim takes no pointer, may be called from any thread, and touches free memory only.
    unsafe { nix::libc::malloc_trim(0) };
}

/// Other C libraries return memory by themselves.
#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
pub fn give_back() {}

/// The process runs for long: its threads share two heaps. By default nearly each gets one of its own, which keeps what a
/// large pass or a scrape once needed; with thousands of providers that adds a third over an hour.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
pub fn expect_to_stay() {
    // SAFETY: mallopt takes no pointer; it is called before there is a second thread.
    unsafe { nix::libc::mallopt(nix::libc::M_ARENA_MAX, 2) };
}

/// Other C libraries have nothing to set.
#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
pub fn expect_to_stay() {}

/// The process ends soon: heaps grow in great steps and shrink never. As they are set, they grow page by page, and each
/// page is a call that stops all other threads which need memory; that is a third of the time of a plan.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
pub fn expect_to_end() {
    /// As large as a heap of the C library becomes; only addresses are taken, until they are used.
    const STEP: i32 = 48 << 20;
    // SAFETY: mallopt takes no pointer; it is called before there is a second thread.
    unsafe {
        nix::libc::mallopt(nix::libc::M_TOP_PAD, STEP);
        nix::libc::mallopt(nix::libc::M_TRIM_THRESHOLD, i32::MAX);
        // Small pieces are merged as they are freed, instead of all at once in the middle of something.
        nix::libc::mallopt(nix::libc::M_MXFAST, 0);
    }
}

/// Other C libraries have nothing to set.
#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
pub fn expect_to_end() {}
