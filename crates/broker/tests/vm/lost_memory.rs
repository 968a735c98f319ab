//! VMMs that take memory away that they share with the device.

use std::io::{ErrorKind, Read, Write};
use std::os::fd::AsFd;
use std::thread;

use hvsock_broker::model::PartitionState;
use hvsock_testkit::guest::{Driver, Guest, Options};
use hvsock_testkit::wait::eventually;
use hvsock_testkit::world::{PORT, WEB, accept, bounded};
use hvsock_virtio::{Header, Operation};

use crate::hostile::{Fixture, connect, packet};
use crate::traffic::ping;

/// A driver with unsealed memory. Its own accesses to lost memory are handled as the device's are.
fn options() -> Options {
    Options {
        hostile: true,
        ..Options::user_mode_linux(WEB)
    }
}

fn truncate(driver: &Driver, len: usize) {
    rustix::fs::ftruncate(driver.memory().descriptor(), len as u64).unwrap();
}

#[test]
fn a_vmm_that_takes_memory_away_is_disconnected_and_harms_no_other_machine() {
    let fixture = Fixture::new();
    // The rings are in the first pages.
    for kept in [0, 4096, 3 * 4096] {
        let mut driver = fixture.hostile_with(options());
        let (outside, _) = connect(&fixture, &mut driver, 1000);
        fixture.world.is("web", PartitionState::Running);
        thread::scope(|scope| {
            // Packets each way, so that the device uses all of its memory.
            let writer = scope.spawn(|| while (&outside).write_all(&[7; 60_000]).is_ok() {});
            let reader = scope.spawn(|| {
                let mut bytes = vec![0; 1 << 16];
                let mut from = &outside;
                loop {
                    match from.read(&mut bytes) {
                        Ok(0) => panic!("an end of file"),
                        Ok(_) => {}
                        Err(error) => return error,
                    }
                }
            });
            eventually("packets arrive", || driver.poll_receive().is_some());
            truncate(&driver, kept);
            let header = Header {
                len: 60_000,
                ..packet(1000, Operation::Data)
            };
            eventually("the device is reset", || {
                // Nobody knows what the rings contain now.
                let _ = driver.try_send(&header, &[1; 60_000]);
                driver.flush();
                driver.tx().kick();
                driver.rx().kick();
                driver.refill();
                fixture.world.partition("web").state == PartitionState::Off
            });
            let error = reader.join().unwrap();
            assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{error}");
            writer.join().unwrap();
        });
        fixture.others_still_work();
        // The connection is closed, too.
        let vmm = driver.vmm().unwrap();
        assert_eq!((&mut vmm.socket()).read(&mut [0]).unwrap_or(0), 0);
    }
    fixture.everything_works_after(fixture.hostile());
}

#[test]
fn the_host_is_told_why_a_connection_to_lost_memory_was_reset() {
    let fixture = Fixture::new();
    let mut driver = fixture.hostile_with(options());
    let (mut outside, _) = connect(&fixture, &mut driver, 1000);
    truncate(&driver, 0);
    driver.tx().kick();
    // The device may have noticed it before the write.
    let written = outside.write_all(b"hello");
    let read = written.and_then(|()| outside.read(&mut [0; 8]));
    let error = read.unwrap_err();
    let text = "the VMM has taken away memory that it shares with the broker";
    assert!(error.to_string().contains(text), "{error}");
    fixture.everything_works_after(driver);
}

#[test]
fn memory_that_is_taken_away_while_the_rings_start_or_are_stopped_is_noticed() {
    let fixture = Fixture::new();
    // Before the rings are in use.
    let mut driver = Driver::new(&fixture.world.socket("web"), options()).unwrap();
    truncate(&driver, 4096);
    let _ = driver.connect();
    fixture.others_still_work();
    drop(driver);
    // While it is stopped.
    let mut driver = fixture.hostile_with(options());
    fixture.world.is("web", PartitionState::Running);
    driver.reboot().unwrap();
    truncate(&driver, 0);
    let _ = driver.reboot();
    driver.rx().kick();
    driver.tx().kick();
    fixture.world.is("web", PartitionState::Off);
    fixture.everything_works_after(driver);
}

#[test]
fn memory_of_a_vmm_that_is_gone_may_be_taken_away() {
    let fixture = Fixture::new();
    let guest = fixture.world.guest_of("web", Options::user_mode_linux(WEB));
    let inside = bounded(guest.connect(PORT).unwrap());
    ping(&inside, &accept(&fixture.listener));
    let kept = guest.with_driver(|driver| driver.memory().descriptor().try_clone_to_owned());
    drop::<Guest>(guest);
    fixture.world.is("web", PartitionState::Off);
    // The device keeps nothing of a VMM that is gone.
    rustix::fs::ftruncate(kept.unwrap().as_fd(), 0).unwrap();
    fixture.others_still_work();
}
