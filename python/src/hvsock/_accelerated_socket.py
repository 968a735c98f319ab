"""Connections and listeners of the accelerator, which the Rust library moves through shared memory."""

import errno
import socket
from typing import Any, Callable, Optional, Tuple, TypeVar

from . import constants
from ._options import Options
from ._peer import Peer
from ._socket_base import SocketBase
from .addresses import Address, HvAddress, partition_text, service_text
from .refusals import Refusal, Refused, Reset, parse_explanation, refused

T = TypeVar("T")


def _exception(number: int, text: str, code: int, detail: str, explained: Optional[str]) -> OSError:
    """The exception for an error of the accelerator, which calls this."""
    if code:
        explanation = parse_explanation(code, explained) if explained else None
        kind = Reset if number == errno.ECONNRESET else None
        return refused(Refusal.from_wire(code, detail), "", explanation, kind)
    if number == errno.ETIMEDOUT:
        return socket.timeout("timed out")
    return OSError(number, text)


def _call(what: str, call: Callable[[], T]) -> T:
    """Calls the accelerator, and says in an error what failed."""
    try:
        return call()
    except Refused as error:
        raise refused(error.refusal, what, error.explanation) from None
    except TimeoutError as error:
        raise type(error)(f"{what}: {error}") from None


class AcceleratedSocket(SocketBase):
    """A connection of the accelerator.

    Its descriptor (:meth:`fileno`) is for waiting only: when it is readable, try what raised ``BlockingIOError``
    again. It cannot be detached: connect with ``raw_fd=True`` for that.
    """

    def __init__(self, stream: Any, timeout: Optional[float]) -> None:
        self._stream = stream
        # The methods that move bytes are the accelerator's own: a wrapper would cost as much as they do.
        self.recv = stream.recv  # type: ignore[method-assign,assignment]
        self.recv_into = stream.recv_into
        self.send = stream.send
        self.sendall = stream.sendall  # type: ignore[method-assign,assignment]
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
        if value is not None and not value >= 0:
            raise ValueError("Timeout value out of range")
        self._timeout = value
        self._stream.set_timeout(value)

    def sendmsg(self, buffers: Any, ancdata: Any = (), flags: int = 0) -> int:
        if tuple(ancdata):
            raise OSError(errno.EOPNOTSUPP, "a connection carries no ancillary data")
        count: int = self.send(b"".join(buffers))
        return count

    def shutdown(self, how: int) -> None:
        if how not in (socket.SHUT_RD, socket.SHUT_WR, socket.SHUT_RDWR):
            raise OSError(errno.EINVAL, "shut down SHUT_RD, SHUT_WR or SHUT_RDWR")
        self._stream.shutdown(how != socket.SHUT_RD, how != socket.SHUT_WR)

    def setsockopt(self, level: int, optname: int, value: Any, *optlen: int) -> None:
        if level == constants.HV_PROTOCOL_RAW and optname == constants.HVSOCKET_CONNECTED_SUSPEND:
            self._stream.set_connected_suspend(bool(value))

    def getsockopt(self, level: int, optname: int, *buflen: int) -> Any:
        if level == socket.SOL_SOCKET and optname == socket.SO_TYPE:
            return int(socket.SOCK_STREAM)
        return 0


class AcceleratedListener:
    """A listener of the accelerator."""

    family = constants.AF_HYPERV
    type = socket.SOCK_STREAM
    proto = constants.HV_PROTOCOL_RAW

    def __init__(self, listener: Any) -> None:
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
        stream = self._listener.accept(self._timeout)
        accepted = AcceleratedSocket(stream, socket.getdefaulttimeout())
        return accepted, accepted.getpeername()

    def listen(self, backlog: int = 0) -> None:
        """Does nothing: it listens already."""

    def close(self) -> None:
        self._listener.close()

    def fileno(self) -> int:
        return int(self._listener.fileno())

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
        return self._address


def connect(accelerator: Any, address: HvAddress, timeout: Optional[float], options: Options) -> AcceleratedSocket:
    partition, service = partition_text(address.partition), service_text(address.service)
    accelerator.set_errors(_exception)
    stream = _call(
        f"cannot connect to {address.url()}",
        lambda: accelerator.connect(
            partition, service, timeout, options.endpoint, options.connected_suspend, options.describe
        ),
    )
    return AcceleratedSocket(stream, timeout)


def create_server(accelerator: Any, address: HvAddress, backlog: int, options: Options) -> AcceleratedListener:
    partition, service = partition_text(address.partition), service_text(address.service)
    accelerator.set_errors(_exception)
    listener = _call(
        f"cannot listen at {address.url()}",
        lambda: accelerator.listen(partition, service, backlog, options.endpoint, options.connected_suspend),
    )
    return AcceleratedListener(listener)
