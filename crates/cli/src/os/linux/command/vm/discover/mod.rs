//! `hvsock vm discover`: the virtual machines that run on this machine.

mod plan;

use std::time::Duration;

use anyhow::Result;
use clap::Args;
use hvsock_address::PartitionName;
use hvsock_control::Partition;
use hvsock_discover::{Machine, ManagerKind, Note, State, Unavailable};
use serde::Serialize;

use crate::context::Context;
use crate::failure::Failure;
use crate::output;
use crate::table::Columns;

/// The time that each manager has.
const LIMIT: Duration = Duration::from_secs(5);

/// List the virtual machines that run on this machine, and add them
#[derive(Debug, Args)]
pub struct Discover {
    /// Add them as partitions: those with these names, else all that can be reached
    #[arg(long)]
    add: bool,
    /// Only the virtual machines with these names
    #[arg(value_name = "NAME")]
    names: Vec<String>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// The output of `--json`.
#[derive(Debug, Serialize)]
struct Everything<'a> {
    machines: Vec<Entry<'a>>,
    notes: Vec<JsonNote>,
}

#[derive(Debug, Serialize)]
struct Entry<'a> {
    #[serde(flatten)]
    machine: &'a Machine,
    /// The partition that it is.
    partition: Option<PartitionName>,
    /// Why it could not be added now.
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

#[derive(Debug, Serialize)]
struct JsonNote {
    manager: ManagerKind,
    why: String,
    help: Option<String>,
}

impl Discover {
    pub fn run(&self, context: &Context) -> Result<()> {
        let found = hvsock_discover::discover(&hvsock_discover::managers(), LIMIT);
        // Without a broker the list is still of use, unless something is to be added.
        let partitions = match context.client().and_then(|client| Ok(client.partitions()?)) {
            Ok(partitions) => partitions,
            Err(error) if self.add => return Err(error),
            Err(error) => {
                context.note(&format!("note: what is added is unknown: {error}"));
                Vec::new()
            }
        };
        let is_named =
            |machine: &&Machine| self.names.is_empty() || self.names.contains(&machine.name);
        let mut entries: Vec<Entry<'_>> = found
            .machines
            .iter()
            .filter(is_named)
            .map(|machine| Entry {
                machine,
                partition: plan::partition(machine, &partitions).map(|one| one.name.clone()),
                error: None,
            })
            .collect();
        let unknown = self
            .names
            .iter()
            .find(|name| entries.iter().all(|entry| entry.machine.name != **name));
        if let Some(name) = unknown {
            let message = format!("no virtual machine with the name {name:?} was found");
            let help = context.command("hvsock vm discover");
            return Err(Failure::new(message).help(help).into());
        }
        let mut added = false;
        if self.add {
            for entry in &mut entries {
                added |= self.add(context, entry, &found.machines);
            }
        }
        let failed: Vec<String> = entries
            .iter()
            .filter(|entry| entry.error.is_some())
            .map(|entry| entry.machine.name.clone())
            .collect();
        let notes: Vec<JsonNote> = found.notes.iter().map(json_note).collect();
        if self.json {
            output::json(&Everything {
                machines: entries,
                notes,
            })?;
        } else {
            table(&entries)?;
            tell(context, &found.notes);
            self.tell_next(context, &entries, added);
        }
        match failed.is_empty() {
            true => Ok(()),
            false => Err(Failure::new(format!("not added: {}", failed.join(", "))).into()),
        }
    }

    /// Tells what `--add` would do, or that it did nothing.
    fn tell_next(&self, context: &Context, entries: &[Entry<'_>], added: bool) {
        let own_uid = rustix::process::geteuid().as_raw();
        let rest = entries.iter().any(|entry| {
            entry.partition.is_none()
                && plan::new_vm(entry.machine).is_ok()
                && plan::is_added_unnamed(entry.machine, own_uid)
        });
        if rest && !self.add {
            let add = context.command("hvsock vm discover --add");
            context.note(&format!("`{add}` adds those that are no partitions yet"));
        }
        if self.add && !added && entries.iter().all(|entry| entry.error.is_none()) {
            context.note("nothing was added: none runs, can be reached and is no partition yet");
        }
    }

    /// Adds a virtual machine, or says why not. Returns whether it did.
    fn add(&self, context: &Context, entry: &mut Entry<'_>, all: &[Machine]) -> bool {
        let machine = entry.machine;
        let shown = &machine.name;
        if entry.partition.is_some() {
            return false;
        }
        let is_named = !self.names.is_empty();
        let own_uid = rustix::process::geteuid().as_raw();
        if !is_named && !plan::is_added_unnamed(machine, own_uid) {
            if machine.state != State::Off && plan::new_vm(machine).is_ok() {
                let add = context.command("hvsock vm discover --add NAME");
                context.note(&format!(
                    "`{shown}` is what {} claims, and not added; `{add}` adds it",
                    claimant(machine)
                ));
            }
            return false;
        }
        let namesake = match is_named {
            true => plan::namesake(machine, all, own_uid),
            false => plan::Namesake::None,
        };
        if namesake != plan::Namesake::None {
            let add = context.command("hvsock vm add --help");
            let error = format!(
                "{} claims this name, which another one has, too; `{add}` shows how to add it",
                claimant(machine)
            );
            context.note(&format!("not added as `{shown}`: {error}"));
            // If there is one that is meant, it was not this one that somebody asked for.
            entry.error = Some(error).filter(|_| namesake == plan::Namesake::Equal);
            return false;
        }
        let result = match plan::new_vm(machine) {
            // One that cannot be reached is no failure, unless somebody asked for it.
            Err(_) if !is_named => return false,
            Err(unfit) => Err(unfit.to_string()),
            Ok(new) => context
                .client()
                .and_then(|client| Ok(client.add_vm(&new)?))
                .map_err(|error| format!("{error:#}")),
        };
        match result {
            Ok(Partition { name, id, .. }) => {
                context.note(&format!(
                    "`{shown}` is the partition `{name}` with the id {id}"
                ));
                entry.partition = Some(name);
                true
            }
            Err(error) => {
                context.note(&format!("cannot add `{shown}`: {error}"));
                entry.error = Some(error);
                false
            }
        }
    }
}

/// Whose words the description of a process is.
fn claimant(machine: &Machine) -> String {
    match machine.uid {
        Some(uid) => format!("a process of the user {uid}"),
        None => "a process of a container or of an unknown user".to_owned(),
    }
}

fn table(entries: &[Entry<'_>]) -> Result<()> {
    let headings = [
        "name",
        "known by",
        "state",
        "pid",
        "reached by",
        "partition",
    ];
    let empty = "no virtual machines were found";
    let mut table = Columns::new(&headings, empty).right(&[3]);
    for Entry {
        machine, partition, ..
    } in entries
    {
        let state = match machine.state {
            State::Running => "running",
            State::Paused => "paused",
            State::Off => "off",
            State::Unknown => "unknown",
        };
        let ways: Vec<String> = machine.reach.iter().map(plan::text).collect();
        let ways = match ways.is_empty() {
            true => "no vsock device".to_owned(),
            false => ways.join(", "),
        };
        table.row([
            machine.name.clone(),
            machine.manager.to_string(),
            state.to_owned(),
            machine.pid.map_or_else(String::new, |pid| pid.to_string()),
            ways,
            partition
                .as_ref()
                .map_or_else(String::new, ToString::to_string),
        ]);
    }
    table.print()
}

/// Tells which managers did not answer, those that are not there in one line.
fn tell(context: &Context, notes: &[Note]) {
    let absent: Vec<&str> = notes
        .iter()
        .filter(|note| note.why.is_absent())
        .map(|note| title(note.manager))
        .collect();
    if !absent.is_empty() {
        context.note(&format!("note: not running here: {}", absent.join(", ")));
    }
    for note in notes.iter().filter(|note| !note.why.is_absent()) {
        let help = help(note).map_or_else(String::new, |help| format!(" ({help})"));
        context.note(&format!(
            "note: cannot ask {}: {}{help}",
            title(note.manager),
            note.why
        ));
    }
}

fn json_note(note: &Note) -> JsonNote {
    JsonNote {
        manager: note.manager,
        why: note.why.to_string(),
        help: help(note),
    }
}

fn title(manager: ManagerKind) -> &'static str {
    match manager {
        ManagerKind::Machined => "systemd-machined",
        ManagerKind::Libvirt => "libvirt",
        ManagerKind::Incus => "Incus",
        ManagerKind::Processes => "/proc",
    }
}

/// The next step.
fn help(note: &Note) -> Option<String> {
    let text = match (&note.why, note.manager) {
        (Unavailable::Absent { .. }, _) => return None,
        (Unavailable::Forbidden { .. }, ManagerKind::Libvirt) => {
            "run it as root or as a member of the group libvirt"
        }
        (Unavailable::Forbidden { .. }, ManagerKind::Incus) => {
            "run it as root or as a member of the group incus-admin"
        }
        (Unavailable::Forbidden { .. }, _) => "run it as root",
        (Unavailable::Silent { .. }, ManagerKind::Libvirt) => {
            "look at `systemctl status virtqemud libvirtd`"
        }
        (Unavailable::Silent { .. }, ManagerKind::Incus) => "look at `systemctl status incus`",
        (Unavailable::Silent { .. }, ManagerKind::Machined) => {
            "look at `systemctl status systemd-machined`"
        }
        _ => "its virtual machines can be added by hand: `hvsock vm add --help`",
    };
    Some(text.to_owned())
}
