//! The back-end of a virtual machine that has no broker, which Linux alone has.

#[cfg(target_os = "linux")]
#[path = "../asynchronously/mod.rs"]
mod asynchronously;
#[cfg(target_os = "linux")]
#[path = "../by_system/mod.rs"]
mod by_system;
#[cfg(target_os = "linux")]
#[path = "linux/mod.rs"]
mod os;
#[cfg(windows)]
#[path = "windows.rs"]
mod os;

use std::process::ExitCode;

fn main() -> ExitCode {
    os::main()
}
