//! Programs that know nothing of hvsock: servers that a service manager starts, clients of Unix sockets, and the
//! table of docs/programs.md.

#![cfg(target_os = "linux")]

mod activation;
mod fd_pass;
#[path = "../services/fixture.rs"]
#[allow(dead_code, reason = "the suite of the services uses all of it")]
mod fixture;
#[path = "../services/keys.rs"]
#[allow(dead_code, reason = "the suite of the services uses all of it")]
mod keys;
mod recipes;
#[path = "../cli/util.rs"]
#[allow(dead_code, reason = "the command's own suite uses all of it")]
mod util;
