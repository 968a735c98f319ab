//! The partition of this process.

use std::sync::atomic::{AtomicU32, Ordering};

use hvsock_address::{SockAddrVm, VmId};
use hvsock_interpose::model::{Family, OwnCid};
use rustix::io::Errno;

use crate::endpoint::{Conversation, Failure};

/// The own context id once it is known; 0 before.
static OWN_CID: AtomicU32 = AtomicU32::new(0);

/// The context id of this partition, which the broker is asked for once.
///
/// # Errors
///
/// Those of the broker: `ENODEV` if there is none.
pub fn own_cid() -> Result<u32, Errno> {
    match OWN_CID.load(Ordering::Relaxed) {
        0 => {
            let cid = Conversation::open().and_then(|broker| broker.cid_of(VmId::LOOPBACK));
            let cid = cid.map_err(|failure| match failure {
                Failure::System(error) => error,
                Failure::Refused(_) => Errno::NODEV,
            })?;
            OWN_CID.store(cid, Ordering::Relaxed);
            Ok(cid)
        }
        cid => Ok(cid),
    }
}

/// The own context id, for a family that has them.
pub fn own(family: Family) -> Result<OwnCid, Errno> {
    match family {
        Family::Vsock => own_cid().map(OwnCid),
        Family::HyperV => Ok(OwnCid(SockAddrVm::CID_ANY)),
    }
}
