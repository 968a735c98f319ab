//! What a runtime sends to the agent: the `ContainerProcessState` of the OCI runtime specification.
//!
//! It is one JSON object, sent in one or more parts on a stream and ended by its end. The listener is attached to its
//! first byte.

use serde::Deserialize;
use thiserror::Error;

/// The most bytes of a message. The annotations of the container are a part of it.
pub const MAX_MESSAGE: usize = 1024 * 1024;

/// The longest id of a container that is believed: paths have no longer name.
const MAX_ID: usize = 255;

/// Who is under the filter whose listener came with the message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContainerProcess {
    /// What the profile says for the agent (`listenerMetadata`).
    pub metadata: String,
    /// The process, as a number of the runtime's PID namespace: the container's first, or one that was started
    /// in it later, of which crun 1.8 does not tell the number.
    pub pid: Option<u32>,
    /// The container's id.
    pub container: String,
    /// The container's first process, if it exists.
    pub container_pid: Option<u32>,
}

/// Why a message is none.
#[derive(Debug, Error)]
pub enum MessageError {
    /// It is not JSON, or lacks a field.
    #[error("it is not a ContainerProcessState")]
    NotAState(#[from] serde_json::Error),
    /// Another descriptor, or none, was sent.
    #[error("its first descriptor is not `seccompFd`")]
    NoListener,
    /// No process has this number, or no container this id.
    #[error("its {0} is out of range")]
    OutOfRange(&'static str),
}

#[derive(Deserialize)]
struct ProcessState {
    fds: Vec<String>,
    pid: i64,
    #[serde(default)]
    metadata: String,
    state: State,
}

#[derive(Deserialize)]
struct State {
    id: String,
    #[serde(default)]
    pid: i64,
}

impl ContainerProcess {
    /// Reads a whole message.
    ///
    /// # Errors
    ///
    /// See [`MessageError`].
    pub fn parse(bytes: &[u8]) -> Result<Self, MessageError> {
        let message: ProcessState = serde_json::from_slice(bytes)?;
        if message.fds.first().is_none_or(|name| name != "seccompFd") {
            return Err(MessageError::NoListener);
        }
        let pid = |pid: i64| match i32::try_from(pid) {
            Ok(0) => Ok(None),
            Ok(pid @ 1..) => Ok(Some(pid.unsigned_abs())),
            _ => Err(MessageError::OutOfRange("process id")),
        };
        let id = message.state.id;
        if id.is_empty() || id.len() > MAX_ID || id.contains(['/', '\0']) {
            return Err(MessageError::OutOfRange("container id"));
        }
        Ok(Self {
            metadata: message.metadata,
            pid: pid(message.pid)?,
            container: id,
            container_pid: pid(message.state.pid)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BY_RUNC: &str = r#"{"ociVersion":"1.0.2-dev","fds":["seccompFd"],"pid":4711,"metadata":"web",
        "state":{"ociVersion":"1.0.2-dev","id":"c1","status":"creating","pid":4700,"bundle":"/b","annotations":{"a":"b"}}}"#;

    #[test]
    fn the_message_of_runc_names_the_container_and_its_process() {
        let message = ContainerProcess::parse(BY_RUNC.as_bytes()).unwrap();
        let expected = ContainerProcess {
            metadata: "web".to_owned(),
            pid: Some(4711),
            container: "c1".to_owned(),
            container_pid: Some(4700),
        };
        assert_eq!(message, expected);
    }

    #[test]
    fn the_message_of_crun_for_a_process_that_is_started_later_names_the_container_only() {
        const BY_CRUN: &str = r#"{"ociVersion": "0.2.0", "fds": ["seccompFd"], "pid": 0, "metadata": "web",
            "state": {"ociVersion": "0.2.0", "id": "c1", "status": "running", "pid": 0, "bundle": "."}}"#;
        let message = ContainerProcess::parse(BY_CRUN.as_bytes()).unwrap();
        assert_eq!((message.pid, message.container_pid), (None, None));
        assert_eq!((&*message.metadata, &*message.container), ("web", "c1"));
    }

    #[test]
    fn what_is_no_message_of_a_runtime_is_an_error() {
        let odd = [
            (
                "\"seccompFd\"",
                "\"other\"",
                "its first descriptor is not `seccompFd`",
            ),
            (
                "[\"seccompFd\"]",
                "[]",
                "its first descriptor is not `seccompFd`",
            ),
            ("[\"seccompFd\"]", "7", "it is not a ContainerProcessState"),
            ("4711", "-1", "its process id is out of range"),
            ("4711", "4294967296", "its process id is out of range"),
            ("4711", "1e99", "it is not a ContainerProcessState"),
            ("4700", "-7", "its process id is out of range"),
            ("\"c1\"", "\"\"", "its container id is out of range"),
            ("\"c1\"", "\"../c1\"", "its container id is out of range"),
            ("\"c1\"", "\"c\\u0000\"", "its container id is out of range"),
            ("\"web\"", "7", "it is not a ContainerProcessState"),
            ("\"state\"", "\"stat\"", "it is not a ContainerProcessState"),
        ];
        for (from, to, error) in odd {
            let text = BY_RUNC.replacen(from, to, 1);
            assert_ne!(text, BY_RUNC);
            let found = ContainerProcess::parse(text.as_bytes()).unwrap_err();
            assert!(found.to_string().starts_with(error), "{to}: {found}");
        }
        let long = BY_RUNC.replace("c1", &"c".repeat(256));
        assert!(ContainerProcess::parse(long.as_bytes()).is_err());
        // Nesting without end exhausts no stack.
        let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
        assert!(ContainerProcess::parse(deep.as_bytes()).is_err());
        for length in 0..BY_RUNC.len() {
            assert!(ContainerProcess::parse(&BY_RUNC.as_bytes()[..length]).is_err());
        }
    }
}
