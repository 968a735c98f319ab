//! Windows has no `AF_VSOCK`, so this has no tests.

use std::process::ExitCode;

use hvsock_testkit::conformance;

pub fn main() -> ExitCode {
    conformance::main(Vec::new())
}
