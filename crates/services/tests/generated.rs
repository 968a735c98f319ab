//! Checks that the committed code in src/wire/generated is what the files in `proto` generate.
//!
//! After a change of a `.proto` file, and before code uses the change, rewrite the code with
//! `HVSOCK_UPDATE_GENERATED=1 cargo test -p hvsock-services --test generated`.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

const HEADER: &str = "\
// @generated from crates/services/proto. Do not edit; rewrite it with
// HVSOCK_UPDATE_GENERATED=1 cargo test -p hvsock-services --test generated

";

/// The generated files by name, without a `protoc` on the machine.
fn generate() -> BTreeMap<String, String> {
    let proto = Path::new(env!("CARGO_MANIFEST_DIR")).join("proto");
    let mut inputs: Vec<PathBuf> = fs::read_dir(proto.join("hvsock"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    inputs.sort();
    let descriptors = protox::compile(&inputs, [&proto]).unwrap();
    let out = tempfile::tempdir().unwrap();
    tonic_prost_build::configure()
        .bytes(".")
        .emit_rerun_if_changed(false)
        .out_dir(out.path())
        .compile_fds(descriptors)
        .unwrap();
    contents(out.path())
        .into_iter()
        .map(|(name, text)| (name, format!("{HEADER}{text}")))
        .collect()
}

/// All files of a folder, by name.
fn contents(folder: &Path) -> BTreeMap<String, String> {
    let entries = fs::read_dir(folder).unwrap();
    entries
        .map(|entry| {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_str().unwrap().to_owned();
            (name, fs::read_to_string(path).unwrap())
        })
        .collect()
}

#[test]
fn the_committed_code_is_what_the_proto_files_generate() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/wire/generated");
    let generated = generate();
    if std::env::var_os("HVSOCK_UPDATE_GENERATED").is_some() {
        for stale in contents(&folder).keys() {
            fs::remove_file(folder.join(stale)).unwrap();
        }
        for (name, text) in &generated {
            fs::write(folder.join(name), text).unwrap();
        }
    }
    let committed = contents(&folder);
    let names = |files: &BTreeMap<String, String>| files.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(&committed), names(&generated));
    for (name, text) in &generated {
        assert!(
            committed[name] == *text,
            "{name} is not what its .proto file generates; run this test with HVSOCK_UPDATE_GENERATED=1"
        );
    }
}
