//! CDI devices: one per container, by which a container engine mounts the container's endpoint.
//!
//! The Container Device Interface (CDI) describes a device in a file that engines read when somebody starts a
//! container with `--device VENDOR/CLASS=NAME`. [`device`] is the text of such a file and what one says
//! about whose it is; [`folder`] keeps the files of one broker in a folder that others write to as well.

mod device;
mod folder;

use std::path::PathBuf;

pub(crate) use device::has_device;
pub(crate) use folder::{CdiChange, CdiError, CdiFolder};

/// Where a broker writes the CDI devices of its containers, and what else they have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CdiConfig {
    /// The folder of the files. It is created when the first container is added.
    pub folder: PathBuf,
    /// The hooks of each device.
    pub hooks: Vec<CdiHook>,
}

/// A program that the container's runtime runs at a point of the container's life.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CdiHook {
    /// When it runs: a name of the OCI runtime specification, such as `createRuntime`.
    pub name: &'static str,
    /// The program, by its absolute path.
    pub path: PathBuf,
    /// Its arguments, the first of which is the program's own name. The container's name is added as the last.
    pub args: Vec<String>,
    /// After how many seconds the runtime ends it.
    pub timeout_seconds: Option<u32>,
}
