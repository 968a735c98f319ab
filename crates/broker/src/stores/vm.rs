//! The settings of a VM, with what the machine knows of them.

use std::path::{Component, Path, PathBuf};

use hvsock_control::{LinkSpec, VmSpec};
use hvsock_virtio::GuestCid;

/// The settings that only VMs have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct VmEntry {
    /// As an operator gave them, with the CID that the VM has.
    pub(crate) spec: VmSpec,
    pub(crate) cid: Option<GuestCid>,
    /// The user that the VMM runs as, if not the broker's.
    pub(crate) user: Option<VmmUser>,
}

/// The user that a VMM runs as.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct VmmUser {
    /// The name or number as the operator wrote it.
    pub(crate) name: String,
    pub(crate) uid: u32,
}

/// Among which VMs a CID is unique.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum CidSpace {
    /// Those that the broker gives their CIDs.
    Broker,
    /// Those of the kernel, in one network namespace; `None` for the broker's.
    Kernel(Option<PathBuf>),
}

impl CidSpace {
    /// What to do about a CID that is taken, as a clause.
    pub(crate) fn advice(&self) -> &'static str {
        match self {
            Self::Broker => "choose another, or let the broker choose",
            Self::Kernel(_) => {
                "give the CID that the VMM has given this VM, or remove the other one"
            }
        }
    }
}

/// A CID with the VMs among which it is unique.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct CidKey {
    pub(crate) space: CidSpace,
    pub(crate) cid: GuestCid,
}

impl VmEntry {
    /// Settings with a given CID. `user` is the one that [`VmmUser::find`] found for `spec`.
    pub(crate) fn new(spec: VmSpec, cid: Option<GuestCid>, user: Option<VmmUser>) -> Self {
        let cid_number = cid.map(GuestCid::get);
        Self {
            spec: VmSpec {
                cid: cid_number,
                ..spec
            },
            cid,
            user,
        }
    }

    /// Its CID, if it has one, and among which VMs it is unique.
    pub(crate) fn cid_key(&self) -> Option<CidKey> {
        let space = cid_space(&self.spec.link)?;
        self.cid.map(|cid| CidKey { space, cid })
    }
}

/// Among which VMs the CID of a VM with this link is unique. `None` if its VMM alone uses the number.
pub(crate) fn cid_space(link: &LinkSpec) -> Option<CidSpace> {
    match link {
        LinkSpec::VhostUser => Some(CidSpace::Broker),
        LinkSpec::Hybrid { .. } => None,
        LinkSpec::Kernel { netns, .. } => Some(CidSpace::Kernel(netns.clone())),
    }
}

/// The path of the VMM's socket of a VM with this link, in the one spelling that it has without symbolic links, which
/// a hybrid link does not follow. Two VMs with one path would be the same guest.
pub(crate) fn hybrid_path(link: &LinkSpec) -> Option<PathBuf> {
    let LinkSpec::Hybrid { path, .. } = link else {
        return None;
    };
    let mut plain = PathBuf::new();
    for component in path.components() {
        match component {
            Component::CurDir => {}
            Component::ParentDir => {
                plain.pop();
            }
            other => plain.push(other),
        }
    }
    Some(plain)
}

/// Checks the settings that types alone do not rule out, except for the CID that a vhost-user device
/// may lack until the broker gives it one.
pub(crate) fn check_spec(spec: &VmSpec) -> Result<(), String> {
    let (what, path) = match &spec.link {
        LinkSpec::VhostUser => return Ok(()),
        LinkSpec::Hybrid { path, .. } => ("the path of hybrid sockets", Some(path)),
        LinkSpec::Kernel { netns, .. } => ("the path of a network namespace", netns.as_ref()),
    };
    if spec.unsealed_memory {
        return Err("`unsealed_memory` is for a vhost-user device".into());
    }
    if path.is_some_and(|path| !path.is_absolute()) {
        return Err(format!("{what} must be absolute"));
    }
    if let Some(path) = path {
        check_characters(path).map_err(|why| format!("{what} {why}"))?;
    }
    match &spec.link {
        LinkSpec::Hybrid { path, .. } if !names_a_file(path) => {
            Err(format!("{what} must name a socket, not a folder"))
        }
        LinkSpec::Kernel { .. } if spec.cid.is_none() => {
            Err("a kernel link needs the CID that the VMM has given the VM".into())
        }
        LinkSpec::Kernel { .. } if spec.user.is_some() => {
            Err("`user` has no meaning with a kernel link: the kernel names no VMM".into())
        }
        _ => Ok(()),
    }
}

/// Operators, logs and VMMs show and take paths as lines.
fn check_characters(path: &Path) -> Result<(), &'static str> {
    match path.to_str() {
        None => Err("must be UTF-8"),
        Some(text) if text.chars().any(char::is_control) => Err("must not have control characters"),
        Some(_) => Ok(()),
    }
}

/// Whether a path ends with a name. [`Path::file_name`] ignores a slash or `.` at the end.
fn names_a_file(path: &Path) -> bool {
    let name = path.as_os_str().as_encoded_bytes();
    let name = name.rsplit(|byte| *byte == b'/').next().unwrap_or_default();
    !matches!(name, b"" | b"." | b"..")
}

impl VmmUser {
    /// Looks up a user by name or number.
    pub(crate) fn find(name: String) -> Result<Self, String> {
        match hvsock_sys::accounts::uid(&name) {
            Some(uid) => Ok(Self { name, uid }),
            None => Err(format!("this machine has no user `{name}`")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hybrid(path: &str) -> Result<(), String> {
        check_spec(&VmSpec {
            link: LinkSpec::Hybrid {
                path: path.into(),
                style: hvsock_control::HybridStyle::default(),
            },
            ..VmSpec::default()
        })
    }

    #[test]
    fn a_hybrid_path_that_can_be_no_socket_is_refused() {
        for path in ["/run/v.sock/", "/run/v.sock/.", "/run/..", "/", "/run/v//"] {
            let error = hybrid(path).unwrap_err();
            assert!(
                error.ends_with("must name a socket, not a folder"),
                "{path}: {error}"
            );
        }
        for path in [
            "/run/a\nb",
            "/run/\u{1b}[2J",
            "/run/\u{9b}x",
            "/run/\tv",
            "/\u{7f}/v",
        ] {
            let error = hybrid(path).unwrap_err();
            assert!(error.ends_with("control characters"), "{path:?}: {error}");
        }
        for path in [
            "/run/v.sock",
            "/run/a b/ü.sock",
            "/run/.hidden",
            "/run/...",
            "/run//v",
        ] {
            assert_eq!(hybrid(path), Ok(()), "{path}");
        }
    }
}
