//! Broadcasts events to subscribers. The core never waits for a slow one.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use hvsock_sys::sync::lock;

use crate::model::{AuditRecord, Event, EventKind};

/// Capacity of one subscriber's queue. Further events are dropped and counted.
const QUEUE_CAPACITY: usize = 1024;
/// Most subscribers at once.
const MAX_SUBSCRIBERS: usize = 64;

/// Distributes events to all subscribers.
#[derive(Debug, Default)]
pub(crate) struct EventBus {
    subscribers: Vec<Subscriber>,
    history: Option<History>,
}

#[derive(Debug)]
struct Subscriber {
    queue: SyncSender<Event>,
    missed: Arc<AtomicU64>,
    /// What the stream ends with.
    end: Arc<Mutex<Option<Event>>>,
    records: RecordScope,
}

/// Events since all streams ended for a handover, for those that are resumed.
#[derive(Debug)]
struct History {
    /// What a stream is resumed with.
    resume: String,
    until: Instant,
    events: Vec<Event>,
    missed: u64,
}

/// How long a stream can be resumed.
const RESUMABLE: Duration = Duration::from_secs(10);

/// The stream cannot be resumed: it is too late, or it ended in another way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct NotResumable;

/// Which records of the audit a subscriber receives as events.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RecordScope {
    /// None.
    #[default]
    None,
    /// Those about this user of the broker's own partition.
    User(u32),
    /// All.
    All,
}

impl RecordScope {
    /// Whether it has the record. `partition` is the broker's own.
    pub(crate) fn contains(self, record: &AuditRecord, partition: &str) -> bool {
        match self {
            Self::None => false,
            Self::All => true,
            Self::User(uid) => record
                .actor
                .as_ref()
                .is_some_and(|actor| actor.uid == Some(uid) && actor.partition == partition),
        }
    }
}

/// One subscriber's events, in order.
///
/// Its queue holds 1024 events. Those that do not fit are dropped, and [`EventKind::Missed`]
/// reports their number. Dropping the stream unsubscribes.
#[derive(Debug)]
pub struct EventStream {
    queue: Receiver<Event>,
    missed: Arc<AtomicU64>,
    end: Arc<Mutex<Option<Event>>>,
}

impl EventBus {
    /// Publishes an event, which `what` builds only if there is a subscriber.
    pub(crate) fn publish(&mut self, what: impl FnOnce() -> EventKind) {
        self.forget_history();
        if self.subscribers.is_empty() && self.history.is_none() {
            return;
        }
        let event = now(what());
        if let Some(history) = &mut self.history {
            history.add(&event);
        }
        self.subscribers
            .retain(|subscriber| subscriber.send(&event));
    }

    /// Publishes a record of the audit to the subscribers whose scope has it. `partition` is the
    /// broker's own.
    pub(crate) fn publish_record(&mut self, record: &AuditRecord, partition: &str) {
        let wants = |one: &Subscriber| one.records.contains(record, partition);
        self.forget_history();
        if !self.subscribers.iter().any(wants) && self.history.is_none() {
            return;
        }
        let event = Event {
            time_ms: record.time_ms,
            what: EventKind::Audit {
                record: Box::new(record.clone()),
            },
        };
        if let Some(history) = &mut self.history {
            history.add(&event);
        }
        self.subscribers
            .retain(|subscriber| !wants(subscriber) || subscriber.send(&event));
    }

    /// Adds a subscriber; `None` if there are [`MAX_SUBSCRIBERS`] already.
    pub(crate) fn subscribe(&mut self, records: RecordScope) -> Option<EventStream> {
        if self.subscribers.len() >= MAX_SUBSCRIBERS {
            // A dropped stream is otherwise noticed only at the next event.
            self.subscribers
                .retain(|subscriber| Arc::strong_count(&subscriber.missed) > 1);
        }
        if self.subscribers.len() >= MAX_SUBSCRIBERS {
            return None;
        }
        let (sender, queue) = sync_channel(QUEUE_CAPACITY);
        let missed = Arc::new(AtomicU64::new(0));
        let end = Arc::new(Mutex::new(None));
        self.subscribers.push(Subscriber {
            queue: sender,
            missed: Arc::clone(&missed),
            end: Arc::clone(&end),
            records,
        });
        Some(EventStream { queue, missed, end })
    }

    /// As [`subscribe`](Self::subscribe), from the event after the end of the streams that ended with `resume`.
    /// `partition` is the broker's own.
    pub(crate) fn resume(
        &mut self,
        records: RecordScope,
        resume: &str,
        partition: &str,
    ) -> Result<Option<EventStream>, NotResumable> {
        self.forget_history();
        let history = self
            .history
            .as_ref()
            .filter(|history| history.resume == resume);
        let history = history.ok_or(NotResumable)?;
        let (events, missed) = (history.events.clone(), history.missed);
        let Some(stream) = self.subscribe(records) else {
            return Ok(None);
        };
        let Some(subscriber) = self.subscribers.last() else {
            return Ok(None);
        };
        for event in events {
            let wanted = match &event.what {
                EventKind::Audit { record } => records.contains(record, partition),
                _ => true,
            };
            if wanted {
                subscriber.send(&event);
            }
        }
        subscriber.missed.fetch_add(missed, Ordering::Relaxed);
        Ok(Some(stream))
    }

    /// Ends all streams for a handover. Returns what they are resumed with.
    pub(crate) fn end_all(&mut self, resume: String) -> String {
        let end = now(EventKind::HandedOver {
            resume: resume.clone(),
        });
        for subscriber in self.subscribers.drain(..) {
            *lock(&subscriber.end) = Some(end.clone());
        }
        resume
    }

    /// Keeps events for streams that are resumed with `resume`, for a while.
    pub(crate) fn keep_for(&mut self, resume: String) {
        self.history = Some(History {
            resume,
            until: Instant::now() + RESUMABLE,
            events: Vec::new(),
            missed: 0,
        });
    }

    fn forget_history(&mut self) {
        let now = Instant::now();
        if self
            .history
            .as_ref()
            .is_some_and(|history| history.until <= now)
        {
            self.history = None;
        }
    }
}

impl History {
    /// As much as a stream's queue holds.
    fn add(&mut self, event: &Event) {
        match self.events.len() < QUEUE_CAPACITY {
            true => self.events.push(event.clone()),
            false => self.missed += 1,
        }
    }
}

impl Subscriber {
    /// Queues an event, or counts it if the queue is full. Returns false if the stream is gone.
    fn send(&self, event: &Event) -> bool {
        match self.queue.try_send(event.clone()) {
            Ok(()) => true,
            Err(TrySendError::Full(_)) => {
                self.missed.fetch_add(1, Ordering::Relaxed);
                true
            }
            Err(TrySendError::Disconnected(_)) => false,
        }
    }
}

impl EventStream {
    /// Waits for the next event, at most for `timeout`.
    ///
    /// Returns `None` after the timeout, and at once if the broker has stopped;
    /// [`EventStream::is_over`] distinguishes the two.
    pub fn recv_timeout(&self, timeout: Duration) -> Option<Event> {
        if let Ok(event) = self.queue.try_recv() {
            return Some(event);
        }
        // Events are dropped only when the queue is full, so they come after all queued ones.
        let missed = self.missed.swap(0, Ordering::Relaxed);
        if missed > 0 {
            return Some(now(EventKind::Missed { events: missed }));
        }
        match self.queue.recv_timeout(timeout) {
            Ok(event) => Some(event),
            Err(RecvTimeoutError::Timeout) => None,
            // Dropped events are told first.
            Err(RecvTimeoutError::Disconnected) => match self.missed.swap(0, Ordering::Relaxed) {
                0 => lock(&self.end).take(),
                events => Some(now(EventKind::Missed { events })),
            },
        }
    }

    /// Whether the broker has stopped, so that no further event is published.
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
    fn a_slow_subscriber_receives_the_number_of_missed_events() {
        let mut bus = EventBus::default();
        let stream = bus.subscribe(RecordScope::None).unwrap();
        for _ in 0..QUEUE_CAPACITY + 3 {
            bus.publish(|| event("web"));
        }
        for _ in 0..QUEUE_CAPACITY {
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
    fn a_record_goes_to_those_who_ask_for_it_and_may_see_it() {
        let mut bus = EventBus::default();
        let scopes = [
            RecordScope::None,
            RecordScope::User(1000),
            RecordScope::User(1001),
            RecordScope::All,
        ];
        let streams = scopes.map(|scope| bus.subscribe(scope).unwrap());
        let received = |bus: &mut EventBus, uid, partition: &str| {
            let record = AuditRecord {
                actor: Some(crate::model::AuditActor {
                    partition: partition.into(),
                    uid,
                    ..Default::default()
                }),
                ..AuditRecord::default()
            };
            bus.publish_record(&record, "host");
            let got = |stream: &EventStream| stream.recv_timeout(Duration::ZERO).is_some();
            streams.each_ref().map(got)
        };
        let of = &mut bus;
        assert_eq!(received(of, Some(1000), "host"), [false, true, false, true]);
        assert_eq!(received(of, None, "host"), [false, false, false, true]);
        // The same number in a container is another user.
        assert_eq!(received(of, Some(1000), "ct"), [false, false, false, true]);
    }

    #[test]
    fn a_resumed_stream_has_every_event_once() {
        let mut bus = EventBus::default();
        let before = bus.subscribe(RecordScope::None).unwrap();
        bus.publish(|| event("one"));
        let resume = bus.end_all("token".into());
        let received = |stream: &EventStream| {
            std::iter::from_fn(|| Some(stream.recv_timeout(Duration::ZERO)?.what))
                .collect::<Vec<_>>()
        };
        let handed_over = EventKind::HandedOver {
            resume: resume.clone(),
        };
        assert_eq!(received(&before), [event("one"), handed_over]);
        assert!(before.is_over());
        // In the new broker, or in the old one if that goes on.
        let mut bus = EventBus::default();
        bus.keep_for(resume);
        bus.publish(|| event("two"));
        assert_eq!(
            bus.resume(RecordScope::None, "other", "host").unwrap_err(),
            NotResumable
        );
        for _ in 0..2 {
            let after = bus
                .resume(RecordScope::None, "token", "host")
                .unwrap()
                .unwrap();
            bus.publish(|| event("three"));
            let seen = received(&after);
            assert_eq!(seen[0], event("two"));
            assert!(seen[1..].iter().all(|one| *one == event("three")));
        }
        for _ in 0..QUEUE_CAPACITY {
            bus.publish(|| event("more"));
        }
        let late = bus
            .resume(RecordScope::None, "token", "host")
            .unwrap()
            .unwrap();
        let seen = received(&late);
        assert_eq!(seen.len(), QUEUE_CAPACITY + 1);
        assert_eq!(seen.last(), Some(&EventKind::Missed { events: 3 }));
    }

    #[test]
    fn dropped_subscribers_free_their_slots() {
        let mut bus = EventBus::default();
        let streams: Vec<_> = (0..MAX_SUBSCRIBERS)
            .map(|_| bus.subscribe(RecordScope::None).unwrap())
            .collect();
        assert!(bus.subscribe(RecordScope::None).is_none());
        drop(streams);
        assert!(bus.subscribe(RecordScope::None).is_some());
    }
}
