//! `hvsock keeper`: keeps a broker running on a machine without systemd.

use std::ffi::OsString;
use std::time::Duration;

use anyhow::Result;
use clap::Args;

use super::broker;
use crate::context::Context;
use crate::failure::Ended;
use crate::os::linux::keeper;

/// Keep a broker running, and its connections over a restart, on a machine without systemd
#[derive(Debug, Args)]
pub struct Keeper {
    /// End and start the broker again if it does not say for so many seconds that it works
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u32).range(1..))]
    watchdog: Option<u32>,
    /// The broker's command line
    #[arg(last = true, required = true, value_name = "COMMAND")]
    command: Vec<OsString>,
}

impl Keeper {
    pub fn run(self, context: &Context) -> Result<()> {
        let _summaries = broker::log(context.quiet);
        let watchdog = self
            .watchdog
            .map(|seconds| Duration::from_secs(seconds.into()));
        match keeper::keep(self.command, watchdog)? {
            0 => Ok(()),
            status => Err(Ended(status).into()),
        }
    }
}
