//! The command as people and scripts use it: every subcommand, its exit status, stdout and stderr. Each
//! test has its own broker.

#![cfg(target_os = "linux")]

mod broker;
mod clipboard;
mod colours;
mod command_in_guest;
mod completion;
mod connections;
mod containers;
mod demo;
mod discover;
mod emulated;
mod guest_failures;
mod guest_programs;
mod guest_states;
mod guests;
mod help;
mod hybrid_links;
mod keeper;
mod listen_connect;
#[path = "../load/mod.rs"]
mod load;
mod log;
mod manual;
mod nri;
mod oci_hook;
mod reconnect;
mod refusals;
mod reg_files;
mod sandbox;
mod services;
mod upgrade;
mod upgrade_load;
mod upgrade_stage;
mod upgrade_streams;
mod util;
mod vmms;
mod vms;
mod watchdog;
