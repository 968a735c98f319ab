//! `hvsock forward`: sockets of a guest here, and sockets of this machine there.

use std::fmt;
use std::io::Write as _;
use std::str::FromStr;

use anyhow::{Context as _, Result};
use clap::Args;
use hvsock_address::{ServiceId, ServiceRef};
use hvsock_services::forward::Address;
use hvsock_services::host::forward::{Event, ForwardError, Forwarding, From, Place, probe};
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinSet;

use crate::context::Context;
use crate::explain;
use crate::failure::{Failure, printable};
use crate::os::{Partition, guest_services};

/// Reach TCP ports, Unix sockets and services of a guest here, or those of this machine there
#[derive(Debug, Args)]
#[command(after_help = "\
Each SIDE is [VM:](tcp:[HOST:]PORT|unix:PATH|service:NAME), and one of each pair is a VM's (or a
container's). Connections to the first SIDE reach the second. A HOST that is left out is
localhost; port 0 is any that is free, and is printed. `service:` is for the VM's side: any
service of hvsock.

Examples:
  hvsock forward tcp:8080 web:tcp:80               the guest's web server, here
  hvsock forward web:tcp:5432 tcp:db.example:5432  a database, for the guest
  hvsock forward unix:/tmp/kvp.sock 'web:service:hvsock kvp'
  hvsock forward tcp:0 web:tcp:80 tcp:0 web:ssh    several at once

It runs until Ctrl-C. Who may use a TCP port of this machine is everybody on it; a Unix socket is
its user's own.")]
pub struct Forward {
    /// Where to listen and where connections lead, once or several times
    #[arg(required = true, value_name = "SIDE", num_args = 2..)]
    sides: Vec<Side>,
    /// Tell of every connection on stderr
    #[arg(long, short)]
    verbose: bool,
}

/// One side, as it is written.
#[derive(Clone, Debug)]
struct Side {
    partition: Option<Partition>,
    place: Place,
}

impl FromStr for Side {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        // A kind is a word that no side begins with otherwise; a partition that is called so can
        // be named by its id.
        let (first, rest) = text.split_once(':').unwrap_or((text, ""));
        if matches!(first, "tcp" | "unix" | "service" | "vsock" | "ssh") {
            let (partition, place) = (None, place(text)?);
            return Ok(Self { partition, place });
        }
        let partition = first.parse().map_err(|_| {
            format!("`{text}` is no side: write [VM:](tcp:[HOST:]PORT|unix:PATH|service:NAME)")
        })?;
        Ok(Self {
            partition: Some(partition),
            place: place(rest)?,
        })
    }
}

impl fmt::Display for Side {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(partition) = &self.partition {
            write!(f, "{partition}:")?;
        }
        match &self.place {
            Place::Socket(address) => address.fmt(f),
            Place::Service(service) => write!(f, "service:{service}"),
        }
    }
}

/// A socket or a service, as it is written.
pub(super) fn place(text: &str) -> Result<Place, String> {
    match text.split_once(':') {
        Some(("service", service)) => {
            let service = service.parse::<ServiceRef>();
            service
                .map(Place::Service)
                .map_err(|error| error.to_string())
        }
        Some(("vsock", port)) => {
            let port = port.parse::<u32>();
            let port = port.map_err(|_| format!("`{text}` has no vsock port"))?;
            Ok(Place::Service(ServiceId::from_port(port).into()))
        }
        _ => {
            let address = text.parse::<Address>();
            address
                .map(Place::Socket)
                .map_err(|error| error.to_string())
        }
    }
}

/// Two sides, one of them a partition's.
struct Pair {
    listens: Side,
    leads: Side,
}

impl Pair {
    /// Which of them is the partition's, and what the other is.
    fn parts(&self) -> Result<(&Partition, From, &Address, &Place)> {
        let Self { listens, leads } = self;
        let (partition, from, host, guest) = match (&listens.partition, &leads.partition) {
            (None, Some(partition)) => (partition, From::Host, &listens.place, &leads.place),
            (Some(partition), None) => (partition, From::Guest, &leads.place, &listens.place),
            _ => {
                let text = format!("exactly one of `{listens}` and `{leads}` is to be a VM's");
                return Err(Failure::usage(text).into());
            }
        };
        match host {
            Place::Socket(Address::Ssh) | Place::Service(_) => {
                let text = format!(
                    "`{listens}` and `{leads}`: on this machine's side only tcp: and unix: go"
                );
                Err(Failure::usage(text).into())
            }
            Place::Socket(host) => Ok((partition, from, host, guest)),
        }
    }
}

impl Forward {
    pub fn run(self, context: &Context) -> Result<()> {
        let mut pairs = Vec::new();
        let mut sides = self.sides.iter();
        while let Some(listens) = sides.next() {
            let Some(leads) = sides.next() else {
                let text = format!("`{listens}` has no second side");
                return Err(Failure::usage(text).into());
            };
            let (listens, leads) = (listens.clone(), leads.clone());
            pairs.push(Pair { listens, leads });
        }
        guest_services::block_on(run(&pairs, self.verbose, context))?
    }
}

async fn run(pairs: &[Pair], verbose: bool, context: &Context) -> Result<()> {
    // Caught before anything is there to be cleaned up.
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot catch signals")?;
    let mut terminate = signal(SignalKind::terminate()).context("cannot catch signals")?;
    let mut ready = Vec::new();
    for pair in pairs {
        ready.push(set_up(pair, context).await?);
    }
    let mut tasks = JoinSet::new();
    let mut stdout = std::io::stdout().lock();
    for (name, forwarding) in ready {
        // Whoever started this may have enough of its output; the sockets are there all the same.
        let _ = writeln!(stdout, "{}", printable(&name));
        let context = context.clone();
        tasks.spawn(async move {
            let tell_name = name.clone();
            let tell = move |event: Event<'_>| tell(&context, &tell_name, verbose, &event);
            (name, forwarding.run(tell).await)
        });
    }
    let _ = stdout.flush();
    drop(stdout);
    tokio::select! {
        _ = interrupt.recv() => Ok(()),
        _ = terminate.recv() => Ok(()),
        ended = tasks.join_next() => match ended {
            Some(Ok((name, error))) => Err(failure(context, error).context(name)),
            Some(Err(error)) => Err(error.into()),
            None => Ok(()),
        },
    }
}

/// Listens; with what is printed of it.
async fn set_up(pair: &Pair, context: &Context) -> Result<(String, Forwarding)> {
    let (partition, from, host, guest) = pair.parts()?;
    let target = guest_services::target(context, partition)?;
    if from == From::Host {
        let reachable = probe(&target, guest).await;
        reachable.map_err(|error| failure(context, error))?;
    }
    let forwarding = Forwarding::new(&context.endpoint(), &target, from, host, guest).await;
    let forwarding = forwarding.map_err(|error| failure(context, error))?;
    let mut listens = pair.listens.clone();
    if let Some(address) = forwarding.address() {
        listens.place = Place::Socket(address.clone());
    }
    Ok((format!("{listens} -> {}", pair.leads), forwarding))
}

fn tell(context: &Context, name: &str, verbose: bool, event: &Event<'_>) {
    match event {
        Event::Opened { from } if verbose => {
            context.note(&format!("{name}: a connection from {from}"));
        }
        Event::Closed { from, moved } if verbose => context.note(&format!(
            "{name}: the connection from {from} ended; {} bytes went to the guest, {} came from it",
            moved.outward(),
            moved.inward()
        )),
        Event::Opened { .. } | Event::Closed { .. } => {}
        Event::Failed { from, why } => {
            context.note(&format!("{name}: the connection from {from} failed: {why}"));
        }
        Event::Lost { why } => {
            context.note(&format!("{name}: there is no listener at present: {why}"));
        }
        Event::Regained => context.note(&format!("{name}: there is a listener again")),
    }
}

/// The failure, with what would fix it.
pub(super) fn failure(context: &Context, error: ForwardError) -> anyhow::Error {
    match error {
        ForwardError::Call(error) => guest_services::failure(context, error),
        ForwardError::Service {
            address,
            listen,
            error,
        } => explain::failure(context, error, &address, listen),
        error => Failure::new(error.to_string()).into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_side_is_this_machines_or_a_partitions() {
        for text in [
            "tcp:127.0.0.1:8080",
            "web:tcp:localhost:80",
            "unix:/run/x",
            "web:unix:/run/a:b",
            "web:service:HV Socket Demo",
            "web:ssh",
            "00000000-0000-4000-8000-000000000001:tcp:localhost:80",
        ] {
            assert_eq!(text.parse::<Side>().unwrap().to_string(), text);
        }
        for text in [
            "",
            "web",
            "web:",
            "web:udp:53",
            "tcp:",
            "we b:tcp:80",
            "web:unix:x",
        ] {
            assert!(text.parse::<Side>().is_err(), "{text}");
        }
    }

    #[test]
    fn exactly_one_side_is_a_partitions_and_the_other_a_socket() {
        let parts = |listens: &str, leads: &str| {
            let pair = Pair {
                listens: listens.parse().unwrap(),
                leads: leads.parse().unwrap(),
            };
            pair.parts().map(|(_, from, _, _)| from)
        };
        assert_eq!(parts("tcp:80", "web:tcp:80").unwrap(), From::Host);
        assert_eq!(parts("web:service:x", "tcp:80").unwrap(), From::Guest);
        for (listens, leads) in [
            ("tcp:80", "tcp:81"),
            ("web:tcp:80", "web:tcp:81"),
            ("service:x", "web:tcp:80"),
            ("web:tcp:80", "ssh"),
        ] {
            assert!(parts(listens, leads).is_err(), "{listens} {leads}");
        }
    }
}
