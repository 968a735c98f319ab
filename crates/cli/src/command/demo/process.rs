//! The guest's process, seen from the one that tells it what to do.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result};

use super::guest::{Answer, Order};

/// The longest wait for the guest, which is never needed unless something is broken.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// The process in the second partition.
pub struct GuestProcess {
    child: Child,
    orders: Option<ChildStdin>,
    answers: Receiver<String>,
}

impl GuestProcess {
    pub fn start(endpoint: &Path) -> Result<Self> {
        let program = std::env::current_exe().context("cannot find this program")?;
        let mut child = Command::new(program)
            .arg("demo-guest")
            .env("HVSOCK_ENDPOINT", endpoint)
            .env_remove("HVSOCK_DIR")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("cannot start the guest's process")?;
        let output = child.stdout.take().context("the guest has no output")?;
        let (lines, answers) = channel();
        thread::Builder::new().name("guest".into()).spawn(move || {
            let mut read = BufReader::new(output).lines().map_while(Result::ok);
            read.try_for_each(|line| lines.send(line))
        })?;
        Ok(Self {
            orders: child.stdin.take(),
            child,
            answers,
        })
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    pub fn tell(&mut self, order: &Order) -> Result<()> {
        let mut line = serde_json::to_vec(order)?;
        line.push(b'\n');
        let orders = self.orders.as_mut().context("the guest takes no orders")?;
        orders.write_all(&line).context("the guest has ended")
    }

    pub fn answer(&self) -> Result<Answer> {
        let line = self
            .answers
            .recv_timeout(PATIENCE)
            .context("the guest does not answer")?;
        Ok(serde_json::from_str(&line)?)
    }

    pub fn ask(&mut self, order: &Order) -> Result<Answer> {
        self.tell(order)?;
        self.answer()
    }
}

impl Drop for GuestProcess {
    fn drop(&mut self) {
        drop(self.orders.take());
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
