//! On Windows the system itself is the broker: services are in its registry, virtual machines are
//! Hyper-V's, and Windows decides which partitions may connect.

mod activation;
mod advice;
mod broker_args;
pub mod clipboard;
mod command;
pub mod complete;
mod fix;
pub mod help;
mod local;
mod missing;
mod partition;
mod rules;
mod signals;
pub mod stdio;
mod vm;

pub use activation::{Activation, Served};
pub use advice::advice;
pub use broker_args::BrokerArgs;
pub use command::{Command, invalid_arguments, run_internal};
pub use fix::help as help_for;
pub use local::Local as Client;
pub use partition::{ExplainAs, Partition};
pub use rules::{HAS_ACCESS_RULES, REPORTS_USAGE, Rules, json_of_services};
pub use signals::Termination;
pub use vm::Vm;
