//! A connection through a broker: what all transports have in common, and the choice between
//! them.

mod descriptor;
mod link;
mod ring;

use std::io;
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use hvsock_endpoint::{ClientMessage, Connected, Incoming, SocketOption, Transport};
use hvsock_ring::{Filled, Reserved, Side};

use super::control::Cut;
use crate::backend::ending::{no_ring, not_zero};
use crate::backend::{Ends, ReadInto, WriteFrom};
#[cfg(feature = "tokio")]
use crate::os::backend::Received;
use crate::{Interest, Peer, Readiness};

use descriptor::Descriptor;
use link::Link;
pub(crate) use ring::Ring;

/// One end of a connection.
#[derive(Debug)]
pub(crate) struct Stream {
    link: Link,
    ends: Ends,
    carrier: Carrier,
}

/// How the bytes move.
#[derive(Debug)]
enum Carrier {
    Descriptor(Descriptor),
    Ring(Box<Ring>),
}

impl Stream {
    /// The connecting end, with the descriptors that came with the message.
    pub(super) fn connected(
        connected: &Connected,
        descriptors: Vec<OwnedFd>,
        socket: Arc<OwnedFd>,
        plain: bool,
    ) -> io::Result<Self> {
        let Connected {
            transport,
            connection,
            local,
            peer,
        } = *connected;
        Ok(Self {
            link: Link::new(socket),
            ends: Ends {
                local,
                peer,
                caller: None,
                number: connection,
            },
            carrier: Carrier::new(transport, Side::First, descriptors, plain)?,
        })
    }

    /// The accepting end, likewise; the last descriptor is its control.
    pub(super) fn accepted(
        incoming: Incoming,
        mut descriptors: Vec<OwnedFd>,
        plain: bool,
    ) -> io::Result<Self> {
        let socket = descriptors.pop().ok_or_else(odd_descriptors)?;
        let carrier = Carrier::new(incoming.transport, Side::Second, descriptors, plain)?;
        Ok(Self {
            link: Link::new(Arc::new(socket)),
            ends: Ends {
                local: incoming.local,
                peer: incoming.peer,
                number: incoming.connection,
                caller: Some(Peer::of_wire(incoming)),
            },
            carrier,
        })
    }

    pub(crate) fn ends(&self) -> &Ends {
        &self.ends
    }

    pub(crate) fn transport(&self) -> crate::Transport {
        match self.carrier {
            Carrier::Descriptor(_) => crate::Transport::Descriptor,
            Carrier::Ring(_) => crate::Transport::Ring,
        }
    }

    /// The ring, if that is the transport.
    pub(crate) fn ring(&self) -> Option<&Ring> {
        match &self.carrier {
            Carrier::Descriptor(_) => None,
            Carrier::Ring(ring) => Some(ring),
        }
    }

    pub(crate) fn data(&self) -> BorrowedFd<'_> {
        match &self.carrier {
            Carrier::Descriptor(data) => data.as_fd(),
            Carrier::Ring(ring) => ring.news_fd(&self.link),
        }
    }

    #[cfg(feature = "tokio")]
    pub(crate) fn control(&self) -> BorrowedFd<'_> {
        self.link.control.as_fd()
    }

    /// Receives, waiting as long as the socket's mode and time limit allow.
    pub(crate) fn recv(&self, into: ReadInto<'_, '_>) -> io::Result<usize> {
        if into.is_empty() {
            return Ok(0);
        }
        match &self.carrier {
            Carrier::Descriptor(data) => data.recv(&self.link, into),
            Carrier::Ring(ring) => ring.recv(&self.link, into),
        }
    }

    /// Receives without waiting for the explanation of an end; for sockets in non-blocking mode.
    #[cfg(feature = "tokio")]
    pub(crate) fn recv_once(&self, into: ReadInto<'_, '_>) -> io::Result<Received> {
        if into.is_empty() {
            return Ok(Received::Bytes(0));
        }
        match &self.carrier {
            Carrier::Descriptor(data) => data.recv_once(&self.link, into),
            Carrier::Ring(ring) => ring.recv_once(&self.link, into),
        }
    }

    /// What is known of an end that is not explained; `waker` is woken when more is.
    #[cfg(feature = "tokio")]
    pub(crate) fn end_or_wake(&self, waker: &std::task::Waker) -> io::Result<Received> {
        self.link.end(&self.link.control.look_or_wake(waker))
    }

    pub(crate) fn send(&self, from: WriteFrom<'_, '_>) -> io::Result<usize> {
        if from.is_empty() {
            return Ok(0);
        }
        match &self.carrier {
            Carrier::Descriptor(data) => data.send(&self.link, from),
            Carrier::Ring(ring) => ring.send(&self.link, from),
        }
    }

    /// Sends what there is room for; `WouldBlock` if there is none, whatever the mode.
    #[cfg(feature = "tokio")]
    pub(crate) fn send_once(&self, from: WriteFrom<'_, '_>) -> io::Result<usize> {
        match &self.carrier {
            Carrier::Ring(ring) if !from.is_empty() => ring.send_once(&self.link, from),
            _ => self.send(from),
        }
    }

    /// Reserves room, waiting as sending does; `Unsupported` without a ring.
    pub(crate) fn reserve(&self, wanted: usize) -> io::Result<Reserved<'_>> {
        match &self.carrier {
            Carrier::Descriptor(_) => Err(no_ring()),
            Carrier::Ring(ring) => ring.reserve(&self.link, wanted),
        }
    }

    /// Lends what has come, waiting as receiving does; `Unsupported` without a ring.
    pub(crate) fn fill(&self) -> io::Result<Option<Filled<'_>>> {
        match &self.carrier {
            Carrier::Descriptor(_) => Err(no_ring()),
            Carrier::Ring(ring) => ring.fill(&self.link),
        }
    }

    /// Takes in what the broker says, where it is not read with the data's end.
    #[cfg(feature = "tokio")]
    pub(crate) fn hear(&self) {
        if let Carrier::Ring(ring) = &self.carrier {
            ring.hear(&self.link);
        }
    }

    /// Ends one or both directions; `patient` if the caller can be made to wait for the broker.
    pub(crate) fn shutdown(&self, how: Shutdown, patient: bool) -> io::Result<()> {
        let mut own = self.link.own();
        if how != Shutdown::Read && !own.write_ended {
            match &self.carrier {
                Carrier::Descriptor(data) => data.end_writing(&self.link, patient)?,
                Carrier::Ring(ring) => ring.end().shutdown_write(),
            }
            own.write_ended = true;
        }
        if how != Shutdown::Write && !own.read_ended {
            own.read_ended = true;
            match &self.carrier {
                Carrier::Descriptor(data) => data.end_reading()?,
                Carrier::Ring(ring) => ring.end().shutdown_read(),
            }
        }
        Ok(())
    }

    pub(crate) fn set_nonblocking(&self, nonblocking: bool) -> io::Result<()> {
        if let Carrier::Descriptor(data) = &self.carrier {
            hvsock_sys::set_nonblocking(data, nonblocking)?;
        }
        self.link.set_nonblocking(nonblocking);
        Ok(())
    }

    pub(crate) fn set_read_timeout(&self, timeout: Option<Duration>) -> io::Result<()> {
        let timeout = not_zero(timeout)?;
        if let Carrier::Descriptor(data) = &self.carrier {
            data.set_recv_timeout(timeout)?;
        }
        self.link.own().read_timeout = timeout;
        Ok(())
    }

    pub(crate) fn set_write_timeout(&self, timeout: Option<Duration>) -> io::Result<()> {
        let timeout = not_zero(timeout)?;
        if let Carrier::Descriptor(data) = &self.carrier {
            data.set_send_timeout(timeout)?;
        }
        self.link.own().write_timeout = timeout;
        Ok(())
    }

    pub(crate) fn read_timeout(&self) -> Option<Duration> {
        self.link.own().read_timeout
    }

    pub(crate) fn write_timeout(&self) -> Option<Duration> {
        self.link.own().write_timeout
    }

    pub(crate) fn set_connected_suspend(&self, on: bool) -> io::Result<()> {
        let message = ClientMessage::SetOption {
            option: SocketOption::ConnectedSuspend,
            value: on.into(),
        };
        self.link.control.tell(&message, true)
    }

    /// Why the connection was cut, if it was.
    pub(crate) fn cut(&self) -> Option<io::Error> {
        self.link.control.look().cut.map(Cut::into_error)
    }

    /// Waits until reading or writing would not, or until `deadline`.
    pub(crate) fn poll(
        &self,
        interest: Interest,
        deadline: Option<Instant>,
    ) -> io::Result<Readiness> {
        match &self.carrier {
            Carrier::Descriptor(data) => data.poll(&self.link, interest, deadline),
            Carrier::Ring(ring) => ring.poll(&self.link, interest, deadline),
        }
    }

    /// The descriptors for a program that knows nothing of hvsock, if they are such; whoever has
    /// them then ends the connection.
    pub(crate) fn hand_out(&self) -> io::Result<Option<(OwnedFd, OwnedFd)>> {
        match &self.carrier {
            Carrier::Descriptor(data) if data.is_plain() => {
                let handed = (data.try_clone()?, self.link.control.try_clone()?);
                self.set_nonblocking(false)?;
                self.link.own().silent = true;
                Ok(Some(handed))
            }
            _ => Ok(None),
        }
    }

    /// Ends the connection without a clean end: the other end sees a reset.
    pub(crate) fn abandon(&self) {
        self.link.own().silent = true;
        match &self.carrier {
            // The end of the data without the word is a crash.
            Carrier::Descriptor(data) => data.close(),
            Carrier::Ring(ring) => ring.end().cut(),
        }
    }

    /// A duplicate of the broker's word on the connection.
    pub(crate) fn clone_control(&self) -> io::Result<OwnedFd> {
        self.link.control.try_clone()
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        if self.link.own().silent {
            return;
        }
        match &self.carrier {
            // First the word, then the end, which is the closing of the data descriptor. A broker
            // that cannot take the word now is one that must not take this for a clean end.
            Carrier::Descriptor(_) if self.link.own().write_ended => {}
            Carrier::Descriptor(_) => {
                let _ = self.link.control.tell(&ClientMessage::Shutdown, false);
            }
            Carrier::Ring(ring) => ring.end().shutdown_write(),
        }
    }
}

impl Carrier {
    fn new(
        transport: Transport,
        side: Side,
        descriptors: Vec<OwnedFd>,
        plain: bool,
    ) -> io::Result<Self> {
        match transport {
            Transport::Descriptor => {
                let [data] =
                    <[OwnedFd; 1]>::try_from(descriptors).map_err(|_| odd_descriptors())?;
                Ok(Self::Descriptor(Descriptor::new(data, plain)))
            }
            Transport::Ring => {
                let [memory, own, peer] =
                    <[OwnedFd; 3]>::try_from(descriptors).map_err(|_| odd_descriptors())?;
                match Ring::new(side, &memory, hvsock_ring::Bells { own, peer }) {
                    Ok(ring) => Ok(Self::Ring(Box::new(ring))),
                    Err(error) if error.kind() == io::ErrorKind::InvalidData => Err(error),
                    Err(error) => Err(unmapped(&error)),
                }
            }
            _ => Err(crate::error::plain(
                io::ErrorKind::InvalidData,
                "the broker chose a transport that was not offered",
            )),
        }
    }
}

/// The memory is as it should be, and the system does not let this process have it.
fn unmapped(error: &io::Error) -> io::Error {
    let text = format!(
        "the memory of the connection cannot be mapped ({error}); connect and listen with \
         `shared_memory(false)`, or run the broker with `--no-shared-memory`"
    );
    io::Error::new(error.kind(), text)
}

fn odd_descriptors() -> io::Error {
    let text = "the broker sent other descriptors than the transport has";
    crate::error::plain(io::ErrorKind::InvalidData, text)
}
