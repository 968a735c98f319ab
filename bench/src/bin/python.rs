//! Measures streams of the Python package with its accelerator, against the Rust library in alternating turns.

#![forbid(unsafe_code)]

use std::path::Path;
use std::process::Command;

use anyhow::{Context, ensure};
use hvsock_broker::{Broker, BrokerConfig};
use hvsock_endpoint::Dirs;

/// The environment variable with the folder of the accelerator's module, which `cargo xtask` builds.
const ACCELERATOR: &str = "HVSOCK_TEST_ACCELERATOR";

fn main() -> anyhow::Result<()> {
    let accelerator = std::env::var_os(ACCELERATOR)
        .with_context(|| format!("{ACCELERATOR} is not set (`cargo xtask bench python` does)"))?;
    let root = Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .context("the repository")?;
    let folder = tempfile::Builder::new().prefix("hvb").tempdir()?;
    let dirs = Dirs {
        run: folder.path().to_owned(),
        config: folder.path().to_owned(),
    };
    let endpoint = dirs.endpoint();
    let _broker = Broker::start(BrokerConfig::new(dirs))?;
    let paths = [root.join("python/src"), accelerator.into()];
    let status = Command::new("python3")
        .arg(root.join("bench/python/stream.py"))
        .args(std::env::args_os().skip(1))
        .env("PYTHONPATH", std::env::join_paths(paths)?)
        .env("HVSOCK_ENDPOINT", endpoint)
        .status()
        .context("cannot start python3")?;
    ensure!(status.success(), "stream.py failed: {status}");
    Ok(())
}
