//! The records of connections and listeners in the audit.

use std::io::{Read as _, Write as _};

use hvsock::VmId;
use hvsock_broker::RecordScope;
use hvsock_broker::model::{AuditCategory, AuditFilter, AuditOutcome, AuditRecord};
use hvsock_client::Client;
use hvsock_testkit::wait::eventually;
use hvsock_testkit::world::{PORT, World, accept, address, partition_ref, refused, service_ref};

/// The records of connections and listeners, oldest first.
fn records(world: &World) -> Vec<AuditRecord> {
    let all = world
        .handle()
        .audit(RecordScope::All, AuditFilter::default());
    let all = all.unwrap();
    let connections = all
        .iter()
        .filter(|one| one.category != AuditCategory::Change);
    connections.map(|one| AuditRecord::clone(one)).collect()
}

/// Waits until the newest record has this action, and returns it.
fn until(world: &World, action: &str) -> AuditRecord {
    let mut last = None;
    eventually("the record is there", || {
        last = records(world).pop();
        last.as_ref().is_some_and(|one| one.action == action)
    });
    last.unwrap()
}

#[test]
fn a_connection_between_partitions_is_recorded_before_it_is_used_and_when_it_ends() {
    let world = World::new();
    world.register(PORT);
    let web = world.container("web", None);
    let listener = world.host().listen(VmId::WILDCARD, PORT).unwrap();
    let listen = until(&world, "listen");
    let own = std::process::id();
    let actor = listen.actor.unwrap();
    assert_eq!(
        (actor.partition.as_str(), actor.pid),
        ("testhost", Some(own))
    );

    let mut client = web.connect(VmId::PARENT, PORT).unwrap();
    // It is there when the process has its connection.
    let connect = records(&world).pop().unwrap();
    assert_eq!(connect.action, "connect");
    assert_eq!(connect.outcome, AuditOutcome::Allowed);
    assert_eq!(connect.target.as_deref(), Some("testhost"));
    assert_eq!(connect.connection, Some(client.connection_id()));
    let actor = connect.actor.unwrap();
    assert_eq!(actor.partition, "web");
    // The number means nothing here, so it has no name.
    assert_eq!(actor.uid, Some(rustix::process::geteuid().as_raw()));
    assert_eq!(actor.user, None);
    let program = std::fs::read_link("/proc/self/exe").unwrap();
    assert_eq!(actor.program.as_deref(), program.to_str());

    let mut server = accept(&listener);
    client.write_all(b"hello").unwrap();
    drop(client);
    let mut text = String::new();
    server.read_to_string(&mut text).unwrap();
    drop(server);
    let end = until(&world, "disconnect");
    assert_eq!((end.outcome, end.reason), (AuditOutcome::Ended, None));
    assert_eq!(end.connection, connect.connection);
    assert_eq!(end.ended.unwrap().bytes_sent, Some(5));
}

#[test]
fn loopback_and_dry_runs_leave_no_record() {
    let world = World::new();
    world.register(PORT);
    let web = world.container("web", None);
    let listener = world.host().listen(VmId::LOOPBACK, PORT).unwrap();
    let client = world.host().connect(VmId::LOOPBACK, PORT).unwrap();
    drop((accept(&listener), client));
    let dry = web.options().explain(address(VmId::PARENT, PORT)).unwrap();
    assert!(dry.refusal().is_some());
    let by_name = world.host().options().explain(("no-such", "Nothing"));
    assert!(by_name.unwrap().refusal().is_some());
    assert_eq!(records(&world), []);
}

#[test]
fn a_refused_request_is_recorded_with_its_reason_and_with_what_it_claims_to_be_for() {
    let world = World::new();
    world.register(PORT);
    let web = world.container("web", None);
    let detail = "cat\n/etc/shadow\x1b[2J\u{202e}";
    let refusal = refused(
        web.options()
            .describe("ex\nec", detail)
            .connect(address(VmId::PARENT, PORT)),
    );
    let record = records(&world).pop().unwrap();
    assert_eq!(record.outcome, AuditOutcome::Refused);
    assert_eq!(record.reason, Some(refusal.to_string()));
    let claim = record.claim.unwrap();
    assert_eq!(claim.action, "ex\\nec");
    assert_eq!(claim.detail, "cat\\n/etc/shadow\\u{1b}[2J\\u{202e}");

    refused(world.host().options().connect(("no-such", "Nothing")));
    let record = records(&world).pop().unwrap();
    assert_eq!(record.action, "connect");
    assert_eq!(record.target.as_deref(), Some("no-such"));
    assert_eq!(record.service.as_deref(), Some("Nothing"));

    // A listen that the registry does not allow.
    refused(world.host().listen(VmId::CHILDREN, PORT + 1));
    let record = records(&world).pop().unwrap();
    assert_eq!(
        (record.action.as_str(), record.outcome),
        ("listen", AuditOutcome::Refused)
    );
}

#[test]
fn the_end_of_a_connection_that_is_closed_has_the_reason() {
    let world = World::new();
    world.register(PORT);
    let web = world.container("web", None);
    let listener = world.host().listen(VmId::WILDCARD, PORT).unwrap();
    let client = web.connect(VmId::PARENT, PORT).unwrap();
    let server = accept(&listener);
    world
        .handle()
        .set_enabled(&service_ref(PORT), false, None)
        .unwrap();
    let end = until(&world, "disconnect");
    assert!(end.reason.unwrap().contains("disabled"));
    drop((client, server));
}

#[test]
fn a_removed_partition_is_named_in_the_ends_of_its_connections() {
    let world = World::new();
    world.register(PORT);
    let web = world.container("web", None);
    let listener = world.host().listen(VmId::WILDCARD, PORT).unwrap();
    let client = web.connect(VmId::PARENT, PORT).unwrap();
    let server = accept(&listener);
    world
        .handle()
        .remove_partition(&partition_ref("web"))
        .unwrap();
    let end = until(&world, "disconnect");
    assert_eq!(end.actor.unwrap().partition, "web");
    drop((client, server));
}

#[test]
fn a_flood_of_one_partition_is_left_out_and_counted_and_hides_no_other_partition() {
    let world = World::new();
    world.register(PORT);
    let (flood, quiet) = (
        world.container("flood", None),
        world.container("quiet", None),
    );
    for _ in 0..400 {
        refused(flood.connect(VmId::PARENT, PORT));
    }
    refused(quiet.connect(VmId::PARENT, PORT));
    let by = |name: &str| {
        let of_name = |one: &AuditRecord| one.actor.as_ref().is_some_and(|by| by.partition == name);
        records(&world).into_iter().filter(of_name).count() as u64
    };
    assert_eq!(by("quiet"), 1);
    let left_out = world.handle().metrics().unwrap().audit.left_out;
    assert_eq!(by("flood") + left_out, 400);
    assert!(left_out > 0);
}

#[test]
fn only_the_process_of_a_connection_states_its_result_also_after_its_end() {
    let world = World::with(|config| config.control = true);
    world.register(PORT);
    let web = world.container("web", None);
    let inside = web.listen_without_arenas(VmId::PARENT, PORT, 128).unwrap();
    let host = world.host();
    let to_web = || {
        let vm = world.partition("web").id;
        let client = host.connect(vm, PORT).unwrap();
        let server = accept(&inside);
        (client, server)
    };
    let control = Client::new(world.dirs().control()).unwrap();
    let (client, server) = to_web();
    let id = client.connection_id();
    control.state_result(id, "exit status 1\n").unwrap();
    drop((client, server));
    let end = until(&world, "disconnect");
    assert_eq!(
        end.claim.unwrap().result.as_deref(),
        Some("exit status 1\\n")
    );

    let (client, server) = to_web();
    let id = client.connection_id();
    drop((client, server));
    until(&world, "disconnect");
    control.state_result(id, "late").unwrap();
    let result = until(&world, "result");
    assert_eq!(
        (result.connection, result.target.as_deref()),
        (Some(id), Some("web"))
    );
    assert_eq!(result.claim.unwrap().result.as_deref(), Some("late"));

    // A connection from a container is another process, whatever its number.
    let listener = host.listen(VmId::CHILDREN, PORT).unwrap();
    let client = web.connect(VmId::PARENT, PORT).unwrap();
    let server = accept(&listener);
    assert!(
        control
            .state_result(client.connection_id(), "forged")
            .is_err()
    );
    assert!(control.state_result(u64::MAX, "forged").is_err());
    drop((client, server));
}
