//! A broker in this process with a leased service, and connections from a container of it.

use hvsock::{ConnectOptions, Endpoint, HvListener, HvStream, Lease, ServiceId};
use hvsock_broker::model::PartitionState;
use hvsock_testkit::wait::TIMEOUT;
use hvsock_testkit::world::{self, accept, limited, partition_ref};

pub const SERVICE: ServiceId = ServiceId::from_port(2761);
pub const NAME: &str = "HV Socket Demo";

/// A broker with a container `web` and the service registered.
pub struct World {
    pub lease: Lease,
    pub host: world::World,
}

impl World {
    pub fn new() -> Self {
        let host = world::World::new();
        host.container("web", None);
        let lease = Lease::register_at(&host.host().endpoint(), NAME, SERVICE, "tests");
        Self {
            lease: lease.expect("a lease"),
            host,
        }
    }

    /// The endpoint of the host.
    pub fn host(&self) -> Endpoint {
        self.host.host().endpoint()
    }

    /// The endpoint in the container.
    pub fn web(&self) -> Endpoint {
        self.host.inside("web").endpoint()
    }

    pub fn at_web(&self) -> ConnectOptions {
        HvStream::options().endpoint(self.web()).timeout(TIMEOUT)
    }

    pub fn listen(&self) -> HvListener {
        let options = HvListener::options().endpoint(self.host());
        options.listen(("children", NAME)).expect("a listener")
    }

    pub fn pair(&self, options: &ConnectOptions) -> (HvStream, HvStream) {
        let listener = self.listen();
        let connector = options.connect(("parent", NAME)).expect("connected");
        (limited(connector), accept(&listener))
    }

    pub fn set_web(&self, state: PartitionState) {
        let set = self.host.handle().set_state(&partition_ref("web"), state);
        set.expect("the state is set");
    }
}
