//! The options that select the broker, which is always the system.

use anyhow::Result;
use clap::Args;
use hvsock::Endpoint;

use super::local::Local;

/// No options.
#[derive(Clone, Debug, Args)]
pub struct BrokerArgs {}

impl BrokerArgs {
    /// The endpoint for the system's own sockets.
    pub fn endpoint(&self) -> Endpoint {
        Endpoint::from_env()
    }

    /// A client of this machine.
    pub fn client(&self) -> Result<Local> {
        Ok(Local)
    }

    /// Always `None`: the system is the broker.
    pub fn ignored_broker(&self) -> Option<String> {
        None
    }

    /// A command to paste into PowerShell or cmd. cmd has no single quotes.
    pub fn command(&self, command: &str) -> String {
        let is_plain = |c: char| !"\"$`%!\\".contains(c);
        if command.chars().all(is_plain) {
            command.replace('\'', "\"")
        } else {
            command.to_owned()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_quoted_for_every_shell_of_windows() {
        let paste = |command: &str| BrokerArgs {}.command(command);
        assert_eq!(
            paste("hvsock service enable 'HV Socket Demo'"),
            "hvsock service enable \"HV Socket Demo\""
        );
        for kept in ["hvsock service show '$x'", r"hvsock service show 'a'\''b'"] {
            assert_eq!(paste(kept), kept);
        }
    }
}
