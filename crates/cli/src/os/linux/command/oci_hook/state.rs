//! What a runtime tells a hook: the state of the container. The fuzz target `oci` reads it, too.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use serde::Deserialize;

/// The state of a container, as a runtime gives it to hooks (OCI runtime specification, "State").
#[derive(Debug, Deserialize)]
pub struct State {
    pub id: String,
    /// The first process, in the PID namespace of the runtime and so of this process.
    #[serde(default)]
    pub pid: Option<u32>,
    #[serde(default)]
    annotations: Option<BTreeMap<String, String>>,
    /// The root filesystem; not every runtime says where it is.
    #[serde(default)]
    root: Option<PathBuf>,
    #[serde(default)]
    bundle: PathBuf,
}

/// The part of a container's configuration that says where its root filesystem is.
#[derive(Debug, Deserialize)]
struct Configuration {
    root: Root,
}

#[derive(Debug, Deserialize)]
struct Root {
    path: PathBuf,
}

impl State {
    /// Reads the state.
    ///
    /// # Errors
    /// If it is not JSON, or not the state of a container.
    pub fn parse(bytes: &[u8]) -> serde_json::Result<Self> {
        serde_json::from_slice(bytes)
    }

    /// The file with the container's configuration.
    pub fn configuration(&self) -> PathBuf {
        self.bundle.join("config.json")
    }

    /// The path of the root filesystem. `read` reads the configuration, if that is needed.
    ///
    /// # Errors
    /// If the configuration cannot be read, or has no root filesystem.
    pub fn root(&self, read: impl FnOnce(&Path) -> io::Result<Vec<u8>>) -> io::Result<PathBuf> {
        if let Some(root) = &self.root {
            return Ok(root.clone());
        }
        let bytes = read(&self.configuration())?;
        let configuration: Configuration = serde_json::from_slice(&bytes)?;
        // It is relative to the bundle.
        Ok(self.bundle.join(configuration.root.path))
    }

    /// The value of an annotation.
    pub fn annotation(&self, name: &str) -> Option<&str> {
        self.annotations.as_ref()?.get(name).map(String::as_str)
    }
}
