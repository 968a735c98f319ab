//! OpenVMM. Source: its `Guide/src/reference/openvmm/management/cli.md`.

use std::time::Instant;

use super::description::Description;
use super::options::{cid, split, value};
use super::process::Process;
use crate::machine::{HybridStyle, Reach};

pub fn describe(process: &Process, _deadline: Instant) -> Option<Description> {
    if process.program != "openvmm" {
        return None;
    }
    let hybrid = process
        .options(&["--virtio-vsock-path", "--vmbus-vsock-path"])
        .map(|path| Reach::Hybrid {
            path: process.path(path),
            style: HybridStyle::OpenVmm,
        });
    let kernel = process.option(&["--virtio-vsock-vhost-cid"]).and_then(cid);
    let kernel = kernel.map(|cid| Reach::Kernel {
        cid,
        netns: process.netns(),
    });
    let ours = process.options(&["--vhost-user"]).filter_map(|option| {
        let is_vsock = value(option, "device_id").as_deref() == Some("19");
        let path = split(option).into_iter().next().filter(|_| is_vsock)?;
        let socket = process.path(&path);
        Some(Reach::VhostUser { socket })
    });
    Some(Description {
        reach: hybrid.chain(kernel).chain(ours).collect(),
        ..Description::default()
    })
}
