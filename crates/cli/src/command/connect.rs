//! `hvsock connect`: connects to a service from a shell.

use std::ffi::OsString;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result};
use clap::Args;
use hvsock::{ConnectOptions, HvAddr};

use super::target::Target;
use crate::context::Context;
use crate::failure::Failure;
use crate::{bridge, explain};

/// Connect to a service from this terminal or from a command
#[derive(Debug, Args)]
pub struct Connect {
    #[command(flatten)]
    target: Target,
    /// Give up after this many seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 2.0, value_parser = seconds)]
    timeout: f64,
    /// Suspend the connection while its partition is paused
    #[arg(long)]
    connected_suspend: bool,
    /// Run this command with the connection as its stdin and stdout
    #[arg(last = true)]
    command: Vec<OsString>,
}

/// Parses a timeout. The bounds are those of the socket option HVSOCKET_CONNECT_TIMEOUT.
fn seconds(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(seconds) if (0.001..=300.0).contains(&seconds) => Ok(seconds),
        _ => Err("expected 0.001 to 300 seconds".to_owned()),
    }
}

impl Connect {
    pub fn run(self, context: &Context) -> Result<()> {
        let (partition, service) = self.target.address()?;
        let address = HvAddr::new(partition, service);
        let stream = ConnectOptions::new()
            .endpoint(context.endpoint())
            .timeout(Duration::from_secs_f64(self.timeout))
            .connected_suspend(self.connected_suspend)
            .explain_refusal(true)
            .connect(address.clone())
            .map_err(|error| explain::failure(context, error, &address, false))?;
        let Some((program, arguments)) = self.command.split_first() else {
            return bridge::run(&stream, context);
        };
        let mut command = Command::new(program);
        command
            .args(arguments)
            .env("HVSOCK_SERVICE", address.service().to_string());
        let child = stream.spawn(command);
        let child = child.with_context(|| format!("cannot run {}", program.display()))?;
        let status = child.wait();
        let status = status.map_err(|error| bridge::child_failed(program, error))?;
        if !status.success() {
            let program = program.display();
            return Err(Failure::new(format!("{program} failed with {status}")).into());
        }
        Ok(())
    }
}
