//! Runs the conformance suite over the kernel's own sockets. They are known to be correct, so a failure
//! is a fault of the suite. Capabilities that they lack must be reported as ignored.

mod kernel;

use std::process::ExitCode;

use hvsock_testkit::conformance::{self, Role};

fn main() -> ExitCode {
    if let Some(role) = Role::of_this_process() {
        return role.run(&kernel::stream_of_this_process().expect("a stream"));
    }
    conformance::main(kernel::all())
}
