//! How connections with a token ended, and which of them may read.

use std::collections::{HashMap, HashSet};
use std::sync::{Condvar, Mutex};
use std::time::Duration;

use hvsock_sys::sync::lock;

/// The longest wait for another connection of the client.
const TIMEOUT: Duration = Duration::from_secs(30);

#[derive(Debug, Default)]
pub(super) struct Outcomes {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    ended: HashMap<String, String>,
    released: HashSet<String>,
}

impl Outcomes {
    pub(super) fn record(&self, token: String, outcome: String) {
        lock(&self.state).ended.insert(token, outcome);
        self.changed.notify_all();
    }

    /// How the connection with this token ended. Waits until it has.
    pub(super) fn take(&self, token: &str) -> Option<String> {
        self.wait(|state| state.ended.remove(token))
    }

    pub(super) fn release(&self, token: String) {
        lock(&self.state).released.insert(token);
        self.changed.notify_all();
    }

    /// Waits until the token is released, or for as long as a client may take.
    pub(super) fn wait_for_release(&self, token: &str) {
        self.wait(|state| state.released.remove(token).then_some(()));
    }

    fn wait<T>(&self, mut take: impl FnMut(&mut State) -> Option<T>) -> Option<T> {
        let mut found = None;
        let waiting = |state: &mut State| {
            found = take(state);
            found.is_none()
        };
        let state = lock(&self.state);
        drop(self.changed.wait_timeout_while(state, TIMEOUT, waiting));
        found
    }
}
