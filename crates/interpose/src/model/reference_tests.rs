//! Random sequences of calls, on the model and on a plain reading of the kernel's rules.

use hvsock_address::SockAddrVm;
use proptest::prelude::*;

use super::*;

/// A call of a program, or what came of one.
#[derive(Clone, Copy, Debug)]
enum Operation {
    Bind { cid: u32, port: u32 },
    Listen,
    Connect { nonblocking: bool },
    Established,
    Failed { is_awaited: bool },
    Interrupted,
    Accept,
    TakeError,
}

/// The rules as a flat set of facts about the socket.
#[derive(Default)]
struct Reference {
    bound: bool,
    listens: bool,
    connecting: bool,
    connected: bool,
    error: bool,
}

impl Reference {
    /// The number that the call fails with; 0 is success.
    fn apply(&mut self, operation: Operation) -> i32 {
        match operation {
            Operation::Bind { .. } if self.bound => libc::EINVAL,
            Operation::Bind { cid, .. } if ![1, 2, u32::MAX].contains(&cid) => libc::EADDRNOTAVAIL,
            Operation::Bind { port, .. } if port < 1024 => libc::EACCES,
            Operation::Bind { .. } => {
                self.bound = true;
                0
            }
            Operation::Listen if self.connected || self.connecting || !self.bound => libc::EINVAL,
            Operation::Listen => {
                self.listens = true;
                0
            }
            Operation::Connect { nonblocking } => {
                if self.connected {
                    return libc::EISCONN;
                }
                if self.connecting {
                    return if nonblocking { libc::EALREADY } else { 0 };
                }
                if self.listens {
                    return libc::EINVAL;
                }
                self.connecting = true;
                self.error = false;
                0
            }
            Operation::Established => {
                if self.connecting {
                    (self.connecting, self.connected, self.bound) = (false, true, true);
                }
                0
            }
            Operation::Failed { is_awaited } => {
                if self.connecting {
                    (self.connecting, self.error) = (false, !is_awaited);
                }
                0
            }
            Operation::Interrupted => {
                self.connecting = false;
                0
            }
            Operation::Accept => match self.listens {
                true => 0,
                false => libc::EINVAL,
            },
            Operation::TakeError => {
                let error = std::mem::take(&mut self.error);
                if error { libc::ECONNRESET } else { 0 }
            }
        }
    }
}

fn address(cid: u32, port: u32) -> Address {
    Address::Vsock(SockAddrVm::new(cid, port))
}

fn apply(socket: &mut Socket, operation: Operation) -> i32 {
    let number = |result: Result<(), Errno>| result.err().map_or(0, Errno::number);
    match operation {
        Operation::Bind { cid, port } => {
            let bytes = address(cid, port).to_bytes();
            let bound = socket.bind(&bytes, OwnCid(2), || false);
            number(bound.map(|address| socket.bound(address)))
        }
        Operation::Listen => number(socket.listen().map(|step| {
            if matches!(step, ListenStep::Start(_)) {
                socket.listening();
            }
        })),
        Operation::Connect { nonblocking } => {
            let step = socket.connect(&address(2, 99).to_bytes(), nonblocking);
            number(step.map(drop))
        }
        Operation::Established => {
            if socket.is_connecting() {
                socket.connected(address(2, 2000), address(2, 99));
            }
            0
        }
        Operation::Failed { is_awaited } => {
            if socket.is_connecting() {
                socket.connect_failed(Errno::ECONNRESET, is_awaited);
            }
            0
        }
        Operation::Interrupted => {
            if socket.is_connecting() {
                socket.connect_cancelled();
            }
            0
        }
        Operation::Accept => number(socket.accept()),
        Operation::TakeError => match socket.option(libc::SOL_SOCKET, libc::SO_ERROR, 4) {
            OptionAnswer::Value(bytes) => bytes.try_into().map_or(-1, i32::from_ne_bytes),
            _ => 0,
        },
    }
}

fn any_operation() -> impl Strategy<Value = Operation> {
    let cid = prop_oneof![Just(u32::MAX), Just(2), Just(1), Just(0), any::<u32>()];
    let port = prop_oneof![Just(80), Just(1023), Just(1024), any::<u32>()];
    prop_oneof![
        3 => (cid, port).prop_map(|(cid, port)| Operation::Bind { cid, port }),
        2 => Just(Operation::Listen),
        4 => any::<bool>().prop_map(|nonblocking| Operation::Connect { nonblocking }),
        1 => Just(Operation::Established),
        2 => any::<bool>().prop_map(|is_awaited| Operation::Failed { is_awaited }),
        1 => Just(Operation::Interrupted),
        1 => Just(Operation::Accept),
        1 => Just(Operation::TakeError),
    ]
}

proptest! {
    #[test]
    fn any_sequence_of_calls_answers_as_the_rules_of_the_kernel(
        operations in prop::collection::vec(any_operation(), 0..40),
    ) {
        let (mut socket, mut reference) = (Socket::new(Family::Vsock), Reference::default());
        for operation in operations {
            let want = reference.apply(operation);
            prop_assert_eq!(apply(&mut socket, operation), want, "{:?}", operation);
            prop_assert_eq!(socket.is_listening(), reference.listens);
            prop_assert_eq!(socket.peer().is_ok(), reference.connected);
            let any = address(u32::MAX, u32::MAX);
            prop_assert_eq!(socket.name() != Ok(any), reference.bound);
        }
    }
}
