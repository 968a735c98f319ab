//! The ways to start a program that knows nothing of hvsock.

use std::path::PathBuf;
use std::process::Command;

use hvsock_testkit::require;

/// A way to start a program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// `hvsock run` by seccomp, as root.
    RunAsRoot,
    /// The same as a user without privileges.
    RunUnprivileged,
    /// `hvsock run` with the preloaded library.
    Preload,
    /// As it is, in a container of runc whose profile has the kernel ask the broker's agent.
    Agent,
}

/// All ways, in the order of the table.
pub const ALL: &[Way] = &[
    Way::RunAsRoot,
    Way::RunUnprivileged,
    Way::Agent,
    Way::Preload,
];

/// Where a program is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// The host's partition.
    Host,
    /// The container `box`.
    Box,
}

/// The user without privileges.
const NOBODY: &str = "65534";

impl Way {
    pub fn name(self) -> &'static str {
        match self {
            Self::RunAsRoot => "run_as_root",
            Self::RunUnprivileged => "run_unprivileged",
            Self::Preload => "run_preload",
            Self::Agent => "runc_by_the_agent",
        }
    }

    /// Skips the test (`None`) if this process cannot start a program in this way.
    pub fn is_possible(self) -> Option<()> {
        require::root()?;
        match self {
            Self::RunAsRoot | Self::RunUnprivileged => Some(()),
            Self::Preload => library().map(drop),
            Self::Agent => require::runc().map(drop),
        }
    }

    /// Whether it takes programs that are linked statically.
    pub fn takes_static(self) -> bool {
        self != Self::Preload
    }

    /// Where it can start a program. The endpoint of a container is for the container's root.
    pub fn places(self) -> &'static [Place] {
        match self {
            Self::RunAsRoot | Self::Preload => &[Place::Host, Place::Box],
            Self::RunUnprivileged => &[Place::Host],
            Self::Agent => &[Place::Box],
        }
    }

    /// The command that starts a program by `hvsock run`, whose own options and endpoint `run` has.
    ///
    /// # Panics
    ///
    /// If the way has no `hvsock run`.
    pub fn wrap(self, run: Command, words: &[String]) -> Command {
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
            Self::Agent => panic!("the container's runtime starts the program"),
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
