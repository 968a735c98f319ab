//! The context of every command: the broker to use, and the verbosity.

use std::sync::Once;

use anyhow::Result;
use clap::Args;
use hvsock::Endpoint;

use crate::hint::Help;
use crate::os::{BrokerArgs, Client};
use crate::output::Lines;

/// The options that every command has.
#[derive(Clone, Debug, Args)]
pub struct Context {
    /// The broker to use.
    #[command(flatten)]
    pub broker: BrokerArgs,
    /// Print only results and errors
    #[arg(long, short, global = true)]
    pub quiet: bool,
}

impl Context {
    /// The endpoint through which this process listens and connects.
    pub fn endpoint(&self) -> Endpoint {
        self.note_ignored_broker();
        self.broker.endpoint()
    }

    /// A client of the control API.
    pub fn client(&self) -> Result<Client> {
        self.note_ignored_broker();
        self.broker.client()
    }

    /// Says once that the broker of another user is not used.
    fn note_ignored_broker(&self) {
        static ONCE: Once = Once::new();
        ONCE.call_once(|| {
            if let Some(why) = self.broker.ignored_broker() {
                self.note(&format!("note: {why}"));
            }
        });
    }

    /// A command to paste, with the options that select the same broker.
    pub fn command(&self, command: &str) -> String {
        self.broker.command(command)
    }

    /// The text of a help line. A command selects the same broker.
    pub fn help(&self, help: &Help) -> String {
        match help {
            Help::Command(command) => self.command(command),
            Help::Sentence(sentence) => sentence.clone(),
        }
    }

    /// Prints a note of one line on stderr, unless `--quiet` is given.
    pub fn note(&self, text: &str) {
        if !self.quiet {
            let mut lines = Lines::default();
            lines.push(crate::failure::printable(text));
            lines.print_to_stderr();
        }
    }
}
