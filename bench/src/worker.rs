//! A child process of a bench that answers requests, one line each.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use anyhow::Context;

/// A process of this program in another role. Dropping it ends the process.
#[derive(Debug)]
pub struct Worker {
    child: Child,
    requests: Option<ChildStdin>,
    replies: BufReader<ChildStdout>,
}

impl Worker {
    /// Starts this program with `arguments`, of which the first names the role, and waits for `ready`.
    pub fn start(arguments: &[&str]) -> anyhow::Result<Self> {
        let mut command = Command::new(std::env::current_exe()?);
        command.args(arguments);
        Self::of(command)
    }

    /// As [`start`](Self::start), by a command that ends up as this program.
    pub fn of(mut command: Command) -> anyhow::Result<Self> {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let requests = child.stdin.take();
        let replies = BufReader::new(child.stdout.take().context("no stdout")?);
        let mut worker = Self {
            child,
            requests,
            replies,
        };
        let reply = worker.receive()?;
        anyhow::ensure!(reply == "ready", "{command:?} did not start: {reply}");
        Ok(worker)
    }

    /// Sends a request without waiting for its reply.
    pub fn send(&mut self, request: &str) -> anyhow::Result<()> {
        let requests = self.requests.as_mut().context("no stdin")?;
        // One write, so that the process wakes up once.
        requests.write_all(format!("{request}\n").as_bytes())?;
        Ok(())
    }

    /// Waits for the next reply.
    ///
    /// # Errors
    /// If the process has ended, or replied `error` with a reason.
    pub fn receive(&mut self) -> anyhow::Result<String> {
        let mut line = String::new();
        let count = self.replies.read_line(&mut line)?;
        anyhow::ensure!(count > 0, "a process of the bench ended early");
        let line = line.trim_end();
        match line.strip_prefix("error ") {
            Some(why) => anyhow::bail!("{why}"),
            None => Ok(line.to_owned()),
        }
    }

    /// Sends a request and waits for its reply.
    pub fn ask(&mut self, request: &str) -> anyhow::Result<String> {
        self.send(request)?;
        self.receive()
    }

    /// The process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // The process exits at end of file on stdin.
        drop(self.requests.take());
        let _ = self.child.wait();
    }
}

/// Body of a worker: prints `ready`, then answers each request until end of file on stdin.
pub fn serve(mut answer: impl FnMut(&[&str]) -> anyhow::Result<String>) -> anyhow::Result<()> {
    println!("ready");
    for line in std::io::stdin().lock().lines() {
        let line = line?;
        let words: Vec<&str> = line.split(' ').collect();
        match answer(&words) {
            Ok(reply) => println!("{reply}"),
            Err(error) => println!("error {}", format!("{error:#}").replace('\n', " ")),
        }
    }
    Ok(())
}
