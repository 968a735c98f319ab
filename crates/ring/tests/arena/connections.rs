//! Connections from their opening to the return of their slots.

use std::io::{Read, Write};
use std::sync::atomic::Ordering;
use std::thread;

use hvsock_ring::{Grant, OpenError, ResetCause, RingError, RingSide};

use crate::pair::pair;

#[test]
fn a_connection_carries_bytes_both_ways_and_returns_its_slot() {
    let pair = pair(4, 4, 4);
    for round in 1..=10 {
        let (client, server, id) = pair.connect();
        assert_eq!((id.slot, id.seq), (0, round));
        assert_eq!((client.slot(), server.slot()), (Some(id), Some(id)));
        let mut text = String::new();
        (&client).write_all(b"to the server").unwrap();
        client.shutdown_write();
        (&server).read_to_string(&mut text).unwrap();
        (&server).write_all(b", and back").unwrap();
        server.shutdown_write();
        (&client).read_to_string(&mut text).unwrap();
        assert_eq!(text, "to the server, and back");
        assert_eq!(pair.client.in_use(), 1);
        drop((client, server));
    }
    assert!(!pair.monitor.request_changes());
    assert_eq!(pair.monitor.scan(), []);
    assert!(pair.monitor.request_changes());
    pair.connect();
    assert_eq!(pair.told.load(Ordering::Relaxed), 0);
    assert!(!pair.monitor.request_changes());
    pair.monitor.scan();
    assert!(pair.monitor.request_changes());
    drop(pair.client.connect().unwrap());
    assert_eq!(pair.told.load(Ordering::Relaxed), 0);
    let totals = pair.monitor.totals();
    assert_eq!(totals.opened, 12);
    assert_eq!(totals.closed_bytes, [130, 100]);
}

#[test]
fn a_parked_end_is_woken_by_its_peer() {
    let pair = pair(1, 1, 1);
    for _ in 0..20 {
        let (client, server, _) = pair.connect();
        client.set_spin(std::time::Duration::ZERO);
        server.set_spin(std::time::Duration::ZERO);
        thread::scope(|scope| {
            scope.spawn(|| {
                let mut all = vec![0; 50_000];
                (&server).read_exact(&mut all).unwrap();
                (&server).write_all(&all).unwrap();
                server.shutdown_write();
            });
            (&client).write_all(&[7; 50_000]).unwrap();
            client.shutdown_write();
            let mut back = Vec::new();
            (&client).read_to_end(&mut back).unwrap();
            assert_eq!(back, [7; 50_000]);
        });
    }
}

#[test]
fn slots_and_the_backlog_are_limited() {
    let pair = pair(3, 2, 1);
    let first = pair.client.connect().unwrap();
    assert_eq!(pair.client.connect().unwrap_err(), OpenError::BacklogFull);
    let accepted = pair.server.accept().unwrap().unwrap();
    let second = pair.client.connect().unwrap();
    assert!(pair.client.wants_more_slots());
    assert!(pair.server.accept().unwrap().is_some());
    assert_eq!(pair.client.connect().unwrap_err(), OpenError::NoSlot);
    pair.monitor.set_granted_slots(9);
    assert_eq!(pair.monitor.granted(), 3);
    let third = pair.client.connect().unwrap();
    drop((first, accepted, second, third));
}

#[test]
fn an_end_that_is_dropped_without_its_end_of_data_is_a_reset() {
    let pair = pair(2, 2, 2);
    let (client, server, _) = pair.connect();
    (&client).write_all(b"all").unwrap();
    drop(client);
    let mut buffer = [0; 9];
    assert_eq!(server.try_read(&mut buffer), Ok(3));
    assert_eq!(server.try_read(&mut buffer), Err(RingError::Reset));
    assert_eq!(server.reset_cause(), ResetCause::PeerGone);
    let (client, server, _) = pair.connect();
    (&client).write_all(b"unread").unwrap();
    server.shutdown_write();
    drop(server);
    assert_eq!(client.try_write(b"x"), Err(RingError::Reset));
    assert_eq!(client.reset_cause(), ResetCause::UnreadData);
}

#[test]
fn what_a_client_left_in_the_queue_is_accepted_after_its_process_is_gone() {
    let pair = pair(8, 8, 8);
    let (open, open_peer, _) = pair.connect();
    let (first, second) = (
        pair.client.connect().unwrap(),
        pair.client.connect().unwrap(),
    );
    (&first.end).write_all(b"left").unwrap();
    first.end.shutdown_write();
    drop(first);
    (&second.end).write_all(b"cut").unwrap();
    pair.monitor.close_end(RingSide::First);
    pair.monitor.set_grant(Grant::Revoked);
    // A process that still has the memory can add to the queue. The broker does not see that any more.
    pair.monitor.set_grant(Grant::Granted);
    let late = pair.client.connect().unwrap();
    pair.monitor.set_grant(Grant::Revoked);
    let mut buffer = [0; 9];
    for (text, end) in [
        (&b"left"[..], RingError::EndOfStream),
        (&b"cut"[..], RingError::Reset),
    ] {
        let accepted = pair.server.accept().unwrap().unwrap().end;
        assert_eq!(accepted.try_read(&mut buffer), Ok(text.len()));
        assert_eq!(&buffer[..text.len()], text);
        assert_eq!(accepted.try_read(&mut buffer), Err(end));
    }
    assert!(pair.server.accept().unwrap().is_none());
    assert_eq!(open_peer.try_read(&mut buffer), Err(RingError::Reset));
    drop((open, late, second));
}

#[test]
fn a_revoked_arena_accepts_nothing_that_waits() {
    let pair = pair(8, 8, 8);
    let waiting = pair.client.connect().unwrap();
    pair.monitor.set_grant(Grant::Revoked);
    assert!(pair.server.accept().unwrap().is_none());
    assert_eq!(waiting.end.try_read(&mut [0]), Err(RingError::Reset));
}

#[test]
fn a_close_with_bytes_unread_is_never_seen_as_a_clean_end_first() {
    let pair = pair(4, 4, 4);
    for round in 0..300 {
        let (opened, accepted, _) = pair.connect();
        let (stays, closes) = match round % 2 {
            0 => (opened, accepted),
            _ => (accepted, opened),
        };
        assert_eq!(stays.try_write(&[1; 10]), Ok(10));
        thread::scope(|scope| {
            scope.spawn(move || {
                closes.finish();
                drop(closes);
            });
            let mut byte = [0];
            let end = loop {
                match stays.try_read(&mut byte) {
                    Err(RingError::WouldBlock) => std::hint::spin_loop(),
                    end => break end,
                }
            };
            assert_eq!(end, Err(RingError::UnreadData), "{round}");
        });
    }
}
