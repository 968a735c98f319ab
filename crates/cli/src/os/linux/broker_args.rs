//! The options and environment variables that select the broker.

use std::env;
use std::ffi::OsString;
use std::fmt;
use std::path::PathBuf;

use anyhow::{Context as _, Result};
use clap::Args;
use hvsock::Endpoint;
use hvsock_client::Client;
use hvsock_endpoint::{DirSource, Dirs};
use hvsock_sys::owner::other_owner;
use hvsock_text::printable_path;

use crate::failure::Failure;
use crate::format::shell_word;

/// The options that select the broker.
#[derive(Clone, Debug, Default, Args)]
pub struct BrokerArgs {
    /// The broker's folder
    #[arg(long, global = true, value_name = "DIR")]
    dir: Option<PathBuf>,
}

impl BrokerArgs {
    /// The broker with this folder.
    pub fn in_dir(dir: impl Into<PathBuf>) -> Self {
        Self {
            dir: Some(dir.into()),
        }
    }

    /// The folders of a broker to start.
    pub fn dirs(&self) -> Result<Dirs> {
        let uid = rustix::process::geteuid().as_raw();
        // The broker tells others where its sockets are, such as a container's mount.
        let dir = self.given_dir().map(std::path::absolute).transpose();
        let dir = dir.context("cannot find the working directory")?;
        let source = DirSource::choose(dir, uid);
        Dirs::resolve(source, own_variable).map_err(|missing| match ForeignRuntimeDir::find() {
            Some(foreign) if missing == RUNTIME_DIR => {
                anyhow::anyhow!("{foreign}: give the broker's folder with --dir")
            }
            _ => anyhow::anyhow!("{missing} is not set: give the broker's folder with --dir"),
        })
    }

    /// Why the broker in `XDG_RUNTIME_DIR` is not used, if there is one and nothing else selects the broker.
    pub fn ignored_broker(&self) -> Option<String> {
        let chosen = |name| env::var_os(name).is_some_and(|value| !value.is_empty());
        if self.dir.is_some() || chosen("HVSOCK_DIR") || chosen("HVSOCK_ENDPOINT") {
            return None;
        }
        let foreign = ForeignRuntimeDir::find()?;
        let folder = foreign.path.join("hvsock");
        folder.join("endpoint").exists().then(|| {
            let folder = shell_word(&folder.to_string_lossy());
            format!("{foreign}, so the broker there is ignored; `--dir {folder}` uses it")
        })
    }

    /// The endpoint through which this process reaches services. `--dir` overrides the environment.
    pub fn endpoint(&self) -> Endpoint {
        match &self.dir {
            Some(dir) => Endpoint::in_dir(dir),
            None => Endpoint::from_env(),
        }
    }

    /// A client of the broker's control API. Without `--dir` and `HVSOCK_DIR` it is the user's own
    /// broker where one runs, else the machine's.
    ///
    /// # Errors
    ///
    /// Fails in a virtual machine without a broker. A broker that does not run is found at the first
    /// call.
    pub fn client(&self) -> Result<Client> {
        let mut candidates = Vec::new();
        match self.given_dir() {
            Some(dir) => candidates.push(dir),
            None => {
                let user = Dirs::resolve(DirSource::User, own_variable);
                candidates.extend(user.map(|dirs| dirs.run));
                let machine = Dirs::resolve(DirSource::Root, |_| None);
                candidates.extend(machine.map(|dirs| dirs.run));
            }
        }
        let mut sockets = candidates.into_iter().map(|dir| dir.join("control"));
        let first = sockets.next().context("no folder for a broker is known")?;
        let socket = if first.exists() {
            first
        } else {
            sockets.find(|socket| socket.exists()).unwrap_or(first)
        };
        if !socket.exists() && self.endpoint().uses_vsock() {
            let message = "no broker runs in this virtual machine";
            let help = "run this on the host (here `hvsock connect`, `hvsock listen` and `hvsock why` \
                        work, with the host's names), or start a broker for the containers in this \
                        machine with `hvsock broker`";
            return Err(Failure::new(message).help(help).into());
        }
        Client::new(socket).context("cannot create a client of the broker")
    }

    /// A command to paste, with the `--dir` of this one.
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

const RUNTIME_DIR: &str = "XDG_RUNTIME_DIR";

/// The runtime folder of another user, which `sudo -E` and `su` pass on.
struct ForeignRuntimeDir {
    path: PathBuf,
    owner: u32,
}

impl ForeignRuntimeDir {
    fn find() -> Option<Self> {
        let path = PathBuf::from(env::var_os(RUNTIME_DIR).filter(|path| !path.is_empty())?);
        // The library has the same rule.
        let owner = other_owner(&path).or_else(|| other_owner(&path.join("hvsock")))?;
        Some(Self { path, owner })
    }
}

impl fmt::Display for ForeignRuntimeDir {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (path, owner) = (printable_path(&self.path), self.owner);
        write!(
            f,
            "{RUNTIME_DIR} ({path}) belongs to another user (uid {owner})"
        )
    }
}

/// A variable of the environment, without the runtime folder of another user.
fn own_variable(name: &str) -> Option<OsString> {
    let value = env::var_os(name)?;
    let is_foreign = name == RUNTIME_DIR && ForeignRuntimeDir::find().is_some();
    (!is_foreign).then_some(value)
}
