//! Linux has no Hyper-V sockets, and needs nothing to stand in for them.

use std::process::ExitCode;

use hvsock_testkit::conformance;

pub fn main() -> ExitCode {
    conformance::main(Vec::new())
}
