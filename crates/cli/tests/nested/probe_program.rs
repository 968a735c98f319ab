//! The program that tests start in each partition.

#[cfg(target_os = "linux")]
fn main() -> std::process::ExitCode {
    hvsock_testkit::nested::serve()
}

/// Its partitions are on Linux.
#[cfg(not(target_os = "linux"))]
fn main() {}
