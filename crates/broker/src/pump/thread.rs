//! The loop of a data thread.

use std::io;
use std::sync::mpsc::{Receiver, TryRecvError};
use std::time::Duration;

use hvsock_fabric::Refusal;
use mio::{Events, Poll, Token};

use super::set::ConnectionSet;
use super::{Command, Reports};

/// The token of the thread's waker.
pub(super) const WAKE: Token = Token(usize::MAX);

pub(super) fn run(
    mut poll: Poll,
    mut set: ConnectionSet,
    commands: &Receiver<Command>,
    reports: &Reports,
) {
    let mut events = Events::with_capacity(1024);
    loop {
        let timeout = set.has_ready().then_some(Duration::ZERO);
        match poll.poll(&mut events, timeout) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            // epoll_wait fails otherwise only for a descriptor that is not an epoll.
            Err(_) => return,
        }
        for event in &events {
            if event.token() == WAKE {
                if !obey(&mut set, commands) {
                    set.reset_all(&Refusal::Reset {
                        cause: "the broker has stopped".into(),
                    });
                    return;
                }
            } else {
                set.note(event);
            }
        }
        set.turns();
        while let Some(report) = set.next_report() {
            reports.send(report);
        }
    }
}

/// Carries commands out; whether to go on.
fn obey(set: &mut ConnectionSet, commands: &Receiver<Command>) -> bool {
    loop {
        match commands.try_recv() {
            Ok(Command::Adopt(adopted)) => set.adopt(*adopted),
            Ok(Command::Cut {
                connection,
                refusal,
            }) => set.cut(connection, refusal),
            Ok(Command::Suspend {
                connection,
                suspended,
            }) => set.suspend(connection, suspended),
            Ok(Command::Stop) | Err(TryRecvError::Disconnected) => return false,
            Err(TryRecvError::Empty) => return true,
        }
    }
}
