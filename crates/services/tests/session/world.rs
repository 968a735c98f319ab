//! A broker in this process, with a container `web` that can offer the service.

use std::time::Duration;

use hvsock::{Endpoint, Lease, PartitionRef, VmId};
use hvsock_broker::model::NewContainer;
use hvsock_broker::{Broker, BrokerConfig};
use hvsock_endpoint::Dirs;
use hvsock_services::catalog::SESSION;
use hvsock_services::guest;
use hvsock_services::link::{ServiceBinding, ServiceServer, Target};
use hvsock_testkit::TempFolder;
use tokio::time::{Instant, sleep};

/// Longer than any operation on a busy machine.
pub const LONG: Duration = Duration::from_secs(60);

pub struct World {
    _lease: Lease,
    _broker: Broker,
    folder: TempFolder,
}

impl World {
    fn new() -> Self {
        let folder = TempFolder::new();
        let dirs = Dirs {
            run: folder.path().to_owned(),
            config: folder.path().to_owned(),
        };
        let mut config = BrokerConfig::new(dirs);
        config.control = false;
        let broker = Broker::start(config).unwrap();
        let container: NewContainer = serde_json::from_str(r#"{"name": "web"}"#).unwrap();
        broker.handle().add_container(container).unwrap();
        let endpoint = Endpoint::in_dir(folder.path());
        let lease = Lease::register_at(&endpoint, SESSION.name, SESSION.id(), "tests").unwrap();
        Self {
            _lease: lease,
            _broker: broker,
            folder,
        }
    }

    /// A world with an agent, in this process.
    pub async fn with_agent() -> Self {
        let world = Self::new();
        let mut config = guest::Config::new();
        config.endpoint = world.inside();
        config.kvp = Some(world.folder.join("kvp"));
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
        Endpoint::at(self.folder.join("containers/web/endpoint"))
    }

    pub fn target(&self) -> Target {
        let web: PartitionRef = "web".parse().unwrap();
        Target::new(Endpoint::in_dir(self.folder.path()), web)
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
