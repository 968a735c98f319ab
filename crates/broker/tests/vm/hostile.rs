//! What a guest may do to its device, and what nobody else may notice of it.

use std::io::Read;
use std::time::{Duration, Instant};

use hvsock::{HvListener, HvStream};
use hvsock_testkit::guest::virtqueue::{Descriptor, flags};
use hvsock_testkit::guest::{Driver, Guest, GuestStream, HOST, Layout, Options};
use hvsock_virtio::{Header, Operation, SocketKind, features, shutdown};

use crate::world::{
    A_WHILE, PATIENCE, PORT, WEB, World, accept, bounded, eventually, ping, resident_bytes,
};

/// A hostile guest's driver on the machine `web`, and a machine beside it that works.
pub struct Scene {
    pub world: World,
    pub listener: HvListener,
    _good: Guest,
    inside: GuestStream,
    outside: HvStream,
}

impl Scene {
    pub fn new() -> Self {
        let world = World::new();
        let listener = world.listen();
        world.add("good", 77, &[]);
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

    pub fn bad(&self) -> Driver {
        self.bad_with(Options::new(WEB))
    }

    pub fn bad_with(&self, options: Options) -> Driver {
        self.world.driver(options)
    }

    /// The other machine's connection works, and the operator is answered.
    #[track_caller]
    pub fn others_are_well(&self) {
        for _ in 0..10 {
            ping(&self.inside, &self.outside);
        }
        self.world.handle().status().expect("a status");
    }

    /// As above, and the guest that was hostile can be a good one after it restarts.
    #[track_caller]
    pub fn all_is_well_after(&self, driver: Driver) {
        self.others_are_well();
        drop(driver);
        let guest = self.world.guest();
        let inside = bounded(guest.connect(PORT).expect("connected after a restart"));
        // Others that were asked for and left may come before it.
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
        self.others_are_well();
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
fn hear(driver: &mut Driver) -> (Operation, Header, Vec<u8>) {
    loop {
        let (header, data) = driver.receive(PATIENCE).unwrap().expect("an answer");
        let op = header.operation().expect("a known operation");
        if !matches!(op, Operation::CreditUpdate | Operation::CreditRequest) {
            return (op, header, data);
        }
    }
}

#[track_caller]
fn hears_reset(driver: &mut Driver, port: u32) {
    let (op, header, _) = hear(driver);
    assert_eq!((op, header.dst_port), (Operation::Reset, port));
}

/// A connection of the hostile guest that stands.
#[track_caller]
fn connect(scene: &Scene, driver: &mut Driver, port: u32) -> (HvStream, Header) {
    send(driver, &packet(port, Operation::Request));
    loop {
        let (op, header, _) = hear(driver);
        if header.dst_port == port {
            assert_eq!(op, Operation::Response);
            return (accept(&scene.listener), header);
        }
        // What was sent on a connection that is no more is answered one by one.
        assert_eq!(op, Operation::Reset);
    }
}

/// Makes one descriptor chain available as it is, and wakes the device.
fn make_available(driver: &mut Driver, head: u16) {
    let tx = driver.tx();
    let index = tx.available_index();
    tx.write_available(index, head);
    tx.set_available_index(index.wrapping_add(1));
    tx.kick();
}

#[test]
fn descriptors_that_lie_nowhere_harm_nobody_else() {
    let scene = Scene::new();
    let beyond = scene.bad().memory().end();
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
                let mut driver = scene.bad();
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
    scene.all_is_well_after(scene.bad());
}

#[test]
fn receive_buffers_that_lie_nowhere_harm_nobody_else() {
    let scene = Scene::new();
    for (address, len) in [
        (0, 4096),
        (u64::MAX - 7, 4096),
        (1 << 40, u32::MAX),
        (0x1000_0000, 0),
    ] {
        let mut driver = Driver::new(&scene.world.socket("web"), Options::new(WEB)).unwrap();
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
        scene.others_are_well();
    }
    scene.all_is_well_after(scene.bad());
}

#[test]
fn chains_without_end_are_ended() {
    let scene = Scene::new();
    let mut driver = scene.bad();
    let address = driver.memory().guest_address(0);
    let in_a_ring = |next| Descriptor {
        address,
        len: 4,
        flags: flags::NEXT,
        next,
    };
    // To itself, and round in a circle.
    driver.tx().write_descriptor(0, &in_a_ring(0));
    make_available(&mut driver, 0);
    scene.others_are_well();
    driver.reboot().unwrap();
    for index in 0..128 {
        driver
            .tx()
            .write_descriptor(index, &in_a_ring((index + 1) % 128));
    }
    make_available(&mut driver, 5);
    scene.others_are_well();
    // A table in a table, a table that is its own part, one that goes on, one beyond its end.
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
        scene.others_are_well();
    }
    scene.all_is_well_after(driver);
}

#[test]
fn rings_that_lie_about_what_is_available_stop_their_own_machine_only() {
    let scene = Scene::new();
    for (head, ahead) in [
        (128, 1),
        (u16::MAX, 1),
        (0, 129),
        (0, 30_000),
        (0, u16::MAX),
    ] {
        let mut driver = scene.bad();
        driver.tx().write_available(0, head);
        driver.tx().set_available_index(ahead);
        driver.tx().kick();
        driver.rx().set_available_index(ahead.wrapping_add(1000));
        driver.rx().kick();
        scene.others_are_well();
    }
    scene.all_is_well_after(scene.bad());
}

#[test]
fn headers_that_do_not_fit_their_packets_are_no_connection() {
    let scene = Scene::new();
    let mut driver = scene.bad();
    // Less than a header.
    for cut in [1, 12, 43] {
        let address = driver.memory().guest_address(0);
        let descriptor = Descriptor {
            address,
            len: cut,
            flags: 0,
            next: 0,
        };
        driver.tx().write_descriptor(0, &descriptor);
        make_available(&mut driver, 0);
        scene.others_are_well();
        driver.reboot().unwrap();
    }
    // More data than there is, which ends the connection.
    let (mut outside, _) = connect(&scene, &mut driver, 10);
    let lie = Header {
        len: 5000,
        ..data(10, 100)
    };
    driver.send(&lie, &[7; 100], &Layout::Apart).unwrap();
    hears_reset(&mut driver, 10);
    assert!(outside.read(&mut [0; 8]).is_err());
    // Less than there is: what is behind is no data.
    let (mut outside, _) = connect(&scene, &mut driver, 11);
    driver
        .send(&data(11, 5), b"12345678", &Layout::Apart)
        .unwrap();
    driver.send(&data(11, 3), b"abc", &Layout::Apart).unwrap();
    let mut bytes = [0; 8];
    outside.read_exact(&mut bytes).unwrap();
    assert_eq!(&bytes, b"12345abc");
    for len in [u32::MAX, 1 << 31, 65_537] {
        let (mut outside, _) = connect(&scene, &mut driver, 12);
        driver
            .send(&Header { len, ..data(12, 0) }, &[], &Layout::Apart)
            .unwrap();
        hears_reset(&mut driver, 12);
        assert!(outside.read(&mut [0; 8]).is_err());
    }
    scene.all_is_well_after(driver);
}

#[test]
fn unknown_kinds_and_packets_of_no_connection_are_reset() {
    let scene = Scene::new();
    let mut driver = scene.bad();
    let strange = Header {
        kind: 9,
        ..packet(20, Operation::Request)
    };
    send(&mut driver, &strange);
    hears_reset(&mut driver, 20);
    for op in [
        Operation::Response,
        Operation::Shutdown,
        Operation::Data,
        Operation::CreditUpdate,
        Operation::CreditRequest,
    ] {
        send(&mut driver, &packet(21, op));
        hears_reset(&mut driver, 21);
    }
    // Nothing answers a reset; an unknown operation may be answered by one.
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
    while let Some((header, _)) = driver.receive(A_WHILE).unwrap() {
        assert_ne!(header.dst_port, 22);
    }
    scene.all_is_well_after(driver);
}

#[test]
fn a_guest_cannot_pass_for_another() {
    let scene = Scene::new();
    let mut driver = scene.bad();
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
    assert!(scene.listener.accept_timeout(A_WHILE).is_err());
    scene.all_is_well_after(driver);
}

#[test]
fn credit_that_is_over_run_or_lied_about_ends_the_connection() {
    let scene = Scene::new();
    let mut driver = scene.bad();
    // The host's program does not read; the guest sends on and on.
    let (mut outside, response) = connect(&scene, &mut driver, 40);
    let room = response.buf_alloc as usize;
    let mut sent = 0;
    while sent <= 4 * room + (1 << 20) {
        driver
            .send(&data(40, 32 << 10), &[7; 32 << 10], &Layout::Apart)
            .unwrap();
        sent += 32 << 10;
    }
    hears_reset(&mut driver, 40);
    let mut buffer = vec![0; 1 << 20];
    eventually("the reader finds an error", || {
        outside.read(&mut buffer).is_err()
    });
    // More passed on than was ever sent; a buffer of 4 GiB.
    let (outside, _) = connect(&scene, &mut driver, 41);
    for (fwd_cnt, buf_alloc) in [(1 << 20, 0), (u32::MAX, u32::MAX), (1 << 31, 1 << 31)] {
        let lie = Header {
            fwd_cnt,
            buf_alloc,
            ..packet(41, Operation::CreditUpdate)
        };
        send(&mut driver, &lie);
    }
    drop(outside);
    scene.all_is_well_after(driver);
}

#[test]
fn a_flood_of_requests_takes_no_more_than_its_bound() {
    let scene = Scene::new();
    let mut driver = scene.bad();
    let before = resident_bytes();
    let start = Instant::now();
    for port in 0..100_000 {
        send(&mut driver, &packet(port, Operation::Request));
        while let Some(received) = driver.poll_receive() {
            driver.give_back(received.buffer);
        }
        driver.refill();
        if port % 10_000 == 0 {
            scene.others_are_well();
        }
    }
    let grown = resident_bytes().saturating_sub(before);
    assert!(grown < 200 << 20, "{grown} bytes in {:?}", start.elapsed());
    drop(driver);
    // What the host had not accepted is gone with its guest.
    eventually("the flood is over", || {
        scene.world.handle().status().unwrap().connections == 1
    });
    scene.others_are_well();
}

#[test]
fn floods_whose_answers_nobody_takes_stop_being_read() {
    let scene = Scene::new();
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
        let mut driver = Driver::new(&scene.world.socket("web"), options).unwrap();
        driver.connect().unwrap();
        let before = resident_bytes();
        let nobody = |port| Header {
            dst_port: 9,
            ..packet(port, op)
        };
        let mut sent = 0;
        while sent < 200_000 && driver.send(&nobody(sent), &[], &Layout::Together).is_ok() {
            sent += 1;
        }
        assert!(sent < 200_000, "{op:?} without end");
        let grown = resident_bytes().saturating_sub(before);
        assert!(grown < 64 << 20, "{op:?}: {grown} bytes");
        scene.others_are_well();
        // It takes them up again when there is room.
        driver.refill();
        let (answer, ..) = hear(&mut driver);
        assert_eq!(answer, Operation::Reset);
    }
    scene.all_is_well_after(scene.bad());
}

#[test]
fn data_before_the_response_is_no_connection() {
    let scene = Scene::new();
    scene.world.register(5000);
    let mut driver = scene.bad();
    scene
        .world
        .is("web", hvsock_broker::model::PartitionState::Running);
    let world = &scene.world;
    std::thread::scope(|scope| {
        let connecting = scope.spawn(move || world.connect_to("web", 5000));
        let (op, request, _) = hear(&mut driver);
        assert_eq!(op, Operation::Request);
        let early = Header {
            dst_port: request.src_port,
            src_port: request.dst_port,
            ..data(0, 4)
        };
        driver.send(&early, b"soon", &Layout::Apart).unwrap();
        let (op, ..) = hear(&mut driver);
        assert_eq!(op, Operation::Reset);
        assert!(connecting.join().unwrap().is_err());
    });
    scene.all_is_well_after(driver);
}

#[test]
fn data_after_the_end_is_a_fault_and_no_data() {
    let scene = Scene::new();
    let mut driver = scene.bad();
    let (mut outside, _) = connect(&scene, &mut driver, 60);
    let end = Header {
        flags: shutdown::SEND,
        ..packet(60, Operation::Shutdown)
    };
    send(&mut driver, &end);
    driver.send(&data(60, 4), b"late", &Layout::Apart).unwrap();
    hears_reset(&mut driver, 60);
    let mut bytes = Vec::new();
    // The end had come; what came after it has not.
    let _ = outside.read_to_end(&mut bytes);
    assert_eq!(bytes, b"");
    // An end is for good: what is said later adds to it.
    let (_outside, _) = connect(&scene, &mut driver, 61);
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
    let (op, header, _) = hear(&mut driver);
    assert!(
        matches!(op, Operation::Reset | Operation::Shutdown),
        "{header:?}"
    );
    scene.all_is_well_after(driver);
}

#[test]
fn kicks_at_full_rate_take_nobody_elses_turn() {
    let scene = Scene::new();
    let driver = scene.bad_with(Options::new(WEB).without(features::EVENT_IDX));
    let mut driver = driver;
    let until = Instant::now() + Duration::from_secs(1);
    let mut slowest = Duration::ZERO;
    while Instant::now() < until {
        for _ in 0..2000 {
            driver.tx().kick();
            driver.rx().kick();
        }
        let start = Instant::now();
        scene.others_are_well();
        slowest = slowest.max(start.elapsed());
    }
    assert!(slowest < Duration::from_secs(1), "{slowest:?}");
    scene.all_is_well_after(driver);
}

#[test]
fn a_used_ring_that_the_guest_writes_over_harms_the_guest_only() {
    let scene = Scene::new();
    let lawless = Options {
        lawless: true,
        ..Options::new(WEB)
    };
    let mut driver = scene.bad_with(lawless.clone());
    for port in 0..500_u32 {
        send(&mut driver, &packet(port, Operation::CreditRequest));
        let noise: Vec<u8> = (0..64)
            .map(|at| (port as u8).wrapping_mul(31) ^ at)
            .collect();
        driver.rx().used_ring().put(2 + port as usize % 900, &noise);
        if port % 50 == 0 {
            driver.reboot().unwrap();
            scene.others_are_well();
        }
    }
    drop(driver);
    let mut driver = scene.bad_with(lawless);
    for port in 0..100 {
        send(&mut driver, &packet(port, Operation::CreditRequest));
        driver.rx().available_ring().put(0, &[0xff; 64]);
        driver.rx().kick();
    }
    scene.all_is_well_after(driver);
}
