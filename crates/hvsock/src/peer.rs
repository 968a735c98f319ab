//! The identity of a connecting process.

/// The process at the other end of an accepted connection.
///
/// The values come from the kernel and the broker, so the process cannot forge them.
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
#[doc(alias = "SO_PEERCRED")]
#[doc(alias = "ucred")]
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    pub(crate) partition: String,
    pub(crate) pid: Option<u32>,
    pub(crate) uid: Option<u32>,
    pub(crate) gid: Option<u32>,
}

impl Peer {
    /// A process of which only the partition is known.
    pub(crate) fn of_partition(partition: String) -> Self {
        Self {
            partition,
            pid: None,
            uid: None,
            gid: None,
        }
    }

    /// Returns the name of its partition. In a virtual machine without a broker it is `parent`,
    /// `loopback`, or `cid N` for another guest.
    pub fn partition(&self) -> &str {
        &self.partition
    }

    /// Returns its process id, or `None` if the id has no meaning in this partition.
    pub fn pid(&self) -> Option<u32> {
        self.pid
    }

    /// Returns its user id, or `None` if the id has no meaning in this partition.
    pub fn uid(&self) -> Option<u32> {
        self.uid
    }

    /// Returns its group id, or `None` if the id has no meaning in this partition.
    pub fn gid(&self) -> Option<u32> {
        self.gid
    }
}
