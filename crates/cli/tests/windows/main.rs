//! The command on Windows: every subcommand, its exit status, stdout and stderr, with the registry of the
//! machine that runs the tests.
//!
//! These tests are for a machine without Hyper-V, as Wine is. Tests that need Hyper-V sockets are in the
//! target `shim`.

#![cfg(windows)]

mod help;
mod refusals;
mod services;
mod transfer;
mod util;
mod vms;
