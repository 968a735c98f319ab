//! The back-end of virtual machines that have no broker, in a real one: this program starts a guest,
//! has itself run there once before its kernel has vsock loopback and once after, and wants both to
//! end well. In the guest it is the conformance suite and tests of what the back-end does beyond it,
//! over loopback, so the guest needs no device and no broker.

#[path = "../asynchronously/mod.rs"]
mod asynchronously;
mod guest;
mod semantics;
mod suite;

use std::process::ExitCode;

use hvsock_testkit::conformance::{self, Role, Trial};

/// Says in the guest which of the tests to run.
const STAGE: &str = "HVSOCK_TEST_STAGE";

fn main() -> ExitCode {
    if let Some(role) = Role::of_this_process() {
        return suite::play(role);
    }
    let trials = match std::env::var(STAGE).as_deref() {
        Ok("before loopback") => semantics::before_loopback(),
        Ok(_) => {
            let mut trials = semantics::with_loopback();
            trials.extend(suite::trials());
            trials
        }
        Err(_) => vec![Trial::test(
            "everything_passes_in_a_virtual_machine",
            || {
                guest::everything_passes();
                Ok(())
            },
        )],
    };
    conformance::main(trials)
}
