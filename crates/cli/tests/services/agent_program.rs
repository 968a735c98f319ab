//! `hvsock-agent` of this build, as an example program that tests run without a guest.

#[cfg(target_os = "linux")]
fn main() -> std::process::ExitCode {
    hvsock_services::agent::main()
}

/// The agent is a Linux program; no test runs it elsewhere.
#[cfg(not(target_os = "linux"))]
fn main() {}
