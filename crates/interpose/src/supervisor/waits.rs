//! Calls that wait, and the signals and times that end them.
//!
//! A thread whose call was received sleeps until it is answered. A signal that it would handle does not end the
//! call, but changes the state in which the thread sleeps, which is looked at regularly.

use std::time::{Duration, Instant};

use hvsock_sys::remote::{self, ThreadState};

use super::core::{Core, Wait, WaitKind};
use crate::model::Errno;

/// How often a thread is looked at whose call is young, and how often later.
const CHECK_EVERY: Duration = Duration::from_millis(10);
const CHECK_OLD_EVERY: Duration = Duration::from_millis(50);
/// When a call is no longer young.
const YOUNG: Duration = Duration::from_secs(1);

/// Why a call stops waiting.
#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    Signal,
    TimedOut,
    Gone,
}

impl Core {
    /// When waits are to be checked next.
    pub(crate) fn next_wait_check(&self) -> Option<Instant> {
        self.waits.values().map(|wait| wait.next_check).min()
    }

    /// Ends waits whose thread has a signal, whose time is over, or that are gone.
    pub(crate) fn check_waits(&mut self, now: Instant) {
        let waits_killable = self.program.waits_killable();
        let mut ended = Vec::new();
        for (number, wait) in &mut self.waits {
            if wait.next_check > now {
                continue;
            }
            let until = match wait.kind {
                WaitKind::Accept { until, .. } => until,
                WaitKind::Connect { .. } | WaitKind::Joined { .. } => None,
            };
            let state = remote::thread_state(wait.call.thread);
            let end = match state {
                // Runtimes of containers do not say whether threads wait so.
                Ok(ThreadState::Uninterruptible)
                    if waits_killable || self.program.is_valid(&wait.call) =>
                {
                    Some(End::Signal)
                }
                Ok(ThreadState::Gone) => Some(End::Gone),
                _ if until.is_some_and(|until| until <= now) => Some(End::TimedOut),
                _ => None,
            };
            match end {
                Some(end) => ended.push((*number, end)),
                None => {
                    let age = now.saturating_duration_since(wait.since);
                    let every = match age < YOUNG {
                        true => CHECK_EVERY,
                        false => CHECK_OLD_EVERY,
                    };
                    wait.next_check = until.map_or(now + every, |until| until.min(now + every));
                }
            }
        }
        if !waits_killable {
            // The kernel itself ends calls that a signal interrupts.
            let is_gone = |wait: &Wait| !self.program.is_valid(&wait.call);
            let gone = self.waits.iter().filter(|(_, wait)| is_gone(wait));
            ended.extend(gone.map(|(number, _)| (*number, End::Gone)));
        }
        for (number, end) in ended {
            self.end_wait(number, end);
        }
    }

    fn end_wait(&mut self, number: u64, end: End) {
        let Some(wait) = self.waits.remove(&number) else {
            return;
        };
        match wait.kind {
            WaitKind::Accept { inode, until } => {
                let entry = self.sockets.get_mut(&inode);
                if let Some(listening) = entry.and_then(|entry| entry.listening.as_mut()) {
                    listening.calls.retain(|call| *call != number);
                }
                match end {
                    End::Gone => {}
                    End::TimedOut => self.program.answer(&wait.call, Err(Errno::EAGAIN)),
                    // With a timeout the call would begin to wait anew.
                    End::Signal if until.is_some() => {
                        self.program.answer(&wait.call, Err(Errno::EINTR));
                    }
                    End::Signal => self.program.restart(&wait.call),
                }
            }
            WaitKind::Connect { exchange } => {
                self.cancel_connect(exchange);
                self.program.answer(&wait.call, Err(Errno::EINTR));
            }
            WaitKind::Joined { .. } => self.program.answer(&wait.call, Err(Errno::EINTR)),
        }
    }
}
