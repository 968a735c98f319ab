//! The data threads against real socket pairs: each test holds the processes' ends.

use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use hvsock_endpoint::{BrokerMessage, ClientMessage, MAX_MESSAGE, SocketOption};
use hvsock_fabric::{ConnectionId, End, Refusal};
use hvsock_sys::poll::{PollFd, PollFlags};
use hvsock_sys::{message, poll, seqpacket, set_nonblocking, stream};
use mio::{Poll, Token, Waker};

use super::{Adopted, Connection, ConnectionSet, Counters, DataThread, Report, Reports, Side};

const PATIENCE: Duration = Duration::from_secs(10);
const ID: ConnectionId = ConnectionId::from_u64(7);

/// One process's two descriptors.
struct Process {
    control: OwnedFd,
    data: UnixStream,
}

impl Process {
    fn say(&self, said: &ClientMessage) {
        let mut bytes = Vec::new();
        said.encode(&mut bytes);
        message::send(&self.control, &bytes, &[]).unwrap();
    }

    /// Announces and ends the writing half, as the library does.
    fn finish(&self) {
        self.say(&ClientMessage::Shutdown);
        self.data.shutdown(Shutdown::Write).unwrap();
    }

    fn hear(&self) -> BrokerMessage {
        let mut fds = [PollFd::new(&self.control, PollFlags::IN)];
        assert!(poll::wait(&mut fds, Some(Instant::now() + PATIENCE)).unwrap());
        let mut bytes = [0; MAX_MESSAGE];
        let received = message::recv(&self.control, &mut bytes).unwrap();
        BrokerMessage::decode(&bytes[..received.len]).unwrap()
    }

    fn hear_reset(&self) -> String {
        match self.hear() {
            BrokerMessage::Reset(refused) => refused.detail,
            other => panic!("{other:?} is no reset"),
        }
    }
}

struct World {
    thread: DataThread,
    reports: Receiver<Report>,
    counters: Arc<Counters>,
    client: Process,
    server: Process,
    _poll: Poll,
}

fn end(plain: bool) -> (Side, Process) {
    let (control, their_control) = seqpacket::pair().unwrap();
    let (data, their_data) = stream::pair().unwrap();
    set_nonblocking(&control, true).unwrap();
    set_nonblocking(&data, true).unwrap();
    let data_stream = UnixStream::from(their_data);
    data_stream.set_read_timeout(Some(PATIENCE)).unwrap();
    data_stream.set_write_timeout(Some(PATIENCE)).unwrap();
    (
        Side::new(control, data, plain),
        Process {
            control: their_control,
            data: data_stream,
        },
    )
}

fn connected(plain_client: bool) -> World {
    let poll = Poll::new().unwrap();
    let waker = Arc::new(Waker::new(poll.registry(), Token(0)).unwrap());
    let (queue, reports) = channel();
    let thread = DataThread::start(0, Reports { queue, waker }).unwrap();
    let ((from, client), (to, server)) = (end(plain_client), end(false));
    let counters = Arc::new(Counters::default());
    let connection = Connection::pumped(from, to);
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
        _poll: poll,
    }
}

impl World {
    fn closed(&self) -> Option<Refusal> {
        match self.reports.recv_timeout(PATIENCE).unwrap() {
            Report::Closed {
                connection: ID,
                reason,
            } => reason,
            other => panic!("{other:?} instead of the end"),
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
    // A byte is counted just after it is on its way.
    let counted = || (world.counters.sent(), world.counters.received());
    let began = Instant::now();
    while counted() != (8, 6) {
        assert!(began.elapsed() < PATIENCE, "{:?}", counted());
        std::thread::yield_now();
    }
}

#[test]
fn a_half_close_is_announced_and_the_other_half_goes_on() {
    let mut world = connected(false);
    world.client.data.write_all(b"all").unwrap();
    world.client.finish();
    assert_eq!(read_to_end(&mut world.server), b"all");
    assert_eq!(world.server.hear(), BrokerMessage::Shutdown);
    world.server.data.write_all(b"still here").unwrap();
    world.server.finish();
    assert_eq!(read_to_end(&mut world.client), b"still here");
    assert_eq!(world.client.hear(), BrokerMessage::Shutdown);
    assert_eq!(world.closed(), None);
}

#[test]
fn an_end_without_a_word_is_a_reset_after_all_bytes() {
    let mut world = connected(false);
    world.client.data.write_all(b"last words").unwrap();
    drop(world.client);
    assert_eq!(read_to_end(&mut world.server), b"last words");
    assert!(world.server.hear_reset().contains("ended without closing"));
}

#[test]
fn the_end_of_a_plain_descriptor_is_a_clean_one() {
    let mut world = connected(true);
    world.client.data.write_all(b"from cat").unwrap();
    world.client.data.shutdown(Shutdown::Write).unwrap();
    assert_eq!(read_to_end(&mut world.server), b"from cat");
    assert_eq!(world.server.hear(), BrokerMessage::Shutdown);
}

#[test]
fn who_closes_with_data_unread_resets_the_writer() {
    let mut world = connected(false);
    world.server.data.write_all(&[1; 4096]).unwrap();
    let mut one = [0];
    world.client.data.read_exact(&mut one).unwrap();
    world.client.say(&ClientMessage::Shutdown);
    drop(world.client);
    assert!(
        world
            .server
            .hear_reset()
            .contains("without reading all data")
    );
    assert!(world.reports.recv_timeout(PATIENCE).is_ok());
}

#[test]
fn who_closes_for_good_is_seen_by_a_peer_that_does_not_write() {
    let world = connected(false);
    world.server.finish();
    drop(world.server);
    let mut fds = [PollFd::new(&world.client.data, PollFlags::empty())];
    assert!(poll::wait(&mut fds, Some(Instant::now() + PATIENCE)).unwrap());
    assert!(fds[0].revents().contains(PollFlags::HUP));
    let error = (&world.client.data).write(b"?").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::BrokenPipe);
}

#[test]
fn who_ends_only_its_reading_breaks_the_writers_pipe_and_no_more() {
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
fn a_cut_tells_both_ends_why() {
    let world = connected(false);
    world.thread.cut(
        ID,
        Refusal::Disabled {
            by: "enabled = false".into(),
        },
    );
    assert_eq!(world.client.hear_reset(), "enabled = false");
    assert_eq!(world.server.hear_reset(), "enabled = false");
    assert_eq!(
        world.closed(),
        Some(Refusal::Disabled {
            by: "enabled = false".into()
        })
    );
}

#[test]
fn a_thread_that_ends_tells_everyone() {
    let world = connected(false);
    drop(world.thread);
    assert!(world.client.hear_reset().contains("stopped"));
}

#[test]
fn a_suspended_connection_stands_still_and_loses_nothing() {
    let mut world = connected(false);
    world.thread.suspend(ID, true);
    // A command is carried out before data that is written after the thread has taken it in.
    std::thread::sleep(Duration::from_millis(50));
    world.client.data.write_all(b"patience").unwrap();
    world.client.finish();
    world
        .server
        .data
        .set_read_timeout(Some(Duration::from_millis(100)))
        .unwrap();
    let blocked = world.server.data.read(&mut [0; 8]).unwrap_err();
    assert_eq!(blocked.kind(), ErrorKind::WouldBlock);
    world.thread.suspend(ID, false);
    world.server.data.set_read_timeout(Some(PATIENCE)).unwrap();
    assert_eq!(read_to_end(&mut world.server), b"patience");
}

#[test]
fn an_option_set_on_a_connection_reaches_the_core() {
    let world = connected(false);
    let option = SocketOption::ConnectedSuspend;
    world
        .server
        .say(&ClientMessage::SetOption { option, value: 1 });
    match world.reports.recv_timeout(PATIENCE).unwrap() {
        Report::ConnectedSuspend {
            connection: ID,
            end: End::Server,
            value: true,
        } => {}
        other => panic!("{other:?}"),
    }
}

#[test]
fn nonsense_and_descriptors_on_the_control_connection_end_it() {
    let world = connected(false);
    message::send(&world.client.control, b"GET / HTTP/1.1", &[]).unwrap();
    assert!(world.server.hear_reset().contains("protocol"));

    let world = connected(false);
    let mut bytes = Vec::new();
    ClientMessage::Shutdown.encode(&mut bytes);
    use std::os::fd::AsFd;
    let descriptors = [world.client.data.as_fd()];
    message::send(&world.client.control, &bytes, &descriptors).unwrap();
    assert!(world.server.hear_reset().contains("descriptors"));

    let world = connected(false);
    message::send(&world.client.control, &[1; MAX_MESSAGE + 1], &[]).unwrap();
    assert!(world.server.hear_reset().contains("longer than"));
}

#[test]
fn a_word_is_heard_however_much_is_said_before_it() {
    let (control, their_control) = seqpacket::pair().unwrap();
    let chatter = Process {
        control: their_control,
        data: UnixStream::pair().unwrap().0,
    };
    let option = SocketOption::ConnectedSuspend;
    for value in 0..100 {
        chatter.say(&ClientMessage::SetOption { option, value });
    }
    chatter.say(&ClientMessage::Shutdown);
    set_nonblocking(&control, true).unwrap();
    let (data, _) = stream::pair().unwrap();
    set_nonblocking(&data, true).unwrap();
    // Its data has ended by the time the broker looks.
    let ((to, mut server), from) = (end(false), Side::new(control, data, false));
    let (world, _client) = (connected(false), chatter);
    world.thread.adopt(Adopted {
        id: ConnectionId::from_u64(8),
        connection: Connection::pumped(from, to),
        counters: Arc::default(),
    });
    assert_eq!(read_to_end(&mut server), b"");
    assert_eq!(server.hear(), BrokerMessage::Shutdown);
}

#[test]
fn an_event_of_a_connection_that_ended_is_not_taken_for_one_of_the_next() {
    let mut poll = Poll::new().unwrap();
    let mut set = ConnectionSet::new(poll.registry().try_clone().unwrap(), 0, u64::MAX);
    let adopt = |set: &mut ConnectionSet, id| {
        let ((from, client), (to, server)) = (end(false), end(false));
        set.adopt(Adopted {
            id: ConnectionId::from_u64(id),
            connection: Connection::pumped(from, to),
            counters: Arc::default(),
        });
        (client, server)
    };
    let (first, first_server) = adopt(&mut set, 1);
    // The nonsense ends the connection; behind it there is the news that the process is gone.
    message::send(&first.control, b"nonsense", &[]).unwrap();
    drop((first_server.data, first.data));
    let mut events = mio::Events::with_capacity(16);
    poll.poll(&mut events, Some(PATIENCE)).unwrap();
    assert!(events.iter().count() >= 3);
    set.cut(ConnectionId::from_u64(1), Refusal::PartitionOff);
    let (mut client, mut server) = adopt(&mut set, 2);
    for event in &events {
        set.note(event);
    }
    set.turns();
    client.data.write_all(b"still heard").unwrap();
    server.data.write_all(b"and so is this").unwrap();
    poll.poll(&mut events, Some(PATIENCE)).unwrap();
    for event in &events {
        set.note(event);
    }
    set.turns();
    let mut bytes = [0; 14];
    server.data.read_exact(&mut bytes[..11]).unwrap();
    client.data.read_exact(&mut bytes).unwrap();
    assert_eq!(&bytes, b"and so is this");
}

#[test]
fn a_reader_that_does_not_read_stops_the_writer_and_then_gets_every_byte() {
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
        assert!(written < 8 << 20, "nothing stops the writer");
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
fn megabytes_pass_both_ways_at_once() {
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
