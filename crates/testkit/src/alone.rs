//! Tests of what the whole process has, such as its descriptors.

use std::process::Command;
use std::{env, thread};

/// Runs the calling test in a process of its own, unless it is in one, as by nextest. Returns true there: the
/// rest of the test counts what no other test changes.
///
/// # Panics
///
/// If the test fails in that process.
#[must_use]
pub fn alone() -> bool {
    // libtest names a test's thread after the test; if tests run one by one, it is the main thread.
    let thread = thread::current();
    let name = thread.name().unwrap_or("main");
    if name == "main" || env::args().any(|argument| argument == "--exact") {
        return true;
    }
    let program = env::current_exe().expect("this program");
    let output = Command::new(program).args(["--exact", name]).output();
    let output = output.expect("this program runs");
    let printed = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{printed}");
    assert!(printed.contains("1 passed"), "{printed}");
    false
}
