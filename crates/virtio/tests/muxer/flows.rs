//! The expected data: the written bytes, against which every read is checked.

use hvsock_virtio::{MessageEnd, SocketKind};

/// A packet, with the test's own data.
#[derive(Clone, Debug)]
pub struct Packet {
    pub header: hvsock_virtio::Header,
    pub payload: Vec<u8>,
    /// The flow that a REQUEST starts.
    pub flow: Option<usize>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    ToDevice,
    ToGuest,
}

/// One direction of a connection.
#[derive(Debug, Default)]
pub struct Stream {
    pub written: u64,
    pub read: u64,
    /// Positions of message ends, as written and as read.
    written_ends: Vec<(u64, bool)>,
    read_ends: usize,
    /// The writer has finished.
    pub is_finished: bool,
    /// The reader has seen the end of the data.
    pub is_at_end: bool,
}

/// A connection, from the REQUEST on.
#[derive(Debug)]
pub struct Flow {
    pub number: usize,
    pub kind: SocketKind,
    pub to_device: Stream,
    pub to_guest: Stream,
    /// A side aborted it: data in flight may be lost.
    pub is_aborted: bool,
}

#[derive(Debug, Default)]
pub struct Flows(Vec<Flow>);

impl Flows {
    pub fn add(&mut self, kind: SocketKind) -> usize {
        let number = self.0.len();
        self.0.push(Flow {
            number,
            kind,
            to_device: Stream::default(),
            to_guest: Stream::default(),
            is_aborted: false,
        });
        number
    }

    pub fn all(&self) -> &[Flow] {
        &self.0
    }

    pub fn stream(&mut self, flow: usize, direction: Direction) -> &mut Stream {
        match direction {
            Direction::ToDevice => &mut self.0[flow].to_device,
            Direction::ToGuest => &mut self.0[flow].to_guest,
        }
    }

    pub fn abort(&mut self, flow: usize) {
        self.0[flow].is_aborted = true;
    }

    /// Whether everything is written and read.
    pub fn is_over(&mut self, flow: usize, direction: Direction) -> bool {
        self.is_all_read(flow, direction) && self.stream(flow, direction).is_finished
    }

    pub fn kind(&self, flow: usize) -> SocketKind {
        self.0[flow].kind
    }

    /// The next `len` bytes of the writer of a flow.
    pub fn write(
        &mut self,
        flow: usize,
        direction: Direction,
        len: usize,
        end: MessageEnd,
    ) -> Vec<u8> {
        let stream = self.stream(flow, direction);
        assert!(!stream.is_finished, "the test writes after the end");
        let from = stream.written;
        stream.written += len as u64;
        if end.message {
            stream.written_ends.push((stream.written, end.record));
        }
        (from..from + len as u64)
            .map(|at| byte(flow, direction, at))
            .collect()
    }

    /// The reader of a flow got these bytes: asserts that they are the next ones, with the same message
    /// ends.
    pub fn read(&mut self, flow: usize, direction: Direction, bytes: &[u8], end: MessageEnd) {
        let kind = self.0[flow].kind;
        let stream = self.stream(flow, direction);
        assert!(!stream.is_at_end, "data after the end of flow {flow}");
        for read in bytes {
            assert_eq!(
                *read,
                byte(flow, direction, stream.read),
                "flow {flow} {direction:?} {}",
                stream.read
            );
            stream.read += 1;
        }
        assert!(
            stream.read <= stream.written,
            "flow {flow}: bytes that were never written"
        );
        if kind == SocketKind::Stream {
            assert_eq!(end, MessageEnd::default(), "a message end in a stream");
            return;
        }
        let next = stream.written_ends.get(stream.read_ends);
        if end.message {
            assert_eq!(
                next,
                Some(&(stream.read, end.record)),
                "flow {flow}: the wrong message"
            );
            stream.read_ends += 1;
        } else {
            let is_within = next.is_none_or(|(at, _)| *at > stream.read);
            assert!(
                is_within,
                "flow {flow} {direction:?}: a message end is lost"
            );
        }
    }

    /// The reader has seen the end of the data.
    pub fn end(&mut self, flow: usize, direction: Direction) {
        let stream = self.stream(flow, direction);
        assert!(
            stream.is_finished,
            "flow {flow} {direction:?}: an end without a shutdown"
        );
        assert_eq!(
            stream.read, stream.written,
            "flow {flow} {direction:?}: an end before the data"
        );
        assert_eq!(
            stream.read_ends,
            stream.written_ends.len(),
            "flow {flow}: messages missing"
        );
        stream.is_at_end = true;
    }

    pub fn is_all_read(&self, flow: usize, direction: Direction) -> bool {
        let stream = match direction {
            Direction::ToDevice => &self.0[flow].to_device,
            Direction::ToGuest => &self.0[flow].to_guest,
        };
        stream.read == stream.written && stream.read_ends == stream.written_ends.len()
    }
}

/// A byte that depends on its position, its flow and its direction.
fn byte(flow: usize, direction: Direction, at: u64) -> u8 {
    let seed = (flow as u64) << 1 | u64::from(direction == Direction::ToGuest);
    ((at ^ seed << 40).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8
}
