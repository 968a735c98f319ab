//! The list of targets, and the one that a fuzzer runs.

use std::sync::OnceLock;

use crate::target::Target;
use crate::targets;

/// All targets, by name.
pub const TARGETS: &[Target] = targets::ALL;

/// The target of this name.
pub fn find(name: &str) -> Option<&'static Target> {
    TARGETS.iter().find(|target| target.name == name)
}

/// The environment variable that names the fuzzer's target, or is `list`.
const VARIABLE: &str = "HVSOCK_FUZZ_TARGET";

static CHOSEN: OnceLock<&Target> = OnceLock::new();

/// Chooses the fuzzer's target by the environment. Lists all, one a line, and ends the process instead if that says so
/// or names none.
pub fn choose() {
    let name = std::env::var(VARIABLE).unwrap_or_default();
    match find(&name) {
        Some(target) => {
            let _ = CHOSEN.set(target);
        }
        None if name == "list" => {
            for target in TARGETS {
                let (name, about) = (target.name, target.about);
                println!("{name}\t{}\t{}\t{about}", target.max_len, target.timeout);
            }
            std::process::exit(0);
        }
        None => {
            eprintln!("{VARIABLE} names no target: {name:?}");
            std::process::exit(2);
        }
    }
}

/// Runs an input in the chosen target.
pub fn run_chosen(bytes: &[u8]) {
    if let Some(target) = CHOSEN.get() {
        (target.run)(bytes);
    }
}
