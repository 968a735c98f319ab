//! The running broker's part of an upgrade: [`server`] hands it over to whoever may take it, and [`state`] is what
//! the operator who asked for that waits for.

mod server;
mod state;

use std::time::Duration;

pub(crate) use server::{HandoverServer, answer_last};
pub(crate) use state::{Asked, Upgrades};

/// The release of this program.
pub(crate) const RELEASE: &str = env!("CARGO_PKG_VERSION");

/// How long answers of the control API may take before the freeze.
pub(crate) const ANSWERS: Duration = Duration::from_millis(500);
