//! Resets a connection, so that the peer does not take its end for a clean one.

use crate::HvStream;

impl HvStream {
    /// Resets the connection, on every handle: the peer reads what was written and then fails with
    /// `ConnectionReset`. Does not block.
    ///
    /// A relay uses this if its own source fails. Dropping the connection would signal to the peer
    /// that the data is complete.
    ///
    /// `AF_VSOCK` has one kind of end ([in a virtual machine](crate#in-a-virtual-machine)): there
    /// the peer sees a clean end.
    ///
    /// ```no_run
    /// # fn relay(mut from: impl std::io::Read, mut to: hvsock::HvStream) {
    /// if std::io::copy(&mut from, &mut to).is_err() {
    ///     to.reset();
    /// }
    /// # }
    /// ```
    #[doc(alias = "ECONNRESET")]
    #[doc(alias = "SO_LINGER")]
    pub fn reset(&self) {
        self.stream().reset();
    }
}

#[cfg(feature = "tokio")]
impl crate::tokio::HvStream {
    /// Resets the connection; see [`crate::HvStream::reset`].
    #[doc(alias = "ECONNRESET")]
    pub fn reset(&self) {
        self.stream().reset();
    }
}
