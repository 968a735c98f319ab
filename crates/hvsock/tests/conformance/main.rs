//! The conformance suite over the asynchronous pair, through a broker, which Linux alone has.

#[cfg(target_os = "linux")]
#[path = "../asynchronously/mod.rs"]
mod asynchronously;
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
