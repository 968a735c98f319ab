//! What the table keeps of a socket, as words.

use hvsock_interpose::model::{self, ADDRESS_WORDS, Address, SOCKET_WORDS};

/// The words of a record.
pub const WORDS: usize = SOCKET_WORDS + 3 + ADDRESS_WORDS;

/// A socket, as every process that has it sees it.
#[derive(Clone, Debug)]
pub struct Record {
    /// Its state, as the model has it.
    pub socket: model::Socket,
    /// The connect that is in progress, or was the last one.
    pub target: Option<Address>,
    /// The connection to the broker that has the answer to a connect in progress.
    pub control: Option<Control>,
    /// The backlog of a listener.
    pub backlog: u32,
    /// Whether the open file has been connected: it cannot be connected a second time.
    pub is_spent: bool,
}

/// A descriptor of this library in one of the processes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Control {
    /// Its number there.
    pub fd: i32,
    /// The cookie of its socket, by which a process knows whether the number is this descriptor.
    pub cookie: u64,
}

const SPENT: u64 = 1;
const HAS_CONTROL: u64 = 2;

impl Record {
    /// The record of a socket.
    pub fn new(socket: model::Socket) -> Self {
        Self {
            socket,
            target: None,
            backlog: 0,
            control: None,
            is_spent: false,
        }
    }

    /// Encodes it.
    pub fn encode(&self) -> [u64; WORDS] {
        let mut words = [0; WORDS];
        let control = self.control.unwrap_or(Control { fd: 0, cookie: 0 });
        let flags =
            u64::from(self.is_spent) * SPENT + u64::from(self.control.is_some()) * HAS_CONTROL;
        let flags = flags | u64::from(self.backlog) << 32;
        let own = [flags, u64::from(control.fd.unsigned_abs()), control.cookie];
        let target = model::address_to_words(self.target);
        let all = self.socket.to_words().into_iter().chain(own).chain(target);
        for (word, value) in words.iter_mut().zip(all) {
            *word = value;
        }
        words
    }

    /// Decodes it. `None` if the words are no record.
    pub fn decode(words: &[u64; WORDS]) -> Option<Self> {
        let (socket, rest) = words.split_first_chunk()?;
        let (&[flags, fd, cookie], rest) = rest.split_first_chunk()?;
        let control = Control {
            fd: i32::try_from(fd).ok()?,
            cookie,
        };
        Some(Self {
            socket: model::Socket::from_words(socket)?,
            target: model::address_from_words(rest.first_chunk()?)?,
            backlog: u32::try_from(flags >> 32).ok()?,
            control: (flags & HAS_CONTROL != 0).then_some(control),
            is_spent: flags & SPENT != 0,
        })
    }
}
