//! The threads that own connections between processes, and the resources of new ones.
//!
//! A connection starts in the core thread's own set: rings and arenas stay there, and those that
//! the broker relays until they have moved [`PROMOTE_AFTER`] bytes.

use std::io;
use std::time::{Duration, Instant};

use hvsock_fabric::{ConnectionId, Refusal};
use hvsock_ring::SlotId;
use mio::Registry;
use mio::event::Event;

use super::connections::Place;
use super::preference::ChosenTransport;
use super::reports::ReportQueue;
use super::spare::Spare;
use super::tokens::CORE_SET_BASE;
use crate::handover::HandoverError;
use crate::pump::{Adopted, ConnectionSet, DataThread, Report};

/// Bytes after which a relayed connection moves to a data thread.
const PROMOTE_AFTER: u64 = 64 * 1024;
/// Connects with a longer gap between them do not count as a burst.
const BURST_GAP: Duration = Duration::from_micros(200);

/// A yield that took longer has given the processor to programs that have nothing to do with the connection.
const LONG_YIELD: Duration = Duration::from_millis(1);
/// For how long no yield follows such a one.
const YIELD_PAUSE: Duration = Duration::from_secs(1);

/// When the core thread yields the processor after a connect.
#[derive(Debug, Default)]
struct Yields {
    /// When the last connection was established.
    last_connect: Option<Instant>,
    /// The end of the pause after a long one.
    paused_until: Option<Instant>,
}

impl Yields {
    /// Whether to yield for a connection that is established now. Not during a burst of connects: then the core
    /// thread is the bottleneck and a yield costs throughput. Nor on a busy machine, where it would hold up all
    /// clients until the programs there have had their turns.
    fn is_due(&mut self, now: Instant) -> bool {
        let last = self.last_connect.replace(now);
        let is_burst = last.is_some_and(|last| now.duration_since(last) <= BURST_GAP);
        let is_paused = self.paused_until.is_some_and(|until| now < until);
        !is_burst && !is_paused
    }

    /// A yield took this long, until `now`.
    fn took(&mut self, time: Duration, now: Instant) {
        self.paused_until = (time > LONG_YIELD).then(|| now + YIELD_PAUSE);
    }
}

/// The core thread's own connections, the data threads, and the resources of the next connections.
pub(super) struct DataThreads {
    core_set: ConnectionSet,
    threads: Vec<DataThread>,
    next_thread: usize,
    /// Rings are allowed between processes.
    shared_memory: bool,
    spare: Spare,
    yields: Yields,
}

impl DataThreads {
    /// Starts `threads` data threads. The core thread's own connections are watched with `registry`.
    pub(super) fn start(
        registry: Registry,
        threads: usize,
        shared_memory: bool,
        reports: &ReportQueue,
    ) -> io::Result<Self> {
        let start = |index| DataThread::start(index, reports.of_data_thread());
        let threads = (0..threads.max(1)).map(start);
        Ok(Self {
            core_set: ConnectionSet::new(registry, CORE_SET_BASE, PROMOTE_AFTER),
            threads: threads.collect::<io::Result<_>>()?,
            next_thread: 0,
            shared_memory,
            spare: Spare::new(match shared_memory {
                true => ChosenTransport::DEFAULT,
                false => ChosenTransport::Descriptor,
            }),
            yields: Yields::default(),
        })
    }

    /// Whether rings are allowed between processes.
    pub(super) fn may_share_memory(&self) -> bool {
        self.shared_memory
    }

    /// Yields the processor so that both processes of a new connection can run first, where that is of use.
    pub(super) fn yield_to_peers(&mut self) {
        let now = Instant::now();
        if self.yields.is_due(now) {
            std::thread::yield_now();
            self.yields.took(now.elapsed(), Instant::now());
        }
    }

    /// The resources of new connections, and what connects leave behind.
    pub(super) fn spare(&mut self) -> &mut Spare {
        &mut self.spare
    }

    /// Whether what connects leave behind can be closed as soon as there is nothing else to do.
    pub(super) fn has_closing(&self) -> bool {
        self.spare.has_closing()
    }

    /// When the work that connects leave behind is due.
    pub(super) fn spare_due(&self) -> Option<Instant> {
        self.spare.due()
    }

    /// Adds a connection to the core thread's set.
    pub(super) fn adopt(&mut self, adopted: Adopted) -> Place {
        self.core_set.adopt(adopted);
        Place::Core
    }

    /// Moves a busy connection of the core thread to a data thread, round robin. Returns where it is
    /// now; `None` if it is not in the core thread's set.
    pub(super) fn promote(&mut self, id: ConnectionId) -> Option<Place> {
        let adopted = self.core_set.release(id)?;
        let thread = self.next_thread;
        self.next_thread = (thread + 1) % self.threads.len();
        self.threads[thread].adopt(adopted);
        Some(Place::Thread(thread))
    }

    /// Resets a connection and sends both ends the reason.
    pub(super) fn reset(&mut self, place: Place, id: ConnectionId, refusal: Refusal) {
        match place {
            Place::Core => self.core_set.reset(id, refusal),
            Place::Thread(thread) => self.threads[thread].reset(id, refusal),
        }
    }

    /// Resets one connection of an arena, which the core thread owns.
    pub(super) fn reset_slot(&mut self, arena: ConnectionId, id: SlotId, refusal: &Refusal) {
        self.core_set.reset_slot(arena, id, refusal);
    }

    /// Suspends or resumes a connection.
    pub(super) fn suspend(&mut self, place: Place, id: ConnectionId, suspended: bool) {
        match place {
            Place::Core => self.core_set.suspend(id, suspended),
            Place::Thread(thread) => self.threads[thread].suspend(id, suspended),
        }
    }

    /// Takes all connections of the data threads into the core thread's set. Returns their ids, and an error if a
    /// thread does not answer before `deadline`: that one keeps its connections.
    pub(super) fn gather(
        &mut self,
        deadline: Instant,
    ) -> (Vec<ConnectionId>, Result<(), HandoverError>) {
        let began = Instant::now();
        let returned: Vec<_> = self.threads.iter().map(DataThread::return_all).collect();
        let mut ids = Vec::new();
        let mut late = None;
        for (number, returned) in returned.iter().enumerate() {
            let Some(connections) = returned.wait(deadline) else {
                late.get_or_insert(number);
                continue;
            };
            for adopted in connections {
                ids.push(adopted.id);
                self.core_set.adopt(adopted);
            }
        }
        let in_time = match late {
            None => Ok(()),
            Some(number) => Err(HandoverError::TimedOut {
                what: format!("the return of the connections of the data thread {number}"),
                limit: deadline.saturating_duration_since(began),
            }),
        };
        (ids, in_time)
    }

    /// Handles an event of one of the core thread's connections.
    pub(super) fn handle_event(&mut self, event: &Event) {
        self.core_set.handle_event(event);
    }

    /// Whether one of the core thread's connections waits for its turn.
    pub(super) fn has_ready(&self) -> bool {
        self.core_set.has_ready()
    }

    /// Gives a turn to each of the core thread's connections that waits for one.
    pub(super) fn run_turns(&mut self) {
        self.core_set.run_turns();
    }

    /// The next report of the core thread's own set.
    pub(super) fn next_report(&mut self) -> Option<Report> {
        self.core_set.next_report()
    }

    /// The core thread's own connections.
    pub(super) fn core_set(&self) -> &ConnectionSet {
        &self.core_set
    }

    /// The core thread's own connections, to add those of a broker before.
    pub(super) fn core_set_mut(&mut self) -> &mut ConnectionSet {
        &mut self.core_set
    }

    /// Resets all connections of the core thread's set.
    pub(super) fn reset_all(&self, refusal: &Refusal) {
        self.core_set.reset_all(refusal);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_yield_that_takes_long_is_not_repeated_for_a_second() {
        let mut yields = Yields::default();
        let mut now = Instant::now();
        assert!(yields.is_due(now));
        assert!(!yields.is_due(now), "a burst");
        let mut after = |time, yields: &mut Yields| {
            now += time;
            yields.is_due(now).then_some(now)
        };
        let later = after(Duration::from_millis(1), &mut yields).unwrap();
        yields.took(Duration::from_micros(20), later);
        let later = after(Duration::from_millis(1), &mut yields).unwrap();
        yields.took(Duration::from_millis(15), later);
        assert_eq!(after(Duration::from_millis(999), &mut yields), None);
        assert!(after(Duration::from_millis(1), &mut yields).is_some());
    }
}
