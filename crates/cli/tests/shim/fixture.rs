//! A separate network of the shim, with one registered service, and commands that exchange data in it.

use std::io::Write;
use std::process::{ChildStdin, Command};
use std::time::Instant;

use hvsock_testkit::process::{self, CapturedOutput, Running};
use hvsock_testkit::require;

use crate::util::{Completed, TIMEOUT, World, hvsock, start};

/// The id of a simulated virtual machine.
pub const GUEST: &str = "9d7f2c1e-0000-4000-8000-000000000001";

/// A registered service without a listener.
pub struct Fixture {
    pub world: World,
    pub service: String,
}

impl Fixture {
    /// Skips the test (`None`) without the shim.
    pub fn new() -> Option<Self> {
        require::shim()?;
        let world = World::new();
        let service = world.name("HV Socket Demo");
        world.register(&service);
        Some(Self { world, service })
    }

    /// A command in the fixture's network.
    pub fn command<'a>(&self, arguments: impl IntoIterator<Item = &'a str>) -> Command {
        let mut command = hvsock();
        // The network's name is unique, because the service's name is.
        command
            .env("HV_SHIM_WORLD", self.service.replace(' ', "-"))
            .args(arguments);
        command
    }

    /// Starts `hvsock listen`, and waits until it listens.
    pub fn listen<'a>(&self, arguments: impl IntoIterator<Item = &'a str>) -> StreamCommand {
        let mut command = self.command(["listen", &self.service]);
        StreamCommand::listening(command.args(arguments))
    }

    /// Starts `hvsock connect`.
    pub fn connect(&self) -> StreamCommand {
        StreamCommand::start(&mut self.command(["connect", "loopback", &self.service]))
    }

    /// Runs a command to its end, with an empty stdin.
    pub fn run(&self, command: &mut Command) -> Completed {
        process::output(command, b"", TIMEOUT).unwrap().into()
    }

    /// Connects and sends no data.
    pub fn connect_without_input(&self) -> Completed {
        self.run(&mut self.command(["connect", "loopback", &self.service]))
    }
}

/// A running `hvsock connect` or `hvsock listen`, which exchanges data over a connection.
pub struct StreamCommand {
    pub process: Running,
    stdin: Option<ChildStdin>,
    stdout: Option<CapturedOutput>,
    stderr: CapturedOutput,
}

impl StreamCommand {
    pub fn start(command: &mut Command) -> Self {
        let mut process = start(command);
        Self {
            stdin: process.take_stdin(),
            stdout: process.take_stdout().map(CapturedOutput::from),
            stderr: process.take_stderr().unwrap().into(),
            process,
        }
    }

    /// Starts a command, and waits until it listens.
    pub fn listening(command: &mut Command) -> Self {
        let started = Self::start(command);
        started.wait_for_stderr("listening for");
        started
    }

    pub fn send(&mut self, bytes: &[u8]) {
        self.stdin.as_mut().unwrap().write_all(bytes).unwrap();
    }

    /// Closes its stdin, which half-closes the connection.
    pub fn end_input(&mut self) {
        drop(self.stdin.take());
    }

    /// Waits until its stdout contains this.
    pub fn wait_for_stdout(&self, text: &str) {
        let stdout = self.stdout.as_ref().unwrap();
        stdout.wait_for(text, TIMEOUT).unwrap();
    }

    /// Waits until its stderr contains this.
    pub fn wait_for_stderr(&self, text: &str) {
        self.stderr.wait_for(text, TIMEOUT).unwrap();
    }

    /// Reads its stdout to the end. The command itself may still run.
    pub fn received(&mut self) -> Vec<u8> {
        let deadline = Instant::now() + TIMEOUT;
        let received = self.stdout.take().unwrap().finish(deadline);
        assert!(Instant::now() < deadline, "its stdout did not end");
        received
    }

    /// Waits for its end. Returns its exit status.
    pub fn status(&mut self) -> Option<i32> {
        let status = self.process.wait(TIMEOUT);
        status
            .unwrap_or_else(|error| panic!("{error}: {}", self.stderr.text()))
            .code()
    }

    pub fn is_running(&mut self) -> bool {
        self.process.ended().unwrap().is_none()
    }
}
