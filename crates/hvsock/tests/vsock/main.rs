//! The back-end of a virtual machine without a broker, on Linux.

#[cfg(target_os = "linux")]
#[path = "../async_stream/mod.rs"]
mod async_stream;
#[cfg(target_os = "linux")]
#[path = "linux/mod.rs"]
mod os;
#[cfg(windows)]
#[path = "windows.rs"]
mod os;
#[cfg(target_os = "linux")]
#[path = "../system_sockets/mod.rs"]
mod system_sockets;

use std::process::ExitCode;

fn main() -> ExitCode {
    os::main()
}
