//! `hvsock broker`: runs the broker in the foreground, for a shell or a service manager.

use std::env;
use std::io::{self, IsTerminal};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};

use anyhow::{Context as _, Result};
use clap::Args;
use hvsock::Endpoint;
use hvsock_address::PartitionName;
use hvsock_broker::BrokerConfig;
use tracing_subscriber::EnvFilter;

use super::built_in;
use crate::context::Context;
use crate::os::linux::host_services::HostServices;
use crate::os::linux::signals::Termination;
use crate::output;

/// Run the broker until Ctrl-C or SIGTERM
#[derive(Debug, Args)]
pub struct Broker {
    /// The name of this partition for other partitions [default: the host name]
    #[arg(long)]
    name: Option<PartitionName>,
    /// The number of data threads [default: one per processor, at most 4]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=256))]
    data_threads: Option<u16>,
    /// Copy the bytes of every connection in the broker, instead of sharing memory between the two
    /// processes; this is slower, but a close or a pause then works against a hostile process
    #[arg(long)]
    no_shared_memory: bool,
}

impl Broker {
    pub fn run(self, context: &Context) -> Result<()> {
        log(context.quiet);
        let mut termination = Termination::catch().context("cannot catch signals")?;
        let mut config = BrokerConfig::new(context.broker.dirs()?);
        if let Some(name) = self.name {
            config.partition = name;
        }
        if let Some(threads) = self.data_threads {
            config.data_threads = threads.into();
        }
        config.shared_memory = !self.no_shared_memory;
        config.built_in = built_in::registrations();
        let endpoint = config.dirs.endpoint();
        let broker = hvsock_broker::Broker::start(config)?;
        let services = HostServices::start(&broker.handle(), Endpoint::at(&endpoint));
        let services = services.context("cannot offer the integration services")?;
        output::line(format_args!(
            "hvsock broker ready: endpoint {}",
            endpoint.display()
        ))?;
        notify("READY=1");
        termination.wait();
        notify("STOPPING=1");
        drop(services);
        drop(broker);
        Ok(())
    }
}

/// Logs to stderr. The journal adds its own times.
fn log(quiet: bool) {
    let default = if quiet { "error" } else { "info" };
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(default));
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .with_target(false)
        .with_ansi(io::stderr().is_terminal() && env::var_os("NO_COLOR").is_none());
    if env::var_os("JOURNAL_STREAM").is_some() {
        builder.without_time().init();
    } else {
        builder.init();
    }
}

/// Notifies the service manager that started this process, if one did (sd_notify(3)).
fn notify(state: &str) {
    let Some(path) = env::var_os("NOTIFY_SOCKET") else {
        return;
    };
    let address = match path.as_bytes() {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name),
        _ => SocketAddr::from_pathname(&path),
    };
    let sent = address.and_then(|address| {
        let socket = UnixDatagram::unbound()?;
        socket.send_to_addr(state.as_bytes(), &address)
    });
    if let Err(error) = sent {
        tracing::warn!(%error, "cannot notify the service manager of `{state}`");
    }
}
