//! Who connected.

/// The process at the other end of an accepted connection, as its kernel and the broker know it:
/// nothing of this is what the process says of itself.
///
/// ```no_run
/// # fn main() -> std::io::Result<()> {
/// let listener = hvsock::HvListener::bind(("any", "HV Socket Demo"))?;
/// let (stream, _) = listener.accept()?;
/// if let Some(peer) = stream.peer() {
///     println!("from {}, user {:?}", peer.partition(), peer.uid());
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    pub(crate) partition: String,
    pub(crate) pid: Option<u32>,
    pub(crate) uid: Option<u32>,
    pub(crate) gid: Option<u32>,
}

impl Peer {
    /// A process of which nothing but its partition is known.
    pub(crate) fn of_partition(partition: String) -> Self {
        Self {
            partition,
            pid: None,
            uid: None,
            gid: None,
        }
    }

    /// The name of its partition. In a virtual machine without a broker: `parent`, `loopback`, or
    /// `cid N` for another guest.
    pub fn partition(&self) -> &str {
        &self.partition
    }

    /// Its process id, where that means something on this side.
    pub fn pid(&self) -> Option<u32> {
        self.pid
    }

    /// Its user id, where that means something on this side.
    pub fn uid(&self) -> Option<u32> {
        self.uid
    }

    /// Its group id, where that means something on this side.
    pub fn gid(&self) -> Option<u32> {
        self.gid
    }
}
