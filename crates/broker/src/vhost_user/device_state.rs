//! The state of a device that a VMM saves in a snapshot and loads at a restore (DEVICE_STATE).
//!
//! Connections do not survive: their host ends are with processes that know nothing of the snapshot. So the
//! state says only that a device served the guest. One that has loaded it tells the guest that all of its
//! connections have ended ([`transport_reset`](super::transport_reset)), and the guest goes on.
//!
//! The state goes through a pipe or socket of the VMM, which is not trusted to read, to write or to close it
//! ([`state_file`](super::state_file)).

pub(super) mod snapshot;

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use hvsock_sys::poll::{self, PollFd, PollFlags};
use serde::{Deserialize, Serialize};

use super::state_file::{Direction, StateFile};

/// The version that this release writes and reads.
const VERSION: u32 = 1;
/// The most bytes of a state. A later release may have more in it.
const MAX_LEN: usize = 64 << 10;
/// How long the VMM may take to read or write it.
const TIMEOUT: Duration = Duration::from_secs(5);

/// A device's state. Unknown fields are ignored.
#[derive(Debug, Serialize, Deserialize)]
struct Saved {
    version: u32,
    /// The guest's context id. A guest may be restored under another one.
    cid: u32,
}

/// Writes the state of the device of the guest with this context id.
///
/// # Errors
/// If `to` is no pipe or socket, the VMM does not read in time, or `stop` becomes readable.
pub(super) fn save(to: &File, cid: u32, stop: BorrowedFd<'_>) -> io::Result<()> {
    let to = StateFile::new(to.try_clone()?, Direction::Write)?;
    let version = VERSION;
    let state = serde_json::to_vec(&Saved { version, cid })?;
    let deadline = Instant::now() + TIMEOUT;
    let mut rest = &state[..];
    while !rest.is_empty() {
        wait(&to, PollFlags::OUT, stop, deadline)?;
        match to.write(rest) {
            Ok(count) => rest = &rest[count..],
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// A state that the VMM writes. It is read while it arrives: the VMM asks for the result when it has written all,
/// and may write more than the pipe takes.
#[derive(Debug)]
pub(super) struct Loading {
    /// `None` when it has ended.
    file: Option<Arc<StateFile>>,
    state: Vec<u8>,
    failure: Option<io::Error>,
}

impl Loading {
    /// A state that arrives from `from`.
    ///
    /// # Errors
    /// If `from` is no pipe or socket.
    pub(super) fn new(from: File) -> io::Result<Self> {
        let from = StateFile::new(from, Direction::Read)?;
        Ok(Self {
            file: Some(Arc::new(from)),
            state: Vec::new(),
            failure: None,
        })
    }

    /// The file, as long as more of the state may arrive.
    pub(super) fn file(&self) -> Option<Arc<StateFile>> {
        self.file.clone()
    }

    /// Reads what has arrived. A state that is too long ends here, and so does the VMM's write.
    pub(super) fn read(&mut self) {
        let mut block = [0; 4096];
        while let Some(file) = &self.file {
            match file.read(&mut block) {
                Ok(0) => self.file = None,
                Ok(count) => self.state.extend(&block[..count]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) => self.fail(error),
            }
            if self.state.len() > MAX_LEN {
                self.fail(invalid(format!("it is longer than {MAX_LEN} bytes")));
            }
        }
    }

    /// Reads the rest of the state, and checks it.
    ///
    /// # Errors
    /// If the VMM does not end it in time, `stop` becomes readable, or the state is too long, is malformed, or is
    /// of another version.
    pub(super) fn finish(mut self, stop: BorrowedFd<'_>) -> io::Result<()> {
        let deadline = Instant::now() + TIMEOUT;
        self.read();
        while let Some(file) = self.file() {
            wait(&file, PollFlags::IN, stop, deadline)?;
            self.read();
        }
        if let Some(failure) = self.failure {
            return Err(failure);
        }
        let Saved { version, cid: _ } = serde_json::from_slice(&self.state)
            .map_err(|error| invalid(format!("malformed: {error}")))?;
        if version != VERSION {
            return Err(invalid(format!(
                "it has version {version}; this release reads version {VERSION}"
            )));
        }
        Ok(())
    }

    fn fail(&mut self, failure: io::Error) {
        self.file = None;
        self.state = Vec::new();
        self.failure = Some(failure);
    }
}

fn invalid(text: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, text)
}

fn wait(
    file: &StateFile,
    flags: PollFlags,
    stop: BorrowedFd<'_>,
    deadline: Instant,
) -> io::Result<()> {
    let file = file.as_fd();
    let mut fds = [
        PollFd::from_borrowed_fd(file, flags),
        PollFd::from_borrowed_fd(stop, PollFlags::IN),
    ];
    let is_ready = poll::wait(&mut fds, Some(deadline))?;
    if !fds[1].revents().is_empty() {
        return Err(io::Error::new(
            io::ErrorKind::Interrupted,
            "the VM is being removed",
        ));
    }
    match is_ready {
        true => Ok(()),
        false => Err(io::ErrorKind::TimedOut.into()),
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::fd::OwnedFd;
    use std::os::unix::net::UnixStream;

    use hvsock_sys::event::Event;

    use super::*;

    fn pipe() -> (File, File) {
        let (reader, writer) = io::pipe().unwrap();
        let [reader, writer] = [OwnedFd::from(reader), OwnedFd::from(writer)];
        (reader.into(), writer.into())
    }

    /// Does `work` on another thread. Fails the test if it blocks.
    fn in_time<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
        let (done, result) = std::sync::mpsc::channel();
        std::thread::spawn(move || done.send(work()));
        let limit = Duration::from_secs(20);
        result.recv_timeout(limit).expect("the call blocks")
    }

    fn loaded(state: &[u8]) -> io::Result<()> {
        let (reader, mut writer) = pipe();
        let state = state.to_vec();
        let sent = std::thread::spawn(move || writer.write_all(&state));
        let loading = Loading::new(reader).unwrap();
        let loaded = loading.finish(Event::new().unwrap().as_fd());
        let _ = sent.join().unwrap();
        loaded
    }

    #[test]
    fn a_saved_state_is_loaded_whatever_a_later_release_adds() {
        let (mut reader, writer) = pipe();
        let stop = Event::new().unwrap();
        save(&writer, 42, stop.as_fd()).unwrap();
        drop(writer);
        let mut state = Vec::new();
        reader.read_to_end(&mut state).unwrap();
        assert_eq!(state, br#"{"version":1,"cid":42}"#);
        loaded(&state).unwrap();
        loaded(br#"{"version":1,"cid":7,"more":[1,2,3]}"#).unwrap();
    }

    #[test]
    fn a_malformed_state_is_an_error() {
        let long = format!(
            r#"{{"version":1,"cid":3,"more":"{}"}}"#,
            "x".repeat(MAX_LEN)
        );
        for (state, text) in [
            (&b""[..], "malformed"),
            (b"{", "malformed"),
            (b"\xff\xff", "malformed"),
            (br#"{"version":1,"cid":-1}"#, "malformed"),
            (br#"{"version":1,"cid":4294967296}"#, "malformed"),
            (br#"{"version":1}"#, "malformed"),
            (br#"{"version":1,"cid":3}x"#, "malformed"),
            (br#"{"version":2,"cid":3}"#, "it has version 2"),
            (long.as_bytes(), "longer than 65536 bytes"),
        ] {
            let error = loaded(state).unwrap_err().to_string();
            assert!(error.contains(text), "{error}");
        }
    }

    #[test]
    fn a_vmm_that_writes_more_than_any_state_is_not_left_to_wait() {
        let (reader, mut writer) = pipe();
        let mut loading = Loading::new(reader).unwrap();
        let sent = std::thread::spawn(move || {
            let sent = writer.write_all(&[b' '; 1 << 20]);
            sent.map_err(|error| error.kind())
        });
        while let Some(file) = loading.file() {
            let file = file.as_fd();
            poll::wait(&mut [PollFd::new(&file, PollFlags::IN)], None).unwrap();
            loading.read();
        }
        assert_eq!(sent.join().unwrap(), Err(io::ErrorKind::BrokenPipe));
        let error = loading.finish(Event::new().unwrap().as_fd()).unwrap_err();
        assert!(error.to_string().contains("longer than"), "{error}");
    }

    #[test]
    fn a_vmm_that_neither_reads_nor_writes_blocks_nobody() {
        let stop = Event::new().unwrap();
        let (reader, writer) = pipe();
        hvsock_sys::set_nonblocking(&writer, true).unwrap();
        while (&writer).write(&[0; 4096]).is_ok() {}
        stop.set();
        let error = save(&writer, 42, stop.as_fd()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::Interrupted);
        let (silent, _kept) = pipe();
        let error = Loading::new(silent)
            .unwrap()
            .finish(stop.as_fd())
            .unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::Interrupted);
        drop(reader);
        stop.clear();
        let error = save(&writer, 42, stop.as_fd()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
        let other = tempfile::tempfile().unwrap();
        let error = save(&other, 42, stop.as_fd()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
    }

    #[test]
    fn a_vmm_that_makes_its_end_blocking_again_blocks_nobody() {
        let (read_pipe, write_pipe) = pipe();
        let (read_socket, write_socket) = UnixStream::pair().unwrap();
        let [read_socket, write_socket] = [read_socket, write_socket].map(OwnedFd::from);
        let sockets: [File; 2] = [read_socket.into(), write_socket.into()];
        let [read_socket, write_socket] = sockets;
        for (reader, mut writer) in [(read_pipe, write_pipe), (read_socket, write_socket)] {
            let mut loading = Loading::new(reader.try_clone().unwrap()).unwrap();
            hvsock_sys::set_nonblocking(&reader, false).unwrap();
            writer.write_all(b"{").unwrap();
            let loading = in_time(move || {
                loading.read();
                loading
            });
            assert!(loading.file().is_some());
            let stop = Event::new().unwrap();
            stop.set();
            let error = in_time(move || loading.finish(stop.as_fd()).unwrap_err());
            assert_eq!(error.kind(), io::ErrorKind::Interrupted);

            let to = StateFile::new(writer.try_clone().unwrap(), Direction::Write).unwrap();
            hvsock_sys::set_nonblocking(&writer, false).unwrap();
            let error = in_time(move || {
                loop {
                    if let Err(error) = to.write(&[0; 4096]) {
                        return error;
                    }
                }
            });
            assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
            drop(reader);
        }
    }
}
