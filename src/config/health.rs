//! From the section `health` to how providers are checked.

use catalog::model::{HealthPolicy, Schedule};

use super::Health;

impl Health {
    /// The policy for providers whose manifests set none.
    pub fn policy(&self) -> HealthPolicy {
        HealthPolicy {
            schedule: Some(Schedule::Every(self.interval)),
            timeout: Some(self.timeout),
            slow_after: Some(self.slow_after),
            path: None,
            expect_status: None,
        }
    }
}
