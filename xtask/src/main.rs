//! Tasks of the repository that plain cargo cannot do, run as `cargo xtask NAME`.
//!
//! Plain `cargo build`, `cargo test --workspace` and `cargo run` work without it. It adds QEMU, Wine,
//! loom, root's tools, and the checks before a merge. `.ci/run` calls the same commands as a developer.

#![forbid(unsafe_code)]

mod bench;
mod capi;
mod ci;
mod deny;
mod fuzz;
mod kernel_link;
mod loom;
mod openapi;
mod python;
mod run;
mod statically;
mod tasks;
mod test;
mod tools;
mod vsock_test;
mod windows;

use std::process::ExitCode;

fn main() -> ExitCode {
    if fuzz::is_rustc() {
        return fuzz::as_rustc();
    }
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match tasks::dispatch(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}
