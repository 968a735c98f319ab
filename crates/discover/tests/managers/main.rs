//! Each manager against a server of its protocol: what it lists, what it refuses, and servers that are
//! hostile.

mod hostile;
mod incus;
mod libvirt;
mod machined;
mod processes;
mod server;

use std::time::{Duration, Instant};

use hvsock_discover::{Machine, Manager, Reach, Unavailable};

/// Asks a manager, for at most this long.
fn list(manager: &dyn Manager, limit: Duration) -> Result<Vec<Machine>, Unavailable> {
    manager.list(Instant::now() + limit)
}

/// Asks a manager that answers.
fn answer(manager: &dyn Manager) -> Vec<Machine> {
    list(manager, Duration::from_secs(10)).unwrap()
}

fn kernel(cid: u32) -> Reach {
    Reach::Kernel { cid, netns: None }
}
