//! What the broker says of one connection beside its data, and what it is told.
//!
//! The end of the data descriptor alone means nothing: a process that ends well says `SHUTDOWN`
//! first, a cut is announced by `RESET`, and a broker that dies closes everything at once. Every
//! duplicate of a stream, in any thread or task, shares this one reader of the endpoint.

use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::Waker;
use std::time::{Duration, Instant};

use hvsock_endpoint::{BrokerMessage, ClientMessage, MAX_MESSAGE};
use hvsock_fabric::Refusal;
use hvsock_sys::message;
use hvsock_sys::poll::PollFlags;

use super::conversation::is_gone;
use super::fault;
use crate::os::ready;

/// The endpoint of a connection that stands.
pub(super) struct Control {
    socket: Arc<OwnedFd>,
    news: Mutex<News>,
}

/// What the broker has said so far.
#[derive(Default)]
struct News {
    /// The other end's data ends where the data descriptor does.
    ended: bool,
    cut: Option<Cut>,
    /// Tasks that wait for news which another reader of the socket may take first.
    waiting: Vec<Waker>,
}

/// Why a connection was cut.
#[derive(Clone)]
pub(super) enum Cut {
    Refused(Refusal),
    BrokerGone,
    Fault(String),
}

/// What is known of the connection's end.
#[derive(Clone)]
pub(super) struct Word {
    pub(super) ended: bool,
    pub(super) cut: Option<Cut>,
    /// It was read only now.
    pub(super) fresh: bool,
}

impl Word {
    /// Whether the end of the data descriptor is explained.
    pub(super) fn explains_end(&self) -> bool {
        self.ended || self.cut.is_some()
    }
}

impl Cut {
    pub(super) fn into_error(self) -> io::Error {
        match self {
            Self::Refused(refusal) => refusal.into_cut_error(),
            Self::BrokerGone => fault::broker_gone(),
            Self::Fault(what) => fault::broker_fault("of this connection", &what),
        }
    }
}

/// While one thread waits in the kernel another may read the message it waits for; so it looks
/// up at least this often. This is the rare wait between the end of data and its explanation.
const LOOK_UP: Duration = Duration::from_millis(20);

/// How long a blocking caller waits for room in a socket that the broker reads all the time.
const SEND_BOUND: Duration = Duration::from_secs(5);

impl Control {
    pub(super) fn new(socket: Arc<OwnedFd>) -> Self {
        Self {
            socket,
            news: Mutex::default(),
        }
    }

    /// Reads what is there and returns all that is known.
    pub(super) fn look(&self) -> Word {
        self.look_and(|_| ())
    }

    #[cfg(feature = "tokio")]
    /// Likewise; where the end is not explained yet, `waker` is woken by whoever reads news.
    pub(super) fn look_or_wake(&self, waker: &Waker) -> Word {
        self.look_and(|news| {
            let explained = news.ended || news.cut.is_some();
            if !explained && !news.waiting.iter().any(|known| known.will_wake(waker)) {
                news.waiting.push(waker.clone());
            }
        })
    }

    fn look_and(&self, then: impl FnOnce(&mut News)) -> Word {
        let mut news = self.news.lock().unwrap_or_else(PoisonError::into_inner);
        let mut fresh = false;
        while news.cut.is_none() && self.read(&mut news) {
            fresh = true;
        }
        if fresh {
            news.waiting.drain(..).for_each(Waker::wake);
        }
        then(&mut news);
        Word {
            ended: news.ended,
            cut: news.cut.clone(),
            fresh,
        }
    }

    /// Reads one message; whether there was any.
    fn read(&self, news: &mut News) -> bool {
        let mut buffer = [0; MAX_MESSAGE];
        let received = match message::recv(&self.socket, &mut buffer) {
            Ok(received) => received,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return false,
            Err(error) if is_gone(&error) => {
                news.cut = Some(Cut::BrokerGone);
                return true;
            }
            Err(error) => {
                news.cut = Some(Cut::Fault(error.to_string()));
                return true;
            }
        };
        if received.len == 0 {
            news.cut = Some(Cut::BrokerGone);
            return true;
        }
        match BrokerMessage::decode(&buffer[..received.len]) {
            Ok(BrokerMessage::Shutdown) => news.ended = true,
            Ok(BrokerMessage::Reset(refused) | BrokerMessage::Refused(refused)) => {
                news.cut = Some(Cut::Refused(fault::refusal(&refused)));
            }
            // Only a reason to look at the words of a ring, of which this is none.
            Ok(BrokerMessage::Suspended { .. }) => {}
            Ok(_) => news.cut = Some(Cut::Fault("a message that has no place here".into())),
            Err(fault) => news.cut = Some(Cut::Fault(fault.to_string())),
        }
        true
    }

    /// A duplicate of the descriptor.
    pub(super) fn try_clone(&self) -> io::Result<OwnedFd> {
        self.socket.try_clone()
    }

    /// Waits until the end of the data is explained, or until `deadline`.
    pub(super) fn wait_for_end(&self, deadline: Option<Instant>) -> io::Result<Word> {
        loop {
            let word = self.look();
            if word.explains_end() || deadline.is_some_and(|at| at <= Instant::now()) {
                return Ok(word);
            }
            let slice = Instant::now() + LOOK_UP;
            let until = deadline.map_or(slice, |at| at.min(slice));
            ready(&self.socket, PollFlags::IN, Some(until))?;
        }
    }

    /// Tells the broker something, and waits for room if `patient`.
    pub(super) fn tell(&self, what: &ClientMessage, patient: bool) -> io::Result<()> {
        let mut bytes = Vec::with_capacity(16);
        what.encode(&mut bytes);
        let deadline = Instant::now() + SEND_BOUND;
        loop {
            match message::send(&self.socket, &bytes, &[]) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock && patient => {
                    if !ready(&self.socket, PollFlags::OUT, Some(deadline))? {
                        let text = "the broker does not read its endpoint";
                        return Err(io::Error::new(io::ErrorKind::TimedOut, text));
                    }
                }
                Err(error) if is_gone(&error) => {
                    let cut = self.look().cut.unwrap_or(Cut::BrokerGone);
                    return Err(cut.into_error());
                }
                result => return result,
            }
        }
    }
}

impl AsFd for Control {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl fmt::Debug for Control {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Control")
            .field("socket", &self.socket)
            .finish_non_exhaustive()
    }
}
