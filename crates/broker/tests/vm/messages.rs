//! Hostile and unusual vhost-user requests of a VMM. Covers malformed messages, memory tables,
//! vrings, eventfds and resets. After each, other machines and the operator are served.

use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use hvsock_testkit::guest::vmm::{
    RingAddresses, Vmm, encode_region, protocol, request, vring_state,
};
use hvsock_testkit::guest::{Driver, Memory, Options, Region, Regions};
use hvsock_virtio::features;
use rustix::fs::{MemfdFlags, SealFlags};

use crate::hostile::Fixture;
use hvsock_testkit::world::WEB;

const BOUND: Duration = Duration::from_secs(30);
const ALL: u64 = features::VERSION_1 | features::EVENT_IDX | features::INDIRECT_DESC;

fn vmm(fixture: &Fixture) -> Vmm {
    let mut vmm = Vmm::connect(&fixture.world.socket("web"), BOUND).expect("connected");
    vmm.negotiate(ALL, protocol::REPLY_ACK | protocol::MQ)
        .expect("agreed");
    vmm
}

#[test]
fn a_malformed_message_ends_only_the_vmms_connection() {
    let fixture = Fixture::new();
    for bytes in [
        &[0xff; 64][..],
        &[0; 12],
        &[0; 5],
        // A request with a body of 4 GiB.
        &[5, 0, 0, 0, 1, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 1, 2, 3],
        // Another version.
        &[1, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0],
        // A reply without a request.
        &[1, 0, 0, 0, 5, 0, 0, 0, 0, 0, 0, 0],
    ] {
        let vmm = Vmm::connect(&fixture.world.socket("web"), BOUND).expect("connected");
        let _ = vmm.socket().write_all(bytes);
        fixture.others_still_work();
    }
    fixture.everything_works_after(fixture.hostile());
}

#[test]
fn the_broker_survives_every_request_with_an_invalid_body() {
    let fixture = Fixture::new();
    for number in 0..50 {
        for body in [
            &[][..],
            &[0; 4],
            &[0xff; 8],
            &[0; 8],
            &[0xff; 40],
            &[0x11; 300],
        ] {
            let vmm = vmm(&fixture);
            let _ = vmm.send(number, 0, body, &[]);
            // In case the connection is still open.
            let _ = vmm.send(request::GET_FEATURES, 0, &[], &[]);
        }
    }
    fixture.everything_works_after(fixture.hostile());
}

#[test]
fn memory_of_every_kind_is_accepted() {
    let fixture = Fixture::new();
    let unsealed = rustix::fs::memfd_create("unsealed", MemfdFlags::ALLOW_SEALING).unwrap();
    rustix::fs::ftruncate(&unsealed, 1 << 20).unwrap();
    let region = Region {
        guest: 0,
        len: 1 << 20,
        process: 1 << 30,
        offset: 0,
    };
    let set = |memory: BorrowedFd<'_>| vmm(&fixture).set_memory(&[region], memory);
    set(unsealed.as_fd()).unwrap();
    let file = std::fs::File::create_new(fixture.world.folder.join("memory")).unwrap();
    assert!(set(file.as_fd()).is_err());
    file.set_len(1 << 20).unwrap();
    set(file.as_fd()).unwrap();
    rustix::fs::fcntl_add_seals(&unsealed, SealFlags::SHRINK).unwrap();
    set(unsealed.as_fd()).unwrap();
    fixture.everything_works_after(fixture.hostile());
}

#[test]
fn invalid_memory_regions_are_refused() {
    let fixture = Fixture::new();
    let memory = Memory::new(1 << 20, Regions::One).unwrap();
    let good = Region {
        guest: 0,
        len: 1 << 20,
        process: 1 << 30,
        offset: 0,
    };
    for bad in [
        Region {
            len: (1 << 20) + memory.len() as u64,
            ..good
        },
        Region {
            offset: memory.len() as u64,
            ..good
        },
        Region {
            offset: u64::MAX - 4095,
            ..good
        },
        Region {
            len: u64::MAX,
            ..good
        },
        Region { len: 0, ..good },
        Region {
            guest: u64::MAX - 4095,
            ..good
        },
        Region {
            process: u64::MAX - 4095,
            ..good
        },
        Region {
            offset: 7,
            len: 4096,
            ..good
        },
    ] {
        let _ = vmm(&fixture).set_memory(&[bad], memory.descriptor());
        fixture.others_still_work();
    }
    // Overlapping regions, too many, a count above the entries, and no file descriptor.
    let half = Region {
        len: 1 << 19,
        ..good
    };
    let over = Region {
        guest: 1 << 18,
        ..half
    };
    let _ = vmm(&fixture).set_memory(&[half, over], memory.descriptor());
    let many = (0..16).map(|at| Region {
        guest: at << 30,
        len: 4096,
        ..good
    });
    let _ = vmm(&fixture).set_memory(&many.collect::<Vec<_>>(), memory.descriptor());
    let mut body = vec![200, 0, 0, 0, 0, 0, 0, 0];
    body.extend(encode_region(&good));
    let _ = vmm(&fixture).send(request::SET_MEM_TABLE, 0, &body, &[memory.descriptor()]);
    body[0] = 1;
    let _ = vmm(&fixture).send(request::SET_MEM_TABLE, 0, &body, &[]);
    fixture.everything_works_after(fixture.hostile());
}

#[test]
fn invalid_vrings_are_refused_or_stop_only_their_own_machine() {
    let fixture = Fixture::new();
    let memory = Memory::new(1 << 20, Regions::One).unwrap();
    let event = hvsock_sys::event::Event::new().unwrap();
    let address = |offset| memory.process_address(offset);
    let good = RingAddresses {
        descriptors: address(0),
        available: address(1 << 16),
        used: address(1 << 17),
    };
    let addresses = [
        RingAddresses {
            descriptors: 0,
            ..good
        },
        RingAddresses {
            descriptors: address(memory.len() - 16),
            ..good
        },
        RingAddresses {
            available: u64::MAX - 1,
            ..good
        },
        RingAddresses {
            available: address(3),
            ..good
        },
        RingAddresses {
            used: address(memory.len() - 4),
            ..good
        },
        RingAddresses {
            used: good.available,
            ..good
        },
        good,
    ];
    for at in addresses {
        for (index, size, base) in [
            (0, 128, 0),
            (1, 128, 65_535),
            (1, 3, 0),
            (0, 0, 0),
            (9, 128, 0),
        ] {
            let vmm = vmm(&fixture);
            vmm.set_memory(memory.regions(), memory.descriptor())
                .unwrap();
            let events = [event.as_fd(), event.as_fd()];
            let _ = vmm.start_ring(index, size, base, at, events);
            let _ = vmm.enable_ring(index, true);
            event.set();
            let _ = vmm.stop_ring(index);
        }
        fixture.others_still_work();
    }
    // A vring before SET_MEM_TABLE, GET_VRING_BASE of one never started, and an unknown vring.
    let vmm1 = vmm(&fixture);
    let _ = vmm1.start_ring(0, 128, 0, good, [event.as_fd(), event.as_fd()]);
    drop(vmm1);
    let _ = vmm(&fixture).stop_ring(1);
    let _ = vmm(&fixture).send_acked(request::SET_VRING_ENABLE, &vring_state(77, 1), &[]);
    fixture.everything_works_after(fixture.hostile());
}

#[test]
fn kick_and_call_descriptors_of_another_kind_are_refused() {
    let fixture = Fixture::new();
    let (reader, writer) = rustix::pipe::pipe().unwrap();
    let memory = Memory::new(4096, Regions::One).unwrap();
    for request in [
        request::SET_VRING_KICK,
        request::SET_VRING_CALL,
        request::SET_VRING_ERR,
    ] {
        for descriptor in [reader.as_fd(), writer.as_fd(), memory.descriptor()] {
            let _ = vmm(&fixture).send_acked(request, &0_u64.to_ne_bytes(), &[descriptor]);
        }
        // Two descriptors, none, and none with the no-descriptor flag set.
        let _ = vmm(&fixture).send_acked(request, &[0; 8], &[reader.as_fd(), reader.as_fd()]);
        let _ = vmm(&fixture).send_acked(request, &[0; 8], &[]);
        let _ = vmm(&fixture).send_without_fd(request, 0);
    }
    fixture.everything_works_after(fixture.hostile());
}

#[test]
fn a_silent_vmm_does_not_block_other_machines() {
    let fixture = Fixture::new();
    let silent = Vmm::connect(&fixture.world.socket("web"), BOUND).expect("connected");
    fixture.others_still_work();
    // Half a message.
    silent.socket().write_all(&[1, 0, 0]).unwrap();
    fixture.others_still_work();
    drop(silent);
    fixture.everything_works_after(fixture.hostile());
}

#[test]
fn the_memory_table_may_be_replaced_while_the_queues_run() {
    let fixture = Fixture::new();
    let driver = fixture.hostile();
    for _ in 0..10 {
        let memory = driver.memory();
        let set = driver
            .vmm()
            .unwrap()
            .set_memory(memory.regions(), memory.descriptor());
        set.unwrap();
    }
    // Also by one that lacks the running queues.
    let other = Memory::new(4096, Regions::One).unwrap();
    let _ = driver
        .vmm()
        .unwrap()
        .set_memory(other.regions(), other.descriptor());
    let mut driver = driver;
    driver.tx().kick();
    driver.rx().kick();
    fixture.everything_works_after(driver);
}

#[test]
fn a_device_works_after_a_reset() {
    let fixture = Fixture::new();
    let mut driver: Driver = fixture.hostile_with(Options::new(WEB));
    let vmm = driver.vmm().unwrap();
    if vmm.protocol() & protocol::RESET_DEVICE != 0 {
        vmm.send_acked(request::RESET_DEVICE, &[], &[]).unwrap();
        driver.reset_queues();
        driver.start_queues([0, 0]).unwrap();
        driver.refill();
    }
    fixture.everything_works_after(driver);
}
