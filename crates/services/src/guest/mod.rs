//! The guest side: the services that the agent offers to its parent.

pub mod addresses;
mod audit;
mod clock;
pub mod copy;
mod folder;
mod forward;
pub mod freeze;
#[cfg(feature = "fuzzing")]
pub(crate) mod fuzzing;
mod heartbeat;
pub mod kvp;
mod os_release;
pub mod session;
pub mod shutdown;
mod ssh;

use std::path::PathBuf;

use hvsock::{Endpoint, VmId};

use crate::link::{ServiceBinding, ServiceServer};

/// The configuration of an agent.
#[derive(Clone, Debug)]
pub struct Config {
    /// The endpoint that leads to the parent.
    pub endpoint: Endpoint,
    /// The folder of the key-value pools; `None` for Hyper-V's folder.
    pub kvp: Option<PathBuf>,
    /// The sshd to start for each connection to the guest's SSH server. `None` uses a listening
    /// server, or else the system's sshd.
    pub sshd: Option<PathBuf>,
    /// Set while filesystems are frozen.
    pub frozen: freeze::FreezeFlag,
}

impl Config {
    /// The defaults: the broker's endpoint if there is one, as in a container, or else the kernel's
    /// vsock, as in a virtual machine.
    pub fn new() -> Self {
        Self {
            endpoint: Endpoint::from_env(),
            kvp: std::env::var_os("HVSOCK_KVP_DIR").map(PathBuf::from),
            sshd: std::env::var_os("HVSOCK_SSHD").map(PathBuf::from),
            frozen: freeze::FreezeFlag::default(),
        }
    }
}

impl Default for Config {
    fn default() -> Self {
        Self::new()
    }
}

/// All services of an agent.
fn servers(config: &Config) -> Vec<ServiceServer> {
    vec![
        session::server(),
        copy::server(),
        forward::server(config.sshd.clone()),
        kvp::server(config.kvp.clone(), config.frozen.clone()),
        freeze::server(config.endpoint.clone(), config.frozen.clone()),
        shutdown::server(config.endpoint.clone()),
    ]
}

/// Serves the parent until dropped. Listening is retried with backoff, so an agent may start before
/// its broker and survives the broker's restart.
pub async fn run(config: Config) {
    let binding = ServiceBinding {
        endpoint: config.endpoint.clone(),
        from: VmId::PARENT,
    };
    let servers = servers(&config);
    let statuses = servers.iter().map(ServiceServer::status).collect();
    let mut tasks = tokio::task::JoinSet::new();
    let clock = clock::ClockHandle::default();
    tasks.spawn(session::reap_children());
    tasks.spawn(clock::run(config.endpoint.clone(), clock.clone()));
    let heartbeat = heartbeat::run(config.endpoint.clone(), statuses, clock);
    tasks.spawn(heartbeat);
    if config.endpoint.uses_vsock() {
        tasks.spawn(freeze::thaw_leftovers());
    }
    for server in servers {
        let for_host = server.clone();
        tasks.spawn(for_host.serve_host(config.endpoint.clone(), server.status()));
        tasks.spawn(server.serve(binding.clone()));
    }
    while tasks.join_next().await.is_some() {}
}
