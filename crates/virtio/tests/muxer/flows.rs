//! What was really written and read: the truth that both ends are held to.

use hvsock_virtio::{MessageEnd, SocketKind};

/// A packet, with what the test knows about it.
#[derive(Clone, Debug)]
pub struct Packet {
    pub header: hvsock_virtio::Header,
    pub payload: Vec<u8>,
    /// The flow that a REQUEST begins.
    pub flow: Option<usize>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    ToDevice,
    ToGuest,
}

/// One direction of a connection.
#[derive(Debug, Default)]
pub struct Stream {
    pub written: u64,
    pub read: u64,
    /// Where messages end, as written and as read.
    written_ends: Vec<(u64, bool)>,
    read_ends: usize,
    /// The writer's side said that this is all.
    pub is_finished: bool,
    /// The reader was told that this was all.
    pub is_at_end: bool,
}

/// A connection, from the REQUEST on.
#[derive(Debug)]
pub struct Flow {
    pub number: usize,
    pub kind: SocketKind,
    pub to_device: Stream,
    pub to_guest: Stream,
    /// Someone gave it up: what was under way may be lost.
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

    pub fn stream(&mut self, flow: usize, way: Way) -> &mut Stream {
        match way {
            Way::ToDevice => &mut self.0[flow].to_device,
            Way::ToGuest => &mut self.0[flow].to_guest,
        }
    }

    pub fn abort(&mut self, flow: usize) {
        self.0[flow].is_aborted = true;
    }

    /// Has everything been written and read?
    pub fn is_over(&mut self, flow: usize, way: Way) -> bool {
        self.is_all_read(flow, way) && self.stream(flow, way).is_finished
    }

    pub fn kind(&self, flow: usize) -> SocketKind {
        self.0[flow].kind
    }

    /// The next `len` bytes that the writer of a flow has.
    pub fn write(&mut self, flow: usize, way: Way, len: usize, end: MessageEnd) -> Vec<u8> {
        let stream = self.stream(flow, way);
        assert!(!stream.is_finished, "the test writes after the end");
        let from = stream.written;
        stream.written += len as u64;
        if end.message {
            stream.written_ends.push((stream.written, end.record));
        }
        (from..from + len as u64)
            .map(|at| byte(flow, way, at))
            .collect()
    }

    /// The reader of a flow got these bytes: they must be the next ones, and end what they should.
    pub fn read(&mut self, flow: usize, way: Way, bytes: &[u8], end: MessageEnd) {
        let kind = self.0[flow].kind;
        let stream = self.stream(flow, way);
        assert!(!stream.is_at_end, "data after the end of flow {flow}");
        for read in bytes {
            assert_eq!(
                *read,
                byte(flow, way, stream.read),
                "flow {flow} {way:?} {}",
                stream.read
            );
            stream.read += 1;
        }
        assert!(
            stream.read <= stream.written,
            "flow {flow}: bytes nobody wrote"
        );
        if kind == SocketKind::Stream {
            assert_eq!(end, MessageEnd::default(), "a message's end in a stream");
            return;
        }
        let next = stream.written_ends.get(stream.read_ends);
        if end.message {
            assert_eq!(
                next,
                Some(&(stream.read, end.record)),
                "flow {flow}: another message"
            );
            stream.read_ends += 1;
        } else {
            let is_within = next.is_none_or(|(at, _)| *at > stream.read);
            assert!(is_within, "flow {flow} {way:?}: a message's end is lost");
        }
    }

    /// The reader was told that there is no more.
    pub fn end(&mut self, flow: usize, way: Way) {
        let stream = self.stream(flow, way);
        assert!(
            stream.is_finished,
            "flow {flow} {way:?}: an end that nobody said"
        );
        assert_eq!(
            stream.read, stream.written,
            "flow {flow} {way:?}: an end before the data"
        );
        assert_eq!(
            stream.read_ends,
            stream.written_ends.len(),
            "flow {flow}: messages missing"
        );
        stream.is_at_end = true;
    }

    pub fn is_all_read(&self, flow: usize, way: Way) -> bool {
        let stream = match way {
            Way::ToDevice => &self.0[flow].to_device,
            Way::ToGuest => &self.0[flow].to_guest,
        };
        stream.read == stream.written && stream.read_ends == stream.written_ends.len()
    }
}

/// Another byte for each place of each stream.
fn byte(flow: usize, way: Way, at: u64) -> u8 {
    let seed = (flow as u64) << 1 | u64::from(way == Way::ToGuest);
    ((at ^ seed << 40).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8
}
