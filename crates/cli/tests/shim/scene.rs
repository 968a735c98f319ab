//! A world of its own to play in, with one service in it and commands that talk.

use std::io::Write;
use std::process::{ChildStdin, Command};
use std::time::Instant;

use hvsock_testkit::process::{self, CapturedOutput, Running};
use hvsock_testkit::require;

use crate::util::{Done, PATIENCE, World, hvsock, start};

/// A virtual machine of the host that is played.
pub const GUEST: &str = "9d7f2c1e-0000-4000-8000-000000000001";

/// A service that is registered, and a world in which nobody listens for it yet.
pub struct Scene {
    pub world: World,
    pub service: String,
}

impl Scene {
    /// None where there is nothing to play with, which is told.
    pub fn new() -> Option<Self> {
        let played = std::env::var_os("HVSOCK_TEST_SHIM");
        let hint = "nothing stands in for AF_HYPERV; `cargo xtask windows` has what does";
        require::found(played.ok_or(hint))?;
        let world = World::new();
        let service = world.name("HV Socket Demo");
        world.register(&service);
        Some(Self { world, service })
    }

    /// A command in this world.
    pub fn command<'a>(&self, arguments: impl IntoIterator<Item = &'a str>) -> Command {
        let mut command = hvsock();
        // Its name is like the service's: nobody else has it.
        command
            .env("HV_SHIM_WORLD", self.service.replace(' ', "-"))
            .args(arguments);
        command
    }

    /// Listens, and returns once it does.
    pub fn listen<'a>(&self, arguments: impl IntoIterator<Item = &'a str>) -> Talker {
        let mut command = self.command(["listen", &self.service]);
        Talker::listening(command.args(arguments))
    }

    /// Connects, and talks.
    pub fn connect(&self) -> Talker {
        Talker::start(&mut self.command(["connect", "loopback", &self.service]))
    }

    /// Runs a command to its end.
    pub fn run(&self, command: &mut Command) -> Done {
        process::output(command, b"", PATIENCE).unwrap().into()
    }

    /// Connects once, saying nothing, to the end.
    pub fn ask(&self) -> Done {
        self.run(&mut self.command(["connect", "loopback", &self.service]))
    }
}

/// A command that has a connection, or waits for one.
pub struct Talker {
    pub process: Running,
    stdin: Option<ChildStdin>,
    stdout: Option<CapturedOutput>,
    stderr: CapturedOutput,
}

impl Talker {
    pub fn start(command: &mut Command) -> Self {
        let mut process = start(command);
        Self {
            stdin: process.take_stdin(),
            stdout: process.take_stdout().map(CapturedOutput::from),
            stderr: process.take_stderr().unwrap().into(),
            process,
        }
    }

    /// Starts one that listens, and returns once it does.
    pub fn listening(command: &mut Command) -> Self {
        let talker = Self::start(command);
        talker.hears_of("listening for");
        talker
    }

    pub fn says(&mut self, bytes: &[u8]) {
        self.stdin.as_mut().unwrap().write_all(bytes).unwrap();
    }

    /// Ends what it says.
    pub fn ends(&mut self) {
        drop(self.stdin.take());
    }

    /// Waits until it has printed this.
    pub fn hears(&self, text: &str) {
        let stdout = self.stdout.as_ref().unwrap();
        stdout.wait_for(text, PATIENCE).unwrap();
    }

    /// Waits until it has said this on stderr.
    pub fn hears_of(&self, text: &str) {
        self.stderr.wait_for(text, PATIENCE).unwrap();
    }

    /// All that it prints, once that has ended, which need not be its own end.
    pub fn heard(&mut self) -> Vec<u8> {
        let deadline = Instant::now() + PATIENCE;
        let heard = self.stdout.take().unwrap().finish(deadline);
        assert!(Instant::now() < deadline, "its output did not end");
        heard
    }

    /// Its exit status.
    pub fn status(&mut self) -> Option<i32> {
        let status = self.process.wait(PATIENCE);
        status
            .unwrap_or_else(|error| panic!("{error}: {}", self.stderr.text()))
            .code()
    }

    pub fn runs(&mut self) -> bool {
        self.process.ended().unwrap().is_none()
    }
}
