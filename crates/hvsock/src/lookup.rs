//! What an endpoint resolves, and which back-end it selects.

use std::io;

use hvsock_address::{ElementName, PartitionName, ServiceId, VmId};

use crate::{Endpoint, backend};

impl Endpoint {
    /// Returns true if a request made now would use the kernel's `AF_VSOCK`. Checks the file
    /// system.
    pub fn uses_vsock(&self) -> bool {
        backend::uses_vsock(self)
    }

    /// Resolves the friendly name of a service to its id. Blocks up to 5 seconds.
    ///
    /// # Errors
    ///
    /// [`Refusal::Unregistered`](crate::Refusal::Unregistered) if no service has this name,
    /// `NotFound` if there is no broker or registry, `TimedOut` if the broker does not reply,
    /// `InvalidData` if its reply is malformed.
    ///
    /// # Examples
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

    /// Resolves the name of a partition to its id. Blocks up to 5 seconds.
    ///
    /// # Errors
    ///
    /// [`Refusal::PartitionUnknown`](crate::Refusal::PartitionUnknown) if no partition has this
    /// name, `NotFound` if there is no broker or registry, `TimedOut` if the broker does not reply,
    /// `InvalidData` if its reply is malformed.
    ///
    /// # Examples
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

    /// Returns the id of the host of the virtual machine that this process's container is in. Blocks up
    /// to 5 seconds.
    ///
    /// Such a container may connect to its host and listen for it, as far as the virtual machine and
    /// the host allow it. Its parent is the virtual machine.
    ///
    /// # Errors
    ///
    /// [`Refusal::NotReachable`](crate::Refusal::NotReachable) in any other partition, `NotFound` if
    /// there is no broker, `TimedOut` if the broker does not reply, `InvalidData` if its reply is
    /// malformed.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// use hvsock::{Endpoint, HvListener};
    ///
    /// # fn main() -> std::io::Result<()> {
    /// let host = Endpoint::from_env().host_id()?;
    /// let listener = HvListener::bind((host, 2761))?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn host_id(&self) -> io::Result<VmId> {
        backend::host_id(self)
    }
}
