//! `hvsock forward`: forwards sockets of a guest to this machine, and the other way round.

use std::fmt;
use std::str::FromStr;

use anyhow::{Context as _, Result};
use clap::Args;
use hvsock_address::{ServiceId, ServiceRef};
use hvsock_services::forward::{Address, ParseAddressError};
use hvsock_services::host::forward::{Event, ForwardEnd, ForwardError, Forwarding, Source, probe};
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinSet;

use crate::context::Context;
use crate::explain;
use crate::failure::{Failure, printable};
use crate::os::{Partition, guest_services};
use crate::output;

/// Forward ports, Unix sockets and services to or from a guest
#[derive(Debug, Args)]
pub struct Forward {
    /// The side that listens, and the side to connect to
    #[arg(required = true, value_name = "SIDE", num_args = 2..)]
    sides: Vec<ForwardSide>,
    /// Print each connection on stderr
    #[arg(long, short)]
    verbose: bool,
}

/// One side on the command line.
#[derive(Clone, Debug)]
struct ForwardSide {
    partition: Option<Partition>,
    end: ForwardEnd,
}

impl FromStr for ForwardSide {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        // These words are kinds of sockets. A partition with such a name can be given by its GUID.
        let (first, rest) = text.split_once(':').unwrap_or((text, ""));
        if matches!(first, "tcp" | "unix" | "service" | "vsock" | "ssh") {
            let (partition, end) = (None, parse_end(text)?);
            return Ok(Self { partition, end });
        }
        let partition = first.parse().map_err(|_| {
            format!(
                "`{text}` is not of the form \
                 [VM:](tcp:[HOST:]PORT|unix:PATH|service:NAME|vsock:PORT|ssh)"
            )
        })?;
        Ok(Self {
            partition: Some(partition),
            end: parse_end(rest)?,
        })
    }
}

impl fmt::Display for ForwardSide {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(partition) = &self.partition {
            write!(f, "{partition}:")?;
        }
        match &self.end {
            ForwardEnd::Socket(address) => address.fmt(f),
            ForwardEnd::Service(service) => write!(f, "service:{service}"),
        }
    }
}

/// Parses a socket or a service.
pub(super) fn parse_end(text: &str) -> Result<ForwardEnd, String> {
    match text.split_once(':') {
        Some(("service", service)) => {
            let service = service.parse::<ServiceRef>();
            service
                .map(ForwardEnd::Service)
                .map_err(|error| error.to_string())
        }
        Some(("vsock", port)) => {
            let port = port.parse::<u32>();
            let port = port.map_err(|_| format!("`{text}` has no valid vsock port"))?;
            Ok(ForwardEnd::Service(ServiceId::from_port(port).into()))
        }
        _ => {
            let address = text.parse::<Address>().map_err(|error| match error {
                // The library's own text names only sockets.
                ParseAddressError::Kind(text) => format!(
                    "invalid address `{text}`: write tcp:[HOST:]PORT, unix:PATH, ssh, vsock:PORT \
                     or service:NAME"
                ),
                error => error.to_string(),
            });
            address.map(ForwardEnd::Socket)
        }
    }
}

/// The side that listens and the side that it forwards to. One of them is in a partition.
struct SidePair {
    listens: ForwardSide,
    target: ForwardSide,
}

impl SidePair {
    /// The partition, the side that listens, and the sockets on the host and in the guest.
    ///
    /// # Errors
    ///
    /// Fails unless exactly one side is in a partition and the host's side is a socket.
    fn parts(&self) -> Result<(&Partition, Source, &Address, &ForwardEnd)> {
        let Self { listens, target } = self;
        let (partition, from, host, guest) = match (&listens.partition, &target.partition) {
            (None, Some(partition)) => (partition, Source::Host, &listens.end, &target.end),
            (Some(partition), None) => (partition, Source::Guest, &target.end, &listens.end),
            _ => {
                let text = format!("exactly one of `{listens}` and `{target}` must be in a VM");
                return Err(Failure::usage(text).into());
            }
        };
        match host {
            ForwardEnd::Socket(Address::Ssh) | ForwardEnd::Service(_) => {
                let text = format!(
                    "`{listens}` and `{target}`: this machine's side must be tcp: or unix:"
                );
                Err(Failure::usage(text).into())
            }
            ForwardEnd::Socket(host) => Ok((partition, from, host, guest)),
        }
    }
}

impl Forward {
    pub fn run(self, context: &Context) -> Result<()> {
        let mut pairs = Vec::new();
        let mut sides = self.sides.iter();
        while let Some(listens) = sides.next() {
            let Some(target) = sides.next() else {
                let text = format!("`{listens}` has no second SIDE");
                return Err(Failure::usage(text).into());
            };
            let (listens, target) = (listens.clone(), target.clone());
            pairs.push(SidePair { listens, target });
        }
        guest_services::block_on(run(&pairs, self.verbose, context))?
    }
}

async fn run(pairs: &[SidePair], verbose: bool, context: &Context) -> Result<()> {
    // From here on a signal must clean up the sockets.
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot catch signals")?;
    let mut terminate = signal(SignalKind::terminate()).context("cannot catch signals")?;
    let mut ready = Vec::new();
    for pair in pairs {
        ready.push(listen(pair, context).await?);
    }
    let mut tasks = JoinSet::new();
    for (name, forwarding) in ready {
        // The sockets work even if the reader of standard output is gone.
        let _ = output::line(printable(&name));
        let context = context.clone();
        tasks.spawn(async move {
            let label = name.clone();
            let report = move |event: Event<'_>| report(&context, &label, verbose, &event);
            (name, forwarding.run(report).await)
        });
    }
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

/// Starts to listen. Returns the line to print and the forwarding.
async fn listen(pair: &SidePair, context: &Context) -> Result<(String, Forwarding)> {
    let (partition, from, host, guest) = pair.parts()?;
    let (listens, leads_to) = (pair.listens.to_string(), pair.target.to_string());
    let words = [listens.as_ref(), leads_to.as_ref()];
    let target = guest_services::target_for(context, partition, "forward", &words)?;
    if from == Source::Host {
        let reachable = probe(&target, guest).await;
        reachable.map_err(|error| failure(context, error))?;
    }
    let forwarding = Forwarding::new(&context.endpoint(), &target, from, host, guest).await;
    let forwarding = forwarding.map_err(|error| failure(context, error))?;
    let mut listens = pair.listens.clone();
    if let Some(address) = forwarding.address() {
        listens.end = ForwardEnd::Socket(address.clone());
    }
    Ok((format!("{listens} -> {}", pair.target), forwarding))
}

/// Prints an event on stderr.
fn report(context: &Context, name: &str, verbose: bool, event: &Event<'_>) {
    match event {
        Event::Opened { from } if verbose => {
            context.note(&format!("{name}: connection from {from}"));
        }
        Event::Closed { from, transferred } if verbose => context.note(&format!(
            "{name}: connection from {from} ended; {} bytes to the guest, {} from it",
            transferred.outward(),
            transferred.inward()
        )),
        Event::Opened { .. } | Event::Closed { .. } => {}
        Event::Failed { from, why } => {
            context.note(&format!("{name}: connection from {from} failed: {why}"));
        }
        Event::LimitReached { limit } => context.note(&format!(
            "{name}: the limit of {limit} connections at once is reached; further ones wait until \
             one ends"
        )),
        Event::Lost { why } => {
            context.note(&format!("{name}: listener lost: {why}"));
        }
        Event::Regained => context.note(&format!("{name}: listener restored")),
    }
}

/// The error of a forwarding, with the next step.
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
            assert_eq!(text.parse::<ForwardSide>().unwrap().to_string(), text);
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
            assert!(text.parse::<ForwardSide>().is_err(), "{text}");
        }
    }

    #[test]
    fn exactly_one_side_is_a_partitions_and_the_other_a_socket() {
        let parts = |listens: &str, target: &str| {
            let pair = SidePair {
                listens: listens.parse().unwrap(),
                target: target.parse().unwrap(),
            };
            pair.parts().map(|(_, from, _, _)| from)
        };
        assert_eq!(parts("tcp:80", "web:tcp:80").unwrap(), Source::Host);
        assert_eq!(parts("web:service:x", "tcp:80").unwrap(), Source::Guest);
        for (listens, target) in [
            ("tcp:80", "tcp:81"),
            ("web:tcp:80", "web:tcp:81"),
            ("service:x", "web:tcp:80"),
            ("web:tcp:80", "ssh"),
        ] {
            assert!(parts(listens, target).is_err(), "{listens} {target}");
        }
    }
}
