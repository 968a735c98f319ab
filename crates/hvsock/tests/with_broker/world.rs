//! A broker in this process, and connections from a container of it.

use std::thread;
use std::time::{Duration, Instant};

use hvsock::{ConnectOptions, Endpoint, HvListener, HvStream, Lease, PartitionRef, ServiceId};
use hvsock_broker::model::{NewContainer, PartitionState};
use hvsock_broker::{Broker, BrokerConfig};
use hvsock_endpoint::Dirs;
use hvsock_testkit::TempFolder;

pub const LONG: Duration = Duration::from_secs(10);
pub const SERVICE: ServiceId = ServiceId::from_port(2761);
pub const NAME: &str = "HV Socket Demo";

/// A broker with a container `web` and the service registered.
pub struct World {
    pub lease: Lease,
    pub broker: Broker,
    pub folder: TempFolder,
}

impl World {
    pub fn new() -> Self {
        let folder = TempFolder::new();
        let dirs = Dirs {
            run: folder.path().to_owned(),
            config: folder.path().to_owned(),
        };
        let mut config = BrokerConfig::new(dirs);
        config.control = false;
        let broker = Broker::start(config).expect("a broker");
        let container: NewContainer = serde_json::from_str(r#"{"name": "web"}"#).unwrap();
        broker
            .handle()
            .add_container(container)
            .expect("a container");
        let endpoint = Endpoint::in_dir(folder.path());
        let lease = Lease::register_at(&endpoint, NAME, SERVICE, "tests").expect("a lease");
        Self {
            lease,
            broker,
            folder,
        }
    }

    /// The endpoint of the host.
    pub fn host(&self) -> Endpoint {
        Endpoint::in_dir(self.folder.path())
    }

    /// The endpoint in the container.
    pub fn web(&self) -> Endpoint {
        Endpoint::at(self.folder.join("containers/web/endpoint"))
    }

    pub fn at_web(&self) -> ConnectOptions {
        HvStream::options().endpoint(self.web())
    }

    pub fn listen(&self) -> HvListener {
        let options = HvListener::options().endpoint(self.host());
        options.listen(("children", NAME)).expect("a listener")
    }

    pub fn pair(&self, options: &ConnectOptions) -> (HvStream, HvStream) {
        let listener = self.listen();
        let connector = options.connect(("parent", NAME)).expect("connected");
        let (acceptor, _) = listener.accept_timeout(LONG).expect("accepted");
        for stream in [&connector, &acceptor] {
            stream.set_read_timeout(Some(LONG)).unwrap();
        }
        (connector, acceptor)
    }

    pub fn wait_until(&self, what: &str, so: impl Fn(&Self) -> bool) {
        let deadline = Instant::now() + LONG;
        while !so(self) {
            assert!(Instant::now() < deadline, "never: {what}");
            thread::sleep(Duration::from_millis(5));
        }
    }

    pub fn set_web(&self, state: PartitionState) {
        let web: PartitionRef = "web".parse().unwrap();
        self.broker
            .handle()
            .set_state(&web, state)
            .expect("the state is set");
    }
}
