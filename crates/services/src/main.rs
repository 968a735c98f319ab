//! `hvsock-agent`: the guest side of all integration services, in one program.

#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    hvsock_services::agent::main()
}
