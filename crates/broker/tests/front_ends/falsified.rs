//! Each message of each VMM, falsified: sent too late or twice, shorter, longer or cut off, filled with other bytes,
//! without its descriptor or with others, or as another request. Whatever the VMM sends, other VMs and the operator
//! are served, and its own VM can be started again.

use std::io::ErrorKind;
use std::os::fd::AsFd;
use std::time::Duration;

use hvsock::HvStream;
use hvsock_sys::event::Event;
use hvsock_testkit::guest::front_end::fault::{Fault, FaultAt};
use hvsock_testkit::guest::front_end::script::{Base, Channel, Step};
use hvsock_testkit::guest::vmm::{RingAddresses, Vmm, protocol, request, vring_state};
use hvsock_testkit::guest::{Driver, FrontEnd, Guest, GuestStream, Memory, Options, Regions};
use hvsock_testkit::world::{PORT, WEB, World};
use hvsock_virtio::features;

use crate::data::ping;
use crate::vmms::{add, each};

/// How long a falsified VMM waits for an answer that may not come.
const SHORT: Duration = Duration::from_millis(10);

/// A VM whose VMM is falsified, and another one with a connection.
struct Fixture {
    world: World,
    _good: Guest,
    inside: GuestStream,
    outside: HvStream,
}

impl Fixture {
    fn new(front_end: FrontEnd) -> Self {
        let world = World::new();
        world.register(PORT);
        add(&world, "web", front_end, WEB);
        add(&world, "good", FrontEnd::Qemu, 77);
        let listener = world.listen();
        let good = world.guest_of("good", Options::new(77));
        let (inside, outside) = world.pair(&good, &listener);
        Self {
            world,
            _good: good,
            inside,
            outside,
        }
    }

    fn start(&self, options: Options) -> std::io::Result<Driver> {
        Driver::start(&self.world.socket("web"), options)
    }

    /// Asserts that the other VM and the operator are served.
    #[track_caller]
    fn others_are_served(&self) {
        ping(&self.inside, &self.outside);
        self.world.handle().status().expect("a status");
    }

    /// Asserts that the VM serves a guest whose VMM behaves.
    #[track_caller]
    fn the_vm_can_be_started(&self, front_end: FrontEnd) {
        let guest = self.world.guest_of("web", Options::of(front_end, WEB));
        let listener = self.world.listen();
        let (inside, outside) = self.world.pair(&guest, &listener);
        ping(&inside, &outside);
    }
}

/// A VMM with small queues, as the count of entries costs time at each start.
fn options(front_end: FrontEnd) -> Options {
    Options {
        queue_size: 16,
        tx_slots: 16,
        ..Options::of(front_end, WEB)
    }
}

/// Falsifies each message in turn. The messages of a queue recur, so each gets a part of the faults.
#[track_caller]
fn falsify(front_end: FrontEnd) {
    let fixture = Fixture::new(front_end);
    let whole = fixture.start(options(front_end)).expect("a driver");
    let messages = whole.messages();
    assert!(messages > 20, "{messages} messages");
    drop(whole);
    for message in 0..messages {
        let faults = (0..).zip(Fault::KINDS);
        for (_, fault) in faults.filter(|(kind, _)| (kind + message) % 5 < 2) {
            let options = Options {
                fault: Some(FaultAt { message, fault }),
                timeout: SHORT,
                hostile: true,
                ..options(front_end)
            };
            // It may also work, for example if a message is sent twice.
            if let Ok(mut driver) = fixture.start(options) {
                let _ = driver.receive(Duration::ZERO);
            }
        }
        fixture.others_are_served();
        let again = fixture.start(options(front_end));
        again.unwrap_or_else(|error| panic!("after message {message}: {error}"));
    }
    fixture.the_vm_can_be_started(front_end);
}

#[test]
fn a_falsified_message_of_cloud_hypervisor_harms_no_other_vm_and_not_the_next_start() {
    falsify(FrontEnd::CloudHypervisor);
}

#[test]
fn a_falsified_message_of_crosvm_harms_no_other_vm_and_not_the_next_start() {
    falsify(FrontEnd::Crosvm);
}

#[test]
fn a_falsified_message_of_libkrun_harms_no_other_vm_and_not_the_next_start() {
    falsify(FrontEnd::Libkrun);
}

#[test]
fn a_falsified_message_of_openvmm_harms_no_other_vm_and_not_the_next_start() {
    falsify(FrontEnd::OpenVmm);
}

/// Messages that a VMM sends in an order of its own.
const STEPS: [Step; 24] = [
    Step::Owner,
    Step::GetFeatures,
    Step::SetFeatures,
    Step::GetProtocol,
    Step::SetProtocol,
    Step::QueueNum,
    Step::RequestChannel,
    Step::MemTable { room: 0 },
    Step::MemTable { room: 5 },
    Step::ReadCid { size: 4, flags: 0 },
    Step::ResetDevice,
    Step::Queues(&[Step::Num]),
    Step::Queues(&[Step::Base(Base::Zero)]),
    Step::Queues(&[Step::Base(Base::Available)]),
    Step::Queues(&[Step::Addr { log: 0 }]),
    Step::Queues(&[Step::Kick]),
    Step::Queues(&[Step::Call]),
    Step::Queues(&[Step::Enable(true)]),
    Step::Queues(&[Step::Enable(false)]),
    Step::Queues(&[Step::GetBase]),
    Step::QueuesBackwards(&[Step::Kick, Step::Enable(true)]),
    Step::QueuesBackwards(&[Step::GetBase, Step::Call]),
    Step::Save(Channel::Pipe),
    Step::Load(Channel::Sockets),
];

#[test]
fn messages_in_any_order_harm_no_other_vm_and_not_the_next_start() {
    each(|front_end| {
        let fixture = Fixture::new(front_end);
        let mut random = 0x9e37_79b9_7f4a_7c15_u64;
        let mut at_random = |count: usize| {
            // xorshift64
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            (random % count as u64) as usize
        };
        for round in 0..30 {
            let options = Options {
                timeout: SHORT,
                hostile: true,
                ..options(front_end)
            };
            // Half of them before the queues are started for the first time.
            let started = match round % 2 {
                0 => Driver::new(&fixture.world.socket("web"), options)
                    .and_then(|mut driver| driver.open().map(|()| driver)),
                _ => fixture.start(options),
            };
            let Ok(mut driver) = started else {
                continue;
            };
            for _ in 0..20 {
                let step = STEPS[at_random(STEPS.len())];
                // The device has closed the connection.
                let closed = |error: std::io::Error| {
                    matches!(
                        error.kind(),
                        ErrorKind::UnexpectedEof | ErrorKind::BrokenPipe
                    )
                };
                if driver.run(&[step]).is_err_and(closed) {
                    break;
                }
                driver.refill();
                driver.rx().kick();
            }
            drop(driver);
            if round % 10 == 9 {
                fixture.others_are_served();
            }
        }
        fixture.the_vm_can_be_started(front_end);
    });
}

fn vmm(fixture: &Fixture, protocol: u64) -> Vmm {
    let bound = Duration::from_secs(5);
    let mut vmm = Vmm::connect(&fixture.world.socket("web"), bound).expect("connected");
    vmm.negotiate(features::VERSION_1, protocol)
        .expect("agreed");
    vmm
}

#[test]
fn a_queue_of_an_invalid_size_does_not_start() {
    each(|front_end| {
        let fixture = Fixture::new(front_end);
        let memory = Memory::new(1 << 20, Regions::One).unwrap();
        let at = |offset| memory.process_address(offset);
        let addresses = RingAddresses {
            descriptors: at(0),
            available: at(0x1000),
            used: at(0x2000),
        };
        let event = Event::new().unwrap();
        for size in [0, 3, 100, 32_767, 32_769, 65_535] {
            for queue in 0..3 {
                let vmm = vmm(&fixture, protocol::REPLY_ACK | protocol::MQ);
                vmm.set_memory(memory.regions(), memory.descriptor())
                    .unwrap();
                let events = [event.as_fd(), event.as_fd()];
                // Refused when it is set, or when the ring would start.
                let started = vmm.start_ring(queue, size, 0, addresses, events);
                assert!(started.is_err(), "{size} of {queue}");
            }
        }
        for size in [65_536, 65_536 + 128, u32::MAX] {
            let vmm = vmm(&fixture, protocol::REPLY_ACK | protocol::MQ);
            let set = vmm.send_acked(request::SET_VRING_NUM, &vring_state(0, size), &[]);
            set.unwrap_err();
        }
        fixture.others_are_served();
        fixture.the_vm_can_be_started(front_end);
    });
}

#[test]
fn a_second_owner_changes_nothing() {
    each(|front_end| {
        let fixture = Fixture::new(front_end);
        let guest = fixture.world.guest_of("web", Options::of(front_end, WEB));
        let listener = fixture.world.listen();
        let (inside, outside) = fixture.world.pair(&guest, &listener);
        guest.with_driver(|driver| {
            for _ in 0..3 {
                let vmm = driver.vmm().unwrap();
                vmm.send_acked(request::SET_OWNER, &[], &[]).unwrap();
            }
        });
        ping(&inside, &outside);
    });
}
