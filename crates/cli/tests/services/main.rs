//! The integration services as people use them: the command on the host, `hvsock-agent` in a
//! container or a real guest.

#![cfg(target_os = "linux")]

mod agent;
mod copy;
mod forward;
mod forward_liars;
mod freeze;
mod integration;
mod kvp;
mod liars;
mod life;
mod life_guest;
mod python;
mod scene;
mod session;
mod session_apart;
mod ssh;
mod terminal;
#[path = "../cli/util.rs"]
#[allow(dead_code, reason = "the command's own suite uses all of it")]
mod util;
