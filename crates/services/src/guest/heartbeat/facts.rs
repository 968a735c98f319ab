//! What seldom changes about this guest.

use std::fs;
use std::net::IpAddr;

use crate::guest::addresses;
use crate::link::Standing;
use crate::wire::heartbeat::{Facts, Service};

/// The most addresses that are told.
const ADDRESSES: usize = 32;

/// All of it, as it is now.
pub(super) fn now(standings: &[Standing]) -> Facts {
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
        services: services(standings),
    }
}

/// How the services stand, which may change more often.
pub(super) fn services(standings: &[Standing]) -> Vec<Service> {
    standings.iter().map(service).collect()
}

fn service(standing: &Standing) -> Service {
    let problem = standing.problem();
    Service {
        port: standing.service().port,
        offered: problem.is_none(),
        problem: problem.unwrap_or_default(),
    }
}

fn line(path: &str) -> String {
    let text = fs::read_to_string(path).unwrap_or_default();
    text.trim().to_owned()
}

/// What the operating system calls itself: os-release(5) has two places, the first wins.
fn os() -> String {
    let files = ["/etc/os-release", "/usr/lib/os-release"];
    let text = files.iter().find_map(|path| fs::read_to_string(path).ok());
    let name = text.as_deref().and_then(pretty_name);
    name.unwrap_or_else(|| "Linux".into())
}

/// The value of `PRETTY_NAME`, a word of a shell in double quotes, in single ones or without.
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

/// A backslash in double quotes stands for what follows it.
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
    fn a_system_has_the_name_that_its_file_says_however_it_is_quoted() {
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
    fn this_machine_has_facts() {
        let facts = now(&[]);
        assert_eq!(facts.boot_id.len(), 36, "{facts:?}");
        assert!(!facts.os.is_empty() && !facts.kernel.is_empty() && !facts.agent.is_empty());
    }
}
