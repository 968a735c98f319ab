//! The back-end of virtual machines that have no broker, in real ones: this program starts a guest
//! and has itself run there, so the tests below are the host's part and the guest's part.
//!
//! - In a guest that is alone, over loopback: before its kernel has that, then the conformance suite
//!   and what the back-end does beyond carrying bytes.
//! - In a guest of a broker: both sides run one program text, each to the other.

mod guest;
mod hosted;
mod semantics;

use std::process::ExitCode;

use hvsock::{Endpoint, Transport as Carrier};

use hvsock_testkit::conformance::{self, Role};
use semantics::trial;

use crate::by_system::System;

/// Says in the guest which of the tests to run.
const STAGE: &str = "HVSOCK_TEST_STAGE";

const VSOCK: System = System {
    endpoint: Endpoint::of_vsock,
    carrier: Carrier::Vsock,
    blocking: "vsock",
    asynchronous: "asynchronous_vsock",
    many_tasks: 500,
    tells_death: false,
    has_small_buffers: true,
};

pub fn main() -> ExitCode {
    if let Some(role) = Role::of_this_process() {
        return VSOCK.play(role);
    }
    let trials = match std::env::var(STAGE).as_deref() {
        Ok("before loopback") => semantics::before_loopback(),
        Ok("with a host") => hosted::in_the_guest(),
        Ok(_) => {
            let mut trials = semantics::with_loopback();
            trials.extend(VSOCK.trials());
            trials
        }
        Err(_) => vec![
            trial(
                "everything_passes_in_a_guest_that_is_alone",
                guest::everything_passes_alone,
            ),
            trial(
                "a_guest_and_its_host_run_one_program",
                hosted::both_run_one_program,
            ),
        ],
    };
    conformance::main(trials)
}
