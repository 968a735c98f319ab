//! The server and the client of `examples/c` for Windows, built by MinGW from the text that Linux builds, too.

use std::fs;
use std::process::Command;

use anyhow::Result;

use super::{cargo, dll};
use crate::run;

/// Builds them beside the other programs, as `c_server.exe` and `c_client.exe`.
pub fn build() -> Result<()> {
    let folder = cargo::folder();
    fs::create_dir_all(&folder)?;
    for name in ["server", "client"] {
        let source = run::root().join("examples/c").join(name);
        run::run(
            Command::new(dll::COMPILER)
                .args(["-std=c11", "-O1", "-Wall", "-Wextra", "-Werror", "-I"])
                .arg(run::root().join("crates/capi/include"))
                .arg(source.with_extension("c"))
                .args(["-lws2_32", "-o"])
                .arg(folder.join(format!("c_{name}.exe"))),
        )?;
    }
    Ok(())
}
