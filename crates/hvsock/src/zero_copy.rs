//! Zero-copy access to the bytes of a connection in shared memory.

use std::io;

use crate::{Filled, HvStream, Reserved};

impl HvStream {
    /// Reserves free space for at most `wanted` bytes in the memory that is shared with the peer.
    ///
    /// Write bytes there, or have the kernel read a file directly into it, then send them with
    /// [`commit`](Reserved::commit). The reservation has at least one byte and may have fewer than
    /// `wanted`. If the ring is full this blocks as writing does, with the same mode and timeout.
    ///
    /// The memory is borrowed in place, so no byte is copied. See [`Reserved`] for **what a hostile
    /// peer can do** to it.
    ///
    /// # Errors
    ///
    /// `Unsupported` if the bytes do not go through shared memory ([`HvStream::transport`]);
    /// `InvalidInput` if `wanted` is 0; otherwise as writing to a [`HvStream`].
    ///
    /// # Examples
    ///
    /// ```no_run
    /// use std::fs::File;
    ///
    /// # fn main() -> std::io::Result<()> {
    /// let stream = hvsock::HvStream::connect(("parent", "HV Socket Demo"))?;
    /// let file = File::open("/etc/os-release")?;
    /// loop {
    ///     let mut reserved = stream.reserve(64 * 1024)?;
    ///     let count = reserved.read_from(&file, 0)?;
    ///     reserved.commit(count)?;
    ///     if count == 0 {
    ///         break;
    ///     }
    /// }
    /// # Ok(())
    /// # }
    /// ```
    #[doc(alias = "zero-copy")]
    #[doc(alias = "splice")]
    #[doc(alias = "sendfile")]
    pub fn reserve(&self, wanted: usize) -> io::Result<Reserved<'_>> {
        if wanted == 0 {
            return Err(crate::error::invalid_input("cannot reserve 0 bytes"));
        }
        self.stream().reserve(wanted)
    }

    /// Borrows the received bytes in place, in the memory that is shared with the peer. `None` at
    /// the end.
    ///
    /// Read the bytes, or have the kernel write them directly to a file, then release them with
    /// [`consume`](Filled::consume). If there are none this blocks as reading does, with the same
    /// mode and timeout.
    ///
    /// See [`Filled`] for **what a hostile peer can do to bytes while you read them** (TOCTOU).
    ///
    /// # Errors
    ///
    /// `Unsupported` if the bytes do not go through shared memory ([`HvStream::transport`]);
    /// otherwise as reading from a [`HvStream`].
    ///
    /// # Examples
    ///
    /// ```no_run
    /// use std::fs::File;
    ///
    /// # fn main() -> std::io::Result<()> {
    /// let stream = hvsock::HvStream::connect(("parent", "HV Socket Demo"))?;
    /// let file = File::create("/tmp/copy")?;
    /// while let Some(bytes) = stream.fill()? {
    ///     let count = bytes.write_to(&file, 0)?;
    ///     bytes.consume(count)?;
    /// }
    /// # Ok(())
    /// # }
    /// ```
    #[doc(alias = "fill_buf")]
    #[doc(alias = "zero-copy")]
    #[doc(alias = "splice")]
    pub fn fill(&self) -> io::Result<Option<Filled<'_>>> {
        self.stream().fill()
    }
}
