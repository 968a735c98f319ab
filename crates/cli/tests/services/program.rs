//! `hvsock-agent` as a program of this build, for tests that need no guest to put it into.

#[cfg(target_os = "linux")]
fn main() -> std::process::ExitCode {
    hvsock_services::agent::main()
}

/// There is none elsewhere, and no test that asks for it.
#[cfg(not(target_os = "linux"))]
fn main() {}
