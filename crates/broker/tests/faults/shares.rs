//! Shares of the broker's descriptors. Covers a container and a user that take all that they can get,
//! what others and operators can do meanwhile, and configuration files that cannot be read for a while.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, Instant};

use hvsock::{Refusal, VmId};
use hvsock_broker::model::ProblemKind;
use hvsock_endpoint::BrokerMessage;
use hvsock_testkit::wait::{TIMEOUT, eventually};
use hvsock_testkit::world::{PartitionEndpoint, accept, partition_ref, service_ref};
use hvsock_testkit::{TempFolder, require};
use rustix::process::{Pid, Resource, Rlimit};

use crate::child::BrokerProcess;
use crate::raw::{self, EITHER, Raw};

const PORT: u32 = 900;
/// A low limit of open descriptors.
const LOW: u64 = 256;
/// How long an operator waits at most, even on a loaded machine.
const PROMPT: Duration = Duration::from_secs(30);

/// Opens listeners and connections that nobody accepts until every kind is refused.
fn take_everything(endpoint: &PartitionEndpoint, first: u32) -> (Vec<Raw>, Refusal) {
    let mut taken = Vec::new();
    let request = |message| {
        let raw = Raw::new(endpoint);
        raw.send(&message);
        match raw.recv() {
            BrokerMessage::Listening(_) | BrokerMessage::Connected(_) => Ok(raw),
            BrokerMessage::Refused(refused) => {
                Err(Refusal::from_wire(refused.code, &refused.detail))
            }
            other => panic!("{other:?}"),
        }
    };
    for number in 0..10 {
        let port = first + number;
        match request(raw::listen_by(VmId::LOOPBACK, port, 4096, EITHER, false)) {
            Ok(raw) => taken.push(raw),
            Err(refusal) => return (taken, refusal),
        }
    }
    for number in 0..LOW as u32 {
        let port = first + number % 10;
        match request(raw::connect_by(VmId::LOOPBACK, port, EITHER, false)) {
            Ok(raw) => taken.push(raw),
            Err(_) => break,
        }
    }
    // Connections need more than a listener does.
    loop {
        let port = first + 100 + taken.len() as u32;
        match request(raw::listen(VmId::LOOPBACK, port, 1)) {
            Ok(raw) => taken.push(raw),
            Err(refusal) => return (taken, refusal),
        }
        assert!(taken.len() < LOW as usize, "no bound");
    }
}

/// Checks that others work, and that an operator can see and do everything promptly.
fn others_are_served(broker: &BrokerProcess, others: &[PartitionEndpoint]) {
    for other in others {
        let server = other.listen(VmId::LOOPBACK, PORT + 7).unwrap();
        for _ in 0..3 {
            other.pair(VmId::LOOPBACK, PORT + 7, &server);
        }
    }
    let client = broker.client();
    let began = Instant::now();
    client.status().unwrap();
    client.metrics().unwrap();
    client.connections().unwrap();
    broker.container("new");
    client.remove_partition(&partition_ref("new")).unwrap();
    assert!(began.elapsed() < PROMPT, "{:?}", began.elapsed());
}

fn registration(broker: &BrokerProcess) -> std::path::PathBuf {
    broker.register(PORT);
    let id = hvsock::ServiceId::from_port(PORT);
    broker.folder().join(format!("services/{id}.toml"))
}

fn edit(path: &std::path::Path, enabled: bool) {
    let text = fs::read_to_string(path).unwrap();
    let lines = text.lines().filter(|line| !line.starts_with("enabled"));
    let rest: Vec<&str> = lines.collect();
    fs::write(path, format!("enabled = {enabled}\n{}\n", rest.join("\n"))).unwrap();
}

#[track_caller]
fn is_enabled(broker: &BrokerProcess, enabled: bool) {
    let client = broker.client();
    eventually("the edited file is in force", || {
        client.service(&service_ref(PORT)).unwrap().enabled == enabled
    });
}

#[test]
fn a_container_that_takes_all_it_can_get_locks_out_neither_others_nor_operators() {
    let folder = TempFolder::new();
    let broker = BrokerProcess::start(folder.path(), Some(LOW));
    let (evil, web, host) = (
        broker.container("evil"),
        broker.container("web"),
        broker.host(),
    );
    let file = registration(&broker);
    let (taken, refusal) = take_everything(&evil, 10_000);
    let text = refusal.to_string();
    assert!(
        text.contains("broker descriptors of the partition evil ("),
        "{text}"
    );
    let share_of_evil = || {
        let owners = broker.client().status().unwrap().descriptors.owners;
        let mut shares = owners.into_iter();
        let share = shares.find(|share| share.owner == "partition evil");
        share.expect("it is shown")
    };
    let share = share_of_evil();
    assert!(share.used <= share.limit, "{share:?}");
    others_are_served(&broker, &[web, host.clone()]);
    // What the others keep makes the share of this one smaller than what it has.
    let share = share_of_evil();
    assert!(share.is_short(), "{share:?}");
    let metrics = broker.client().metrics().unwrap();
    let line = format!(
        "hvsock_descriptors_used{{owner=\"partition evil\"}} {}.0",
        share.used
    );
    assert!(metrics.contains(&line), "{line} is not in\n{metrics}");
    // An edit takes effect during the attack, and after it.
    edit(&file, false);
    is_enabled(&broker, false);
    let began = Instant::now();
    let client = broker.client();
    client.remove_partition(&partition_ref("evil")).unwrap();
    assert!(began.elapsed() < PROMPT);
    drop(taken);
    edit(&file, true);
    is_enabled(&broker, true);
    eventually("all is free again", || {
        let owners = client.status().unwrap().descriptors.owners;
        owners.iter().all(|share| share.owner != "partition evil")
    });
}

#[test]
fn a_user_that_takes_all_it_can_get_locks_out_neither_others_nor_operators() {
    let Some(()) = require::root() else { return };
    let folder = TempFolder::new();
    fs::set_permissions(folder.path(), Permissions::from_mode(0o755)).unwrap();
    let broker = BrokerProcess::start(folder.path(), Some(LOW));
    let (web, host) = (broker.container("web"), broker.host());
    let take = |uid| {
        std::thread::scope(|scope| {
            let host = &host;
            // The user id belongs to the thread, and ends with it.
            let attack = scope.spawn(move || {
                let uid = rustix::process::Uid::from_raw(uid);
                rustix::thread::set_thread_res_uid(uid, uid, uid).expect("root may");
                take_everything(host, 10_000 * uid.as_raw())
            });
            attack.join().unwrap()
        })
    };
    let (one, refusal) = take(2001);
    let text = refusal.to_string();
    assert!(
        text.contains("broker descriptors of the user 2001 ("),
        "{text}"
    );
    // Another user gets a share of the rest.
    let (other, _) = take(2002);
    assert!(other.len() > one.len() / 2, "{} {}", other.len(), one.len());
    others_are_served(&broker, &[web, host.clone()]);
}

/// Lower than the number of descriptors that the broker has open.
const LOWEST: u64 = 8;

/// Sets the limit of open descriptors of the broker.
fn set_limit(broker: &BrokerProcess, limit: u64) {
    let pid = i32::try_from(broker.child.process.id()).ok();
    let limit = Rlimit {
        current: Some(limit),
        maximum: Some(LOW),
    };
    let pid = pid.and_then(Pid::from_raw);
    rustix::process::prlimit(pid, Resource::Nofile, limit).unwrap();
}

#[test]
fn a_file_that_cannot_be_read_for_lack_of_descriptors_is_read_when_there_are_some() {
    let folder = TempFolder::new();
    let broker = BrokerProcess::start(folder.path(), Some(LOW));
    let file = registration(&broker);
    let defaults = folder.path().join("defaults.toml");
    let client = broker.client();
    // A connection that stays, since none can be accepted meanwhile.
    client.status().unwrap();
    set_limit(&broker, LOWEST);
    edit(&file, false);
    fs::write(&defaults, "allow_wildcard_binds = false\n").unwrap();
    fs::write(
        folder.path().join("partitions/late.toml"),
        "kind = \"container\"\nid = \"0b2f1f0e-0000-4000-8000-000000000001\"\n",
    )
    .unwrap();
    // The broker fails to read it at least once.
    std::thread::sleep(Duration::from_millis(400));
    set_limit(&broker, LOW);
    is_enabled(&broker, false);
    let began = Instant::now();
    eventually("the partition is there", || {
        let partitions = broker.client().partitions().unwrap();
        partitions
            .iter()
            .any(|partition| partition.name.as_str() == "late")
    });
    eventually("no problem is left", || {
        let problems = broker.client().status().unwrap().problems;
        let of_files = |kind| matches!(kind, ProblemKind::ConfigFile | ProblemKind::ConfigRefused);
        problems.iter().all(|problem| !of_files(problem.kind))
    });
    assert!(began.elapsed() < TIMEOUT);
}

#[test]
fn clients_that_come_without_a_free_descriptor_are_served_when_there_are_some() {
    let folder = TempFolder::new();
    let broker = BrokerProcess::start(folder.path(), Some(LOW));
    let host = broker.host();
    let server = host.listen(VmId::LOOPBACK, PORT).unwrap();
    set_limit(&broker, LOWEST);
    let before = broker.cpu_time();
    let clients = [(); 5].map(|()| {
        let host = host.clone();
        std::thread::spawn(move || host.connect(VmId::LOOPBACK, PORT))
    });
    let client = broker.client();
    let status = std::thread::spawn(move || client.status());
    std::thread::sleep(Duration::from_millis(500));
    let used = broker.cpu_time() - before;
    assert!(used < Duration::from_millis(300), "a busy loop: {used:?}");
    set_limit(&broker, LOW);
    status.join().unwrap().unwrap();
    for client in clients {
        let _client = client.join().unwrap().unwrap();
        accept(&server);
    }
}
