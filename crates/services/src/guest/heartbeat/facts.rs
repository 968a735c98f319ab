//! Facts about this guest that rarely change.

use std::fs;
use std::net::IpAddr;

use crate::guest::addresses;
use crate::link::ServiceStatus;
use crate::wire::heartbeat::{Facts, Service};

/// The most addresses that are reported.
const ADDRESSES: usize = 32;

/// All current facts.
pub(super) fn now(statuses: &[ServiceStatus]) -> Facts {
    let uname = rustix::system::uname();
    let addresses = addresses::all();
    let v4 = addresses.v4.into_iter().map(IpAddr::from);
    let all = v4.chain(addresses.v6.into_iter().map(IpAddr::from));
    Facts {
        boot_id: line("/proc/sys/kernel/random/boot_id"),
        agent: env!("CARGO_PKG_VERSION").into(),
        os: os(),
        kernel: uname.release().to_string_lossy().into_owned(),
        hostname: uname.nodename().to_string_lossy().into_owned(),
        addresses: all.take(ADDRESSES).map(|a| a.to_string()).collect(),
        services: services(statuses),
    }
}

/// The status of the services, which may change more often.
pub(super) fn services(statuses: &[ServiceStatus]) -> Vec<Service> {
    statuses.iter().map(service).collect()
}

fn service(status: &ServiceStatus) -> Service {
    let problem = status.problem();
    Service {
        port: status.service().port,
        offered: problem.is_none(),
        problem: problem.unwrap_or_default(),
    }
}

fn line(path: &str) -> String {
    let text = fs::read_to_string(path).unwrap_or_default();
    text.trim().to_owned()
}

/// The name of the operating system. os-release(5) has two locations; the first one wins.
fn os() -> String {
    let files = ["/etc/os-release", "/usr/lib/os-release"];
    let text = files.iter().find_map(|path| fs::read_to_string(path).ok());
    let name = text.as_deref().and_then(pretty_name);
    name.unwrap_or_else(|| "Linux".into())
}

/// The value of `PRETTY_NAME`: a shell word in double quotes, in single quotes or without quotes.
fn pretty_name(os_release: &str) -> Option<String> {
    let mut lines = os_release.lines();
    let value = lines.find_map(|line| line.trim().strip_prefix("PRETTY_NAME="))?;
    let quoted = |quote| value.strip_prefix(quote)?.strip_suffix(quote);
    let name = match (quoted('"'), quoted('\'')) {
        (Some(inner), _) => unescaped(inner),
        (None, Some(inner)) => inner.to_owned(),
        (None, None) => value.to_owned(),
    };
    (!name.is_empty()).then_some(name)
}

/// Removes the escapes of a text in double quotes: a backslash quotes the character after it.
fn unescaped(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    let mut characters = text.chars();
    while let Some(c) = characters.next() {
        plain.extend(match c {
            '\\' => characters.next(),
            c => Some(c),
        });
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pretty_name_is_parsed_with_any_quotes() {
        for (file, want) in [
            (
                "NAME=x\nPRETTY_NAME=\"Debian GNU/Linux 12 (bookworm)\"\n",
                Some("Debian GNU/Linux 12 (bookworm)"),
            ),
            ("PRETTY_NAME='Alpine Linux'", Some("Alpine Linux")),
            ("PRETTY_NAME=Void", Some("Void")),
            (r#"PRETTY_NAME="a \"b\" \$c""#, Some(r#"a "b" $c"#)),
            ("PRETTY_NAME=\"\"", None),
            ("PRETTY_NAME=\"", Some("\"")),
            ("NAME=x", None),
        ] {
            assert_eq!(pretty_name(file).as_deref(), want, "{file}");
        }
    }

    #[test]
    fn the_facts_of_this_machine_are_found() {
        let facts = now(&[]);
        assert_eq!(facts.boot_id.len(), 36, "{facts:?}");
        assert!(!facts.os.is_empty() && !facts.kernel.is_empty() && !facts.agent.is_empty());
    }
}
