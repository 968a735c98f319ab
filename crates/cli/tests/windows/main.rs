//! The command as people and scripts use it on Windows: every subcommand, its exit status, what it
//! prints and where, against the registry of the machine that the tests run on.
//!
//! What takes Hyper-V is in the target `shim`; here is what the command says where there is
//! none, as under Wine.

#![cfg(windows)]

mod machines;
mod refusals;
mod services;
mod shell;
mod transfer;
mod util;
