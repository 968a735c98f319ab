//! Where the broker is, as the options and the environment say.

use std::env;
use std::path::PathBuf;

use anyhow::{Context as _, Result};
use clap::Args;
use hvsock::Endpoint;
use hvsock_broker::api::client::Client;
use hvsock_endpoint::{DirSource, Dirs};

use crate::failure::Failure;
use crate::words::shell_word;

/// Which broker is meant.
#[derive(Clone, Debug, Args)]
pub struct Place {
    /// The broker's folder: all its sockets and state
    #[arg(long, global = true, value_name = "DIR")]
    dir: Option<PathBuf>,
}

impl Place {
    /// The broker whose folder this is.
    pub fn in_dir(dir: impl Into<PathBuf>) -> Self {
        Self {
            dir: Some(dir.into()),
        }
    }

    /// The folders of a broker that is to be started here.
    pub fn dirs(&self) -> Result<Dirs> {
        let uid = rustix::process::geteuid().as_raw();
        let source = DirSource::choose(self.given_dir(), uid);
        Dirs::resolve(source, |name| env::var_os(name)).map_err(|missing| {
            anyhow::anyhow!("{missing} is not set; say where the broker's folder is with --dir")
        })
    }

    /// The endpoint by which this process reaches services: `--dir` over the environment.
    pub fn endpoint(&self) -> Endpoint {
        match &self.dir {
            Some(dir) => Endpoint::in_dir(dir),
            None => Endpoint::from_env(),
        }
    }

    /// A client of the broker's control API: the given folder's; else the user's own broker's
    /// where one runs, else the machine's.
    pub fn client(&self) -> Result<Client> {
        let mut candidates = Vec::new();
        match self.given_dir() {
            Some(dir) => candidates.push(dir),
            None => {
                let user = Dirs::resolve(DirSource::User, |name| env::var_os(name));
                candidates.extend(user.map(|dirs| dirs.run));
                let machine = Dirs::resolve(DirSource::Root, |_| None);
                candidates.extend(machine.map(|dirs| dirs.run));
            }
        }
        let mut sockets = candidates.into_iter().map(|dir| dir.join("control"));
        let first = sockets
            .next()
            .context("no folder to look for a broker in")?;
        let socket = if first.exists() {
            first
        } else {
            sockets.find(|socket| socket.exists()).unwrap_or(first)
        };
        if !socket.exists() && self.endpoint().uses_vsock() {
            let sentence = "there is no broker in this virtual machine to ask";
            let help = "ask on the host (`hvsock listen` and `hvsock connect` are for here, too), or \
                        start one for the containers in here with `hvsock broker`";
            return Err(Failure::new(sentence).help(help).into());
        }
        Client::new(socket).context("cannot talk to the broker")
    }

    /// A command to be pasted, for the same broker as this one.
    pub fn command(&self, command: &str) -> String {
        let rest = command.strip_prefix("hvsock ");
        match (&self.dir, rest) {
            (Some(dir), Some(rest)) => {
                let dir = shell_word(&dir.to_string_lossy());
                format!("hvsock --dir {dir} {rest}")
            }
            _ => command.to_owned(),
        }
    }

    fn given_dir(&self) -> Option<PathBuf> {
        let environment = || env::var_os("HVSOCK_DIR").filter(|dir| !dir.is_empty());
        self.dir
            .clone()
            .or_else(|| environment().map(PathBuf::from))
    }
}
