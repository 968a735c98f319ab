//! A connection.

use std::io::{self, Read as _, Write as _};
use std::net::Shutdown;
use std::os::fd::AsRawFd as _;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use hvsock::{HvStream, SockAddrHv};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::PyBytes;

use crate::buffer::{Readable, Writable};
use crate::failure;
use crate::slices::{SLICE, Until, is_main_thread, wait};

const MSG_PEEK: i32 = 0x2;
const MSG_WAITALL: i32 = 0x100;

/// A connection of the Rust library.
#[pyclass(frozen)]
pub(crate) struct Stream(RwLock<Open>);

/// What threads share.
struct Open {
    /// `None` after the close.
    stream: Option<Arc<HvStream>>,
    /// The timeout of a call in seconds: `None` is for ever, 0 must not wait.
    timeout: Option<f64>,
    /// The mode of the stream.
    mode: Mode,
}

/// How the calls of the Rust library wait.
#[derive(Clone, Copy, PartialEq)]
enum Mode {
    Nonblocking,
    /// In slices of this length.
    Sliced(Duration),
    Ever,
}

impl Mode {
    fn apply(self, stream: &HvStream) -> io::Result<()> {
        let slice = match self {
            Self::Sliced(slice) => Some(slice),
            Self::Nonblocking | Self::Ever => None,
        };
        stream.set_nonblocking(self == Self::Nonblocking)?;
        stream.set_read_timeout(slice)?;
        stream.set_write_timeout(slice)
    }
}

/// The GUIDs of an address.
pub(crate) fn guids(address: SockAddrHv) -> (String, String) {
    (address.vm.to_string(), address.service.to_string())
}

/// The name, process id, user id and group id of the peer.
type Peer = (String, Option<u32>, Option<u32>, Option<u32>);

impl Stream {
    pub(crate) fn new(stream: HvStream) -> PyResult<Self> {
        let open = Open {
            stream: Some(Arc::new(stream)),
            timeout: None,
            mode: Mode::Ever,
        };
        let stream = Self(RwLock::new(open));
        stream.set_timeout(None)?;
        Ok(stream)
    }

    fn open(&self) -> PyResult<(Arc<HvStream>, Option<f64>)> {
        let open = self.0.read().unwrap_or_else(PoisonError::into_inner);
        let stream = open.stream.clone().ok_or_else(failure::closed)?;
        Ok((stream, open.timeout))
    }

    /// As [`open`](Self::open), for a call that may wait. Python runs signal handlers on the main thread only, so only
    /// there a wait for ever is one in slices. Each slice costs some readings of the clock.
    fn open_to_wait(&self) -> PyResult<(Arc<HvStream>, Option<f64>)> {
        let (found, mode) = {
            let open = self.0.read().unwrap_or_else(PoisonError::into_inner);
            let stream = open.stream.clone().ok_or_else(failure::closed)?;
            ((stream, open.timeout), open.mode)
        };
        let wanted = match (found.1, is_main_thread()) {
            (Some(_), _) => return Ok(found),
            (None, true) => Mode::Sliced(SLICE),
            (None, false) => Mode::Ever,
        };
        if mode != wanted {
            wanted.apply(&found.0).map_err(failure::of)?;
            let mut open = self.0.write().unwrap_or_else(PoisonError::into_inner);
            open.mode = wanted;
        }
        Ok(found)
    }

    /// Receives into `bytes` without the GIL.
    fn receive(&self, py: Python<'_>, bytes: &mut [u8], flags: i32) -> PyResult<usize> {
        let peek = flags & MSG_PEEK != 0;
        if flags & !(MSG_PEEK | MSG_WAITALL) != 0 {
            let text =
                "a connection in shared memory knows the flags MSG_PEEK and MSG_WAITALL only";
            return Err(PyValueError::new_err(text));
        }
        let (stream, timeout) = self.open_to_wait()?;
        let (mut reader, until) = (&*stream, Until::after(timeout));
        let mut receive = |bytes: &mut [u8]| {
            wait(py, until, || {
                py.detach(|| match peek {
                    true => reader.peek(bytes),
                    false => reader.read(bytes),
                })
            })
        };
        let mut count = receive(bytes)?;
        let mut received = count;
        // All of it, or as much as there is before the end.
        while flags & MSG_WAITALL != 0 && !peek && received > 0 && count < bytes.len() {
            received = receive(bytes.get_mut(count..).unwrap_or_default())?;
            count += received;
        }
        Ok(count)
    }
}

#[pymethods]
impl Stream {
    /// Receives up to `size` bytes.
    #[pyo3(signature = (size, flags=0))]
    fn recv<'py>(&self, py: Python<'py>, size: usize, flags: i32) -> PyResult<Bound<'py, PyBytes>> {
        // The whole size may never arrive.
        const LARGEST: usize = 1 << 20;
        let mut count = 0;
        let bytes = PyBytes::new_with(py, size.min(LARGEST), |bytes| {
            count = self.receive(py, bytes, flags)?;
            Ok(())
        })?;
        match bytes.as_bytes().get(..count) {
            Some(part) if part.len() < bytes.as_bytes().len() => Ok(PyBytes::new(py, part)),
            _ => Ok(bytes),
        }
    }

    /// Receives into a buffer: into all of it if `nbytes` is 0.
    #[pyo3(signature = (buffer, nbytes=0, flags=0))]
    fn recv_into(
        &self,
        py: Python<'_>,
        buffer: &Bound<'_, PyAny>,
        nbytes: usize,
        flags: i32,
    ) -> PyResult<usize> {
        let mut buffer = Writable::of(buffer)?;
        let bytes = buffer.bytes();
        let end = if nbytes == 0 { bytes.len() } else { nbytes };
        let part = bytes
            .get_mut(..end)
            .ok_or_else(|| PyValueError::new_err("the buffer is too small for that many bytes"))?;
        self.receive(py, part, flags)
    }

    /// Sends what fits. Its flags have no effect.
    #[pyo3(signature = (data, flags=0))]
    fn send(&self, py: Python<'_>, data: &Bound<'_, PyAny>, flags: i32) -> PyResult<usize> {
        let _ = flags;
        let (stream, timeout) = self.open_to_wait()?;
        let data = Readable::of(data)?;
        let bytes = data.bytes();
        let mut writer = &*stream;
        wait(py, Until::after(timeout), || {
            py.detach(|| writer.write(bytes))
        })
    }

    /// Sends all. Its flags have no effect.
    #[pyo3(signature = (data, flags=0))]
    fn sendall(&self, py: Python<'_>, data: &Bound<'_, PyAny>, flags: i32) -> PyResult<()> {
        let _ = flags;
        let (stream, timeout) = self.open_to_wait()?;
        let data = Readable::of(data)?;
        let (mut bytes, until) = (data.bytes(), Until::after(timeout));
        let mut writer = &*stream;
        while !bytes.is_empty() {
            let sent = wait(py, until, || py.detach(|| writer.write(bytes)))?;
            bytes = bytes.get(sent..).unwrap_or_default();
        }
        Ok(())
    }

    /// Reads to the end in pieces of `size` bytes, in a loop without Python. Returns the number of bytes and the
    /// seconds from the first one on. For measurements of what Python adds.
    fn receive_all(&self, py: Python<'_>, size: usize) -> PyResult<(u64, f64)> {
        let (stream, _) = self.open()?;
        let receive_all = || -> io::Result<(u64, f64)> {
            let mut buffer = vec![0; size.clamp(1, 1 << 24)];
            let mut reader = &*stream;
            let mut total = reader.read(buffer.get_mut(..1).unwrap_or_default())? as u64;
            let start = Instant::now();
            loop {
                match reader.read(&mut buffer)? {
                    0 => return Ok((total, start.elapsed().as_secs_f64())),
                    count => total += count as u64,
                }
            }
        };
        stream.set_read_timeout(None).map_err(failure::of)?;
        py.detach(receive_all).map_err(failure::of)
    }

    /// Sends `data` a number of times, in a loop without Python. For measurements of what Python adds.
    fn send_repeatedly(&self, py: Python<'_>, data: &[u8], times: u64) -> PyResult<()> {
        let (stream, _) = self.open()?;
        stream.set_write_timeout(None).map_err(failure::of)?;
        let send = || {
            let mut writer = &*stream;
            (0..times).try_for_each(|_| writer.write_all(data))
        };
        py.detach(send).map_err(failure::of)
    }

    /// Ends writing, reading, or both.
    fn shutdown(&self, py: Python<'_>, write: bool, read: bool) -> PyResult<()> {
        let (stream, _) = self.open()?;
        let how = match (write, read) {
            (true, true) => Shutdown::Both,
            (true, false) => Shutdown::Write,
            _ => Shutdown::Read,
        };
        py.detach(|| stream.shutdown(how)).map_err(failure::of)
    }

    /// Ends the data cleanly and closes.
    fn close(&self, py: Python<'_>) {
        let mut open = self.0.write().unwrap_or_else(PoisonError::into_inner);
        let Some(stream) = open.stream.take() else {
            return;
        };
        drop(open);
        py.detach(|| {
            if Arc::strong_count(&stream) > 1 {
                // Another thread waits in a call: this ends it. An error means that it has ended already.
                let _ = stream.shutdown(Shutdown::Both);
            }
            drop(stream);
        });
    }

    /// The descriptor to watch; -1 after the close.
    fn fileno(&self) -> i32 {
        let descriptor = self.open().map(|(stream, _)| stream.as_raw_fd());
        descriptor.unwrap_or(-1)
    }

    fn set_timeout(&self, timeout: Option<f64>) -> PyResult<()> {
        let (stream, _) = self.open()?;
        let mode = match Until::after(timeout) {
            Until::Now => Mode::Nonblocking,
            // Not longer than the timeout itself.
            Until::Deadline(_) => Mode::Sliced(Duration::from_secs_f64(
                timeout
                    .unwrap_or_default()
                    .clamp(0.001, SLICE.as_secs_f64()),
            )),
            Until::Ever => Mode::Ever,
        };
        mode.apply(&stream).map_err(failure::of)?;
        let mut open = self.0.write().unwrap_or_else(PoisonError::into_inner);
        (open.timeout, open.mode) = (timeout, mode);
        Ok(())
    }

    fn set_connected_suspend(&self, on: bool) -> PyResult<()> {
        let (stream, _) = self.open()?;
        stream.set_connected_suspend(on).map_err(failure::of)
    }

    fn local(&self) -> PyResult<(String, String)> {
        let (stream, _) = self.open()?;
        stream.local_addr().map(guids).map_err(failure::of)
    }

    fn remote(&self) -> PyResult<(String, String)> {
        let (stream, _) = self.open()?;
        stream.peer_addr().map(guids).map_err(failure::of)
    }

    fn connection_id(&self) -> PyResult<u64> {
        self.open().map(|(stream, _)| stream.connection_id())
    }

    /// How the bytes travel, in one word.
    fn transport(&self) -> PyResult<String> {
        let (stream, _) = self.open()?;
        Ok(format!("{:?}", stream.transport()).to_lowercase())
    }

    fn peer(&self) -> PyResult<Option<Peer>> {
        let (stream, _) = self.open()?;
        let peer = stream.peer();
        Ok(peer.map(|peer| {
            (
                peer.partition().to_owned(),
                peer.pid(),
                peer.uid(),
                peer.gid(),
            )
        }))
    }
}
