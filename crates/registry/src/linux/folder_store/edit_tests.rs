//! Edits of handwritten files of registrations.

use std::path::Path;

use hvsock_address::{ElementName, PartitionName, ServiceId};
use proptest::collection::{btree_map, vec};
use proptest::option::of;
use proptest::prelude::*;

use super::{ServiceFiles, format};
use crate::linux::entry_folder::{EntryKind, edit};
use crate::{AccessRule, Override, Registration, TransportSetting};

const HAND_WRITTEN: &str = "\
# The demo. Ask Alice before you touch it.
purpose = 'shows \"how\"'   # see the wiki
name    = \"HV Socket Demo\"

# off while the audit runs
enabled = false # until Friday

[vm.Web] # the front end
connect = { partitions = [\"*\"], users = [ 'alice', # root anyway
  \"bob\" ] }
# the end
";

fn read(text: &str) -> Registration {
    format::decode(
        Path::new("x"),
        ServiceId::from_port(1),
        text.as_bytes(),
        None,
    )
    .unwrap()
}

fn edited(text: &str, registration: &Registration) -> String {
    let id = ServiceId::from_port(1);
    edit::<ServiceFiles>(Path::new("x"), text.as_bytes(), &id, registration, None).unwrap()
}

#[test]
fn enabling_changes_one_value_of_a_handwritten_file() {
    let mut registration = read(HAND_WRITTEN);
    assert_eq!(edited(HAND_WRITTEN, &registration), HAND_WRITTEN);
    registration.enabled = true;
    let want = HAND_WRITTEN.replace("enabled = false #", "enabled = true #");
    assert_eq!(edited(HAND_WRITTEN, &registration), want);
}

#[test]
fn disabling_for_one_partition_finds_its_table_ignoring_case() {
    let mut registration = read(HAND_WRITTEN);
    let web = PartitionName::new("web").unwrap();
    registration.vm.get_mut(&web).unwrap().enabled = Some(false);
    let after = edited(HAND_WRITTEN, &registration);
    assert_eq!(read(&after), registration);
    assert!(!after.contains("[vm.web]"), "{after}");
    for line in HAND_WRITTEN.lines() {
        assert!(after.contains(line), "{line} in {after}");
    }
}

#[test]
fn a_file_without_enabled_gets_the_key_only_when_disabled() {
    let plain = "# c\nname = \"a\"\n\n[bind]\n# no users yet\n";
    let mut registration = read(plain);
    assert_eq!(edited(plain, &registration), plain);
    registration.enabled = false;
    let after = edited(plain, &registration);
    assert_eq!(
        after,
        "# c\nname = \"a\"\nenabled = false\n\n[bind]\n# no users yet\n"
    );
}

fn rule() -> impl Strategy<Value = AccessRule> {
    let accounts = || of(vec("[a-z *\"'\\\\é]{1,6}", 0..3));
    // Without the words that mean a partition seen from the caller, such as `any`.
    let is_valid = |text: &String| text.starts_with(['*', '@']) || PartitionName::new(text).is_ok();
    let child = "\\*|[a-z0-9][a-z]{0,4}|@[a-z]{1,4}".prop_filter("a name", is_valid);
    let children = of(vec(child, 0..3));
    (accounts(), accounts(), children).prop_map(|(users, groups, partitions)| AccessRule {
        users,
        groups,
        partitions,
    })
}

fn differs() -> impl Strategy<Value = Override> {
    let flag = || of(any::<bool>());
    (flag(), rule(), rule(), flag(), flag(), of(transport())).prop_map(
        |(enabled, bind, connect, allow_wildcard_binds, only_root_binds, transport)| Override {
            enabled,
            bind,
            connect,
            allow_wildcard_binds,
            only_root_binds,
            transport,
        },
    )
}

fn transport() -> impl Strategy<Value = TransportSetting> {
    prop::sample::select(TransportSetting::ALL.to_vec())
}

fn registration() -> impl Strategy<Value = Registration> {
    // Some names are also keys of the file.
    let partition = "bind|connect|vm|enabled|[a-zA-Z][a-z.]{0,3}";
    let vm = btree_map(
        partition.prop_filter_map("a word", |name| PartitionName::new(name).ok()),
        differs(),
        0..3,
    );
    let text = || of("\\PC{1,12}".prop_map(|text| hvsock_text::printable(&text).to_string()));
    let name = "[A-Za-zé\"'#\\\\]([ -~é]{0,8}[a-z])?";
    (
        (name, any::<bool>(), rule(), rule(), of(any::<bool>())),
        (
            vm,
            text(),
            text(),
            text(),
            of(any::<bool>()),
            of(transport()),
        ),
    )
        .prop_map(|(rules, rest)| {
            let (name, enabled, bind, connect, allow_wildcard_binds) = rules;
            let (vm, owner, creator, purpose, only_root_binds, transport) = rest;
            Registration {
                enabled,
                bind,
                connect,
                allow_wildcard_binds,
                only_root_binds,
                transport,
                vm,
                owner,
                creator,
                purpose,
                ..Registration::new(
                    ServiceId::from_port(1),
                    ElementName::new(name).unwrap_or(ElementName::new("x").unwrap()),
                )
            }
        })
}

proptest! {
    #[test]
    fn a_written_registration_is_read_back(registration in registration()) {
        let text = ServiceFiles::text(&registration, None);
        prop_assert_eq!(read(&text), registration);
    }

    #[test]
    fn any_file_can_be_edited_to_any_registration(
        before in registration(),
        after in registration(),
    ) {
        let text = ServiceFiles::text(&before, None);
        let text = format!("# first\n{text}\n# last\n");
        let now = edited(&text, &after);
        prop_assert!(now.contains("# first") && now.contains("# last"), "{}", now);
        prop_assert_eq!(read(&now), after.clone());
        let by_hand = edited(HAND_WRITTEN, &after);
        prop_assert_eq!(read(&by_hand), after);
    }
}
