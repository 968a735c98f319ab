//! Addresses as people and programs write them.

use std::fmt;
use std::io;

use hvsock_address::{
    ElementName, HVSOCKET_ADDRESS_FLAG_PASSTHRU, HvUrl, PartitionName, PartitionRef, ServiceId,
    ServiceRef, SockAddrHv, VmId,
};

/// A partition and a service, either of which may be a name that the broker looks up.
///
/// Usually made by [`ToHvAddr`] from what [`HvStream::connect`](crate::HvStream::connect) and
/// [`HvListener::bind`](crate::HvListener::bind) are given.
///
/// ```
/// use hvsock::{HvAddr, ToHvAddr, VmId};
///
/// let one = (VmId::PARENT, "HV Socket Demo").to_hv_addr()?;
/// let other = "hvsock://parent/HV%20Socket%20Demo".to_hv_addr()?;
/// assert_eq!(one, other);
/// assert_eq!(one.to_string(), "hvsock://parent/HV%20Socket%20Demo");
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct HvAddr {
    pub(crate) partition: PartitionRef,
    pub(crate) service: ServiceRef,
    pub(crate) passthru: bool,
}

impl HvAddr {
    /// The address of a service in a partition.
    ///
    /// ```
    /// use hvsock::{HvAddr, ServiceId, VmId};
    ///
    /// let address = HvAddr::new(VmId::LOOPBACK, ServiceId::from_port(2761));
    /// assert_eq!(address.to_string(), "hvsock://loopback/2761");
    /// ```
    pub fn new(partition: impl Into<PartitionRef>, service: impl Into<ServiceRef>) -> Self {
        let (partition, service) = (partition.into(), service.into());
        Self {
            partition,
            service,
            passthru: false,
        }
    }

    /// The partition.
    pub fn partition(&self) -> &PartitionRef {
        &self.partition
    }

    /// The service.
    pub fn service(&self) -> &ServiceRef {
        &self.service
    }

    /// Whether `HVSOCKET_ADDRESS_FLAG_PASSTHRU` is set.
    pub(crate) fn passthru(&self) -> bool {
        self.passthru
    }
}

impl fmt::Display for HvAddr {
    /// As an `hvsock://` URL.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (partition, service) = (self.partition.clone(), self.service.clone());
        HvUrl { partition, service }.fmt(f)
    }
}

impl From<SockAddrHv> for HvAddr {
    fn from(address: SockAddrHv) -> Self {
        let passthru = address.flags & HVSOCKET_ADDRESS_FLAG_PASSTHRU != 0;
        Self {
            passthru,
            ..Self::new(address.vm, address.service)
        }
    }
}

impl From<HvUrl> for HvAddr {
    fn from(url: HvUrl) -> Self {
        Self::new(url.partition, url.service)
    }
}

/// What can be connected to or listened at: a [`SockAddrHv`], an `hvsock://` URL, or a pair of a
/// partition ([`ToPartition`]) and a service ([`ToService`]).
///
/// Text that is none of these is an error of kind `InvalidInput` that says why.
///
/// ```
/// use hvsock::{ServiceId, SockAddrHv, ToHvAddr, VmId};
///
/// let demo = ServiceId::from_port(2761);
/// let same = SockAddrHv::new(VmId::PARENT, demo).to_hv_addr()?;
/// assert_eq!((VmId::PARENT, demo).to_hv_addr()?, same);
/// assert_eq!(("parent", 2761).to_hv_addr()?, same);
/// assert_eq!("hvsock://parent/2761".to_hv_addr()?, same);
/// assert!("parent:2761".to_hv_addr().is_err());
/// # Ok::<(), std::io::Error>(())
/// ```
pub trait ToHvAddr {
    /// The address.
    fn to_hv_addr(&self) -> io::Result<HvAddr>;
}

/// What names a partition: a [`VmId`], a [`PartitionRef`], or text as on the command line (a word
/// such as `parent`, a GUID, or a name).
pub trait ToPartition {
    /// The partition.
    fn to_partition(&self) -> io::Result<PartitionRef>;
}

/// What names a service: a [`ServiceId`], a vsock port, a [`ServiceRef`], or text as on the
/// command line (a GUID, a port, or a friendly name).
pub trait ToService {
    /// The service.
    fn to_service(&self) -> io::Result<ServiceRef>;
}

fn invalid(error: impl std::error::Error + Send + Sync + 'static) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, error)
}

impl ToHvAddr for HvAddr {
    fn to_hv_addr(&self) -> io::Result<HvAddr> {
        Ok(self.clone())
    }
}

impl ToHvAddr for SockAddrHv {
    fn to_hv_addr(&self) -> io::Result<HvAddr> {
        Ok((*self).into())
    }
}

impl ToHvAddr for HvUrl {
    fn to_hv_addr(&self) -> io::Result<HvAddr> {
        Ok(self.clone().into())
    }
}

impl ToHvAddr for str {
    fn to_hv_addr(&self) -> io::Result<HvAddr> {
        self.parse().map(HvUrl::into).map_err(invalid)
    }
}

impl ToHvAddr for String {
    fn to_hv_addr(&self) -> io::Result<HvAddr> {
        self.as_str().to_hv_addr()
    }
}

impl<P: ToPartition, S: ToService> ToHvAddr for (P, S) {
    fn to_hv_addr(&self) -> io::Result<HvAddr> {
        Ok(HvAddr::new(self.0.to_partition()?, self.1.to_service()?))
    }
}

impl<T: ToHvAddr + ?Sized> ToHvAddr for &T {
    fn to_hv_addr(&self) -> io::Result<HvAddr> {
        (**self).to_hv_addr()
    }
}

impl ToPartition for VmId {
    fn to_partition(&self) -> io::Result<PartitionRef> {
        Ok((*self).into())
    }
}

impl ToPartition for PartitionRef {
    fn to_partition(&self) -> io::Result<PartitionRef> {
        Ok(self.clone())
    }
}

impl ToPartition for PartitionName {
    fn to_partition(&self) -> io::Result<PartitionRef> {
        Ok(PartitionRef::Name(self.clone()))
    }
}

impl ToPartition for str {
    fn to_partition(&self) -> io::Result<PartitionRef> {
        self.parse().map_err(invalid)
    }
}

impl ToPartition for String {
    fn to_partition(&self) -> io::Result<PartitionRef> {
        self.as_str().to_partition()
    }
}

impl<T: ToPartition + ?Sized> ToPartition for &T {
    fn to_partition(&self) -> io::Result<PartitionRef> {
        (**self).to_partition()
    }
}

impl ToService for ServiceId {
    fn to_service(&self) -> io::Result<ServiceRef> {
        Ok((*self).into())
    }
}

impl ToService for u32 {
    fn to_service(&self) -> io::Result<ServiceRef> {
        Ok(ServiceId::from_port(*self).into())
    }
}

impl ToService for ServiceRef {
    fn to_service(&self) -> io::Result<ServiceRef> {
        Ok(self.clone())
    }
}

impl ToService for ElementName {
    fn to_service(&self) -> io::Result<ServiceRef> {
        Ok(ServiceRef::Name(self.clone()))
    }
}

impl ToService for str {
    fn to_service(&self) -> io::Result<ServiceRef> {
        self.parse().map_err(invalid)
    }
}

impl ToService for String {
    fn to_service(&self) -> io::Result<ServiceRef> {
        self.as_str().to_service()
    }
}

impl<T: ToService + ?Sized> ToService for &T {
    fn to_service(&self) -> io::Result<ServiceRef> {
        (**self).to_service()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_address_is_invalid_input() {
        for text in ["parent/2761", "hvsock://parent", "", "hvsock:///2761"] {
            let error = text.to_hv_addr().unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidInput, "{text}");
        }
        assert!(("no spaces", 1).to_hv_addr().is_err());
        assert!(("web", "4294967296").to_hv_addr().is_err());
    }

    #[test]
    fn the_passthru_flag_of_an_address_is_kept() {
        let mut address = SockAddrHv::new(VmId::PARENT, ServiceId::from_port(1));
        assert!(!HvAddr::from(address).passthru());
        address.flags = HVSOCKET_ADDRESS_FLAG_PASSTHRU;
        assert!(HvAddr::from(address).passthru());
    }
}
