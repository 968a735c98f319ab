//! The ways to start a program that knows nothing of hvsock.

use std::path::{Path, PathBuf};
use std::process::Command;

use hvsock_testkit::require;

use crate::util::{World, hvsock};

/// A way to start a program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// `hvsock run` by seccomp, as root.
    RunAsRoot,
    /// The same as a user without privileges.
    RunUnprivileged,
    /// `hvsock run` with the preloaded library.
    Preload,
}

/// All ways, in the order of the table.
pub const ALL: &[Way] = &[Way::RunAsRoot, Way::RunUnprivileged, Way::Preload];

/// The user without privileges.
const NOBODY: &str = "65534";

impl Way {
    pub fn name(self) -> &'static str {
        match self {
            Self::RunAsRoot => "run_as_root",
            Self::RunUnprivileged => "run_unprivileged",
            Self::Preload => "run_preload",
        }
    }

    /// Skips the test (`None`) if this process cannot start a program in this way.
    pub fn is_possible(self) -> Option<()> {
        match self {
            Self::RunAsRoot | Self::RunUnprivileged => require::root(),
            Self::Preload => require::root().and_then(|()| library()).map(drop),
        }
    }

    /// Whether it takes programs that are linked statically.
    pub fn takes_static(self) -> bool {
        self != Self::Preload
    }

    /// Whether it can use the endpoint of a container, which is for the container's root.
    pub fn enters_containers(self) -> bool {
        self != Self::RunUnprivileged
    }

    /// The command that starts a program, in the host's partition or in the container with this endpoint.
    pub fn command(self, world: &World, endpoint: Option<&Path>, words: &[String]) -> Command {
        let run = match endpoint {
            Some(endpoint) => {
                let mut run = hvsock();
                run.env("HVSOCK_ENDPOINT", endpoint);
                run
            }
            None => world.command::<&str>([]),
        };
        let mut command = match self {
            Self::RunUnprivileged => {
                let mut other = Command::new("setpriv");
                other.args(["--reuid", NOBODY, "--regid", NOBODY, "--clear-groups"]);
                other.arg(run.get_program()).args(run.get_args());
                for (name, value) in run.get_envs() {
                    match value {
                        Some(value) => other.env(name, value),
                        None => other.env_remove(name),
                    };
                }
                other
            }
            _ => run,
        };
        let flag = match self {
            Self::Preload => "--preload",
            Self::RunAsRoot | Self::RunUnprivileged => "--seccomp",
        };
        if let (Self::Preload, Some(library)) = (self, library()) {
            command.env("HVSOCK_PRELOAD_LIB", library);
        }
        command.args(["run", flag, "--"]).args(words);
        command
    }
}

/// The preloaded library.
fn library() -> Option<PathBuf> {
    require::example("hvsock-cli", "libhvsock_preload.so")
}
