//! The loop: calls of the program, answers of the broker, and time.

use std::io;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use hvsock_sys::event::Ready;
use hvsock_sys::seccomp::Notification;

use super::connects::{begin_anew, no_answer};
use super::core::{CLOSED, Core, STOP, unreachable};
use super::exchange::{Exchange, Purpose};
use crate::broker::{Closed, Message};
use crate::model::Errno;
use hvsock_endpoint::BrokerMessage;

/// `socket` on i386, x32 and 32-bit Arm.
const FOREIGN_SOCKET: [i64; 3] = [359, 0x4000_0029, 281];

/// The events that are taken at once.
const EVENTS: usize = 64;

/// The other calls that are decided at most before the next connect is.
const MOST_PASSED: u32 = 64;

impl Core {
    /// Serves the program until no process of it is left, or until the owner of the supervisor ends it.
    pub(crate) fn serve(&mut self) -> io::Result<()> {
        let mut ready = Vec::with_capacity(EVENTS);
        let mut passed = 0;
        loop {
            let timeout = match self.connects.is_empty() {
                true => self.timeout(),
                false => Some(Duration::ZERO),
            };
            let awake = self.program.wait(&self.set, timeout)?;
            if awake.call {
                match self.program.receive_ready()? {
                    Some(call) if call.is_native && call.syscall == libc::SYS_connect => {
                        self.connects.push_back(call);
                    }
                    Some(call) => {
                        passed += 1;
                        self.decide(&call);
                    }
                    None if awake.hung_up => return Ok(()),
                    None => {}
                }
            } else if awake.hung_up && self.connects.is_empty() {
                return Ok(());
            }
            // Those that accept, and make room for the connects thereby, come first.
            if (!awake.call || passed >= MOST_PASSED)
                && let Some(call) = self.connects.pop_front()
            {
                passed = 0;
                self.decide(&call);
            }
            if awake.others && self.serve_others(&mut ready)? {
                return Ok(());
            }
            let now = Instant::now();
            for call in std::mem::take(&mut self.again) {
                self.decide(&call);
            }
            self.check_held(now);
            self.check_exchanges(now);
            self.check_waits(now);
            self.prepared.expire(now);
            if now >= self.probes.next() {
                let was_all = match self.must_probe() {
                    true => self.probe_bound(),
                    false => true,
                };
                self.probes.done(now, Instant::now(), was_all);
            }
            self.sweep(now);
        }
    }

    /// Handles what is ready besides calls. Returns whether the owner of the supervisor ends it.
    fn serve_others(&mut self, ready: &mut Vec<Ready>) -> io::Result<bool> {
        self.set.wait(ready, Some(Duration::ZERO))?;
        for Ready { number, .. } in ready {
            match *number {
                STOP => return Ok(true),
                CLOSED => self.remove_ended(),
                number => match self.listeners.get(&number) {
                    Some(inode) => self.receive_incoming(*inode),
                    None => self.progress(number),
                },
            }
        }
        Ok(false)
    }

    /// How long there is nothing to do.
    fn timeout(&self) -> Option<Duration> {
        let exchanges = self
            .exchanges
            .values()
            .map(|exchange| exchange.retry_at.unwrap_or(exchange.deadline));
        let probe = self.must_probe().then(|| self.probes.next());
        let sweep = self.sweep.next(self.sockets.len());
        let next = exchanges.chain(self.next_wait_check());
        let next = next
            .chain(probe)
            .chain(sweep)
            .chain(self.prepared.expires())
            .chain(self.backlogs.next());
        let next = next.min()?;
        Some(next.saturating_duration_since(Instant::now()))
    }

    /// Decides a call.
    fn decide(&mut self, call: &Notification) {
        if !call.is_native {
            return self.decide_foreign(call);
        }
        let args = call.args;
        match call.syscall {
            libc::SYS_socket => self.socket(call),
            libc::SYS_ioctl => self.local_cid(call),
            #[cfg(target_arch = "x86_64")]
            libc::SYS_open => self.open_file(call, args[0], args[1]),
            libc::SYS_openat => self.open_file(call, args[1], args[2]),
            libc::SYS_connect | libc::SYS_accept | libc::SYS_accept4 => {
                match self.duplicate_of(call) {
                    Some((inode, data)) => self.decide_on_data(call, inode, data),
                    None => self.program.native(call),
                }
            }
            _ => match self.socket_of(call) {
                Some(inode) => self.decide_on_socket(call, inode),
                None => self.program.native(call),
            },
        }
    }

    /// Decides a call of i386, x32 or 32-bit Arm, which only filters of container runtimes notify of. The
    /// sockets of such programs are not emulated.
    fn decide_foreign(&self, call: &Notification) {
        match FOREIGN_SOCKET.contains(&call.syscall) {
            // The kernel might have the family, which the container must not use.
            true => self.program.answer(call, Err(Errno::EAFNOSUPPORT)),
            false => self.program.native(call),
        }
    }

    fn decide_on_socket(&mut self, call: &Notification, inode: u64) {
        if self.defer_until_settled(call, inode) {
            return;
        }
        match call.syscall {
            libc::SYS_bind => self.bind(call, inode),
            libc::SYS_listen => self.listen(call, inode),
            libc::SYS_getsockname => self.name(call, inode),
            libc::SYS_getpeername => self.peer_name(call, inode),
            libc::SYS_getsockopt => self.option(call, inode),
            libc::SYS_shutdown => self.shutdown(call, inode),
            libc::SYS_setsockopt => self.set_option(call, inode),
            _ => self.program.native(call),
        }
    }

    /// Decides a call that needs the program's Unix socket.
    fn decide_on_data(&mut self, call: &Notification, inode: u64, data: Option<OwnedFd>) {
        if self.defer_until_settled(call, inode) {
            return;
        }
        let data = match data {
            Some(data) => Ok(data),
            None => self.program.duplicate(call, inode),
        };
        let data = match data {
            Ok(data) => data,
            Err(errno) => return self.program.answer(call, Err(errno)),
        };
        match call.syscall {
            libc::SYS_accept => self.accept(call, inode, &data, 0),
            libc::SYS_accept4 => self.accept(call, inode, &data, call.args[3] as i32),
            _ => self.connect(call, inode, data),
        }
    }

    /// Takes what the broker has sent in an exchange.
    fn progress(&mut self, number: u64) {
        while let Some(mut exchange) = self.exchanges.remove(&number) {
            let received = match &exchange.connection {
                Some(connection) => connection.receive(),
                None => Ok(None),
            };
            let goes_on = match received {
                Ok(None) => {
                    self.exchanges.insert(number, exchange);
                    return;
                }
                Ok(Some(message)) => self.answered(number, exchange, message),
                Err(Closed) if begin_anew(&mut exchange) => Some(exchange),
                Err(Closed) => self.unanswered(exchange, no_answer_of),
            };
            if let Some(exchange) = goes_on {
                self.exchanges.insert(number, exchange);
            }
        }
    }

    fn answered(&mut self, number: u64, exchange: Exchange, message: Message) -> Option<Exchange> {
        match &exchange.purpose {
            Purpose::Connect(_) => self.connect_answer(number, exchange, message),
            Purpose::Bind(_) => self.bind_answer(exchange, &message),
            Purpose::Listen(_) => self.listen_answer(number, exchange, message),
            Purpose::Register(_) => self.register_answer(exchange, message),
            Purpose::PeerCid(partition) => {
                let cid = match message.message {
                    BrokerMessage::Cid { cid } => Some(cid),
                    _ => None,
                };
                self.cid_answer(*partition, cid);
                None
            }
        }
    }

    /// The broker does not answer an exchange. Returns it if it goes on.
    fn unanswered(
        &mut self,
        exchange: Exchange,
        errno: impl FnOnce(&Purpose) -> Errno,
    ) -> Option<Exchange> {
        let errno = errno(&exchange.purpose);
        match &exchange.purpose {
            Purpose::Connect(_) => {
                self.finish_connect(exchange, Err(errno));
                None
            }
            Purpose::Bind(binding) => {
                self.end_bind(binding, false);
                None
            }
            Purpose::Listen(_) | Purpose::Register(_) => self.listen_failed(exchange, errno),
            Purpose::PeerCid(partition) => {
                self.cid_answer(*partition, None);
                None
            }
        }
    }

    /// Opens exchanges that wait for the broker's queue, and ends those whose time is over.
    fn check_exchanges(&mut self, now: Instant) {
        let due = |exchange: &Exchange| exchange.retry_at.unwrap_or(exchange.deadline) <= now;
        let numbers: Vec<u64> = self
            .exchanges
            .iter()
            .filter(|(_, exchange)| due(exchange) || exchange.deadline <= now)
            .map(|(number, _)| *number)
            .collect();
        for number in numbers {
            let Some(mut exchange) = self.exchanges.remove(&number) else {
                continue;
            };
            let goes_on = if exchange.deadline <= now {
                self.unanswered(exchange, |_| Errno::ETIMEDOUT)
            } else {
                match self.open(number, &mut exchange, now) {
                    Ok(()) => Some(exchange),
                    Err(error) => {
                        let errno = unreachable(&error);
                        self.unanswered(exchange, |_| errno)
                    }
                }
            };
            if let Some(exchange) = goes_on {
                self.exchanges.insert(number, exchange);
            }
        }
    }
}

/// What a call fails with when the broker ends without an answer.
fn no_answer_of(purpose: &Purpose) -> Errno {
    match purpose {
        Purpose::Connect(connecting) => no_answer(connecting.address.family()),
        _ => Errno::ENODEV,
    }
}
