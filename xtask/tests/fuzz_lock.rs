//! The fuzz targets are a workspace of their own, with a lock file of their own.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// The versions of each package in a lock file.
fn versions(file: &str) -> BTreeMap<String, BTreeSet<String>> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(file);
    let text = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let mut versions: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for package in text.split("[[package]]").skip(1) {
        let value = |key: &str| {
            let mut lines = package.lines();
            let quoted = lines.find_map(|line| line.strip_prefix(key)?.strip_prefix(" = "));
            quoted.unwrap_or_default().trim_matches('"').to_owned()
        };
        let (name, version) = (value("name"), value("version"));
        versions.entry(name).or_default().insert(version);
    }
    versions
}

#[test]
fn the_fuzz_targets_are_built_with_the_locked_versions_of_the_workspace() {
    let (workspace, fuzz) = (versions("Cargo.lock"), versions("fuzz/Cargo.lock"));
    assert!(fuzz.contains_key("hvsock-fuzz") && fuzz.contains_key("hvsock-broker"));
    let others: Vec<_> = fuzz
        .iter()
        .filter(|(name, locked)| {
            let known = workspace.get(*name);
            known.is_some_and(|known| !locked.is_subset(known))
        })
        .collect();
    assert!(
        others.is_empty(),
        "fuzz/Cargo.lock has other versions than Cargo.lock: {others:#?}\n\
         help: cargo update --manifest-path fuzz/Cargo.toml PACKAGE --precise VERSION"
    );
}
