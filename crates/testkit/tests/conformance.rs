//! The conformance suite against the kernel's own sockets: a suite that these fail would be wrong,
//! and what they lack shows that a lack is shown.

mod kernel;

use std::process::ExitCode;

use hvsock_testkit::conformance::{self, Role};

fn main() -> ExitCode {
    if let Some(role) = Role::of_this_process() {
        return role.play(&kernel::stream_of_this_process().expect("a stream"));
    }
    conformance::main(kernel::all())
}
