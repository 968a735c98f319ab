//! What every command gets: whom to ask, and how much to say.

use anyhow::Result;
use clap::Args;
use hvsock::Endpoint;

use crate::os::{Client, Place};

/// The options of every command.
#[derive(Clone, Debug, Args)]
pub struct Context {
    /// Which broker is meant.
    #[command(flatten)]
    pub place: Place,
    /// Print results and failures, and nothing else
    #[arg(long, short, global = true)]
    pub quiet: bool,
}

impl Context {
    /// The endpoint by which this process reaches services.
    pub fn endpoint(&self) -> Endpoint {
        self.place.endpoint()
    }

    /// Who shows and changes what there is.
    pub fn client(&self) -> Result<Client> {
        self.place.client()
    }

    /// A command to be pasted, with the options that say which broker is meant.
    pub fn command(&self, command: &str) -> String {
        self.place.command(command)
    }

    /// Tells the user something on stderr, unless told to be quiet.
    pub fn note(&self, text: &str) {
        if !self.quiet {
            eprintln!("{}", crate::failure::printable(text));
        }
    }
}
