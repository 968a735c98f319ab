//! What a link can do.

/// What a link to a guest can do.
///
/// The core asks before it acts: what a link cannot do is refused or left out, and never imitated.
/// The default is a link that can do nothing but byte streams.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Capabilities {
    /// It carries SEQPACKET connections. Without it, a guest's request for one, and a sibling's to
    /// this guest, is refused with `NotSupported`.
    pub seqpacket: bool,
    /// The end of one direction reaches the other end while the other direction continues.
    ///
    /// Without it, the end of a process's data reaches the guest when the process closes, and the
    /// end of a guest's data is the end of both directions. A program that half-closes and then
    /// waits for an answer to the end of its data waits in vain on such a link. A link that moves
    /// the bytes sees to that itself; the relay does for the others.
    pub half_close: bool,
    /// A refusal arrives at the guest with its reason. Without it [`GuestLink::refuse`] gets no
    /// reason, and the guest only sees that the connection was refused.
    ///
    /// [`GuestLink::refuse`]: super::GuestLink::refuse
    pub refusal_reason: bool,
    /// A request names the process that made it ([`GuestRequest::identity`]). Without it the core
    /// ignores the field, and the requester has no user.
    ///
    /// [`GuestRequest::identity`]: super::GuestRequest::identity
    pub identity: bool,
    /// The link moves and counts the bytes itself. Without it the link hands out one stream socket
    /// per connection, and the broker's relay moves and counts the bytes: see
    /// [the order of calls](super#connections).
    pub byte_counts: bool,
    /// A reset, or the death of a process, is distinct from an end of data, both ways. Without it
    /// either one arrives as an end of data. The core has nothing to decide by it: it is there for
    /// the log and for tests.
    pub reset_notice: bool,
}

impl Capabilities {
    /// Everything.
    pub const ALL: Self = Self {
        seqpacket: true,
        half_close: true,
        refusal_reason: true,
        identity: true,
        byte_counts: true,
        reset_notice: true,
    };

    /// The names of the capabilities that the link lacks, for logs.
    pub fn missing(self) -> impl Iterator<Item = &'static str> {
        let all = [
            (self.seqpacket, "SEQPACKET"),
            (self.half_close, "half-close"),
            (self.refusal_reason, "reason of a refusal"),
            (self.identity, "identity of the peer"),
            (self.byte_counts, "byte counts"),
            (self.reset_notice, "reset notice"),
        ];
        all.into_iter()
            .filter(|(has, _)| !has)
            .map(|(_, name)| name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_missing_capabilities_are_named() {
        assert_eq!(Capabilities::ALL.missing().count(), 0);
        assert_eq!(Capabilities::default().missing().count(), 6);
        let no_messages = Capabilities {
            seqpacket: false,
            ..Capabilities::ALL
        };
        assert!(no_messages.missing().eq(["SEQPACKET"]));
    }
}
