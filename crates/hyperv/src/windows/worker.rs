//! Runs queries that may never return, with a deadline and a limit on threads.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

/// The maximum number of queries in flight. A query that timed out counts until Windows returns from
/// it, so a service that hangs occupies a bounded number of threads.
const MAX_IN_FLIGHT: usize = 16;

/// The queries in flight of this process.
static IN_FLIGHT: InFlight = InFlight(AtomicUsize::new(0));

/// The number of queries in flight.
struct InFlight(AtomicUsize);

/// A query in flight.
pub(super) struct Query<T> {
    /// `None` if the query could not be started.
    answer: Option<mpsc::Receiver<T>>,
}

/// Runs a query on its own thread.
pub(super) fn spawn<T: Send + 'static>(query: impl FnOnce() -> T + Send + 'static) -> Query<T> {
    spawn_within(&IN_FLIGHT, query)
}

fn spawn_within<T: Send + 'static>(
    in_flight: &'static InFlight,
    query: impl FnOnce() -> T + Send + 'static,
) -> Query<T> {
    let none = Query { answer: None };
    let Some(permit) = in_flight.acquire() else {
        return none;
    };
    let (sender, receiver) = mpsc::sync_channel(1);
    let thread = thread::Builder::new().name("hvsock-hyperv".to_owned());
    let spawned = thread.spawn(move || {
        let _permit = permit;
        // Fails if the caller has timed out.
        let _ = sender.send(query());
    });
    match spawned {
        Ok(_) => Query {
            answer: Some(receiver),
        },
        Err(_) => none,
    }
}

impl<T> Query<T> {
    /// Waits for the answer until `deadline`.
    pub(super) fn by(self, deadline: Instant) -> Option<T> {
        let left = deadline.saturating_duration_since(Instant::now());
        // An answer that has arrived is returned even after the deadline.
        let left = left.max(Duration::from_millis(1));
        self.answer?.recv_timeout(left).ok()
    }
}

/// Counts as one query in flight until it is dropped.
struct Permit(&'static InFlight);

impl InFlight {
    fn acquire(&'static self) -> Option<Permit> {
        let acquired = self
            .0
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |count| {
                (count < MAX_IN_FLIGHT).then_some(count + 1)
            });
        acquired.ok().map(|_| Permit(self))
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wait_ends_at_its_deadline_and_the_number_of_threads_is_limited() {
        static OWN: InFlight = InFlight(AtomicUsize::new(0));
        let soon = || Instant::now() + Duration::from_millis(50);
        assert_eq!(
            spawn_within(&OWN, || 7).by(Instant::now() + Duration::from_secs(10)),
            Some(7)
        );
        let (release, held) = mpsc::channel::<()>();
        let held = std::sync::Arc::new(std::sync::Mutex::new(held));
        let start = Instant::now();
        let queries: Vec<_> = (0..MAX_IN_FLIGHT + 4)
            .map(|_| {
                let held = held.clone();
                spawn_within(&OWN, move || {
                    held.lock().map(|held| held.recv().is_ok()).is_ok()
                })
            })
            .collect();
        let threads = queries.iter().filter(|query| query.answer.is_some());
        assert!(threads.count() <= MAX_IN_FLIGHT);
        for query in queries {
            assert_eq!(query.by(soon()), None);
        }
        assert!(start.elapsed() < Duration::from_secs(10));
        drop(release);
        let deadline = Instant::now() + Duration::from_secs(10);
        while OWN.0.load(Ordering::Relaxed) > 0 {
            assert!(Instant::now() < deadline, "released threads do not end");
            thread::sleep(Duration::from_millis(5));
        }
        assert_eq!(spawn_within(&OWN, || 8).by(deadline), Some(8));
        let panicked = spawn_within(&OWN, || -> u8 { std::panic::resume_unwind(Box::new(())) });
        assert_eq!(panicked.by(deadline), None);
    }
}
