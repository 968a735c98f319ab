//! The kernel's vhost-vsock in a machine that plays the host: a Debian kernel under QEMU, with
//! `vhost_vsock` and `vsock_loopback`. In it run the command's broker, programs with plain `AF_VSOCK`
//! sockets, and guests on `/dev/vhost-vsock` without an emulated processor (the example `kernel_link` of the
//! testkit). The machine that runs the tests has no part in any of it.
//!
//! `cargo xtask kernel-link` runs it by hand, with any kernel, and prints the table of scenarios. Three
//! variables are for that: `HVSOCK_KERNEL_LINK_ONLY` selects scenarios by a part of their names,
//! `HVSOCK_KERNEL_LINK_JSON` names a file for the results, and with `HVSOCK_KERNEL_LINK_MEASURE` the loads are
//! long enough for figures.

#![cfg(target_os = "linux")]

mod agent;
mod broker;
mod host;
mod kernel;
mod link;
mod namespaces;
mod report;
mod unloaded;

use std::time::Instant;

use hvsock_guests::{Kit, Vmm};
use hvsock_testkit::require;

use host::Host;
use report::Report;

/// One machine for all scenarios, because a boot takes seconds. They run in this order.
#[test]
fn the_kernels_vhost_vsock_links_guests_to_services() {
    let Some(kit) = require::found(Kit::find_for(Vmm::Qemu)) else {
        return;
    };
    let Some(program) = require::example("hvsock-testkit", "kernel_link") else {
        return;
    };
    let Some(agent) = require::static_agent() else {
        return;
    };
    let start = Instant::now();
    let host = Host::boot(&kit, &program, &agent).unwrap();
    let mut report = Report::new(host.release(), start.elapsed());
    let namespaces = match host.version() >= (7, 0) {
        true => namespaces::SCENARIOS,
        false => &[],
    };
    let groups = [
        kernel::SCENARIOS,
        link::SCENARIOS,
        agent::SCENARIOS,
        namespaces,
        unloaded::SCENARIOS,
    ];
    for scenario in groups.into_iter().flatten() {
        report.run(scenario, &host);
    }
    report.end();
}
