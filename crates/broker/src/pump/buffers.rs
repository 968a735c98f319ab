//! What the connections of a set share to move bytes. A turn has it for itself and leaves nothing in it.

use hvsock_sys::splice::SplicePipe;

/// Size of one read in bytes.
const READ_SIZE: usize = 64 * 1024;
/// Size of one read while memory is short.
const READ_SIZE_WHEN_FULL: usize = 4 * 1024;
/// Capacity of the pipe in bytes, as far as the system allows.
const PIPE_SIZE: usize = 256 * 1024;

/// A copy buffer and a pipe.
pub(super) struct Buffers {
    scratch: Vec<u8>,
    pipe: Option<SplicePipe>,
    /// The system does not splice between Unix sockets, or has no descriptors left for a pipe.
    never_splices: bool,
    /// Memory is short: bytes are read in small chunks and not spliced.
    is_short: bool,
}

impl Buffers {
    pub(super) fn new() -> Self {
        Self {
            scratch: vec![0; READ_SIZE],
            pipe: None,
            never_splices: false,
            is_short: false,
        }
    }

    /// Says whether memory is short.
    pub(super) fn set_short(&mut self, is_short: bool) {
        self.is_short = is_short;
    }

    /// The copy buffer.
    pub(super) fn scratch(&mut self) -> &mut [u8] {
        match self.is_short {
            true => &mut self.scratch[..READ_SIZE_WHEN_FULL],
            false => &mut self.scratch,
        }
    }

    /// The pipe, which is empty. `None` if bytes have to be copied.
    pub(super) fn pipe(&mut self) -> Option<&mut SplicePipe> {
        if self.never_splices || self.is_short {
            return None;
        }
        if self.pipe.is_none() {
            self.pipe = SplicePipe::new(PIPE_SIZE).ok();
            self.never_splices = self.pipe.is_none();
        }
        self.pipe.as_mut()
    }

    /// Drops the pipe with the bytes in it.
    pub(super) fn discard_pipe(&mut self) {
        self.pipe = None;
    }

    /// Copies from now on.
    pub(super) fn stop_splicing(&mut self) {
        self.discard_pipe();
        self.never_splices = true;
    }
}
