//! Cloud Hypervisor. Its vsock device is on its command line or set over its API, which also has the state.
//! Source: its `vmm/src/api/openapi/cloud-hypervisor.yaml` (`/vm.info`) and `vmm/src/config.rs`.

use std::time::{Duration, Instant};

use serde_json::Value;

use super::description::Description;
use super::options::{value, value_or_first};
use super::process::Process;
use crate::http;
use crate::machine::{HybridStyle, Reach, State};

/// The time that one VMM may take to answer.
const LIMIT: Duration = Duration::from_millis(500);

pub fn describe(process: &Process, deadline: Instant) -> Option<Description> {
    if process.program != "cloud-hypervisor" {
        return None;
    }
    let deadline = deadline.min(Instant::now() + LIMIT);
    let info = process
        .option(&["--api-socket"])
        .and_then(|option| value_or_first(option, "path"))
        .and_then(|path| process.own_socket(&path))
        .and_then(|socket| http::get(&socket, "/api/v1/vm.info", deadline).ok());
    let (state, reach) = match &info {
        Some(info) => (info["state"].as_str(), configured(process, &info["config"])),
        None => (None, on_command_line(process)),
    };
    Some(Description {
        name: None,
        uuid: None,
        state: state.map(|state| match state {
            "Running" => State::Running,
            "Paused" => State::Paused,
            "Created" | "Shutdown" => State::Off,
            _ => State::Unknown,
        }),
        reach,
    })
}

fn hybrid(process: &Process, path: &str) -> Reach {
    Reach::Hybrid {
        path: process.path(path),
        style: HybridStyle::CloudHypervisor,
    }
}

fn vhost_user(process: &Process, path: &str) -> Reach {
    let socket = process.path(path);
    Reach::VhostUser { socket }
}

fn configured(process: &Process, config: &Value) -> Vec<Reach> {
    let own = config["vsock"]["socket"].as_str();
    let devices = config["generic_vhost_user"].as_array();
    let ours = devices.into_iter().flatten().filter_map(|device| {
        let kind = device
            .get("device_type")
            .or_else(|| device.get("virtio_id"))?;
        device["socket"].as_str().filter(|_| *kind == 19)
    });
    own.map(|path| hybrid(process, path))
        .into_iter()
        .chain(ours.map(|path| vhost_user(process, path)))
        .collect()
}

fn on_command_line(process: &Process) -> Vec<Reach> {
    let own = process
        .option(&["--vsock"])
        .and_then(|option| value(option, "socket"))
        .map(|path| hybrid(process, &path));
    let ours = process
        .options(&["--generic-vhost-user"])
        .filter_map(|option| {
            let kind = value(option, "device_type").or_else(|| value(option, "virtio_id"))?;
            let is_vsock = kind == "19" || kind == "vsock";
            // The path may be in quotes.
            let path = value(option, "socket").filter(|_| is_vsock)?;
            Some(vhost_user(process, path.trim_matches('"')))
        });
    own.into_iter().chain(ours).collect()
}
