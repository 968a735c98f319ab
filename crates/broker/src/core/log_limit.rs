//! The rate limit of log lines that a guest can cause.

use std::time::{Duration, Instant};

/// A rate limiter (token bucket): a burst of 10 lines, then one per second.
#[derive(Debug, Default)]
pub(super) struct LogRateLimiter {
    /// When the bucket is full again.
    full_at: Option<Instant>,
    suppressed: u64,
}

impl LogRateLimiter {
    const BURST: u32 = 10;
    const INTERVAL: Duration = Duration::from_secs(1);

    /// Allows one more line, and returns the number of lines suppressed since the last one. `None`
    /// suppresses the line.
    pub(super) fn allow(&mut self, now: Instant) -> Option<u64> {
        let full_at = self.full_at.map_or(now, |at| at.max(now)) + Self::INTERVAL;
        if full_at - now > Self::INTERVAL * Self::BURST {
            self.suppressed += 1;
            return None;
        }
        self.full_at = Some(full_at);
        Some(std::mem::take(&mut self.suppressed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn log_lines_that_a_guest_causes_are_rate_limited() {
        let (mut limit, start) = (LogRateLimiter::default(), Instant::now());
        for _ in 0..10 {
            assert_eq!(limit.allow(start), Some(0));
        }
        for _ in 0..1000 {
            assert_eq!(limit.allow(start), None);
        }
        assert_eq!(limit.allow(start + Duration::from_secs(1)), Some(1000));
        assert_eq!(limit.allow(start + Duration::from_secs(1)), None);
        let later = start + Duration::from_secs(3600);
        assert_eq!(limit.allow(later), Some(1));
    }
}
