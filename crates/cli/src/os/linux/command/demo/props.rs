//! Shared by both stories: the service, and the counters at the end.

use std::io::{Read as _, Write as _};
use std::net::Shutdown;

use anyhow::{Result, bail};
use hvsock::HvStream;
use hvsock_address::{ElementName, ServiceRef};
use hvsock_broker::Handle;
use hvsock_control::{NewService, Service};

use super::guest::Reply;
use super::narrator::Narrator;
use crate::os::linux::format;
use crate::table::Columns;

/// The friendly name of the demo's service.
pub const NAME: &str = "HV Socket Demo";

/// The demo's service by name.
pub fn name() -> Result<ServiceRef> {
    Ok(ServiceRef::Name(ElementName::new(NAME)?))
}

/// Registers the demo's service.
pub fn register(handle: &Handle) -> Result<Service> {
    let service = NewService {
        name: ElementName::new(NAME)?,
        id: None,
        enabled: true,
        bind: Default::default(),
        connect: Default::default(),
        allow_wildcard_binds: None,
        only_root_binds: None,
        transport: None,
        vm: Default::default(),
        creator: Some("hvsock demo".into()),
        purpose: None,
    };
    Ok(handle.register(service, "you".into())?)
}

/// Reads what the guest sends to the end, and answers on the half that is still open. Returns the answer.
pub fn answer(narrator: &Narrator, stream: &mut HvStream) -> Result<String> {
    let peer = stream.peer();
    let from = peer.map_or_else(String::new, |peer| peer.partition().to_owned());
    let mut received = String::new();
    stream.read_to_string(&mut received)?;
    let host = format!("receives \"{received}\" from `{from}`, then end of file");
    narrator.good("host", &host)?;
    let answer = format!("Hello {from}, I got {} bytes.", received.len());
    stream.write_all(answer.as_bytes())?;
    stream.shutdown(Shutdown::Write)?;
    Ok(answer)
}

/// Prints that the guest received the answer.
pub fn answered(narrator: &Narrator, reply: Reply, answer: &str) -> Result<()> {
    match reply {
        Reply::Received(received) if received == answer => narrator.good(
            "guest",
            &format!("receives \"{received}\", then end of file"),
        ),
        other => bail!("the guest should have received the answer, not {other:?}"),
    }
}

/// Prints the broker's counters.
pub fn counters(narrator: &Narrator, handle: &Handle) -> Result<()> {
    narrator.aside("")?;
    narrator.aside("The broker's counters for each service, as in /metrics:")?;
    let metrics = handle.metrics()?;
    let headings = ["service", "connections", "sent", "received"];
    let mut table = Columns::new(&headings, "nothing").right(&[1, 2, 3]);
    for service in metrics.services {
        table.row([
            service.service.unwrap_or_else(|| "(unregistered)".into()),
            service.connections_total.to_string(),
            format::bytes(service.sent_bytes),
            format::bytes(service.received_bytes),
        ]);
    }
    narrator.table(&table)?;
    let refusals: Vec<String> = metrics
        .refusals
        .iter()
        .filter(|(_, count)| **count > 0)
        .map(|(reason, count)| format!("{reason} {count}"))
        .collect();
    narrator.aside(&format!("refusals: {}", refusals.join(", ")))
}

/// The system's text for an errno.
pub fn errno_text(errno: Option<i32>) -> String {
    match errno {
        Some(errno) => std::io::Error::from_raw_os_error(errno).to_string(),
        None => "an error".to_owned(),
    }
}
