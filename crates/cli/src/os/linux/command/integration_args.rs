//! `hvsock vm integration` and `hvsock container integration`: enables and disables integration
//! services for one guest.

use anyhow::Result;
use clap::{Args, Subcommand};
use hvsock_address::ServiceRef;
use hvsock_control::{AgentState, Guest, Partition, Service, ServiceChange};
use hvsock_services::catalog::{self, Integration, ServiceSide};
use serde::Serialize;

use super::partition::{Named, Partitions};
use crate::context::Context;
use crate::output::{self, Json};
use crate::table::Columns;

/// List a guest's integration services, or enable and disable them
#[derive(Debug, Args)]
pub struct IntegrationArgs {
    #[command(flatten)]
    named: Named,
    #[command(flatten)]
    json: Json,
    #[command(subcommand)]
    change: Option<Change>,
}

#[derive(Debug, Subcommand)]
enum Change {
    /// Enable services for this guest: it follows what holds for all guests
    Enable(EnableArgs),
    /// Disable services for this guest
    Disable(ServiceArgs),
}

/// The services to enable.
#[derive(Debug, Args)]
struct EnableArgs {
    #[command(flatten)]
    services: ServiceArgs,
    /// Keep them enabled for this guest while they are disabled for all others
    #[arg(long = "override")]
    exception: bool,
}

/// The services to change.
#[derive(Debug, Args)]
struct ServiceArgs {
    /// Keys such as kvp, or the services' names, GUIDs or ports
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
    /// The side that listens.
    offered_by: &'static str,
    registered: bool,
    /// Whether it is enabled for guests without a setting of their own.
    enabled: bool,
    /// The setting for this guest.
    enabled_for_guest: Option<bool>,
    /// Whether it is enabled for this guest.
    usable: bool,
    /// Whether a listener offers it now. `None` if that is unknown.
    offered: Option<bool>,
    /// Why it is not offered.
    problem: Option<String>,
}

impl IntegrationArgs {
    pub fn run(self, partitions: Partitions<'_>) -> Result<()> {
        let partition = partitions.find(&self.named)?;
        match self.change {
            None => list(partitions.context, &partition, self.json),
            Some(Change::Enable(args)) => {
                let change = ServiceChange {
                    enabled: true,
                    exception: args.exception,
                    ..ServiceChange::default()
                };
                set(partitions.context, &partition, &args.services, &change)
            }
            Some(Change::Disable(args)) => {
                let change = ServiceChange::default();
                set(partitions.context, &partition, &args, &change)
            }
        }
    }
}

fn set(
    context: &Context,
    partition: &Partition,
    args: &ServiceArgs,
    change: &ServiceChange,
) -> Result<()> {
    let client = context.client()?;
    let enabled = change.enabled;
    let change = ServiceChange {
        vm: Some(partition.id.into()),
        ..change.clone()
    };
    for service in &args.services {
        let reference = ServiceRef::from(service.id());
        client.change_service(&reference, &change)?;
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
    let headings = ["service", "port", "state", "offered", "purpose"];
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
        // A registration names a partition by name or GUID, in upper or lower case.
        let names = [partition.name.to_string(), partition.id.to_string()];
        let mut overrides = service.vm.iter();
        let found =
            overrides.find(|(vm, _)| names.iter().any(|name| name.eq_ignore_ascii_case(vm)));
        found.and_then(|(_, settings)| settings.enabled)
    });
    let (offered, problem) = match one.side {
        ServiceSide::Host => (service.map(|service| service.listeners > 0), None),
        ServiceSide::Guest => reported(one, partition.guest.as_deref()),
    };
    Row {
        key: one.key,
        name: one.name,
        port: one.port,
        id: one.id().to_string(),
        offered_by: match one.side {
            ServiceSide::Host => "host",
            ServiceSide::Guest => "guest",
        },
        registered: service.is_some(),
        enabled,
        enabled_for_guest: for_guest,
        usable: for_guest.unwrap_or(enabled),
        offered,
        problem,
    }
}

/// The agent's report about a service, while the agent is connected.
fn reported(one: &Integration, guest: Option<&Guest>) -> (Option<bool>, Option<String>) {
    let connected = guest.filter(|guest| guest.agent == AgentState::Connected);
    let services = connected.and_then(|guest| Some(&guest.report.as_ref()?.facts.services));
    let Some(services) = services else {
        return (None, None);
    };
    match services.iter().find(|service| service.port == one.port) {
        Some(service) => (Some(service.offered), service.problem.clone()),
        None => (Some(false), Some("not supported by this agent".to_owned())),
    }
}

impl Row {
    fn state(&self) -> &'static str {
        match (self.registered, self.enabled, self.enabled_for_guest) {
            (false, ..) => "not registered",
            (_, _, Some(false)) => "disabled",
            (_, false, Some(true)) => "enabled, an exception",
            (_, true, Some(true)) => "enabled",
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
