//! Memory of a guest beyond its first region: above 4 GiB, in a file of its own, also added while the guest runs.

use std::os::fd::BorrowedFd;

use hvsock_testkit::guest::front_end::script::Step;
use hvsock_testkit::guest::virtqueue::Descriptor;
use hvsock_testkit::guest::vmm::{Vmm, encode_region, protocol, request};
use hvsock_testkit::guest::{Driver, FrontEnd, HOST, Memory, Options, Region, Regions};
use hvsock_testkit::wait::TIMEOUT;
use hvsock_testkit::world::{WEB, World};
use hvsock_virtio::{HEADER_LEN, Header, Operation, SocketKind};

use crate::vmms::{each, world};

/// Where it begins for the guest.
const HIGH: u64 = 4 << 30;
/// An unused address in the VMM.
const IN_PROCESS: u64 = 0x7000_0000_0000;

/// A file of memory, and the region that it is.
fn high(front_end: FrontEnd) -> (Memory, Region) {
    let memory = Memory::of(front_end.script().memory, 1 << 20, Regions::One).unwrap();
    let region = Region {
        guest: HIGH,
        process: IN_PROCESS,
        ..memory.regions()[0]
    };
    (memory, region)
}

/// Sends a request for a connection whose only buffer is at the start of `memory`. The device answers it.
fn request_from(driver: &mut Driver, memory: &Memory, port: u32) {
    let header = Header {
        src_cid: WEB,
        dst_cid: HOST,
        src_port: port,
        dst_port: 9,
        kind: SocketKind::Stream as u16,
        op: Operation::Request as u16,
        ..Header::default()
    };
    memory.bytes(0, HEADER_LEN).put(0, &header.encode());
    let tx = driver.tx();
    let (at, head) = (tx.available_ring().load_u16(2).unwrap(), tx.size() - 1);
    let descriptor = Descriptor {
        address: HIGH,
        len: HEADER_LEN as u32,
        ..Descriptor::default()
    };
    tx.write_descriptor(head, &descriptor);
    tx.write_available(at, head);
    tx.set_available_index(at.wrapping_add(1));
    tx.kick();
    let (answer, _) = driver.receive(TIMEOUT).unwrap().expect("an answer");
    assert_eq!(answer.operation(), Some(Operation::Reset));
    assert_eq!(answer.dst_port, port);
}

fn driver(world: &World, front_end: FrontEnd) -> Driver {
    world.driver(Options {
        // The test fills the queue itself.
        hostile: true,
        ..Options::of(front_end, WEB)
    })
}

#[test]
fn regions_may_be_files_of_their_own() {
    each(|front_end| {
        let world = world(front_end);
        let mut driver = driver(&world, front_end);
        let (memory, region) = high(front_end);
        let mut body = 2_u64.to_ne_bytes().to_vec();
        body.extend(encode_region(&driver.memory().regions()[0]));
        body.extend(encode_region(&region));
        let files = [driver.memory().descriptor(), memory.descriptor()];
        let vmm = driver.vmm().unwrap();
        vmm.send_acked(request::SET_MEM_TABLE, &body, &files)
            .unwrap();
        driver.run(&[Step::Barrier]).unwrap();
        (1000..1010).for_each(|port| request_from(&mut driver, &memory, port));
    });
}

#[test]
fn memory_that_cloud_hypervisor_adds_to_a_running_vm_is_used() {
    let front_end = FrontEnd::CloudHypervisor;
    let world = world(front_end);
    let mut driver = driver(&world, front_end);
    let (memory, region) = high(front_end);
    let vmm = driver.vmm().unwrap();
    assert_ne!(vmm.protocol() & protocol::CONFIGURE_MEM_SLOTS, 0);
    // `VhostUserSingleMemoryRegion`: padding, and a region.
    let mut body = 0_u64.to_ne_bytes().to_vec();
    body.extend(encode_region(&region));
    let add =
        |vmm: &Vmm, files: &[BorrowedFd<'_>]| vmm.send_acked(request::ADD_MEM_REG, &body, files);
    add(vmm, &[memory.descriptor()]).unwrap();
    (1000..1010).for_each(|port| request_from(&mut driver, &memory, port));
    // Once more it would overlap itself. The VMM goes on.
    let vmm = driver.vmm().unwrap();
    add(vmm, &[memory.descriptor()]).unwrap_err();
    vmm.send_acked(request::REM_MEM_REG, &body, &[]).unwrap();
    vmm.send_acked(request::REM_MEM_REG, &body, &[])
        .unwrap_err();
    add(vmm, &[memory.descriptor()]).unwrap();
    request_from(&mut driver, &memory, 2000);
}
