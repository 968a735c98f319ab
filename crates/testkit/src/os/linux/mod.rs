//! Linux, where tests also start containers, guests and Wine.

pub mod container;
pub mod guest;
pub(crate) mod temp;
pub mod wine;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Many connections in one process need more descriptors than the usual soft limit of 1024.
pub(crate) fn raise_descriptor_limit() {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        maximum: limit.maximum,
    };
    // If it may not be raised, the cases that need more say so.
    let _ = setrlimit(Resource::Nofile, raised);
}
