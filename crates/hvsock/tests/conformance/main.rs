//! The conformance suite with async streams through a broker, on Linux.

#[cfg(target_os = "linux")]
#[path = "../async_stream/mod.rs"]
mod async_stream;
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
