//! A broker, and programs that are run by `hvsock run`.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;

use hvsock_testkit::require;

use crate::util::{Completed, World};

/// The port that scenarios use.
pub const PORT: &str = "6000";

/// A way of `hvsock run`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    Seccomp,
    Preload,
}

pub const BOTH: [Way; 2] = [Way::Seccomp, Way::Preload];

impl Way {
    pub fn flag(self) -> &'static str {
        match self {
            Way::Seccomp => "--seccomp",
            Way::Preload => "--preload",
        }
    }
}

/// A file of this folder.
pub fn file(name: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"));
    folder.join("tests/cli/emulated").join(name)
}

/// What the tests need. `None` skips them.
pub struct Emulated {
    pub world: World,
    pub python: PathBuf,
    pub library: PathBuf,
}

impl Emulated {
    pub fn new() -> Option<Self> {
        let python = require::python3()?;
        let library = require::example("hvsock-cli", "libhvsock_preload.so")?;
        let world = World::new();
        Some(Self {
            world,
            python,
            library,
        })
    }

    /// `hvsock run ARGUMENTS`.
    pub fn run<S: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = S>) -> Command {
        let mut command = self.world.command(["run"]);
        command.args(arguments);
        command.env("HVSOCK_PRELOAD_LIB", &self.library);
        command
    }

    /// `hvsock run` of a scenario.
    pub fn scenario(&self, way: Way, name: &str) -> Command {
        let mut command = self.run([way.flag(), "--"]);
        command.arg(&self.python).arg(file("sockets.py"));
        command.args([name, PORT]);
        command
    }

    /// What a scenario prints, which must succeed.
    pub fn output(&self, way: Way, name: &str) -> String {
        let done = Completed::of(&mut self.scenario(way, name));
        let output = done.ok();
        let output = output.strip_suffix("done\n");
        output
            .unwrap_or_else(|| panic!("{name} by {way:?} ends"))
            .to_owned()
    }
}

/// Runs a scenario by these ways, each with a broker of its own.
pub fn succeeds(ways: &[Way], name: &str) {
    for way in ways {
        let Some(emulated) = Emulated::new() else {
            return;
        };
        emulated.output(*way, name);
    }
}

/// As [`succeeds`], and the scenario prints this.
pub fn prints(ways: &[Way], name: &str, expected: &str) {
    for way in ways {
        let Some(emulated) = Emulated::new() else {
            return;
        };
        assert_eq!(emulated.output(*way, name), expected, "{way:?}");
    }
}
