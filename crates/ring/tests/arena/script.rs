//! A process that writes anything into an arena at any time, while both ends and the broker work. The input
//! is the script of one run.
//!
//! `fuzz/fuzz_targets/arena.rs` runs the fuzzer's scripts, and `hostile.rs` runs random ones.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use hvsock_ring::{
    ArenaClient, ArenaLimits, ArenaMonitor, ArenaParts, ArenaServer, Grant, Interest, ResetCause,
    RingEnd, RingSide, RingSize, SlotId,
};

const SLOTS: u32 = 6;
/// The words of the first slots: where writes change something.
const WORDS: u64 = 0xF000 + SLOTS as u64 * 2048;
/// A bound for hangs: no script takes this long, even on a loaded machine.
const LONG: Duration = Duration::from_secs(60);

/// The remaining bytes of a script, followed by zeros.
struct Script<'a>(&'a [u8]);

impl Script<'_> {
    fn byte(&mut self) -> u8 {
        match self.0.split_first() {
            Some((first, rest)) => {
                self.0 = rest;
                *first
            }
            None => 0,
        }
    }

    fn word(&mut self) -> u64 {
        (0..8).fold(0, |word, _| word << 8 | u64::from(self.byte()))
    }

    fn id(&mut self) -> SlotId {
        SlotId {
            slot: u32::from(self.byte()) % (SLOTS + 2),
            seq: u32::from(self.byte()),
        }
    }
}

/// Where a hostile process writes most: the header, the queue, both tables, the slots, or anywhere.
fn place(choice: u64) -> u64 {
    let within = choice / 8;
    let at = match choice % 8 {
        0 => within % 1280,
        1 => 0x1000 + within % 256,
        2 => 0x3000 + within % (32 * u64::from(SLOTS)),
        3 => 0xB000 + within % (16 * u64::from(SLOTS)),
        4 | 5 => 0xF000 + within % 4 * 2048 + within / 4 % 15 * 128,
        6 => 0xF000 + within % (WORDS - 0xF000),
        _ => within % WORDS,
    };
    at & !3
}

fn value(choice: u64, word: u64) -> u64 {
    match choice % 8 {
        0 => 0,
        1 => 1,
        2 => u64::MAX,
        3 => word % 16,
        4 => ((word % 16) << 32) | (word >> 60),
        5 => ((word % 16) << 32) | ((word >> 8) % 4),
        6 => 4096 + word % 3,
        _ => word,
    }
}

fn write(memory: &File, choice: u64, word: u64) {
    let len = if word & 1 == 0 { 8 } else { 4 };
    let bytes = value(choice, word).to_ne_bytes();
    memory
        .write_all_at(&bytes[..len], place(choice / 8))
        .unwrap();
}

/// Writes random words until it is over.
fn scribble(memory: &File, mut seed: u64, over: &AtomicBool) {
    let mut next = || {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed
    };
    while !over.load(Ordering::Relaxed) {
        let (choice, word) = (next(), next());
        write(memory, choice, word);
    }
}

struct Victims {
    client: ArenaClient,
    server: ArenaServer,
    monitor: ArenaMonitor,
    ends: Vec<RingEnd>,
    buffer: Vec<u8>,
}

impl Victims {
    fn step(&mut self, script: &mut Script<'_>) {
        let choice = script.byte();
        match choice % 16 {
            0..3 => self
                .ends
                .extend(self.client.connect().ok().map(|opened| opened.end)),
            3..6 => {
                if let Ok(accepted) = self.server.accept() {
                    self.ends.extend(accepted.map(|accepted| accepted.end));
                }
            }
            6 => {
                if !self.ends.is_empty() {
                    self.ends.swap_remove(usize::from(choice) % self.ends.len());
                }
            }
            7 => self.watch(script),
            8 => self.order(script),
            9 => {
                assert!(self.monitor.scan().len() <= SLOTS as usize);
                assert!(self.monitor.pending() <= 1024);
                self.monitor.request_changes();
                self.monitor.totals();
            }
            _ => self.use_end(script),
        }
        if self.ends.len() > 20 {
            self.ends.remove(0);
        }
    }

    fn watch(&self, script: &mut Script<'_>) {
        if script.byte().is_multiple_of(2) {
            self.server.arm_accept();
            self.server.has_pending();
            self.server.drain_ready(|slot| assert!(slot < SLOTS));
        } else {
            self.client.wants_more_slots();
            assert!(self.client.in_use() <= SLOTS);
            self.client.drain_ready(|slot| assert!(slot < SLOTS));
        }
    }

    fn order(&self, script: &mut Script<'_>) {
        let (monitor, cause) = (&self.monitor, ResetCause::Control);
        match script.byte() % 12 {
            0 => monitor.reset(script.id(), cause),
            1 => monitor.reset_all(ResetCause::PeerGone),
            2 => monitor.reset_unaccepted(cause),
            3 => monitor.suspend(script.id(), true),
            4 => monitor.suspend_all(true),
            5 | 6 => monitor.suspend_all(false),
            7 => monitor.set_grant(Grant::Suspended),
            8 => monitor.set_backlog(script.byte().into()),
            9 => monitor.set_granted_slots(script.byte().into()),
            _ => monitor.set_grant(Grant::Granted),
        }
    }

    fn use_end(&mut self, script: &mut Script<'_>) {
        let at = usize::from(script.byte()) % self.ends.len().max(1);
        let Some(end) = self.ends.get(at) else { return };
        let count = usize::from(script.byte()) * 24;
        let interest = [Interest::READ, Interest::WRITE, Interest::EITHER][count % 3];
        match script.byte() % 12 {
            0..3 => {
                if let Ok(read) = end.try_read(&mut self.buffer[..count]) {
                    assert!(read <= count);
                }
            }
            3..6 => {
                if let Ok(written) = end.try_write(&self.buffer[..count]) {
                    assert!(written <= count);
                }
            }
            6 | 7 => {
                end.set_spin(Duration::ZERO);
                let deadline = Instant::now() + Duration::from_micros(count as u64 / 64);
                end.wait(interest, None, Some(deadline)).unwrap();
            }
            8 => {
                end.set_signals(count % 2 == 0);
                end.arm(interest);
                end.drain_notifications();
            }
            9 => end.set_connected_suspend(count % 2 == 0),
            10 => end.shutdown_write(),
            _ => match count % 8 {
                0 => end.reset(),
                1 => end.shutdown_read(),
                _ => {
                    end.reset_cause();
                }
            },
        }
    }
}

/// Runs a script. Panics if an end or the broker breaks an invariant or hangs.
pub fn run(script: &[u8]) {
    let start = Instant::now();
    let mut script = Script(script);
    let limits = ArenaLimits {
        slots: SLOTS,
        ring: RingSize::MIN,
    };
    let ArenaParts {
        memory,
        grant,
        client,
        server,
        monitor,
        ..
    } = ArenaParts::new(limits, SLOTS, SLOTS).unwrap();
    let tell = || Arc::new(|| {});
    let mut victims = Victims {
        client: ArenaClient::open(&memory, &grant, client, tell()).unwrap(),
        server: ArenaServer::open(&memory, &grant, server, tell()).unwrap(),
        monitor,
        ends: Vec::new(),
        buffer: vec![7; 9000],
    };
    let memory = Arc::new(File::from(memory));
    let over = Arc::new(AtomicBool::new(false));
    let mut scribbles = None;
    for _ in 0..400 {
        if script.0.is_empty() {
            break;
        }
        match script.byte() % 8 {
            0 | 1 => write(&memory, script.word(), script.word()),
            2 if scribbles.is_none() && script.byte().is_multiple_of(4) => {
                let (memory, over, seed) =
                    (Arc::clone(&memory), Arc::clone(&over), script.word() | 1);
                scribbles = Some(thread::spawn(move || scribble(&memory, seed, &over)));
            }
            _ => victims.step(&mut script),
        }
    }
    for side in RingSide::BOTH {
        victims.monitor.close_end(side);
    }
    victims.client.mark_ended();
    victims.server.mark_ended();
    // A blocking read ends, whatever the memory says.
    for end in &victims.ends {
        while let Ok(1..) = end.try_read(&mut victims.buffer) {}
        assert!(end.is_ready(Interest::READ));
    }
    drop(victims);
    over.store(true, Ordering::Relaxed);
    if let Some(scribbles) = scribbles {
        scribbles.join().unwrap();
    }
    assert!(start.elapsed() < LONG, "{:?}", start.elapsed());
}
