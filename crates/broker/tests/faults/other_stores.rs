//! A broker whose registrations are in another store than the folder: one in memory that it shares with
//! other users, as hosts would share one.

use hvsock::{Lease, Refusal, ServiceId, VmId};
use hvsock_broker::model::EventKind;
use hvsock_broker::{Broker, ControlError, Registration, RegistrationStore};
use hvsock_testkit::TempFolder;
use hvsock_testkit::registration_store::{MemoryStorage, MemoryStore};

use hvsock_testkit::wait::{TIMEOUT, eventually};
use hvsock_testkit::world::{PartitionEndpoint, config, container, refused, service, service_ref};

const PORT: u32 = 2100;

struct Shared {
    folder: TempFolder,
    broker: Broker,
    /// Another user of the store.
    other: MemoryStore,
}

impl Shared {
    fn new() -> Self {
        let (folder, storage) = (TempFolder::new(), MemoryStorage::default());
        let mut other = storage.store();
        other.load().unwrap();
        other.put(registration(PORT)).unwrap();
        let store = Box::new(storage.store());
        let broker = Broker::start_with_store(config(folder.path()), store).unwrap();
        Self {
            folder,
            broker,
            other,
        }
    }

    fn endpoint(&self, name: &str) -> PartitionEndpoint {
        PartitionEndpoint(self.folder.path().join(name))
    }

    fn names(&self) -> Vec<String> {
        let services = self.broker.handle().services(false).unwrap();
        services.iter().map(|one| one.name.to_string()).collect()
    }
}

fn registration(port: u32) -> Registration {
    service(port).registration(Some("other".into())).unwrap()
}

#[test]
fn a_broker_serves_the_registrations_of_another_store() {
    let mut shared = Shared::new();
    let handle = shared.broker.handle();
    handle.add_container(container("web", &[])).unwrap();
    let host = shared.endpoint("endpoint");
    let web = shared.endpoint("containers/web/endpoint");
    let listener = host.listen(VmId::CHILDREN, PORT).unwrap();
    web.pair(VmId::PARENT, PORT, &listener);

    // What the broker writes, the other user sees, and no folder is there.
    handle.register(service(PORT + 1), "me".into()).unwrap();
    assert_eq!(shared.other.changes().len(), 1);
    assert!(!shared.folder.path().join("services").exists());
    let taken = handle.register(service(PORT), "me".into()).unwrap_err();
    assert!(matches!(taken, ControlError::Clash(_)), "{taken}");

    // What the other user writes takes effect at once.
    let events = handle.events().unwrap();
    let id = ServiceId::from_port(PORT);
    shared.other.set_enabled(id, false, None).unwrap();
    let mut seen = std::iter::from_fn(|| events.recv_timeout(TIMEOUT));
    let disabled =
        |what: &EventKind| matches!(what, EventKind::ServiceChanged { enabled: false, .. });
    assert!(seen.any(|event| disabled(&event.what)));
    let disabled = refused(web.connect(VmId::PARENT, PORT));
    assert!(matches!(disabled, Refusal::Disabled { .. }), "{disabled}");
    shared.other.remove(ServiceId::from_port(PORT + 1)).unwrap();
    eventually("it is gone", || shared.names() == ["Service 2100"]);
    handle.unregister(&service_ref(PORT)).unwrap();
    assert_eq!(shared.other.load().unwrap().entries, []);
}

#[test]
fn a_registration_that_the_core_refuses_does_not_stay_in_the_store() {
    let mut shared = Shared::new();
    let handle = shared.broker.handle();
    let endpoint = shared.endpoint("endpoint").endpoint();
    let name = format!("Service {}", PORT + 1);
    let id = ServiceId::from_port(PORT + 1);
    let lease = Lease::register_at(&endpoint, &name, id, "a test").unwrap();
    let taken = handle.register(service(PORT + 1), "me".into()).unwrap_err();
    assert!(matches!(taken, ControlError::Clash(_)), "{taken}");
    assert_eq!(shared.other.load().unwrap().entries.len(), 1);
    lease.check().unwrap();

    // Another user's waits until the lease ends.
    let events = handle.events().unwrap();
    shared.other.put(registration(PORT + 1)).unwrap();
    let event = events.recv_timeout(TIMEOUT).expect("an event");
    assert!(matches!(event.what, EventKind::ProblemFound { .. }));
    lease.check().unwrap();
    drop(lease);
    eventually("it is in force", || {
        let found = handle.service(&service_ref(PORT + 1));
        found.is_ok_and(|found| !found.lease && found.owner.as_deref() == Some("other"))
    });
}

#[test]
fn an_import_is_undone_as_a_whole_in_the_store() {
    let mut shared = Shared::new();
    let handle = shared.broker.handle();
    let mut clashing = registration(PORT + 2);
    clashing.name = registration(PORT).name;
    let error = handle
        .import(vec![registration(PORT + 1), clashing])
        .unwrap_err();
    assert!(matches!(error, ControlError::Clash(_)), "{error}");
    // One that only the store can refuse, since the core does not know its limits.
    let mut leased = registration(PORT + 2);
    leased.lease = true;
    let events = handle.events().unwrap();
    let error = handle
        .import(vec![registration(PORT + 1), leased])
        .unwrap_err();
    assert!(matches!(error, ControlError::Store(_)), "{error}");
    assert_eq!(shared.other.load().unwrap().entries.len(), 1);
    assert_eq!(shared.names(), ["Service 2100"]);
    // Nobody has seen it come and go.
    handle.register(service(PORT + 3), "me".into()).unwrap();
    let event = events.recv_timeout(TIMEOUT).expect("an event").what;
    let want = format!("Service {}", PORT + 3);
    assert_eq!(event, EventKind::ServiceRegistered { service: want });
}
