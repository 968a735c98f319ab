//! Bytes of a connection in place, where they go through shared memory.

use std::io;

use crate::{Filled, HvStream, Reserved};

impl HvStream {
    /// Reserves room in the memory that is shared with the other end, for at most `wanted` bytes:
    /// put bytes there, or have the kernel read a file straight into it, and
    /// [`commit`](Reserved::commit) what is to be sent.
    ///
    /// Waits for room as writing does, by the same mode and time limit. There is at least one byte
    /// of it and there may be less than `wanted`. `Unsupported` where bytes do not go through
    /// shared memory ([`HvStream::transport`]). See [`Reserved`] on **what a hostile peer can do**.
    ///
    /// ```no_run
    /// use std::fs::File;
    ///
    /// # fn main() -> std::io::Result<()> {
    /// let stream = hvsock::HvStream::connect(("parent", "HV Socket Demo"))?;
    /// let file = File::open("/etc/os-release")?;
    /// loop {
    ///     let mut room = stream.reserve(64 * 1024)?;
    ///     let count = room.read_from(&file, 0)?;
    ///     room.commit(count)?;
    ///     if count == 0 {
    ///         break;
    ///     }
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub fn reserve(&self, wanted: usize) -> io::Result<Reserved<'_>> {
        if wanted == 0 {
            return Err(crate::error::invalid("room for no bytes is none"));
        }
        self.stream().reserve(wanted)
    }

    /// Lends the bytes that have come, where they lie in the memory that is shared with the other
    /// end: look at them, or have the kernel write them straight to a file, and
    /// [`consume`](Filled::consume) what has been dealt with.
    ///
    /// Waits for bytes as reading does, by the same mode and time limit; `None` at the end.
    /// `Unsupported` where bytes do not go through shared memory ([`HvStream::transport`]). See
    /// [`Filled`] on **what a hostile peer can do to bytes that you look at**.
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
    pub fn fill(&self) -> io::Result<Option<Filled<'_>>> {
        self.stream().fill()
    }
}
