//! Data threads.

use std::io;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, Sender, TryRecvError};
use std::time::{Duration, Instant};

use hvsock_fabric::{ConnectionId, Refusal};
use mio::{Events, Poll, Token, Waker};

use super::returned::Returned;
use super::set::{Adopted, ConnectionSet, Report};
use super::spin::Spin;
use crate::data_path::ReportSender;
use crate::sandbox;
use crate::watchdog::{self, Step};

/// The token of the thread's waker.
const WAKE: Token = Token(usize::MAX);

/// A handle to a data thread. Dropping it resets the thread's connections and joins it.
pub(crate) struct DataThread {
    commands: Sender<ThreadCommand>,
    waker: Waker,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl DataThread {
    /// Starts a thread that reports to `reports`.
    pub(crate) fn start(index: usize, reports: ReportSender<Report>) -> io::Result<Self> {
        let (commands, queue) = mpsc::channel();
        let poll = Poll::new()?;
        let waker = Waker::new(poll.registry(), WAKE)?;
        let set = ConnectionSet::new(poll.registry().try_clone()?, 0, u64::MAX);
        let thread = std::thread::Builder::new()
            .name(format!("hvsock-data-{index}"))
            .spawn(move || {
                run(poll, set, &queue, &reports);
            })?;
        Ok(Self {
            commands,
            waker,
            thread: Some(thread),
        })
    }

    /// Moves a connection to this thread.
    pub(crate) fn adopt(&self, adopted: Adopted) {
        self.command(ThreadCommand::Adopt(Box::new(adopted)));
    }

    /// Resets a connection and sends both ends the reason. The thread then sends
    /// [`Report::Closed`].
    pub(crate) fn reset(&self, connection: ConnectionId, refusal: Refusal) {
        self.command(ThreadCommand::Reset {
            connection,
            refusal,
        });
    }

    /// Suspends or resumes a connection.
    pub(crate) fn suspend(&self, connection: ConnectionId, suspended: bool) {
        self.command(ThreadCommand::Suspend {
            connection,
            suspended,
        });
    }

    /// Asks for all connections of this thread, after their reports: see [`Returned::wait`]. It has none then.
    pub(crate) fn return_all(&self) -> Arc<Returned> {
        let returned = Arc::<Returned>::default();
        if !self.command(ThreadCommand::ReturnAll(Arc::clone(&returned))) {
            drop(returned.put(Vec::new()));
        }
        returned
    }

    /// Returns whether the thread is there.
    fn command(&self, command: ThreadCommand) -> bool {
        // The thread ends only on `Stop`, so sending fails only if it panicked. Its connections are
        // closed by then.
        let is_sent = self.commands.send(command).is_ok();
        if is_sent {
            let _ = self.waker.wake();
        }
        is_sent
    }
}

impl Drop for DataThread {
    fn drop(&mut self) {
        self.command(ThreadCommand::Stop);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

enum ThreadCommand {
    Adopt(Box<Adopted>),
    Reset {
        connection: ConnectionId,
        refusal: Refusal,
    },
    Suspend {
        connection: ConnectionId,
        suspended: bool,
    },
    ReturnAll(Arc<Returned>),
    Stop,
}

/// The event loop of a data thread.
fn run(
    mut poll: Poll,
    mut set: ConnectionSet,
    commands: &Receiver<ThreadCommand>,
    reports: &ReportSender<Report>,
) {
    let _watched = reports.watch().enter();
    let mut events = Events::with_capacity(1024);
    let processors = std::thread::available_parallelism().map_or(1, Into::into);
    let mut spin = Spin::new(processors);
    // The number of processors was read from files.
    sandbox::enter(sandbox::Kind::Data);
    loop {
        watchdog::wait();
        let waited = wait(&mut poll, &mut events, &mut set, &mut spin);
        watchdog::begin(Step::Events);
        match waited {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            // epoll_wait fails otherwise only for a descriptor that is not an epoll instance.
            Err(_) => return,
        }
        for event in &events {
            if event.token() == WAKE {
                if !apply_commands(&mut set, commands, reports) {
                    set.reset_all(&Refusal::Reset {
                        cause: "the broker has stopped".into(),
                    });
                    return;
                }
            } else {
                set.handle_event(event);
            }
        }
        watchdog::step(Step::Connections);
        set.run_turns();
        watchdog::step(Step::Reports);
        send_reports(&mut set, reports);
    }
}

fn send_reports(set: &mut ConnectionSet, reports: &ReportSender<Report>) {
    while let Some(report) = set.next_report() {
        reports.send(report);
    }
}

/// Waits for events, at first by busy-polling. Does not wait while a connection is in the run queue.
fn wait(
    poll: &mut Poll,
    events: &mut Events,
    set: &mut ConnectionSet,
    spin: &mut Spin,
) -> io::Result<()> {
    let moved = set.take_moved();
    if set.has_ready() {
        return poll.poll(events, Some(Duration::ZERO));
    }
    let limit = spin.limit(moved);
    let start = Instant::now();
    while start.elapsed() < limit {
        poll.poll(events, Some(Duration::ZERO))?;
        if !events.is_empty() {
            spin.waited(start.elapsed());
            return Ok(());
        }
    }
    let result = poll.poll(events, None);
    spin.waited(start.elapsed());
    result
}

/// Applies the queued commands; `false` to stop the thread.
fn apply_commands(
    set: &mut ConnectionSet,
    commands: &Receiver<ThreadCommand>,
    reports: &ReportSender<Report>,
) -> bool {
    loop {
        match commands.try_recv() {
            Ok(ThreadCommand::Adopt(adopted)) => set.adopt(*adopted),
            Ok(ThreadCommand::Reset {
                connection,
                refusal,
            }) => set.reset(connection, refusal),
            Ok(ThreadCommand::Suspend {
                connection,
                suspended,
            }) => set.suspend(connection, suspended),
            Ok(ThreadCommand::ReturnAll(returned)) => {
                send_reports(set, reports);
                // Those that nobody waits for any more go on here.
                for adopted in returned.put(set.release_all()) {
                    set.adopt(adopted);
                }
            }
            Ok(ThreadCommand::Stop) | Err(TryRecvError::Disconnected) => return false,
            Err(TryRecvError::Empty) => return true,
        }
    }
}
