//! What a broker cannot do as it should.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::FixReport;

/// Something that the broker cannot do as it should. The broker tries it again until it can, and then
/// the problem is gone.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Problem {
    /// Its kind.
    pub kind: ProblemKind,
    /// The file, folder or partition that it concerns; empty if it concerns none.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub object: String,
    /// The problem as one sentence.
    pub text: String,
    /// Seconds since the broker noticed it.
    pub age_seconds: f64,
    /// What removes its cause, if that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fix: Option<FixReport>,
}

/// The kinds of problem. The metric `hvsock_problems` counts each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum ProblemKind {
    /// A configuration file cannot be read. Its last good content is in force.
    ConfigFile,
    /// A configuration file can be read, but what it says cannot be put in force.
    ConfigRefused,
    /// Changes of configuration files are found late, because the system does not report them.
    ConfigWatch,
    /// Users who may use the broker cannot reach it, because of a folder's mode.
    FolderMode,
    /// The process has too few descriptors: clients wait or are refused.
    Descriptors,
    /// Clients cannot connect to the control API.
    ControlSocket,
    /// The broker does not have the host's vsock port of a service, so the guests of the kernel's vsock do not
    /// reach it.
    VsockPort,
    /// The sockets of a VM's VMM, or the host's for it, cannot be used.
    VmLink,
    /// The CDI device of a container cannot be written, so engines do not find it.
    CdiDevice,
    /// A container runs with a mount that leads to a removed folder, so it does not reach the broker.
    StaleMount,
    /// There is no uplink to the host of this virtual machine.
    Uplink,
    /// A thread of the broker hangs.
    StuckThread,
    /// There are more problems than are listed.
    More,
    /// A kind that this version does not know.
    #[serde(other)]
    Unknown,
}

impl ProblemKind {
    /// The label of the kind in JSON and metrics.
    pub fn label(self) -> &'static str {
        match self {
            Self::ConfigFile => "config_file",
            Self::ConfigRefused => "config_refused",
            Self::ConfigWatch => "config_watch",
            Self::FolderMode => "folder_mode",
            Self::Descriptors => "descriptors",
            Self::ControlSocket => "control_socket",
            Self::VsockPort => "vsock_port",
            Self::VmLink => "vm_link",
            Self::CdiDevice => "cdi_device",
            Self::StaleMount => "stale_mount",
            Self::Uplink => "uplink",
            Self::StuckThread => "stuck_thread",
            Self::More => "more",
            Self::Unknown => "unknown",
        }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kind_of_a_later_version_is_unknown_and_every_label_is_that_of_json() {
        let read = serde_json::from_str::<ProblemKind>("\"of_a_later_version\"");
        assert_eq!(read.unwrap(), ProblemKind::Unknown);
        for kind in [
            ProblemKind::ConfigFile,
            ProblemKind::ConfigRefused,
            ProblemKind::ConfigWatch,
            ProblemKind::FolderMode,
            ProblemKind::Descriptors,
            ProblemKind::ControlSocket,
            ProblemKind::VsockPort,
            ProblemKind::VmLink,
            ProblemKind::CdiDevice,
            ProblemKind::StaleMount,
            ProblemKind::Uplink,
            ProblemKind::StuckThread,
            ProblemKind::More,
        ] {
            let text = serde_json::to_string(&kind).unwrap();
            assert_eq!(text, format!("\"{}\"", kind.label()));
        }
    }
}
