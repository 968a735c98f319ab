//! How a supervisor is to work, and what it reports.

use std::collections::VecDeque;
use std::fmt;

use hvsock::{ElementName, Endpoint, Refusal, SockAddrHv, VmId};

use crate::model::Address;

/// How a supervisor works.
pub struct Settings {
    /// The endpoint of the programs' partition.
    pub endpoint: Endpoint,
    /// Names to register services with that programs listen for and that are not registered, in the order of
    /// their use. The registrations last as long as the supervisor.
    pub register: VecDeque<ElementName>,
    /// What is called for each [`Event`], on the supervisor's thread. It must not block.
    pub on_event: Box<dyn FnMut(Event) + Send>,
}

/// What the owner of a supervisor may want to tell the user.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A program listens, but not for all partitions that its address names: the broker refuses more.
    Restricted {
        /// The address that the program is bound to.
        address: Address,
        /// What the broker was asked for.
        target: SockAddrHv,
        /// Who can connect: the own partition ([`VmId::LOOPBACK`]), or only the children or the parent.
        accepts_from: VmId,
        /// Why it refused.
        refusal: Refusal,
    },
    /// A service was registered under a name from [`Settings::register`].
    Registered {
        /// The name.
        name: ElementName,
        /// The address that the program is bound to.
        address: Address,
    },
    /// A service could not be registered.
    NotRegistered {
        /// The name.
        name: ElementName,
        /// Why.
        reason: String,
    },
    /// A listener has ended. The supervisor tries to listen again.
    ListenerEnded {
        /// The address that the program is bound to.
        address: Address,
        /// Why; `None` if the broker has ended.
        refusal: Option<Refusal>,
    },
    /// This process may not look at a program, so its sockets do not work: the program has other rights, or is
    /// not dumpable. Reported once.
    NoAccess {
        /// The thread that called.
        process: u32,
    },
}

impl fmt::Debug for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut debug = f.debug_struct("Settings");
        debug.field("endpoint", &self.endpoint);
        debug.field("register", &self.register);
        debug.finish_non_exhaustive()
    }
}
