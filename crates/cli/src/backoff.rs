//! The delay between attempts to get back what has ended with the broker.

use std::thread;
use std::time::Duration;

/// Exponential backoff: the first attempt is immediate, the next one is 250 ms later, and each delay is
/// twice the last one up to 4 s.
#[derive(Debug, Default)]
pub struct Backoff(Duration);

impl Backoff {
    const FIRST: Duration = Duration::from_millis(250);
    const MAX: Duration = Duration::from_secs(4);

    /// Waits until the next attempt is due.
    pub fn wait(&mut self) {
        let now = self.0;
        self.0 = (now * 2).clamp(Self::FIRST, Self::MAX);
        thread::sleep(now);
    }
}

/// Repeats `attempt` until it succeeds. Each new reason of a failure is given to `report` once.
pub fn until_done<T>(
    mut attempt: impl FnMut() -> anyhow::Result<T>,
    mut report: impl FnMut(&str),
) -> T {
    let (mut backoff, mut reported) = (Backoff::default(), String::new());
    loop {
        backoff.wait();
        match attempt() {
            Ok(done) => return done,
            Err(error) => {
                let reason = format!("{error:#}");
                if reason != reported {
                    report(&reason);
                    reported = reason;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attempts_are_repeated_until_one_succeeds_and_each_reason_is_reported_once() {
        let mut reasons = ["no", "no", "not yet"].into_iter();
        let mut reported = Vec::new();
        let attempt = || match reasons.next() {
            Some(reason) => Err(anyhow::anyhow!(reason)),
            None => Ok(7),
        };
        let done = until_done(attempt, |reason| reported.push(reason.to_owned()));
        assert_eq!(
            (done, reported),
            (7, vec!["no".to_owned(), "not yet".to_owned()])
        );
    }
}
