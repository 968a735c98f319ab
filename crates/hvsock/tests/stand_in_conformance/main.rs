//! The conformance suite over Hyper-V sockets, of Windows itself or what stands in for them.

#[cfg(windows)]
#[path = "../asynchronously/mod.rs"]
mod asynchronously;
#[cfg(windows)]
#[path = "../by_system/mod.rs"]
mod by_system;
#[cfg(target_os = "linux")]
#[path = "linux.rs"]
mod os;
#[cfg(windows)]
#[path = "windows.rs"]
mod os;

use std::process::ExitCode;

fn main() -> ExitCode {
    os::main()
}
