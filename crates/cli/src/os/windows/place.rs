//! Whom to ask: the system, and nobody else.

use anyhow::Result;
use clap::Args;
use hvsock::Endpoint;

use super::local::Local;

/// There is only one.
#[derive(Clone, Debug, Args)]
pub struct Place {}

impl Place {
    /// What the library takes for the system's own sockets.
    pub fn endpoint(&self) -> Endpoint {
        Endpoint::from_env()
    }

    /// This machine.
    pub fn client(&self) -> Result<Local> {
        Ok(Local)
    }

    /// A command to be pasted into PowerShell or cmd, which does not know single quotes.
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
    fn words_are_quoted_as_every_shell_of_windows_takes_them() {
        let paste = |command: &str| Place {}.command(command);
        assert_eq!(
            paste("hvsock service enable 'HV Socket Demo'"),
            "hvsock service enable \"HV Socket Demo\""
        );
        for kept in ["hvsock service show '$x'", r"hvsock service show 'a'\''b'"] {
            assert_eq!(paste(kept), kept);
        }
    }
}
