//! Starts the process in the second partition and exchanges commands and replies with it.

use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;
use std::process::{self, Child, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result};
use hvsock_guests::Attached;

use super::guest::{Command, GUEST_COMMAND, Reply};

/// The longest wait for the guest, which only a fault needs.
pub const REPLY_TIMEOUT: Duration = Duration::from_secs(20);

/// The process in the other partition.
pub struct GuestProcess {
    /// The child process. `None` for a process in a virtual machine.
    child: Option<Child>,
    commands: Option<Box<dyn Write>>,
    replies: Receiver<String>,
}

impl GuestProcess {
    /// Starts a process of this machine that is in the partition of `endpoint`.
    pub fn start(endpoint: &Path) -> Result<Self> {
        let program = std::env::current_exe().context("cannot find this program")?;
        let mut child = process::Command::new(program)
            .arg(GUEST_COMMAND)
            .env("HVSOCK_ENDPOINT", endpoint)
            .env_remove("HVSOCK_DIR")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("cannot start the guest process")?;
        let output = child.stdout.take().context("the guest has no output")?;
        let commands = child.stdin.take().context("the guest has no input")?;
        Self::new(Some(child), Box::new(commands), output)
    }

    /// Takes a process in a virtual machine.
    pub fn attached(to: Attached) -> Result<Self> {
        let output = to.try_clone().context("the guest has no output")?;
        Self::new(None, Box::new(to), output)
    }

    fn new(
        child: Option<Child>,
        commands: Box<dyn Write>,
        output: impl Read + Send + 'static,
    ) -> Result<Self> {
        let (lines, replies) = channel();
        thread::Builder::new().name("guest".into()).spawn(move || {
            let mut read = BufReader::new(output).lines().map_while(Result::ok);
            read.try_for_each(|line| lines.send(line))
        })?;
        Ok(Self {
            child,
            commands: Some(commands),
            replies,
        })
    }

    /// The process id on this machine. `None` for a process in a virtual machine.
    pub fn id(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// Sends a command without waiting for its reply.
    pub fn send(&mut self, command: &Command) -> Result<()> {
        let mut line = serde_json::to_vec(command)?;
        line.push(b'\n');
        let commands = self.commands.as_mut().context("the guest has no input")?;
        commands.write_all(&line).context("the guest ended")
    }

    /// Waits for the next reply.
    pub fn reply(&self) -> Result<Reply> {
        let line = self
            .replies
            .recv_timeout(REPLY_TIMEOUT)
            .context("the guest does not answer")?;
        Ok(serde_json::from_str(&line)?)
    }

    /// Sends a command and waits for its reply.
    pub fn run(&mut self, command: &Command) -> Result<Reply> {
        self.send(command)?;
        self.reply()
    }
}

impl Drop for GuestProcess {
    fn drop(&mut self) {
        drop(self.commands.take());
        if let Some(child) = &mut self.child {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
