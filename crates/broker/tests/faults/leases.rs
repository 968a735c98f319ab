//! Leases, which end with their process. Covers leases that end or clash with registrations, and
//! files that name a leased service.

use std::fs;
use std::io;

use hvsock::{HvListener, Lease, Refusal, ServiceId, VmId};
use hvsock_broker::ControlError;

use hvsock_testkit::wait::eventually;
use hvsock_testkit::world::{PartitionEndpoint, World, refusal, refused, service, service_ref};

const PORT: u32 = 600;

fn lease(endpoint: &PartitionEndpoint, port: u32) -> io::Result<Lease> {
    let (name, id) = (format!("Service {port}"), ServiceId::from_port(port));
    Lease::register_at(&endpoint.endpoint(), &name, id, "a test")
}

#[test]
fn a_lease_ended_by_an_operator_does_not_end_its_successor() {
    let world = World::new();
    let first = lease(&world.host(), PORT).unwrap();
    world.handle().unregister(&service_ref(PORT)).unwrap();
    let mut ended = None;
    eventually("the lease is ended", || {
        ended = first.check().err();
        ended.is_some()
    });
    assert_eq!(refusal(&ended.unwrap()), Refusal::Unregistered);
    world.register(PORT);
    drop(first);
    let second = lease(&world.host(), PORT + 1).unwrap();
    world.handle().unregister(&service_ref(PORT + 1)).unwrap();
    let third = lease(&world.host(), PORT + 1).unwrap();
    drop(second);
    // The broker handles the ends of both before this later lease.
    drop(lease(&world.host(), PORT + 2).unwrap());
    let kept = world.handle().service(&service_ref(PORT)).unwrap();
    assert!(!kept.lease);
    third.check().unwrap();
    assert!(
        world
            .handle()
            .service(&service_ref(PORT + 1))
            .unwrap()
            .lease
    );
}

#[test]
fn a_lease_and_a_registration_cannot_replace_each_other() {
    let world = World::new();
    world.register(PORT);
    let denied = refused(lease(&world.host(), PORT));
    assert!(
        matches!(&denied, Refusal::Denied { rule } if rule.contains("tester")),
        "{denied}"
    );
    let held = lease(&world.host(), PORT + 1).unwrap();
    let error = world
        .handle()
        .register(service(PORT + 1), "tester".into())
        .unwrap_err();
    assert!(matches!(error, ControlError::Clash(_)), "{error}");
    let path = world.folder.join("services");
    assert_eq!(toml_files(&path), 1, "nothing was written");
    let error = world
        .handle()
        .set_enabled(&service_ref(PORT + 1), false, None)
        .unwrap_err();
    assert!(error.to_string().contains("lease"), "{error}");
    held.check().unwrap();
}

fn toml_files(folder: &std::path::Path) -> usize {
    let entries = fs::read_dir(folder).unwrap().flatten();
    entries
        .filter(|entry| entry.path().extension().is_some_and(|e| e == "toml"))
        .count()
}

#[test]
fn a_file_that_names_a_leased_service_takes_effect_when_the_lease_ends() {
    let world = World::new();
    let held = lease(&world.host(), PORT).unwrap();
    let events = world.handle().events().unwrap();
    let id = ServiceId::from_port(PORT);
    let path = world.folder.join(format!("services/{id}.toml"));
    let write = |text: &str| {
        let part = path.with_extension("part");
        fs::write(&part, text).unwrap();
        fs::rename(&part, &path).unwrap();
    };
    let wait_for_problem = || {
        eventually("the problem is reported", || {
            let event = events.recv_timeout(hvsock_testkit::wait::TIMEOUT);
            matches!(
                event.expect("an event").what,
                hvsock_broker::model::EventKind::ProblemFound { .. }
            )
        });
    };
    write("name = \"From a file\"\n");
    wait_for_problem();
    // A change of the file changes nothing while the lease lasts.
    write("name = \"From a changed file\"\n");
    wait_for_problem();
    let seen = || world.handle().service(&service_ref(PORT)).unwrap();
    assert!(seen().lease && seen().name.as_str() == "Service 600");
    held.check().unwrap();
    drop(held);
    eventually("the file is in effect", || {
        let service = world.handle().service(&service_ref(PORT));
        service.is_ok_and(|service| service.name.as_str() == "From a changed file")
    });
    assert!(!seen().lease);

    fs::remove_file(&path).unwrap();
    eventually("the service is gone", || {
        world.handle().service(&service_ref(PORT)).is_err()
    });
    let held = lease(&world.host(), PORT).unwrap();
    write("name = \"From a file\"\n");
    wait_for_problem();
    fs::remove_file(&path).unwrap();
    eventually("the store has seen the removal", || {
        world.handle().export().unwrap().is_empty()
    });
    held.check().unwrap();
    assert!(seen().lease);
}

#[test]
fn a_leased_service_can_be_used_until_its_lease_ends() {
    let world = World::new();
    let (host, web) = (world.host(), world.container("web", None));
    let held = lease(&host, PORT).unwrap();
    let listener = host.listen(VmId::CHILDREN, PORT).unwrap();
    web.pair(VmId::PARENT, PORT, &listener);
    drop(held);
    let error = listener
        .accept_timeout(hvsock_testkit::wait::TIMEOUT)
        .unwrap_err();
    assert_eq!(refusal(&error), Refusal::Unregistered);
    let unregistered = refused(web.connect(VmId::PARENT, PORT));
    assert_eq!(unregistered, Refusal::Unregistered);
}

#[test]
fn a_process_takes_its_lease_and_its_listener_again_right_after_it_closed_them() {
    let world = World::new();
    let host = world.host();
    for _ in 0..300 {
        let lease = lease(&host, PORT).unwrap();
        let listener = host.listen(VmId::LOOPBACK, PORT).unwrap();
        drop(listener);
        let at = (VmId::LOOPBACK, ServiceId::from_port(PORT));
        let options = HvListener::options().endpoint(host.endpoint());
        assert_eq!(options.explain(at).unwrap().refusal(), None);
        let again = host.listen(VmId::LOOPBACK, PORT).unwrap();
        drop((again, lease));
    }
}
