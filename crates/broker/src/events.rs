//! Events for those who follow along: published by the core, never waited for.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::model::{Event, EventKind};

/// Events that wait for one reader; one more is missed, and counted.
const QUEUE: usize = 1024;
/// Readers at once.
const MAX_READERS: usize = 64;

/// Where events are published.
#[derive(Debug, Default)]
pub(crate) struct EventBus {
    readers: Vec<Reader>,
}

#[derive(Debug)]
struct Reader {
    queue: SyncSender<Event>,
    missed: Arc<AtomicU64>,
}

/// One reader's events, in order.
#[derive(Debug)]
pub struct EventStream {
    queue: Receiver<Event>,
    missed: Arc<AtomicU64>,
}

impl EventBus {
    /// Publishes an event, which is made only if somebody reads.
    pub(crate) fn publish(&mut self, what: impl FnOnce() -> EventKind) {
        if self.readers.is_empty() {
            return;
        }
        let event = now(what());
        self.readers
            .retain(|reader| match reader.queue.try_send(event.clone()) {
                Ok(()) => true,
                Err(TrySendError::Full(_)) => {
                    reader.missed.fetch_add(1, Ordering::Relaxed);
                    true
                }
                Err(TrySendError::Disconnected(_)) => false,
            });
    }

    /// A new reader; `None` if there are too many.
    pub(crate) fn subscribe(&mut self) -> Option<EventStream> {
        if self.readers.len() >= MAX_READERS {
            // Those that are gone are noticed only when something happens.
            self.readers
                .retain(|reader| Arc::strong_count(&reader.missed) > 1);
        }
        if self.readers.len() >= MAX_READERS {
            return None;
        }
        let (sender, queue) = sync_channel(QUEUE);
        let missed = Arc::new(AtomicU64::new(0));
        self.readers.push(Reader {
            queue: sender,
            missed: Arc::clone(&missed),
        });
        Some(EventStream { queue, missed })
    }
}

impl EventStream {
    /// The next event; `None` if none comes within `timeout`, or if the broker has stopped (then
    /// at once, and [`EventStream::is_over`] says so).
    pub fn recv_timeout(&self, timeout: Duration) -> Option<Event> {
        if let Ok(event) = self.queue.try_recv() {
            return Some(event);
        }
        // What is missing is missing behind all that is in the queue.
        let missed = self.missed.swap(0, Ordering::Relaxed);
        if missed > 0 {
            return Some(now(EventKind::Missed { events: missed }));
        }
        self.queue.recv_timeout(timeout).ok()
    }

    /// Whether no event will come any more.
    pub fn is_over(&self) -> bool {
        Arc::strong_count(&self.missed) == 1
    }
}

fn now(what: EventKind) -> Event {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    Event {
        time_ms: u64::try_from(since.as_millis()).unwrap_or(u64::MAX),
        what,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(partition: &str) -> EventKind {
        EventKind::PartitionAdded {
            partition: partition.into(),
        }
    }

    #[test]
    fn a_reader_that_is_too_slow_is_told_how_much_it_missed() {
        let mut bus = EventBus::default();
        let stream = bus.subscribe().unwrap();
        for _ in 0..QUEUE + 3 {
            bus.publish(|| event("web"));
        }
        for _ in 0..QUEUE {
            assert_eq!(
                stream.recv_timeout(Duration::ZERO).unwrap().what,
                event("web")
            );
        }
        let missed = stream.recv_timeout(Duration::ZERO).unwrap().what;
        assert_eq!(missed, EventKind::Missed { events: 3 });
        assert_eq!(stream.recv_timeout(Duration::ZERO), None);
        assert!(!stream.is_over());
        drop(bus);
        assert!(stream.is_over());
    }

    #[test]
    fn readers_that_left_make_room_for_new_ones() {
        let mut bus = EventBus::default();
        let streams: Vec<_> = (0..MAX_READERS).map(|_| bus.subscribe().unwrap()).collect();
        assert!(bus.subscribe().is_none());
        drop(streams);
        assert!(bus.subscribe().is_some());
    }
}
