//! crosvm. Source: its `src/crosvm/cmdline.rs` (`--vsock`, `--cid`, `--vhost-user`).

use std::time::Instant;

use super::description::Description;
use super::options::{cid, split, value, value_or_first};
use super::process::Process;
use crate::machine::Reach;

pub fn describe(process: &Process, _deadline: Instant) -> Option<Description> {
    let runs = process.arguments.iter().any(|word| word == "run");
    if process.program != "crosvm" || !runs {
        return None;
    }
    let kernel = process
        .option(&["--vsock", "--cid", "-c"])
        .and_then(|option| value_or_first(option, "cid"))
        .and_then(|text| cid(&text));
    let kernel = kernel.map(|cid| Reach::Kernel {
        cid,
        netns: process.netns(),
    });
    let ours = process.options(&["--vhost-user"]).filter_map(|option| {
        let is_vsock = value_or_first(option, "type").as_deref() == Some("vsock")
            || split(option).iter().any(|part| part == "vsock");
        let path = value(option, "socket").filter(|_| is_vsock)?;
        let socket = process.path(path.trim_matches('"'));
        Some(Reach::VhostUser { socket })
    });
    Some(Description {
        name: process.option(&["--name"]).map(str::to_owned),
        reach: kernel.into_iter().chain(ours).collect(),
        ..Description::default()
    })
}
