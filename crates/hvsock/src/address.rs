//! Addresses, and the conversions from text, ids and ports.

use std::fmt;
use std::io;

use hvsock_address::{
    ElementName, HVSOCKET_ADDRESS_FLAG_PASSTHRU, HvUrl, PartitionName, PartitionRef, ServiceId,
    ServiceRef, SockAddrHv, VmId,
};

/// The address of a service: a partition and a service, each an id or a name.
///
/// The broker resolves names. Functions such as [`HvStream::connect`](crate::HvStream::connect) and
/// [`HvListener::bind`](crate::HvListener::bind) convert their argument to this type by
/// [`ToHvAddr`].
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
#[doc(alias = "SOCKADDR_HV")]
#[doc(alias = "sockaddr_vm")]
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct HvAddr {
    pub(crate) partition: PartitionRef,
    pub(crate) service: ServiceRef,
    pub(crate) passthru: bool,
}

impl HvAddr {
    /// Creates the address of a service in a partition.
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

    /// Returns the partition.
    pub fn partition(&self) -> &PartitionRef {
        &self.partition
    }

    /// Returns the service.
    pub fn service(&self) -> &ServiceRef {
        &self.service
    }

    /// Returns true if `HVSOCKET_ADDRESS_FLAG_PASSTHRU` is set.
    pub(crate) fn passthru(&self) -> bool {
        self.passthru
    }
}

impl fmt::Display for HvAddr {
    /// Formats the address as an `hvsock://` URL.
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

/// Converts a value to an address: a [`SockAddrHv`], an `hvsock://` URL, or a pair of a partition
/// ([`ToPartition`]) and a service ([`ToService`]).
///
/// The counterpart of [`std::net::ToSocketAddrs`]. The conversion parses text only; it does not
/// block and does not resolve names. This trait is sealed: no other crate can implement it.
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
#[doc(alias = "ToSocketAddrs")]
pub trait ToHvAddr: sealed::Sealed {
    /// Converts the value.
    ///
    /// # Errors
    ///
    /// `InvalidInput` if text is no valid address. The source is a
    /// [`ParseUrlError`](crate::ParseUrlError) or [`ParseRefError`](crate::ParseRefError).
    fn to_hv_addr(&self) -> io::Result<HvAddr>;
}

/// Converts a value to a partition: a [`VmId`], a [`PartitionRef`], a [`PartitionName`], or text as
/// on the command line (a keyword such as `parent`, a GUID, or a name).
///
/// This trait is sealed: no other crate can implement it.
pub trait ToPartition: sealed::Sealed {
    /// Converts the value.
    ///
    /// # Errors
    ///
    /// `InvalidInput` if text is no valid partition. The source is a
    /// [`ParseRefError`](crate::ParseRefError).
    fn to_partition(&self) -> io::Result<PartitionRef>;
}

/// Converts a value to a service: a [`ServiceId`], a vsock port (`u32`), a [`ServiceRef`], an
/// [`ElementName`], or text as on the command line (a GUID, a port, or a friendly name).
///
/// This trait is sealed: no other crate can implement it.
pub trait ToService: sealed::Sealed {
    /// Converts the value.
    ///
    /// # Errors
    ///
    /// `InvalidInput` if text is no valid service. The source is a
    /// [`ParseRefError`](crate::ParseRefError).
    fn to_service(&self) -> io::Result<ServiceRef>;
}

/// Seals the conversion traits, so that they can get methods later.
mod sealed {
    pub trait Sealed {}

    impl<A: Sealed, B: Sealed> Sealed for (A, B) {}
    impl<T: Sealed + ?Sized> Sealed for &T {}
}

impl sealed::Sealed for HvAddr {}
impl sealed::Sealed for SockAddrHv {}
impl sealed::Sealed for HvUrl {}
impl sealed::Sealed for VmId {}
impl sealed::Sealed for PartitionRef {}
impl sealed::Sealed for PartitionName {}
impl sealed::Sealed for ServiceId {}
impl sealed::Sealed for u32 {}
impl sealed::Sealed for ServiceRef {}
impl sealed::Sealed for ElementName {}
impl sealed::Sealed for str {}
impl sealed::Sealed for String {}

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
    fn invalid_addresses_are_invalid_input() {
        for text in ["parent/2761", "hvsock://parent", "", "hvsock:///2761"] {
            let error = text.to_hv_addr().unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidInput, "{text}");
        }
        assert!(("no spaces", 1).to_hv_addr().is_err());
        assert!(("web", "4294967296").to_hv_addr().is_err());
    }

    #[test]
    fn the_passthru_flag_of_an_address_is_preserved() {
        let mut address = SockAddrHv::new(VmId::PARENT, ServiceId::from_port(1));
        assert!(!HvAddr::from(address).passthru());
        address.flags = HVSOCKET_ADDRESS_FLAG_PASSTHRU;
        assert!(HvAddr::from(address).passthru());
    }
}
