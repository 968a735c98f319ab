//! The program whose streams transfer while a test does something to the broker.

#[cfg(target_os = "linux")]
#[path = "mod.rs"]
#[allow(dead_code, reason = "the tests use the rest")]
mod load;
#[cfg(target_os = "linux")]
mod serve;

#[cfg(target_os = "linux")]
fn main() {
    serve::run();
}

/// Its streams are on Linux.
#[cfg(not(target_os = "linux"))]
fn main() {}
