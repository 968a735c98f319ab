//! The back-end of virtual machines without a broker, in real ones. This program starts a guest and
//! runs itself there, so the modules have tests for the host and tests for the guest.
//!
//! - In a guest without a host, over loopback: first without the loopback module, then the
//!   conformance suite and the other behaviour of the back-end.
//! - In a guest of a broker: both sides run the same program and connect to each other.

mod guest;
mod hosted;
mod semantics;

use std::process::ExitCode;

use hvsock::{Endpoint, Transport as StreamTransport};

use hvsock_testkit::conformance::{self, Role};
use semantics::trial;

use crate::system_sockets::System;

/// The variable that selects the tests to run in the guest.
const STAGE: &str = "HVSOCK_TEST_STAGE";
/// Its value in a service that a test activates.
const ACTIVATED: &str = "activated";

const VSOCK: System = System {
    endpoint: Endpoint::of_vsock,
    transport: StreamTransport::Vsock,
    blocking: "vsock",
    asynchronous: "asynchronous_vsock",
    many_tasks: 500,
    reports_peer_death: false,
    has_small_buffers: true,
};

pub fn main() -> ExitCode {
    if let Some(role) = Role::of_this_process() {
        return VSOCK.play(role);
    }
    let trials = match std::env::var(STAGE).as_deref() {
        Ok(ACTIVATED) => return semantics::activated(),
        Ok("before loopback") => semantics::before_loopback(),
        Ok("with a host") => hosted::in_the_guest(),
        Ok(_) => {
            let mut trials = semantics::with_loopback();
            trials.extend(VSOCK.trials());
            trials
        }
        Err(_) => vec![
            trial(
                "all_tests_pass_in_a_guest_without_a_host",
                guest::all_tests_pass_without_a_host,
            ),
            trial(
                "a_guest_and_its_host_run_the_same_program",
                hosted::both_run_the_same_program,
            ),
        ],
    };
    conformance::main(trials)
}
