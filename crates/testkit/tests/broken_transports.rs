//! The conformance suite detects broken transports: one case catches each fault here.

#![cfg(target_os = "linux")]

#[allow(dead_code, reason = "the other test uses TCP")]
mod kernel;

use std::io;
use std::net::Shutdown;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use hvsock_testkit::conformance::{Ready, Reset, Stream, Transport, check};
use kernel::{Kernel, Unix};

/// The fault of a transport.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    Nothing,
    /// One byte of many is not delivered.
    LosesAByte,
    /// The last byte of a write is sent by the next write or a shutdown, but lost by a close.
    LosesTheLastByteAtAClose,
    /// A write that times out does not report the bytes that it accepted.
    UnderreportsAWrite,
    /// Every write is accepted.
    BuffersWithoutBound,
    /// A wait for data misses its wakeup.
    LosesAWakeup,
    /// A half-close shuts down both directions.
    ShutsDownBothDirections,
    /// A reset is a plain close.
    ResetsByAClose,
}

struct Broken {
    inner: Kernel,
    fault: Fault,
    held: Mutex<Vec<u8>>,
    read: AtomicUsize,
}

impl Broken {
    fn held(&self) -> std::sync::MutexGuard<'_, Vec<u8>> {
        self.held.lock().expect("not poisoned")
    }
}

impl Stream for Broken {
    fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        let before = self.read.fetch_add(count, Ordering::Relaxed);
        let lost = 10_000;
        if self.fault == Fault::LosesAByte && (before..before + count).contains(&lost) {
            buffer.copy_within(lost - before + 1..count, lost - before);
            return Ok(count - 1);
        }
        Ok(count)
    }

    fn write(&self, bytes: &[u8]) -> io::Result<usize> {
        match self.fault {
            Fault::LosesTheLastByteAtAClose => {
                let mut held = self.held();
                held.extend_from_slice(bytes);
                while held.len() > 1 {
                    let most = held.len() - 1;
                    let count = self.inner.write(&held[..most])?;
                    held.drain(..count);
                }
                Ok(bytes.len())
            }
            Fault::UnderreportsAWrite => match self.inner.write(bytes)? {
                count if count < bytes.len() => Err(io::ErrorKind::TimedOut.into()),
                count => Ok(count),
            },
            Fault::BuffersWithoutBound => match self.inner.write(bytes) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(bytes.len()),
                result => result,
            },
            _ => self.inner.write(bytes),
        }
    }

    fn shutdown_write(&self) -> io::Result<()> {
        self.inner.write(&self.held())?;
        match self.fault {
            Fault::ShutsDownBothDirections => self.inner.0.shutdown(Shutdown::Both),
            _ => self.inner.shutdown_write(),
        }
    }

    fn set_read_timeout(&self, timeout: Duration) -> io::Result<()> {
        self.inner.set_read_timeout(timeout)
    }

    fn set_write_timeout(&self, timeout: Duration) -> io::Result<()> {
        self.inner.set_write_timeout(timeout)
    }

    fn set_nonblocking(&self, nonblocking: bool) -> io::Result<()> {
        self.inner.set_nonblocking(nonblocking)
    }

    fn wait(&self, interest: Ready, timeout: Duration) -> io::Result<Ready> {
        if self.fault == Fault::LosesAWakeup && interest == Ready::READ {
            return Ok(Ready::NONE);
        }
        self.inner.wait(interest, timeout)
    }
}

struct WithFault(Fault);

impl Transport for WithFault {
    type Stream = Broken;

    fn name(&self) -> &'static str {
        "broken"
    }

    fn pair(&self) -> io::Result<(Broken, Broken)> {
        let (local, peer) = Unix.pair()?;
        let broken = |inner| Broken {
            inner,
            fault: self.0,
            held: Mutex::default(),
            read: AtomicUsize::new(0),
        };
        Ok((broken(local), broken(peer)))
    }

    fn reset(&self) -> Option<Reset<Self>> {
        Some(|_, stream| {
            drop(stream);
            Ok(())
        })
    }
}

#[test]
fn each_fault_fails_its_case() {
    for (fault, case, message) in [
        (
            Fault::LosesAByte,
            "one_byte_reads_receive_everything",
            "end of file after 10000 of 20000 bytes",
        ),
        (
            Fault::LosesTheLastByteAtAClose,
            "data_written_before_a_close_arrives",
            "end of file after 999 of 1000 bytes",
        ),
        (
            Fault::UnderreportsAWrite,
            "a_write_times_out_and_reports_the_accepted_bytes",
            "bytes beyond what was accepted",
        ),
        (
            Fault::BuffersWithoutBound,
            "an_unread_stream_applies_backpressure",
            "bytes were accepted and none was read",
        ),
        (
            Fault::LosesAWakeup,
            "data_wakes_a_waiting_reader",
            "data arrived and the wait went on",
        ),
        (
            Fault::ShutsDownBothDirections,
            "a_half_closed_stream_still_receives",
            "end of file after 0 of 1048576 bytes",
        ),
    ] {
        assert_eq!(check(WithFault(Fault::Nothing), case), Ok(()), "{case}");
        let error = check(WithFault(fault), case).expect_err(case);
        assert!(error.contains(message), "{fault:?}: {error}");
    }
    // The transport below cannot reset, so there is no correct implementation to compare with.
    let error = check(
        WithFault(Fault::ResetsByAClose),
        "a_reset_is_not_end_of_file",
    )
    .expect_err("no reset");
    assert!(error.contains("EndOfFile"), "{error}");
}

#[test]
fn an_unknown_case_is_an_error() {
    let error = check(Unix, "no_such_case").expect_err("there is none");
    assert_eq!(error, "there is no case no_such_case");
}
