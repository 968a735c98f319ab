//! A neighbour: a process that keeps one processor and the memory busy, as another program would.

use std::io::Read;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::Context;

use crate::cpu;
use crate::stream::limits::Copies;

/// First argument that makes a bench's program run as a neighbour.
pub const ROLE: &str = "role-neighbour";

/// A running neighbour. Dropping it ends the process; after its time limit it ends by itself.
#[derive(Debug)]
pub struct Neighbour {
    child: Child,
}

impl Neighbour {
    /// Starts this program as a neighbour on one processor, for at most `limit`.
    pub fn start(processor: usize, limit: Duration) -> anyhow::Result<Self> {
        let child = Command::new(std::env::current_exe()?)
            .args([ROLE, &processor.to_string()])
            .arg(limit.as_millis().to_string())
            .stdin(Stdio::piped())
            .spawn()
            .context("failed to start the neighbour")?;
        Ok(Self { child })
    }

    /// The process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Neighbour {
    fn drop(&mut self) {
        // The process exits at end of file on stdin.
        drop(self.child.stdin.take());
        let _ = self.child.wait();
    }
}

/// Body of the neighbour process, with the arguments behind [`ROLE`]: copies memory that fits into no cache until
/// end of file on stdin or the time limit in milliseconds.
pub fn serve(arguments: &[&str]) -> anyhow::Result<()> {
    let &[processor, limit] = arguments else {
        anyhow::bail!("a neighbour takes two arguments");
    };
    let until = Instant::now() + Duration::from_millis(limit.parse()?);
    std::thread::spawn(|| {
        let _ = std::io::stdin().read_to_end(&mut Vec::new());
        std::process::exit(0);
    });
    cpu::pin_to(processor.parse()?)?;
    let copies = Copies::new()?;
    while Instant::now() < until {
        copies.rate(false, Duration::from_millis(10));
    }
    Ok(())
}
