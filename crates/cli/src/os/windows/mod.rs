//! On Windows the system itself is the broker: services are in its registry, virtual machines are
//! Hyper-V's, and who reaches whom is for Windows to decide.

mod advice;
pub mod clipboard;
mod command;
pub mod help;
mod local;
mod partition;
mod place;
mod rules;
mod signals;
pub mod stdio;
mod vm;

pub use advice::advice;
pub use command::Command;
pub use local::Local as Client;
pub use partition::{Asker, Partition};
pub use place::Place;
pub use rules::{COUNTS_USE, KEEPS_RULES, Rules, json_of_services};
pub use signals::Termination;
pub use vm::Vm;
