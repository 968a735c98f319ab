//! Ten thousand connections at once, and their memory.

use std::fs;
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::time::Instant;

use hvsock_ring::{Parts, RingEnd, RingSide, RingSize};
use hvsock_sys::limits;

use super::{recv_end, send_end, send_next, start, wait_for_next};

const RINGS: usize = 10_000;
/// The largest number of connections of one pair of processes.
const MOST: usize = RINGS / 4;

/// Resident memory of a process in KiB, and the part of it that is shared memory.
fn resident(process: &str) -> (u64, u64) {
    let status = fs::read_to_string(format!("/proc/{process}/status")).unwrap();
    let line = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        let number = line.unwrap().trim().trim_end_matches(" kB");
        number.parse::<u64>().unwrap()
    };
    (line("VmRSS:"), line("RssShmem:"))
}

pub(super) fn one_side(socket: &impl AsFd) {
    limits::raise_descriptors().unwrap();
    let ends: Vec<RingEnd> = std::iter::from_fn(|| recv_end(socket)).collect();
    send_next(socket);
    for round in 0..2u64 {
        let number = |at: usize| (at as u64 ^ round << 32).to_ne_bytes();
        for (at, mut end) in ends.iter().enumerate() {
            end.write_all(&number(at)).unwrap();
        }
        for (at, mut end) in ends.iter().enumerate() {
            let mut got = [0; 8];
            end.read_exact(&mut got).unwrap();
            assert_eq!(got, number(at));
        }
        send_next(socket);
        wait_for_next(socket);
    }
}

#[test]
fn ten_thousand_rings_transfer_bytes_both_ways() {
    let begin = Instant::now();
    // Each connection needs two descriptors in either process.
    let limit = limits::raise_descriptors().unwrap();
    let most = usize::try_from(limit / 2 - 50).map_or(MOST, |most| most.min(MOST));
    let pairs = RINGS.div_ceil(most);
    let groups: Vec<_> = (0..pairs)
        .map(|_| [(); 2].map(|()| start("many")))
        .collect();
    let mut memories = Vec::new();
    for group in &groups {
        for _ in 0..RINGS.div_ceil(pairs) {
            let parts = Parts::new(RingSize::DEFAULT).unwrap();
            let [first, second] = group;
            send_end(
                &first.1,
                RingSide::First,
                &parts.memory,
                &parts.first,
                [0, 0],
            );
            send_end(
                &second.1,
                RingSide::Second,
                &parts.memory,
                &parts.second,
                [0, 0],
            );
            if memories.len() < 10 {
                memories.push(fs::File::from(parts.memory));
            }
        }
    }
    let all = || groups.iter().flatten();
    let send_next_to_all = || all().for_each(|(_, socket)| send_next(socket));
    let wait_for_all = || all().for_each(|(_, socket)| wait_for_next(socket));
    let sizes = || -> Vec<_> {
        all()
            .map(|(process, _)| resident(&process.id().to_string()))
            .collect()
    };
    send_next_to_all();
    wait_for_all();
    let idle = sizes();
    wait_for_all();
    let used = sizes();
    let blocks: u64 = memories
        .iter()
        .map(|memory| memory.metadata().unwrap().blocks() * 512)
        .sum();
    send_next_to_all();
    wait_for_all();
    send_next_to_all();
    let kib = |sizes: &[(u64, u64)], what: fn(&(u64, u64)) -> u64| {
        sizes.iter().map(what).sum::<u64>() as f64 / (2 * RINGS) as f64
    };
    eprintln!(
        "{RINGS} rings in {pairs} pairs of processes, {:.1?}; shared memory of a ring that \
         transferred 8 bytes each way: {} bytes; for each end in KiB: private memory {:.2} when \
         new, {:.2} when used; shared {:.2}",
        begin.elapsed(),
        blocks / memories.len() as u64,
        kib(&idle, |(all, shared)| all - shared),
        kib(&used, |(all, shared)| all - shared),
        kib(&used, |(_, shared)| *shared),
    );
    // The header page and one page of bytes each way.
    assert!(blocks <= memories.len() as u64 * 3 * 4096);
}
