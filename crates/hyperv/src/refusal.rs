//! Windows' numbers, in the words of refusals.

use hvsock_address::{SockAddrHv, VmId};
use hvsock_fabric::Refusal;

use crate::Facts;

/// What a number of Winsock's means for a connect to `address`, or where `listening` for a bind
/// or listen there. A number that says nothing about the other side, or is none, means none.
///
/// Windows has one number for several reasons. Where `facts` know the reason it is theirs;
/// otherwise it is the one that is left, or the one that claims least.
///
/// Sources: learn.microsoft.com/windows/win32/winsock/windows-sockets-error-codes-2 for the
/// numbers; for what each means here the mapping of [`Refusal::wsa`], which is this one forwards.
pub fn refusal(
    wsa: i32,
    facts: Option<&Facts>,
    address: SockAddrHv,
    listening: bool,
) -> Option<Refusal> {
    let plain = plain(wsa, facts, address, listening)?;
    let judged = facts.and_then(|facts| {
        let explanation = if listening {
            facts.explain_listen(address.vm, address.service)
        } else {
            facts.explain_connect(address.vm, address.service)
        };
        explanation.verdict.err()
    });
    let better = judged.filter(|judged| judged.wsa() == wsa || is_vague(wsa, judged));
    Some(better.unwrap_or(plain))
}

/// What the number means where nothing more is known.
fn plain(wsa: i32, facts: Option<&Facts>, address: SockAddrHv, listening: bool) -> Option<Refusal> {
    let by_windows = |what: &str| format!("{what} of Windows");
    Some(match wsa {
        // WSAEACCES: github.com/nbdd0121/wsld/issues/8 had it for another user's machine.
        10013 => Refusal::Denied {
            rule: by_windows("a security descriptor"),
        },
        // WSAEINVAL
        10022 => Refusal::Disabled {
            by: by_windows("a setting"),
        },
        // WSAEOPNOTSUPP, WSAEAFNOSUPPORT: no Hyper-V, or none of its sockets
        10045 | 10047 => Refusal::NotSupported,
        // WSAEADDRINUSE
        10048 => Refusal::AddressInUse,
        // WSAEADDRNOTAVAIL
        10049 => match address.vm {
            vm if listening || vm.is_well_known() => Refusal::AddressNotAvailable,
            // A guest that asks for another must not take it that there is none.
            _ if facts.is_some_and(Facts::is_mere_guest) => Refusal::NotReachable,
            _ => Refusal::PartitionUnknown,
        },
        // WSAENETDOWN: moby/vpnkit#299 had it for a machine that restarted. Paused and off are
        // what a guest can be; the host is neither.
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

/// Whether a number is one that Windows also gives for this reason, which has a better one: nobody
/// answered (WSAETIMEDOUT), somebody said no (WSAECONNREFUSED), or it is not allowed (WSAEACCES),
/// which a bind to a machine for a service that is not registered was seen to give
/// (github.com/nbdd0121/wsld/issues/5).
fn is_vague(wsa: i32, judged: &Refusal) -> bool {
    match wsa {
        // Windows knew the address when somebody there said no, or nobody answered. Who judges that
        // it is none knows less: a guest need not know that it is one.
        10060 | 10061 => !matches!(
            judged,
            Refusal::NotSupported
                | Refusal::AddressNotAvailable
                | Refusal::NotReachable
                | Refusal::PartitionUnknown
        ),
        10013 => matches!(judged, Refusal::Unregistered | Refusal::Disabled { .. }),
        _ => false,
    }
}
