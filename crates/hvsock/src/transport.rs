//! How a connection's bytes move, in the words of the library.

/// How the bytes of a connection move.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Transport {
    /// One end of a Unix stream socket pair, pumped by the broker.
    Descriptor,
    /// Memory that both processes share; the broker only looks on.
    Ring,
    /// The kernel's `AF_VSOCK`, in a virtual machine without a broker.
    Vsock,
    /// Windows' own Hyper-V sockets, `AF_HYPERV`.
    HyperV,
}

impl Transport {
    /// The one word for it.
    pub const fn name(self) -> &'static str {
        match self {
            Transport::Descriptor => "descriptor",
            Transport::Ring => "ring",
            Transport::Vsock => "vsock",
            Transport::HyperV => "hyperv",
        }
    }
}
