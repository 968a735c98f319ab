//! `.reg` files: round trips, files of other programs, and malformed files.

use hvsock_address::{ElementName, ServiceId};
use hvsock_registry::Registration;
use hvsock_registry::reg_file::{
    DISABLED_KEY, Entry, Import, KEY, MAX_LEN, MAX_NOTES, export, import,
};
use proptest::option::of;
use proptest::prelude::*;

const VERSION_5: &str = "Windows Registry Editor Version 5.00";

fn registered(import: &Import) -> Vec<&Registration> {
    let entries = import.entries.iter();
    entries
        .filter_map(|entry| match entry {
            Entry::Register { registration, .. } => Some(registration.as_ref()),
            Entry::Unregister { .. } => None,
        })
        .collect()
}

fn notes(import: &Import) -> Vec<String> {
    import.notes.iter().map(ToString::to_string).collect()
}

fn read(text: &str) -> Import {
    import(format!("{VERSION_5}\r\n\r\n{text}").as_bytes()).unwrap()
}

fn id(port: u32) -> ServiceId {
    ServiceId::from_port(port)
}

fn registration(port: u32, name: &str) -> Registration {
    Registration::new(id(port), ElementName::new(name).unwrap())
}

#[test]
fn a_file_of_the_registry_editor_is_imported() {
    // An export by regedit: an in-box service, a service of Microsoft's sample script, and a value of
    // another tool.
    let text = format!(
        "{VERSION_5}\r\n\r\n[{KEY}]\r\n\r\n[{KEY}\\999E53D4-3D5C-4C3E-8779-BED06EC056E1]\r\n\
         \"ElementName\"=\"VM Session Service\"\r\n\r\n[{KEY}\\00000ac9-facb-11e6-bd58-\
         64006a7986d3]\r\n\"ElementName\"=\"HV Socket Demo\"\r\n\"Weight\"=dword:0000000a\r\n\r\n"
    );
    let mut bytes = vec![0xff, 0xfe];
    bytes.extend(text.encode_utf16().flat_map(u16::to_le_bytes));
    let import = import(&bytes).unwrap();
    assert_eq!(registered(&import), [&registration(2761, "HV Socket Demo")]);
    assert_eq!(
        notes(&import),
        [
            "line 5: \"VM Session Service\" is a service of Windows: left out",
            "line 10: unknown value \"Weight\": left out",
        ]
    );
}

#[test]
fn a_disabled_service_stays_disabled() {
    let off = |name: &str| Registration {
        enabled: false,
        ..registration(1, name)
    };
    let on = registration(2, "On");
    let import = import(&export([&off("Off"), &on])).unwrap();
    assert_eq!(registered(&import), [&off("Off"), &on]);
    assert_eq!(notes(&import), [""; 0]);

    // The key that Windows reads wins, in any order.
    let key =
        |parent: &str, name: &str| format!("[{parent}\\{}]\n\"ElementName\"=\"{name}\"\n", id(1));
    let (live, parked) = (key(KEY, "Live"), key(DISABLED_KEY, "Parked"));
    for text in [
        format!("{live}{parked}"),
        format!("{parked}\"Owner\"=\"x\"\n{live}"),
    ] {
        assert_eq!(registered(&read(&text)), [&registration(1, "Live")]);
    }
    let moved = format!("{live}[-{KEY}\\{}]\n{parked}", id(1));
    let moved = read(&moved);
    assert_eq!(registered(&moved), [&off("Parked")]);
    assert_eq!(moved.entries.len(), 2);
    let deleted = read(&format!("{live}[-{DISABLED_KEY}\\{}]\n", id(1)));
    assert_eq!(registered(&deleted), [&registration(1, "Live")]);
    assert_eq!(notes(&deleted).len(), 1);
}

#[test]
fn keys_are_recognized_in_every_spelling() {
    for key in [
        format!("{KEY}\\{}", id(1)),
        format!("{KEY}\\{{{}}}", id(1)).to_uppercase(),
        format!(
            "{}\\{}\\",
            KEY.to_lowercase().replace("hkey_local_machine", "hklm"),
            id(1)
        ),
    ] {
        let import = read(&format!("[{key}]\n\"elementname\"=\"One\"\n"));
        assert_eq!(registered(&import), [&registration(1, "One")], "{key}");
    }
    let others = [
        "HKEY_CURRENT_USER\\Software".to_owned(),
        format!("{KEY}2\\{}", id(1)),
        format!("{KEY}\\{}\\Sub", id(1)),
        format!("{KEY}\\Backup"),
        format!("{KEY}\\{}", ServiceId::ZERO),
    ];
    for key in others {
        let import = read(&format!("[{key}]\n\"ElementName\"=\"One\"\n"));
        assert_eq!(import.entries, []);
        assert!(
            notes(&import)[0].starts_with("line 3: "),
            "{key}: {:?}",
            import.notes
        );
        assert!(notes(&import)[0].contains("left out"), "{key}");
    }
}

#[test]
fn podmans_keys_without_a_name_get_a_generated_one() {
    let key = |port, more: &str| {
        format!(
            "[{KEY}\\{}]\n\"ToolName\"=\"podman\"\n\"Purpose\"=\"Network\"\n{more}",
            id(port)
        )
    };
    let text = key(1025, "")
        + &key(1026, "\"MachineName\"=\"podman-machine-default\"\n")
        + &key(1027, "")
        + &format!("[{KEY}\\{}]\n", id(1028));
    let import = read(&text);
    let names: Vec<&str> = registered(&import)
        .iter()
        .map(|r| r.name.as_str())
        .collect();
    assert_eq!(
        names,
        [
            "podman Network",
            "podman Network podman-machine-default",
            "podman Network 00000403-facb-11e6-bd58-64006a7986d3",
            "Unnamed 00000404-facb-11e6-bd58-64006a7986d3",
        ]
    );
    assert_eq!(registered(&import)[0].creator.as_deref(), Some("podman"));
    assert_eq!(registered(&import)[0].purpose.as_deref(), Some("Network"));
    assert_eq!(
        notes(&import)[0],
        "line 3: the key has no ElementName: named \"podman Network\" here"
    );
}

#[test]
fn an_invalid_name_is_repaired_or_replaced() {
    let named = |value: &str| {
        let import = read(&format!("[{KEY}\\{}]\n\"ElementName\"={value}\n", id(1)));
        (registered(&import)[0].name.to_string(), notes(&import))
    };
    let (name, why) = named("\" Demo \"");
    assert_eq!(name, "Demo");
    assert!(
        why[0].starts_with("line 4: the name \" Demo \" is invalid ("),
        "{why:?}"
    );
    let unnamed = format!("Unnamed {}", id(1));
    assert_eq!(named("\"2761\"").0, unnamed);
    let (name, why) = named("dword:1");
    assert_eq!(name, unnamed);
    assert_eq!(why[0], "line 4: ElementName is not a string: left out");
    // "Dé" in UTF-16, on two lines.
    assert_eq!(
        named("hex(1):44,00,\\\r\n  e9,00,00,00"),
        ("Dé".to_owned(), vec![])
    );
    assert_eq!(named("hex(2):44,00").0, "D");
    assert_eq!(named("\"A\\\\B \\\"C\\\"\"").0, "A\\B \"C\"");
}

#[test]
fn deletions_are_entries_and_take_effect_in_order() {
    let one = format!("{KEY}\\{}", id(1));
    let two = format!("{KEY}\\{}", id(2));
    let text = format!(
        "[{one}]\n\"ElementName\"=\"Old\"\n\"Owner\"=\"alice\"\n[-{two}]\n[-{one}]\n[{one}]\n\
         \"ElementName\"=\"New\"\n\"Purpose\"=\"x\"\n\"Purpose\"=-\n[-{KEY}]\n"
    );
    let import = read(&text);
    assert_eq!(
        import.entries,
        [
            Entry::Unregister { line: 8, id: id(1) },
            Entry::Register {
                line: 8,
                registration: Box::new(registration(1, "New")),
            },
            Entry::Unregister { line: 6, id: id(2) },
        ]
    );
    assert_eq!(import.notes.len(), 1);
    assert!(notes(&import)[0].starts_with("line 12: cannot delete all services at once"));
}

#[test]
fn version_4_files_in_an_ansi_code_page_are_imported() {
    let text = format!("REGEDIT4\n\n[{KEY}\\{}]\n", id(1));
    let mut bytes = text.into_bytes();
    bytes.extend(b"\"ElementName\"=\"Sauvegarde \xe0 chaud\"\n\"Owner\"=hex(1):80,00\n");
    let import = import(&bytes).unwrap();
    assert_eq!(registered(&import)[0].name.as_str(), "Sauvegarde à chaud");
    assert_eq!(registered(&import)[0].owner.as_deref(), Some("€"));
    assert_eq!(
        notes(&import),
        ["line 1: neither UTF-16 nor UTF-8: read as Windows-1252"]
    );
}

#[test]
fn a_syntax_error_has_a_line_and_nothing_is_imported() {
    let text = format!("[{KEY}\\{}]\n\"ElementName\"=\"One\n", id(1));
    let error = import(format!("{VERSION_5}\n\n{text}").as_bytes()).unwrap_err();
    assert_eq!(
        error.to_string(),
        "line 4: the string that starts here has no closing quote"
    );
    let error = import(format!("{VERSION_5}\n\"a\"=\"b\"\n").as_bytes()).unwrap_err();
    assert_eq!(
        error.to_string(),
        "line 2: a value comes before the first `[key]`"
    );
    let error = import(b"{\"json\": true}").unwrap_err();
    assert!(
        error
            .to_string()
            .starts_with("line 1: not a registry file: starts with `{")
    );
    let error = import(&vec![b' '; MAX_LEN + 1]).unwrap_err();
    assert!(error.to_string().ends_with("the limit is 67108864"));
}

#[test]
fn notes_beyond_the_limit_are_only_counted() {
    let import = read(&"[HKEY_CURRENT_USER\\X]\n".repeat(MAX_NOTES + 5));
    assert_eq!((import.notes.len(), import.more_notes), (MAX_NOTES, 5));
}

#[test]
fn a_hundred_thousand_services_survive_a_round_trip() {
    let all: Vec<Registration> = (0..100_000)
        .map(|port| registration(port, &format!("Service {port}")))
        .collect();
    let bytes = export(&all);
    assert!(bytes.len() < MAX_LEN);
    let import = import(&bytes).unwrap();
    assert!(registered(&import).into_iter().eq(&all));
}

/// Random sequences of fragments of registry files.
fn fragments() -> impl Strategy<Value = String> {
    let fragment = prop_oneof![
        Just(VERSION_5.to_owned()),
        Just("REGEDIT4".to_owned()),
        Just(format!("[{KEY}\\{}]", id(1))),
        Just(format!("[-{KEY}\\{}]", id(2))),
        Just("\"ElementName\"=".to_owned()),
        Just("\"Owner\"=".to_owned()),
        Just("hex(1):41,00,\\".to_owned()),
        Just("dword:00000001".to_owned()),
        "[\\[\\]\"\\\\=@;:,()hex0-9\\-\r\n ]{0,6}",
        "\\PC{0,4}",
        Just("\r\n".to_owned()),
    ];
    prop::collection::vec(fragment, 0..24).prop_map(|fragments| fragments.concat())
}

fn registrations() -> impl Strategy<Value = Vec<Registration>> {
    let visible = |text: String| hvsock_text::printable(&text).to_string();
    let text = || of("[\\PC\"\\\\;\\[\\]]{1,20}".prop_map(visible));
    let one = ("[\\PC\"\\\\;\\[\\]]{1,30}", text(), text(), text());
    prop::collection::vec(one, 0..5).prop_map(|all| {
        let registration = |(port, (name, owner, creator, purpose))| {
            Some(Registration {
                owner,
                creator,
                purpose,
                ..Registration::new(id(port), ElementName::new(name).ok()?)
            })
        };
        (0u32..).zip(all).filter_map(registration).collect()
    })
}

proptest! {
    #[test]
    fn an_exported_file_is_imported_unchanged(all in registrations()) {
        let import = import(&export(&all)).unwrap();
        prop_assert_eq!(import.notes, []);
        let want: Vec<Registration> = all;
        let entries = import.entries.into_iter().map(|entry| match entry {
            Entry::Register { registration, .. } => *registration,
            Entry::Unregister { .. } => unreachable!(),
        });
        prop_assert_eq!(entries.collect::<Vec<_>>(), want);
    }

    #[test]
    fn arbitrary_bytes_are_imported_or_rejected(bytes in prop::collection::vec(any::<u8>(), 0..256)) {
        let _ = import(&bytes);
        let with_head = [VERSION_5.as_bytes(), b"\n", &bytes].concat();
        let _ = import(&with_head);
    }

    #[test]
    fn arbitrary_fragments_are_imported_or_rejected(text in fragments()) {
        let with_head = format!("{VERSION_5}\n{text}");
        for text in [&text, &with_head] {
            let lines = text.lines().count().max(1);
            match import(text.as_bytes()) {
                Ok(import) => {
                    prop_assert!(import.notes.iter().all(|note| note.line <= lines));
                    // An imported registration survives a round trip.
                    let registrations = registered(&import).into_iter();
                    let again = super_import(&export(registrations.clone()));
                    prop_assert!(registered(&again).into_iter().eq(registrations));
                }
                Err(error) => prop_assert!((1..=lines).contains(&error.line), "{}", error),
            }
        }
    }
}

fn super_import(bytes: &[u8]) -> Import {
    import(bytes).unwrap()
}
