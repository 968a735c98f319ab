//! Windows has no `AF_VSOCK`, so there is nothing to test here.

use std::process::ExitCode;

use hvsock_testkit::conformance;

pub fn main() -> ExitCode {
    conformance::main(Vec::new())
}
