use super::*;

#[test]
fn the_keys_of_podman_docker_and_windows_are_listed() {
    let podman = [("Purpose", "Network"), ("ToolName", "podman")];
    let fake = Fake::default()
        // Keys of podman (current and older versions) and of Docker's installer.
        .with("00000400-FACB-11E6-BD58-64006A7986D3", &podman)
        .with("00000401-FACB-11E6-BD58-64006A7986D3", &podman)
        .with(
            "00000402-facb-11e6-bd58-64006a7986d3",
            &[("Purpose", "Events"), ("MachineName", "dev")],
        )
        .with(
            "{00000948-FACB-11E6-BD58-64006A7986D3}",
            &[("ElementName", "Docker")],
        )
        .with("30D48B34-7D27-4B0B-AAAF-BBBED334DD59", &[])
        .with(
            "999E53D4-3D5C-4C3E-8779-BED06EC056E1",
            &[("ElementName", "VM Session Service")],
        );
    assert_eq!(
        names(&fake),
        [
            "Docker",
            "Events dev",
            "podman Network",
            "podman Network 00000401-facb-11e6-bd58-64006a7986d3",
            "Unnamed 30d48b34-7d27-4b0b-aaaf-bbbed334dd59",
        ]
    );
    assert_eq!(problems(&fake), [""; 0]);
    let listing = Store::new(fake).read().unwrap();
    let port = listing.registry.by_port(1024).unwrap();
    assert_eq!(port.creator.as_deref(), Some("podman"));
    assert_eq!(port.purpose.as_deref(), Some("Network"));
    assert!(listing.registry.by_port(2376).is_some());
}

#[test]
fn a_generated_name_never_takes_the_name_of_another_key() {
    let fake = Fake::default()
        .with(&key_of(id(1)), &[("ToolName", "podman")])
        .with(&key_of(id(2)), &[("ElementName", "Podman")])
        .with(&key_of(id(3)), &[("Creator", "VM Session Service")]);
    assert_eq!(
        names(&fake),
        [
            "Podman".to_owned(),
            format!("podman {}", id(1)),
            format!("VM Session Service {}", id(3)),
        ]
    );
}

#[test]
fn two_keys_with_one_name_are_both_listed() {
    let fake = Fake::default()
        .with(&key_of(id(1)), &[("ElementName", "Echo")])
        .with(&key_of(id(2)), &[("ElementName", "ECHO")])
        .with(&key_of(id(3)), &[("ElementName", "vm session service")]);
    assert_eq!(
        names(&fake),
        [
            "Echo".to_owned(),
            format!("ECHO {}", id(2)),
            format!("vm session service {}", id(3)),
        ]
    );
    let problems = problems(&fake);
    assert_eq!(
        problems[0],
        format!(
            "GuestCommunicationServices\\{}: has the name of the service {}: named \"ECHO {}\" \
             here",
            key_of(id(2)),
            id(1),
            id(2)
        )
    );
    assert_eq!(problems.len(), 2);
}

#[test]
fn two_spellings_of_one_guid_are_one_service() {
    let braces = format!("{{{}}}", id(1));
    let mut fake = Fake::default()
        .with(&key_of(id(1)), &[("ElementName", "One")])
        .with(&braces, &[("ElementName", "Other")]);
    assert_eq!(names(&fake), ["One"]);
    assert!(problems(&fake)[0].contains("is the same service as"));
    // The key that Windows reads wins over a leftover disabled one.
    fake.add(
        KeyLocation::Disabled,
        &key_of(id(1)),
        &[("ElementName", "Old")],
    );
    fake.add(
        KeyLocation::Disabled,
        &key_of(id(2)),
        &[("ElementName", "Two")],
    );
    assert_eq!(names(&fake), ["One", "Two (off)"]);
    let (fake, done) = after(&fake, |store| store.remove(id(1)));
    done.unwrap();
    assert_eq!(names(&fake), ["Two (off)"]);
    assert_eq!(fake.keys.len(), 1);
}

#[test]
fn key_names_that_are_not_guids_are_reported() {
    let mut fake = Fake::default();
    for name in [
        "Name",
        "00000000-0000-0000-0000-000000000000",
        "0b2f1f0e000040008000000000000001",
        "{0b2f1f0e-0000-4000-8000-000000000001",
        "0b2f1f0e-0000-4000-8000-00000000000\u{fffd}",
        "0b2f1f0e-0000-4000-8000-000000000001\0",
        "",
    ] {
        fake.add(KeyLocation::Services, name, &[("ElementName", "x")]);
    }
    assert_eq!(names(&fake), [""; 0]);
    let problems = problems(&fake);
    assert_eq!(problems.len(), 7);
    assert!(problems.iter().any(|problem| problem.contains(r"001\0:")));
    let named = "is not named after a service's GUID: left out";
    assert!(problems.iter().all(|problem| problem.ends_with(named)));
}

#[test]
fn every_type_of_value_is_read_or_reported() {
    let raw = |name: &str, kind: u32, data: &[u8]| RawValue {
        name: name.to_owned(),
        kind,
        data: data.to_vec(),
    };
    let units = |units: &[u16]| -> Vec<u8> {
        let bytes = units.iter().flat_map(|unit| unit.to_le_bytes());
        bytes.collect()
    };
    let a = u16::from(b'a');
    let unnamed = format!("Unnamed {}", id(1));
    for (value, name, problem) in [
        (raw("elementNAME", 1, &units(&[a, 0])), "a", None),
        // Without a terminating zero, as some programs write it.
        (raw("ElementName", 1, &units(&[a])), "a", None),
        // REG_EXPAND_SZ; variables are not expanded.
        (raw("ElementName", 2, &units(&[a, 0])), "a", None),
        (raw("ElementName", 1, b""), &*unnamed, None),
        (raw("ElementName", 1, &units(&[0])), &*unnamed, None),
        (
            raw("ElementName", 3, &units(&[a, 0])),
            &*unnamed,
            Some("is not a string"),
        ),
        (
            raw("ElementName", 4, &[1, 0, 0, 0]),
            &*unnamed,
            Some("is not a string"),
        ),
        (
            raw("ElementName", 1, b"abc"),
            &*unnamed,
            Some("has an odd number of bytes"),
        ),
        (
            raw("ElementName", 1, &units(&[0xd800, a, 0])),
            &*unnamed,
            Some("is not UTF-16"),
        ),
        (
            raw("ElementName", 1, &units(&[a, 0, a, 0])),
            "a a",
            Some("the name \"a\\0a\" is invalid"),
        ),
        (
            raw("ElementName", 1, &units(&[a; 300])),
            &*unnamed,
            Some("at most 255 bytes"),
        ),
        (
            raw("ElementName", 1, &units(&[b'1'.into(), 0])),
            &*unnamed,
            Some("means a vsock port"),
        ),
    ] {
        let mut fake = Fake::default().with(&key_of(id(1)), &[]);
        let shown = format!("{value:?}");
        fake.at(KeyLocation::Services, &key_of(id(1)))
            .values
            .push(value);
        assert_eq!(names(&fake), [name], "{shown}");
        let problems = problems(&fake);
        assert_eq!(problems.len(), usize::from(problem.is_some()), "{shown}");
        for (got, want) in problems.iter().zip(problem) {
            assert!(got.contains(want), "{shown}: {got}");
        }
    }
}

#[test]
fn texts_with_control_characters_or_excess_length_are_left_out() {
    let long = "x".repeat(2000);
    let values = [
        ("ElementName", "One"),
        ("Owner", "a\nb"),
        ("Creator", &*long),
        ("Purpose", ""),
        ("Other", "whatever"),
    ];
    let fake = Fake::default().with(&key_of(id(1)), &values);
    let listing = Store::new(fake).read().unwrap();
    assert_eq!(listing.registry.get(id(1)), Some(&registration(1, "One")),);
    let has = |what: &str| listing.problems.iter().any(|p| p.contains(what));
    assert!(
        has("Owner contains `\\n`, which is not"),
        "{:?}",
        listing.problems
    );
    assert!(has("Creator has 2000 bytes"), "{:?}", listing.problems);
    assert_eq!(listing.problems.len(), 2);
}

#[test]
fn problems_beyond_the_limit_are_only_counted() {
    let mut fake = Fake::default();
    for n in 0..MAX_PROBLEMS + 5 {
        fake.add(KeyLocation::Services, &format!("junk {n}"), &[]);
    }
    let problems = problems(&fake);
    assert_eq!(problems.len(), MAX_PROBLEMS + 1);
    assert_eq!(problems[MAX_PROBLEMS], "5 more problems are not listed");
}

#[test]
fn a_key_and_its_reg_file_have_the_same_meaning() {
    let values = [
        ("elementname", "  Padded\u{1} "),
        ("Owner", "CORP\\alice"),
        ("ToolName", "tool"),
        ("Purpose", "an end"),
    ];
    let mut text = format!(
        "Windows Registry Editor Version 5.00\n\n[{}\\{}]\n",
        crate::reg_file::KEY,
        id(1)
    );
    for (name, value) in values {
        text += &format!("\"{name}\"=\"{}\"\n", value.replace('\\', "\\\\"));
    }
    let import = crate::reg_file::import(text.as_bytes()).unwrap();
    let [crate::reg_file::Entry::Register { registration, .. }] = &import.entries[..] else {
        panic!("{import:?}");
    };
    let fake = Fake::default().with(&key_of(id(1)), &values);
    let listing = Store::new(fake).read().unwrap();
    assert_eq!(listing.registry.get(id(1)), Some(&**registration));
    assert!(listing.problems[0].ends_with(&import.notes[0].what));
}
