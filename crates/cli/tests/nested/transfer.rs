//! Long transfers between the host and a container in a VM, every byte of which is compared.

use hvsock_testkit::nested::Listens;

use crate::partitions::Partitions;
use crate::reading::Place::{Box, Host, Web};
use crate::stage::HOST;

/// The MiB of each transfer: 48 by default, 1024 for a GiB.
const VARIABLE: &str = "HVSOCK_TEST_TRANSFER_MIB";

#[test]
fn a_long_transfer_between_the_host_and_a_container_in_a_vm_loses_and_changes_no_byte() {
    let Some(partitions) = Partitions::new() else {
        return;
    };
    let mebibytes = std::env::var(VARIABLE)
        .ok()
        .and_then(|text| text.parse().ok());
    let bytes = mebibytes.unwrap_or(48_u64) << 20;
    for owner in [Host, Web] {
        for (name, port) in [("Sink", "7500"), ("Source", "7501")] {
            let register = ["service", "register", name, "--port", port];
            partitions.probe(owner).hvsock(&register).ok();
        }
    }
    for at in [Host, Box] {
        let probe = partitions.probe(at);
        probe
            .listen("any", "7500", Listens::Sink)
            .expect("listening");
        probe
            .listen("any", "7501", Listens::Source)
            .expect("listening");
    }
    for (from, to) in [(Host, "web/box"), (Box, HOST)] {
        let probe = partitions.probe(from);
        let sent = probe
            .send(to, "7500", bytes)
            .unwrap_or_else(|error| panic!("{error:?}"));
        let received = probe
            .receive(to, "7501", bytes)
            .unwrap_or_else(|error| panic!("{error:?}"));
        for (moved, way) in [(sent, "to"), (received, "from")] {
            assert!(moved.bytes >= bytes);
            eprintln!(
                "{from:?} {way} {to}: {} MiB, {:.0} MB/s",
                moved.bytes >> 20,
                moved.rate() / 1e6
            );
        }
    }
}
