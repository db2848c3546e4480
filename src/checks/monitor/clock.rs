//! What time it is, without surprises: the wall clock as it was read last, carried on by the monotonic one.
//!
//! Not its job: deciding what a jump means for what is remembered. Invariant: between two looks time goes on evenly,
//! whatever is done to the wall clock meanwhile.

use std::{fmt, sync::Arc};

use chrono::{DateTime, TimeDelta, Utc};
use tokio::time::Instant;

/// A larger difference between the clocks is a jump, not the wall clock being slewed or a thread that had to wait.
const JUMP: TimeDelta = TimeDelta::seconds(2);

/// Reads the wall clock; another one for tests.
#[derive(Clone)]
pub struct Wall(Arc<dyn Fn() -> DateTime<Utc> + Send + Sync>);

impl Wall {
    pub fn new(read: impl Fn() -> DateTime<Utc> + Send + Sync + 'static) -> Self {
        Self(Arc::new(read))
    }
}

impl Default for Wall {
    fn default() -> Self {
        Self::new(Utc::now)
    }
}

impl fmt::Debug for Wall {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Wall")
    }
}

pub(super) struct SteadyClock {
    wall: Wall,
    read: DateTime<Utc>,
    at: Instant,
}

impl SteadyClock {
    pub fn new(wall: Wall) -> Self {
        let read = (wall.0)();
        Self { wall, read, at: Instant::now() }
    }

    pub fn now(&self) -> DateTime<Utc> {
        let gone = TimeDelta::from_std(self.at.elapsed()).unwrap_or_default();
        self.read.checked_add_signed(gone).unwrap_or(self.read)
    }

    /// Looks at the wall clock; by how much it was set since the last look, where it was.
    pub fn look(&mut self) -> Option<TimeDelta> {
        let (real, expected) = ((self.wall.0)(), self.now());
        (self.read, self.at) = (real, Instant::now());
        let jump = real - expected;
        (jump.abs() > JUMP).then_some(jump)
    }
}
