//! The threads and tasks of one process that wait at the same end.
//!
//! They share one doorbell, and a waiter that drains it takes the notification from the others. So
//! each waiter registers here before it checks whether it has to wait. The waiter that drains the
//! doorbell wakes every registered waiter, and each checks again.

use std::sync::Arc;
use std::task::Waker;

use hvsock_sys::sync::unpoisoned;

use crate::sync::{Event, Mutex, MutexGuard, thread_local};

/// All waiters of this process at one end.
#[derive(Debug, Default)]
pub(crate) struct Waiters {
    list: Mutex<List>,
}

#[derive(Debug, Default)]
struct List {
    next_id: u64,
    threads: Vec<(u64, Arc<Event>)>,
    /// Threads that wait on a futex.
    on_futex: u32,
    /// One task that reads, and one that writes.
    tasks: [Option<Waker>; 2],
}

/// A thread's registration as a waiter. Dropping it removes the thread.
#[derive(Debug)]
pub(crate) struct WaitGuard<'a> {
    waiters: &'a Waiters,
    id: u64,
    event: Arc<Event>,
}

/// A thread's registration as a waiter on a futex. Dropping it removes the thread.
#[derive(Debug)]
pub(crate) struct FutexGuard<'a>(&'a Waiters);

thread_local! {
    /// Wakes this thread from `poll`; `None` if the process is out of descriptors.
    static EVENT: Option<Arc<Event>> = Event::new().ok().map(Arc::new);
}

impl Waiters {
    fn list(&self) -> MutexGuard<'_, List> {
        unpoisoned(self.list.lock())
    }

    /// Registers the calling thread. `None` if other threads cannot wake it: it must not park for
    /// long then.
    pub(crate) fn join(&self) -> Option<WaitGuard<'_>> {
        let event = EVENT.with(Clone::clone)?;
        let mut list = self.list();
        let id = list.next_id;
        list.next_id += 1;
        list.threads.push((id, Arc::clone(&event)));
        Some(WaitGuard {
            waiters: self,
            id,
            event,
        })
    }

    /// Registers the calling thread, which is going to wait on the futex of the end.
    pub(crate) fn join_futex(&self) -> FutexGuard<'_> {
        self.list().on_futex += 1;
        FutexGuard(self)
    }

    /// Registers a task in one of the two slots, replacing the task that was there.
    pub(crate) fn join_task(&self, slot: usize, waker: &Waker) {
        match &mut self.list().tasks[slot & 1] {
            Some(known) => known.clone_from(waker),
            none => *none = Some(waker.clone()),
        }
    }

    /// Wakes every waiter except the given thread.
    pub(crate) fn wake(&self, except: Option<&WaitGuard<'_>>) {
        self.wake_others(except, None);
    }

    /// Wakes every waiter except the given thread and the task in this slot. Returns whether threads
    /// wait on the futex, which the caller has to wake.
    pub(crate) fn wake_others(
        &self,
        except: Option<&WaitGuard<'_>>,
        except_task: Option<usize>,
    ) -> bool {
        let mut list = self.list();
        for (id, event) in &list.threads {
            if except.is_none_or(|guard| guard.id != *id) {
                event.set();
            }
        }
        let slots = list.tasks.iter_mut().enumerate();
        let woken = slots.filter(|(slot, _)| except_task != Some(*slot));
        let tasks: [Option<Waker>; 2] = {
            let mut tasks = [None, None];
            woken.for_each(|(slot, task)| tasks[slot] = task.take());
            tasks
        };
        let on_futex = list.on_futex != 0;
        drop(list);
        tasks.into_iter().flatten().for_each(Waker::wake);
        on_futex
    }
}

impl WaitGuard<'_> {
    /// The event that wakes this thread to check again.
    pub(crate) fn event(&self) -> &Event {
        &self.event
    }
}

impl Drop for WaitGuard<'_> {
    fn drop(&mut self) {
        let mut list = self.waiters.list();
        list.threads.retain(|(id, _)| *id != self.id);
    }
}

impl Drop for FutexGuard<'_> {
    fn drop(&mut self) {
        self.0.list().on_futex -= 1;
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
    fn a_wake_reaches_every_registered_waiter_except_the_caller() {
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
