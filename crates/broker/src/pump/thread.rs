//! The event loop of a data thread.

use std::io;
use std::sync::mpsc::{Receiver, TryRecvError};
use std::time::Duration;

use hvsock_fabric::Refusal;
use mio::{Events, Poll, Token};

use super::set::ConnectionSet;
use super::{Report, ThreadCommand};
use crate::data_path::ReportSender;

/// The token of the thread's waker.
pub(super) const WAKE: Token = Token(usize::MAX);

pub(super) fn run(
    mut poll: Poll,
    mut set: ConnectionSet,
    commands: &Receiver<ThreadCommand>,
    reports: &ReportSender<Report>,
) {
    let mut events = Events::with_capacity(1024);
    loop {
        let timeout = set.has_ready().then_some(Duration::ZERO);
        match poll.poll(&mut events, timeout) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            // epoll_wait fails otherwise only for a descriptor that is not an epoll instance.
            Err(_) => return,
        }
        for event in &events {
            if event.token() == WAKE {
                if !apply_commands(&mut set, commands) {
                    set.reset_all(&Refusal::Reset {
                        cause: "the broker has stopped".into(),
                    });
                    return;
                }
            } else {
                set.handle_event(event);
            }
        }
        set.run_turns();
        while let Some(report) = set.next_report() {
            reports.send(report);
        }
    }
}

/// Applies the queued commands; `false` to stop the thread.
fn apply_commands(set: &mut ConnectionSet, commands: &Receiver<ThreadCommand>) -> bool {
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
            Ok(ThreadCommand::Stop) | Err(TryRecvError::Disconnected) => return false,
            Err(TryRecvError::Empty) => return true,
        }
    }
}
