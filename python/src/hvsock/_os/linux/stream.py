"""Connections and listeners of a broker, with the descriptor transport."""

import array
import errno
import fcntl
import select
import socket
import sys
import termios
import time
from typing import Any, Callable, Iterable, Optional, Tuple, TypeVar

from ... import constants
from ...addresses import Address
from ...messages import DESCRIPTOR, Fields
from ...refusals import Refused, protocol_error
from ..._peer import Peer
from ..._socket_base import SocketBase
from .control import Control
from .exchange import Message, receive, reset_by, send, wait

T = TypeVar("T")

#: How often a waiting writer checks whether the peer still reads, in seconds.
_RECHECK_INTERVAL = 0.1


def _address(fields: Fields, vm: str, service: str) -> Address:
    return Address(str(fields[vm]), str(fields[service]))


def _peer(fields: Fields) -> Peer:
    unknown = 0xFFFFFFFF
    uid, gid = fields["uid"], fields["gid"]
    return Peer(
        fields["partition"],
        fields["pid"] or None,
        None if uid == unknown else uid,
        None if gid == unknown else gid,
    )


class Socket(SocketBase):
    """A connection. It has the methods of :class:`socket.socket`.

    Data that ends without the peer's word for it is no end: :meth:`recv` then raises
    :class:`ConnectionResetError`, of the class :class:`hvsock.Reset`, with the reason.
    """

    #: How the bytes travel.
    transport = "descriptor"

    def __init__(
        self, data: socket.socket, control: Control, fields: Fields, raw_fd: bool, timeout: Optional[float]
    ) -> None:
        self._data = data
        self.settimeout(timeout)
        self._control = control
        self._raw_fd = raw_fd
        self._local = _address(fields, "local_vm", "local_service")
        self._remote = _address(fields, "peer_vm", "peer_service")
        self._read_closed = False
        self._closed = False
        self.connection_id = fields["connection"]
        self.peer = _peer(fields) if "pid" in fields else None

    def _real_close(self) -> None:
        if self._data.fileno() < 0:
            return
        try:
            self._control.announce_end()
        except OSError:
            pass  # It was reset: there is nothing left to end.
        self._data.close()
        self._control.close()

    def detach(self) -> int:
        """Gives away the data descriptor, whose end of file is a clean end, and returns it. The connection must
        be one with ``raw_fd=True``: the broker takes the end of any other descriptor for a crash."""
        if not self._raw_fd:
            raise OSError(errno.EOPNOTSUPP, "only a connection that was made with raw_fd=True can be detached")
        self._closed = True
        self._control.close()
        return self._data.detach()

    def fileno(self) -> int:
        """The data descriptor, for :mod:`select` and :mod:`selectors`; -1 after :meth:`close`."""
        return self._data.fileno()

    # Receiving

    def _receive_error(self, error: OSError) -> OSError:
        """The reason for an error of the data descriptor."""
        self._control.drain()
        if self._control.error is not None:
            return self._control.fresh_error()
        return error

    def _at_end(self) -> None:
        """Returns if the data has ended cleanly."""
        if not self._read_closed:
            self._control.wait_for_end(self._timeout)

    def _run(self, call: Callable[[], T], events: int, deadline: Optional[float]) -> T:
        """Repeats a call of the data descriptor until it need not wait, or until the deadline."""
        while True:
            try:
                return call()
            except BlockingIOError:
                if deadline is None:
                    raise
                if time.monotonic() >= deadline:
                    raise socket.timeout("timed out") from None
                until = deadline
                if events == select.POLLOUT:
                    # The kernel does not report that the peer reads no more while the buffer is full.
                    until = min(deadline, time.monotonic() + _RECHECK_INTERVAL)
                wait(self._data, events, until)

    def _deadline(self) -> Optional[float]:
        """When the present call times out; ``None`` if the descriptor is in blocking or non-blocking mode."""
        return time.monotonic() + self._timeout if self._timeout else None

    def recv(self, bufsize: int, flags: int = 0) -> bytes:
        """Receives up to ``bufsize`` bytes. ``b""`` is a clean end."""
        if self._read_closed:
            return b""
        try:
            data = self._run(lambda: self._data.recv(bufsize, flags), select.POLLIN, self._deadline())
        except (ConnectionResetError, BrokenPipeError) as error:
            raise self._receive_error(error) from None
        if not data and bufsize:
            self._at_end()
        return data

    def recv_into(self, buffer: Any, nbytes: int = 0, flags: int = 0) -> int:
        """Receives into a buffer. Returns the number of bytes; 0 is a clean end."""
        if self._read_closed:
            return 0
        try:
            count = self._run(lambda: self._data.recv_into(buffer, nbytes, flags), select.POLLIN, self._deadline())
        except (ConnectionResetError, BrokenPipeError) as error:
            raise self._receive_error(error) from None
        if not count and (nbytes or memoryview(buffer).nbytes):
            self._at_end()
        return count

    # Sending

    def _send_error(self, error: OSError) -> OSError:
        # The reason comes before the close.
        self._control.drain()
        if self._control.error is not None:
            return self._control.fresh_error()
        return BrokenPipeError(errno.EPIPE, "the peer has stopped reading")

    def send(self, data: Any, flags: int = 0) -> int:
        """Sends what fits, and returns the number of bytes."""
        try:
            flags |= socket.MSG_NOSIGNAL
            return self._run(lambda: self._data.send(data, flags), select.POLLOUT, self._deadline())
        except (BrokenPipeError, ConnectionResetError) as error:
            raise self._send_error(error) from None

    def sendall(self, data: Any, flags: int = 0) -> None:
        """Sends all of ``data``. With a timeout, it bounds the whole call."""
        try:
            flags |= socket.MSG_NOSIGNAL
            deadline = self._deadline()
            if deadline is None:
                self._data.sendall(data, flags)
                return
            with memoryview(data) as view, view.cast("B") as rest:
                sent = 0
                while sent < len(rest):
                    sent += self._run(lambda: self._data.send(rest[sent:], flags), select.POLLOUT, deadline)
        except (BrokenPipeError, ConnectionResetError) as error:
            raise self._send_error(error) from None

    def sendmsg(self, buffers: Iterable[Any], ancdata: Any = (), flags: int = 0) -> int:
        """Sends what fits of several buffers. There is no ancillary data."""
        if tuple(ancdata):
            raise OSError(errno.EOPNOTSUPP, "a connection carries no ancillary data")
        try:
            flags |= socket.MSG_NOSIGNAL
            parts = list(buffers)
            return self._run(lambda: self._data.sendmsg(parts, (), flags), select.POLLOUT, self._deadline())
        except (BrokenPipeError, ConnectionResetError) as error:
            raise self._send_error(error) from None

    def shutdown(self, how: int) -> None:
        """Half-closes: after ``SHUT_WR`` no data follows what was sent, and receiving goes on."""
        if how not in (socket.SHUT_RD, socket.SHUT_WR, socket.SHUT_RDWR):
            raise OSError(errno.EINVAL, "shut down SHUT_RD, SHUT_WR or SHUT_RDWR")
        if how != socket.SHUT_RD:
            self._control.announce_end()
        if how != socket.SHUT_WR:
            self._read_closed = True
        try:
            self._data.shutdown(how)
        except OSError as error:
            if error.errno != errno.ENOTCONN:
                raise
        if how != socket.SHUT_WR:
            self._discard_all_but_one()

    def _discard_all_but_one(self) -> None:
        """A writer that waits for free space is woken by free space only. The byte that stays makes a later close a
        reset for it."""
        unread = array.array("i", [0])
        while True:
            try:
                fcntl.ioctl(self._data, termios.FIONREAD, unread)
                if unread[0] < 2 or not self._data.recv(min(unread[0] - 1, 65536), socket.MSG_DONTWAIT):
                    return
            except OSError:
                return

    # State and options

    def settimeout(self, value: Optional[float]) -> None:
        """Bounds each call in seconds. ``None`` is blocking mode, 0 non-blocking mode."""
        if value is not None and not value >= 0:
            raise ValueError("Timeout value out of range")
        self._timeout = value
        self._data.setblocking(value is None)

    def get_inheritable(self) -> bool:
        return self._data.get_inheritable()

    def set_inheritable(self, inheritable: bool) -> None:
        self._data.set_inheritable(inheritable)

    def setsockopt(self, level: int, optname: int, value: Any, *optlen: int) -> None:
        """Sets an option. ``HV_PROTOCOL_RAW`` has the number of ``SOL_SOCKET``: 4 is
        ``HVSOCKET_CONNECTED_SUSPEND``, the other Hyper-V options have no effect after the connect."""
        if level == constants.HV_PROTOCOL_RAW and optname == constants.HVSOCKET_CONNECTED_SUSPEND:
            number = value if isinstance(value, int) else int.from_bytes(bytes(value), sys.byteorder)
            self._control.set_connected_suspend(bool(number))
        elif level == constants.HV_PROTOCOL_RAW and optname in (1, 2, 8):
            pass
        else:
            self._data.setsockopt(level, optname, value, *optlen)

    def getsockopt(self, level: int, optname: int, *buflen: int) -> Any:
        return self._data.getsockopt(level, optname, *buflen)


class Listener:
    """A listener. It has the methods of a listening :class:`socket.socket`."""

    family = constants.AF_HYPERV
    type = socket.SOCK_STREAM
    proto = constants.HV_PROTOCOL_RAW

    def __init__(self, sock: socket.socket, bound: Message, raw_fd: bool) -> None:
        self._sock = sock
        self._raw_fd = raw_fd
        self._timeout: Optional[float] = None
        self._error: Optional[OSError] = None
        self._address = _address(bound.fields, "vm", "service")
        #: The number of connections that may be pending, as granted by the broker.
        self.backlog: int = bound.fields["backlog"]
        #: The number of the listener, as the broker and its command show it.
        self.listener_id: int = bound.fields["listener"]

    def __enter__(self) -> "Listener":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<hvsock.Listener fd={self.fileno()} listener={self.listener_id} address={self._address}>"

    def accept(self) -> Tuple[Socket, Address]:
        """Accepts a connection. Returns it and the peer's address.

        An exception of the class :class:`hvsock.Reset` is final: the listener has ended.
        """
        deadline = None if self._timeout is None else time.monotonic() + self._timeout
        while True:
            if self._error is not None:
                raise type(self._error)(*self._error.args) from self._error
            try:
                message = receive(self._sock)
            except BlockingIOError:
                if self._timeout == 0:
                    raise
                if not wait(self._sock, select.POLLIN, deadline):
                    raise socket.timeout("timed out") from None
                continue
            except Refused as error:
                self._error = error
                raise
            return self._accepted(message)

    def _accepted(self, message: Message) -> Tuple[Socket, Address]:
        if message.kind == "RESET":
            self._error = reset_by(message, f"the listener at {self._address} ended")
            raise self._error
        is_connection = message.kind == "INCOMING" and message.fields["transport"] == DESCRIPTOR
        if not is_connection or len(message.descriptors) != 2:
            message.close()
            self._error = protocol_error(f"the message {message.kind} is unexpected")
            raise self._error
        data, control = (socket.socket(fileno=descriptor) for descriptor in message.descriptors)
        try:
            send(self._sock, "ACCEPTED", connection=message.fields["connection"])
        except BaseException:
            data.close()
            control.close()
            raise
        stream = Socket(data, Control(control), message.fields, self._raw_fd, socket.getdefaulttimeout())
        return stream, stream.getpeername()

    def listen(self, backlog: int = 0) -> None:
        """Does nothing: it listens already."""

    def close(self) -> None:
        """Ends the listener. Connections that were not accepted are reset."""
        self._sock.close()

    def fileno(self) -> int:
        """The descriptor, which is readable if a connection can be accepted."""
        return self._sock.fileno()

    def settimeout(self, value: Optional[float]) -> None:
        if value is not None and not value >= 0:
            raise ValueError("Timeout value out of range")
        self._timeout = value

    def gettimeout(self) -> Optional[float]:
        return self._timeout

    timeout = property(gettimeout)

    def setblocking(self, flag: bool) -> None:
        self._timeout = None if flag else 0.0

    def getblocking(self) -> bool:
        return self._timeout != 0

    def getsockname(self) -> Address:
        """The partitions that it accepts from, and its service."""
        return self._address

    def getsockopt(self, level: int, optname: int, *buflen: int) -> Any:
        return self._sock.getsockopt(level, optname, *buflen)


class Lease:
    """A registration that lives as long as this object."""

    def __init__(self, sock: socket.socket, name: str, service_id: str) -> None:
        self._sock = sock
        self.name = name
        self.service_id = service_id

    def __enter__(self) -> "Lease":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def check(self) -> None:
        """Raises :class:`hvsock.Reset` if the registration has ended."""
        try:
            message = receive(self._sock)
        except BlockingIOError:
            return
        if message.kind == "RESET":
            raise reset_by(message, f"the registration of \"{self.name}\" ended")
        message.close()
        raise protocol_error(f"the message {message.kind} is unexpected")

    def fileno(self) -> int:
        """A descriptor that is readable if the registration has ended."""
        return self._sock.fileno()

    def close(self) -> None:
        """Ends the registration."""
        self._sock.close()


def connected(control: socket.socket, message: Message, timeout: Optional[float], raw_fd: bool) -> Socket:
    """The connection of a CONNECTED."""
    data = socket.socket(fileno=message.descriptors[0])
    return Socket(data, Control(control), message.fields, raw_fd, timeout)
