//! What is known of a VM: whether its VMM is there, and whether its guest has a driver.
//!
//! No VMM of these says when its guest's driver starts. So a VM whose VMM listens is *unknown* until
//! something comes from its guest: a connection, or the answer to one. No I/O.

use hvsock_sys::socket_folder::FileId;

use super::style::Connects;
use crate::guest_link::PartitionState;

/// The state of a VM.
#[derive(Debug)]
pub(super) struct Presence {
    connects: Connects,
    state: PartitionState,
    /// The VMM's socket at which somebody listens.
    socket: Option<FileId>,
}

impl Presence {
    pub(super) fn new(connects: Connects) -> Self {
        let state = match connects {
            Connects::ByLine => PartitionState::Defined,
            // The VMM has no socket whose absence says that there is no VMM.
            Connects::ByPath => PartitionState::Unknown,
        };
        Self {
            connects,
            state,
            socket: None,
        }
    }

    /// What another process knew of the VM. `None` if it cannot have known that.
    pub(super) fn known(
        connects: Connects,
        state: PartitionState,
        socket: Option<FileId>,
    ) -> Option<Self> {
        let is_possible = match (connects, state) {
            (_, PartitionState::Unknown | PartitionState::Running) => true,
            (Connects::ByLine, PartitionState::Defined | PartitionState::Off) => socket.is_none(),
            _ => false,
        };
        let has_place = socket.is_none() || connects == Connects::ByLine;
        (is_possible && has_place).then_some(Self {
            connects,
            state,
            socket,
        })
    }

    /// The VMM's socket at which somebody listens.
    pub(super) fn socket(&self) -> Option<FileId> {
        self.socket
    }

    pub(super) fn state(&self) -> PartitionState {
        self.state
    }

    /// Whether the guest's driver is known to be there.
    pub(super) fn has_guest(&self) -> bool {
        self.state == PartitionState::Running
    }

    /// Whether this is the VMM's socket at which somebody listens.
    pub(super) fn is_socket(&self, file: FileId) -> bool {
        self.socket == Some(file)
    }

    /// Somebody listens at this socket of the VMM. Returns the states that the VM has had since, in order:
    /// another socket is one of another VMM, which has none of the connections.
    pub(super) fn listens(&mut self, socket: FileId) -> Vec<PartitionState> {
        let mut states = Vec::new();
        if self.socket.is_some_and(|known| known != socket) {
            states.extend(self.ended());
        }
        self.socket = Some(socket);
        if self.state.is_down() {
            states.extend(self.set(PartitionState::Unknown));
        }
        states
    }

    /// Something came from the guest.
    pub(super) fn guest_spoke(&mut self) -> Vec<PartitionState> {
        self.set(PartitionState::Running).into_iter().collect()
    }

    /// The VMM has ended, or nobody listens at its socket. Of a VMM without a socket, it is a process that
    /// ended of which nobody knows whether it was the VMM.
    pub(super) fn ended(&mut self) -> Vec<PartitionState> {
        self.socket = None;
        match (self.connects, self.state) {
            (_, PartitionState::Defined | PartitionState::Off) => Vec::new(),
            (Connects::ByLine, _) => self.set(PartitionState::Off).into_iter().collect(),
            (Connects::ByPath, _) => self.set(PartitionState::Unknown).into_iter().collect(),
        }
    }

    fn set(&mut self, state: PartitionState) -> Option<PartitionState> {
        (self.state != state).then(|| {
            self.state = state;
            state
        })
    }
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;

    use PartitionState::{Defined, Off, Running, Unknown};
    use hvsock_sys::socket_folder::SocketFolder;

    use super::*;

    /// Two files.
    fn files() -> [FileId; 2] {
        let dir = tempfile::tempdir().unwrap();
        let folder = SocketFolder::open(&dir.path().canonicalize().unwrap()).unwrap();
        ["a", "b"].map(|name| {
            std::fs::write(dir.path().join(name), "").unwrap();
            folder.find(OsStr::new(name)).unwrap()
        })
    }

    #[test]
    fn a_vm_is_unknown_while_only_its_vmm_is_there_and_runs_once_its_guest_spoke() {
        let [a, _] = files();
        let mut vm = Presence::new(Connects::ByLine);
        assert_eq!(vm.state(), Defined);
        assert_eq!(vm.ended(), []);
        assert_eq!(vm.listens(a), [Unknown]);
        assert_eq!(vm.listens(a), []);
        assert!(!vm.has_guest());
        assert_eq!(vm.guest_spoke(), [Running]);
        assert_eq!(vm.guest_spoke(), []);
        assert_eq!(vm.listens(a), []);
        assert_eq!(vm.ended(), [Off]);
        assert_eq!(vm.ended(), []);
        assert_eq!(vm.listens(a), [Unknown]);
    }

    #[test]
    fn a_new_socket_of_the_vmm_is_a_new_vm_without_connections() {
        let [a, b] = files();
        let mut vm = Presence::new(Connects::ByLine);
        vm.listens(a);
        vm.guest_spoke();
        assert_eq!(vm.listens(b), [Off, Unknown]);
    }

    #[test]
    fn a_vm_without_a_socket_of_its_own_is_unknown_until_its_guest_spoke() {
        let mut vm = Presence::new(Connects::ByPath);
        assert_eq!(vm.state(), Unknown);
        assert_eq!(vm.ended(), []);
        assert_eq!(vm.guest_spoke(), [Running]);
        assert_eq!(vm.ended(), [Unknown]);
        assert_eq!(vm.state(), Unknown);
    }
}
