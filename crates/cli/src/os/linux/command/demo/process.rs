//! The process in the guest, seen from the one that tells it what to do.

use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result};
use hvsock_qemu::Attached;

use super::guest::{Answer, Order};

/// The longest wait for the guest, which is never needed unless something is broken.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// The process in the other partition.
pub struct GuestProcess {
    /// It, if it is a child of this process and not one in a virtual machine.
    child: Option<Child>,
    orders: Option<Box<dyn Write>>,
    answers: Receiver<String>,
}

impl GuestProcess {
    /// A process of this machine that is in a partition by its endpoint.
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
        let orders = child.stdin.take().context("the guest takes no orders")?;
        Self::new(Some(child), Box::new(orders), output)
    }

    /// A process in a virtual machine.
    pub fn attached(to: Attached) -> Result<Self> {
        let output = to.try_clone().context("the guest has no output")?;
        Self::new(None, Box::new(to), output)
    }

    fn new(
        child: Option<Child>,
        orders: Box<dyn Write>,
        output: impl Read + Send + 'static,
    ) -> Result<Self> {
        let (lines, answers) = channel();
        thread::Builder::new().name("guest".into()).spawn(move || {
            let mut read = BufReader::new(output).lines().map_while(Result::ok);
            read.try_for_each(|line| lines.send(line))
        })?;
        Ok(Self {
            child,
            orders: Some(orders),
            answers,
        })
    }

    /// Its process id on this machine; none for one in a virtual machine.
    pub fn id(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
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
        if let Some(child) = &mut self.child {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
