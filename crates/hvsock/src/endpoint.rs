//! Which broker is asked.

use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};

use hvsock_address::{ElementName, PartitionName, ServiceId, VmId};
use hvsock_endpoint::Dirs;

use crate::backend;

/// Where the broker is: the endpoint sockets to try, first to last. Or that there is none, and the
/// kernel's `AF_VSOCK` leads to the host of this virtual machine: see
/// [the crate](crate#in-a-virtual-machine).
///
/// Everything in this crate that takes no endpoint uses [`Endpoint::from_env`].
///
/// ```
/// use hvsock::Endpoint;
///
/// let endpoint = Endpoint::in_dir("/tmp/demo");
/// assert!(endpoint.paths()[0].ends_with("demo/endpoint"));
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    paths: Vec<PathBuf>,
    vsock: UseVsock,
}

/// When the kernel's `AF_VSOCK` takes the place of a broker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum UseVsock {
    Never,
    /// If there is no endpoint socket at all, and this is a virtual machine.
    WithoutBroker,
    Always,
}

/// What `HVSOCK_ENDPOINT` says where it means `AF_VSOCK` and no socket's path.
const VSOCK: &str = "vsock";

impl Endpoint {
    /// What the environment says: the socket that `HVSOCK_ENDPOINT` names; else the one in the
    /// folder that `HVSOCK_DIR` names; else that of the user's own broker
    /// (`$XDG_RUNTIME_DIR/hvsock/endpoint`) where one runs, and the machine's
    /// (`/run/hvsock/endpoint`), which is also where a container has its own. Where neither
    /// variable is set and none of these sockets exists, a virtual machine that has `/dev/vsock`
    /// uses that. `HVSOCK_ENDPOINT=vsock` asks for it in any case (a socket of that name is
    /// `./vsock`).
    pub fn from_env() -> Self {
        Self::from_vars(|name| std::env::var_os(name).filter(|value| !value.is_empty()))
    }

    fn from_vars(env: impl Fn(&str) -> Option<OsString>) -> Self {
        let endpoint = env("HVSOCK_ENDPOINT");
        if endpoint.as_deref() == Some(VSOCK.as_ref()) {
            return Self::of_vsock();
        }
        let vsock = match endpoint.or_else(|| env("HVSOCK_DIR")) {
            Some(_) => UseVsock::Never,
            None => UseVsock::WithoutBroker,
        };
        let paths = Dirs::endpoint_candidates(None, env);
        Self { paths, vsock }
    }

    /// The kernel's `AF_VSOCK` and no broker, which is for virtual machines: see
    /// [the crate](crate#in-a-virtual-machine).
    ///
    /// ```no_run
    /// use hvsock::{Endpoint, HvStream};
    ///
    /// # fn main() -> std::io::Result<()> {
    /// let options = HvStream::options().endpoint(Endpoint::of_vsock());
    /// let stream = options.connect(("parent", 2761))?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn of_vsock() -> Self {
        let vsock = UseVsock::Always;
        Self {
            paths: Vec::new(),
            vsock,
        }
    }

    /// The socket at `path` and no other.
    pub fn at(path: impl Into<PathBuf>) -> Self {
        Self {
            paths: vec![path.into()],
            vsock: UseVsock::Never,
        }
    }

    /// The socket of the broker that was started with `--dir DIR`, and no other.
    pub fn in_dir(dir: impl AsRef<Path>) -> Self {
        Self::at(dir.as_ref().join("endpoint"))
    }

    /// The sockets, in the order in which they are tried.
    pub fn paths(&self) -> &[PathBuf] {
        &self.paths
    }

    /// Whether whoever asks now gets the kernel's `AF_VSOCK` and no broker.
    pub fn uses_vsock(&self) -> bool {
        backend::uses_vsock(self)
    }

    pub(crate) fn vsock(&self) -> UseVsock {
        self.vsock
    }

    /// The id of the service with this friendly name.
    ///
    /// ```no_run
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let name = "HV Socket Demo".parse()?;
    /// println!("{}", hvsock::Endpoint::from_env().service_id(&name)?);
    /// # Ok(())
    /// # }
    /// ```
    pub fn service_id(&self, name: &ElementName) -> io::Result<ServiceId> {
        backend::service_id(self, name)
    }

    /// The id of the partition with this name.
    ///
    /// ```no_run
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// println!("{}", hvsock::Endpoint::from_env().vm_id(&"web".parse()?)?);
    /// # Ok(())
    /// # }
    /// ```
    pub fn vm_id(&self, name: &PartitionName) -> io::Result<VmId> {
        backend::vm_id(self, name)
    }
}

impl From<&str> for Endpoint {
    /// [`Endpoint::at`].
    fn from(path: &str) -> Self {
        Self::at(path)
    }
}

impl From<&Path> for Endpoint {
    /// [`Endpoint::at`].
    fn from(path: &Path) -> Self {
        Self::at(path)
    }
}

impl From<PathBuf> for Endpoint {
    /// [`Endpoint::at`].
    fn from(path: PathBuf) -> Self {
        Self::at(path)
    }
}

impl From<&Endpoint> for Endpoint {
    fn from(endpoint: &Endpoint) -> Self {
        endpoint.clone()
    }
}

impl Default for Endpoint {
    /// [`Endpoint::from_env`].
    fn default() -> Self {
        Self::from_env()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vsock_takes_the_place_of_a_broker_only_where_none_is_named() {
        let of = |vars: &[(&str, &str)]| {
            Endpoint::from_vars(|name| {
                let found = vars.iter().find(|(known, _)| *known == name);
                found.map(|(_, value)| value.into())
            })
        };
        assert_eq!(of(&[]).vsock, UseVsock::WithoutBroker);
        assert_eq!(
            of(&[("XDG_RUNTIME_DIR", "/r")]).vsock,
            UseVsock::WithoutBroker
        );
        assert_eq!(of(&[("HVSOCK_DIR", "/d")]).vsock, UseVsock::Never);
        assert_eq!(of(&[("HVSOCK_ENDPOINT", "/e")]), Endpoint::at("/e"));
        assert_eq!(
            of(&[("HVSOCK_ENDPOINT", "./vsock")]),
            Endpoint::at("./vsock")
        );
        let vsock = [("HVSOCK_ENDPOINT", "vsock"), ("HVSOCK_DIR", "/d")];
        assert_eq!(of(&vsock), Endpoint::of_vsock());
        assert_eq!(of(&vsock).paths(), &[] as &[PathBuf]);
    }
}
