//! A broker in this process, with a container `web` that can offer the service.

use std::time::Duration;

use hvsock::{Endpoint, Lease, VmId};
use hvsock_services::catalog::SESSION;
use hvsock_services::guest;
use hvsock_services::link::{ServiceBinding, ServiceServer, Target};
use hvsock_testkit::world::{self, partition_ref};
use tokio::time::{Instant, sleep};

/// Longer than any operation on a busy machine.
pub const LONG: Duration = Duration::from_secs(60);

pub struct World {
    _lease: Lease,
    host: world::World,
}

impl World {
    fn new() -> Self {
        let host = world::World::new();
        host.container("web", None);
        let endpoint = host.host().endpoint();
        let lease = Lease::register_at(&endpoint, SESSION.name, SESSION.id(), "tests").unwrap();
        Self {
            _lease: lease,
            host,
        }
    }

    /// A world with an agent, in this process.
    pub async fn with_agent() -> Self {
        let world = Self::new();
        let mut config = guest::Config::new();
        config.endpoint = world.inside();
        config.kvp = Some(world.host.folder.join("kvp"));
        tokio::spawn(guest::run(config));
        world.offered().await;
        world
    }

    /// A world with this server instead of an agent.
    pub async fn with(server: ServiceServer) -> Self {
        let world = Self::new();
        let binding = ServiceBinding {
            endpoint: world.inside(),
            from: VmId::PARENT,
        };
        tokio::spawn(server.serve(binding));
        world.offered().await;
        world
    }

    fn inside(&self) -> Endpoint {
        self.host.inside("web").endpoint()
    }

    pub fn target(&self) -> Target {
        Target::new(self.host.host().endpoint(), partition_ref("web"))
    }

    async fn offered(&self) {
        let deadline = Instant::now() + LONG;
        while self.target().stream(&SESSION).await.is_err() {
            assert!(
                Instant::now() < deadline,
                "the service is not offered in time"
            );
            sleep(Duration::from_millis(10)).await;
        }
    }
}
