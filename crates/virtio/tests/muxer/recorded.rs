//! A muxer that records its output, and is replaced at one call by a muxer made from its snapshot.

use std::ops::Deref;
use std::time::{Duration, Instant};

use hvsock_virtio::{
    Config, ConnectError, Event, Handle, Header, Key, MessageEnd, Muxer, MuxerSnapshot, Received,
    Transmit,
};

/// Passes all calls on to a muxer.
#[derive(Debug)]
pub struct Recorded {
    muxer: Muxer,
    config: Config,
    started: Instant,
    now: Instant,
    /// Number of calls that may change the muxer.
    pub calls: usize,
    /// The call before which the muxer is replaced.
    pub restore_at: Option<usize>,
    /// Everything that it has returned, if that is recorded.
    pub output: Option<Vec<String>>,
}

impl Recorded {
    pub fn new(config: Config, first_count: u32, now: Instant) -> Self {
        Self {
            muxer: Muxer::with_first_count(config.clone(), first_count),
            config,
            started: now,
            now,
            calls: 0,
            restore_at: None,
            output: None,
        }
    }

    pub fn snapshot(&self) -> MuxerSnapshot {
        self.muxer.snapshot(self.now)
    }

    fn call(&mut self) -> &mut Muxer {
        if self.restore_at == Some(self.calls) {
            let text = serde_json::to_vec(&self.snapshot()).expect("a snapshot is JSON");
            let snapshot = serde_json::from_slice(&text).expect("a snapshot that was written");
            let restored = Muxer::restore(snapshot, self.config.clone(), self.now);
            self.muxer = restored.expect("a snapshot of a muxer");
        }
        self.calls += 1;
        &mut self.muxer
    }

    fn record<T: std::fmt::Debug>(&mut self, what: &str, returned: T) -> T {
        let timeout = self.muxer.poll_timeout();
        let timeout = timeout.map(|at| at.saturating_duration_since(self.started));
        if let Some(output) = &mut self.output {
            output.push(format!("{what}: {returned:?}, timeout {timeout:?}"));
        }
        returned
    }

    pub fn handle_packet(&mut self, header: &Header, payload: usize) -> Received {
        let received = self.call().handle_packet(header, payload);
        self.record("received", received)
    }

    pub fn handle_timeout(&mut self, now: Instant) {
        self.now = now;
        self.call().handle_timeout(now);
    }

    pub fn connect(
        &mut self,
        now: Instant,
        key: Key,
        alloc: u32,
        timeout: Duration,
    ) -> Result<Handle, ConnectError> {
        self.now = now;
        let connected = self.call().connect(now, key, alloc, timeout);
        self.record("connect", connected)
    }

    pub fn accept(&mut self, handle: Handle, alloc: u32) {
        self.call().accept(handle, alloc);
    }

    pub fn refuse(&mut self, handle: Handle) {
        self.call().refuse(handle);
    }

    pub fn readable(&mut self, handle: Handle) {
        self.call().readable(handle);
    }

    pub fn freed(&mut self, handle: Handle, bytes: u32) {
        self.call().freed(handle, bytes);
        let window = self.muxer.receive_window(handle);
        self.record("window", window);
    }

    pub fn finish(&mut self, handle: Handle) {
        self.call().finish(handle);
    }

    pub fn close_read(&mut self, handle: Handle) {
        self.call().close_read(handle);
    }

    pub fn close(&mut self, now: Instant, handle: Handle) {
        self.now = now;
        self.call().close(now, handle);
    }

    pub fn reset(&mut self, handle: Handle) {
        self.call().reset(handle);
    }

    pub fn forget_all(&mut self) {
        self.call().forget_all();
    }

    pub fn poll_event(&mut self) -> Option<Event> {
        let event = self.call().poll_event();
        self.record("event", event)
    }

    pub fn poll_transmit(&mut self, space: usize) -> Option<Transmit> {
        let transmit = self.call().poll_transmit(space);
        self.record("transmit", transmit)
    }

    pub fn sent(
        &mut self,
        handle: Handle,
        bytes: usize,
        end: MessageEnd,
        more: bool,
    ) -> Option<Header> {
        let header = self.call().sent(handle, bytes, end, more);
        self.record("sent", header)
    }

    pub fn nothing_to_send(&mut self, handle: Handle) {
        self.call().nothing_to_send(handle);
    }
}

/// For the methods that change nothing.
impl Deref for Recorded {
    type Target = Muxer;

    fn deref(&self) -> &Muxer {
        &self.muxer
    }
}
