//! The subcommands that only Linux has: those that run a broker or talk to one.

mod audit;
mod bench;
mod broker;
mod built_in;
mod connections;
mod container;
mod cp;
mod demo;
mod events;
mod fd_pass;
mod forward;
mod guest;
mod hook_command;
mod integration_args;
mod keeper;
mod kvp;
mod mounts;
mod nc;
mod nri;
mod oci_hook;
mod oci_hooks;
mod partition;
mod run;
mod seccomp_agent;
mod seccomp_profile;
mod session;
mod ssh;
mod status;
mod time;
mod upgrade;
mod vm;
mod wait;

use std::env;

use anyhow::Result;
use clap::Subcommand;

pub use mounts::invalid_arguments;
pub use vm::Vm;

use super::activation;
use crate::context::Context;

#[derive(Debug, Subcommand)]
pub enum Command {
    #[command(display_order = 1)]
    Demo(demo::Demo),
    #[command(display_order = 2)]
    Broker(broker::Broker),
    #[command(display_order = 3)]
    Status(status::Status),
    #[command(display_order = 4)]
    Upgrade(upgrade::Upgrade),
    #[command(subcommand, display_order = 6)]
    Container(container::Container),
    #[command(display_order = 12)]
    Cp(cp::Cp),
    #[command(display_order = 10)]
    Exec(session::Exec),
    #[command(display_order = 11)]
    Shell(session::Shell),
    #[command(display_order = 13)]
    Forward(forward::Forward),
    #[command(display_order = 15)]
    Nc(nc::Nc),
    #[command(display_order = 14)]
    Ssh(ssh::Ssh),
    #[command(display_order = 17)]
    Run(run::Run),
    #[command(display_order = 23)]
    Connections(connections::Connections),
    #[command(display_order = 24)]
    Events(events::Events),
    #[command(display_order = 24)]
    Audit(audit::Audit),
    #[command(display_order = 25)]
    Bench(bench::Bench),
    #[command(display_order = 4)]
    Keeper(keeper::Keeper),
    #[command(subcommand, display_order = 16)]
    Kvp(kvp::Kvp),
    #[command(display_order = 27)]
    Nri(nri::Nri),
    #[command(display_order = 28)]
    SeccompAgent(seccomp_agent::SeccompAgent),
    #[command(subcommand, display_order = 26)]
    OciHook(oci_hook::OciHook),
}

impl Command {
    pub fn run(self, context: &Context) -> Result<()> {
        match self {
            Self::Demo(command) => command.run(context),
            Self::Broker(command) => command.run(context),
            Self::Status(command) => command.run(context),
            Self::Upgrade(command) => command.run(context),
            Self::Container(command) => command.run(context),
            Self::Cp(command) => command.run(context),
            Self::Forward(command) => command.run(context),
            Self::Nc(command) => command.run(context),
            Self::Ssh(command) => command.run(context),
            Self::Exec(command) => command.run(context),
            Self::Shell(command) => command.run(context),
            Self::Run(command) => command.run(context),
            Self::Connections(command) => command.run(context),
            Self::Events(command) => command.run(context),
            Self::Audit(command) => command.run(context),
            Self::Bench(command) => command.run(context),
            Self::Keeper(command) => command.run(context),
            Self::Kvp(command) => command.run(context),
            Self::Nri(command) => command.run(context),
            Self::SeccompAgent(command) => command.run(context),
            Self::OciHook(command) => command.run(context),
        }
    }
}

/// Runs a command that only this program uses, which no help text and no completion lists.
pub fn run_internal() -> Option<Result<()>> {
    let command = env::args_os().nth(1)?;
    if command == demo::GUEST_COMMAND {
        return Some(demo::run_guest());
    }
    if command == activation::COMMAND {
        return Some(activation::run_activated());
    }
    if command == crate::os::linux::keeper::START_COMMAND {
        return Some(crate::os::linux::keeper::start());
    }
    (command == run::PROBE_COMMAND).then(run::run_probe)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use crate::command::Cli;

    const PAGES: [(&str, &str); 10] = [
        (
            "containers.md",
            include_str!("../../../../../../docs/containers.md"),
        ),
        ("README.md", include_str!("../../../../../../README.md")),
        (
            "services.md",
            include_str!("../../../../../../docs/services.md"),
        ),
        (
            "tutorial.md",
            include_str!("../../../../../../docs/tutorial.md"),
        ),
        (
            "programs.md",
            include_str!("../../../../../../docs/programs.md"),
        ),
        ("guest.md", include_str!("../../../../../../docs/guest.md")),
        ("audit.md", include_str!("../../../../../../docs/audit.md")),
        ("vms.md", include_str!("../../../../../../docs/vms.md")),
        (
            "upgrade.md",
            include_str!("../../../../../../docs/upgrade.md"),
        ),
        (
            "registry.md",
            include_str!("../../../../../../docs/registry.md"),
        ),
    ];

    /// The commands of a shell line, each as its words.
    fn commands(line: &str) -> Vec<Vec<String>> {
        let (mut commands, mut words, mut word) = (Vec::new(), Vec::new(), None::<String>);
        let mut quote = None;
        let mut letters = line.chars().peekable();
        while let Some(letter) = letters.next() {
            match (letter, quote) {
                (letter, Some(end)) if letter == end => quote = None,
                (letter, Some(_)) => word.get_or_insert_default().push(letter),
                ('"' | '\'', None) => {
                    quote = Some(letter);
                    word.get_or_insert_default();
                }
                ('#', None) if word.is_none() => break,
                ('$', None) if letters.peek() == Some(&'(') => {
                    letters.next();
                    words.clear();
                    word = None;
                }
                ('|' | '&' | '<' | '>' | ';' | ')', None) => {
                    words.extend(word.take());
                    commands.push(std::mem::take(&mut words));
                }
                (letter, None) if letter.is_whitespace() => words.extend(word.take()),
                (letter, None) => word.get_or_insert_default().push(letter),
            }
        }
        words.extend(word);
        commands.push(words);
        commands
    }

    #[test]
    fn every_command_on_the_pages_exists() {
        let mut seen = 0;
        for (page, text) in PAGES {
            let prompts = ["$ ", "guest$ ", "guest# ", "host$ "];
            let lines = text.lines().map(str::trim_start);
            let typed = lines.filter_map(|line| prompts.iter().find_map(|p| line.strip_prefix(p)));
            for line in typed {
                for mut words in commands(line) {
                    if words.first().is_some_and(|word| word == "sudo") {
                        words.remove(0);
                    }
                    if words.first().is_none_or(|word| word != "hvsock") {
                        continue;
                    }
                    seen += 1;
                    if let Err(error) = Cli::try_parse_from(&words) {
                        assert!(!error.use_stderr(), "{page}: {line}\n{error}");
                    }
                }
            }
        }
        assert!(seen > 40, "{seen} commands");
    }
}
