//! Tests of data threads with real socket pairs. Each test holds the processes' ends.

use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use hvsock_endpoint::{BrokerMessage, ClientMessage, MAX_MESSAGE, SocketOption};
use hvsock_fabric::{ConnectionEnd, ConnectionId, Refusal};
use hvsock_sys::poll::{PollFd, PollFlags};
use hvsock_sys::{message, poll, seqpacket, set_nonblocking, stream};

use super::{Adopted, Connection, ConnectionSet, DataThread, RelayEnd, Report};
use crate::data_path::{ByteCounters, ReportSender};

const TIMEOUT: Duration = Duration::from_secs(30);
const ID: ConnectionId = ConnectionId::from_u64(7);

/// One process's two descriptors.
struct Process {
    control: OwnedFd,
    data: UnixStream,
}

impl Process {
    fn send(&self, message: &ClientMessage) {
        let mut bytes = Vec::new();
        message.encode(&mut bytes);
        message::send(&self.control, &bytes, &[]).unwrap();
    }

    /// Announces the end and half-closes, as the library does.
    fn finish(&self) {
        self.send(&ClientMessage::Shutdown);
        self.data.shutdown(Shutdown::Write).unwrap();
    }

    fn receive(&self) -> BrokerMessage {
        let mut fds = [PollFd::new(&self.control, PollFlags::IN)];
        assert!(poll::wait(&mut fds, Some(Instant::now() + TIMEOUT)).unwrap());
        let mut bytes = [0; MAX_MESSAGE];
        let received = message::recv(&self.control, &mut bytes).unwrap();
        BrokerMessage::decode(&bytes[..received.len]).unwrap()
    }

    fn receive_reset(&self) -> String {
        match self.receive() {
            BrokerMessage::Reset(refused) => refused.detail,
            other => panic!("{other:?} is not a reset"),
        }
    }
}

struct World {
    thread: DataThread,
    reports: Receiver<Report>,
    counters: Arc<ByteCounters>,
    client: Process,
    server: Process,
}

fn end(raw_fd: bool) -> (RelayEnd, Process) {
    let (control, their_control) = seqpacket::pair().unwrap();
    let (data, their_data) = stream::pair().unwrap();
    set_nonblocking(&control, true).unwrap();
    set_nonblocking(&data, true).unwrap();
    let data_stream = UnixStream::from(their_data);
    data_stream.set_read_timeout(Some(TIMEOUT)).unwrap();
    data_stream.set_write_timeout(Some(TIMEOUT)).unwrap();
    (
        RelayEnd::new(control, data, raw_fd),
        Process {
            control: their_control,
            data: data_stream,
        },
    )
}

fn connected(raw_fd_client: bool) -> World {
    let (queue, reports) = channel();
    let reporter = ReportSender::new(move |report| drop(queue.send(report)));
    let thread = DataThread::start(0, reporter).unwrap();
    let ((from, client), (to, server)) = (end(raw_fd_client), end(false));
    let counters = Arc::new(ByteCounters::default());
    let connection = Connection::relay(from, to);
    thread.adopt(Adopted {
        id: ID,
        connection,
        counters: Arc::clone(&counters),
    });
    World {
        thread,
        reports,
        counters,
        client,
        server,
    }
}

impl World {
    fn closed(&self) -> Option<Refusal> {
        match self.reports.recv_timeout(TIMEOUT).unwrap() {
            Report::Closed {
                connection: ID,
                reason,
            } => reason,
            other => panic!("{other:?} instead of Closed"),
        }
    }
}

fn read_to_end(process: &mut Process) -> Vec<u8> {
    let mut bytes = Vec::new();
    process.data.read_to_end(&mut bytes).unwrap();
    bytes
}

#[test]
fn bytes_pass_both_ways_and_are_counted() {
    let mut world = connected(false);
    world.client.data.write_all(b"question").unwrap();
    let mut bytes = [0; 8];
    world.server.data.read_exact(&mut bytes).unwrap();
    assert_eq!(&bytes, b"question");
    world.server.data.write_all(b"answer").unwrap();
    world.client.data.read_exact(&mut bytes[..6]).unwrap();
    assert_eq!(&bytes[..6], b"answer");
    // Bytes are counted just after they are written.
    let counted = || (world.counters.sent(), world.counters.received());
    let began = Instant::now();
    while counted() != (8, 6) {
        assert!(began.elapsed() < TIMEOUT, "{:?}", counted());
        std::thread::yield_now();
    }
}

#[test]
fn a_half_close_is_announced_and_the_other_half_goes_on() {
    let mut world = connected(false);
    world.client.data.write_all(b"all").unwrap();
    world.client.finish();
    assert_eq!(read_to_end(&mut world.server), b"all");
    assert_eq!(world.server.receive(), BrokerMessage::Shutdown);
    world.server.data.write_all(b"still here").unwrap();
    world.server.finish();
    assert_eq!(read_to_end(&mut world.client), b"still here");
    assert_eq!(world.client.receive(), BrokerMessage::Shutdown);
    assert_eq!(world.closed(), None);
}

#[test]
fn a_close_without_announcement_is_a_reset_after_all_bytes() {
    let mut world = connected(false);
    world.client.data.write_all(b"last words").unwrap();
    drop(world.client);
    assert_eq!(read_to_end(&mut world.server), b"last words");
    assert!(
        world
            .server
            .receive_reset()
            .contains("ended without closing")
    );
}

#[test]
fn the_end_of_file_of_a_raw_fd_is_a_clean_end() {
    let mut world = connected(true);
    world.client.data.write_all(b"from cat").unwrap();
    world.client.data.shutdown(Shutdown::Write).unwrap();
    assert_eq!(read_to_end(&mut world.server), b"from cat");
    assert_eq!(world.server.receive(), BrokerMessage::Shutdown);
}

#[test]
fn closing_with_unread_data_resets_the_writer() {
    let mut world = connected(false);
    world.server.data.write_all(&[1; 4096]).unwrap();
    let mut one = [0];
    world.client.data.read_exact(&mut one).unwrap();
    world.client.send(&ClientMessage::Shutdown);
    drop(world.client);
    assert!(
        world
            .server
            .receive_reset()
            .contains("without reading all data")
    );
    assert!(world.reports.recv_timeout(TIMEOUT).is_ok());
}

#[test]
fn a_full_close_is_seen_by_a_peer_that_does_not_write() {
    let world = connected(false);
    world.server.finish();
    drop(world.server);
    let mut fds = [PollFd::new(&world.client.data, PollFlags::empty())];
    assert!(poll::wait(&mut fds, Some(Instant::now() + TIMEOUT)).unwrap());
    assert!(fds[0].revents().contains(PollFlags::HUP));
    let error = (&world.client.data).write(b"?").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::BrokenPipe);
}

#[test]
fn a_read_shutdown_breaks_only_the_writers_pipe() {
    let mut world = connected(false);
    world.client.data.shutdown(Shutdown::Read).unwrap();
    let error = loop {
        std::thread::sleep(Duration::from_millis(1));
        match world.server.data.write(&[1; 4096]) {
            Ok(count) => assert!(count > 0),
            Err(error) => break error,
        }
    };
    assert_eq!(error.kind(), ErrorKind::BrokenPipe);
    world.client.data.write_all(b"the other way works").unwrap();
    let mut bytes = [0; 19];
    world.server.data.read_exact(&mut bytes).unwrap();
    assert_eq!(&bytes, b"the other way works");
}

#[test]
fn a_writer_that_waits_for_free_space_learns_that_its_peer_stopped_reading() {
    let mut world = connected(false);
    let fill = |mut data: &UnixStream| {
        loop {
            if let Err(error) = data.write(&[1; 65536]) {
                break error.kind();
            }
        }
    };
    world.server.data.set_nonblocking(true).unwrap();
    assert_eq!(fill(&world.server.data), ErrorKind::WouldBlock);
    world.client.data.shutdown(Shutdown::Read).unwrap();
    let mut read = [0; 65536];
    while world
        .client
        .data
        .read(&mut read)
        .is_ok_and(|count| count > 0)
    {}
    let end = Instant::now() + TIMEOUT;
    let error = loop {
        match fill(&world.server.data) {
            ErrorKind::WouldBlock => {
                let mut fds = [PollFd::new(&world.server.data, PollFlags::OUT)];
                assert!(
                    poll::wait(&mut fds, Some(end)).unwrap(),
                    "nothing wakes the writer"
                );
            }
            error => break error,
        }
    };
    assert_eq!(error, ErrorKind::BrokenPipe);
}

#[test]
fn a_reset_sends_both_ends_the_reason() {
    let world = connected(false);
    world.thread.reset(
        ID,
        Refusal::Disabled {
            by: "enabled = false".into(),
        },
    );
    assert_eq!(world.client.receive_reset(), "enabled = false");
    assert_eq!(world.server.receive_reset(), "enabled = false");
    assert_eq!(
        world.closed(),
        Some(Refusal::Disabled {
            by: "enabled = false".into()
        })
    );
}

#[test]
fn a_thread_that_stops_resets_its_connections() {
    let world = connected(false);
    drop(world.thread);
    assert!(world.client.receive_reset().contains("stopped"));
}

#[test]
fn a_suspended_connection_moves_no_data_and_loses_none() {
    let mut world = connected(false);
    world.thread.suspend(ID, true);
    // A second connection of the same thread orders the steps. The thread applies commands in order
    // and takes events in the order of the writes.
    let ((from, mut probe), (to, mut probed)) = (end(false), end(false));
    world.thread.adopt(Adopted {
        id: ConnectionId::from_u64(8),
        connection: Connection::relay(from, to),
        counters: Arc::default(),
    });
    let mut round = || {
        probe.data.write_all(b"p").unwrap();
        probed.data.read_exact(&mut [0]).unwrap();
    };
    // The thread has applied the suspend before it relays this byte.
    round();
    world.client.data.write_all(b"suspended").unwrap();
    world.client.finish();
    // The thread has seen the write above before it relays these bytes.
    round();
    round();
    world.server.data.set_nonblocking(true).unwrap();
    let blocked = world.server.data.read(&mut [0; 8]).unwrap_err();
    assert_eq!(blocked.kind(), ErrorKind::WouldBlock);
    world.server.data.set_nonblocking(false).unwrap();
    world.thread.suspend(ID, false);
    assert_eq!(read_to_end(&mut world.server), b"suspended");
}

#[test]
fn an_option_set_on_a_connection_is_reported_to_the_core() {
    let world = connected(false);
    let option = SocketOption::ConnectedSuspend;
    world
        .server
        .send(&ClientMessage::SetOption { option, value: 1 });
    match world.reports.recv_timeout(TIMEOUT).unwrap() {
        Report::ConnectedSuspend {
            connection: ID,
            end: ConnectionEnd::Server,
            value: true,
        } => {}
        other => panic!("{other:?}"),
    }
}

#[test]
fn protocol_violations_on_the_control_connection_reset_it() {
    let world = connected(false);
    message::send(&world.client.control, b"GET / HTTP/1.1", &[]).unwrap();
    assert!(world.server.receive_reset().contains("protocol"));

    let world = connected(false);
    let mut bytes = Vec::new();
    ClientMessage::Shutdown.encode(&mut bytes);
    use std::os::fd::AsFd;
    let descriptors = [world.client.data.as_fd()];
    message::send(&world.client.control, &bytes, &descriptors).unwrap();
    assert!(world.server.receive_reset().contains("descriptors"));

    let world = connected(false);
    message::send(&world.client.control, &[1; MAX_MESSAGE + 1], &[]).unwrap();
    assert!(world.server.receive_reset().contains("maximum length"));
}

#[test]
fn an_announcement_behind_many_messages_still_counts() {
    let (control, their_control) = seqpacket::pair().unwrap();
    let chatty = Process {
        control: their_control,
        data: UnixStream::pair().unwrap().0,
    };
    let option = SocketOption::ConnectedSuspend;
    for value in 0..100 {
        chatty.send(&ClientMessage::SetOption { option, value });
    }
    chatty.send(&ClientMessage::Shutdown);
    set_nonblocking(&control, true).unwrap();
    let (data, _) = stream::pair().unwrap();
    set_nonblocking(&data, true).unwrap();
    // Its data has ended before the broker reads the messages.
    let ((to, mut server), from) = (end(false), RelayEnd::new(control, data, false));
    let (world, _client) = (connected(false), chatty);
    world.thread.adopt(Adopted {
        id: ConnectionId::from_u64(8),
        connection: Connection::relay(from, to),
        counters: Arc::default(),
    });
    assert_eq!(read_to_end(&mut server), b"");
    assert_eq!(server.receive(), BrokerMessage::Shutdown);
}

#[test]
fn a_stale_event_of_a_closed_connection_does_not_reach_its_successor() {
    let mut poll = mio::Poll::new().unwrap();
    let mut set = ConnectionSet::new(poll.registry().try_clone().unwrap(), 0, u64::MAX);
    let adopt = |set: &mut ConnectionSet, id| {
        let ((from, client), (to, server)) = (end(false), end(false));
        set.adopt(Adopted {
            id: ConnectionId::from_u64(id),
            connection: Connection::relay(from, to),
            counters: Arc::default(),
        });
        (client, server)
    };
    let (first, first_server) = adopt(&mut set, 1);
    // The invalid message resets the connection. The hang-up of the process is queued behind it.
    message::send(&first.control, b"nonsense", &[]).unwrap();
    drop((first_server.data, first.data));
    let mut events = mio::Events::with_capacity(16);
    poll.poll(&mut events, Some(TIMEOUT)).unwrap();
    assert!(events.iter().count() >= 3);
    set.reset(ConnectionId::from_u64(1), Refusal::PartitionOff);
    let (mut client, mut server) = adopt(&mut set, 2);
    for event in &events {
        set.handle_event(event);
    }
    set.run_turns();
    client.data.write_all(b"still there").unwrap();
    server.data.write_all(b"and so is this").unwrap();
    poll.poll(&mut events, Some(TIMEOUT)).unwrap();
    for event in &events {
        set.handle_event(event);
    }
    set.run_turns();
    let mut bytes = [0; 14];
    server.data.read_exact(&mut bytes[..11]).unwrap();
    client.data.read_exact(&mut bytes).unwrap();
    assert_eq!(&bytes, b"and so is this");
}

#[test]
fn a_reader_that_does_not_read_blocks_the_writer_and_later_gets_every_byte() {
    let mut world = connected(false);
    world
        .client
        .data
        .set_write_timeout(Some(Duration::from_millis(200)))
        .unwrap();
    let block: Vec<u8> = (0..=255).cycle().take(65_536).collect();
    let mut written = 0;
    while let Ok(count) = world.client.data.write(&block[written % 256..]) {
        written += count;
        assert!(written < 8 << 20, "no backpressure");
    }
    let reader = std::thread::spawn(move || (read_to_end(&mut world.server), world.server));
    world.client.finish();
    let (bytes, _server) = reader.join().unwrap();
    assert_eq!(bytes.len(), written);
    assert!(
        bytes
            .iter()
            .enumerate()
            .all(|(at, byte)| usize::from(*byte) == at % 256)
    );
    drop(world.thread);
}

#[test]
fn megabytes_pass_in_both_directions_at_once() {
    let World {
        thread,
        client,
        server,
        counters,
        ..
    } = connected(false);
    let total = 16 << 20;
    let run = |mut process: Process| {
        std::thread::spawn(move || {
            let mut reading = process.data.try_clone().unwrap();
            let reader = std::thread::spawn(move || {
                let mut bytes = Vec::new();
                reading.read_to_end(&mut bytes).unwrap();
                bytes.len()
            });
            process.data.write_all(&vec![1; total]).unwrap();
            process.finish();
            (reader.join().unwrap(), process)
        })
    };
    let (one, other) = (run(client), run(server));
    assert_eq!(one.join().unwrap().0, total);
    assert_eq!(other.join().unwrap().0, total);
    assert_eq!(
        (counters.sent(), counters.received()),
        (total as u64, total as u64)
    );
    drop(thread);
}
