//! Keys of other programs and of Windows itself.

use hvsock_registry::Registration;
use hvsock_registry::key_store::KeyError;
use windows_registry::Type;

use super::*;

#[test]
fn the_keys_of_podman_docker_and_windows_are_listed() {
    let scratch = Scratch::new();
    scratch.foreign(
        "00000400-FACB-11E6-BD58-64006A7986D3",
        &[("Purpose", "Network"), ("ToolName", "podman")],
    );
    scratch.foreign("{00000948-facb-11e6-bd58-64006a7986d3}", &[]);
    scratch.foreign(
        "30d48b34-7d27-4b0b-aaaf-bbbed334dd59",
        &[("ElementName", "Docker API")],
    );
    for shipped in Registration::in_box() {
        let name = shipped.id.to_string().to_uppercase();
        scratch.foreign(&name, &[("ElementName", shipped.name.as_str())]);
    }
    let listing = scratch.read();
    let unnamed = "Unnamed 00000948-facb-11e6-bd58-64006a7986d3";
    assert_eq!(names(&listing), ["Docker API", "podman Network", unnamed]);
    assert_eq!(listing.problems, [""; 0]);

    let mut store = scratch.store();
    let port = |port, name: &str| {
        Registration::new(ServiceId::from_port(port), ElementName::new(name).unwrap())
    };
    for taken in [
        port(1024, "Mine"),
        port(2376, "Mine"),
        port(1, "PODMAN network"),
    ] {
        assert!(
            matches!(store.put(&taken), Err(KeyError::Clash(_))),
            "{taken:?}"
        );
    }
    let [shipped, _] = Registration::in_box();
    assert!(matches!(store.remove(shipped.id), Err(KeyError::InBox(_))));

    // Disabling and enabling leaves podman's key as podman wrote it.
    let podman = ServiceId::from_port(1024);
    store.set_enabled(podman, false).unwrap();
    assert!(!store.read().unwrap().registry.get(podman).unwrap().enabled);
    store.set_enabled(podman, true).unwrap();
    let key = format!(
        r"{}\00000400-facb-11e6-bd58-64006a7986d3",
        scratch.services()
    );
    let key = open(&key).unwrap();
    let mut values: Vec<(String, String)> = key
        .values()
        .unwrap()
        .map(|(name, value)| (name, value.try_into().unwrap()))
        .collect();
    values.sort();
    let pair = |a: &str, b: &str| (a.to_owned(), b.to_owned());
    assert_eq!(
        values,
        [pair("Purpose", "Network"), pair("ToolName", "podman")]
    );
    // A key in braces keeps them.
    let docker = ServiceId::from_port(2376);
    store.set_enabled(docker, false).unwrap();
    store.set_enabled(docker, true).unwrap();
    let [live, _] = scratch.keys();
    assert!(
        live.contains(&"{00000948-facb-11e6-bd58-64006a7986d3}".to_owned()),
        "{live:?}"
    );
    store.remove(docker).unwrap();
    assert_eq!(
        names(&store.read().unwrap()),
        ["Docker API", "podman Network"]
    );
}

#[test]
fn a_service_moves_with_values_of_every_type() {
    let scratch = Scratch::new();
    let service = new_service("Odd");
    let key = scratch.foreign(&service.id.to_string(), &[("ElementName", "Odd")]);
    let set = |name: &str, kind: u32, data: &[u8]| {
        key.set_bytes(name, Type::Other(kind), data).unwrap();
    };
    set("unended", 1, b"a\0");
    set("expanded", 2, b"%\0a\0%\0\0\0");
    set("empty", 3, &[0][..0]);
    set("big-endian", 5, &[0, 0, 0, 1]);
    set("several", 7, b"a\0\0\0b\0\0\0\0\0");
    set("unknown", 0x1234, b"xyz");
    set("", 1, b"d\0\0\0");
    let contents = |parent: &str| {
        let key = open(&format!(r"{parent}\{}", service.id)).unwrap();
        let mut values: Vec<(String, u32, Vec<u8>)> = key
            .values()
            .unwrap()
            .map(|(name, value)| (name, value.ty().into(), value.to_vec()))
            .collect();
        values.sort();
        values
    };
    let before = contents(&scratch.services());
    assert_eq!(before.len(), 8);
    scratch.store().set_enabled(service.id, false).unwrap();
    assert_eq!(contents(&scratch.disabled()), before);
    scratch.store().set_enabled(service.id, true).unwrap();
    assert_eq!(contents(&scratch.services()), before);
}
