//! How a VM's connections reach its guest.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// How a VM's connections reach its guest.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum LinkSpec {
    /// By the broker's own vhost-user device, to whose socket the VMM connects.
    #[default]
    VhostUser,
    /// By Unix sockets of the VMM, as Firecracker has them.
    Hybrid {
        /// The path of the VMM's socket. That of a port that the guest connects to is this path, an
        /// underscore and the port.
        #[cfg_attr(feature = "openapi", schema(value_type = String))]
        path: PathBuf,
        /// Whose manner the sockets have.
        #[serde(default)]
        style: HybridStyle,
    },
    /// By the kernel's vhost-vsock. The VM has the CID that its VMM has given it.
    Kernel {
        /// The network namespace of the VMM, as a path, if not the broker's.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        #[cfg_attr(feature = "openapi", schema(value_type = Option<String>))]
        netns: Option<PathBuf>,
        /// The program that manages the VM and knows its state.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        manager: Option<ManagerRef>,
    },
}

/// The manner of a VMM's hybrid sockets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "kebab-case")]
pub enum HybridStyle {
    /// Firecracker: a line `CONNECT <port>`, no half-close.
    #[default]
    Firecracker,
    /// Cloud Hypervisor, from version 53 on: as Firecracker, with half-close.
    CloudHypervisor,
    /// OpenVMM: a port or a GUID, with half-close.
    #[serde(rename = "openvmm")]
    OpenVmm,
    /// libkrun: a socket for each port, without a line.
    Libkrun,
}

/// A VM as the program that manages it knows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct ManagerRef {
    /// The manager: `libvirt`, `machined` or `incus`.
    pub manager: String,
    /// The VM's name there.
    pub vm: String,
}

impl LinkSpec {
    /// The kind in one word, as in JSON.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::VhostUser => "vhost-user",
            Self::Hybrid { .. } => "hybrid",
            Self::Kernel { .. } => "kernel",
        }
    }
}

impl HybridStyle {
    /// All styles.
    pub const ALL: [Self; 4] = [
        Self::Firecracker,
        Self::CloudHypervisor,
        Self::OpenVmm,
        Self::Libkrun,
    ];

    /// The style in one word, as in JSON.
    pub fn label(self) -> &'static str {
        match self {
            Self::Firecracker => "firecracker",
            Self::CloudHypervisor => "cloud-hypervisor",
            Self::OpenVmm => "openvmm",
            Self::Libkrun => "libkrun",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_words_of_a_link_are_those_of_its_json() {
        let link = |style| LinkSpec::Hybrid {
            path: "/run/vm.vsock".into(),
            style,
        };
        for style in HybridStyle::ALL {
            let json = serde_json::to_value(link(style)).unwrap();
            assert_eq!(json["kind"], link(style).kind());
            assert_eq!(json["style"], style.label());
            assert_eq!(
                serde_json::from_value::<LinkSpec>(json).unwrap(),
                link(style)
            );
        }
        let kernel = LinkSpec::Kernel {
            netns: None,
            manager: None,
        };
        for link in [LinkSpec::VhostUser, kernel] {
            let json = serde_json::to_value(&link).unwrap();
            assert_eq!(json, serde_json::json!({ "kind": link.kind() }));
            assert_eq!(serde_json::from_value::<LinkSpec>(json).unwrap(), link);
        }
    }
}
