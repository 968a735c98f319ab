//! The buffer that a guest is offered on a connection with a process.

use hvsock::{HvListener, ServiceId, VmId};
use hvsock_testkit::guest::{Layout, Options};
use hvsock_testkit::wait::TIMEOUT;
use hvsock_testkit::world::{PORT, WEB, World};
use hvsock_virtio::Operation;

use crate::hostile::packet;

/// The `buf_alloc` of the response to a connect of a guest.
fn offered(listen: impl FnOnce(&World) -> HvListener) -> u32 {
    let world = World::with_web(|_| ());
    let _listener = listen(&world);
    let mut driver = world.driver(Options::new(WEB));
    let request = packet(50_000, Operation::Request);
    driver.send(&request, &[], &Layout::Apart).unwrap();
    let (response, _) = driver.receive(TIMEOUT).unwrap().expect("a response");
    assert_eq!(response.operation(), Some(Operation::Response));
    response.buf_alloc
}

#[test]
fn a_connection_with_a_guest_has_a_ring_of_1_mib_unless_the_process_asks_for_another_size() {
    assert_eq!(offered(World::listen), 1 << 20);
    for (requested, size) in [(64 << 10, 64 << 10), (1, 16 << 10), (16 << 20, 1 << 20)] {
        let buf_alloc = offered(|world| {
            HvListener::options()
                .endpoint(world.host().endpoint())
                .ring_size(requested)
                .listen((VmId::CHILDREN, ServiceId::from_port(PORT)))
                .expect("listening")
        });
        assert_eq!(buf_alloc, size, "{requested}");
    }
}
