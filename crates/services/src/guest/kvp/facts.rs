//! The facts of the automatic pool, with the names that Hyper-V's daemon for Linux uses.

use super::pool::Pool;
use crate::guest::{addresses, os_release};
use crate::machine::qualified_name;
use crate::protocol::kvp::VALUE;
use crate::text::shortened;

/// The current facts.
pub fn gather() -> Pool {
    let uname = rustix::system::uname();
    let word = |text: &std::ffi::CStr| text.to_string_lossy().into_owned();
    let release = word(uname.release());
    let os = Os::parse(&os_release::read());
    let addresses = addresses::all();
    let facts = [
        ("FullyQualifiedDomainName", qualified_name()),
        (
            "IntegrationServicesVersion",
            env!("CARGO_PKG_VERSION").into(),
        ),
        ("NetworkAddressIPv4", joined(&addresses.v4)),
        ("NetworkAddressIPv6", joined(&addresses.v6)),
        ("OSBuildNumber", release.clone()),
        ("OSName", os.name.unwrap_or_else(|| word(uname.sysname()))),
        ("OSMajorVersion", os.major),
        ("OSMinorVersion", os.minor),
        ("OSVersion", until_dash(&release).to_owned()),
        ("ProcessorArchitecture", word(uname.machine())),
    ];
    let mut pool = Pool::default();
    for (key, value) in facts {
        // All keys are valid. A value with a zero byte is left out.
        let _ = pool.set(key, &shortened(value, VALUE - 1));
    }
    pool
}

/// The values of `os-release`.
#[derive(Debug, Default, PartialEq, Eq)]
struct Os {
    name: Option<String>,
    major: String,
    minor: String,
}

impl Os {
    fn parse(file: &str) -> Self {
        let version = os_release::value(file, "VERSION_ID").unwrap_or_default();
        let (major, minor) = version.split_once('.').unwrap_or((&version, ""));
        Self {
            name: os_release::value(file, "NAME"),
            major: major.to_owned(),
            minor: minor.to_owned(),
        }
    }
}

/// The numeric part of a kernel release, as Hyper-V's host expects it.
fn until_dash(release: &str) -> &str {
    release.split_once('-').map_or(release, |(start, _)| start)
}

/// Joins as many whole addresses as fit into a value.
fn joined(addresses: &[impl ToString]) -> String {
    let mut all = String::new();
    for address in addresses {
        let address = address.to_string();
        if all.len() + 1 + address.len() >= VALUE {
            break;
        }
        if !all.is_empty() {
            all.push(';');
        }
        all.push_str(&address);
    }
    all
}

#[cfg(test)]
mod tests {
    use std::net::Ipv6Addr;

    use super::*;

    #[test]
    fn the_facts_have_the_names_of_the_hyper_v_daemon() {
        let pool = gather();
        let keys: Vec<&str> = pool.iter().map(|(key, _)| key).collect();
        let expected = "FullyQualifiedDomainName IntegrationServicesVersion NetworkAddressIPv4 \
                        NetworkAddressIPv6 OSBuildNumber OSName OSMajorVersion OSMinorVersion \
                        OSVersion ProcessorArchitecture";
        assert_eq!(keys.join(" "), expected);
        let machine = rustix::system::uname()
            .machine()
            .to_str()
            .unwrap()
            .to_owned();
        assert_eq!(pool.get("ProcessorArchitecture"), Some(machine.as_str()));
    }

    #[test]
    fn os_release_is_parsed_with_and_without_quotes() {
        let os = Os::parse("PRETTY_NAME=\"x\"\nNAME=\"Debian GNU/Linux\"\nVERSION_ID='12.5'\n");
        assert_eq!(os.name.as_deref(), Some("Debian GNU/Linux"));
        assert_eq!((os.major.as_str(), os.minor.as_str()), ("12", "5"));
        assert_eq!(Os::parse("VERSION_ID=40").major, "40");
        assert_eq!(Os::parse("#"), Os::default());
    }

    #[test]
    fn the_version_is_the_numeric_part() {
        assert_eq!(until_dash("6.12.9-cloud-amd64"), "6.12.9");
        assert_eq!(until_dash("6.12.9"), "6.12.9");
    }

    #[test]
    fn addresses_that_do_not_fit_are_left_out() {
        let address = Ipv6Addr::LOCALHOST;
        assert_eq!(joined(&[address, address]), "::1;::1");
        let many = joined(&[Ipv6Addr::from(u128::MAX); 100]);
        assert!(many.len() < VALUE);
        let full = Ipv6Addr::from(u128::MAX).to_string();
        assert!(many.split(';').all(|one| one == full));
    }
}
