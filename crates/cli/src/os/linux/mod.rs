//! On Linux the command talks to a broker, and can also run one.

mod activation;
mod advice;
mod broker_args;
pub mod clipboard;
mod command;
pub mod complete;
mod descriptor_store;
mod fix;
mod format;
pub mod guest_services;
pub mod help;
mod host_services;
mod keeper;
mod measure;
mod output;
mod partition;
mod rules;
mod seccomp_agent;
mod service_manager;
mod signals;
pub mod stdio;
mod successor;
mod time;

pub use crate::output::json as json_of_services;
pub use activation::{Activation, Served};
pub use advice::advice;
pub use broker_args::BrokerArgs;
pub use command::{Command, Vm, invalid_arguments, run_internal};
pub use fix::help as help_for;
pub use hvsock_client::Client;
pub use partition::{ExplainAs, Partition};
pub use rules::{HAS_ACCESS_RULES, REPORTS_USAGE, Rules};
pub use signals::Termination;
