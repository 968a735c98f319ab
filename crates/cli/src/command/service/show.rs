//! `hvsock service show`: a service, and the rules in force for it.

use anyhow::Result;
use clap::Args;
use hvsock_address::ServiceRef;
use hvsock_control::{
    AccessInForce, FlagRule, RuleSource, Service, ServiceRules, TransportSetting,
};

use super::state;
use crate::context::Context;
use crate::format;
use crate::os::{self, HAS_ACCESS_RULES, REPORTS_USAGE};
use crate::output::{Json, Lines};

/// Show one service, the rules in force for it, and where each comes from
#[derive(Debug, Args)]
pub struct Show {
    /// The service's friendly name, GUID or vsock port
    service: ServiceRef,
    #[command(flatten)]
    json: Json,
}

/// The columns before a value, and before its source.
const LABEL: usize = 14;
const VALUE: usize = 44;

impl Show {
    pub fn run(self, context: &Context) -> Result<()> {
        let service = context.client()?.service(&self.service)?;
        if self.json.json {
            return os::json_of_services(&service);
        }
        let mut facts = vec![
            ("name", service.name.to_string()),
            ("id", service.id.to_string()),
            ("state", state::word(&service).to_owned()),
        ];
        facts.extend(service.port.map(|port| ("port", port.to_string())));
        let alias = service.alias.map(|alias| format!("{alias} (for guests)"));
        facts.extend(alias.map(|alias| ("port alias", alias)));
        let text = |label, text: &Option<String>| Some((label, text.clone()?));
        facts.extend(text("purpose", &service.purpose));
        facts.extend(text("owner", &service.owner));
        facts.extend(text("creator", &service.creator));
        let mut lines = Lines::default();
        for (label, fact) in facts {
            lines.fact(label, fact);
        }
        if HAS_ACCESS_RULES {
            rules(&mut lines, &service);
        } else {
            switches(&mut lines, &service);
        }
        if REPORTS_USAGE {
            let listeners = format::count(service.listeners, "listener");
            let connections = format::count(service.connections, "connection");
            lines.fact("in use", format!("{listeners}, {connections}"));
        }
        lines.print()
    }
}

/// Adds the rules in force, one line each, with their sources.
pub fn rules(lines: &mut Lines, service: &Service) {
    let mut lines = RuleLines {
        lines,
        file: format!("services/{}.toml", service.id),
    };
    let Some(rules) = &service.rules else { return };
    lines.add("", rules, None);
    for (partition, own) in &service.rules_by_partition {
        lines.add(&format!("for {partition}"), own, Some(partition));
    }
}

/// Adds the settings of single partitions, where these are all that is known.
fn switches(lines: &mut Lines, service: &Service) {
    for (name, own) in &service.vm {
        if let Some(enabled) = own.enabled {
            let state = if enabled { "enabled" } else { "disabled" };
            lines.fact("for", format!("{name}: {state}"));
        }
    }
}

struct RuleLines<'a> {
    lines: &'a mut Lines,
    /// The file of the registration.
    file: String,
}

impl RuleLines<'_> {
    /// The rules of all partitions; or of one, without those that it shares with all others.
    fn add(&mut self, heading: &str, rules: &ServiceRules, partition: Option<&String>) {
        let is_own = |source| partition.is_none() || source == RuleSource::Override;
        let mut heading = heading;
        let mut line = |what: &str, value: &str, source| {
            if is_own(source) {
                if !heading.is_empty() {
                    self.lines.push(heading);
                    heading = "";
                }
                let indent = if partition.is_some() { "  " } else { "" };
                let label = format!("{indent}{what}");
                let source = self.source(source, partition);
                self.lines
                    .push(format_args!("{label:<LABEL$}{value:<VALUE$} {source}"));
            }
        };
        let flag = |flag: &FlagRule, yes: &'static str, no: &'static str| {
            if flag.value { yes } else { no }
        };
        let enabled = &rules.enabled;
        line("enabled", flag(enabled, "yes", "no"), enabled.source);
        for (what, access) in [("connect", &rules.connect), ("listen", &rules.bind)] {
            line(what, &processes(access), access.source);
            line("", &partitions(access), access.partitions_source);
        }
        let only_root = &rules.only_root_binds;
        let text = flag(
            only_root,
            "root of a partition only",
            "any user of a partition",
        );
        line("listen as", text, only_root.source);
        let wildcard = &rules.allow_wildcard_binds;
        let text = flag(wildcard, "allowed", "not allowed");
        line("listen to any", text, wildcard.source);
        let text = match rules.transport.value {
            TransportSetting::Auto => "auto",
            TransportSetting::Direct => "direct (bytes are not counted)",
        };
        line("transport", text, rules.transport.source);
    }

    /// Where a rule comes from.
    fn source(&self, source: RuleSource, partition: Option<&String>) -> String {
        match source {
            RuleSource::Override => {
                let name = partition.map_or("", String::as_str);
                // A bare TOML key cannot contain a dot or a slash.
                match name.contains(['.', '/']) {
                    true => format!("[vm.\"{name}\"] in {}", self.file),
                    false => format!("[vm.{name}] in {}", self.file),
                }
            }
            RuleSource::OverrideOfVm => {
                let vm = partition.and_then(|name| name.split_once('/'));
                let vm = vm.map_or("", |(vm, _)| vm);
                format!("[vm.{vm}] in {}", self.file)
            }
            RuleSource::Registration => self.file.clone(),
            RuleSource::BuiltIn => "built-in rule of this service".to_owned(),
            RuleSource::Defaults => "defaults.toml".to_owned(),
            RuleSource::Unset => "default".to_owned(),
        }
    }
}

/// The users and groups of a rule as text. "No one" cannot be mistaken for a user's name.
fn processes(access: &AccessInForce) -> String {
    let any = |list: &[String]| list.iter().any(|entry| entry == "*");
    if any(&access.users) || any(&access.groups) {
        return "everyone on this machine".to_owned();
    }
    let named = |word: &str, list: &[String]| {
        (!list.is_empty()).then(|| format!("{word} {}", list.join(", ")))
    };
    let lists = [
        named("users", &access.users),
        named("groups", &access.groups),
    ];
    let lists: Vec<String> = lists.into_iter().flatten().collect();
    match lists.is_empty() {
        true => "no one but root and operators".to_owned(),
        false => lists.join("; "),
    }
}

/// The partitions of a rule as text.
fn partitions(access: &AccessInForce) -> String {
    let list = &access.partitions;
    if list.is_empty() {
        "no partition".to_owned()
    } else if list.iter().any(|entry| entry == "*") {
        "every child partition".to_owned()
    } else {
        format!("partitions {}", list.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn access(users: &[&str], groups: &[&str], partitions: &[&str]) -> AccessInForce {
        let list = |list: &[&str]| list.iter().map(|one| (*one).to_owned()).collect();
        AccessInForce {
            users: list(users),
            groups: list(groups),
            source: RuleSource::Registration,
            partitions: list(partitions),
            partitions_source: RuleSource::BuiltIn,
        }
    }

    #[test]
    fn no_one_and_the_user_nobody_are_told_apart() {
        for (users, groups, want) in [
            (&[][..], &[][..], "no one but root and operators"),
            (&["nobody"], &[], "users nobody"),
            (
                &["alice", "1000"],
                &["none"],
                "users alice, 1000; groups none",
            ),
            (&[], &["nogroup"], "groups nogroup"),
            (&["alice", "*"], &[], "everyone on this machine"),
        ] {
            assert_eq!(processes(&access(users, groups, &[])), want);
        }
        assert_eq!(partitions(&access(&[], &[], &[])), "no partition");
        assert_eq!(partitions(&access(&[], &[], &["none"])), "partitions none");
        assert_eq!(
            partitions(&access(&[], &[], &["*"])),
            "every child partition"
        );
    }
}
