//! Which broker is asked.

use std::io;
use std::path::{Path, PathBuf};

use hvsock_address::{ElementName, PartitionName, ServiceId, VmId};
use hvsock_endpoint::{BrokerMessage, ClientMessage, Dirs, LookupKind};

use crate::backend;

/// Where the broker is: the endpoint sockets to try, first to last.
///
/// Everything in this crate that takes no endpoint uses [`Endpoint::from_env`].
///
/// ```
/// use hvsock::Endpoint;
///
/// let endpoint = Endpoint::in_dir("/tmp/demo");
/// assert_eq!(endpoint.paths()[0].to_str(), Some("/tmp/demo/endpoint"));
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    paths: Vec<PathBuf>,
}

impl Endpoint {
    /// What the environment says: the socket that `HVSOCK_ENDPOINT` names; else the one in the
    /// folder that `HVSOCK_DIR` names; else that of the user's own broker
    /// (`$XDG_RUNTIME_DIR/hvsock/endpoint`) where one runs, and the machine's
    /// (`/run/hvsock/endpoint`), which is also where a container has its own.
    pub fn from_env() -> Self {
        let paths = Dirs::endpoint_candidates(None, |name| std::env::var_os(name));
        Self { paths }
    }

    /// The socket at `path` and no other.
    pub fn at(path: impl Into<PathBuf>) -> Self {
        Self {
            paths: vec![path.into()],
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
        let guid = self.look_up(LookupKind::Service, name.as_str())?;
        Ok(ServiceId::from_guid_bytes(guid))
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
        let guid = self.look_up(LookupKind::Partition, name.as_str())?;
        Ok(VmId::from_guid_bytes(guid))
    }

    fn look_up(&self, kind: LookupKind, name: &str) -> io::Result<[u8; 16]> {
        let request = ClientMessage::Lookup {
            kind,
            name: name.to_owned(),
        };
        match backend::ask(self, &request)? {
            (_, BrokerMessage::Found { guid }) => Ok(guid),
            (conversation, _) => Err(conversation.fault(&"LOOKUP is answered by FOUND")),
        }
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
