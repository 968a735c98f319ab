//! The OCI configuration of the tests' containers.

use std::path::Path;

use serde_json::{Value, json};

/// What a container runs.
#[derive(Debug)]
pub(crate) struct Configuration<'a> {
    /// The program and its arguments.
    pub args: &'a [&'a str],
    pub environment: &'a [String],
    pub rootfs: &'a Path,
    pub hostname: &'a str,
    /// The mounts besides `/proc`, `/dev`, `/run` and `/tmp`.
    pub mounts: &'a [Value],
    /// The capabilities of its processes.
    pub capabilities: &'a [&'a str],
    /// The limit on descriptors (`RLIMIT_NOFILE`).
    pub descriptors: u64,
    /// The user and group outside of its user namespace whom its root is; `None` without such a namespace.
    pub mapped: Option<(u32, u32)>,
}

impl Configuration<'_> {
    /// The content of `config.json`.
    pub(crate) fn to_json(&self) -> Value {
        let mut mounts = vec![
            json!({"destination": "/proc", "type": "proc", "source": "proc"}),
            tmpfs("/dev", "dev"),
            tmpfs("/run", "nodev"),
            tmpfs("/tmp", "nodev"),
        ];
        mounts.extend(self.mounts.iter().cloned());
        let mut namespaces: Vec<Value> = ["pid", "mount", "network", "ipc", "uts"]
            .iter()
            .map(|kind| json!({"type": kind}))
            .collect();
        let mut linux = json!({
            "maskedPaths": ["/proc/kcore", "/proc/keys"],
            "readonlyPaths": ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys"],
        });
        if let Some((uid, gid)) = self.mapped {
            namespaces.push(json!({"type": "user"}));
            let map = |host: u32| json!([{"containerID": 0, "hostID": host, "size": 1}]);
            linux["uidMappings"] = map(uid);
            linux["gidMappings"] = map(gid);
        }
        linux["namespaces"] = namespaces.into();
        let capabilities = self.capabilities;
        json!({
            "ociVersion": "1.0.2",
            "process": {
                "terminal": false,
                "user": {"uid": 0, "gid": 0},
                "args": self.args,
                "env": self.environment,
                "cwd": "/",
                "capabilities": {
                    "bounding": capabilities,
                    "effective": capabilities,
                    "permitted": capabilities,
                },
                "rlimits": [
                    {"type": "RLIMIT_NOFILE", "hard": self.descriptors, "soft": self.descriptors},
                    {"type": "RLIMIT_CORE", "hard": 0, "soft": 0},
                ],
                "noNewPrivileges": true,
            },
            "root": {"path": self.rootfs, "readonly": true},
            "hostname": self.hostname,
            "mounts": mounts,
            "linux": linux,
        })
    }
}

fn tmpfs(destination: &str, devices: &str) -> Value {
    json!({
        "destination": destination,
        "type": "tmpfs",
        "source": "tmpfs",
        "options": ["nosuid", devices, "mode=755", "size=1m"],
    })
}

/// The entry of `mounts` that shows a folder of the host in a container.
pub(crate) fn bind(folder: &Path, inside: &str, access: &str) -> Value {
    json!({
        "destination": inside,
        "type": "bind",
        "source": folder,
        "options": ["rbind", access],
    })
}
