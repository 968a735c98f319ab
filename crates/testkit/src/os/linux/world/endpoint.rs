//! The endpoint of one partition, and connections and listeners of its processes.

use std::io;
use std::path::PathBuf;

use hvsock::{
    ConnectOptions, Endpoint, HvAddr, HvListener, HvStream, PartitionRef, ServiceId, VmId,
};

use crate::wait::TIMEOUT;

/// The path of a partition's endpoint. A process that connects to it belongs to the partition.
#[derive(Clone, Debug)]
pub struct PartitionEndpoint(pub PathBuf);

/// An address by id and port, which needs no lookup.
pub fn address(vm: VmId, port: u32) -> HvAddr {
    HvAddr::new(PartitionRef::Id(vm), ServiceId::from_port(port))
}

impl PartitionEndpoint {
    /// The endpoint, for options of the library.
    pub fn endpoint(&self) -> Endpoint {
        Endpoint::at(&self.0)
    }

    /// Options of a bounded connect.
    pub fn options(&self) -> ConnectOptions {
        HvStream::options()
            .endpoint(self.endpoint())
            .timeout(TIMEOUT)
    }

    /// Connects to the service of a port.
    ///
    /// # Errors
    /// Those of the connect.
    pub fn connect(&self, vm: VmId, port: u32) -> io::Result<HvStream> {
        self.connect_to(address(vm, port))
    }

    /// Connects to an address.
    ///
    /// # Errors
    /// Those of the connect.
    pub fn connect_to(&self, address: HvAddr) -> io::Result<HvStream> {
        Ok(limited(self.options().connect(address)?))
    }

    /// A connection with `HVSOCKET_CONNECTED_SUSPEND`, which survives a pause.
    #[track_caller]
    pub fn connect_suspendable(&self, vm: VmId, port: u32) -> HvStream {
        let options = self.options().connected_suspend(true);
        limited(options.connect(address(vm, port)).expect("connected"))
    }

    /// Listens for the service of a port with a backlog of 128.
    ///
    /// # Errors
    /// Those of the listen.
    pub fn listen(&self, vm: VmId, port: u32) -> io::Result<HvListener> {
        self.listen_with(vm, port, 128)
    }

    /// Listens for the service of a port.
    ///
    /// # Errors
    /// Those of the listen.
    pub fn listen_with(&self, vm: VmId, port: u32, backlog: u32) -> io::Result<HvListener> {
        HvListener::options()
            .endpoint(self.endpoint())
            .backlog(backlog)
            .listen(address(vm, port))
    }

    /// As [`listen_with`](Self::listen_with), without arenas: each connection is made by the broker, and takes its
    /// place in the backlog.
    ///
    /// # Errors
    /// Those of the listen.
    pub fn listen_without_arenas(
        &self,
        vm: VmId,
        port: u32,
        backlog: u32,
    ) -> io::Result<HvListener> {
        HvListener::options()
            .endpoint(self.endpoint())
            .backlog(backlog)
            .own_memory(true)
            .listen(address(vm, port))
    }

    /// Connects to a listener. Returns both ends.
    #[track_caller]
    pub fn pair(&self, vm: VmId, port: u32, listener: &HvListener) -> (HvStream, HvStream) {
        let connected = self.connect(vm, port).expect("connected");
        (connected, accept(listener))
    }
}

/// Accepts a connection within [`TIMEOUT`].
#[track_caller]
pub fn accept(listener: &HvListener) -> HvStream {
    limited(listener.accept_timeout(TIMEOUT).expect("accepted").0)
}

/// Bounds every wait of a stream.
pub fn limited(stream: HvStream) -> HvStream {
    stream.set_read_timeout(Some(TIMEOUT)).expect("a bound");
    stream.set_write_timeout(Some(TIMEOUT)).expect("a bound");
    stream
}
