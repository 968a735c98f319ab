//! `hvsock service allow`, `deny` and `reset`: who may connect to a service and listen for it.

use anyhow::Result;
use clap::{ArgGroup, Args};
use hvsock_address::ServiceRef;
use hvsock_control::{AccessChange, AccessChanged, AccessEntry};

use super::show;
use crate::context::Context;
use crate::failure::Failure;
use crate::format;
use crate::os::Partition;
use crate::output::{self, Json, Lines};

/// Allow users, groups and partitions to connect to a service, or to listen for it
// With the group of options in it, the usage is wider than help may be.
#[derive(Debug, Args)]
#[command(override_usage = "hvsock service allow [OPTIONS] <SERVICE>")]
pub struct Allow {
    #[command(flatten)]
    whom: Whom,
}

/// Remove users, groups and partitions from those who may connect to a service, or listen for it
// With the group of options in it, the usage is wider than help may be.
#[derive(Debug, Args)]
#[command(override_usage = "hvsock service deny [OPTIONS] <SERVICE>")]
pub struct Deny {
    #[command(flatten)]
    whom: Whom,
}

/// Remove the access rules of a service, so that its built-in rules or the defaults apply again
#[derive(Debug, Args)]
pub struct Reset {
    /// The service's friendly name, GUID or vsock port
    service: ServiceRef,
    /// Only the rules for this child partition
    #[arg(long, value_name = "PARTITION")]
    vm: Option<Partition>,
    #[command(flatten)]
    json: Json,
}

/// A service, and whom to allow or deny.
#[derive(Debug, Args)]
#[command(group = ArgGroup::new("whom").required(true).multiple(true))]
struct Whom {
    /// The service's friendly name, GUID or vsock port
    service: ServiceRef,
    /// A user of this partition by name or number, or * for everyone
    #[arg(long = "user", value_name = "USER", group = "whom")]
    users: Vec<String>,
    /// A group of this partition by name or number
    #[arg(long = "group", value_name = "GROUP", group = "whom")]
    groups: Vec<String>,
    /// A child partition, @GROUP for a sibling group, or * for all
    #[arg(long = "partition", value_name = "PARTITION", group = "whom")]
    partitions: Vec<String>,
    /// With --bind: every user in a child partition that may listen, and not its root only
    #[arg(long, group = "whom", requires = "bind")]
    any_user: bool,
    /// Who may listen, instead of who may connect
    #[arg(long)]
    bind: bool,
    /// For connections with this child partition only
    #[arg(long, value_name = "PARTITION")]
    vm: Option<Partition>,
    /// Also for the child partitions that have a rule of their own
    #[arg(long, conflicts_with = "vm")]
    everywhere: bool,
    #[command(flatten)]
    json: Json,
}

impl Allow {
    pub fn run(self, context: &Context) -> Result<()> {
        self.whom.run(context, true)
    }
}

impl Deny {
    pub fn run(self, context: &Context) -> Result<()> {
        self.whom.run(context, false)
    }
}

impl Whom {
    fn run(self, context: &Context, allow: bool) -> Result<()> {
        let vm = self.vm.as_ref().map(Partition::resolve).transpose()?;
        let change = AccessChange {
            allow,
            bind: self.bind,
            users: self.users,
            groups: self.groups,
            partitions: self.partitions,
            any_partition_user: self.any_user,
            vm,
            everywhere: self.everywhere,
        };
        let changed = context.client()?.change_access(&self.service, &change)?;
        if self.json.json {
            output::json(&changed)?;
        } else {
            tell(context, &changed, &change, self.vm.as_ref());
        }
        // The request was carried out, and something else still decides otherwise.
        let other = changed.entries.iter().find(|entry| entry.allowed != allow);
        let Some(entry) = other else { return Ok(()) };
        let (who, may) = (name(entry), may(&change));
        let not = if allow { "still may not" } else { "may still" };
        let service = &changed.service.name;
        let what = format!("{who} {not} {may} `{service}`: {}", entry.rule);
        Err(Failure::new(what)
            .help(format!(
                "hvsock service show {}",
                format::shell_word(service.as_str())
            ))
            .into())
    }
}

/// What the change is about: `connect to` or `listen for`.
fn may(change: &AccessChange) -> &'static str {
    if change.bind {
        "listen for"
    } else {
        "connect to"
    }
}

/// Tells what became of each entry.
fn tell(context: &Context, changed: &AccessChanged, change: &AccessChange, vm: Option<&Partition>) {
    let service = &changed.service;
    let scope = vm.map_or_else(String::new, |vm| format!(" with `{vm}`"));
    for entry in &changed.entries {
        let what = format!("{} `{}`{scope}", may(change), service.name);
        let who = name(entry);
        let list = format!("the list of {} who may {what}", entry.list);
        if !entry.changed_for.is_empty() {
            let partitions = entry.changed_for.join(", ");
            let now = if change.allow { "now" } else { "no longer" };
            context.note(&format!("{who} may {now} {what} with {partitions}"));
        }
        let text = match (change.allow, entry.changed, entry.allowed) {
            (false, true, false) if entry.entry == "*" => format!("{list} is empty now"),
            (false, false, false) if entry.entry == "*" => format!("{list} is empty already"),
            (true, true, true) => format!("{who} may now {what}"),
            (true, false, true) => format!("{who} may {what} already ({})", entry.rule),
            (false, true, false) => format!("{who} may no longer {what}"),
            (false, false, false) => format!("{who} may not {what} anyway ({})", entry.rule),
            // Told as an error.
            (true, _, false) | (false, _, true) => continue,
        };
        context.note(&text);
        if !entry.exceptions.is_empty() {
            let partitions = entry.exceptions.join(", ");
            let otherwise = if change.allow { "not for" } else { "still for" };
            context.note(&format!(
                "  but {otherwise} {partitions}, by a rule of its own (--everywhere changes that, too)"
            ));
        }
    }
    if !change.allow && service.connections > 0 {
        let connections = format::count(service.connections, "connection");
        context.note(&format!(
            "{connections} of `{}` stay open (`hvsock connections`)",
            service.name
        ));
    }
}

/// An entry in a sentence.
fn name(entry: &AccessEntry) -> String {
    let text = &entry.entry;
    match (entry.list.as_str(), text.as_str()) {
        ("users" | "groups", "*") => "everyone".to_owned(),
        ("partitions", "*") => "every child partition".to_owned(),
        ("groups", group) => format!("the group {group}"),
        ("partitions", partition) => match partition.strip_prefix('@') {
            Some(group) => format!("the sibling group {group}"),
            None => format!("partition {partition}"),
        },
        ("users", user) => format!("user {user}"),
        _ => text.clone(),
    }
}

impl Reset {
    pub fn run(self, context: &Context) -> Result<()> {
        let vm = self.vm.as_ref().map(Partition::resolve).transpose()?;
        let service = context.client()?.reset_access(&self.service, vm)?;
        if self.json.json {
            return output::json(&service);
        }
        let scope = self
            .vm
            .map_or_else(String::new, |vm| format!(" for `{vm}`"));
        context.note(&format!(
            "`{}` has no access rules of its own{scope} now",
            service.name
        ));
        let mut lines = Lines::default();
        show::rules(&mut lines, &service);
        lines.print()
    }
}
