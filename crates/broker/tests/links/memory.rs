//! One connection between a link and its guest: two pipes in memory.

use std::collections::VecDeque;
use std::io::{self, ErrorKind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use hvsock_testkit::conformance::{Ready, Stream};

/// The size of each pipe in bytes.
pub const CAPACITY: usize = 64 * 1024;

/// Wakes the link after the guest has changed something.
pub type Wake = Box<dyn Fn() + Send + Sync>;

/// Both pipes of one connection.
pub struct Pipes {
    state: Mutex<State>,
    changed: Condvar,
    wake: Wake,
}

#[derive(Default)]
pub struct State {
    pub to_guest: Pipe,
    pub from_guest: Pipe,
    /// The link has reset the connection.
    pub is_reset: bool,
    /// The guest has closed its stream.
    pub is_closed: bool,
    /// The guest asks for a reset.
    pub wants_reset: bool,
}

#[derive(Default)]
pub struct Pipe {
    pub bytes: VecDeque<u8>,
    /// The writer sends no more.
    pub ended: bool,
    /// The reader receives no more.
    pub closed: bool,
}

impl Pipe {
    pub fn room(&self) -> usize {
        CAPACITY - self.bytes.len()
    }
}

impl Pipes {
    pub fn new(wake: Wake) -> Arc<Self> {
        Arc::new(Self {
            state: Mutex::default(),
            changed: Condvar::new(),
            wake,
        })
    }

    /// Changes the state on the link's side.
    pub fn with<R>(&self, change: impl FnOnce(&mut State) -> R) -> R {
        let result = change(&mut self.lock());
        self.changed.notify_all();
        result
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no thread panicked")
    }
}

/// The guest's end of a connection. Dropping it closes it.
pub struct GuestStream {
    pipes: Arc<Pipes>,
    settings: Mutex<Settings>,
}

#[derive(Clone, Copy, Default)]
struct Settings {
    read_timeout: Option<Duration>,
    write_timeout: Option<Duration>,
    nonblocking: bool,
}

impl GuestStream {
    pub fn new(pipes: Arc<Pipes>) -> Self {
        Self {
            pipes,
            settings: Mutex::default(),
        }
    }

    /// Resets the connection.
    pub fn reset(self) {
        self.pipes.lock().wants_reset = true;
        (self.pipes.wake)();
    }

    /// Repeats `attempt` until it gives a result, and wakes the link after it.
    fn until<R>(
        &self,
        timeout: Option<Duration>,
        mut attempt: impl FnMut(&mut State) -> Option<io::Result<R>>,
    ) -> io::Result<R> {
        let deadline = timeout.map(|timeout| Instant::now() + timeout);
        let nonblocking = self.settings().nonblocking;
        let mut state = self.pipes.lock();
        let result = loop {
            if let Some(result) = attempt(&mut state) {
                break result;
            }
            if nonblocking {
                return Err(ErrorKind::WouldBlock.into());
            }
            state = match deadline {
                None => self.pipes.changed.wait(state).expect("no thread panicked"),
                Some(deadline) => {
                    let left = deadline.saturating_duration_since(Instant::now());
                    if left.is_zero() {
                        return Err(ErrorKind::TimedOut.into());
                    }
                    let waited = self.pipes.changed.wait_timeout(state, left);
                    waited.expect("no thread panicked").0
                }
            };
        };
        drop(state);
        (self.pipes.wake)();
        result
    }

    fn settings(&self) -> Settings {
        *self.settings.lock().expect("no thread panicked")
    }
}

impl Stream for GuestStream {
    fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        self.until(self.settings().read_timeout, |state| {
            let pipe = &mut state.to_guest;
            let count = buffer.len().min(pipe.bytes.len());
            if count > 0 {
                for (to, from) in buffer.iter_mut().zip(pipe.bytes.drain(..count)) {
                    *to = from;
                }
                return Some(Ok(count));
            }
            match (state.is_reset, pipe.ended) {
                (true, _) => Some(Err(ErrorKind::ConnectionReset.into())),
                (false, true) => Some(Ok(0)),
                (false, false) => None,
            }
        })
    }

    fn write(&self, bytes: &[u8]) -> io::Result<usize> {
        self.until(self.settings().write_timeout, |state| {
            let pipe = &mut state.from_guest;
            if state.is_reset && !pipe.ended {
                return Some(Err(ErrorKind::ConnectionReset.into()));
            }
            if pipe.ended || pipe.closed {
                return Some(Err(ErrorKind::BrokenPipe.into()));
            }
            let count = bytes.len().min(pipe.room());
            pipe.bytes.extend(&bytes[..count]);
            (count > 0 || bytes.is_empty()).then_some(Ok(count))
        })
    }

    fn shutdown_write(&self) -> io::Result<()> {
        self.pipes.lock().from_guest.ended = true;
        (self.pipes.wake)();
        Ok(())
    }

    fn set_read_timeout(&self, timeout: Duration) -> io::Result<()> {
        self.settings.lock().expect("no panic").read_timeout = Some(timeout);
        Ok(())
    }

    fn set_write_timeout(&self, timeout: Duration) -> io::Result<()> {
        self.settings.lock().expect("no panic").write_timeout = Some(timeout);
        Ok(())
    }

    fn set_nonblocking(&self, nonblocking: bool) -> io::Result<()> {
        self.settings.lock().expect("no panic").nonblocking = nonblocking;
        Ok(())
    }

    fn wait(&self, interest: Ready, timeout: Duration) -> io::Result<Ready> {
        let deadline = Instant::now() + timeout;
        let mut state = self.pipes.lock();
        loop {
            let (to, from) = (&state.to_guest, &state.from_guest);
            let ready = Ready {
                read: interest.read && (!to.bytes.is_empty() || to.ended || state.is_reset),
                write: interest.write && (from.room() > 0 || from.closed || state.is_reset),
            };
            let left = deadline.saturating_duration_since(Instant::now());
            if ready != Ready::NONE || left.is_zero() {
                return Ok(ready);
            }
            let waited = self.pipes.changed.wait_timeout(state, left);
            state = waited.expect("no thread panicked").0;
        }
    }
}

impl Drop for GuestStream {
    fn drop(&mut self) {
        let mut state = self.pipes.lock();
        state.is_closed = true;
        state.from_guest.ended = true;
        state.to_guest.closed = true;
        drop(state);
        (self.pipes.wake)();
    }
}
