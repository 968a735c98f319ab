//! Deadlines as timeouts.

use std::time::{Duration, Instant};

/// Time left until a deadline, at least 1 ms: some calls take 0 as no limit.
pub fn until(deadline: Instant) -> Duration {
    deadline
        .saturating_duration_since(Instant::now())
        .max(Duration::from_millis(1))
}
