//! Connections that a data thread gives back.

use std::sync::{Condvar, Mutex};
use std::time::Instant;

use hvsock_sys::sync::{lock, unpoisoned};

use super::set::Adopted;

/// The place where a data thread puts its connections, for one who waits for a bounded time. Each connection is either
/// taken by that one or stays with the thread.
#[derive(Default)]
pub(crate) struct Returned {
    state: Mutex<State>,
    is_put: Condvar,
}

#[derive(Default)]
enum State {
    #[default]
    Awaited,
    Put(Vec<Adopted>),
    /// Nobody waits any more.
    Abandoned,
}

impl Returned {
    /// Puts the connections there. Returns them if nobody waits.
    #[must_use]
    pub(super) fn put(&self, connections: Vec<Adopted>) -> Vec<Adopted> {
        let mut state = lock(&self.state);
        if matches!(*state, State::Abandoned) {
            return connections;
        }
        *state = State::Put(connections);
        self.is_put.notify_one();
        Vec::new()
    }

    /// Waits until the connections are there, and takes them. `None` if they are not in time: then the thread keeps them.
    pub(crate) fn wait(&self, deadline: Instant) -> Option<Vec<Adopted>> {
        let mut state = lock(&self.state);
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match std::mem::replace(&mut *state, State::Abandoned) {
                State::Put(connections) => return Some(connections),
                State::Awaited if !left.is_zero() => *state = State::Awaited,
                State::Awaited | State::Abandoned => return None,
            }
            state = unpoisoned(self.is_put.wait_timeout(state, left)).0;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use hvsock_fabric::ConnectionId;
    use hvsock_sys::{seqpacket, set_nonblocking, stream};

    use super::super::{Connection, RelayEnd};
    use super::*;

    fn adopted() -> Adopted {
        let end = || {
            let (control, _) = seqpacket::pair().unwrap();
            let (data, _) = stream::pair().unwrap();
            set_nonblocking(&data, true).unwrap();
            RelayEnd::new(control, data, false)
        };
        Adopted {
            id: ConnectionId::from_u64(1),
            connection: Connection::relay(end(), end()),
            counters: Arc::default(),
        }
    }

    #[test]
    fn connections_that_come_too_late_stay_with_their_thread() {
        let returned = Returned::default();
        assert!(returned.wait(Instant::now()).is_none());
        assert_eq!(returned.put(vec![adopted()]).len(), 1);
    }

    #[test]
    fn connections_that_come_in_time_are_taken_once() {
        let returned = Arc::new(Returned::default());
        let thread = Arc::clone(&returned);
        let thread = std::thread::spawn(move || thread.put(vec![adopted()]).len());
        let deadline = Instant::now() + Duration::from_secs(60);
        assert_eq!(returned.wait(deadline).unwrap().len(), 1);
        assert_eq!(thread.join().unwrap(), 0);
        assert!(returned.wait(deadline).is_none());
    }
}
