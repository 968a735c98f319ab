//! Falsified messages of a hostile VMM.

/// What is wrong with one message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// It is not sent, so that the next one comes too early.
    Missing,
    /// It is sent twice. The second answer is not awaited.
    Twice,
    /// Its body is this much shorter, as its header says.
    Shorter(usize),
    /// Its body is this much longer, as its header says.
    Longer(usize),
    /// Only half of it is sent before the VMM hangs up.
    Cut,
    /// Every byte of its body is this one.
    Filled(u8),
    /// It has no descriptor.
    NoDescriptor,
    /// It has this many descriptors more.
    MoreDescriptors(usize),
    /// It is sent as another request.
    Request(u32),
    /// Its header has these flags besides the version.
    Flags(u32),
}

impl Fault {
    /// One of each kind.
    pub const KINDS: [Self; 16] = [
        Self::Missing,
        Self::Twice,
        Self::Shorter(1),
        Self::Shorter(usize::MAX),
        Self::Longer(1),
        Self::Longer(5000),
        Self::Cut,
        Self::Filled(0),
        Self::Filled(0xff),
        Self::NoDescriptor,
        Self::MoreDescriptors(1),
        Self::MoreDescriptors(14),
        Self::Request(0),
        // SET_OWNER, RESET_OWNER.
        Self::Request(3),
        Self::Request(4),
        // A reply.
        Self::Flags(1 << 2),
    ];
}

/// A fault of the message with this number, from 0 for the first of the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FaultAt {
    /// The message's number.
    pub message: usize,
    /// What is wrong with it.
    pub fault: Fault,
}

/// A message as it is sent.
pub(super) struct Message<'a> {
    pub(super) request: u32,
    pub(super) flags: u32,
    pub(super) body: Vec<u8>,
    pub(super) descriptors: Vec<std::os::fd::BorrowedFd<'a>>,
}

impl<'a> Message<'a> {
    /// Falsifies it. `other` is a descriptor to add.
    pub(super) fn falsify(&mut self, fault: Fault, other: std::os::fd::BorrowedFd<'a>) {
        match fault {
            Fault::Missing | Fault::Twice | Fault::Cut => {}
            Fault::Shorter(by) => self.body.truncate(self.body.len().saturating_sub(by)),
            Fault::Longer(by) => self.body.resize(self.body.len() + by, 0xaa),
            Fault::Filled(byte) => self.body.fill(byte),
            Fault::NoDescriptor => self.descriptors.clear(),
            Fault::MoreDescriptors(more) => {
                let len = self.descriptors.len() + more;
                self.descriptors.resize(len, other);
            }
            Fault::Request(request) => self.request = request,
            Fault::Flags(flags) => self.flags = flags,
        }
    }
}
