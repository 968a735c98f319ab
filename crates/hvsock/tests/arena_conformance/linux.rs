//! The transport under test.

use std::io;
use std::process::ExitCode;
use std::sync::{LazyLock, Mutex};
use std::time::Duration;

use hvsock::Refusal;
use hvsock_endpoint::Refused;
use hvsock_ring::RingSize;
use hvsock_testkit::conformance::{self, Listen, Listener, MakePair, Reset, Transport};

use crate::arena_broker::Pair;
use crate::blocking::Blocking;

pub fn main() -> ExitCode {
    conformance::main(conformance::trials(InArena::default()))
}

/// Connections of this process with itself, in one arena.
struct InArena {
    /// Granted by the first case. The lock serializes pairs, so that each accept returns its own
    /// connect's peer.
    pair: LazyLock<Mutex<Pair>>,
}

impl Default for InArena {
    fn default() -> Self {
        Self {
            pair: LazyLock::new(|| Mutex::new(Pair::new(1024, 128))),
        }
    }
}

impl Transport for InArena {
    type Stream = Blocking;

    fn name(&self) -> &'static str {
        "arena_of_a_fake_broker"
    }

    fn pair(&self) -> io::Result<(Blocking, Blocking)> {
        let pair = self.pair.lock().expect("no pair failed");
        let (connector, acceptor) = pair.pair();
        Ok((Blocking(connector), Blocking(acceptor)))
    }

    fn small_pair(&self) -> Option<MakePair<Self>> {
        Some(|_| {
            let pair = Pair::with_ring(2, 1, RingSize::MIN);
            let (connector, acceptor) = pair.pair();
            // The arena needs no broker. Its control connections must stay open.
            std::mem::forget(pair);
            Ok((Blocking(connector), Blocking(acceptor)))
        })
    }

    fn reset(&self) -> Option<Reset<Self>> {
        Some(|transport, stream| {
            let pair = transport.pair.lock().expect("no pair failed");
            let cause = String::from("the operator closed it");
            let reason = Refused {
                code: Refusal::Reset {
                    cause: cause.clone(),
                }
                .code(),
                errno: 104,
                detail: cause,
            };
            pair.arena.close(stream.0.connection_id(), reason);
            Ok(())
        })
    }

    fn listen(&self) -> Option<Listen<Self>> {
        Some(|_, backlog| Ok(Box::new(Listening(Some(Pair::new(64, backlog))))))
    }
}

struct Listening(Option<Pair>);

impl Listening {
    fn pair(&self) -> &Pair {
        self.0.as_ref().expect("it lives until it is dropped")
    }
}

impl Listener<Blocking> for Listening {
    fn connect(&self) -> io::Result<Blocking> {
        self.pair().connect().map(Blocking)
    }

    fn accept(&self, timeout: Duration) -> io::Result<Blocking> {
        let (stream, _) = self.pair().listener.accept_timeout(timeout)?;
        Ok(Blocking(stream))
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        if let Some(Pair {
            listener, arena, ..
        }) = self.0.take()
        {
            drop(listener);
            arena.listener_is_gone();
        }
    }
}
