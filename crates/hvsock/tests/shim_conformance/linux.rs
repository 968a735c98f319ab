//! Linux has no Hyper-V sockets, so this has no tests.

use std::process::ExitCode;

use hvsock_testkit::conformance;

pub fn main() -> ExitCode {
    conformance::main(Vec::new())
}
