//! The table of emulated sockets, in memory that all processes of one `hvsock run` share.
//!
//! A socket is known by its cookie (`SO_COOKIE`), a number that the kernel gives to each socket and never
//! uses again. A descriptor number says nothing: programs duplicate, inherit and pass descriptors, and close
//! them by calls that nobody can interpose. So `dup`, `fork`, `exec` and `SCM_RIGHTS` need no tracking here.
//!
//! Each slot is a sequence lock over words: a reader copies the words and checks that no writer came between.
//! A writer holds the lock while it computes one new record, and never across a system call. Calls come from signal handlers and
//! processes are killed, so a lock that stays taken for long is taken over.
//!
//! Only processes that the same user started can write to the memory, but nothing in it is trusted to be valid:
//! a record is decoded by [`Record::decode`], which refuses what it does not know.

use std::sync::atomic::{AtomicU64, Ordering, fence};
use std::time::{Duration, Instant};

use hvsock_interpose::preload::TABLE_LEN;

use crate::record::{Record, WORDS};

/// The words of one slot: lock, cookie, stamp, then the record.
const SLOT: usize = 3 + WORDS;
/// The words before the first slot: layout, number of sockets so far, number of ports so far, a random number.
const HEADER: usize = 4;
/// The number of slots. The sockets of closed descriptors leave theirs to others.
const SLOTS: usize = (LEN / size_of::<AtomicU64>() - HEADER) / SLOT;
/// The slots that one cookie may be in.
const PROBES: usize = 16;
/// The length of the table in bytes.
pub const LEN: usize = TABLE_LEN as usize;
/// Says that the memory is a table of this layout. A change of [`Record`] changes it.
const LAYOUT: u64 = 0x6876_7072_656c_0002;

/// The word of the header with the random number.
const RANDOM: usize = 3;

const LOCK: usize = 0;
const COOKIE: usize = 1;
const STAMP: usize = 2;
const RECORD: usize = 3;

/// The first port that needs no privilege.
const FIRST_PORT: u32 = hvsock_interpose::model::LAST_RESERVED_PORT + 1;

/// In a stamp: no process said that it closed the socket.
const OPEN: u64 = 1 << 63;

/// How long a lock may stay taken before it counts as left by a process that was killed, or as that of the code which
/// this signal handler interrupted. Its holder needs less than a microsecond of processor time.
const TAKE_OVER: Duration = Duration::from_millis(100);

/// The table of emulated sockets.
#[derive(Clone, Copy)]
pub struct Table {
    words: &'static [AtomicU64],
}

impl Table {
    /// The table in zeroed or already used memory of [`LEN`] bytes. `None` if it is too short, or of another
    /// version of this library.
    pub fn new(words: &'static [AtomicU64]) -> Option<Self> {
        let layout = words.first()?;
        let found = layout.compare_exchange(0, LAYOUT, Ordering::AcqRel, Ordering::Acquire);
        let known = matches!(found, Ok(_) | Err(LAYOUT));
        if !known || size_of_val(words) < LEN {
            return None;
        }
        // The first process decides.
        let random = &words[RANDOM];
        let _ = random.compare_exchange(0, some_number(), Ordering::Relaxed, Ordering::Relaxed);
        Some(Self { words })
    }

    /// A number that no other table has.
    pub fn random(self) -> u64 {
        self.words[RANDOM].load(Ordering::Relaxed)
    }

    /// Whether there has been any socket. While there is none, each call is that of a foreign socket.
    pub fn is_in_use(self) -> bool {
        self.words[1].load(Ordering::Relaxed) != 0
    }

    /// The record of the socket with this cookie.
    pub fn find(self, cookie: u64) -> Option<Record> {
        self.slots(cookie).find_map(|slot| slot.read(cookie))
    }

    /// Adds a socket, or replaces its record. If the slots for it are taken, the oldest one is lost: that of a closed
    /// socket, if there is one.
    pub fn insert(self, cookie: u64, record: &Record) {
        let stamp = self.words[1].fetch_add(1, Ordering::AcqRel) + 1;
        let oldest = self.slots(cookie).min_by_key(|slot| slot.rank(cookie));
        if let Some(slot) = oldest {
            let taken = slot.lock();
            slot.words[COOKIE].store(cookie, Ordering::Relaxed);
            slot.words[STAMP].store(stamp | OPEN, Ordering::Relaxed);
            slot.write(record);
            slot.unlock(taken);
        }
    }

    /// Changes the record of a socket in one step: `change` gets the present record, and its result is the
    /// caller's. `None` if the socket is not in the table.
    pub fn update<T>(self, cookie: u64, change: impl FnOnce(&mut Record) -> T) -> Option<T> {
        let slot = self.slots(cookie).find(|slot| slot.holds(cookie))?;
        let taken = slot.lock();
        let mut record = match slot.holds(cookie) {
            true => slot.decode(),
            false => None,
        };
        let result = record.as_mut().map(change);
        if let Some(record) = record {
            slot.write(&record);
        }
        slot.unlock(taken);
        result
    }

    /// A port for a socket that has none. Each is another one for long.
    pub fn ephemeral_port(self) -> u32 {
        let count = self.words[2].fetch_add(1, Ordering::Relaxed);
        // Neighbouring runs do not try the same ports.
        let first = u64::from(
            rustix::process::getpid()
                .as_raw_nonzero()
                .get()
                .unsigned_abs(),
        );
        let ports = u64::from(u32::MAX - 1 - FIRST_PORT);
        let port = first.wrapping_mul(0x9e37_79b9).wrapping_add(count) % ports;
        FIRST_PORT + u32::try_from(port).unwrap_or(0)
    }

    /// Says that a process closed its last descriptor of the socket, whose slot is used again before others. Until
    /// then the socket stays known to processes that still have it.
    pub fn closed(self, cookie: u64) {
        if let Some(slot) = self.slots(cookie).find(|slot| slot.holds(cookie)) {
            slot.words[STAMP].fetch_and(!OPEN, Ordering::Relaxed);
        }
    }

    fn slots(self, cookie: u64) -> impl Iterator<Item = Slot> {
        // Cookies are consecutive for the most part, so neighbours do not share their slots.
        let first = cookie.wrapping_mul(0x9e37_79b9_7f4a_7c15) as usize % SLOTS;
        (0..PROBES).filter_map(move |probe| {
            let begin = HEADER + (first + probe) % SLOTS * SLOT;
            let words = self.words.get(begin..begin + SLOT)?;
            Some(Slot { words })
        })
    }
}

#[derive(Clone, Copy)]
struct Slot {
    words: &'static [AtomicU64],
}

impl Slot {
    fn holds(self, cookie: u64) -> bool {
        self.words[COOKIE].load(Ordering::Relaxed) == cookie
    }

    /// The slot with the lowest rank is used for a new record of `cookie`: the one that has it, an empty one, one of a
    /// closed socket, the oldest.
    fn rank(self, cookie: u64) -> (u8, u64) {
        match self.words[COOKIE].load(Ordering::Relaxed) {
            own if own == cookie => (0, 0),
            0 => (1, 0),
            _ => (2, self.words[STAMP].load(Ordering::Relaxed)),
        }
    }

    /// The record, if it is that of this cookie.
    fn read(self, cookie: u64) -> Option<Record> {
        let mut since = None;
        loop {
            let before = self.words[LOCK].load(Ordering::Acquire);
            let holds = self.holds(cookie);
            let words = self.record_words();
            fence(Ordering::Acquire);
            let is_stable = self.words[LOCK].load(Ordering::Relaxed) == before;
            if before.is_multiple_of(2) && is_stable {
                return holds.then(|| Record::decode(&words)).flatten();
            }
            if is_left(&mut since) {
                // A writer was killed. What it wrote is decoded as any other bytes.
                return holds.then(|| Record::decode(&words)).flatten();
            }
        }
    }

    fn record_words(self) -> [u64; WORDS] {
        std::array::from_fn(|i| self.words[RECORD + i].load(Ordering::Relaxed))
    }

    fn decode(self) -> Option<Record> {
        Record::decode(&self.record_words())
    }

    fn write(self, record: &Record) {
        for (word, value) in self.words[RECORD..].iter().zip(record.encode()) {
            word.store(value, Ordering::Relaxed);
        }
    }

    /// Takes the lock and returns its value then, for [`Slot::unlock`].
    fn lock(self) -> u64 {
        let lock = &self.words[LOCK];
        let mut seen = lock.load(Ordering::Relaxed);
        let mut since = None;
        loop {
            // An odd number is a lock that is taken. Adding 2 to it takes it over.
            let (is_free, next) = match seen.is_multiple_of(2) {
                true => (true, seen.wrapping_add(1)),
                false => (is_left(&mut since), seen.wrapping_add(2)),
            };
            if is_free {
                match lock.compare_exchange(seen, next, Ordering::AcqRel, Ordering::Relaxed) {
                    // The words are written after the lock is seen as taken.
                    Ok(_) => {
                        fence(Ordering::Release);
                        return next;
                    }
                    Err(other) => (seen, since) = (other, None),
                }
                continue;
            }
            let now = lock.load(Ordering::Relaxed);
            if now != seen {
                (seen, since) = (now, None);
            }
        }
    }

    /// Releases the lock, unless another writer has taken it over.
    fn unlock(self, taken: u64) {
        let free = taken.wrapping_add(1);
        let lock = &self.words[LOCK];
        let _ = lock.compare_exchange(taken, free, Ordering::Release, Ordering::Relaxed);
    }
}

fn some_number() -> u64 {
    let random = std::collections::hash_map::RandomState::new();
    std::hash::BuildHasher::hash_one(&random, std::process::id())
}

/// Lets the holder of a lock run. Whether it has had the lock for too long, `since` being when that was first seen.
fn is_left(since: &mut Option<Instant>) -> bool {
    rustix::thread::sched_yield();
    since.get_or_insert_with(Instant::now).elapsed() > TAKE_OVER
}

#[cfg(test)]
mod tests {
    use hvsock_interpose::model::{Family, Socket};
    use proptest::prelude::*;

    use super::*;

    fn memory() -> &'static [AtomicU64] {
        let words = LEN / size_of::<AtomicU64>();
        Vec::from_iter((0..words).map(|_| AtomicU64::new(0))).leak()
    }

    fn table() -> Table {
        Table::new(memory()).unwrap()
    }

    fn record(family: Family) -> Record {
        Record::new(Socket::new(family))
    }

    /// The family of a socket in the table.
    fn family(table: Table, cookie: u64) -> Option<Family> {
        table.find(cookie).map(|record| record.socket.family())
    }

    #[test]
    fn a_socket_is_found_by_its_cookie_until_many_others_came_after_it() {
        let table = table();
        assert!(!table.is_in_use());
        for cookie in 1..=1000 {
            table.insert(cookie, &record(Family::Vsock));
        }
        assert!(table.is_in_use());
        assert!((1..=1000).all(|cookie| family(table, cookie) == Some(Family::Vsock)));
        assert!(table.find(1001).is_none() && table.find(0).is_none());
        table.insert(7, &record(Family::HyperV));
        assert_eq!(family(table, 7), Some(Family::HyperV));
        assert_eq!(family(table, 8), Some(Family::Vsock));
    }

    #[test]
    fn a_full_table_loses_closed_sockets_before_others_and_old_ones_before_new_ones() {
        let table = table();
        let many = SLOTS as u64 * 2;
        for cookie in 1..=many {
            table.insert(cookie, &record(Family::Vsock));
            if cookie > 10 {
                table.closed(cookie);
            }
        }
        assert!((1..=10).all(|cookie| table.find(cookie).is_some()));
        assert!(table.find(many).is_some());
        let lost = (11..=many).filter(|cookie| table.find(*cookie).is_none());
        assert!(lost.count() >= SLOTS);
    }

    #[test]
    fn memory_of_another_version_and_short_memory_are_no_table() {
        assert!(Table::new(&memory()[1..]).is_none());
        let other = memory();
        other[0].store(LAYOUT + 1, Ordering::Relaxed);
        assert!(Table::new(other).is_none());
        let used = memory();
        assert!(Table::new(used).is_some() && Table::new(used).is_some());
    }

    #[test]
    fn changes_of_many_threads_are_each_one_step() {
        let table = table();
        let cookie = 99;
        table.insert(cookie, &record(Family::Vsock));
        let change = |record: &mut Record| {
            let before = record.control.map_or(0, |control| control.cookie);
            let fd = i32::try_from(before % 1000).unwrap();
            record.control = Some(crate::record::Control {
                fd,
                cookie: before + 1,
            });
        };
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..500 {
                        table.update(cookie, change).unwrap();
                        let control = table.find(cookie).unwrap().control.unwrap();
                        assert_eq!(
                            u64::from(control.fd.unsigned_abs()),
                            (control.cookie - 1) % 1000
                        );
                    }
                });
            }
        });
        let control = table.find(cookie).unwrap().control.unwrap();
        assert_eq!(control.cookie, 2000);
        assert!(table.update(98, |_| ()).is_none());
    }

    #[test]
    fn a_lock_of_a_killed_process_is_taken_over() {
        let table = table();
        table.insert(5, &record(Family::Vsock));
        let slot = table.slots(5).find(|slot| slot.holds(5)).unwrap();
        let left = slot.lock();
        assert!(table.find(5).is_some());
        table.update(5, |record| record.is_spent = true).unwrap();
        assert!(table.find(5).unwrap().is_spent);
        // The holder goes on after all: it does not release the lock of another one.
        let taken = slot.lock();
        slot.unlock(left);
        assert_eq!(slot.words[LOCK].load(Ordering::Relaxed), taken);
        slot.unlock(taken);
    }

    #[test]
    fn ephemeral_ports_differ_and_need_no_privilege() {
        let table = table();
        let ports: std::collections::BTreeSet<_> =
            (0..1000).map(|_| table.ephemeral_port()).collect();
        assert_eq!(ports.len(), 1000);
        assert!(
            ports
                .iter()
                .all(|port| (FIRST_PORT..u32::MAX).contains(port))
        );
    }

    proptest! {
        #[test]
        fn any_words_in_the_memory_are_survived(
            words in prop::collection::vec(any::<u64>(), SLOT * PROBES),
            cookie in any::<u64>(),
        ) {
            static TABLE: std::sync::OnceLock<Table> = std::sync::OnceLock::new();
            let table = *TABLE.get_or_init(table);
            let slots: Vec<_> = table.slots(cookie).collect();
            for (slot, words) in slots.iter().zip(words.chunks(SLOT)) {
                for (word, value) in slot.words.iter().zip(words) {
                    word.store(*value, Ordering::Relaxed);
                }
                slot.words[COOKIE].store(cookie, Ordering::Relaxed);
                slot.words[LOCK].fetch_and(!1, Ordering::Relaxed);
            }
            let _ = table.find(cookie);
            let _ = table.update(cookie, |record| record.is_spent = true);
            table.insert(cookie, &record(Family::HyperV));
            prop_assert_eq!(family(table, cookie), Some(Family::HyperV));
        }
    }
}
