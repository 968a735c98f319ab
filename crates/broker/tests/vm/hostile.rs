//! Hostile guests. Covers invalid descriptors, chains, rings, headers and packets, credit
//! violations, floods and spoofed addresses. After each, other machines and the operator are
//! served.

use std::io::Read;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use hvsock::{HvListener, HvStream};
use hvsock_testkit::guest::virtqueue::{Descriptor, flags};
use hvsock_testkit::guest::{Driver, Guest, GuestStream, HOST, Layout, Options};
use hvsock_virtio::{Header, Operation, SocketKind, features, shutdown};

use crate::traffic::ping;
use hvsock_testkit::StopOnDrop;
use hvsock_testkit::usage;
use hvsock_testkit::wait::{TIMEOUT, eventually};
use hvsock_testkit::world::{PORT, WEB, World, accept, bounded};

/// A machine `web` for a hostile driver, and another machine with a working connection.
pub struct Fixture {
    pub world: World,
    pub listener: HvListener,
    _good: Guest,
    inside: GuestStream,
    outside: HvStream,
}

impl Fixture {
    pub fn new() -> Self {
        let world = World::with_web(|_| ());
        let listener = world.listen();
        world.vm("good", 77, &[]);
        let good = world.guest_of("good", Options::new(77));
        let inside = bounded(good.connect(PORT).unwrap());
        let outside = accept(&listener);
        Self {
            world,
            listener,
            _good: good,
            inside,
            outside,
        }
    }

    pub fn hostile(&self) -> Driver {
        self.hostile_with(Options::new(WEB))
    }

    pub fn hostile_with(&self, options: Options) -> Driver {
        self.world.driver(options)
    }

    /// Asserts that the other machine's connection works and that the operator is served.
    #[track_caller]
    pub fn others_still_work(&self) {
        for _ in 0..10 {
            ping(&self.inside, &self.outside);
        }
        self.world.handle().status().expect("a status");
    }

    /// Asserts that others still work, and that the hostile guest can connect after a restart.
    #[track_caller]
    pub fn everything_works_after(&self, driver: Driver) {
        self.others_still_work();
        drop(driver);
        let guest = self.world.guest();
        let inside = bounded(guest.connect(PORT).expect("connected after a restart"));
        // Connections that the hostile guest has requested may be accepted before it.
        let mut byte = [0; 1];
        std::io::Write::write_all(&mut &inside, b"!").unwrap();
        loop {
            let mut outside = accept(&self.listener);
            if outside
                .read(&mut byte)
                .is_ok_and(|read| read == 1 && byte == *b"!")
            {
                break;
            }
        }
        self.others_still_work();
    }
}

/// A packet of a connection from `port` to the host.
pub fn packet(port: u32, op: Operation) -> Header {
    Header {
        src_cid: WEB,
        dst_cid: HOST,
        src_port: port,
        dst_port: PORT,
        kind: SocketKind::Stream as u16,
        op: op as u16,
        buf_alloc: 256 << 10,
        ..Header::default()
    }
}

fn data(port: u32, len: usize) -> Header {
    Header {
        len: len as u32,
        ..packet(port, Operation::Data)
    }
}

fn send(driver: &mut Driver, header: &Header) {
    driver
        .send(header, &[], &Layout::Apart)
        .expect("the device reads");
}

/// The next packet on a connection that is not about credit.
#[track_caller]
fn next_packet(driver: &mut Driver) -> (Operation, Header, Vec<u8>) {
    loop {
        let (header, data) = driver.receive(TIMEOUT).unwrap().expect("an answer");
        let op = header.operation().expect("a known operation");
        if !matches!(op, Operation::CreditUpdate | Operation::CreditRequest) {
            return (op, header, data);
        }
    }
}

#[track_caller]
fn expect_reset(driver: &mut Driver, port: u32) {
    let (op, header, _) = next_packet(driver);
    assert_eq!((op, header.dst_port), (Operation::Reset, port));
}

/// Establishes a connection from the hostile guest.
#[track_caller]
pub fn connect(fixture: &Fixture, driver: &mut Driver, port: u32) -> (HvStream, Header) {
    send(driver, &packet(port, Operation::Request));
    loop {
        let (op, header, _) = next_packet(driver);
        if header.dst_port == port {
            assert_eq!(op, Operation::Response);
            return (accept(&fixture.listener), header);
        }
        // Packets that were sent on closed connections are each answered with a reset.
        assert_eq!(op, Operation::Reset);
    }
}

/// Makes the chain at `head` available without checks, and kicks the device.
fn make_available(driver: &mut Driver, head: u16) {
    let tx = driver.tx();
    let index = tx.available_index();
    tx.write_available(index, head);
    tx.set_available_index(index.wrapping_add(1));
    tx.kick();
}

#[test]
fn descriptors_outside_memory_affect_no_other_machine() {
    let fixture = Fixture::new();
    let beyond = fixture.hostile().memory().end();
    for address in [
        0,
        1,
        beyond,
        beyond - 1,
        beyond - 43,
        u64::MAX,
        u64::MAX - 43,
        1 << 63,
    ] {
        for len in [0, 1, 44, 4096, u32::MAX] {
            for write in [0, flags::WRITE] {
                let mut driver = fixture.hostile();
                let descriptor = Descriptor {
                    address,
                    len,
                    flags: write,
                    next: 0,
                };
                driver.tx().write_descriptor(0, &descriptor);
                make_available(&mut driver, 0);
            }
        }
    }
    fixture.everything_works_after(fixture.hostile());
}

#[test]
fn receive_buffers_outside_memory_affect_no_other_machine() {
    let fixture = Fixture::new();
    for (address, len) in [
        (0, 4096),
        (u64::MAX - 7, 4096),
        (1 << 40, u32::MAX),
        (0x1000_0000, 0),
    ] {
        let mut driver = Driver::new(&fixture.world.socket("web"), Options::new(WEB)).unwrap();
        driver.connect().unwrap();
        for head in 0..8 {
            let descriptor = Descriptor {
                address,
                len,
                flags: flags::WRITE,
                next: 0,
            };
            driver.rx().write_descriptor(head, &descriptor);
            driver.rx().write_available(head, head);
        }
        driver.rx().set_available_index(8);
        driver.rx().kick();
        send(&mut driver, &packet(5, Operation::Request));
        fixture.others_still_work();
    }
    fixture.everything_works_after(fixture.hostile());
}

#[test]
fn endless_chains_are_detected() {
    let fixture = Fixture::new();
    let mut driver = fixture.hostile();
    let address = driver.memory().guest_address(0);
    let in_a_ring = |next| Descriptor {
        address,
        len: 4,
        flags: flags::NEXT,
        next,
    };
    // A descriptor that links to itself, and a loop of all descriptors.
    driver.tx().write_descriptor(0, &in_a_ring(0));
    make_available(&mut driver, 0);
    fixture.others_still_work();
    driver.reboot().unwrap();
    for index in 0..128 {
        driver
            .tx()
            .write_descriptor(index, &in_a_ring((index + 1) % 128));
    }
    make_available(&mut driver, 5);
    fixture.others_still_work();
    // A nested indirect table, a looped one, one with NEXT, partial and too long ones.
    for (len, inner, outer) in [
        (16, flags::INDIRECT, flags::INDIRECT),
        (640, flags::NEXT, flags::INDIRECT),
        (640, flags::NEXT, flags::INDIRECT | flags::NEXT),
        (15, 0, flags::INDIRECT),
        (0, 0, flags::INDIRECT),
        (u32::MAX, flags::NEXT, flags::INDIRECT),
        (u32::MAX - 15, flags::NEXT, flags::INDIRECT),
    ] {
        driver.reboot().unwrap();
        let mut table = 0;
        for index in 0..40 {
            let descriptor = Descriptor {
                address,
                len: 4,
                flags: inner,
                next: (index + 1) % 40,
            };
            table = driver
                .tx()
                .write_indirect(0, usize::from(index), &descriptor);
        }
        let whole = Descriptor {
            address: table,
            len,
            flags: outer,
            next: 0,
        };
        driver.tx().write_descriptor(0, &whole);
        make_available(&mut driver, 0);
        fixture.others_still_work();
    }
    fixture.everything_works_after(driver);
}

#[test]
fn an_invalid_available_ring_stops_only_its_own_machine() {
    let fixture = Fixture::new();
    for (head, ahead) in [
        (128, 1),
        (u16::MAX, 1),
        (0, 129),
        (0, 30_000),
        (0, u16::MAX),
    ] {
        let mut driver = fixture.hostile();
        driver.tx().write_available(0, head);
        driver.tx().set_available_index(ahead);
        driver.tx().kick();
        driver.rx().set_available_index(ahead.wrapping_add(1000));
        driver.rx().kick();
        fixture.others_still_work();
    }
    fixture.everything_works_after(fixture.hostile());
}

#[test]
fn headers_that_contradict_their_packets_are_rejected() {
    let fixture = Fixture::new();
    let mut driver = fixture.hostile();
    // Shorter than a header.
    for len in [1, 12, 43] {
        let address = driver.memory().guest_address(0);
        let descriptor = Descriptor {
            address,
            len,
            flags: 0,
            next: 0,
        };
        driver.tx().write_descriptor(0, &descriptor);
        make_available(&mut driver, 0);
        fixture.others_still_work();
        driver.reboot().unwrap();
    }
    // A length above the data resets the connection.
    let (mut outside, _) = connect(&fixture, &mut driver, 10);
    let invalid = Header {
        len: 5000,
        ..data(10, 100)
    };
    driver.send(&invalid, &[7; 100], &Layout::Apart).unwrap();
    expect_reset(&mut driver, 10);
    assert!(outside.read(&mut [0; 8]).is_err());
    // A length below the data: the rest is ignored.
    let (mut outside, _) = connect(&fixture, &mut driver, 11);
    driver
        .send(&data(11, 5), b"12345678", &Layout::Apart)
        .unwrap();
    driver.send(&data(11, 3), b"abc", &Layout::Apart).unwrap();
    let mut bytes = [0; 8];
    outside.read_exact(&mut bytes).unwrap();
    assert_eq!(&bytes, b"12345abc");
    for len in [u32::MAX, 1 << 31, 65_537] {
        let (mut outside, _) = connect(&fixture, &mut driver, 12);
        driver
            .send(&Header { len, ..data(12, 0) }, &[], &Layout::Apart)
            .unwrap();
        expect_reset(&mut driver, 12);
        assert!(outside.read(&mut [0; 8]).is_err());
    }
    fixture.everything_works_after(driver);
}

#[test]
fn unknown_kinds_and_packets_of_no_connection_are_reset() {
    let fixture = Fixture::new();
    let mut driver = fixture.hostile();
    let strange = Header {
        kind: 9,
        ..packet(20, Operation::Request)
    };
    send(&mut driver, &strange);
    expect_reset(&mut driver, 20);
    for op in [
        Operation::Response,
        Operation::Shutdown,
        Operation::Data,
        Operation::CreditUpdate,
        Operation::CreditRequest,
    ] {
        send(&mut driver, &packet(21, op));
        expect_reset(&mut driver, 21);
    }
    // A reset is never answered; an unknown operation may be answered with a reset.
    for _ in 0..10_000 {
        send(&mut driver, &packet(22, Operation::Reset));
    }
    for op in [0, 8, 77, u16::MAX] {
        send(
            &mut driver,
            &Header {
                op,
                ..packet(23, Operation::Reset)
            },
        );
    }
    // Packets are answered in order, so this answer is the last one.
    send(&mut driver, &packet(24, Operation::Data));
    loop {
        let (op, header, _) = next_packet(&mut driver);
        assert_ne!(header.dst_port, 22);
        if header.dst_port == 24 {
            assert_eq!(op, Operation::Reset);
            break;
        }
    }
    fixture.everything_works_after(driver);
}

#[test]
fn packets_with_spoofed_addresses_are_ignored() {
    let fixture = Fixture::new();
    let mut driver = fixture.hostile();
    for src_cid in [77, HOST, 0, 1, u64::from(u32::MAX), u64::MAX, WEB | 1 << 32] {
        let spoofed = Header {
            src_cid,
            ..packet(30, Operation::Request)
        };
        send(&mut driver, &spoofed);
        // A reset of the other machine's connection.
        send(
            &mut driver,
            &Header {
                src_cid,
                ..packet(49152, Operation::Reset)
            },
        );
    }
    for dst_cid in [0, 1, WEB, 77, 12_345, u64::MAX, HOST | 1 << 32] {
        send(
            &mut driver,
            &Header {
                dst_cid,
                ..packet(31, Operation::Request)
            },
        );
    }
    // Requests are handled in order. The first connection to accept is the genuine one.
    let (mut outside, _) = connect(&fixture, &mut driver, 32);
    driver
        .send(&data(32, 7), b"genuine", &Layout::Apart)
        .unwrap();
    let mut bytes = [0; 7];
    outside.read_exact(&mut bytes).unwrap();
    assert_eq!(&bytes, b"genuine");
    fixture.everything_works_after(driver);
}

#[test]
fn a_guest_that_exceeds_its_credit_is_reset() {
    let fixture = Fixture::new();
    let mut driver = fixture.hostile();
    // The host's process does not read, and the guest continues to send.
    let (mut outside, response) = connect(&fixture, &mut driver, 40);
    let buf_alloc = response.buf_alloc as usize;
    let mut sent = 0;
    while sent <= 4 * buf_alloc + (1 << 20) {
        driver
            .send(&data(40, 32 << 10), &[7; 32 << 10], &Layout::Apart)
            .unwrap();
        sent += 32 << 10;
    }
    expect_reset(&mut driver, 40);
    let mut buffer = vec![0; 1 << 20];
    eventually("the reader finds an error", || {
        outside.read(&mut buffer).is_err()
    });
    // A fwd_cnt above what was ever sent, and a buf_alloc of 4 GiB.
    let (outside, _) = connect(&fixture, &mut driver, 41);
    for (fwd_cnt, buf_alloc) in [(1 << 20, 0), (u32::MAX, u32::MAX), (1 << 31, 1 << 31)] {
        let invalid = Header {
            fwd_cnt,
            buf_alloc,
            ..packet(41, Operation::CreditUpdate)
        };
        send(&mut driver, &invalid);
    }
    drop(outside);
    fixture.everything_works_after(driver);
}

#[test]
fn a_flood_of_requests_uses_bounded_memory() {
    let fixture = Fixture::new();
    let mut driver = fixture.hostile();
    let before = usage::resident_bytes(std::process::id());
    for port in 0..100_000 {
        send(&mut driver, &packet(port, Operation::Request));
        while let Some(received) = driver.poll_receive() {
            driver.recycle(received.buffer);
        }
        driver.refill();
        if port % 10_000 == 0 {
            fixture.others_still_work();
        }
    }
    let grown = usage::resident_bytes(std::process::id()).saturating_sub(before);
    assert!(grown < 200 << 20, "{grown} bytes");
    drop(driver);
    // The connections that the host had not accepted end with their guest.
    eventually("the flood's connections are gone", || {
        fixture.world.handle().status().unwrap().connections == 1
    });
    fixture.others_still_work();
}

#[test]
fn a_queue_is_not_read_while_too_many_responses_are_pending() {
    let fixture = Fixture::new();
    for op in [
        Operation::Request,
        Operation::Data,
        Operation::CreditRequest,
        Operation::Shutdown,
    ] {
        let options = Options {
            timeout: Duration::from_millis(300),
            ..Options::new(WEB)
        };
        // Not one receive buffer.
        let mut driver = Driver::new(&fixture.world.socket("web"), options).unwrap();
        driver.connect().unwrap();
        let before = usage::resident_bytes(std::process::id());
        let unregistered = |port| Header {
            dst_port: 9,
            ..packet(port, op)
        };
        let mut sent = 0;
        let together = &Layout::Together;
        while sent < 200_000 && driver.send(&unregistered(sent), &[], together).is_ok() {
            sent += 1;
        }
        assert!(sent < 200_000, "{op:?}: no backpressure");
        let grown = usage::resident_bytes(std::process::id()).saturating_sub(before);
        assert!(grown < 64 << 20, "{op:?}: {grown} bytes");
        fixture.others_still_work();
        // It is read again once there are receive buffers.
        driver.refill();
        let (answer, ..) = next_packet(&mut driver);
        assert_eq!(answer, Operation::Reset);
    }
    fixture.everything_works_after(fixture.hostile());
}

#[test]
fn data_before_the_response_refuses_the_connection() {
    let fixture = Fixture::new();
    fixture.world.register(5000);
    let mut driver = fixture.hostile();
    fixture
        .world
        .is("web", hvsock_broker::model::PartitionState::Running);
    let world = &fixture.world;
    thread::scope(|scope| {
        let connecting = scope.spawn(move || world.connect_to("web", 5000));
        let (op, request, _) = next_packet(&mut driver);
        assert_eq!(op, Operation::Request);
        let early = Header {
            dst_port: request.src_port,
            src_port: request.dst_port,
            ..data(0, 4)
        };
        driver.send(&early, b"soon", &Layout::Apart).unwrap();
        let (op, ..) = next_packet(&mut driver);
        assert_eq!(op, Operation::Reset);
        assert!(connecting.join().unwrap().is_err());
    });
    fixture.everything_works_after(driver);
}

#[test]
fn data_after_a_half_close_resets_the_connection_and_is_not_delivered() {
    let fixture = Fixture::new();
    let mut driver = fixture.hostile();
    let (mut outside, _) = connect(&fixture, &mut driver, 60);
    let end = Header {
        flags: shutdown::SEND,
        ..packet(60, Operation::Shutdown)
    };
    send(&mut driver, &end);
    driver.send(&data(60, 4), b"late", &Layout::Apart).unwrap();
    expect_reset(&mut driver, 60);
    let mut bytes = Vec::new();
    // Nothing was sent before the half-close, and the data after it is not delivered.
    let _ = outside.read_to_end(&mut bytes);
    assert_eq!(bytes, b"");
    // The flags of several SHUTDOWN packets add up.
    let (_outside, _) = connect(&fixture, &mut driver, 61);
    let receive = Header {
        flags: shutdown::RECEIVE,
        ..packet(61, Operation::Shutdown)
    };
    send(&mut driver, &receive);
    send(
        &mut driver,
        &Header {
            flags: shutdown::SEND,
            ..receive
        },
    );
    let (op, header, _) = next_packet(&mut driver);
    assert!(
        matches!(op, Operation::Reset | Operation::Shutdown),
        "{header:?}"
    );
    fixture.everything_works_after(driver);
}

#[test]
fn kicks_at_full_rate_do_not_starve_other_machines() {
    let fixture = Fixture::new();
    let mut driver = fixture.hostile_with(Options::new(WEB).without(features::EVENT_IDX));
    let (done, kicks) = (AtomicBool::new(false), AtomicU64::new(0));
    thread::scope(|scope| {
        let _stop = StopOnDrop(&done);
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                driver.tx().kick();
                driver.rx().kick();
                kicks.fetch_add(2, Ordering::Relaxed);
            }
        });
        let sent = || kicks.load(Ordering::Relaxed);
        eventually("the flood has begun", || sent() > 1000);
        let before = sent();
        // Each exchange has a timeout of its own.
        for _ in 0..100 {
            fixture.others_still_work();
        }
        assert!(sent() > before + 1000, "the flood has stopped");
    });
    fixture.everything_works_after(driver);
}

#[test]
fn a_guest_that_overwrites_its_used_ring_harms_only_itself() {
    let fixture = Fixture::new();
    let lawless = Options {
        hostile: true,
        ..Options::new(WEB)
    };
    let mut driver = fixture.hostile_with(lawless.clone());
    for port in 0..500_u32 {
        send(&mut driver, &packet(port, Operation::CreditRequest));
        let noise: Vec<u8> = (0..64)
            .map(|at| (port as u8).wrapping_mul(31) ^ at)
            .collect();
        driver.rx().used_ring().put(2 + port as usize % 900, &noise);
        if port % 50 == 0 {
            driver.reboot().unwrap();
            fixture.others_still_work();
        }
    }
    drop(driver);
    let mut driver = fixture.hostile_with(lawless);
    for port in 0..100 {
        send(&mut driver, &packet(port, Operation::CreditRequest));
        driver.rx().available_ring().put(0, &[0xff; 64]);
        driver.rx().kick();
    }
    fixture.everything_works_after(driver);
}
