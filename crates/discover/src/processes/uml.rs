//! User-mode Linux with a vhost-user vsock device. It is several processes, which have one command line.

use std::time::Instant;

use super::description::Description;
use super::process::Process;
use crate::machine::Reach;

/// The parameter of the kernel, and the virtio id of a vsock device after the socket's path.
const PARAMETER: &str = "virtio_uml.device=";
const SUFFIX: &str = ":19";

pub fn describe(process: &Process, _deadline: Instant) -> Option<Description> {
    let reach: Vec<Reach> = process
        .arguments
        .iter()
        .filter_map(|word| {
            let value = word.strip_prefix(PARAMETER)?.trim_matches('"');
            let socket = process.path(value.strip_suffix(SUFFIX)?);
            Some(Reach::VhostUser { socket })
        })
        .collect();
    if reach.is_empty() || !process.program.starts_with("linux") {
        return None;
    }
    let name = process
        .arguments
        .iter()
        .find_map(|word| word.strip_prefix("umid="));
    Some(Description {
        name: name.map(str::to_owned),
        reach,
        ..Description::default()
    })
}
