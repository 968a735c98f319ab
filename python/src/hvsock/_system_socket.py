"""A connection or listener of the system's own AF_HYPERV or AF_VSOCK."""

import socket
from typing import Any, Callable, Optional, Tuple

from ._peer import Peer
from .addresses import Address
from .refusals import Refused

#: Converts an address of the system's socket.
ToAddress = Callable[[Any], Address]
#: Converts an error of the system's socket.
ToError = Callable[[OSError], OSError]


class SystemSocket:
    """A socket of the system, with addresses as all of this package has them.

    It delegates to the :class:`socket.socket`, which is ``.socket``.
    """

    def __init__(self, inner: Any, to_address: ToAddress, transport: str) -> None:
        self.socket = inner
        self._to_address = to_address
        self.transport = transport
        self.connection_id = 0
        self.peer: Optional[Peer] = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self.socket, name)

    def __enter__(self) -> "SystemSocket":
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def __repr__(self) -> str:
        return f"<hvsock.SystemSocket {self.socket!r}>"

    def fileno(self) -> int:
        return int(self.socket.fileno())

    def getsockname(self) -> Address:
        return self._to_address(self.socket.getsockname())

    def getpeername(self) -> Address:
        return self._to_address(self.socket.getpeername())

    def accept(self) -> Tuple["SystemSocket", Address]:
        inner, address = self.socket.accept()
        accepted = SystemSocket(inner, self._to_address, self.transport)
        peer = self._to_address(address)
        accepted.peer = Peer(peer.vm_id, None, None, None)
        return accepted, peer


def opened(
    module: Any,
    family: int,
    protocol: int,
    timeout: Optional[float],
    start: Callable[[Any], None],
    to_error: ToError,
) -> Any:
    """A new socket, which ``start`` connects or binds. It is closed if that fails."""
    inner = module.socket(family, socket.SOCK_STREAM, protocol)
    try:
        inner.settimeout(timeout)
        start(inner)
        return inner
    except OSError as error:
        inner.close()
        if isinstance(error, Refused):
            raise
        raise to_error(error) from None
    except BaseException:
        inner.close()
        raise
