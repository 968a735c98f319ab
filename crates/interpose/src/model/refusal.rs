//! The error numbers of calls that the broker refuses.

use hvsock::Refusal;

use super::{Errno, Family};

impl Errno {
    /// What a connect of this family fails with for a reason of the broker's.
    ///
    /// `AF_VSOCK` has two answers of its own, as in the kernel: `ECONNRESET` where nobody listens, for the
    /// peer's kernel answers with a reset, and `ENODEV` for a context id that does not exist.
    pub fn of_connect(family: Family, refusal: &Refusal) -> Self {
        match (family, refusal) {
            (Family::Vsock, Refusal::Unregistered | Refusal::NoListener | Refusal::BacklogFull) => {
                Self::ECONNRESET
            }
            (Family::Vsock, Refusal::PartitionUnknown | Refusal::NotReachable) => Self::ENODEV,
            (_, refusal) => Self::new(refusal.errno()),
        }
    }

    /// What a bind or listen fails with for a reason of the broker's.
    pub fn of_listen(refusal: &Refusal) -> Self {
        Self::new(refusal.errno())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_there_is_a_reset_for_vsock_and_a_refusal_for_hyperv() {
        for refusal in [
            Refusal::Unregistered,
            Refusal::NoListener,
            Refusal::BacklogFull,
        ] {
            let errno = |family| Errno::of_connect(family, &refusal);
            assert_eq!(errno(Family::Vsock), Errno::ECONNRESET);
            assert_eq!(errno(Family::HyperV), Errno::ECONNREFUSED);
        }
    }

    #[test]
    fn a_context_id_that_does_not_exist_is_no_device() {
        for refusal in [Refusal::PartitionUnknown, Refusal::NotReachable] {
            let errno = |family| Errno::of_connect(family, &refusal);
            assert_eq!(errno(Family::Vsock), Errno::ENODEV);
            assert_eq!(errno(Family::HyperV), Errno::EADDRNOTAVAIL);
        }
    }

    #[test]
    fn other_refusals_have_their_own_number_in_both_families() {
        let denied = Refusal::Denied {
            rule: String::new(),
        };
        for family in [Family::Vsock, Family::HyperV] {
            assert_eq!(Errno::of_connect(family, &denied), Errno::EACCES);
            let timed_out = Errno::of_connect(family, &Refusal::TimedOut);
            assert_eq!(timed_out, Errno::ETIMEDOUT);
        }
        assert_eq!(Errno::of_listen(&Refusal::AddressInUse), Errno::EADDRINUSE);
    }
}
