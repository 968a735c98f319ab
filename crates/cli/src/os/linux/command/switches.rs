//! `hvsock vm integration` and `hvsock container integration`: a guest's integration services, with
//! the switch that each has for that guest.

use anyhow::Result;
use clap::{Args, Subcommand};
use hvsock_address::ServiceRef;
use hvsock_control::{Contact, Guest, Partition, Service};
use hvsock_services::catalog::{self, Integration, Side};
use serde::Serialize;

use super::partition::{Named, Partitions};
use crate::context::Context;
use crate::output::{self, Json};
use crate::table::Columns;

/// List a guest's integration services, or switch them on and off for it
///
/// A service that is switched off is refused, and what uses it is cut. This is about one guest;
/// `hvsock service disable` without --vm switches a service off for all.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  hvsock vm integration web
  hvsock vm integration web disable session copy
  hvsock vm integration web enable session")]
pub struct Switches {
    #[command(flatten)]
    named: Named,
    #[command(flatten)]
    json: Json,
    #[command(subcommand)]
    change: Option<Change>,
}

#[derive(Debug, Subcommand)]
enum Change {
    /// Let services be used with this guest, also where they are switched off for all others
    Enable(Which),
    /// Refuse services to and from this guest, and cut what uses them
    Disable(Which),
}

/// Services.
#[derive(Debug, Args)]
struct Which {
    /// Words such as kvp, or the services' names, GUIDs or ports
    #[arg(required = true, value_name = "SERVICE", value_parser = find)]
    services: Vec<&'static Integration>,
}

fn find(text: &str) -> Result<&'static Integration, String> {
    Integration::find(text).ok_or_else(|| {
        let keys: Vec<&str> = catalog::ALL.iter().map(|one| one.key).collect();
        format!("the integration services are {}", keys.join(", "))
    })
}

/// One service of one guest, as `--json` prints it.
#[derive(Debug, Serialize)]
struct Row {
    key: &'static str,
    name: &'static str,
    port: u32,
    id: String,
    /// Who listens.
    offered_by: &'static str,
    registered: bool,
    /// For every guest that says nothing else.
    enabled: bool,
    /// What is said for this guest.
    enabled_for_guest: Option<bool>,
    /// Whether it may be used with this guest.
    usable: bool,
    /// Whether whoever offers it does so now; none if that is not known.
    offered: Option<bool>,
    /// Why it is not offered.
    problem: Option<String>,
}

impl Switches {
    pub fn run(self, partitions: Partitions<'_>) -> Result<()> {
        let partition = partitions.find(&self.named)?;
        match self.change {
            None => list(partitions.context, &partition, self.json),
            Some(Change::Enable(which)) => set(partitions.context, &partition, &which, true),
            Some(Change::Disable(which)) => set(partitions.context, &partition, &which, false),
        }
    }
}

fn set(context: &Context, partition: &Partition, which: &Which, enabled: bool) -> Result<()> {
    let client = context.client()?;
    for service in &which.services {
        let reference = ServiceRef::from(service.id());
        client.set_enabled(&reference, enabled, Some(partition.id.into()))?;
        let (key, guest) = (service.key, &partition.name);
        let state = if enabled { "enabled" } else { "disabled" };
        context.note(&format!("{key} is {state} for `{guest}`"));
    }
    Ok(())
}

fn list(context: &Context, partition: &Partition, json: Json) -> Result<()> {
    let services = context.client()?.services(true)?;
    let rows = catalog::ALL.map(|one| row(one, partition, &services));
    if json.json {
        return output::json(&rows);
    }
    let headings = ["service", "port", "state", "offered", "what for"];
    let mut table = Columns::new(&headings, "no services").right(&[1]);
    for (row, one) in rows.iter().zip(catalog::ALL) {
        table.row([
            row.key.to_owned(),
            row.port.to_string(),
            row.state().to_owned(),
            row.offer(),
            one.purpose.to_owned(),
        ]);
    }
    table.print()
}

fn row(one: &'static Integration, partition: &Partition, services: &[Service]) -> Row {
    let service = services.iter().find(|service| service.id == one.id());
    let enabled = service.is_some_and(|service| service.enabled);
    let for_guest = service.and_then(|service| {
        // A registration's file may name a partition by either, in any case of letters.
        let names = [partition.name.to_string(), partition.id.to_string()];
        let mut overrides = service.vm.iter();
        let said =
            overrides.find(|(said, _)| names.iter().any(|name| name.eq_ignore_ascii_case(said)));
        said.and_then(|(_, said)| said.enabled)
    });
    let (offered, problem) = match one.side {
        Side::Host => (service.map(|service| service.listeners > 0), None),
        Side::Guest => told(one, partition.guest.as_deref()),
    };
    Row {
        key: one.key,
        name: one.name,
        port: one.port,
        id: one.id().to_string(),
        offered_by: match one.side {
            Side::Host => "host",
            Side::Guest => "guest",
        },
        registered: service.is_some(),
        enabled,
        enabled_for_guest: for_guest,
        usable: for_guest.unwrap_or(enabled),
        offered,
        problem,
    }
}

/// What the agent in the guest says of a service, as long as it is heard.
fn told(one: &Integration, guest: Option<&Guest>) -> (Option<bool>, Option<String>) {
    let heard = guest.filter(|guest| guest.contact == Contact::Ok);
    let services = heard.and_then(|guest| Some(&guest.report.as_ref()?.facts.services));
    let Some(services) = services else {
        return (None, None);
    };
    match services.iter().find(|service| service.port == one.port) {
        Some(service) => (Some(service.offered), service.problem.clone()),
        None => (Some(false), Some("this agent does not have it".to_owned())),
    }
}

impl Row {
    fn state(&self) -> &'static str {
        match (self.registered, self.enabled, self.enabled_for_guest) {
            (false, ..) => "not registered",
            (_, _, Some(false)) => "disabled",
            (_, _, Some(true)) => "enabled",
            (_, true, None) => "enabled",
            (_, false, None) => "disabled for all",
        }
    }

    fn offer(&self) -> String {
        match (self.offered, &self.problem) {
            (None, _) => "unknown: no heartbeat".to_owned(),
            (Some(true), _) => format!("by the {}", self.offered_by),
            (Some(false), None) => "no".to_owned(),
            (Some(false), Some(problem)) => format!("no: {problem}"),
        }
    }
}
