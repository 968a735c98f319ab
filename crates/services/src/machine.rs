//! The name of this machine.

use std::fs;

/// This machine's name with its domain, if that is known locally.
pub(crate) fn qualified_name() -> String {
    let uname = rustix::system::uname();
    let hosts = fs::read_to_string("/etc/hosts").unwrap_or_default();
    qualified(&uname.nodename().to_string_lossy(), &hosts)
}

/// The host's name with its domain, if `/etc/hosts` has it. A DNS query would take too long for a fact.
fn qualified(name: &str, hosts: &str) -> String {
    let lines = hosts.lines();
    let mut names = lines.flat_map(|line| {
        let (line, _) = line.split_once('#').unwrap_or((line, ""));
        line.split_whitespace().skip(1)
    });
    let found = names.find(|found| {
        let rest = found.strip_prefix(name);
        rest.is_some_and(|rest| rest.starts_with('.') && rest.len() > 1)
    });
    found.unwrap_or(name).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_domain_comes_from_the_hosts_file() {
        let hosts = "127.0.0.1 localhost\n127.0.1.1 web.example.org web # web.wrong\n";
        assert_eq!(qualified("web", hosts), "web.example.org");
        assert_eq!(qualified("we", hosts), "we");
        assert_eq!(qualified("web", ""), "web");
    }
}
