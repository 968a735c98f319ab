//! What `cargo xtask kernel-link` runs in the machine that plays the host: a guest on the kernel's
//! `/dev/vhost-vsock` without an emulated processor, and programs with plain `AF_VSOCK` sockets.
//!
//! ```text
//! kernel_link guest --cid N --control PATH [--child]   play a VMM and its guest; serve commands at PATH
//! kernel_link tell PATH COMMAND…                       send a command to a guest, and print its answer
//! kernel_link host COMMAND…                            act as a program on the host, with plain sockets
//! kernel_link service FOLDER NAME HOW                  listen by the broker in a folder, with the library
//! ```
//!
//! The commands are in `guest.rs` and `host.rs`. An answer begins with `ok` or `error`, which is also the exit
//! status. Never run it outside a virtual machine made for it: `host` uses the machine's own `AF_VSOCK`.

#![forbid(unsafe_code)]

#[cfg(target_os = "linux")]
mod bridge;
#[cfg(target_os = "linux")]
mod guest;
#[cfg(target_os = "linux")]
mod host;
#[cfg(target_os = "linux")]
mod load;
#[cfg(target_os = "linux")]
mod service;
#[cfg(target_os = "linux")]
mod tell;

use std::process::ExitCode;

#[cfg(target_os = "linux")]
fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let answer = match words.as_slice() {
        ["guest", options @ ..] => guest::serve(options),
        ["tell", path, command @ ..] => tell::send(path.as_ref(), command),
        ["service", folder, name, how] => service::serve(folder, name, how),
        ["host", command @ ..] => host::act(command),
        _ => {
            Err("usage: kernel_link guest | tell | host | service, see the head of main.rs".into())
        }
    };
    match answer {
        Ok(text) => {
            println!("{}", format!("ok {text}").trim_end());
            ExitCode::SUCCESS
        }
        Err(text) => {
            println!("error {text}");
            ExitCode::FAILURE
        }
    }
}

#[cfg(not(target_os = "linux"))]
fn main() -> ExitCode {
    ExitCode::FAILURE
}
