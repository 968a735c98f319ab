//! The calls that wait, and when to look whether they still do.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::{Deref, DerefMut};
use std::time::{Duration, Instant};

use hvsock_sys::seccomp::Notification;

/// When the thread of a call that begins to wait is looked at first.
const FIRST_CHECK: Duration = Duration::from_millis(5);
/// How often a thread is looked at whose call has waited for less than this time. Servers that wait for long then cost
/// little.
const CHECK_EVERY: [(Duration, Duration); 2] = [
    (Duration::from_secs(1), Duration::from_millis(10)),
    (Duration::from_secs(10), Duration::from_millis(50)),
];
/// How often the thread of any other call.
const CHECK_OLD_EVERY: Duration = Duration::from_millis(200);
/// With more calls than this, each is looked at less often: a look takes some 10 microseconds of processor time.
const OFTEN: u32 = 256;
/// For how many times as long as a look at some calls took others get answers before the next one.
const REST: u32 = 4;

/// A call that waits for something other than a short answer of the broker.
#[derive(Debug)]
pub(crate) struct Wait {
    pub(crate) call: Notification,
    pub(crate) since: Instant,
    pub(crate) kind: WaitKind,
}

/// What a call waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum WaitKind {
    /// A connection of the listening socket with this inode, until a time (`SO_RCVTIMEO`).
    Accept { inode: u64, until: Option<Instant> },
    /// The exchange with this number, which a signal cancels.
    Connect { exchange: u64 },
    /// The result of the exchange that another call began.
    Joined { exchange: u64 },
}

/// The calls that wait, by number.
#[derive(Debug, Default)]
pub(crate) struct Waits {
    waits: BTreeMap<u64, Wait>,
    /// When to look at which one. Those that wait no more stay until then.
    checks: BTreeSet<(Instant, u64)>,
    /// Not to look at any before.
    rest_until: Option<Instant>,
}

impl Waits {
    /// Adds a call.
    pub(crate) fn insert(&mut self, number: u64, wait: Wait) {
        let next = wait.since + FIRST_CHECK;
        self.check_at(number, &wait, next);
        self.waits.insert(number, wait);
    }

    /// When the next call is to be looked at.
    pub(crate) fn next_check(&self) -> Option<Instant> {
        let first = self.checks.first().map(|(at, _)| *at)?;
        Some(self.rest_until.map_or(first, |rest| rest.max(first)))
    }

    /// Some were looked at from `since` until `now`. Others get answers for several times as long.
    pub(crate) fn looked(&mut self, since: Instant, now: Instant) {
        let took = now.saturating_duration_since(since);
        self.rest_until = Some(now + took * REST);
    }

    /// Takes the next call that is to be looked at now, if there is one.
    pub(crate) fn pop_due(&mut self, now: Instant) -> Option<u64> {
        if self.rest_until.is_some_and(|rest| rest > now) {
            return None;
        }
        loop {
            let first = *self.checks.first().filter(|(at, _)| *at <= now)?;
            self.checks.remove(&first);
            if self.waits.contains_key(&first.1) {
                return Some(first.1);
            }
        }
    }

    /// Looks at a call again, which is in the table, after a while.
    pub(crate) fn check_later(&mut self, number: u64, now: Instant) {
        let Some(wait) = self.waits.remove(&number) else {
            return;
        };
        let every = check_every(now.saturating_duration_since(wait.since));
        let count = u32::try_from(self.waits.len()).unwrap_or(u32::MAX);
        let next = now + every * (count / OFTEN).max(1);
        self.check_at(number, &wait, next);
        self.waits.insert(number, wait);
    }

    fn check_at(&mut self, number: u64, wait: &Wait, next: Instant) {
        let at = wait.kind.until().map_or(next, |until| until.min(next));
        self.checks.insert((at, number));
    }
}

/// How often to look at the thread of a call that has waited for this time.
fn check_every(age: Duration) -> Duration {
    let young = CHECK_EVERY.iter().find(|(until, _)| age < *until);
    young.map_or(CHECK_OLD_EVERY, |(_, every)| *every)
}

impl WaitKind {
    /// Until when.
    pub(crate) fn until(self) -> Option<Instant> {
        match self {
            Self::Accept { until, .. } => until,
            Self::Connect { .. } | Self::Joined { .. } => None,
        }
    }
}

impl Deref for Waits {
    type Target = BTreeMap<u64, Wait>;

    fn deref(&self) -> &Self::Target {
        &self.waits
    }
}

impl DerefMut for Waits {
    fn deref_mut(&mut self) -> &mut Self::Target {
        &mut self.waits
    }
}

#[cfg(test)]
mod tests {
    use hvsock_sys::seccomp::{Action, Filter, Rule, spawn};

    use super::*;

    #[test]
    fn a_thread_is_looked_at_less_often_the_longer_its_call_waits() {
        let every = |seconds| check_every(Duration::from_secs_f64(seconds)).as_millis();
        let found = [0.0, 0.9, 1.0, 9.9, 10.0, 1e6].map(every);
        assert_eq!(found, [10, 10, 50, 50, 200, 200]);
    }

    /// A call of a program that has ended.
    fn call() -> Notification {
        let rule = Rule {
            syscall: libc::SYS_listen,
            args: &[],
            action: Action::Notify,
        };
        let filter = Filter::build(&[rule]).unwrap();
        let mut command = std::process::Command::new("python3");
        command.args(["-c", "import socket; socket.socket().listen(1)"]);
        let mut spawned = spawn(command, &filter).unwrap();
        let call = loop {
            if let Some(call) = spawned.listener.receive().unwrap() {
                break call;
            }
            std::thread::yield_now();
        };
        spawned.child.kill().unwrap();
        spawned.child.wait().unwrap();
        call
    }

    #[test]
    fn many_waiting_calls_take_no_more_of_the_processor_than_some_hundred() {
        let (call, start) = (call(), Instant::now());
        for count in [1, 100, 10_000] {
            let mut waits = Waits::default();
            for number in 0..count {
                let kind = WaitKind::Connect { exchange: 0 };
                let (since, number) = (start, number);
                waits.insert(number, Wait { call, since, kind });
            }
            let (mut looks, mut now) = (0, start);
            let end = start + Duration::from_secs(10);
            while let Some((at, _)) = waits.checks.first().copied() {
                now = now.max(at);
                if now > end {
                    break;
                }
                let number = waits.pop_due(now).unwrap();
                waits.check_later(number, now);
                looks += 1;
            }
            // 20 in a second for each, and more at first.
            assert!(looks >= 10 * count.min(256), "{count}: {looks}");
            assert!(looks <= 300 * count.min(600), "{count}: {looks}");
            // Calls that wait no more are forgotten.
            waits.clear();
            assert_eq!(waits.pop_due(now + Duration::from_secs(60)), None);
            assert!(waits.checks.is_empty());
        }
    }

    #[test]
    fn others_get_answers_for_most_of_the_time_however_many_calls_wait() {
        let (call, start) = (call(), Instant::now());
        let mut waits = Waits::default();
        for number in 0..2 {
            let (since, kind) = (start, WaitKind::Connect { exchange: 0 });
            waits.insert(number, Wait { call, since, kind });
        }
        let first = start + FIRST_CHECK;
        assert_eq!(waits.next_check(), Some(first));
        assert_eq!(waits.pop_due(first), Some(0));
        let looked = first + Duration::from_millis(3);
        waits.looked(first, looked);
        let next = looked + Duration::from_millis(12);
        assert_eq!(waits.next_check(), Some(next));
        assert_eq!(waits.pop_due(next - Duration::from_millis(1)), None);
        assert_eq!(waits.pop_due(next), Some(1));
    }

    #[test]
    fn a_call_with_a_time_is_looked_at_then() {
        let (call, since) = (call(), Instant::now());
        let until = since + Duration::from_millis(12);
        let mut waits = Waits::default();
        let kind = WaitKind::Accept {
            inode: 1,
            until: Some(until),
        };
        waits.insert(1, Wait { call, since, kind });
        assert_eq!(waits.pop_due(since), None);
        let first = since + FIRST_CHECK;
        assert_eq!(waits.pop_due(first), Some(1));
        waits.check_later(1, first);
        assert_eq!(waits.pop_due(until - Duration::from_millis(1)), None);
        assert_eq!(waits.pop_due(until), Some(1));
    }
}
