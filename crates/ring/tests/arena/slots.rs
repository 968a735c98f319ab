//! Slots: how many threads use them at once, and the pages that they give back.

use std::io::{Read, Write};
use std::os::linux::fs::MetadataExt;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::Duration;

use hvsock_ring::OpenError;
use hvsock_sys::poll::{self, PollFd, PollFlags};

use crate::pair::{pair, pair_at};

#[test]
fn threads_open_and_accept_connections_at_once() {
    const EACH: u32 = 300;
    // The sequence numbers begin again meanwhile.
    let pair = pair_at(8, 6, 4, (1 << 20) - 400);
    let served = AtomicU32::new(0);
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while served.load(Ordering::Relaxed) < 3 * EACH {
                    let Some(accepted) = pair.server.accept().unwrap() else {
                        if pair.server.arm_accept() {
                            let doorbell = pair.server.doorbell();
                            let mut fds = [PollFd::from_borrowed_fd(doorbell, PollFlags::IN)];
                            // The other thread may have served the last connection.
                            let soon = std::time::Instant::now() + Duration::from_millis(20);
                            poll::wait(&mut fds, Some(soon)).unwrap();
                            pair.server.drain_accept();
                        }
                        continue;
                    };
                    let mut text = Vec::new();
                    (&accepted.end).read_to_end(&mut text).unwrap();
                    (&accepted.end).write_all(&text).unwrap();
                    accepted.end.shutdown_write();
                    served.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        for client in 0..3u32 {
            let pair = &pair;
            scope.spawn(move || {
                for number in 0..EACH {
                    let opened = loop {
                        match pair.client.connect() {
                            Ok(opened) => break opened,
                            Err(OpenError::NoSlot | OpenError::BacklogFull) => {
                                thread::yield_now();
                            }
                            Err(error) => panic!("{error}"),
                        }
                    };
                    let text = [client, number, opened.id.seq]
                        .map(u32::to_ne_bytes)
                        .concat();
                    (&opened.end).write_all(&text).unwrap();
                    opened.end.shutdown_write();
                    let mut back = Vec::new();
                    (&opened.end).read_to_end(&mut back).unwrap();
                    assert_eq!(back, text);
                }
            });
        }
    });
    assert_eq!(served.load(Ordering::Relaxed), 3 * EACH);
    assert_eq!(pair.monitor.scan(), []);
    let totals = pair.monitor.totals();
    assert_eq!(totals.closed_bytes, [u64::from(3 * EACH) * 12; 2]);
}

#[test]
fn freed_slots_beyond_the_first_give_their_pages_back() {
    let pair = pair(64, 64, 64);
    let blocks = || pair.memory.metadata().unwrap().st_blocks();
    let page = 4096 / 512;
    let connections: Vec<_> = (0..64).map(|_| pair.connect()).collect();
    let idle = blocks();
    // An idle connection uses its words only.
    assert!(idle <= 64 * 2048 / 512 + 16 * page, "{idle}");
    for (client, server, _) in &connections {
        assert_eq!(client.try_write(&[1; 4096]), Ok(4096));
        assert_eq!(server.try_read(&mut [0; 4096]), Ok(4096));
        client.shutdown_write();
        server.shutdown_write();
    }
    assert_eq!(blocks(), idle + 64 * page);
    drop(connections);
    // The client notices that the server has closed its ends, too.
    assert_eq!(pair.client.in_use(), 0);
    assert_eq!(blocks(), idle + 32 * page);
    // And work as before.
    for (client, server, _) in (0..64).map(|_| pair.connect()).collect::<Vec<_>>() {
        assert_eq!(client.try_write(&[2; 4096]), Ok(4096));
        let mut all = [0; 4096];
        assert_eq!(server.try_read(&mut all), Ok(4096));
        assert_eq!(all, [2; 4096]);
    }
}
