//! The transports of a connection.

/// How the bytes of a connection are transferred.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Transport {
    /// One end of a Unix stream socket pair; the broker relays the bytes.
    #[doc(alias = "socketpair")]
    Descriptor,
    /// One end of a Unix stream socket pair whose other end the peer has; the broker can only close it.
    Direct,
    /// Shared memory of both processes, of this connection or of an arena; the broker only monitors it.
    #[doc(alias = "shared memory")]
    Ring,
    /// The kernel's `AF_VSOCK`: in a virtual machine without a broker, and between a process of the host and a
    /// virtual machine that the kernel serves. A broker can only close it.
    #[doc(alias = "AF_VSOCK")]
    Vsock,
    /// The Hyper-V sockets of Windows, `AF_HYPERV`.
    #[doc(alias = "AF_HYPERV")]
    HyperV,
}

impl Transport {
    /// Returns its name: `descriptor`, `direct`, `ring`, `vsock` or `hyperv`.
    pub const fn name(self) -> &'static str {
        match self {
            Transport::Descriptor => "descriptor",
            Transport::Direct => "direct",
            Transport::Ring => "ring",
            Transport::Vsock => "vsock",
            Transport::HyperV => "hyperv",
        }
    }
}
