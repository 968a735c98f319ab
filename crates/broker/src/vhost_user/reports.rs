//! What a data thread reports to the core, in batches.

use std::time::{Duration, Instant};

use crate::guest_link::{EventSender, LinkEvent};

/// How long events for which nobody waits are collected before they wake the core.
const DELAY: Duration = Duration::from_millis(5);

/// The events of a data thread. The core gets them in order. One for which nobody waits does not wake the
/// core, which then reads it with the next one, or when anybody asks it anything.
#[derive(Debug)]
pub(super) struct Reports {
    events: EventSender,
    /// When to wake the core for the events that it was not woken for.
    flush_at: Option<Instant>,
}

impl Reports {
    pub(super) fn new(events: EventSender) -> Self {
        Self {
            events,
            flush_at: None,
        }
    }

    /// Where they go.
    pub(super) fn events(&self) -> &EventSender {
        &self.events
    }

    /// Sends events, with at most one wakeup of the core.
    pub(super) fn send(&mut self, events: impl IntoIterator<Item = LinkEvent>) {
        let (mut any, mut is_urgent) = (false, false);
        for event in events {
            any = true;
            is_urgent |= event.is_urgent();
            self.events.post(event);
        }
        if is_urgent {
            self.flush();
        } else if any {
            self.flush_at.get_or_insert_with(|| Instant::now() + DELAY);
        }
    }

    /// Wakes the core for all events.
    pub(super) fn flush(&mut self) {
        self.flush_at = None;
        self.events.flush();
    }

    /// When to call [`flush_due`](Self::flush_due) next.
    pub(super) fn next_flush(&self) -> Option<Instant> {
        self.flush_at
    }

    /// Wakes the core if that is due.
    pub(super) fn flush_due(&mut self, now: Instant) {
        if self.flush_at.is_some_and(|at| at <= now) {
            self.flush();
        }
    }
}
