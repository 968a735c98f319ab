//! A peer or a broker that is killed: everyone else sees it, soon, and takes it for no clean end.

use std::io;
use std::process::{Command, ExitCode};
use std::thread;
use std::time::Duration;

use super::util::{
    Ending, is_gone, limited, read_to_ending, receive, receive_pattern, send, write_until_refused,
};
use super::{Case, LONGEST_CASE, LONGEST_WAIT, Ready, Stream, ThroughBroker, Transport, pattern};
use crate::process::Running;

const ROLE: &str = "HVSOCK_TESTKIT_ROLE";
/// The seed of what a flooding peer writes.
const FLOOD: u64 = 11;
/// What a writer may send before the kernel tells of the kill; in effect no bound.
const UNBOUNDED: usize = usize::MAX;

/// What the process at the other end of a connection does until it is killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Neither reads nor writes.
    Hold,
    /// Writes without end.
    Flood,
    /// Reads without end.
    Drain,
}

impl Role {
    const ALL: [(Role, &str); 3] = [
        (Role::Hold, "hold"),
        (Role::Flood, "flood"),
        (Role::Drain, "drain"),
    ];

    /// The role for which this process was started by [`Role::command`].
    pub fn of_this_process() -> Option<Role> {
        let name = std::env::var(ROLE).ok()?;
        let role = Self::ALL.iter().find(|(_, known)| *known == name);
        role.map(|(role, _)| *role)
    }

    /// This program once more, to play the role. How it gets its stream is between the caller
    /// and its `main`.
    pub fn command(self) -> io::Result<Command> {
        let name = Self::ALL
            .iter()
            .find(|(role, _)| *role == self)
            .map(|(_, name)| *name);
        let mut command = Command::new(std::env::current_exe()?);
        command.env(ROLE, name.unwrap_or_default());
        Ok(command)
    }

    /// Plays the role on a stream; ends by itself if nobody kills it.
    pub fn play<S: Stream>(self, stream: &S) -> ExitCode {
        let mut buffer = vec![0; 65_536];
        match self {
            Role::Hold => thread::sleep(LONGEST_CASE),
            Role::Flood => {
                let mut sent = 0;
                while let Ok(count) = stream.write(&pattern::bytes(FLOOD, sent, 65_536)) {
                    sent += count as u64;
                }
            }
            Role::Drain => while let Ok(1..) = stream.read(&mut buffer) {},
        }
        ExitCode::SUCCESS
    }
}

pub(super) fn cases<T: Transport>() -> Vec<Case<T>> {
    vec![
        Case::needs(
            "a_killed_peer_ends_a_reader",
            kills,
            killed_peer_ends_reader,
        ),
        Case::needs(
            "a_killed_peer_ends_a_blocked_writer",
            kills,
            killed_peer_ends_blocked_writer,
        ),
        Case::needs(
            "a_killed_peer_ends_a_busy_writer",
            kills,
            killed_peer_ends_busy_writer,
        ),
        Case::needs(
            "a_killed_peer_is_seen_by_readiness",
            kills,
            killed_peer_is_ready,
        ),
        Case::needs(
            "a_killed_peer_is_a_reset_and_no_end",
            |transport: &T| kills(transport) && transport.tells_death_from_end(),
            killed_peer_is_reset,
        ),
        Case::needs(
            "a_killed_broker_resets_who_is_idle",
            brokered,
            killed_broker_idle,
        ),
        Case::needs(
            "a_killed_broker_resets_who_is_busy",
            brokered,
            killed_broker_busy,
        ),
    ]
}

fn kills<T: Transport>(transport: &T) -> bool {
    transport.pair_with_process().is_some()
}

fn brokered<T: Transport>(transport: &T) -> bool {
    transport.pair_through_broker().is_some()
}

fn with_process<T: Transport>(transport: &T, role: Role) -> (T::Stream, Running) {
    let make = transport.pair_with_process().expect("checked before");
    let (stream, peer) = make(transport, role).expect("a connection to a new process");
    (limited(stream), peer)
}

fn through_broker<T: Transport>(transport: &T) -> ThroughBroker<T::Stream> {
    let make = transport.pair_through_broker().expect("checked before");
    let through = make(transport).expect("a connection through a new broker");
    ThroughBroker {
        connector: limited(through.connector),
        acceptor: limited(through.acceptor),
        broker: through.broker,
    }
}

/// Kills a process in a moment, while `blocked` goes on.
fn kill_while<R>(victim: &mut Running, blocked: impl FnOnce() -> R) -> R {
    thread::scope(|scope| {
        scope.spawn(|| {
            thread::sleep(Duration::from_millis(200));
            victim.kill().expect("killed");
        });
        blocked()
    })
}

fn killed_peer_ends_reader<T: Transport>(transport: &T) {
    let (stream, mut peer) = with_process(transport, Role::Hold);
    let (received, ending) = kill_while(&mut peer, || read_to_ending(&stream, FLOOD, 0));
    assert_eq!(received, 0);
    check_death(transport, ending);
}

fn killed_peer_ends_blocked_writer<T: Transport>(transport: &T) {
    let (stream, mut peer) = with_process(transport, Role::Hold);
    kill_while(&mut peer, || write_until_refused(&stream, 1, UNBOUNDED));
}

fn killed_peer_ends_busy_writer<T: Transport>(transport: &T) {
    let (stream, mut peer) = with_process(transport, Role::Drain);
    kill_while(&mut peer, || write_until_refused(&stream, 2, UNBOUNDED));
}

fn killed_peer_is_ready<T: Transport>(transport: &T) {
    let (stream, mut peer) = with_process(transport, Role::Hold);
    let ready = kill_while(&mut peer, || stream.wait(Ready::READ, LONGEST_WAIT));
    assert!(
        ready.expect("a wait").read,
        "the death of the peer counts as readable"
    );
}

fn killed_peer_is_reset<T: Transport>(transport: &T) {
    let (stream, mut peer) = with_process(transport, Role::Flood);
    receive_pattern(&stream, FLOOD, 1 << 20, 8192);
    let (received, ending) = kill_while(&mut peer, || {
        // Not read on until the peer is dead, so that its buffers are full then.
        thread::sleep(Duration::from_millis(400));
        read_to_ending(&stream, FLOOD, 1 << 20)
    });
    assert!(received >= 1 << 20);
    assert_eq!(ending, Ending::Error(io::ErrorKind::ConnectionReset));
}

fn check_death<T: Transport>(transport: &T, ending: Ending) {
    match ending {
        Ending::Clean => {
            assert!(
                !transport.tells_death_from_end(),
                "a death looked like a clean end"
            );
        }
        Ending::Error(kind) => assert!(is_gone(kind), "{kind}"),
    }
}

fn killed_broker_idle<T: Transport>(transport: &T) {
    let ThroughBroker {
        connector,
        acceptor,
        mut broker,
    } = through_broker(transport);
    send(&connector, b"x");
    assert_eq!(receive(&acceptor, 1), b"x");
    let endings = kill_while(&mut broker, || {
        thread::scope(|scope| {
            let other = scope.spawn(|| read_to_ending(&acceptor, 0, 0));
            [
                read_to_ending(&connector, 0, 0),
                other.join().expect("the other reader"),
            ]
        })
    });
    assert_eq!(
        endings,
        [(0, Ending::Error(io::ErrorKind::ConnectionReset)); 2]
    );
}

fn killed_broker_busy<T: Transport>(transport: &T) {
    let ThroughBroker {
        connector,
        acceptor,
        mut broker,
    } = through_broker(transport);
    let (received, ending) = kill_while(&mut broker, || {
        thread::scope(|scope| {
            scope.spawn(|| write_until_refused(&connector, 3, UNBOUNDED));
            read_to_ending(&acceptor, 3, 0)
        })
    });
    assert!(received > 0, "nothing came before the kill");
    assert_eq!(ending, Ending::Error(io::ErrorKind::ConnectionReset));
}
