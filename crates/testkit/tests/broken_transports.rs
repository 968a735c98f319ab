//! The conformance suite notices what is wrong with a transport: each fault here is caught by
//! the case that is there for it.

#![cfg(target_os = "linux")]

#[allow(dead_code, reason = "TCP is used by the other test")]
mod kernel;

use std::io;
use std::net::Shutdown;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use hvsock_testkit::conformance::{Ready, Reset, Stream, Transport, check};
use kernel::{Kernel, Unix};

/// What is wrong with a transport.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    Nothing,
    /// One byte of many is not delivered.
    LosesAByte,
    /// The last byte of a write leaves with the next one, or with a shutdown, but not with a close.
    LosesTheLastByteAtAClose,
    /// A write that ran out of time denies the bytes that it took.
    DeniesPartOfAWrite,
    /// Whatever is written is accepted.
    BuffersWithoutBound,
    /// Who waits for data is not told of it.
    LosesAWakeUp,
    /// A shutdown of one direction ends both.
    ShutsBothDirections,
    /// A reset is nothing but a close.
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
            Fault::DeniesPartOfAWrite => match self.inner.write(bytes)? {
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
            Fault::ShutsBothDirections => self.inner.0.shutdown(Shutdown::Both),
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
        if self.fault == Fault::LosesAWakeUp && interest == Ready::READ {
            return Ok(Ready::NONE);
        }
        self.inner.wait(interest, timeout)
    }
}

struct Over(Fault);

impl Transport for Over {
    type Stream = Broken;

    fn name(&self) -> &'static str {
        "broken"
    }

    fn pair(&self) -> io::Result<(Broken, Broken)> {
        let (near, far) = Unix.pair()?;
        let broken = |inner| Broken {
            inner,
            fault: self.0,
            held: Mutex::default(),
            read: AtomicUsize::new(0),
        };
        Ok((broken(near), broken(far)))
    }

    fn reset(&self) -> Option<Reset<Self>> {
        Some(|_, stream| {
            drop(stream);
            Ok(())
        })
    }
}

#[test]
fn each_fault_is_caught_by_its_case() {
    for (fault, case, complaint) in [
        (
            Fault::LosesAByte,
            "reads_of_one_byte_get_everything",
            "the end came after 10000 of 20000 bytes",
        ),
        (
            Fault::LosesTheLastByteAtAClose,
            "what_was_written_before_a_close_arrives",
            "the end came after 999 of 1000 bytes",
        ),
        (
            Fault::DeniesPartOfAWrite,
            "a_write_ends_at_its_time_limit_and_says_what_it_took",
            "bytes beyond what was accepted",
        ),
        (
            Fault::BuffersWithoutBound,
            "a_writer_is_held_back_while_nobody_reads",
            "bytes were accepted and none was read",
        ),
        (
            Fault::LosesAWakeUp,
            "who_waits_for_data_wakes_when_it_comes",
            "data came and the wait went on",
        ),
        (
            Fault::ShutsBothDirections,
            "data_arrives_after_the_other_direction_ended",
            "the end came after 0 of 1048576 bytes",
        ),
    ] {
        assert_eq!(check(Over(Fault::Nothing), case), Ok(()), "{case}");
        let error = check(Over(fault), case).expect_err(case);
        assert!(error.contains(complaint), "{fault:?}: {error}");
    }
    // Nothing beneath this transport can reset, so there is no good one to compare with.
    let error =
        check(Over(Fault::ResetsByAClose), "a_reset_is_no_clean_end").expect_err("no reset");
    assert!(error.contains("Clean"), "{error}");
}

#[test]
fn a_case_that_is_not_there_is_no_success() {
    let error = check(Unix, "no_such_case").expect_err("there is none");
    assert_eq!(error, "there is no case no_such_case");
}
