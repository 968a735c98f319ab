//! On Linux a broker answers, which the command can also run.

mod advice;
pub mod clipboard;
mod command;
pub mod guest_services;
pub mod help;
mod host_services;
mod measure;
mod output;
mod partition;
mod place;
mod rules;
mod signals;
pub mod stdio;
mod words;

pub use crate::output::json as json_of_services;
pub use advice::advice;
pub use command::{Command, Vm};
pub use hvsock_broker::api::client::Client;
pub use partition::{Asker, Partition};
pub use place::Place;
pub use rules::{COUNTS_USE, KEEPS_RULES, Rules};
pub use signals::Termination;
