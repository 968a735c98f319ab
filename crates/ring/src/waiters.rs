//! Threads and tasks of one process that wait at the same end.
//!
//! They all hear the same bell, and whoever clears it takes the ring away from the others. So
//! each joins this list before it looks whether it has to wait, and whoever clears the bell wakes
//! everyone who is in the list by then; they look again.

use std::sync::{Arc, PoisonError};
use std::task::Waker;

use crate::sync::{Event, Mutex, MutexGuard, thread_local};

/// Everyone of this process who waits at one end.
#[derive(Debug, Default)]
pub(crate) struct Waiters {
    list: Mutex<List>,
}

#[derive(Debug, Default)]
struct List {
    next: u64,
    threads: Vec<(u64, Arc<Event>)>,
    /// A task that reads, and one that writes.
    tasks: [Option<Waker>; 2],
}

/// A thread's place among the waiters; it leaves when this is dropped.
#[derive(Debug)]
pub(crate) struct Seat<'a> {
    waiters: &'a Waiters,
    number: u64,
    event: Arc<Event>,
}

thread_local! {
    /// How others wake this thread out of poll; none if the process is out of descriptors.
    static EVENT: Option<Arc<Event>> = Event::new().ok().map(Arc::new);
}

impl Waiters {
    fn list(&self) -> MutexGuard<'_, List> {
        self.list.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes the calling thread in; `None` if it cannot be woken, and must not wait for long.
    pub(crate) fn join(&self) -> Option<Seat<'_>> {
        let event = EVENT.with(Clone::clone)?;
        let mut list = self.list();
        let number = list.next;
        list.next += 1;
        list.threads.push((number, Arc::clone(&event)));
        Some(Seat {
            waiters: self,
            number,
            event,
        })
    }

    /// Takes a task in, in the place of the one that was there.
    pub(crate) fn join_task(&self, place: usize, waker: &Waker) {
        match &mut self.list().tasks[place & 1] {
            Some(known) => known.clone_from(waker),
            none => *none = Some(waker.clone()),
        }
    }

    /// Wakes everyone, or everyone but the one who calls.
    pub(crate) fn wake(&self, but: Option<&Seat<'_>>) {
        self.wake_others(but, None);
    }

    /// Wakes everyone but the task in this place.
    pub(crate) fn wake_but_task(&self, place: usize) {
        self.wake_others(None, Some(place));
    }

    fn wake_others(&self, but: Option<&Seat<'_>>, but_task: Option<usize>) {
        let mut list = self.list();
        for (number, event) in &list.threads {
            if but.is_none_or(|seat| seat.number != *number) {
                event.set();
            }
        }
        let places = list.tasks.iter_mut().enumerate();
        let woken = places.filter(|(place, _)| but_task != Some(*place));
        let tasks: [Option<Waker>; 2] = {
            let mut tasks = [None, None];
            woken.for_each(|(place, task)| tasks[place] = task.take());
            tasks
        };
        drop(list);
        tasks.into_iter().flatten().for_each(Waker::wake);
    }
}

impl Seat<'_> {
    /// What is set when this thread is to look again.
    pub(crate) fn event(&self) -> &Event {
        &self.event
    }
}

impl Drop for Seat<'_> {
    fn drop(&mut self) {
        let mut list = self.waiters.list();
        list.threads.retain(|(number, _)| *number != self.number);
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::task::Wake;
    use std::time::Instant;

    use hvsock_sys::poll::{self, PollFd, PollFlags};

    use super::*;

    fn is_set(event: &Event) -> bool {
        let mut fds = [PollFd::new(event, PollFlags::IN)];
        poll::wait(&mut fds, Some(Instant::now())).unwrap()
    }

    #[derive(Default)]
    struct Count(AtomicU32);

    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn everyone_else_is_woken_who_is_still_there() {
        let waiters = Waiters::default();
        let own = waiters.join().unwrap();
        std::thread::scope(|scope| {
            scope.spawn(|| drop(waiters.join().unwrap()));
        });
        let task = Arc::new(Count::default());
        waiters.join_task(1, &Waker::from(Arc::clone(&task)));
        waiters.wake(Some(&own));
        assert!(!is_set(own.event()));
        assert_eq!(task.0.load(Ordering::Relaxed), 1);
        waiters.wake(None);
        assert!(is_set(own.event()));
        own.event().clear();
        assert_eq!(task.0.load(Ordering::Relaxed), 1);
        drop(own);
        assert!(waiters.list().threads.is_empty());
    }
}
