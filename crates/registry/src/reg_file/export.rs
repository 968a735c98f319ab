//! Writes `.reg` files.

use std::fmt::Write;

use super::{DISABLED_KEY, KEY, VERSION_5};
use crate::entry::{CREATOR, ELEMENT_NAME, OWNER, PURPOSE};
use crate::{AccessRule, Registration};

/// Writes a file that registers these services on Windows, in UTF-16 with a byte order mark like the
/// registry editor's own. Leases are skipped, because they end with their process.
pub fn export<'a>(registrations: impl IntoIterator<Item = &'a Registration>) -> Vec<u8> {
    let mut bytes = vec![0xff, 0xfe];
    let mut put = |text: &str| {
        for line in text.lines() {
            let units = line.encode_utf16().chain([0x0d, 0x0a]);
            bytes.extend(units.flat_map(u16::to_le_bytes));
        }
    };
    put(VERSION_5);
    put("\n");
    for registration in registrations {
        if !registration.lease {
            put(&key(registration));
        }
    }
    bytes
}

/// One key with its values and an empty line, with `\n` line ends.
fn key(registration: &Registration) -> String {
    let parent = match registration.enabled {
        true => KEY,
        false => DISABLED_KEY,
    };
    let mut text = format!(
        "[{parent}\\{}]\n",
        registration.id.to_string().to_uppercase()
    );
    for what in left_out(registration) {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "; {what}");
    }
    let mut put = |name: &str, value: &str| {
        let _ = match value.chars().any(char::is_control) {
            false => writeln!(text, "\"{name}\"=\"{}\"", quoted(value)),
            true => writeln!(text, "{}", hex_value(name, value)),
        };
    };
    put(ELEMENT_NAME, registration.name.as_str());
    for (name, value) in [
        (OWNER, &registration.owner),
        (CREATOR, &registration.creator),
        (PURPOSE, &registration.purpose),
    ] {
        if let Some(value) = value {
            put(name, value);
        }
    }
    text.push('\n');
    text
}

/// The settings of a registration that the file cannot represent.
fn left_out(registration: &Registration) -> Vec<String> {
    let mut left_out = Vec::new();
    let given = |rule: &AccessRule| *rule != AccessRule::default();
    let rules: Vec<&str> = [
        ("[bind]", given(&registration.bind)),
        ("[connect]", given(&registration.connect)),
        (
            "allow_wildcard_binds",
            registration.allow_wildcard_binds.is_some(),
        ),
        ("only_root_binds", registration.only_root_binds.is_some()),
        ("[vm]", !registration.vm.is_empty()),
    ]
    .into_iter()
    .filter_map(|(rule, given)| given.then_some(rule))
    .collect();
    if !rules.is_empty() {
        left_out.push(format!(
            "had access rules ({}); Windows stores them elsewhere, as security descriptors",
            rules.join(", ")
        ));
    }
    if let Some(transport) = registration.transport {
        left_out.push(format!(
            "had transport = \"{transport}\", which Windows has no place for"
        ));
    }
    left_out
}

fn quoted(value: &str) -> String {
    value.replace('\\', r"\\").replace('"', "\\\"")
}

/// `"name"=hex(1):…`, wrapped at 80 characters like the registry editor does.
fn hex_value(name: &str, value: &str) -> String {
    let units = value.encode_utf16().chain([0]);
    let bytes: Vec<u8> = units.flat_map(u16::to_le_bytes).collect();
    let mut text = format!("\"{name}\"=hex(1):");
    let mut column = text.chars().count();
    for (at, byte) in bytes.iter().enumerate() {
        let last = at + 1 == bytes.len();
        // Two digits, the comma, and the backslash that continues the line.
        if column + 4 > 80 {
            text.push_str("\\\n  ");
            column = 2;
        }
        let comma = if last { "" } else { "," };
        let _ = write!(text, "{byte:02x}{comma}");
        column += 3;
    }
    text
}

#[cfg(test)]
mod tests {
    use hvsock_address::{ElementName, ServiceId};

    use super::*;

    fn text(bytes: &[u8]) -> String {
        assert_eq!(bytes[..2], [0xff, 0xfe]);
        let units: Vec<u16> = bytes[2..]
            .chunks(2)
            .map(|pair| u16::from_le_bytes([pair[0], pair[1]]))
            .collect();
        String::from_utf16(&units).unwrap()
    }

    #[test]
    fn the_file_has_the_format_of_the_registry_editor() {
        let mut demo = Registration::new(
            ServiceId::from_port(2761),
            ElementName::new("HV \"Socket\" Demo").unwrap(),
        );
        demo.owner = Some(r"CORP\alice".to_owned());
        let want = "Windows Registry Editor Version 5.00\r\n\r\n[HKEY_LOCAL_MACHINE\\SOFTWARE\\\
                    Microsoft\\Windows NT\\CurrentVersion\\Virtualization\\\
                    GuestCommunicationServices\\00000AC9-FACB-11E6-BD58-64006A7986D3]\r\n\
                    \"ElementName\"=\"HV \\\"Socket\\\" Demo\"\r\n\"Owner\"=\"CORP\\\\alice\"\
                    \r\n\r\n";
        assert_eq!(text(&export([&demo])), want);
        demo.lease = true;
        assert_eq!(text(&export([&demo])), &want[..40]);
    }

    #[test]
    fn settings_that_cannot_be_exported_become_comments() {
        let name = ElementName::new("Demo").unwrap();
        let mut demo = Registration::new(ServiceId::from_port(1), name);
        demo.connect.users = Some(vec![]);
        let text = text(&export([&demo]));
        assert!(
            text.contains("\r\n; had access rules ([connect]); "),
            "{text}"
        );
    }

    #[test]
    fn hex_values_wrap_at_eighty_characters() {
        let text = hex_value("Purpose", &format!("a\n{}", "é".repeat(40)));
        assert!(text.starts_with("\"Purpose\"=hex(1):61,00,0a,00,e9,00,"));
        assert!(text.ends_with(",00,00"), "{text}");
        for line in text.lines() {
            assert!(line.chars().count() <= 80, "{line}");
        }
        let mut continued = text.lines().rev().skip(1);
        assert!(continued.all(|line| line.ends_with(",\\")), "{text}");
    }
}
