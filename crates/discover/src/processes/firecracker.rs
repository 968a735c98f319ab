//! Firecracker. Its vsock device is in its configuration: in a file, or set over its API, which also has the
//! state. Source: its `src/firecracker/swagger/firecracker.yaml` (`/`, `/vm/config`).

use std::time::{Duration, Instant};

use serde_json::Value;

use super::description::Description;
use super::process::Process;
use crate::http;
use crate::machine::{HybridStyle, Reach, State};

/// The time that one VMM may take to answer.
const LIMIT: Duration = Duration::from_millis(500);

pub fn describe(process: &Process, deadline: Instant) -> Option<Description> {
    if process.program != "firecracker" {
        return None;
    }
    let socket = process
        .option(&["--api-sock"])
        .unwrap_or("/run/firecracker.socket");
    let socket = process.own_socket(socket);
    let get = |target| {
        let deadline = deadline.min(Instant::now() + LIMIT);
        http::get(socket.as_ref()?, target, deadline).ok()
    };
    let info = get("/");
    let state = info.as_ref().and_then(|info| info["state"].as_str());
    let file = || {
        let file = process.file(process.option(&["--config-file"])?)?;
        serde_json::from_slice::<Value>(&file).ok()
    };
    let vsock = |config: Value| config["vsock"]["uds_path"].as_str().map(str::to_owned);
    let path = info
        .as_ref()
        .and_then(|_| get("/vm/config"))
        .and_then(vsock)
        .or_else(|| file().and_then(vsock));
    Some(Description {
        name: process.option(&["--id"]).map(str::to_owned),
        uuid: None,
        state: state.map(|state| match state {
            "Running" => State::Running,
            "Paused" => State::Paused,
            "Not started" => State::Off,
            _ => State::Unknown,
        }),
        reach: path
            .map(|path| Reach::Hybrid {
                path: process.path(&path),
                style: HybridStyle::Firecracker,
            })
            .into_iter()
            .collect(),
    })
}
