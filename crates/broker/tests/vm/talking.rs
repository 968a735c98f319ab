//! Bytes both ways between guests and processes of the host.

use std::io::{Read, Write};
use std::net::Shutdown;

use hvsock::VmId;

use crate::world::World;

#[test]
fn a_guest_reaches_a_service_of_the_host_and_the_host_one_of_the_guest() {
    let world = World::new();
    world.register(2761);
    let guest = world.guest("web", 42, None);
    let listener = world.listen(VmId::CHILDREN, 2761);
    let mut inside = guest.connect(2761).expect("connected");
    let (mut outside, _) = listener.accept().expect("accepted");
    inside.write_all(b"from the guest").expect("written");
    inside.shutdown(Shutdown::Write).expect("ended");
    let mut text = String::new();
    outside.read_to_string(&mut text).expect("read");
    assert_eq!(text, "from the guest");
    outside.write_all(b"to the guest").expect("written");
    drop(outside);
    text.clear();
    inside.read_to_string(&mut text).expect("read");
    assert_eq!(text, "to the guest");
    drop(inside);

    let listener = guest.listen(2761).expect("a guest listens");
    let mut outside = world.connect("web", 2761).expect("connected");
    let mut inside = listener.accept(crate::world::PATIENCE).expect("accepted");
    outside.write_all(b"hello").expect("written");
    outside.shutdown(Shutdown::Write).expect("ended");
    text.clear();
    inside.read_to_string(&mut text).expect("read");
    assert_eq!(text, "hello");
    inside.write_all(b"and back").expect("written");
    drop(inside);
    text.clear();
    outside.read_to_string(&mut text).expect("read");
    assert_eq!(text, "and back");
    drop(outside);
    crate::world::eventually("no connection is left", || world.connections() == 0);
    assert_eq!(guest.faults(), [] as [String; 0]);
}
