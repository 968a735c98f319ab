//! Guests that restart, each in its VMM's manner, and VMMs that end.

use hvsock_broker::model::PartitionState;
use hvsock_testkit::guest::{FrontEnd, Options};
use hvsock_testkit::world::WEB;

use crate::data::ping;
use crate::vmms::{assert_reset, each, guest, world};

#[test]
fn a_vmm_that_ends_is_off_and_can_be_started_again() {
    each(|vmm| {
        let world = world(vmm);
        let listener = world.listen();
        for _ in 0..3 {
            let guest = guest(&world, vmm);
            let (inside, outside) = world.pair(&guest, &listener);
            ping(&inside, &outside);
            drop(guest);
            world.is("web", PartitionState::Off);
            assert_reset(outside);
            drop(inside);
        }
        world.has_connections(0);
    });
}

#[test]
fn a_vm_may_be_started_by_one_vmm_after_the_other() {
    let world = world(FrontEnd::Libkrun);
    let listener = world.listen();
    for front_end in FrontEnd::ALL
        .into_iter()
        .chain(FrontEnd::ALL.into_iter().rev())
    {
        let guest = world.guest_of("web", Options::of(front_end, WEB));
        let (inside, outside) = world.pair(&guest, &listener);
        ping(&inside, &outside);
        drop(guest);
        world.is("web", PartitionState::Off);
        assert_reset(outside);
    }
}
