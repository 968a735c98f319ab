//! The TOML format of a registration's file and of `defaults.toml`.
//!
//! `docs/registry.md` documents the format.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

use hvsock_address::{ElementName, PartitionName, ServiceId, VmId};
use serde::de::{self, Deserialize, Deserializer, MapAccess, Visitor};
use toml_edit::{Array, DocumentMut, Item, Table, value};

use crate::store::Problem;
use crate::{
    AccessRule, Defaults, Override, PARENT, Registration, TransportSetting, text, toml_problem,
};

/// Decodes the file of a registration. It inherits what it leaves out from `built_in`, the built-in
/// registration of this service. Its access rules are decoded as they are: where they are decided,
/// those of `built_in` are the level below.
pub(super) fn decode(
    path: &Path,
    id: ServiceId,
    bytes: &[u8],
    built_in: Option<&Registration>,
) -> Result<Registration, Problem> {
    let file: ServiceFile = toml_problem::parse(path, toml_problem::text(path, bytes)?)?;
    let name = file.name.or_else(|| built_in.map(|one| one.name.clone()));
    let name = name.ok_or_else(|| Problem::whole(path, "has no `name`"))?;
    let base = built_in.cloned();
    let base = base.unwrap_or_else(|| Registration::new(id, name.clone()));
    let read = Registration {
        name,
        enabled: file.enabled.unwrap_or(base.enabled),
        bind: file.bind.into(),
        connect: file.connect.into(),
        allow_wildcard_binds: file.allow_wildcard_binds,
        only_root_binds: file.only_root_binds,
        transport: file.transport.map(|transport| transport.0),
        vm: file.vm.0,
        owner: file.owner.map(|text| text.0).or(base.owner),
        creator: file.creator.map(|text| text.0).or(base.creator),
        purpose: file.purpose.map(|text| text.0).or(base.purpose),
        id,
        lease: false,
    };
    Ok(match built_in {
        Some(built_in) => read.without(built_in),
        None => read,
    })
}

/// Decodes `defaults.toml`.
pub(super) fn decode_defaults(path: &Path, bytes: &[u8]) -> Result<Defaults, Problem> {
    let file: DefaultsFile = toml_problem::parse(path, toml_problem::text(path, bytes)?)?;
    let built_in = Defaults::default();
    Ok(Defaults {
        bind: file.bind.into(),
        connect: file.connect.into(),
        allow_wildcard_binds: file
            .allow_wildcard_binds
            .unwrap_or(built_in.allow_wildcard_binds),
        only_root_binds: file.only_root_binds.unwrap_or(built_in.only_root_binds),
        transport: file
            .transport
            .map_or(built_in.transport, |transport| transport.0),
    })
}

/// The registration as the content of a new file, without what it inherits from `built_in`.
pub(super) fn document(
    registration: &Registration,
    built_in: Option<&Registration>,
) -> DocumentMut {
    let own = match built_in {
        Some(built_in) => registration.clone().without(built_in),
        None => registration.clone(),
    };
    let mut document = DocumentMut::new();
    let root = document.as_table_mut();
    root["name"] = value(own.name.as_str());
    root["enabled"] = value(own.enabled);
    type Text = fn(&Registration) -> &Option<String>;
    let texts: [(&str, Text); 3] = [
        ("owner", |one| &one.owner),
        ("creator", |one| &one.creator),
        ("purpose", |one| &one.purpose),
    ];
    for (key, text) in texts {
        let inherited = built_in.is_some_and(|built_in| text(built_in) == text(&own));
        if let (Some(text), false) = (text(&own), inherited) {
            root[key] = value(text);
        }
    }
    put_flags(root, own.allow_wildcard_binds, own.only_root_binds);
    put_transport(root, own.transport);
    put_rules(root, &own.bind, &own.connect);
    if !own.vm.is_empty() {
        let mut vms = Table::new();
        vms.set_implicit(true);
        for (name, differs) in &own.vm {
            let mut vm = Table::new();
            if let Some(enabled) = differs.enabled {
                vm["enabled"] = value(enabled);
            }
            put_flags(
                &mut vm,
                differs.allow_wildcard_binds,
                differs.only_root_binds,
            );
            put_transport(&mut vm, differs.transport);
            put_rules(&mut vm, &differs.bind, &differs.connect);
            vms[name.as_str()] = Item::Table(vm);
        }
        root["vm"] = Item::Table(vms);
    }
    document
}

fn put_flags(table: &mut Table, wildcard: Option<bool>, only_root: Option<bool>) {
    for (key, flag) in [
        ("allow_wildcard_binds", wildcard),
        ("only_root_binds", only_root),
    ] {
        if let Some(flag) = flag {
            table[key] = value(flag);
        }
    }
}

fn put_transport(table: &mut Table, transport: Option<TransportSetting>) {
    if let Some(transport) = transport {
        table["transport"] = value(transport.name());
    }
}

fn put_rules(table: &mut Table, bind: &AccessRule, connect: &AccessRule) {
    for (key, rule) in [("bind", bind), ("connect", connect)] {
        let mut lists = Table::new();
        for (key, list) in [
            ("users", &rule.users),
            ("groups", &rule.groups),
            ("partitions", &rule.partitions),
        ] {
            if let Some(list) = list {
                lists[key] = value(Array::from_iter(list));
            }
        }
        if !lists.is_empty() {
            table[key] = Item::Table(lists);
        }
    }
}

#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields, expecting = "a registration")]
struct ServiceFile {
    /// Required unless the service is built in.
    name: Option<ElementName>,
    enabled: Option<bool>,
    owner: Option<Text>,
    creator: Option<Text>,
    purpose: Option<Text>,
    allow_wildcard_binds: Option<bool>,
    only_root_binds: Option<bool>,
    transport: Option<Transport>,
    #[serde(default)]
    bind: Rule,
    #[serde(default)]
    connect: Rule,
    #[serde(default)]
    vm: Overrides,
}

#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields, expecting = "defaults")]
struct DefaultsFile {
    allow_wildcard_binds: Option<bool>,
    only_root_binds: Option<bool>,
    transport: Option<Transport>,
    #[serde(default)]
    bind: Rule,
    #[serde(default)]
    connect: Rule,
}

#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields, expecting = "a table such as [vm.NAME]")]
struct OverrideTable {
    enabled: Option<bool>,
    allow_wildcard_binds: Option<bool>,
    only_root_binds: Option<bool>,
    transport: Option<Transport>,
    #[serde(default)]
    bind: Rule,
    #[serde(default)]
    connect: Rule,
}

/// The value of `transport`.
struct Transport(TransportSetting);

impl<'de> Deserialize<'de> for Transport {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        TransportSetting::by_name(&text).map(Self).ok_or_else(|| {
            let known = TransportSetting::ALL
                .map(|one| format!("`{one}`"))
                .join(" or ");
            let text = hvsock_text::printable(&text);
            de::Error::custom(format_args!("unknown transport `{text}`; expected {known}"))
        })
    }
}

#[derive(Default, serde::Deserialize)]
#[serde(
    deny_unknown_fields,
    expecting = "a table with the lists users, groups and partitions"
)]
struct Rule {
    users: Option<Vec<Account>>,
    groups: Option<Vec<Account>>,
    partitions: Option<Vec<Child>>,
}

impl From<Rule> for AccessRule {
    fn from(rule: Rule) -> Self {
        let accounts = |list: Vec<Account>| list.into_iter().map(|entry| entry.0).collect();
        Self {
            users: rule.users.map(accounts),
            groups: rule.groups.map(accounts),
            partitions: rule
                .partitions
                .map(|list| list.into_iter().map(|entry| entry.0).collect()),
        }
    }
}

/// An owner, creator or purpose.
struct Text(String);
/// A user or group: a name, an id, or `*`.
struct Account(String);
/// A child: a name, an id, `@group`, or `*`; or the parent.
struct Child(String);

impl<'de> Deserialize<'de> for Text {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let string = String::deserialize(deserializer)?;
        text::check(&string)
            .map(|()| Text(string))
            .map_err(|why| de::Error::custom(format_args!("this text {why}")))
    }
}

impl<'de> Deserialize<'de> for Account {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let string = String::deserialize(deserializer)?;
        text::check(&string)
            .map(|()| Account(string))
            .map_err(|why| de::Error::custom(format_args!("a user or group in this list {why}")))
    }
}

impl<'de> Deserialize<'de> for Child {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let string = String::deserialize(deserializer)?;
        let checked = match string.strip_prefix('@') {
            Some(group) => text::check(group).map_err(|why| format!("a group {why}")),
            None if string == "*" || string.eq_ignore_ascii_case(PARENT) => Ok(()),
            None if string.parse::<VmId>().is_ok() => Ok(()),
            None => PartitionName::new(string.as_str())
                .map(drop)
                .map_err(|why| why.to_string()),
        };
        checked.map(|()| Child(string.clone())).map_err(|why| {
            de::Error::custom(format_args!(
                "`{}` in this list is not a partition, `@group` or `*`: {why}",
                hvsock_text::printable(&string).at_most(80)
            ))
        })
    }
}

/// The tables `[vm.NAME]`. A duplicate name, ignoring case, is an error.
#[derive(Default)]
struct Overrides(BTreeMap<PartitionName, Override>);

impl<'de> Deserialize<'de> for Overrides {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(OverridesVisitor)
    }
}

struct OverridesVisitor;

impl<'de> Visitor<'de> for OverridesVisitor {
    type Value = Overrides;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a table such as [vm.NAME]")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Overrides, A::Error> {
        let mut all = BTreeMap::new();
        while let Some((name, differs)) = map.next_entry::<PartitionName, OverrideTable>()? {
            if all.contains_key(&name) {
                return Err(de::Error::custom(format_args!(
                    "duplicate [vm.{name}]; partition names are compared ignoring case"
                )));
            }
            let differs = Override {
                enabled: differs.enabled,
                bind: differs.bind.into(),
                connect: differs.connect.into(),
                allow_wildcard_binds: differs.allow_wildcard_binds,
                only_root_binds: differs.only_root_binds,
                transport: differs.transport.map(|transport| transport.0),
            };
            all.insert(name, differs);
        }
        Ok(Overrides(all))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(text: &str) -> Result<Registration, String> {
        let path = Path::new("s.toml");
        decode(path, ServiceId::from_port(1), text.as_bytes(), None).map_err(|e| e.to_string())
    }

    #[test]
    fn the_name_is_the_only_required_key() {
        let name = ElementName::new("Demo").unwrap();
        let plain = Registration::new(ServiceId::from_port(1), name);
        assert_eq!(read("name = \"Demo\""), Ok(plain.clone()));
        assert_eq!(read("\u{feff}name = \"Demo\"\r\n# end"), Ok(plain));
    }

    #[test]
    fn the_example_in_the_documentation_is_valid() {
        let page = include_str!("../../../../../docs/registry.md");
        let example: String = page
            .lines()
            .skip_while(|line| *line != "```toml")
            .skip(1)
            .take_while(|line| *line != "```")
            .map(|line| format!("{line}\n"))
            .collect();
        let read = read(&example).unwrap();
        let list = |list: &[&str]| Some(list.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>());
        assert_eq!(read.bind.users, list(&["alice", "1000"]));
        assert_eq!(read.bind.partitions, list(&["web", "@ci"]));
        let others = [PARENT, "Parent", "*", "web/box"];
        for other in others {
            let example = example.replace("@ci", other);
            assert!(
                example.contains(other) && self::read(&example).is_ok(),
                "{other}"
            );
        }
        assert_eq!(read.connect.groups, None);
        let web = &read.vm[&PartitionName::new("web").unwrap()];
        assert_eq!(web.enabled, Some(false));
        assert_eq!(web.connect.partitions, list(&[]));
    }

    #[test]
    fn errors_have_a_position() {
        for (text, want) in [
            (
                "name = \"a\"\n[bind]\nuser = [\"a\"]\n",
                "s.toml:3:1: unknown key `user`; did you mean `users`? (known here: `users`, \
                 `groups`, `partitions`)",
            ),
            (
                "name = \"a\"\n[vm.web.conect]\n",
                "s.toml:2:9: unknown key `conect`; did you mean `connect`? (known here: \
                 `enabled`, `allow_wildcard_binds`, `only_root_binds`, `transport`, `bind`, `connect`)",
            ),
            (
                "name = \"2761\"",
                "s.toml:1:8: `2761` already means a vsock port; choose another name",
            ),
            (
                "name = \"a\"\nowner = \"\\u001b[31m\"",
                "s.toml:2:9: this text contains `\\u{1b}`, which is not a visible character",
            ),
            (
                "name = \"web\u{200b}\"",
                "s.toml:1:8: `\\u{200b}` is not allowed in this name; a name has visible characters \
                 and spaces only",
            ),
            (
                "name = \"a\"\n\"x\\nhelp: reboot\u{202e}\" = 1",
                "s.toml:2:1: unknown key `x\\nhelp: reboot\\u{202e}`; known here: `name`, \
                 `enabled`, `owner`, `creator`, `purpose`, `allow_wildcard_binds`, \
                 `only_root_binds`, `transport`, `bind`, `connect`, `vm`",
            ),
            (
                "name = \"a\"\nconnect = \"*\"",
                "s.toml:2:11: expected a table with the lists users, groups and partitions, found \
                 the string \"*\"",
            ),
            (
                "name = \"a\"\nconnect.users = \"*\"",
                "s.toml:2:17: expected a sequence, found the string \"*\"",
            ),
        ] {
            assert_eq!(read(text), Err(want.to_owned()));
        }
        let twice = read("name = \"a\"\n[vm.web]\n[vm.WEB]\n").unwrap_err();
        assert!(twice.starts_with("s.toml:2:"), "{twice}");
        assert!(twice.contains("duplicate [vm."), "{twice}");
        for bad in ["a/b/c", "a/", "a/host", "host", "@", "@a\\u0007"] {
            let text = format!("name = \"a\"\nbind.partitions = [\"{bad}\"]\n");
            let error = read(&text).unwrap_err();
            assert!(error.starts_with("s.toml:2:20: `"), "{error}");
        }
    }

    proptest! {
        #[test]
        fn arbitrary_text_is_decoded_or_rejected_at_a_valid_position(text in fragments()) {
            let path = Path::new("s.toml");
            let lines = text.matches('\n').count() + 1;
            if let Err(problem) = decode(path, ServiceId::from_port(1), text.as_bytes(), None) {
                let line = problem.position.map_or(1, |(line, _)| line);
                prop_assert!((1..=lines).contains(&line), "{problem}");
                prop_assert!(problem.what.len() < 4000, "{problem}");
            }
            let _ = decode_defaults(path, text.as_bytes());
        }

        #[test]
        fn arbitrary_bytes_are_decoded_or_rejected(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            let _ = decode(Path::new("s.toml"), ServiceId::from_port(1), &bytes, None);
        }
    }

    /// Random sequences of fragments of files.
    fn fragments() -> impl Strategy<Value = String> {
        let fragment = prop_oneof![
            Just("name = \"Demo\"\n".to_owned()),
            Just("[bind]\n".to_owned()),
            Just("[vm.web]\n".to_owned()),
            Just("[[vm]]\n".to_owned()),
            Just("users = [\"a\"]\n".to_owned()),
            Just("enabled = ".to_owned()),
            "[a-z]{1,8} = (true|1|'x'|\\[\\]|\\{\\})\n",
            "[\\[\\]{}=.,'\"#\\\\a-c\n\r \u{1b}é]{0,6}",
        ];
        proptest::collection::vec(fragment, 0..10).prop_map(|fragments| fragments.concat())
    }

    #[test]
    fn defaults_have_rules_but_no_keys_of_a_service() {
        let path = Path::new("defaults.toml");
        let read = |text: &str| decode_defaults(path, text.as_bytes());
        assert_eq!(read("# nothing"), Ok(Defaults::default()));
        let some = read("allow_wildcard_binds = false\n[connect]\npartitions = [\"*\"]").unwrap();
        assert!(!some.allow_wildcard_binds);
        assert_eq!(some.connect.partitions, Some(vec!["*".to_owned()]));
        let error = read("name = \"a\"").unwrap_err().to_string();
        assert!(
            error.starts_with("defaults.toml:1:1: unknown key `name`"),
            "{error}"
        );
    }
}
