//! VMs whose links live in the test.

use std::io;
use std::sync::mpsc;

use hvsock::{HvListener, HvStream, VmId};
use hvsock_broker::guest_link::{Capabilities, LinkFactory};
use hvsock_testkit::world::{World, address};

use super::{pipe_link, socket_link};

/// What a [`World`] does with such VMs.
pub trait LinkWorld {
    /// Adds a VM behind a link.
    fn add(&self, name: &str, factory: impl LinkFactory + 'static);

    /// Adds a VM whose guest is behind a pipe link.
    fn pipe_vm(&self, name: &str, capabilities: Capabilities) -> pipe_link::Guest {
        let (guest, guests) = mpsc::channel();
        let factory = pipe_link::Factory {
            capabilities,
            guest,
        };
        self.add(name, factory);
        guests.recv().expect("the link was opened")
    }

    /// Adds a VM whose guest is behind a socket link.
    fn socket_vm(&self, name: &str, capabilities: Capabilities) -> socket_link::Guest {
        let (guest, guests) = mpsc::channel();
        let factory = socket_link::Factory {
            capabilities,
            hands_over: false,
            guest,
        };
        self.add(name, factory);
        guests.recv().expect("the link was opened")
    }

    /// As [`socket_vm`](Self::socket_vm), with a link that gives its sockets to the processes.
    fn hand_over_vm(&self, name: &str, capabilities: Capabilities) -> socket_link::Guest {
        let (guest, guests) = mpsc::channel();
        let factory = socket_link::Factory {
            capabilities,
            hands_over: true,
            guest,
        };
        self.add(name, factory);
        guests.recv().expect("the link was opened")
    }

    /// Listens for connections of guests.
    fn listen_over(&self, port: u32, shared_memory: bool, backlog: u32) -> io::Result<HvListener>;

    /// Connects to a guest.
    fn connect_over(&self, vm: &str, port: u32, shared_memory: bool) -> io::Result<HvStream>;
}

impl LinkWorld for World {
    fn add(&self, name: &str, factory: impl LinkFactory + 'static) {
        let vm = serde_json::json!({"name": name, "groups": ["all"]});
        let vm = serde_json::from_value(vm).expect("a VM");
        let added = self.handle().add_vm_with_link(vm, factory);
        added.expect("added");
    }

    fn listen_over(&self, port: u32, shared_memory: bool, backlog: u32) -> io::Result<HvListener> {
        HvListener::options()
            .endpoint(self.host().endpoint())
            .shared_memory(shared_memory)
            .backlog(backlog)
            .listen(address(VmId::CHILDREN, port))
    }

    fn connect_over(&self, vm: &str, port: u32, shared_memory: bool) -> io::Result<HvStream> {
        let options = self.host().options().shared_memory(shared_memory);
        options.connect((vm, port))
    }
}
