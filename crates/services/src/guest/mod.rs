//! The half in the guest: what the agent offers to its parent.

pub mod addresses;
mod clock;
pub mod copy;
mod forward;
pub mod freeze;
mod heartbeat;
pub mod kvp;
pub mod session;
pub mod shutdown;
mod ssh;

use std::path::PathBuf;

use hvsock::{Endpoint, VmId};

use crate::link::{Offer, Place};

/// What an agent is started with.
#[derive(Clone, Debug)]
pub struct Config {
    /// The way to the parent.
    pub endpoint: Endpoint,
    /// Where the pools of key-value pairs lie; where Hyper-V has them, if this is `None`.
    pub kvp: Option<PathBuf>,
    /// The sshd that is started for each connection to the guest's SSH server. If this is `None`,
    /// whatever listens is taken, else the system's sshd.
    pub sshd: Option<PathBuf>,
    /// Whether filesystems are frozen.
    pub still: freeze::Still,
}

impl Config {
    /// The defaults: the broker's endpoint if there is one, as in a container, else the kernel's
    /// sockets, as in a virtual machine.
    pub fn new() -> Self {
        Self {
            endpoint: Endpoint::from_env(),
            kvp: std::env::var_os("HVSOCK_KVP_DIR").map(PathBuf::from),
            sshd: std::env::var_os("HVSOCK_SSHD").map(PathBuf::from),
            still: freeze::Still::default(),
        }
    }
}

impl Default for Config {
    fn default() -> Self {
        Self::new()
    }
}

/// Everything that an agent offers.
fn offers(config: &Config) -> Vec<Offer> {
    vec![
        session::offer(),
        copy::offer(),
        forward::offer(config.sshd.clone()),
        kvp::offer(config.kvp.clone(), config.still.clone()),
        freeze::offer(config.endpoint.clone(), config.still.clone()),
        shutdown::offer(config),
    ]
}

/// Serves the parent until dropped. What cannot be offered at present is tried again, so that an
/// agent may start before its broker and outlive it.
pub async fn run(config: Config) {
    let place = Place {
        endpoint: config.endpoint.clone(),
        from: VmId::PARENT,
    };
    let offers = offers(&config);
    let standings = offers.iter().map(Offer::standing).collect();
    let mut tasks = tokio::task::JoinSet::new();
    let clock = clock::Known::default();
    tasks.spawn(session::take_note());
    tasks.spawn(clock::run(config.endpoint.clone(), clock.clone()));
    let heartbeat = heartbeat::run(config.endpoint.clone(), standings, clock);
    tasks.spawn(heartbeat);
    if config.endpoint.uses_vsock() {
        tasks.spawn(freeze::thaw_what_was_left());
    }
    for offer in offers {
        tasks.spawn(offer.serve(place.clone()));
    }
    while tasks.join_next().await.is_some() {}
}
