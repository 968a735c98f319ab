//! Uplinks that another process takes over. Their guests read and write as if nothing had been.

use std::os::fd::OwnedFd;
use std::time::Duration;

use hvsock_address::{ServiceId, VmId};
use hvsock_endpoint::uplink::{
    FrameReader, GuestFrame, HostFrame, MAX_CHILDREN, Service, ServiceFlags,
};
use hvsock_sys::stream;
use serde_json::{Value, json};

use super::snapshot::{ClientSnapshot, UPLINKS_SNAPSHOT_VERSION, UplinksSnapshot};
use super::*;
use crate::budget::{Budget, Owner, Shares};
use crate::handover::testing::exported;
use crate::handover::{HandoverError, Imports};
use crate::uplink::{Client, Clients, GuestStream, Received, Role};

const PORT: u32 = 1 << 24;

fn key(number: u64) -> PartitionKey {
    PartitionKey::from_u64(number)
}

fn charge() -> Charge {
    let budget = Budget::new(Shares::new(100, 4));
    budget.charge_beyond(Owner::Partition(key(1)), 1)
}

fn service(number: u32, name: &str) -> Service {
    Service {
        service: ServiceId::from_port(number),
        flags: ServiceFlags::default(),
        name: name.to_owned(),
    }
}

fn bytes(frame: &GuestFrame) -> Vec<u8> {
    let mut bytes = Vec::new();
    frame.append(&mut bytes);
    bytes
}

/// The core's tables of guests' connections.
#[derive(Default)]
struct Tables {
    clients: Clients<GuestStream>,
    uplinks: Uplinks,
}

impl Tables {
    /// The uplink of a VM with two containers, a connect in each direction, and frames that wait.
    fn full(now: Instant) -> (Self, OwnedFd) {
        let mut tables = Self::default();
        let (own, guest) = stream::pair().unwrap();
        for socket in [&own, &guest] {
            hvsock_sys::set_nonblocking(socket, true).unwrap();
        }
        let client = Client::new(key(1), Some(1023), GuestStream::new(own, charge()), now);
        let times = (now, now + Duration::from_secs(5));
        let index = tables.clients.insert(client.resume(Role::Uplink, 1, times));
        let mut session = UplinkSession::new(now);
        session
            .mirror
            .set(ServiceId::from_port(1), Some(service(1, "one")));
        assert!(session.next_frame().is_some());
        tables.uplinks.open(key(1), index, session, now);
        for number in [1, 2] {
            let partition = key(10 + u64::from(number));
            tables.uplinks.add_child(key(1), ChildId(number), partition);
        }
        let connect = ExpectedConnect {
            request: Request(9),
            from: key(11),
            address: SockAddrHv::new(VmId::PARENT, ServiceId::from_port(5000)),
            deadline: now + Duration::from_secs(4),
            _charge: None,
        };
        tables.uplinks.expect(key(1), PORT, connect).unwrap();
        let asked = tables
            .uplinks
            .begin_incoming(key(1), ConnectionId::from_u64(77));
        assert_eq!(asked, Ok(Request(1)));
        let uplink = tables.uplinks.get_mut(key(1)).unwrap();
        let mirror = &mut uplink.session.mirror;
        mirror.set(ServiceId::from_port(2), Some(service(2, "two")));
        uplink
            .session
            .send(HostFrame::Synced { number: 3 })
            .unwrap();
        (tables, guest)
    }

    fn client(&mut self, index: usize) -> &mut Client<GuestStream> {
        self.clients.get_mut(index).unwrap()
    }

    fn hand_over(&self, now: Instant) -> (Value, Imports) {
        let (snapshot, imports) = exported(|exports| {
            let clients = self.clients.iter().map(|(index, client)| {
                let uplink = self.uplinks.get(client.vm);
                let uplink = uplink.filter(|uplink| uplink.client == index);
                ClientSnapshot::of(client, uplink, exports, now).unwrap()
            });
            UplinksSnapshot {
                version: UPLINKS_SNAPSHOT_VERSION,
                opened: self.clients.opened(),
                clients: clients.collect(),
            }
        });
        (serde_json::to_value(&snapshot).unwrap(), imports)
    }

    fn resume(snapshot: Value, imports: &mut Imports) -> Result<Self, HandoverError> {
        let damaged = |error: serde_json::Error| HandoverError::Damaged {
            what: error.to_string(),
        };
        let snapshot: UplinksSnapshot = serde_json::from_value(snapshot).map_err(damaged)?;
        let (now, mut tables) = (Instant::now(), Self::default());
        for mut client in snapshot.clients {
            let socket = imports.fd(client.socket)?;
            let received = imports.blob(client.received)?;
            let unsent = imports.blob(client.unsent)?;
            let stream = GuestStream::resume(socket, charge(), &received, unsent);
            let vm = key(client.vm);
            let index = tables.clients.insert(client.client(vm, stream, now)?);
            if let Some(uplink) = client.uplink.take() {
                let is_child = |child| [key(11), key(12)].contains(&child);
                tables
                    .uplinks
                    .restore((vm, index), uplink, imports, (|| None, is_child), now)?;
            }
        }
        Ok(tables)
    }
}

/// The frames that have arrived at a guest.
fn read(guest: &OwnedFd) -> Vec<HostFrame> {
    let (mut reader, mut bytes) = (FrameReader::new(), [0; 4096]);
    while let Ok(count @ 1..) = stream::recv(guest, &mut bytes) {
        reader.add(&bytes[..count]);
    }
    let mut frames = Vec::new();
    while let Some(message) = reader.next().unwrap() {
        frames.push(HostFrame::decode(message).unwrap());
    }
    assert!(reader.is_empty(), "half a frame");
    frames
}

#[test]
fn an_uplink_goes_on_within_a_frame_in_both_directions_and_keeps_its_containers() {
    let now = Instant::now();
    let (mut before, guest) = Tables::full(now);
    // A frame and a half, of which the whole one is handled.
    let (sync, ping) = (
        bytes(&GuestFrame::Sync { number: 4 }),
        bytes(&GuestFrame::Ping),
    );
    let half = sync.len() / 2;
    stream::send(&guest, &[&ping[..], &sync[..half]].concat()).unwrap();
    let stream = &mut before.client(0).stream;
    assert!(matches!(
        stream.receive(),
        Received::Frame(GuestFrame::Ping)
    ));
    assert!(matches!(stream.receive(), Received::Later));
    stream.queue(&HostFrame::Pong);
    let (snapshot, mut imports) = before.hand_over(now);
    assert!(read(&guest).is_empty());
    // As a process that ends.
    std::mem::forget(before);
    let mut after = Tables::resume(snapshot, &mut imports).unwrap();
    assert_eq!(imports.untaken(), 0);
    stream::send(&guest, &sync[half..]).unwrap();
    let stream = &mut after.client(0).stream;
    let Received::Frame(frame) = stream.receive() else {
        panic!("no frame");
    };
    assert_eq!(frame, GuestFrame::Sync { number: 4 });
    stream.flush();
    // The change of a service is before what was said after it; who waits for request 1 asks again.
    let frames = [
        HostFrame::Pong,
        HostFrame::Service(service(2, "two")),
        HostFrame::Synced { number: 3 },
        HostFrame::Cancel {
            request: Request(1),
        },
    ];
    assert_eq!(read(&guest), frames);
    let uplinks = &mut after.uplinks;
    assert_eq!(uplinks.vm_of(0), Some(key(1)));
    assert_eq!(uplinks.number(key(12)), Some(ChildId(2)));
    assert_eq!(uplinks.partition(key(1), ChildId(1)), Some(key(11)));
    let again = uplinks.check_request(key(1), Request(9));
    assert_eq!(again, Err(NotAdded::InUse));
    let connect = uplinks.take_expected(key(1), PORT).unwrap();
    assert_eq!((connect.request, connect.from), (Request(9), key(11)));
    // A late answer to the request is none to another one.
    assert!(uplinks.get(key(1)).unwrap().has_asked(Request(1)));
    assert_eq!(uplinks.take_incoming(key(1), Request(1)), None);
    let next = uplinks.begin_incoming(key(1), ConnectionId::from_u64(78));
    assert_eq!(next, Ok(Request(2)));
    // It knows both services, and is told of what differs.
    let mirror = &mut uplinks.get_mut(key(1)).unwrap().session.mirror;
    mirror.set(ServiceId::from_port(1), None);
    mirror.set(ServiceId::from_port(2), Some(service(2, "two")));
    let gone = HostFrame::ServiceGone {
        service: ServiceId::from_port(1),
    };
    assert_eq!(mirror.next_frame(), Some(gone));
    assert_eq!(mirror.next_frame(), None);
}

#[test]
fn an_uplink_whose_successor_fails_has_all_that_it_had() {
    let now = Instant::now();
    let (mut before, guest) = Tables::full(now);
    let (snapshot, mut imports) = before.hand_over(now);
    drop(Tables::resume(snapshot, &mut imports).unwrap());
    assert!(read(&guest).is_empty());
    let uplink = before.uplinks.get_mut(key(1)).unwrap();
    let mut frames = Vec::new();
    while let Some(frame) = uplink.session.next_frame() {
        frames.push(frame);
    }
    let waiting = [
        HostFrame::Service(service(2, "two")),
        HostFrame::Synced { number: 3 },
    ];
    assert_eq!(frames, waiting);
    let incoming = before.uplinks.take_incoming(key(1), Request(1));
    assert_eq!(incoming, Some(ConnectionId::from_u64(77)));
    stream::send(&guest, &bytes(&GuestFrame::Ping)).unwrap();
    let received = before.client(0).stream.receive();
    assert!(matches!(received, Received::Frame(GuestFrame::Ping)));
}

#[test]
fn the_committed_example_is_restored() {
    let (tables, _guest) = Tables::full(Instant::now());
    let (own, mut imports) = tables.hand_over(Instant::now());
    let example: Value = serde_json::from_str(include_str!("uplinks-1.json")).unwrap();
    let mut after = Tables::resume(example.clone(), &mut imports).unwrap();
    assert_eq!(imports.untaken(), 0);
    assert!(after.uplinks.take_expected(key(1), PORT).is_some());
    // It has the fields that this release writes.
    let fields = |value: &Value| -> Vec<String> {
        let client = &value["clients"][0];
        let all = [
            value,
            client,
            &client["uplink"],
            &client["uplink"]["ports"][0],
        ];
        let objects = all.into_iter().map(|one| one.as_object().unwrap());
        objects.flat_map(|one| one.keys().cloned()).collect()
    };
    assert_eq!(fields(&example), fields(&own));
}

#[test]
fn damaged_uplinks_are_errors() {
    let children = |count: usize| {
        let all = (1..=count).map(|number| json!({ "number": number, "partition": 11 }));
        json!(all.collect::<Vec<_>>())
    };
    let damages = [
        ("/version", json!(2)),
        ("/clients/0/role", json!("queries")),
        ("/clients/0/role", json!("guest")),
        ("/clients/0/source_port", json!(1024)),
        ("/clients/0/source_port", Value::Null),
        ("/clients/0/socket", json!(9)),
        ("/clients/0/received", json!(9)),
        ("/clients/0/unsent", json!(0)),
        ("/clients/0/since", json!("before")),
        ("/clients/0/uplink", Value::Null),
        ("/clients/0/uplink/told", json!(1)),
        ("/clients/0/uplink/told", json!(2)),
        ("/clients/0/uplink/children/0/number", json!(0)),
        ("/clients/0/uplink/children/0/number", json!(2)),
        ("/clients/0/uplink/children/0/partition", json!(12)),
        ("/clients/0/uplink/children/0/partition", json!(13)),
        ("/clients/0/uplink/children", children(2)),
        ("/clients/0/uplink/children", children(MAX_CHILDREN + 1)),
        ("/clients/0/uplink/ports/0/port", json!(5000)),
        ("/clients/0/uplink/ports/0/from", json!(13)),
        ("/clients/0/uplink/ports/0/vm", json!("web")),
        ("/clients/0/uplink/ports/0/service", json!("")),
        ("/clients/0/uplink/busy_until", json!("soon")),
    ];
    for (at, value) in damages {
        let (tables, _guest) = Tables::full(Instant::now());
        let (mut snapshot, mut imports) = tables.hand_over(Instant::now());
        *snapshot.pointer_mut(at).unwrap() = value.clone();
        let resumed = Tables::resume(snapshot, &mut imports);
        assert!(resumed.is_err(), "{at} {value}");
    }
}
