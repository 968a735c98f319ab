//! Questions that may take for ever, with a limit.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

/// How many questions may wait for an answer. One that nobody waits for any more still counts until
/// Windows lets go of its thread, so that a service that hangs costs so many threads and no more.
const MOST: usize = 16;

/// The questions that wait.
static WAITING: Waiting = Waiting(AtomicUsize::new(0));

/// How many questions wait.
struct Waiting(AtomicUsize);

/// An answer that is on its way.
pub(super) struct Answer<T> {
    answers: Option<mpsc::Receiver<T>>,
}

/// Asks on a thread of its own.
pub(super) fn ask<T: Send + 'static>(question: impl FnOnce() -> T + Send + 'static) -> Answer<T> {
    ask_among(&WAITING, question)
}

fn ask_among<T: Send + 'static>(
    waiting: &'static Waiting,
    question: impl FnOnce() -> T + Send + 'static,
) -> Answer<T> {
    let none = Answer { answers: None };
    let Some(place) = waiting.take() else {
        return none;
    };
    let (answered, answers) = mpsc::sync_channel(1);
    let thread = thread::Builder::new().name("hvsock-hyperv".to_owned());
    let spawned = thread.spawn(move || {
        let _place = place;
        // Nobody may be there any more.
        let _ = answered.send(question());
    });
    match spawned {
        Ok(_) => Answer {
            answers: Some(answers),
        },
        Err(_) => none,
    }
}

impl<T> Answer<T> {
    /// The answer, if it comes before this time.
    pub(super) fn by(self, deadline: Instant) -> Option<T> {
        let left = deadline.saturating_duration_since(Instant::now());
        // Even after the deadline one that is there is taken.
        let left = left.max(Duration::from_millis(1));
        self.answers?.recv_timeout(left).ok()
    }
}

/// A place among those that wait.
struct Place(&'static Waiting);

impl Waiting {
    fn take(&'static self) -> Option<Place> {
        let taken = self
            .0
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |count| {
                (count < MOST).then_some(count + 1)
            });
        taken.ok().map(|_| Place(self))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_waits_longer_than_he_said_nor_has_more_threads_than_there_are_places() {
        static OWN: Waiting = Waiting(AtomicUsize::new(0));
        let soon = || Instant::now() + Duration::from_millis(50);
        assert_eq!(
            ask_among(&OWN, || 7).by(Instant::now() + Duration::from_secs(10)),
            Some(7)
        );
        let (release, held) = mpsc::channel::<()>();
        let held = std::sync::Arc::new(std::sync::Mutex::new(held));
        let begun = Instant::now();
        let answers: Vec<_> = (0..MOST + 4)
            .map(|_| {
                let held = held.clone();
                ask_among(&OWN, move || {
                    held.lock().map(|held| held.recv().is_ok()).is_ok()
                })
            })
            .collect();
        let threads = answers.iter().filter(|answer| answer.answers.is_some());
        assert!(threads.count() <= MOST);
        for answer in answers {
            assert_eq!(answer.by(soon()), None);
        }
        assert!(begun.elapsed() < Duration::from_secs(10));
        drop(release);
        let deadline = Instant::now() + Duration::from_secs(10);
        while OWN.0.load(Ordering::Relaxed) > 0 {
            assert!(Instant::now() < deadline, "threads that may end do not");
            thread::sleep(Duration::from_millis(5));
        }
        assert_eq!(ask_among(&OWN, || 8).by(deadline), Some(8));
        let panicked = ask_among(&OWN, || -> u8 { std::panic::resume_unwind(Box::new(())) });
        assert_eq!(panicked.by(deadline), None);
    }
}
