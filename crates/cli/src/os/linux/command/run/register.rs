//! `--register`: registrations that last as long as the program.

use std::collections::VecDeque;
use std::str::FromStr;

use anyhow::{Context as _, Result};
use hvsock::{ElementName, Lease, ServiceId};

use super::setting::Setting;

/// One `--register`.

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Registration {
    name: ElementName,
    port: Option<u32>,
}

impl FromStr for Registration {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, port) = match text.rsplit_once('=') {
            Some((name, port)) => {
                let port = port.parse();
                let port = port.map_err(|_| format!("`{text}` is not of the form NAME[=PORT]"))?;
                (name, Some(port))
            }
            None => (text, None),
        };
        let name = ElementName::new(name).map_err(|error| error.to_string())?;
        Ok(Self { name, port })
    }
}

/// Registers the ports that are given. Returns the names for what the program listens for later.
pub fn take(
    setting: &Setting<'_>,
    registrations: Vec<Registration>,
) -> Result<(Vec<Lease>, VecDeque<ElementName>)> {
    let (mut leases, mut names) = (Vec::new(), VecDeque::new());
    for Registration { name, port } in registrations {
        match port {
            None => names.push_back(name),
            Some(port) => {
                let id = ServiceId::from_port(port);
                let lease = Lease::register_at(&setting.endpoint, name.as_str(), id, "");
                let lease = lease.with_context(|| format!("cannot register port {port}"))?;
                leases.push(lease);
            }
        }
    }
    Ok((leases, names))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_registration_is_a_name_with_or_without_a_port() {
        let parse = |text: &str| text.parse::<Registration>();
        let name = |name| ElementName::new(name).unwrap();
        let with = parse("My Service=5000").unwrap();
        assert_eq!((with.name, with.port), (name("My Service"), Some(5000)));
        let without = parse("My Service").unwrap();
        assert_eq!((without.name, without.port), (name("My Service"), None));
        for wrong in ["", "=5", "a=", "a=b", "a=4294967296", "a=-1"] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }
}
