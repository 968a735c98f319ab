//! What a VMM may say over vhost-user, and what nobody else may notice of it.

use std::io::Write;
use std::os::fd::AsFd;
use std::time::Duration;

use hvsock_testkit::guest::vmm::{RingAddresses, Vmm, protocol, region_bytes, request, state};
use hvsock_testkit::guest::{Driver, Memory, Options, Region, Regions};
use hvsock_virtio::features;
use rustix::fs::{MemfdFlags, SealFlags};

use crate::hostile::Scene;
use crate::world::WEB;

const BOUND: Duration = Duration::from_secs(5);
const ALL: u64 = features::VERSION_1 | features::EVENT_IDX | features::INDIRECT_DESC;

fn vmm(scene: &Scene) -> Vmm {
    let mut vmm = Vmm::connect(&scene.world.socket("web"), BOUND).expect("connected");
    vmm.agree(ALL, protocol::REPLY_ACK | protocol::MQ)
        .expect("agreed");
    vmm
}

#[test]
fn what_is_no_message_ends_the_connection_and_nothing_else() {
    let scene = Scene::new();
    for bytes in [
        &[0xff; 64][..],
        &[0; 12],
        &[0; 5],
        // A request with a body of 4 GiB.
        &[5, 0, 0, 0, 1, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 1, 2, 3],
        // Another version.
        &[1, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0],
        // A reply that nobody asked for.
        &[1, 0, 0, 0, 5, 0, 0, 0, 0, 0, 0, 0],
    ] {
        let vmm = Vmm::connect(&scene.world.socket("web"), BOUND).expect("connected");
        let _ = vmm.socket().write_all(bytes);
        scene.others_are_well();
    }
    scene.all_is_well_after(scene.bad());
}

#[test]
fn every_request_with_a_body_that_makes_no_sense_is_survived() {
    let scene = Scene::new();
    for number in 0..50 {
        for body in [
            &[][..],
            &[0; 4],
            &[0xff; 8],
            &[0; 8],
            &[0xff; 40],
            &[0x11; 300],
        ] {
            let vmm = vmm(&scene);
            let _ = vmm.send(number, 0, body, &[]);
            // In case it is still there.
            let _ = vmm.send(request::GET_FEATURES, 0, &[], &[]);
        }
    }
    scene.all_is_well_after(scene.bad());
}

#[test]
fn memory_that_could_shrink_is_refused() {
    let scene = Scene::new();
    let unsealed = rustix::fs::memfd_create("unsealed", MemfdFlags::ALLOW_SEALING).unwrap();
    rustix::fs::ftruncate(&unsealed, 1 << 20).unwrap();
    let region = Region {
        guest: 0,
        len: 1 << 20,
        process: 1 << 30,
        offset: 0,
    };
    assert!(vmm(&scene).set_memory(&[region], unsealed.as_fd()).is_err());
    let file = std::fs::File::create_new(scene.world.folder.join("memory")).unwrap();
    file.set_len(1 << 20).unwrap();
    assert!(vmm(&scene).set_memory(&[region], file.as_fd()).is_err());
    rustix::fs::fcntl_add_seals(&unsealed, SealFlags::SHRINK).unwrap();
    vmm(&scene).set_memory(&[region], unsealed.as_fd()).unwrap();
    scene.all_is_well_after(scene.bad());
}

#[test]
fn regions_that_cannot_be_are_refused() {
    let scene = Scene::new();
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
        let _ = vmm(&scene).set_memory(&[bad], memory.descriptor());
        scene.others_are_well();
    }
    // One over the other, too many, more said than there are, without memory.
    let half = Region {
        len: 1 << 19,
        ..good
    };
    let over = Region {
        guest: 1 << 18,
        ..half
    };
    let _ = vmm(&scene).set_memory(&[half, over], memory.descriptor());
    let many = (0..16).map(|at| Region {
        guest: at << 30,
        len: 4096,
        ..good
    });
    let _ = vmm(&scene).set_memory(&many.collect::<Vec<_>>(), memory.descriptor());
    let mut body = vec![200, 0, 0, 0, 0, 0, 0, 0];
    body.extend(region_bytes(&good));
    let _ = vmm(&scene).send(request::SET_MEM_TABLE, 0, &body, &[memory.descriptor()]);
    body[0] = 1;
    let _ = vmm(&scene).send(request::SET_MEM_TABLE, 0, &body, &[]);
    scene.all_is_well_after(scene.bad());
}

#[test]
fn rings_that_cannot_be_are_refused_or_stop_their_own_machine_only() {
    let scene = Scene::new();
    let memory = Memory::new(1 << 20, Regions::One).unwrap();
    let event = hvsock_sys::event::Event::new().unwrap();
    let place = |offset| memory.process_address(offset);
    let good = RingAddresses {
        descriptors: place(0),
        available: place(1 << 16),
        used: place(1 << 17),
    };
    let addresses = [
        RingAddresses {
            descriptors: 0,
            ..good
        },
        RingAddresses {
            descriptors: place(memory.len() - 16),
            ..good
        },
        RingAddresses {
            available: u64::MAX - 1,
            ..good
        },
        RingAddresses {
            available: place(3),
            ..good
        },
        RingAddresses {
            used: place(memory.len() - 4),
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
            let vmm = vmm(&scene);
            vmm.set_memory(memory.regions(), memory.descriptor())
                .unwrap();
            let events = [event.as_fd(), event.as_fd()];
            let _ = vmm.start_ring(index, size, base, at, events);
            let _ = vmm.enable_ring(index, true);
            event.set();
            let _ = vmm.stop_ring(index);
        }
        scene.others_are_well();
    }
    // A ring before there is memory; a base of a ring that never was.
    let vmm1 = vmm(&scene);
    let _ = vmm1.start_ring(0, 128, 0, good, [event.as_fd(), event.as_fd()]);
    drop(vmm1);
    let _ = vmm(&scene).stop_ring(1);
    let _ = vmm(&scene).tell(request::SET_VRING_ENABLE, &state(77, 1), &[]);
    scene.all_is_well_after(scene.bad());
}

#[test]
fn kicks_and_calls_that_are_no_events_are_refused() {
    let scene = Scene::new();
    let (reader, writer) = rustix::pipe::pipe().unwrap();
    let memory = Memory::new(4096, Regions::One).unwrap();
    for request in [
        request::SET_VRING_KICK,
        request::SET_VRING_CALL,
        request::SET_VRING_ERR,
    ] {
        for descriptor in [reader.as_fd(), writer.as_fd(), memory.descriptor()] {
            let _ = vmm(&scene).tell(request, &0_u64.to_ne_bytes(), &[descriptor]);
        }
        // Two where one belongs, none where one belongs, and none where none is said to come.
        let _ = vmm(&scene).tell(request, &[0; 8], &[reader.as_fd(), reader.as_fd()]);
        let _ = vmm(&scene).tell(request, &[0; 8], &[]);
        let _ = vmm(&scene).without_descriptor(request, 0);
    }
    scene.all_is_well_after(scene.bad());
}

#[test]
fn a_vmm_that_says_nothing_holds_up_nobody() {
    let scene = Scene::new();
    let silent = Vmm::connect(&scene.world.socket("web"), BOUND).expect("connected");
    scene.others_are_well();
    // Half a message.
    silent.socket().write_all(&[1, 0, 0]).unwrap();
    scene.others_are_well();
    drop(silent);
    scene.all_is_well_after(scene.bad());
}

#[test]
fn memory_may_be_told_again_while_the_queues_run() {
    let scene = Scene::new();
    let driver = scene.bad();
    for _ in 0..10 {
        let memory = driver.memory();
        let told = driver
            .vmm()
            .unwrap()
            .set_memory(memory.regions(), memory.descriptor());
        told.unwrap();
    }
    // And taken away under them.
    let other = Memory::new(4096, Regions::One).unwrap();
    let _ = driver
        .vmm()
        .unwrap()
        .set_memory(other.regions(), other.descriptor());
    let mut driver = driver;
    driver.tx().kick();
    driver.rx().kick();
    scene.all_is_well_after(driver);
}

#[test]
fn a_device_that_is_reset_begins_anew() {
    let scene = Scene::new();
    let mut driver: Driver = scene.bad_with(Options::new(WEB));
    let vmm = driver.vmm().unwrap();
    if vmm.protocol() & protocol::RESET_DEVICE != 0 {
        vmm.tell(request::RESET_DEVICE, &[], &[]).unwrap();
        driver.forget();
        driver.start_queues([0, 0]).unwrap();
        driver.refill();
    }
    scene.all_is_well_after(driver);
}
