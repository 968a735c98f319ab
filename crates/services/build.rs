//! Makes Rust of the interfaces in `proto`, without a compiler of Google's on the machine.

use std::error::Error;
use std::fs;
use std::path::PathBuf;

fn main() -> Result<(), Box<dyn Error>> {
    let folder = "proto";
    let mut files = Vec::new();
    for entry in fs::read_dir(format!("{folder}/hvsock"))? {
        let path: PathBuf = entry?.path();
        if path
            .extension()
            .is_some_and(|extension| extension == "proto")
        {
            files.push(path);
        }
    }
    files.sort();
    println!("cargo::rerun-if-changed={folder}");
    let interfaces = protox::compile(&files, [folder])?;
    tonic_prost_build::configure()
        .bytes(".")
        .compile_fds(interfaces)?;
    Ok(())
}
