//! The ways to start a program that knows nothing of hvsock.

use std::path::Path;
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
}

/// All ways, in the order of the table.
pub const ALL: &[Way] = &[Way::RunAsRoot, Way::RunUnprivileged];

/// The user without privileges.
const NOBODY: &str = "65534";

impl Way {
    pub fn name(self) -> &'static str {
        match self {
            Self::RunAsRoot => "run_as_root",
            Self::RunUnprivileged => "run_unprivileged",
        }
    }

    /// Skips the test (`None`) if this process cannot start a program in this way.
    pub fn is_possible(self) -> Option<()> {
        match self {
            Self::RunAsRoot | Self::RunUnprivileged => require::root(),
        }
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
        command.args(["run", "--seccomp", "--"]).args(words);
        command
    }
}
