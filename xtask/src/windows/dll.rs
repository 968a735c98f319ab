//! DLLs that programs need and Wine lacks, built from C by MinGW.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::SystemTime;

use anyhow::{Context, Result};

use super::folders;
use crate::run;

/// The compiler for C.
pub const COMPILER: &str = "x86_64-w64-mingw32-gcc";

/// A DLL. Its sources are in `crates/testkit/windows`.
struct Dll {
    name: &'static str,
    sources: &'static [&'static str],
    headers: &'static [&'static str],
    libraries: &'static [&'static str],
}

const DLLS: &[Dll] = &[
    Dll {
        name: "bcryptprimitives.dll",
        sources: &["bcryptprimitives.c"],
        headers: &[],
        libraries: &["-ladvapi32"],
    },
    Dll {
        name: "hv2_32.dll",
        sources: &[
            "shim/calls.c",
            "shim/connecting.c",
            "shim/records.c",
            "shim/world.c",
            "shim/hv2_32.def",
        ],
        headers: &["shim/shim.h"],
        libraries: &["-lws2_32", "-ladvapi32"],
    },
];

/// The folder of the built DLLs.
pub fn folder() -> PathBuf {
    folders::target().join("dll")
}

/// Builds each DLL that is missing or older than its sources.
pub fn build() -> Result<()> {
    let folder = folder();
    fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
    let sources = run::root().join("crates/testkit/windows");
    for dll in DLLS {
        let built = folder.join(dll.name);
        let all = |names: &[&str]| -> Vec<PathBuf> {
            names.iter().map(|name| sources.join(name)).collect()
        };
        if is_newer(&built, &all(dll.sources)) && is_newer(&built, &all(dll.headers)) {
            continue;
        }
        // Renamed when complete; a running program keeps the old one.
        let unfinished = folder.join(format!("{}.{}", dll.name, std::process::id()));
        run::run(
            Command::new(COMPILER)
                .args(["-shared", "-O1", "-Wall", "-Wextra", "-Werror", "-o"])
                .arg(&unfinished)
                .args(all(dll.sources))
                .args(dll.libraries),
        )?;
        fs::rename(&unfinished, &built)
            .with_context(|| format!("cannot create {}", built.display()))?;
    }
    Ok(())
}

fn is_newer(built: &Path, sources: &[PathBuf]) -> bool {
    let time = |path: &Path| fs::metadata(path).and_then(|it| it.modified()).ok();
    let Some(built) = time(built) else {
        return false;
    };
    let older = |path: &PathBuf| time(path).is_some_and(|source: SystemTime| source < built);
    sources.iter().all(older)
}
