//! The Linux half, which can also start containers, guests and Wine.

pub mod c;
pub mod container;
pub mod go;
pub mod guest;
#[cfg(feature = "nested")]
pub mod nested;
pub mod nri;
mod oci;
#[cfg(feature = "world")]
pub mod peer;
pub mod podman;
pub mod programs;
pub(crate) mod temp;
#[cfg(feature = "world")]
pub mod uplink;
pub mod usage;
pub mod wine;
#[cfg(feature = "world")]
pub mod world;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Raises the soft limit on descriptors to the hard one: many connections exceed the usual 1024.
pub(crate) fn raise_descriptor_limit() {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        maximum: limit.maximum,
    };
    // If this fails, the cases that need more descriptors report it.
    let _ = setrlimit(Resource::Nofile, raised);
}
