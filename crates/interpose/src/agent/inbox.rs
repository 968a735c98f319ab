//! The socket on which runtimes hand over listeners.

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::{Duration, Instant};

use hvsock_sys::poll::{self, PollFlags};
use hvsock_sys::seccomp::Listener;
use hvsock_sys::{peer, stream};
use thiserror::Error;

use super::message::{ContainerProcess, MAX_MESSAGE, MessageError};

/// How long a runtime may take for its message.
const TIMEOUT: Duration = Duration::from_secs(10);
/// How many runtimes may send at once. Others wait to be accepted.
const MAX_SENDERS: usize = 64;
/// How many runtimes may wait to be accepted.
const BACKLOG: u32 = 256;

/// The agent's socket.
#[derive(Debug)]
pub struct Inbox {
    socket: OwnedFd,
    /// Who may hand over listeners besides root.
    owner: u32,
    senders: Vec<Sender>,
}

#[derive(Debug)]
struct Sender {
    socket: OwnedFd,
    bytes: Vec<u8>,
    listener: Option<OwnedFd>,
    deadline: Instant,
}

/// Why a listener was not handed over.
#[derive(Debug, Error)]
pub enum InboxError {
    /// The sender may not start containers of this broker.
    #[error("user {0} may not hand over listeners")]
    NotPermitted(u32),
    /// The message is none.
    #[error("the message of a runtime is unusable")]
    Message(#[from] MessageError),
    /// Nothing was sent, as when a container does not start.
    #[error("a runtime has sent nothing")]
    Nothing,
    /// The message is too long.
    #[error("the message of a runtime has more than {MAX_MESSAGE} bytes")]
    TooLong,
    /// The message did not end in time.
    #[error("the message of a runtime did not end within {} seconds", TIMEOUT.as_secs())]
    TimedOut,
    /// No listener came with the message.
    #[error("no listener came with the message of a runtime")]
    NoListener(#[source] Option<io::Error>),
    /// The connection failed.
    #[error("a runtime's connection has failed")]
    Connection(#[source] io::Error),
}

/// What a runtime hands over, or why it could not.
pub type Handover = Result<(ContainerProcess, Listener), InboxError>;

impl Inbox {
    /// Listens at `path`, for processes of root and of `owner`. Replaces the socket of an agent that has ended.
    ///
    /// # Errors
    ///
    /// Those of [`stream::listen`].
    pub fn bind(path: &Path, owner: u32) -> io::Result<Self> {
        Ok(Self {
            socket: stream::listen(path, 0o600, None, BACKLOG)?,
            owner,
            senders: Vec::new(),
        })
    }

    /// Waits for the next container's process; until `deadline`, and then returns `None`.
    ///
    /// # Errors
    ///
    /// Those of `poll` and `accept`, such as no free descriptor.
    pub fn receive(&mut self, deadline: Option<Instant>) -> io::Result<Option<Handover>> {
        loop {
            let now = Instant::now();
            if let Some(index) = self.senders.iter().position(|one| one.deadline <= now) {
                self.senders.swap_remove(index);
                return Ok(Some(Err(InboxError::TimedOut)));
            }
            let readable = self.wait(deadline)?;
            for index in readable.into_iter().rev() {
                if let Some(done) = self.senders[index].receive() {
                    self.senders.swap_remove(index);
                    return Ok(Some(done));
                }
            }
            if let Err(error) = self.accept()? {
                return Ok(Some(Err(error)));
            }
            if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
                return Ok(None);
            }
        }
    }

    /// Accepts a sender, if one waits and may send.
    fn accept(&mut self) -> io::Result<Result<(), InboxError>> {
        if self.senders.len() == MAX_SENDERS {
            return Ok(Ok(()));
        }
        let Some(socket) = stream::accept(&self.socket)? else {
            return Ok(Ok(()));
        };
        let uid = match peer::credentials(&socket) {
            Ok(credentials) => credentials.uid,
            Err(error) => return Ok(Err(InboxError::Connection(error))),
        };
        if uid != 0 && uid != self.owner {
            return Ok(Err(InboxError::NotPermitted(uid)));
        }
        self.senders.push(Sender {
            socket,
            bytes: Vec::new(),
            listener: None,
            deadline: Instant::now() + TIMEOUT,
        });
        Ok(Ok(()))
    }

    /// Waits until there is something to do. Returns the senders that have sent something, in ascending order.
    fn wait(&self, deadline: Option<Instant>) -> io::Result<Vec<usize>> {
        let mut fds: Vec<_> = self
            .senders
            .iter()
            .map(|sender| poll::PollFd::new(&sender.socket, PollFlags::IN))
            .collect();
        if self.senders.len() < MAX_SENDERS {
            fds.push(poll::PollFd::new(&self.socket, PollFlags::IN));
        }
        let deadlines = self.senders.iter().map(|sender| sender.deadline);
        poll::wait(&mut fds, deadlines.chain(deadline).min())?;
        let senders = fds.iter().take(self.senders.len()).enumerate();
        let readable = senders.filter(|(_, fd)| !fd.revents().is_empty());
        Ok(readable.map(|(index, _)| index).collect())
    }
}

impl Sender {
    /// Receives what is there. Returns the result when the message has ended.
    fn receive(&mut self) -> Option<Handover> {
        let mut part = [0; 16 * 1024];
        let count = match stream::recv_with_descriptor(&self.socket, &mut part) {
            Ok((count, listener)) => {
                self.listener = self.listener.take().or(listener);
                count
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return None,
            Err(error) => return Some(Err(InboxError::Connection(error))),
        };
        self.bytes.extend_from_slice(part.get(..count)?);
        if self.bytes.len() > MAX_MESSAGE {
            return Some(Err(InboxError::TooLong));
        }
        if self.bytes.is_empty() {
            return Some(Err(InboxError::Nothing));
        }
        // crun keeps the connection open, and sends a newline. So the end of the object is enough.
        let is_whole = self.bytes.trim_ascii_end().last() == Some(&b'}');
        if count > 0 && !is_whole {
            return None;
        }
        match ContainerProcess::parse(&self.bytes) {
            Err(MessageError::NotAState(error)) if count > 0 && error.is_eof() => None,
            parsed => Some(self.hand_over(parsed)),
        }
    }

    fn hand_over(&mut self, parsed: Result<ContainerProcess, MessageError>) -> Handover {
        let process = parsed?;
        let listener = self.listener.take().ok_or(InboxError::NoListener(None))?;
        // Runtimes that set the flag do not say so.
        let listener = Listener::from_descriptor(listener, false);
        let listener = listener.map_err(|error| InboxError::NoListener(Some(error)))?;
        Ok((process, listener))
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::{Read as _, Write as _};
    use std::os::fd::AsFd as _;
    use std::os::unix::net::UnixStream;
    use std::process::Command;

    use hvsock_sys::seccomp::{Action, Filter, Rule, spawn};

    use super::*;

    const MESSAGE: &str =
        r#"{"fds":["seccompFd"],"pid":7,"metadata":"web","state":{"id":"c1","pid":7}}"#;

    fn inbox(folder: &tempfile::TempDir) -> (Inbox, std::path::PathBuf) {
        let path = folder.path().join("agent");
        (Inbox::bind(&path, 0).unwrap(), path)
    }

    /// The listener of a program that has ended.
    fn listener() -> OwnedFd {
        let rule = Rule {
            syscall: 4000,
            args: &[],
            action: Action::Notify,
        };
        let filter = Filter::build(&[rule]).unwrap();
        let mut spawned = spawn(Command::new("true"), &filter).unwrap();
        spawned.child.wait().unwrap();
        spawned.listener.into()
    }

    #[test]
    fn a_listener_is_handed_over_with_a_message_in_any_parts() {
        let folder = tempfile::tempdir().unwrap();
        let (mut inbox, path) = inbox(&folder);
        let own = own_uid();
        inbox.owner = own;
        let of_crun = format!("{MESSAGE}\n");
        for (message, cut, closes) in [
            (MESSAGE, 1, true),
            (MESSAGE, 30, false),
            (MESSAGE, MESSAGE.len(), false),
            (MESSAGE, MESSAGE.len(), true),
            (&of_crun, of_crun.len(), false),
            (&of_crun, 1, false),
        ] {
            let mut runtime = UnixStream::connect(&path).unwrap();
            let (first, rest) = message.as_bytes().split_at(cut);
            stream::send_with_descriptor(&runtime, first, listener().as_fd()).unwrap();
            runtime.write_all(rest).unwrap();
            let kept = (!closes).then_some(runtime);
            let (process, _listener) = inbox.receive(None).unwrap().unwrap().unwrap();
            assert_eq!((process.container.as_str(), process.pid), ("c1", Some(7)));
            assert_eq!(process.metadata, "web");
            drop(kept);
        }
    }

    #[test]
    fn what_is_not_handed_over_is_reported_and_closed() {
        let folder = tempfile::tempdir().unwrap();
        let (mut inbox, path) = inbox(&folder);
        inbox.owner = own_uid();
        let file = File::open("/dev/null").unwrap();
        let (pair, _other) = stream::pair().unwrap();
        let long = format!("{{\"x\": \"{}\"}}", "a".repeat(MAX_MESSAGE));
        let cut = &MESSAGE[..MESSAGE.len() - 1];
        let cases: [(&str, Option<OwnedFd>, &str); 8] = [
            ("", None, "a runtime has sent nothing"),
            (
                MESSAGE,
                None,
                "no listener came with the message of a runtime",
            ),
            (
                MESSAGE,
                Some(file.into()),
                "no listener came with the message of a runtime",
            ),
            (
                MESSAGE,
                Some(pair),
                "no listener came with the message of a runtime",
            ),
            (
                "hello}",
                Some(listener()),
                "the message of a runtime is unusable",
            ),
            (
                "{}",
                Some(listener()),
                "the message of a runtime is unusable",
            ),
            (
                cut,
                Some(listener()),
                "the message of a runtime is unusable",
            ),
            (
                &long,
                Some(listener()),
                "the message of a runtime has more than",
            ),
        ];
        for (text, descriptor, error) in cases {
            let mut runtime = UnixStream::connect(&path).unwrap();
            let text = text.to_owned();
            let sender = std::thread::spawn(move || {
                if text.is_empty() {
                    return;
                }
                if let Some(descriptor) = descriptor {
                    let first = &text.as_bytes()[..1];
                    stream::send_with_descriptor(&runtime, first, descriptor.as_fd()).unwrap();
                } else {
                    runtime.write_all(&text.as_bytes()[..1]).unwrap();
                }
                let _ = runtime.write_all(&text.as_bytes()[1..]);
                let _ = runtime.shutdown(std::net::Shutdown::Write);
                let mut rest = Vec::new();
                let _ = runtime.read_to_end(&mut rest);
                assert!(rest.is_empty());
            });
            let found = inbox.receive(None).unwrap().unwrap().unwrap_err();
            assert!(found.to_string().starts_with(error), "{found}");
            // The connection is closed.
            sender.join().unwrap();
        }
        assert!(inbox.senders.is_empty());
        assert!(inbox.receive(Some(Instant::now())).unwrap().is_none());
    }

    #[test]
    fn many_runtimes_that_send_nothing_do_not_keep_others_out_for_longer_than_their_time() {
        let folder = tempfile::tempdir().unwrap();
        let (mut inbox, path) = inbox(&folder);
        inbox.owner = own_uid();
        let silent: Vec<_> = (0..MAX_SENDERS + 8)
            .map(|_| UnixStream::connect(&path).unwrap())
            .collect();
        let runtime = UnixStream::connect(&path).unwrap();
        let sent = stream::send_with_descriptor(&runtime, MESSAGE.as_bytes(), listener().as_fd());
        assert_eq!(sent.unwrap(), MESSAGE.len());
        // All that fit are accepted, and their time is over.
        while inbox.senders.len() < MAX_SENDERS {
            inbox.accept().unwrap().unwrap();
        }
        for sender in &mut inbox.senders {
            sender.deadline = Instant::now();
        }
        let mut timed_out = 0;
        let process = loop {
            match inbox.receive(None).unwrap().unwrap() {
                Ok((process, _)) => break process,
                Err(InboxError::TimedOut) => timed_out += 1,
                Err(error) => panic!("{error}"),
            }
        };
        assert_eq!(process.container, "c1");
        assert_eq!(timed_out, MAX_SENDERS);
        drop(silent);
    }

    fn own_uid() -> u32 {
        hvsock_sys::remote::credentials(hvsock_sys::remote::ThreadId::new(std::process::id()))
            .unwrap()
            .user
    }
}
