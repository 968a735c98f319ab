//! The text protocol: CONNECT, WHY, LOOKUP and CID, lines in pieces, hostile lines, and many silent clients.

use std::io::{BufRead as _, BufReader, ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use hvsock::VmId;
use hvsock_endpoint::TextReply;
use hvsock_testkit::TempFolder;
use hvsock_testkit::wait::{TIMEOUT, eventually};
use hvsock_testkit::world::{PartitionEndpoint, World, accept, partition_ref, service};

use crate::child::BrokerProcess;

const PORT: u32 = 940;

/// A client of the text protocol, beside an endpoint.
#[track_caller]
pub fn client(endpoint: &PartitionEndpoint) -> UnixStream {
    let text = endpoint.0.with_file_name("text");
    let client = UnixStream::connect(text).expect("the broker takes clients");
    client.set_read_timeout(Some(TIMEOUT)).expect("a timeout");
    client.set_write_timeout(Some(TIMEOUT)).expect("a timeout");
    client
}

/// Reads a line, and nothing after it.
#[track_caller]
pub fn line(mut client: &UnixStream) -> String {
    let mut line = Vec::new();
    let mut byte = [0];
    while line.last() != Some(&b'\n') {
        assert_eq!(client.read(&mut byte).expect("a byte"), 1, "{line:?}");
        line.push(byte[0]);
    }
    String::from_utf8(line).expect("text")
}

/// Sends a line and reads the answer.
#[track_caller]
pub fn ask(endpoint: &PartitionEndpoint, request: &str) -> (UnixStream, TextReply) {
    let mut client = client(endpoint);
    client
        .write_all(format!("{request}\n").as_bytes())
        .expect("a line");
    let answer = TextReply::parse(line(&client).as_bytes()).expect("an answer");
    (client, answer)
}

/// Sends a line, and reads a refusal and the end. Returns label and reason.
#[track_caller]
pub fn refused(endpoint: &PartitionEndpoint, request: &str) -> (String, String) {
    let (mut client, answer) = ask(endpoint, request);
    let TextReply::Refused { label, reason } = answer else {
        panic!("{request:?}: {answer}");
    };
    assert_eq!(client.read(&mut [0]).expect("the end"), 0, "{request:?}");
    assert!(!reason.contains(char::is_control) && !reason.is_empty());
    (label, reason)
}

#[track_caller]
fn answered(endpoint: &PartitionEndpoint, request: &str) -> String {
    let (mut client, answer) = ask(endpoint, request);
    let TextReply::Ok(text) = answer else {
        panic!("{request:?}: {answer}");
    };
    assert_eq!(client.read(&mut [0]).expect("the end"), 0, "{request:?}");
    text
}

#[track_caller]
fn exchange(mut client: &UnixStream, mut peer: impl Read + Write) {
    client.write_all(b"question").expect("a write");
    let mut bytes = [0; 8];
    peer.read_exact(&mut bytes).expect("the bytes");
    assert_eq!(&bytes, b"question");
    peer.write_all(b"42").expect("a write");
    client.read_exact(&mut bytes[..2]).expect("the bytes");
    assert_eq!(&bytes[..2], b"42");
}

#[test]
fn a_line_connects_a_process_of_the_host_or_of_a_container() {
    let world = World::new();
    let (host, web) = (world.host(), world.container("web", None));
    let named = service(PORT);
    let name = named.name.to_string();
    world.handle().register(named, "tester".into()).unwrap();
    let inner = host.listen(VmId::LOOPBACK, PORT).unwrap();
    let outer = host.listen(VmId::CHILDREN, PORT).unwrap();
    let inside = web.listen(VmId::PARENT, PORT).unwrap();
    let web_id = world.handle().partition(&partition_ref("web")).unwrap();
    let cid = web_id.cid.unwrap();
    for (from, request, listener) in [
        (&host, format!("CONNECT loopback {PORT}"), &inner),
        (&host, format!("connect cid:1 port:{PORT}"), &inner),
        (&host, format!("CONNECT loopback {name}\r"), &inner),
        (&web, format!("CONNECT parent {name}"), &outer),
        (
            &web,
            format!("CONNECT timeout=2000 silohost {PORT}"),
            &outer,
        ),
        (&web, format!("CONNECT cid:2 {name}"), &outer),
        (&host, format!("CONNECT web {name}"), &inside),
        (&host, format!("CONNECT {} {PORT}", web_id.id), &inside),
        (&host, format!("CONNECT cid:{cid} {PORT}"), &inside),
    ] {
        let (client, answer) = ask(from, &request);
        let connection = world.connection();
        let shown = |key| answer.value(key).unwrap_or_default().to_owned();
        assert_eq!(
            shown("connection"),
            connection.id.to_string(),
            "{request}: {answer}"
        );
        assert_eq!(
            shown("service"),
            hvsock::ServiceId::from_port(PORT).to_string()
        );
        assert!(shown("local").parse::<VmId>().is_ok() && shown("peer").parse::<VmId>().is_ok());
        assert_eq!(connection.transport, "attached");
        assert_eq!(connection.from.pid, std::process::id());
        exchange(&client, accept(listener));
        drop(client);
        world.has_connections(0);
    }
    // As Firecracker has it.
    let (client, answer) = ask(&web, &format!("CONNECT {PORT}"));
    let TextReply::Ok(number) = &answer else {
        panic!("{answer}");
    };
    assert_eq!(number.parse(), Ok(world.connection().id));
    exchange(&client, accept(&outer));
}

#[test]
fn a_line_arrives_in_pieces_or_with_data_behind_it() {
    let world = World::new();
    let host = world.host();
    let listener = host.listen(VmId::LOOPBACK, PORT).unwrap();
    let request = format!("CONNECT loopback {PORT}\n");
    let mut slow = client(&host);
    for byte in request.bytes() {
        slow.write_all(&[byte]).unwrap();
    }
    assert!(line(&slow).starts_with("OK connection="));
    exchange(&slow, accept(&listener));

    let mut fast = client(&host);
    fast.write_all(format!("{request}LISTEN is data\n").as_bytes())
        .unwrap();
    fast.shutdown(Shutdown::Write).unwrap();
    let mut peer = accept(&listener);
    // The peer answers at once, and the answer of the broker comes before.
    peer.write_all(b"greeting").unwrap();
    let mut all = String::new();
    peer.read_to_string(&mut all).unwrap();
    assert_eq!(all, "LISTEN is data\n");
    assert!(line(&fast).starts_with("OK "));
    drop(peer);
    all.clear();
    fast.read_to_string(&mut all).unwrap();
    assert_eq!(all, "greeting");
}

#[test]
fn both_ends_half_close_and_close_for_good() {
    let world = World::new();
    let host = world.host();
    let listener = host.listen(VmId::LOOPBACK, PORT).unwrap();
    let open = || {
        let (client, answer) = ask(&host, &format!("CONNECT loopback {PORT}"));
        assert!(matches!(answer, TextReply::Ok(_)));
        (client, accept(&listener))
    };
    let (mut client, mut peer) = open();
    client.shutdown(Shutdown::Write).unwrap();
    assert_eq!(peer.read(&mut [0]).unwrap(), 0);
    peer.write_all(b"more").unwrap();
    peer.shutdown(Shutdown::Write).unwrap();
    let mut all = String::new();
    client.read_to_string(&mut all).unwrap();
    assert_eq!(all, "more");
    world.has_connections(0);

    let (mut client, peer) = open();
    drop(peer);
    assert_eq!(client.read(&mut [0]).unwrap(), 0);
    eventually("a write succeeds", || client.write_all(b"x").is_err());
    let (client, mut peer) = open();
    drop(client);
    assert_eq!(peer.read(&mut [0]).unwrap(), 0);
    world.has_connections(0);
    // No success is told of data that nobody read.
    let (mut client, mut peer) = open();
    peer.write_all(b"unread").unwrap();
    client.read_exact(&mut [0]).unwrap();
    drop(client);
    eventually("the loss is not told", || peer.write_all(b"x").is_err());
}

#[test]
fn refusals_are_lines_with_the_label_and_the_reason() {
    let world = World::new();
    let (host, web) = (world.host(), world.container("web", None));
    for (from, request, label) in [
        (&host, format!("CONNECT loopback {PORT}"), "no_listener"),
        (
            &host,
            "CONNECT loopback No Such Service".into(),
            "unregistered",
        ),
        (&host, format!("CONNECT nobody {PORT}"), "partition_unknown"),
        (&host, format!("CONNECT cid:77 {PORT}"), "partition_unknown"),
        (&host, format!("CONNECT parent {PORT}"), "not_supported"),
        (&host, format!("CONNECT {PORT}"), "not_supported"),
        (
            &host,
            format!("CONNECT any {PORT}"),
            "address_not_available",
        ),
        (&web, format!("CONNECT nobody {PORT}"), "not_reachable"),
        (&web, format!("CONNECT cid:77 {PORT}"), "not_reachable"),
        (&web, format!("CONNECT parent {PORT}"), "unregistered"),
        (&web, format!("CONNECT {PORT}"), "unregistered"),
        (&host, "LOOKUP partition nobody".into(), "partition_unknown"),
        (
            &host,
            "LOOKUP service No Such Service".into(),
            "unregistered",
        ),
        (&host, "CID nobody".into(), "partition_unknown"),
        (&host, "CID parent".into(), "not_supported"),
        (&host, "CONNECT loopback".into(), "invalid_request"),
        (&host, "CONNECT new=1 loopback 1".into(), "invalid_request"),
        (
            &host,
            "CONNECT loopback a\u{1b}[2Jb".into(),
            "invalid_request",
        ),
        (&host, "UPGRADE h2".into(), "invalid_request"),
        (&host, String::new(), "invalid_request"),
        (
            &host,
            "ACCEPT 5ca1ab1e-0000-4000-8000-000000000000".into(),
            "no_listener",
        ),
        (&host, format!("LISTEN parent {PORT}"), "not_supported"),
        (&web, format!("LISTEN parent {PORT}"), "unregistered"),
    ] {
        assert_eq!(refused(from, &request).0, label, "{request}");
    }
    let counted = world.handle().metrics().unwrap().refusals;
    assert_eq!(counted.get("no_listener"), Some(&1));
}

#[test]
fn lookups_and_explanations_are_answered_as_text() {
    let world = World::new();
    let (host, web) = (world.host(), world.container("web", None));
    let named = service(PORT);
    let id = named.id.expect("an id").to_string();
    let name = named.name.to_string();
    world.handle().register(named, "tester".into()).unwrap();
    let partition = world.handle().partition(&partition_ref("web")).unwrap();
    let cid = partition.cid.unwrap();
    for (from, request, answer) in [
        (
            &host,
            "LOOKUP partition web".to_owned(),
            partition.id.to_string(),
        ),
        (
            &host,
            format!("LOOKUP partition cid:{cid}"),
            partition.id.to_string(),
        ),
        (
            &host,
            "LOOKUP partition parent".into(),
            VmId::PARENT.to_string(),
        ),
        (
            &web,
            "LOOKUP partition cid:2".into(),
            VmId::PARENT.to_string(),
        ),
        (&web, format!("LOOKUP service {name}"), id.clone()),
        (
            &web,
            format!("LOOKUP service {PORT}"),
            hvsock::ServiceId::from_port(PORT).to_string(),
        ),
        (&host, "CID web".into(), cid.to_string()),
        (&host, "CID loopback".into(), "2".into()),
        (&web, "CID loopback".into(), cid.to_string()),
        (&web, "cid parent".into(), "2".into()),
    ] {
        assert_eq!(answered(from, &request), answer, "{request}");
    }
    let why = |request: &str| {
        let (client, answer) = ask(&web, request);
        let lines: Vec<String> = BufReader::new(client).lines().map(Result::unwrap).collect();
        (answer, lines)
    };
    let (answer, lines) = why(&format!("WHY parent {name}"));
    assert!(
        answer.to_string().starts_with("ERR no_listener "),
        "{answer}"
    );
    assert!(
        lines
            .iter()
            .any(|line| line.starts_with("fix\tstart_listener\t")),
        "{lines:#?}"
    );
    assert!(
        lines.iter().any(|line| line.starts_with("pass\t")),
        "{lines:#?}"
    );
    let _listener = host.listen(VmId::CHILDREN, PORT).unwrap();
    let (answer, lines) = why(&format!("WHY parent {name}"));
    assert_eq!(answer, TextReply::Ok(String::new()));
    assert!(!lines.is_empty() && lines.iter().all(|line| line.starts_with("pass\t")));
    world.has_connections(0);
}

#[test]
fn hostile_lines_are_refused_or_end_the_client_and_disturb_nobody() {
    let world = World::new();
    let host = world.host();
    let listener = host.listen(VmId::LOOPBACK, PORT).unwrap();
    let (kept, _) = ask(&host, &format!("CONNECT loopback {PORT}"));
    let mut peer = accept(&listener);
    let mut hostile: Vec<Vec<u8>> = [
        &b"\n"[..],
        b"\0\n",
        b"\xff\xfe\n",
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"CONNECT loopback \xff\n",
        b"LISTEN backlog=99999999999 any 1\n",
        b"ACCEPT ........-....-....-....-............\n",
        b"LOOKUP\n",
    ]
    .map(<[u8]>::to_vec)
    .into();
    hostile.push(vec![b' '; 5000]);
    hostile.push([&b"CONNECT loopback "[..], &vec![b'x'; 9000], b"\n"].concat());
    hostile.push([&b"CONNECT "[..], &vec![b'9'; 300], b"\n"].concat());
    for bytes in &hostile {
        let mut client = client(&host);
        // The broker may answer and close before all is written.
        let _ = client.write_all(bytes);
        let answer = line(&client);
        assert!(answer.starts_with("ERR "), "{bytes:?}: {answer}");
        assert!(answer.len() <= 4096 && !answer.trim_end().contains(char::is_control));
    }
    // A line that never ends, and one that is cut.
    let mut cut = client(&host);
    cut.write_all(b"CONNECT loopback 9").unwrap();
    cut.shutdown(Shutdown::Write).unwrap();
    assert!(line(&cut).contains("without a newline"));
    drop(client(&host));
    exchange(&kept, &mut peer);
}

#[test]
fn silent_clients_make_place_for_others_and_are_told_when_their_time_is_over() {
    let world = World::with(|config| {
        config.idle_sessions = 8;
        config.idle_timeout = Duration::from_millis(300);
    });
    let host = world.host();
    let listener = host.listen(VmId::LOOPBACK, PORT).unwrap();
    let started = Instant::now();
    let silent: Vec<UnixStream> = (0..20)
        .map(|_| {
            let mut client = client(&host);
            client.write_all(b"CONNECT loo").unwrap();
            client
        })
        .collect();
    let (client, _) = ask(&host, &format!("CONNECT loopback {PORT}"));
    exchange(&client, accept(&listener));
    let mut labels = Vec::new();
    for client in &silent {
        let TextReply::Refused { label, .. } = TextReply::parse(line(client).as_bytes()).unwrap()
        else {
            panic!("no refusal");
        };
        labels.push(label);
    }
    assert!(started.elapsed() < TIMEOUT);
    labels.sort();
    labels.dedup();
    assert_eq!(labels, ["limit_reached", "timed_out"]);
}

#[test]
fn the_socket_is_beside_each_endpoint_and_is_made_again_and_removed_with_it() {
    let folder = TempFolder::new();
    {
        let world = World::new();
        let web = world.container("web", None);
        for endpoint in [world.host(), web] {
            let text = endpoint.0.with_file_name("text");
            let found = std::fs::symlink_metadata(&text).unwrap();
            assert!(found.file_type().is_socket());
            assert_eq!(found.permissions().mode() & 0o777, 0o666);
        }
        let text = world.inside("web").0.with_file_name("text");
        std::fs::remove_file(&text).unwrap();
        let again = hvsock_testkit::world::container("web", &[]);
        let again = hvsock_broker::model::NewContainer {
            if_absent: true,
            ..again
        };
        world.handle().add_container(again).unwrap();
        assert_eq!(answered(&world.inside("web"), "CID parent"), "2");
        world
            .handle()
            .remove_partition(&partition_ref("web"))
            .unwrap();
        assert!(!text.exists());
    }
    // A killed broker leaves its sockets behind.
    let broker = BrokerProcess::start(folder.path(), None);
    let text = folder.path().join("text");
    assert!(text.exists());
    drop(broker);
    assert!(text.exists());
    let broker = BrokerProcess::start(folder.path(), None);
    assert_eq!(answered(&broker.host(), "CID loopback"), "2");
    drop(broker);
    let error = UnixStream::connect(&text).unwrap_err().kind();
    assert!(
        matches!(error, ErrorKind::NotFound | ErrorKind::ConnectionRefused),
        "{error}"
    );
}
