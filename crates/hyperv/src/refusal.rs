//! Translates Winsock error numbers to refusals.

use hvsock_address::{SockAddrHv, VmId};
use hvsock_fabric::Refusal;

use crate::Facts;

/// The refusal for a Winsock error number of a connect to `address` or, if `listening`, of a bind or
/// listen there. `None` for a number that is not about the peer, or unknown.
///
/// Windows uses one number for several reasons. If `facts` imply a reason with the same number, that
/// one is returned; otherwise the most general one.
///
/// Sources: learn.microsoft.com/windows/win32/winsock/windows-sockets-error-codes-2 for the
/// numbers; [`Refusal::wsa`] for the mapping, of which this is the inverse.
pub fn refusal(
    wsa: i32,
    facts: Option<&Facts>,
    address: SockAddrHv,
    listening: bool,
) -> Option<Refusal> {
    let default = by_number(wsa, facts, address, listening)?;
    let evaluated = facts.and_then(|facts| {
        let explanation = if listening {
            facts.explain_listen(address.vm, address.service)
        } else {
            facts.explain_connect(address.vm, address.service)
        };
        explanation.verdict.err()
    });
    let better = evaluated.filter(|refusal| refusal.wsa() == wsa || is_ambiguous(wsa, refusal));
    Some(better.unwrap_or(default))
}

/// The refusal for a number without further information.
fn by_number(
    wsa: i32,
    facts: Option<&Facts>,
    address: SockAddrHv,
    listening: bool,
) -> Option<Refusal> {
    let by_windows = |what: &str| format!("{what} of Windows");
    Some(match wsa {
        // WSAEACCES: reported for another user's machine in github.com/nbdd0121/wsld/issues/8.
        10013 => Refusal::Denied {
            rule: by_windows("a security descriptor"),
        },
        // WSAEINVAL
        10022 => Refusal::Disabled {
            by: by_windows("a setting"),
        },
        // WSAEOPNOTSUPP, WSAEAFNOSUPPORT: no Hyper-V, or no Hyper-V sockets
        10045 | 10047 => Refusal::NotSupported,
        // WSAEADDRINUSE
        10048 => Refusal::AddressInUse,
        // WSAEADDRNOTAVAIL
        10049 => match address.vm {
            vm if listening || vm.is_well_known() => Refusal::AddressNotAvailable,
            // To a guest this does not mean that the partition does not exist.
            _ if facts.is_some_and(Facts::is_guest_only) => Refusal::NotReachable,
            _ => Refusal::PartitionUnknown,
        },
        // WSAENETDOWN: reported for a machine that restarted in moby/vpnkit#299. A guest can be
        // paused or off, the host cannot.
        10050 if address.vm != VmId::LOOPBACK => Refusal::PartitionPaused,
        // WSAENETUNREACH
        10051 if address.vm != VmId::LOOPBACK => Refusal::PartitionOff,
        // WSAECONNRESET
        10054 => Refusal::Reset {
            cause: "Windows, or the other side".to_owned(),
        },
        // WSAENOBUFS
        10055 => Refusal::LimitReached {
            which: by_windows("buffers"),
        },
        // WSAETIMEDOUT
        10060 => Refusal::TimedOut,
        // WSAECONNREFUSED
        10061 => Refusal::NoListener,
        _ => return None,
    })
}

/// Whether Windows also uses this number for a refusal that has a more specific number: WSAETIMEDOUT
/// (no answer), WSAECONNREFUSED (refused) or WSAEACCES (not allowed). A bind to a machine for an
/// unregistered service was reported to return the latter (github.com/nbdd0121/wsld/issues/5).
fn is_ambiguous(wsa: i32, refusal: &Refusal) -> bool {
    match wsa {
        // Windows found the address if the peer refused or did not answer. That is stronger evidence
        // than a verdict that the address does not exist: a guest may not detect that it is one.
        10060 | 10061 => !matches!(
            refusal,
            Refusal::NotSupported
                | Refusal::AddressNotAvailable
                | Refusal::NotReachable
                | Refusal::PartitionUnknown
        ),
        10013 => matches!(refusal, Refusal::Unregistered | Refusal::Disabled { .. }),
        _ => false,
    }
}
