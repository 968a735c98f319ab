//! The command as people and scripts use it: every subcommand, its exit status, what it prints
//! and where, against a broker of its own.

#![cfg(target_os = "linux")]

mod broker;
mod clipboard;
mod completion;
mod connections;
mod containers;
mod demo;
mod guests;
mod guests_at_fault;
mod guests_programs;
mod help;
mod in_a_guest;
mod manual;
mod refusals;
mod services;
mod shell;
mod talking;
mod util;
mod vms;
mod windows;
