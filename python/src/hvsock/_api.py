"""The functions of the package."""

import os
import uuid
from typing import Any, Optional, Protocol, Tuple, Union

from . import _accelerated
from ._options import Options
from ._os.backend import backend
from ._peer import Peer
from .addresses import (
    UUID,
    Address,
    AddressLike,
    check_partition_name,
    check_service_name,
    parse_address,
    parse_guid,
    parse_service,
)
from .refusals import Explanation

PathLike = Union[str, "os.PathLike[str]"]


class Socket(Protocol):
    """A connection: what all kinds of it have in common with :class:`socket.socket`."""

    @property
    def transport(self) -> str: ...
    @property
    def connection_id(self) -> int: ...
    @property
    def peer(self) -> Optional[Peer]: ...
    def __enter__(self) -> Any: ...
    def __exit__(self, *_: object) -> None: ...
    def recv(self, bufsize: int, flags: int = ...) -> bytes: ...
    def recv_into(self, buffer: Any, nbytes: int = ..., flags: int = ...) -> int: ...
    def send(self, data: Any, flags: int = ...) -> int: ...
    def sendall(self, data: Any, flags: int = ...) -> None: ...
    def shutdown(self, how: int) -> None: ...
    def makefile(self, mode: str = ..., buffering: Optional[int] = ..., **text: Optional[str]) -> Any: ...
    def settimeout(self, value: Optional[float]) -> None: ...
    def gettimeout(self) -> Optional[float]: ...
    def setblocking(self, flag: bool) -> None: ...
    def fileno(self) -> int: ...
    def detach(self) -> int: ...
    def getsockname(self) -> Address: ...
    def getpeername(self) -> Address: ...
    def close(self) -> None: ...


class Listener(Protocol):
    """A listener: what all kinds of it have in common with :class:`socket.socket`."""

    def __enter__(self) -> Any: ...
    def __exit__(self, *_: object) -> None: ...
    def accept(self) -> Tuple[Socket, Address]: ...
    def settimeout(self, value: Optional[float]) -> None: ...
    def gettimeout(self) -> Optional[float]: ...
    def setblocking(self, flag: bool) -> None: ...
    def fileno(self) -> int: ...
    def getsockname(self) -> Address: ...
    def close(self) -> None: ...


class Lease(Protocol):
    """A registration that ends with this object or its process."""

    def __enter__(self) -> Any: ...
    def __exit__(self, *_: object) -> None: ...
    def check(self) -> None: ...
    def fileno(self) -> int: ...
    def close(self) -> None: ...


def implementation() -> str:
    """What moves the bytes of :func:`connect` and :func:`create_server`: ``accelerator`` (shared memory, by the
    Rust library) or ``pure`` (Python only).

    The accelerator is used if the package ``hvsock-accelerator`` is installed. The environment variable
    ``HVSOCK_PYTHON_IMPLEMENTATION`` selects one of them: ``pure``, or ``accelerator``, which is an error without it.
    """
    return "accelerator" if _accelerated.module() is not None else "pure"


def _options(endpoint: Optional[PathLike], **others: Any) -> Options:
    return Options(None if endpoint is None else os.fspath(endpoint), **others)


def _check_timeout(timeout: Optional[float]) -> None:
    if timeout is not None and not timeout > 0:
        raise ValueError("the timeout of a connect is more than 0 seconds, or None; hvsock.asyncio does not block")


def connect(
    address: AddressLike,
    timeout: Optional[float] = None,
    *,
    endpoint: Optional[PathLike] = None,
    raw_fd: bool = False,
    connected_suspend: bool = False,
    shared_memory: bool = True,
    describe: Optional[Tuple[str, str]] = None,
) -> Socket:
    """Connects to a service and returns the connected socket.

    ``timeout`` bounds the connect in seconds and is then the timeout of the socket, as in
    :func:`socket.create_connection`. ``endpoint`` is the path of a broker's endpoint socket, if it is not the one of
    the environment. ``raw_fd`` makes a connection whose descriptor can be given to a program without this package
    (:meth:`~Socket.detach`). ``connected_suspend`` keeps it while its partition is paused. ``shared_memory=False``
    selects the pure implementation. ``describe`` says in a word and a detail what the connection is for, in the
    broker's audit.

    Raises :class:`~hvsock.Refused` if it is refused, :class:`FileNotFoundError` if there is no broker, and
    :class:`~hvsock.InvalidAddress` for text that is no address.
    """
    _check_timeout(timeout)
    parsed = parse_address(address)
    options = _options(endpoint, raw_fd=raw_fd, connected_suspend=connected_suspend, describe=describe)
    if shared_memory and not raw_fd and _accelerated.module() is not None:
        connected: Socket = _accelerated.connect(parsed, timeout, options)
    else:
        connected = backend.connect(parsed, timeout, options)
    return connected


def create_server(
    address: AddressLike,
    *,
    backlog: int = 128,
    endpoint: Optional[PathLike] = None,
    raw_fd: bool = False,
    connected_suspend: bool = False,
    shared_memory: bool = True,
) -> Listener:
    """Listens at an address and returns the listening socket.

    The partition says from where to accept: ``any``, ``children``, ``parent``, ``loopback``, or one partition. The other
    arguments are those of :func:`connect`.
    """
    parsed = parse_address(address)
    if backlog < 0:
        raise ValueError("a backlog is not negative")
    options = _options(endpoint, raw_fd=raw_fd, connected_suspend=connected_suspend)
    if shared_memory and not raw_fd and _accelerated.module() is not None:
        listening: Listener = _accelerated.create_server(parsed, backlog, options)
    else:
        listening = backend.create_server(parsed, backlog, options)
    return listening


def why(address: AddressLike, *, listening: bool = False, endpoint: Optional[PathLike] = None) -> Explanation:
    """Asks the broker what a connect to the address would do, or with ``listening`` a listen, and does nothing."""
    explanation: Explanation = backend.why(parse_address(address), listening, _options(endpoint))
    return explanation


def lookup_service(name: str, *, endpoint: Optional[PathLike] = None) -> UUID:
    """The GUID of the service with this friendly name."""
    found: UUID = backend.lookup_service(check_service_name(name), _options(endpoint))
    return found


def lookup_partition(name: str, *, endpoint: Optional[PathLike] = None) -> UUID:
    """The ``VmId`` of the partition with this name, as this process can reach it."""
    # In a container in a virtual machine, `host` is a name, too.
    checked = name if name == "host" else check_partition_name(name)
    found: UUID = backend.lookup_partition(checked, _options(endpoint))
    return found


def register(
    name: str,
    service_id: Union[str, int, UUID, None] = None,
    purpose: str = "",
    *,
    endpoint: Optional[PathLike] = None,
) -> Lease:
    """Registers a service for as long as the result, or this process, lives. Only root and the broker's user may.

    ``service_id`` is a GUID or a vsock port; the default is a random GUID.
    """
    if service_id is None:
        service_id = uuid.uuid4()
    parsed = parse_service(service_id)
    service = parsed if isinstance(parsed, UUID) else parse_guid(parsed)
    lease: Lease = backend.register(check_service_name(name), service, purpose, _options(endpoint))
    return lease
