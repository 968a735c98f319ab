//! The description of one device: its names, its text, and whose it is. Pure.
//!
//! The fields are those of version 0.5.0 of the CDI specification, the lowest that allows names which begin with a
//! digit: readers refuse a version that they do not know, and fields of a later one. So there is no
//! annotation (0.6.0) that says whose a file is; the folder that it mounts does.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::CdiHook;

/// The vendor and class of the devices.
const KIND: &str = "hvsock.dev/endpoint";
/// The version of the specification.
const VERSION: &str = "0.5.0";
/// Where the endpoint's folder is in a container.
const INSIDE: &str = "/run/hvsock";
/// What file names begin and end with.
const PREFIX: &str = "hvsock.dev-endpoint_";
const SUFFIX: &str = ".json";

/// The qualified name of a container's device.
pub(super) fn qualified(container: &str) -> String {
    format!("{KIND}={container}")
}

/// Whether a device can have the name of this container: it must end with a letter or digit. All other rules
/// are those of partition names, too.
pub(crate) fn has_device(container: &str) -> bool {
    let last = container.chars().next_back();
    last.is_some_and(|last| last.is_ascii_alphanumeric())
}

/// The file of a container's device.
pub(super) fn file_name(container: &str) -> String {
    format!("{PREFIX}{container}{SUFFIX}")
}

/// The container of a file with this name.
pub(super) fn container_of(file_name: &str) -> Option<&str> {
    file_name.strip_prefix(PREFIX)?.strip_suffix(SUFFIX)
}

/// The text of the file. The device mounts `folder`, the endpoint's: the folder stays when the broker opens
/// another socket in it.
///
/// A process can connect to a socket in a read-only mount.
pub(super) fn text(container: &str, folder: &str, hooks: &[CdiHook]) -> String {
    let hooks = hooks.iter().filter_map(|hook| {
        let mut args = hook.args.clone();
        args.push(container.to_owned());
        Some(Hook {
            hook_name: hook.name,
            path: hook.path.to_str()?,
            args,
            timeout: hook.timeout_seconds,
        })
    });
    let spec = Spec {
        cdi_version: VERSION,
        kind: KIND,
        devices: [Device {
            name: container,
            container_edits: Edits {
                mounts: [Mount {
                    host_path: folder,
                    container_path: INSIDE,
                    options: ["bind", "ro", "nosuid", "nodev", "noexec"],
                }],
                hooks: hooks.collect(),
            },
        }],
    };
    // Strings and numbers can always be represented.
    let mut text = serde_json::to_string_pretty(&spec).unwrap_or_default();
    text.push('\n');
    text
}

/// The folder that the endpoint device in this file mounts. `None` if no broker of this project has written
/// the file.
pub(super) fn folder_in(text: &[u8]) -> Option<PathBuf> {
    let read: ReadSpec = serde_json::from_slice(text).ok()?;
    let [device] = <[ReadDevice; 1]>::try_from(read.devices).ok()?;
    let [mount] = <[ReadMount; 1]>::try_from(device.container_edits.mounts).ok()?;
    let is_endpoint = read.kind == KIND && mount.container_path == INSIDE;
    is_endpoint.then(|| mount.host_path.into())
}

/// The folder of the broker whose container has this folder.
pub(super) fn broker_of(folder: &Path) -> Option<&Path> {
    let containers = folder.parent()?;
    let run = containers.parent()?;
    (containers.file_name()? == "containers").then_some(run)
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Spec<'a> {
    cdi_version: &'a str,
    kind: &'a str,
    devices: [Device<'a>; 1],
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Device<'a> {
    name: &'a str,
    container_edits: Edits<'a>,
}

#[derive(Serialize)]
struct Edits<'a> {
    mounts: [Mount<'a>; 1],
    #[serde(skip_serializing_if = "Vec::is_empty")]
    hooks: Vec<Hook<'a>>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Mount<'a> {
    host_path: &'a str,
    container_path: &'a str,
    options: [&'a str; 5],
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Hook<'a> {
    hook_name: &'a str,
    path: &'a str,
    args: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    timeout: Option<u32>,
}

#[derive(Deserialize)]
struct ReadSpec {
    kind: String,
    devices: Vec<ReadDevice>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ReadDevice {
    container_edits: ReadEdits,
}

#[derive(Deserialize)]
struct ReadEdits {
    mounts: Vec<ReadMount>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ReadMount {
    host_path: String,
    container_path: String,
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn a_device_mounts_the_folder_read_only_and_runs_its_hooks_with_the_containers_name() {
        let hook = CdiHook {
            name: "createRuntime",
            path: "/usr/bin/hvsock".into(),
            args: vec!["hvsock".to_owned(), "hook".to_owned()],
            timeout_seconds: Some(5),
        };
        let text = text("1.web", "/run/a \"b\"\\/containers/1.web", &[hook]);
        let read: Value = serde_json::from_str(&text).unwrap();
        let want = json!({
            "cdiVersion": "0.5.0",
            "kind": "hvsock.dev/endpoint",
            "devices": [{
                "name": "1.web",
                "containerEdits": {
                    "mounts": [{
                        "hostPath": "/run/a \"b\"\\/containers/1.web",
                        "containerPath": "/run/hvsock",
                        "options": ["bind", "ro", "nosuid", "nodev", "noexec"],
                    }],
                    "hooks": [{
                        "hookName": "createRuntime",
                        "path": "/usr/bin/hvsock",
                        "args": ["hvsock", "hook", "1.web"],
                        "timeout": 5,
                    }],
                },
            }],
        });
        assert_eq!(read, want);
    }

    #[test]
    fn a_device_without_hooks_sets_nothing_but_the_mount() {
        let read: Value = serde_json::from_str(&text("web", "/x", &[])).unwrap();
        let edits = &read["devices"][0]["containerEdits"];
        let keys: Vec<_> = edits.as_object().unwrap().keys().collect();
        assert_eq!(keys, ["mounts"]);
    }

    #[test]
    fn the_broker_of_a_file_is_read_from_the_folder_that_it_mounts() {
        for path in [
            "/run/hvsock/containers/web",
            "/a b,\"c\"/\u{e9}/containers/web",
        ] {
            let folder = folder_in(text("web", path, &[]).as_bytes()).unwrap();
            assert_eq!(folder, Path::new(path));
            let run = path.strip_suffix("/containers/web").unwrap();
            assert_eq!(broker_of(&folder), Some(Path::new(run)));
        }
        assert_eq!(broker_of(Path::new("/srv/endpoint")), None);
        let own = text("web", "/run/hvsock/containers/web", &[]);
        for foreign in [
            "",
            "{}",
            "[1]",
            "cdiVersion: 0.5.0\nkind: nvidia.com/gpu\n",
            &own.replace("hvsock.dev/endpoint", "nvidia.com/gpu"),
            &own.replace("/run/hvsock\"", "/run/other\""),
            &own.replace(
                "\"devices\": [",
                "\"devices\": [{\"name\": \"a\", \"containerEdits\": {\"mounts\": []}},",
            ),
        ] {
            assert_eq!(folder_in(foreign.as_bytes()), None, "{foreign}");
        }
    }

    #[test]
    fn a_file_is_named_after_its_container() {
        assert_eq!(file_name("a_b.c"), "hvsock.dev-endpoint_a_b.c.json");
        assert_eq!(
            container_of("hvsock.dev-endpoint_a_b.c.json"),
            Some("a_b.c")
        );
        for other in [
            "hvsock.dev-endpoint_web.yaml",
            "nvidia.json",
            ".hvsock-tmp-1-2",
        ] {
            assert_eq!(container_of(other), None, "{other}");
        }
        assert_eq!(qualified("web"), "hvsock.dev/endpoint=web");
    }

    #[test]
    fn a_name_that_ends_with_punctuation_has_no_device() {
        let names = ["web", "1", "a-", "a.", "a_", "a-1"];
        let have: Vec<_> = names.into_iter().filter(|name| has_device(name)).collect();
        assert_eq!(have, ["web", "1", "a-1"]);
    }
}
