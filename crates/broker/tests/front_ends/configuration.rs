//! The configuration space, as each VMM reads and writes it. Cloud Hypervisor panics if the device answers an
//! access with an error, and some guests write.

use hvsock_testkit::guest::{Driver, FrontEnd};
use hvsock_testkit::world::{WEB, World};

use crate::data::ping;
use crate::vmms::{each, guest, world};

/// Reads at every offset with every access size of a processor, and beyond the device's own 8 bytes.
fn read_everywhere(driver: &mut Driver) {
    let cid = WEB.to_le_bytes();
    for size in [1, 2, 4, 8, 256] {
        for offset in [0_u32, 1, 2, 3, 4, 5, 7, 8, 9, 12, 60, 255] {
            if offset + size > 256 {
                continue;
            }
            let read = driver.read_config(offset, size);
            let read = read.unwrap_or_else(|error| panic!("{size} at {offset}: {error}"));
            let expected = (offset..offset + size).map(|at| cid.get(at as usize).unwrap_or(&0));
            assert!(read.iter().eq(expected), "{size} at {offset}: {read:?}");
        }
    }
}

#[test]
fn a_read_of_the_configuration_is_answered_at_any_offset_and_size() {
    each(|vmm| {
        let world = world(vmm);
        let (listener, guest) = (world.listen(), guest(&world, vmm));
        let (inside, outside) = world.pair(&guest, &listener);
        guest.with_driver(read_everywhere);
        ping(&inside, &outside);
    });
}

#[test]
fn a_write_of_the_configuration_is_acknowledged_and_changes_nothing() {
    each(|vmm| {
        let world = world(vmm);
        let (listener, guest) = (world.listen(), guest(&world, vmm));
        let (inside, outside) = world.pair(&guest, &listener);
        guest.with_driver(|driver| {
            for (offset, bytes) in [
                (0, &[0xff; 8][..]),
                (4, &[1; 4]),
                (7, &[1]),
                (8, &[1; 4]),
                (252, &[1; 4]),
                (0, &[1; 256]),
            ] {
                driver.write_config(offset, bytes).unwrap();
            }
            assert_eq!(driver.read_config(0, 8).unwrap(), WEB.to_le_bytes());
        });
        ping(&inside, &outside);
        is_served_again(&world, vmm);
    });
}

/// Another read of the context id after all that, by a second guest of the same VM.
fn is_served_again(world: &World, vmm: FrontEnd) {
    world.later_exchange();
    assert_eq!(world.cid("web"), WEB, "{vmm:?}");
}
