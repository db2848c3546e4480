//! What work of seconds shows on a terminal while it lasts, and takes away again.
//!
//! Not its job: results and logs. Invariant: nothing is shown where standard error is no terminal.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

/// Between two pictures of a wait.
const TICK: Duration = Duration::from_millis(120);

/// Gone when it is dropped.
pub struct Progress(ProgressBar);

impl Progress {
    /// Work of so many steps.
    pub fn steps(what: &'static str, count: usize) -> Self {
        let bar = ProgressBar::new(count as u64);
        Self::show(bar, "{msg} {wide_bar} {pos}/{len}", what)
    }

    /// Work of unknown length.
    pub fn waiting(what: &'static str) -> Self {
        let shown = Self::show(ProgressBar::new_spinner(), "{spinner} {wide_msg}", what);
        shown.0.enable_steady_tick(TICK);
        shown
    }

    fn show(bar: ProgressBar, template: &str, what: &'static str) -> Self {
        // A template that cannot be read would leave the usual look.
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style);
        }
        bar.set_message(what);
        Self(bar)
    }

    pub fn step(&self) {
        self.0.inc(1);
    }

    pub fn say(&self, text: String) {
        self.0.set_message(text);
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}
