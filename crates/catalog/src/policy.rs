//! The settings that a plan obeys, as words.

use provider::words;

words! {
    /// What happens to a managed value that someone else changed.
    DriftPolicy {
        /// It is set back to what the manifest says, and recorded.
        Correct = "correct",
        /// It is recorded and left.
        Report = "report",
    }
}

words! {
    /// What happens to a plan that would leave a routing cell without a usable model.
    RouteGuard {
        /// The changes of that cell are held back and reported.
        Hold = "hold",
        /// They are applied and reported.
        Warn = "warn",
        /// They are applied.
        Off = "off",
    }
}
