//! Spells a [`Fix`] as a command of this program, or of the system, that a user can paste.
//!
//! This is the only place that turns what would help into a command line. The crates below have
//! values and plain English.

use hvsock::{Fix, PartitionName, RuleAction, RuleRef, RuleScope, ServiceId, ServiceRef};

use crate::format::{command_line, shell_word};
use crate::hint::Help;
use crate::os;

/// The help for a fix. It is one printable line, even if the fix, which may come from elsewhere, is
/// none.
pub fn help(fix: &Fix) -> Help {
    let one_line = |text: &str| hvsock_text::printable(text).to_string();
    match spell(fix) {
        // With escapes it would be another command.
        Help::Command(text) if hvsock_text::first_escaped(&text).is_some() => {
            Help::Sentence(one_line(&fix.to_string()))
        }
        Help::Sentence(text) => Help::Sentence(one_line(&text)),
        command => command,
    }
}

fn spell(fix: &Fix) -> Help {
    match fix {
        Fix::RegisterService { service } => Help::command(registration(service)),
        Fix::EnableService { service, partition } => {
            let vm = partition.as_ref().map(|name| format!(" --vm {name}"));
            let (service, vm) = (service.to_string(), vm.unwrap_or_default());
            Help::command(command_line("hvsock service enable", &[&service], &vm))
        }
        Fix::EnableServiceAsException { service, partition } => {
            let options = format!(" --vm {partition} --override");
            let service = service.to_string();
            Help::command(command_line("hvsock service enable", &[&service], &options))
        }
        Fix::BecomePartitionRoot { service, partition } => {
            let vm = partition.as_ref().map(|name| format!(" --vm {name}"));
            let options = format!(" --bind --any-user{}", vm.unwrap_or_default());
            let service = ServiceRef::Id(*service).to_string();
            let command = command_line("hvsock service allow", &[&service], &options);
            Help::sentence(format!("run it as root there, or on the host: {command}"))
        }
        Fix::UnregisterService { service } => {
            let service = service.to_string();
            Help::command(command_line("hvsock service unregister", &[&service], ""))
        }
        Fix::AllowUser { rule, user, .. } => allow(rule, "--user", user.as_deref()),
        Fix::AllowPartition { rule, partition } => {
            allow(rule, "--partition", Some(partition.as_str()))
        }
        Fix::AllowWildcardBinds { service, scope } => {
            let file = file(*service, scope);
            let setting = format!("{}allow_wildcard_binds = true", prefix(scope));
            Help::sentence(format!("set {setting} in {file}"))
        }
        Fix::StartListener { service, from } => {
            let (service, from) = (service.to_string(), format!(" --from {from}"));
            Help::command(command_line("hvsock listen", &[&service], &from))
        }
        Fix::ListServices => Help::command("hvsock service list"),
        Fix::ListServicesOnHost => Help::sentence("run `hvsock service list` on the host"),
        Fix::RegisterServiceOnHost { .. } => {
            Help::sentence("register it on the host with `hvsock service register`")
        }
        Fix::UseServiceId { .. } => Help::sentence(
            "use its GUID or vsock port, which `hvsock service show` prints on the host",
        ),
        Fix::ExplainOnHost {
            partition,
            service,
            listening,
        } => {
            let (partition, service) = (partition.to_string(), service.to_string());
            let listen = if *listening { " --listen" } else { "" };
            let options = format!("{listen} --from THIS_VM");
            let command = command_line("hvsock why", &[&partition, &service], &options);
            Help::sentence(format!("ask there with `{command}`"))
        }
        Fix::LoadModule { module } => {
            Help::sentence(format!("load it with `modprobe {}`", shell_word(module)))
        }
        Fix::GrantCapability { capability } => Help::sentence(format!(
            "run the broker as root, or with `AmbientCapabilities={}` in its systemd unit",
            shell_word(capability)
        )),
        Fix::FreeVsockPort { port } => Help::sentence(format!(
            "end the process that has the vsock port {port}, or register the service with another \
             `--port`"
        )),
        other => os::help_for(other).unwrap_or_else(|| Help::Sentence(other.to_string())),
    }
}

/// The command that registers a service. Friendly names are untrusted, and users paste the shown
/// command: a name must not inject another command, here and above.
fn registration(service: &ServiceRef) -> String {
    let register =
        |name: &str, options: &str| command_line("hvsock service register", &[name], options);
    match service {
        ServiceRef::Name(name) => register(name.as_str(), ""),
        ServiceRef::Id(id) => match id.port() {
            Some(port) => register("NAME", &format!(" --port {port}")),
            None => register("NAME", &format!(" --id {id}")),
        },
    }
}

/// The command that adds to an access rule. Somebody who may not know whom to add reads `USER`.
fn allow(rule: &RuleRef, option: &str, whom: Option<&str>) -> Help {
    let bind = match rule.action {
        RuleAction::Bind => " --bind",
        RuleAction::Connect => "",
    };
    let vm = match &rule.scope {
        RuleScope::Partition(name) => format!(" --vm {name}"),
        RuleScope::Registration | RuleScope::Defaults => String::new(),
    };
    let service = ServiceRef::Id(rule.service).to_string();
    let whom = whom.map_or_else(|| "USER".to_owned(), shell_word);
    let options = format!(" {option} {whom}{bind}{vm}");
    Help::command(command_line("hvsock service allow", &[&service], &options))
}

/// The file that has a rule.
fn file(service: ServiceId, scope: &RuleScope) -> String {
    match scope {
        RuleScope::Defaults => "defaults.toml".to_owned(),
        _ => format!("services/{service}.toml"),
    }
}

/// What precedes the keys of a rule in its file.
fn prefix(scope: &RuleScope) -> String {
    let partition = |name: &PartitionName| match name.as_str().contains(['.', '/']) {
        // A bare TOML key cannot contain a dot or a slash.
        true => format!("vm.\"{name}\"."),
        false => format!("vm.{name}."),
    };
    match scope {
        RuleScope::Partition(name) => partition(name),
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use hvsock::{ElementName, PartitionRef, RuleAction as Action, VmId};

    use super::*;

    const SERVICE: ServiceId = ServiceId::from_port(2761);

    #[track_caller]
    fn check(fix: &Fix, want: &str) {
        let (Help::Command(text) | Help::Sentence(text)) = help(fix);
        assert_eq!(text, want);
    }

    fn named(text: &str) -> ServiceRef {
        ServiceRef::Name(ElementName::new(text).unwrap())
    }

    fn web() -> PartitionName {
        PartitionName::new("web").unwrap()
    }

    #[test]
    fn a_friendly_name_is_one_word_of_the_command() {
        for (name, want) in [
            ("backup", "backup"),
            ("HV Socket Demo", "'HV Socket Demo'"),
            ("a'; reboot #", r"'a'\''; reboot #'"),
            ("$(reboot)", "'$(reboot)'"),
            ("-rf", "-- '-rf'"),
        ] {
            let service = named(name);
            let fix = Fix::RegisterService { service };
            check(&fix, &format!("hvsock service register {want}"));
        }
    }

    #[test]
    fn a_service_without_a_name_is_registered_by_its_port_or_guid() {
        let service = ServiceRef::Id(SERVICE);
        check(
            &Fix::RegisterService { service },
            "hvsock service register NAME --port 2761",
        );
        let id = ServiceId::random();
        let service = ServiceRef::Id(id);
        let want = format!("hvsock service register NAME --id {id}");
        check(&Fix::RegisterService { service }, &want);
    }

    #[test]
    fn who_is_missing_in_a_rule_is_added_by_a_command() {
        let rule = |action, scope| RuleRef {
            service: SERVICE,
            action,
            scope,
        };
        let user = |action, scope, user: Option<&str>| Fix::AllowUser {
            rule: rule(action, scope),
            lists: vec!["users".to_owned(), "groups".to_owned()],
            user: user.map(str::to_owned),
        };
        let fix = user(Action::Connect, RuleScope::Registration, Some("alice"));
        check(&fix, "hvsock service allow 2761 --user alice");
        let fix = user(Action::Bind, RuleScope::Defaults, None);
        check(&fix, "hvsock service allow 2761 --user USER --bind");
        let fix = user(
            Action::Connect,
            RuleScope::Registration,
            Some("a'; reboot #"),
        );
        check(&fix, r"hvsock service allow 2761 --user 'a'\''; reboot #'");
        let fix = Fix::AllowPartition {
            rule: rule(Action::Connect, RuleScope::Partition(web())),
            partition: web(),
        };
        check(&fix, "hvsock service allow 2761 --partition web --vm web");
        let fix = Fix::BecomePartitionRoot {
            service: SERVICE,
            partition: Some(web()),
        };
        let want = "run it as root there, or on the host: hvsock service allow 2761 --bind \
                    --any-user --vm web";
        check(&fix, want);
        let fix = Fix::EnableServiceAsException {
            service: named("hvsock session"),
            partition: web(),
        };
        check(
            &fix,
            "hvsock service enable 'hvsock session' --vm web --override",
        );
        for (name, prefix) in [("web", "vm.web"), ("web.1", "vm.\"web.1\"")] {
            let scope = RuleScope::Partition(PartitionName::new(name).unwrap());
            let service = SERVICE;
            let file = format!("services/{SERVICE}.toml");
            let want = format!("set {prefix}.allow_wildcard_binds = true in {file}");
            check(&Fix::AllowWildcardBinds { service, scope }, &want);
        }
    }

    #[test]
    fn a_listener_and_a_question_to_the_host_are_commands() {
        let fix = Fix::StartListener {
            service: named("HV Socket Demo"),
            from: VmId::PARENT.into(),
        };
        check(&fix, "hvsock listen 'HV Socket Demo' --from parent");
        let fix = Fix::ExplainOnHost {
            partition: VmId::WILDCARD.into(),
            service: ServiceRef::Id(SERVICE),
            listening: true,
        };
        let want = "ask there with `hvsock why wildcard 2761 --listen --from THIS_VM`";
        check(&fix, want);
        let fix = Fix::EnableService {
            service: named("x y"),
            partition: Some(web()),
        };
        check(&fix, "hvsock service enable 'x y' --vm web");
    }

    #[test]
    fn a_name_with_a_leading_dash_is_no_option() {
        let fix = Fix::EnableService {
            service: named("--vm=db"),
            partition: Some(web()),
        };
        check(&fix, "hvsock service enable --vm web -- '--vm=db'");
        let fix = Fix::UnregisterService {
            service: named("-h"),
        };
        check(&fix, "hvsock service unregister -- '-h'");
        let fix = Fix::StartListener {
            service: named("-x"),
            from: VmId::PARENT.into(),
        };
        check(&fix, "hvsock listen --from parent -- '-x'");
        let fix = Fix::ExplainOnHost {
            partition: PartitionRef::Name(web()),
            service: named("-x"),
            listening: false,
        };
        let want = "ask there with `hvsock why --from THIS_VM -- web '-x'`";
        check(&fix, want);
    }

    #[test]
    fn a_fix_from_elsewhere_is_one_line_without_control_characters() {
        let hostile = "\x1b[2J\nhelp: reboot\r\u{85}";
        let fields = |key: &str| match key {
            "action" => Some("bind"),
            "scope" => Some("defaults"),
            "service" => Some("00000ac9-facb-11e6-bd58-64006a7986d3"),
            "uid" => Some("0"),
            "path" | "module" | "capability" | "lists" | "user" => Some(hostile),
            _ => None,
        };
        for kind in [
            "load_module",
            "grant_capability",
            "take_ownership",
            "restrict_writes",
            "of a later version",
        ] {
            let fix = Fix::from_fields(kind, hostile, fields);
            let Help::Sentence(text) = help(&fix) else {
                panic!("{kind} is a command");
            };
            assert!(!text.contains(char::is_control), "{kind}: {text:?}");
            let is_shown = text.contains(r"\u{1b}[2J\nhelp: reboot");
            assert!(is_shown, "{kind}: {text}");
        }
    }
}
