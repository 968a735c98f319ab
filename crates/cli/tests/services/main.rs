//! The integration services end to end: `hvsock` on the host, `hvsock-agent` in a container or in a real
//! guest.

#![cfg(target_os = "linux")]

mod access;
mod agent;
mod audit;
mod copy;
mod copy_checked;
mod copy_destination;
mod fixture;
mod forward;
mod freeze;
mod hostile_forward;
mod hostile_guests;
mod hybrid;
mod integration;
mod keys;
mod kvp;
mod liveness;
mod liveness_guest;
mod python;
mod session;
mod session_isolated;
mod ssh;
mod terminal;
mod untrusted_text;
#[path = "../cli/util.rs"]
#[allow(dead_code, reason = "the command's own suite uses all of it")]
mod util;
