//! A real guest with a broker, and containers in it and on this machine: who reaches whom across two brokers.

#![cfg(target_os = "linux")]

mod containers;
mod partitions;
mod reading;
mod registries;
mod restarts;
mod services;
mod stage;
mod table;
mod transfer;
#[path = "../cli/util.rs"]
#[allow(dead_code, reason = "the command's own suite uses all of it")]
mod util;
