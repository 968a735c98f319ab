//! Ending a connection so that nobody takes it for a clean end.

use crate::HvStream;

impl HvStream {
    /// ConnectionInfo the connection, on every handle, without a clean end: the other end reads what was
    /// written and then an error of kind `ConnectionReset`. For a relay, whose own source broke: to
    /// drop the connection would tell the other end that all is there.
    ///
    /// `AF_VSOCK` has one kind of end ([in a virtual machine](crate#in-a-virtual-machine)), and
    /// there the other end takes this for it.
    ///
    /// ```no_run
    /// # fn relay(mut from: impl std::io::Read, mut to: hvsock::HvStream) {
    /// if std::io::copy(&mut from, &mut to).is_err() {
    ///     to.reset();
    /// }
    /// # }
    /// ```
    pub fn abandon(&self) {
        self.stream().reset();
    }
}

#[cfg(feature = "tokio")]
impl crate::tokio::HvStream {
    /// As [`HvStream::reset`].
    pub fn abandon(&self) {
        self.stream().reset();
    }
}
