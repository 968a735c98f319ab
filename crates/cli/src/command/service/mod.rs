//! `hvsock service`: registers, shows and removes services.

mod access;
mod confusable;
mod show;
mod state;
mod transfer;
mod transport;

use anyhow::{Context as _, Result};
use clap::{Args, Subcommand};
use hvsock::Lease;
use hvsock_address::{ElementName, ServiceId, ServiceRef};
use hvsock_control::{AccessList, NewService, ServiceChange};
use serde::Serialize;

use crate::context::Context;
use crate::format;
use crate::os::{self, Partition, REPORTS_USAGE, Rules, Termination, clipboard};
use crate::output::{self, Json};
use crate::table::Columns;

/// Register, list, enable, disable and remove services
#[derive(Debug, Subcommand)]
pub enum Service {
    Register(Register),
    List(List),
    Show(show::Show),
    Enable(Enable),
    Disable(Disable),
    Allow(access::Allow),
    Deny(access::Deny),
    Reset(access::Reset),
    Transport(transport::Transport),
    Unregister(Unregister),
    Export(transfer::Export),
    Import(transfer::Import),
}

/// Register a service, and print its GUID
#[derive(Debug, Args)]
pub struct Register {
    /// The friendly name
    name: ElementName,
    /// Derive the GUID from this vsock port, so that AF_VSOCK programs reach the service too
    #[arg(long, conflicts_with = "id")]
    port: Option<u32>,
    /// The GUID [default: a random one]
    #[arg(long, value_name = "GUID")]
    id: Option<ServiceId>,
    /// Unregister the service when this command ends
    #[arg(long)]
    lease: bool,
    /// A description of the service
    #[arg(long, value_name = "TEXT")]
    purpose: Option<String>,
    #[command(flatten)]
    rules: Rules,
    /// Also copy the GUID to the clipboard
    #[arg(long)]
    clip: bool,
}

/// List services
#[derive(Debug, Args)]
pub struct List {
    /// Include built-in services and those of Windows, whose GUIDs are reserved
    #[arg(long)]
    all: bool,
    #[command(flatten)]
    json: Json,
}

/// Enable a service
#[derive(Debug, Args)]
pub struct Enable {
    #[command(flatten)]
    target: Target,
    /// With --vm: keep it enabled for that partition while it is disabled for all others
    #[arg(long = "override", requires = "vm")]
    exception: bool,
}

/// Disable a service and close its connections
#[derive(Debug, Args)]
pub struct Disable {
    #[command(flatten)]
    target: Target,
}

/// A service to enable or disable.
#[derive(Debug, Args)]
struct Target {
    /// The service's friendly name, GUID or vsock port
    service: ServiceRef,
    /// For this child partition only
    #[arg(long, value_name = "PARTITION")]
    vm: Option<Partition>,
    /// Also for the child partitions that have a setting of their own
    #[arg(long, conflicts_with = "vm")]
    everywhere: bool,
    #[command(flatten)]
    json: Json,
}

/// Remove a service and close its connections
#[derive(Debug, Args)]
pub struct Unregister {
    /// The service's friendly name, GUID or vsock port
    service: ServiceRef,
}

impl Service {
    pub fn run(self, context: &Context) -> Result<()> {
        match self {
            Self::Register(register) => register.run(context),
            Self::List(list) => list.run(context),
            Self::Show(show) => show.run(context),
            Self::Enable(enable) => enable.target.run(context, true, enable.exception),
            Self::Disable(disable) => disable.target.run(context, false, false),
            Self::Allow(allow) => allow.run(context),
            Self::Deny(deny) => deny.run(context),
            Self::Reset(reset) => reset.run(context),
            Self::Transport(transport) => transport.run(context),
            Self::Unregister(unregister) => unregister.run(context),
            Self::Export(export) => export.run(context),
            Self::Import(import) => import.run(context),
        }
    }
}

impl Register {
    fn run(self, context: &Context) -> Result<()> {
        let id = self.port.map(ServiceId::from_port).or(self.id);
        if self.lease {
            return self.hold(context, id.unwrap_or_else(ServiceId::random));
        }
        let clip = self.clip;
        let service = context.client()?.register(&self.rules.of(NewService {
            name: self.name,
            id,
            enabled: true,
            bind: AccessList::default(),
            connect: AccessList::default(),
            allow_wildcard_binds: None,
            only_root_binds: None,
            transport: None,
            vm: Default::default(),
            creator: Some("hvsock".into()),
            purpose: self.purpose,
        }))?;
        print_id(service.id, clip)?;
        confusable::warn(context, [&service.name]);
        Ok(())
    }

    /// Registers a lease and holds it until a signal arrives or the broker ends the lease.
    fn hold(self, context: &Context, id: ServiceId) -> Result<()> {
        let mut termination = Termination::catch()?;
        let (name, purpose) = (self.name.as_str(), self.purpose.unwrap_or_default());
        let lease = Lease::register_at(&context.endpoint(), name, id, &purpose)?;
        print_id(lease.id(), self.clip)?;
        confusable::warn(context, [&self.name]);
        context.note(&format!(
            "`{name}` is registered until this command ends (Ctrl-C)"
        ));
        if termination.wait_or_lease_end(&lease)? {
            return Ok(());
        }
        lease.check().context("the lease has ended")
    }
}

/// Prints the GUID of a service that is registered, and copies it to the clipboard.
fn print_id(id: ServiceId, clip: bool) -> Result<()> {
    output::line(id)?;
    if clip {
        let copied = clipboard::copy(&id.to_string());
        copied
            .context("the service is registered, but its GUID cannot be copied to the clipboard")?;
    }
    Ok(())
}

impl List {
    fn run(self, context: &Context) -> Result<()> {
        let services = context.client()?.services(self.all)?;
        if self.json.json {
            return os::json_of_services(&services);
        }
        let mut headings = vec!["name", "id", "port", "state", "owner"];
        if REPORTS_USAGE {
            headings.extend(["listen", "conn"]);
        }
        let empty = "no services; register one with `hvsock service register NAME`";
        let mut table = Columns::new(&headings, empty).right(&[2, 5, 6]).whole(1);
        for service in services {
            let port = service
                .port
                .map_or_else(String::new, |port| port.to_string());
            let state = state::word(&service);
            let mut row = vec![
                service.name.to_string(),
                service.id.to_string(),
                port,
                state.to_owned(),
                service.owner.or(service.creator).unwrap_or_default(),
            ];
            if REPORTS_USAGE {
                let counts = [service.listeners, service.connections];
                row.extend(counts.map(|count| count.to_string()));
            }
            table.row(row);
        }
        table.print()
    }
}

/// A service that was enabled or disabled, as `--json` prints it.
#[derive(Debug, Serialize)]
struct Switched<'a> {
    name: String,
    id: String,
    /// The setting for all child partitions.
    enabled: bool,
    /// The child partitions that have another setting of their own.
    exceptions: Vec<&'a str>,
}

impl Target {
    fn run(self, context: &Context, enabled: bool, exception: bool) -> Result<()> {
        let client = context.client()?;
        let vm = self.vm.as_ref().map(Partition::resolve).transpose()?;
        let change = ServiceChange {
            enabled,
            vm,
            exception,
            everywhere: self.everywhere,
        };
        let service = client.change_service(&self.service, &change)?;
        let exceptions = exceptions(&service);
        if self.json.json {
            return output::json(&Switched {
                name: service.name.to_string(),
                id: service.id.to_string(),
                enabled: service.enabled,
                exceptions,
            });
        }
        let state = if enabled { "enabled" } else { "disabled" };
        let scope = self.vm.as_ref();
        let scope = scope.map_or_else(String::new, |vm| format!(" for {vm}"));
        context.note(&format!("`{}` is {state}{scope}", service.name));
        if self.vm.is_none() && !exceptions.is_empty() {
            let (other, verb) = if enabled {
                ("disabled", "enable")
            } else {
                ("enabled", "disable")
            };
            let partitions = exceptions.join(", ");
            let service = format::shell_word(service.name.as_str());
            let command = format!("hvsock service {verb} {service} --everywhere");
            context.note(&format!(
                "it is still {other} for {partitions}, by a setting of its own; to change that, too: \
                 {}",
                context.command(&command)
            ));
        }
        Ok(())
    }
}

/// The child partitions for which a service has another setting than for all.
fn exceptions(service: &hvsock_control::Service) -> Vec<&str> {
    let others = service.vm.iter();
    let others = others.filter(|(_, own)| own.enabled == Some(!service.enabled));
    others.map(|(partition, _)| partition.as_str()).collect()
}

impl Unregister {
    fn run(self, context: &Context) -> Result<()> {
        let gone = context.client()?.unregister(&self.service)?;
        context.note(&format!(
            "`{}` ({}) is no longer registered",
            gone.name, gone.id
        ));
        Ok(())
    }
}
