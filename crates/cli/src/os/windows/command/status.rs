//! `hvsock status`: this machine and its virtual machines at a glance.

use anstyle::{AnsiColor, Style};
use anyhow::Result;
use clap::Args;
use hvsock_hyperv::{Facts, Machine};
use serde::Serialize;

use super::super::missing;
use crate::failure::printable;
use crate::format;
use crate::os::windows::vm::Shown;
use crate::output::{self, Json, Lines};

/// Show this machine, the number of its services, and its virtual machines
#[derive(Debug, Args)]
pub struct Status {
    #[command(flatten)]
    json: Json,
}

/// The output of `--json`.
#[derive(Debug, Serialize)]
struct Everything {
    version: &'static str,
    machine: Option<String>,
    is_host: bool,
    host: Option<String>,
    services: usize,
    vms: Vec<Shown>,
    problems: Vec<String>,
}

const NAME: Style = AnsiColor::Cyan.on_default().bold();
const FAINT: Style = Style::new().dimmed();
const ALARM: Style = AnsiColor::Yellow.on_default();

impl Status {
    pub fn run(self) -> Result<()> {
        let everything = Everything::of(hvsock_hyperv::facts());
        if self.json.json {
            return output::json(&everything);
        }
        everything.lines().print()
    }
}

impl Everything {
    fn of(facts: Facts) -> Self {
        let Machine {
            name,
            is_host,
            guest,
        } = facts.machine;
        let hidden = facts.missing.iter().map(missing::text);
        Self {
            version: env!("CARGO_PKG_VERSION"),
            machine: name,
            is_host,
            host: guest.and_then(|guest| guest.host),
            services: facts.registry.len(),
            vms: Shown::all(facts.vms),
            problems: facts.problems.into_iter().chain(hidden).collect(),
        }
    }

    fn lines(&self) -> Lines {
        let name = self.machine.as_deref().unwrap_or("this machine");
        let role = match (&self.host, self.is_host) {
            (None, true) => "a host".to_owned(),
            (None, false) => "not a host of virtual machines".to_owned(),
            (Some(host), true) => format!("a host itself, on the host {host}"),
            (Some(host), false) => format!("a virtual machine on the host {host}"),
        };
        let mut lines = Lines::default();
        let services = format::count(self.services, "service");
        lines.push(format_args!("hvsock {}, {services}", self.version));
        lines.push("");
        let (name, role) = (printable(name), printable(&role));
        lines.push(format_args!("{NAME}{name}{NAME:#} ({role})"));
        for (at, vm) in self.vms.iter().enumerate() {
            let branch = if at + 1 == self.vms.len() {
                "└─"
            } else {
                "├─"
            };
            let (name, id) = (printable(&vm.name), vm.id);
            let state = match vm.state.as_str() {
                "running" => String::new(),
                state => format!(" {ALARM}{state}{ALARM:#}"),
            };
            let kind = printable(&vm.kind);
            lines.push(format_args!(
                "{branch} {NAME}{name}{NAME:#} ({kind}){state}  {FAINT}{id}{FAINT:#}"
            ));
        }
        for problem in &self.problems {
            lines.push("");
            lines.push(format_args!(
                "{ALARM}problem:{ALARM:#} {}",
                printable(problem)
            ));
        }
        lines
    }
}
