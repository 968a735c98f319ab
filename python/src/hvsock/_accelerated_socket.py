"""Connections and listeners of the accelerator, which the Rust library moves through shared memory."""

import errno
import socket
from typing import Any, Callable, Optional, Tuple, TypeVar

from . import constants
from ._options import Options
from ._peer import Peer
from ._socket_base import SocketBase
from .addresses import Address, HvAddress, partition_text, service_text
from .refusals import Refusal, Reset, parse_explanation, refused

T = TypeVar("T")


def _raised(accelerator: Any, error: Any, what: str) -> OSError:
    """The exception of this package for a failure of the accelerator: (errno, text, code, detail, explanation)."""
    number, text, code, detail, explained = error.args
    if code:
        explanation = parse_explanation(code, explained) if explained else None
        kind = Reset if number == errno.ECONNRESET else None
        return refused(Refusal.from_wire(code, detail), what, explanation, kind)
    if number in (errno.EAGAIN, errno.EWOULDBLOCK):
        return BlockingIOError(number, text)
    if number == errno.ETIMEDOUT:
        return socket.timeout("timed out")
    return OSError(number, f"{what}: {text}" if what else text)


def _call(accelerator: Any, what: str, call: Callable[[], T]) -> T:
    try:
        return call()
    except accelerator.Failure as error:
        raise _raised(accelerator, error, what) from None


class AcceleratedSocket(SocketBase):
    """A connection of the accelerator.

    Its descriptor (:meth:`fileno`) is for waiting only: when it is readable, try what raised ``BlockingIOError``
    again. It cannot be detached: connect with ``raw_fd=True`` for that.
    """

    def __init__(self, accelerator: Any, stream: Any, timeout: Optional[float]) -> None:
        self._accelerator = accelerator
        self._stream = stream
        self._failure = accelerator.Failure
        self._local, self._remote = Address(*stream.local()), Address(*stream.remote())
        self.connection_id = stream.connection_id()
        self.transport: str = stream.transport()
        peer = stream.peer()
        self.peer = None if peer is None else Peer(*peer)
        self.settimeout(timeout)
        self._closed = False

    def _real_close(self) -> None:
        self._stream.close()

    def fileno(self) -> int:
        return int(self._stream.fileno())

    def detach(self) -> int:
        raise OSError(errno.EOPNOTSUPP, "only a connection that was made with raw_fd=True can be detached")

    def settimeout(self, value: Optional[float]) -> None:
        if value is not None and value < 0:
            raise ValueError("Timeout value out of range")
        self._timeout = value
        self._stream.set_timeout(value)

    def recv(self, bufsize: int, flags: int = 0) -> bytes:
        try:
            received: bytes = self._stream.recv(bufsize, self._peeks(flags))
            return received
        except self._failure as error:
            raise _raised(self._accelerator, error, "") from None

    def recv_into(self, buffer: Any, nbytes: int = 0, flags: int = 0) -> int:
        try:
            count: int = self._stream.recv_into(buffer, nbytes, self._peeks(flags))
            return count
        except self._failure as error:
            raise _raised(self._accelerator, error, "") from None

    @staticmethod
    def _peeks(flags: int) -> bool:
        if flags & ~socket.MSG_PEEK:
            raise OSError(errno.EOPNOTSUPP, "a connection in shared memory knows the flag MSG_PEEK only")
        return bool(flags)

    def send(self, data: Any, flags: int = 0) -> int:
        try:
            count: int = self._stream.send(data)
            return count
        except self._failure as error:
            raise _raised(self._accelerator, error, "") from None

    def sendall(self, data: Any, flags: int = 0) -> None:
        try:
            self._stream.sendall(data)
        except self._failure as error:
            raise _raised(self._accelerator, error, "") from None

    def sendmsg(self, buffers: Any, ancdata: Any = (), flags: int = 0) -> int:
        if tuple(ancdata):
            raise OSError(errno.EOPNOTSUPP, "a connection carries no ancillary data")
        return self.send(b"".join(buffers), flags)

    def shutdown(self, how: int) -> None:
        if how not in (socket.SHUT_RD, socket.SHUT_WR, socket.SHUT_RDWR):
            raise OSError(errno.EINVAL, "shut down SHUT_RD, SHUT_WR or SHUT_RDWR")
        _call(self._accelerator, "", lambda: self._stream.shutdown(how != socket.SHUT_WR, how != socket.SHUT_RD))

    def setsockopt(self, level: int, optname: int, value: Any, *optlen: int) -> None:
        if level == constants.HV_PROTOCOL_RAW and optname == constants.HVSOCKET_CONNECTED_SUSPEND:
            _call(self._accelerator, "", lambda: self._stream.set_connected_suspend(bool(value)))

    def getsockopt(self, level: int, optname: int, *buflen: int) -> Any:
        if level == socket.SOL_SOCKET and optname == socket.SO_TYPE:
            return int(socket.SOCK_STREAM)
        return 0


class AcceleratedListener:
    """A listener of the accelerator."""

    family = constants.AF_HYPERV
    type = socket.SOCK_STREAM
    proto = constants.HV_PROTOCOL_RAW

    def __init__(self, accelerator: Any, listener: Any) -> None:
        self._accelerator = accelerator
        self._listener = listener
        self._timeout: Optional[float] = None
        self._address = Address(*listener.local())
        self.backlog: int = listener.backlog()
        self.listener_id: int = listener.listener_id()

    def __enter__(self) -> "AcceleratedListener":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def accept(self) -> Tuple[AcceleratedSocket, Address]:
        stream = _call(self._accelerator, "", lambda: self._listener.accept(self._timeout))
        accepted = AcceleratedSocket(self._accelerator, stream, socket.getdefaulttimeout())
        return accepted, accepted.getpeername()

    def listen(self, backlog: int = 0) -> None:
        """Does nothing: it listens already."""

    def close(self) -> None:
        self._listener.close()

    def fileno(self) -> int:
        return int(self._listener.fileno())

    def settimeout(self, value: Optional[float]) -> None:
        if value is not None and value < 0:
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
        return self._address


def connect(accelerator: Any, address: HvAddress, timeout: Optional[float], options: Options) -> AcceleratedSocket:
    partition, service = partition_text(address.partition), service_text(address.service)
    stream = _call(
        accelerator,
        f"cannot connect to {address.url()}",
        lambda: accelerator.connect(
            partition, service, timeout, options.endpoint, options.connected_suspend, options.describe
        ),
    )
    return AcceleratedSocket(accelerator, stream, timeout)


def create_server(accelerator: Any, address: HvAddress, backlog: int, options: Options) -> AcceleratedListener:
    partition, service = partition_text(address.partition), service_text(address.service)
    listener = _call(
        accelerator,
        f"cannot listen at {address.url()}",
        lambda: accelerator.listen(partition, service, backlog, options.endpoint, options.connected_suspend),
    )
    return AcceleratedListener(accelerator, listener)
