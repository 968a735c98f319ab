//! The conformance suite over what is not run through it elsewhere: on Linux the asynchronous pair
//! through a broker, on Windows both pairs.

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
