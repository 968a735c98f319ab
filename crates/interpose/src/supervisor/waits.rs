//! Calls that wait, and the signals and times that end them.
//!
//! A thread whose call was received sleeps until it is answered. A signal that it would handle does not end the
//! call, but changes the state in which the thread sleeps, which is looked at regularly.

use std::time::Instant;

use hvsock_sys::remote::{self, ThreadState};

use super::core::Core;
use super::waiting::WaitKind;
use crate::model::Errno;

/// How many calls are looked at before others get answers.
const AT_ONCE: usize = 16;

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
        self.waits.next_check()
    }

    /// Ends waits whose thread has a signal, whose time is over, or that are gone.
    pub(crate) fn check_waits(&mut self, now: Instant) {
        let mut looked = 0;
        while looked < AT_ONCE
            && let Some(number) = self.waits.pop_due(now)
        {
            looked += 1;
            match self.end_of(number, now) {
                Some(end) => self.end_wait(number, end),
                None => self.waits.check_later(number, now),
            }
        }
        if looked > 0 {
            self.waits.looked(now, Instant::now());
        }
    }

    fn end_of(&self, number: u64, now: Instant) -> Option<End> {
        let wait = self.waits.get(&number)?;
        let waits_killable = self.program.waits_killable();
        match remote::thread_state(wait.call.thread) {
            // Runtimes of containers do not say whether threads wait so.
            Ok(ThreadState::Uninterruptible)
                if waits_killable || self.program.is_valid(&wait.call) =>
            {
                Some(End::Signal)
            }
            Ok(ThreadState::Gone) => Some(End::Gone),
            // The kernel itself ends calls that a signal interrupts.
            _ if !waits_killable && !self.program.is_valid(&wait.call) => Some(End::Gone),
            _ if wait.kind.until().is_some_and(|until| until <= now) => Some(End::TimedOut),
            _ => None,
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
