//! Hostile keys: oversized, malformed and too many.

use hvsock_registry::Registration;
use hvsock_registry::key_store::KeyError;
use hvsock_registry::keys::{MAX_VALUE, MAX_VALUES, Store};
use windows_registry::Type;

use super::*;

#[test]
fn oversized_and_malformed_values_are_reported_by_name() {
    let scratch = Scratch::new();
    let services: Vec<Registration> = (0..6).map(|n| new_service(&format!("S{n}"))).collect();
    let keys: Vec<Key> = services
        .iter()
        .map(|one| scratch.foreign(&one.id.to_string(), &[("ElementName", one.name.as_str())]))
        .collect();
    let set = |n: usize, name: &str, kind: u32, data: &[u8]| {
        keys[n].set_bytes(name, Type::Other(kind), data).unwrap();
    };
    set(0, "Purpose", 3, &vec![b'x'; 1 << 20]);
    set(1, "ElementName", 1, &[0x00, 0xd8, b'a', 0, 0, 0]);
    set(2, "ElementName", 1, b"a\0\0\0b\0\0\0");
    set(3, "ElementName", 3, b"a\0\0\0");
    set(4, "Owner", 1, b"odd");
    for n in 0..MAX_VALUES + 1 {
        set(5, &format!("v{n}"), 3, &[1]);
    }
    let listing = scratch.read();
    assert_eq!(listing.registry.len(), 6);
    for (n, want) in [
        "the value \"Purpose\" of 1048576 bytes is left out",
        "ElementName is not UTF-16",
        "the name \"a\\0b\" is invalid",
        "ElementName is not a string",
        "Owner has an odd number of bytes",
        "holds more than 64 values",
    ]
    .into_iter()
    .enumerate()
    {
        let key = services[n].id.to_string();
        let mut problems = listing.problems.iter();
        let found = problems.find(|problem| problem.contains(&key) && problem.contains(want));
        assert!(found.is_some(), "{want}: {:?}", listing.problems);
    }
    assert_eq!(listing.problems.len(), 6, "{:?}", listing.problems);
    let moved = scratch.store().set_enabled(services[0].id, false);
    assert!(matches!(moved, Err(KeyError::Broken(_))), "{moved:?}");
    scratch.store().remove(services[0].id).unwrap();
    assert_eq!(scratch.read().registry.len(), 5);
}

#[test]
fn a_key_with_subkeys_is_not_moved() {
    let scratch = Scratch::new();
    let service = new_service("Nested");
    let key = scratch.foreign(&service.id.to_string(), &[("ElementName", "Nested")]);
    key.create(r"a\b").unwrap();
    let moved = scratch.store().set_enabled(service.id, false).unwrap_err();
    assert!(moved.to_string().contains("has subkeys"), "{moved}");
    drop(key);
    scratch.store().remove(service.id).unwrap();
    assert_eq!(scratch.keys()[0].len(), 0);
}

#[test]
fn keys_beyond_the_limit_are_reported_and_block_new_ones() {
    let scratch = Scratch::new();
    for n in 0..11 {
        scratch.foreign(&format!("{n:08x}-0000-4000-8000-000000000001"), &[]);
    }
    let limited = |limit| Store::new(scratch.backend().with_limit(limit));
    let listing = limited(10).read().unwrap();
    assert_eq!(listing.registry.len(), 10);
    assert!(listing.problems[0].ends_with("holds more than 10 keys; the others are left out"));
    let full = limited(10).put(&new_service("One more"));
    assert!(matches!(full, Err(KeyError::Limit(_))), "{full:?}");
    limited(11).put(&new_service("One more")).unwrap();
}

#[test]
fn the_total_size_of_values_is_bounded() {
    let scratch = Scratch::new();
    // 80 MiB in 80 keys; MAX_TOTAL is 64 MiB.
    let most = vec![b'x'; MAX_VALUE];
    for n in 0..80 {
        let key = scratch.foreign(&new_service("x").id.to_string(), &[]);
        key.set_string("ElementName", format!("S{n}")).unwrap();
        for n in 0..MAX_VALUES - 1 {
            key.set_bytes(format!("v{n}"), Type::Bytes, &most).unwrap();
        }
    }
    let listing = scratch.read();
    assert_eq!(listing.registry.len(), 80);
    assert!(!listing.problems.is_empty());
}
