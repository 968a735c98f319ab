//! The conformance suite with Hyper-V sockets, of Windows or of the AF_HYPERV shim.

#[cfg(windows)]
#[path = "../async_stream/mod.rs"]
mod async_stream;
#[cfg(target_os = "linux")]
#[path = "linux.rs"]
mod os;
#[cfg(windows)]
#[path = "windows.rs"]
mod os;
#[cfg(windows)]
#[path = "../system_sockets/mod.rs"]
mod system_sockets;

use std::process::ExitCode;

fn main() -> ExitCode {
    os::main()
}
