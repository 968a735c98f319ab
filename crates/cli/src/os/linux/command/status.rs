//! `hvsock status`: partitions, listeners and connections at a glance.

use anstyle::{AnsiColor, Style};
use anyhow::Result;
use clap::Args;
use hvsock_control::{
    BrokerThread, Confinement, Connection, Listener, Partition, PartitionKind, PartitionState,
    Status as Overview, UplinkState, UplinkStatus,
};
use serde::Serialize;

use super::connections::{end, state};
use super::guest;
use crate::context::Context;
use crate::failure::{Failure, printable};
use crate::fix;
use crate::hint::Help;
use crate::os::linux::format;
use crate::output::{self, Json, Lines};

/// Show all partitions, listeners and connections
#[derive(Debug, Args)]
pub struct Status {
    /// Show what the broker has taken from itself: system calls, files and capabilities of its threads
    #[arg(long, conflicts_with = "json")]
    confinement: bool,
    #[command(flatten)]
    json: Json,
}

/// The output of `--json`.
#[derive(Debug, Serialize)]
struct Everything {
    status: Overview,
    partitions: Vec<Partition>,
    listeners: Vec<Listener>,
    connections: Vec<Connection>,
}

impl Status {
    pub fn run(self, context: &Context) -> Result<()> {
        let client = context.client()?;
        if self.confinement {
            return confinement(client.status()?.confinement.as_ref()).print();
        }
        let status = client.status().map_err(|error| {
            // A core that hangs is why, and only the rest of the broker can say so.
            let stuck = client.threads().unwrap_or_default().into_iter();
            let stuck: Vec<_> = stuck.filter(|thread| thread.stuck).collect();
            match stuck.is_empty() {
                true => error.into(),
                false => anyhow::Error::from(Failure::new(hang(&stuck))),
            }
        })?;
        let everything = Everything {
            status,
            partitions: client.partitions()?,
            listeners: client.listeners()?,
            connections: client.connections()?,
        };
        if self.json.json {
            return output::json(&everything);
        }
        everything.lines().print()
    }
}

/// Why there is no status.
fn hang(stuck: &[BrokerThread]) -> String {
    let threads = stuck.iter().map(|thread| {
        let name = printable(&thread.name);
        let step = thread.step.as_deref().map(printable).unwrap_or_default();
        let time = thread.turn_seconds;
        format!("the thread {name} has been stuck for {time:.0} s ({step})")
    });
    let threads: Vec<_> = threads.collect();
    format!("the broker hangs: {}", threads.join("; "))
}

/// What is missing of a broker's confinement.
fn shortcomings(confinement: &Confinement, lines: &mut Lines) {
    let denied: u64 = confinement.denied.iter().map(|denied| denied.count).sum();
    let denied = denied.saturating_add(confinement.denied_others);
    let mut texts: Vec<String> = match confinement.enabled {
        true => confinement.missing.clone(),
        false => return,
    };
    if denied > 0 {
        texts.push(format!(
            "the broker's threads were denied {}: hvsock status --confinement",
            format::count(usize::try_from(denied).unwrap_or(usize::MAX), "system call")
        ));
    }
    if !texts.is_empty() {
        lines.push("");
    }
    for text in texts {
        let text = printable(&text);
        lines.push(format_args!("{ALARM}confinement:{ALARM:#} {text}"));
    }
}

const NOT_CONFINED: &str = "the broker is not confined (hvsock broker --sandbox on)";

/// The lines of `--confinement`.
fn confinement(confinement: Option<&Confinement>) -> Lines {
    let mut lines = Lines::default();
    let Some(confinement) = confinement else {
        lines.push("the broker is older than this command, and does not say");
        return lines;
    };
    if !confinement.enabled {
        lines.push(NOT_CONFINED);
        return lines;
    }
    let list = |names: &[String]| match names {
        [] => "none".to_owned(),
        names => printable(&names.join(" ")).to_string(),
    };
    lines.push(match confinement.landlock_abi {
        Some(version) => format!("Landlock: version {version} of the kernel's interface"),
        None => "Landlock: this kernel has none, or does not use it".into(),
    });
    let capabilities = list(&confinement.capabilities);
    lines.push(format_args!("capabilities of the process: {capabilities}"));
    lines.push("");
    lines.push("threads       system calls  files    capabilities");
    for threads in &confinement.threads {
        let calls = ["all", "allow list"][usize::from(threads.seccomp)];
        let files = ["by mode", "none"][usize::from(threads.landlock)];
        let capabilities = match list(&threads.capabilities) {
            same if same == capabilities && same != "none" => "those of the process".into(),
            other => other,
        };
        let kind = printable(&threads.kind).to_string();
        lines.push(format_args!(
            "{kind:<12}  {calls:<12}  {files:<7}  {capabilities}"
        ));
    }
    for missing in &confinement.missing {
        lines.push("");
        let missing = printable(missing);
        lines.push(format_args!("{ALARM}not confined:{ALARM:#} {missing}"));
    }
    for denied in &confinement.denied {
        lines.push("");
        lines.push(format_args!(
            "{ALARM}denied:{ALARM:#} {} (system call {}) of a thread of kind {}, {}",
            printable(denied.name.as_deref().unwrap_or("unknown")),
            denied.syscall,
            printable(&denied.kind),
            format::count(usize::try_from(denied.count).unwrap_or(usize::MAX), "time"),
        ));
    }
    lines
}

const NAME: Style = AnsiColor::Cyan.on_default().bold();
const FAINT: Style = Style::new().dimmed();
const ALARM: Style = AnsiColor::Yellow.on_default();
const HELP: Style = AnsiColor::Green.on_default();

/// A node of the tree with its children.
struct Node {
    line: String,
    children: Vec<Node>,
}

impl Everything {
    fn lines(&self) -> Lines {
        let status = &self.status;
        let mut lines = Lines::default();
        lines.push(format_args!(
            "hvsock {} (pid {}), up {}, {}",
            status.version,
            status.pid,
            format::age(status.uptime_seconds as f64),
            format::count(status.services, "service"),
        ));
        lines.push("");
        for root in self
            .partitions
            .iter()
            .filter(|partition| partition.parent.is_none())
        {
            self.node(root).add_to(&mut lines, "", "");
        }
        if !self.connections.is_empty() {
            lines.push("");
            lines.push("connections");
        }
        for connection in &self.connections {
            let service = format::service(connection.service, connection.service_name.as_ref());
            let state = match state(connection.state) {
                "open" => String::new(),
                state => format!(", {ALARM}{state}{ALARM:#}"),
            };
            lines.push(format_args!(
                "  {:>4}  {} → {}  {NAME}{}{NAME:#}  {}, {}{state}",
                connection.id,
                printable(&end(&connection.from)),
                printable(&end(&connection.to)),
                printable(&service),
                format::traffic(connection.bytes_sent, connection.bytes_received)
                    .replace(" and ", ", "),
                format::age(connection.age_seconds),
            ));
        }
        let resources = [
            (&status.descriptors, "broker descriptors that it may use"),
            (&status.unread_messages, "messages that it may leave unread"),
        ];
        for (resource, what) in resources {
            for share in resource.owners.iter().filter(|share| share.is_short()) {
                lines.push("");
                lines.push(format_args!(
                    "{ALARM}limit:{ALARM:#} {}: {} of the {} {what}",
                    printable(&share.owner),
                    share.used,
                    share.limit,
                ));
            }
        }
        if let Some(confinement) = &status.confinement {
            shortcomings(confinement, &mut lines);
        }
        for problem in &status.problems {
            let since = format::age(problem.age_seconds);
            let what = printable(&problem.text);
            lines.push("");
            lines.push(format_args!(
                "{ALARM}problem:{ALARM:#} {what} {FAINT}(for {since}){FAINT:#}"
            ));
            if let Some(fix) = &problem.fix {
                let (Help::Command(help) | Help::Sentence(help)) = fix::help(&fix.into());
                lines.push(format_args!("{HELP}help:{HELP:#} {help}"));
            }
        }
        lines
    }

    fn node(&self, partition: &Partition) -> Node {
        let state = match partition.state {
            PartitionState::Running => String::new(),
            // That of a container without its runtime's hooks.
            PartitionState::Unknown if partition.kind == PartitionKind::Container => String::new(),
            _ => format!(" {ALARM}{}{ALARM:#}", format::detailed_state(partition)),
        };
        let state = match guest::word(partition) {
            Some(word @ ("ready" | "starting" | "ready, no agent")) => {
                format!("{state} {FAINT}{word}{FAINT:#}")
            }
            Some(word) => format!("{state} {ALARM}{word}{ALARM:#}"),
            None => state,
        };
        let groups = match partition.groups.join(", ") {
            groups if groups.is_empty() => String::new(),
            groups => format!(" in {}", printable(&groups)),
        };
        let id = match partition.kind {
            PartitionKind::Host => String::new(),
            _ => format!("  {FAINT}{}{FAINT:#}", partition.id),
        };
        let kind = format::kind(partition.kind);
        // That of a container is of use to programs that know nothing else.
        let is_vm = partition.kind == PartitionKind::Vm;
        let cid = partition.cid.filter(|_| is_vm);
        let cid = cid.map(|cid| format!(" with CID {cid}"));
        let cid = cid.unwrap_or_default();
        let uplink = partition.uplink.as_deref().map(uplink).unwrap_or_default();
        let line = format!(
            "{NAME}{}{NAME:#} ({kind}{cid}{groups}){state}{uplink}{id}",
            partition.name
        );
        let listeners = self
            .listeners
            .iter()
            .filter(|l| l.end.partition == partition.name)
            // The broker's own services are the same for every guest.
            .filter(|l| l.end.pid != self.status.pid);
        let listeners = listeners.map(|listener| Node {
            line: listener_line(listener),
            children: Vec::new(),
        });
        let children = self.partitions.iter();
        let children = children.filter(|child| child.parent.as_ref() == Some(&partition.name));
        Node {
            line,
            children: listeners
                .chain(children.map(|child| self.node(child)))
                .collect(),
        }
    }
}

/// What the uplink to the host is like.
fn uplink(uplink: &UplinkStatus) -> String {
    let name = uplink.name_at_host.as_deref().map(printable);
    match (uplink.state, name) {
        (UplinkState::Open, Some(name)) => {
            format!(" {FAINT}uplink open, this machine is {name} there{FAINT:#}")
        }
        (UplinkState::Open, None) => format!(" {FAINT}uplink open{FAINT:#}"),
        (UplinkState::Connecting, _) => format!(" {ALARM}uplink connecting{ALARM:#}"),
        (UplinkState::Down, _) => {
            let reason = uplink.reason.as_deref().unwrap_or("it is lost");
            format!(" {ALARM}no uplink: {}{ALARM:#}", printable(reason))
        }
    }
}

fn listener_line(listener: &Listener) -> String {
    let service = format::service(listener.service, listener.service_name.as_ref());
    let waiting = match listener.waiting {
        0 => String::new(),
        waiting => format!(", {ALARM}{waiting} waiting{ALARM:#}"),
    };
    format!(
        "listens: {NAME}{}{NAME:#} from {}  {FAINT}pid {}, {}{FAINT:#}{waiting}",
        printable(&service),
        printable(&listener.from),
        listener.end.pid,
        format::age(listener.age_seconds),
    )
}

impl Node {
    fn add_to(&self, lines: &mut Lines, first: &str, rest: &str) {
        lines.push(format_args!("{first}{}", self.line));
        for (index, node) in self.children.iter().enumerate() {
            let (branch, trunk) = if index + 1 == self.children.len() {
                ("└─ ", "   ")
            } else {
                ("├─ ", "│  ")
            };
            node.add_to(lines, &format!("{rest}{branch}"), &format!("{rest}{trunk}"));
        }
    }
}
