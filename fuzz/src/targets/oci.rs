//! What container runtimes send: the state that a hook gets, the message of a seccomp listener, and profiles.

use std::path::Path;

use hvsock_interpose::agent::{ContainerProcess, Form, Profile};

use crate::target::Seed;

#[path = "../../../crates/cli/src/os/linux/command/oci_hook/state.rs"]
mod state;

use state::State;

/// Reads the rest as what the first byte chooses.
pub(crate) fn run(bytes: &[u8]) {
    let Some((kind, bytes)) = bytes.split_first() else {
        return;
    };
    match kind % 4 {
        0 => {
            if let Ok(state) = State::parse(bytes) {
                let _ = (state.annotation("hvsock.dev/name"), state.pid, &state.id);
                let _ = state.root(|_| Ok(bytes.to_vec()));
            }
        }
        1 => {
            if let Ok(process) = ContainerProcess::parse(bytes) {
                assert!(process.pid != Some(0) && !process.container.contains('/'));
            }
        }
        kind => {
            let form = match kind {
                2 => Form::Engine,
                _ => Form::Runtime,
            };
            if let Ok(mut profile) = Profile::new(Some(bytes), form, Path::new("/agent"), "web") {
                profile.wait_killable();
                let text = profile.as_json().to_string();
                // It has an agent now.
                let again = Profile::new(Some(text.as_bytes()), form, Path::new("/agent"), "web");
                assert!(again.is_err(), "{text}");
            }
        }
    }
}

/// As runc and podman send them.
pub(crate) fn seeds() -> Vec<Seed> {
    let seed = |kind: u8, text: &str| [&[kind], text.as_bytes()].concat();
    super::named([
        (
            "state",
            seed(
                0,
                r#"{"ociVersion":"1.0.2-dev","id":"c1","status":"creating","pid":4711,"bundle":"/b","annotations":{"hvsock.dev/name":"web","hvsock.dev/groups":"a,b"}}"#,
            ),
        ),
        (
            "state-root",
            seed(0, r#"{"id":"c1","pid":0,"root":"/r","annotations":null}"#),
        ),
        (
            "configuration",
            seed(0, r#"{"id":"c1","bundle":"/b","root":{"path":"rootfs"}}"#),
        ),
        (
            "listener",
            seed(
                1,
                r#"{"ociVersion":"1.0.2-dev","fds":["seccompFd"],"pid":4711,"metadata":"web","state":{"ociVersion":"1.0.2-dev","id":"c1","status":"creating","pid":4700,"bundle":"/b","annotations":{"a":"b"}}}"#,
            ),
        ),
        (
            "engine",
            seed(
                2,
                r#"{"defaultAction":"SCMP_ACT_ERRNO","defaultErrnoRet":38,"archMap":[{"architecture":"SCMP_ARCH_X86_64","subArchitectures":["SCMP_ARCH_X86"]}],"syscalls":[{"names":["socket","bind"],"action":"SCMP_ACT_ALLOW","args":[{"index":0,"value":40,"valueTwo":0,"op":"SCMP_CMP_NE"}],"excludes":{"caps":["CAP_AUDIT_WRITE"]}},{"names":["connect"],"action":"SCMP_ACT_ALLOW"}]}"#,
            ),
        ),
        (
            "runtime",
            seed(
                3,
                r#"{"linux":{"seccomp":{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["ioctl"],"action":"SCMP_ACT_ERRNO","errnoRet":1,"args":[{"index":1,"value":21522,"op":"SCMP_CMP_EQ"}]},{"names":["socket"],"action":"SCMP_ACT_ERRNO","args":[{"index":0,"value":4294967295,"valueTwo":40,"op":"SCMP_CMP_MASKED_EQ"}]}]}}}"#,
            ),
        ),
        ("no-profile", seed(3, r#"{"linux":{}}"#)),
    ])
}
