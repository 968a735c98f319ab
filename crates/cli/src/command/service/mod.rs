//! `hvsock service`: registers, shows and removes services.

mod transfer;

use anyhow::{Context as _, Result};
use clap::{Args, Subcommand};
use hvsock::Lease;
use hvsock_address::{ElementName, ServiceId, ServiceRef};
use hvsock_control::{AccessList, NewService};

use crate::context::Context;
use crate::format;
use crate::os::{self, HAS_ACCESS_RULES, Partition, REPORTS_USAGE, Rules, Termination, clipboard};
use crate::output::{self, Json, Lines};
use crate::table::Columns;

/// Register, list, enable, disable and remove services
#[derive(Debug, Subcommand)]
pub enum Service {
    Register(Register),
    List(List),
    Show(Show),
    Enable(Enable),
    Disable(Disable),
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

/// Show one service and its access rules
#[derive(Debug, Args)]
pub struct Show {
    /// The service's friendly name, GUID or vsock port
    service: ServiceRef,
    #[command(flatten)]
    json: Json,
}

/// Enable a service
#[derive(Debug, Args)]
pub struct Enable {
    /// The service's friendly name, GUID or vsock port
    service: ServiceRef,
    /// For this child partition only
    #[arg(long, value_name = "PARTITION")]
    vm: Option<Partition>,
}

/// Disable a service and close its connections
#[derive(Debug, Args)]
pub struct Disable {
    #[command(flatten)]
    target: Enable,
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
            Self::Enable(enable) => enable.run(context, true),
            Self::Disable(disable) => disable.target.run(context, false),
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
            vm: Default::default(),
            creator: Some("hvsock".into()),
            purpose: self.purpose,
        }))?;
        print_id(service.id, clip)
    }

    /// Registers a lease and holds it until a signal arrives or the broker ends the lease.
    fn hold(self, context: &Context, id: ServiceId) -> Result<()> {
        let mut termination = Termination::catch()?;
        let (name, purpose) = (self.name.as_str(), self.purpose.unwrap_or_default());
        let lease = Lease::register_at(&context.endpoint(), name, id, &purpose)?;
        print_id(lease.id(), self.clip)?;
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
            let state = state(&service);
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

fn state(service: &hvsock_control::Service) -> &'static str {
    match service {
        _ if service.in_box => "in-box",
        _ if !service.enabled => "disabled",
        _ if service.built_in => "built in",
        _ if service.lease => "lease",
        _ => "enabled",
    }
}

impl Show {
    fn run(self, context: &Context) -> Result<()> {
        let service = context.client()?.service(&self.service)?;
        if self.json.json {
            return os::json_of_services(&service);
        }
        let mut facts = vec![
            ("name", service.name.to_string()),
            ("id", service.id.to_string()),
            ("state", state(&service).to_owned()),
        ];
        facts.extend(service.port.map(|port| ("port", port.to_string())));
        let alias = service.alias.map(|alias| format!("{alias} (for guests)"));
        facts.extend(alias.map(|alias| ("port alias", alias)));
        facts.extend(service.purpose.map(|purpose| ("purpose", purpose)));
        facts.extend(service.owner.map(|owner| ("owner", owner)));
        facts.extend(service.creator.map(|creator| ("creator", creator)));
        if HAS_ACCESS_RULES {
            facts.push(("listen", rule(&service.bind)));
            facts.push(("connect", rule(&service.connect)));
            let wildcard = match service.allow_wildcard_binds {
                Some(true) => "allowed",
                Some(false) => "not allowed",
                None => "by default",
            };
            facts.push(("listen to any", wildcard.to_owned()));
        }
        for (name, o) in &service.vm {
            let mut parts = Vec::new();
            parts.extend(
                o.enabled
                    .map(|on| if on { "enabled" } else { "disabled" }.to_owned()),
            );
            parts.extend(text_of(&o.bind).map(|rule| format!("listen: {rule}")));
            parts.extend(text_of(&o.connect).map(|rule| format!("connect: {rule}")));
            facts.push(("for", format!("{name}: {}", parts.join("; "))));
        }
        if REPORTS_USAGE {
            let listeners = format::count(service.listeners, "listener");
            let connections = format::count(service.connections, "connection");
            facts.push(("in use", format!("{listeners}, {connections}")));
        }
        let mut lines = Lines::default();
        for (label, fact) in facts {
            lines.fact(label, fact);
        }
        lines.print()
    }
}

fn rule(list: &AccessList) -> String {
    text_of(list).unwrap_or_else(|| "by default".to_owned())
}

/// An access rule as text. `None` if it leaves everything to the defaults.
fn text_of(list: &AccessList) -> Option<String> {
    let lists = [
        ("users", &list.users),
        ("groups", &list.groups),
        ("partitions", &list.partitions),
    ];
    let parts: Vec<String> = lists
        .into_iter()
        .filter_map(|(word, names)| {
            let names = names.as_ref()?;
            let names = if names.is_empty() {
                "none".to_owned()
            } else {
                names.join(", ")
            };
            Some(format!("{word} {names}"))
        })
        .collect();
    Some(parts.join("; ")).filter(|text| !text.is_empty())
}

impl Enable {
    fn run(self, context: &Context, enabled: bool) -> Result<()> {
        let client = context.client()?;
        let vm = self.vm.as_ref().map(Partition::resolve).transpose()?;
        let service = client.set_enabled(&self.service, enabled, vm)?;
        let state = if enabled { "enabled" } else { "disabled" };
        let scope = self.vm.map_or_else(String::new, |vm| format!(" for {vm}"));
        context.note(&format!("`{}` is {state}{scope}", service.name));
        Ok(())
    }
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
