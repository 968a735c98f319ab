"""What the kinds of connections share."""

import errno
import io
import socket
import sys
import warnings
from typing import Any, Optional, Tuple, TypeVar

from . import constants
from ._peer import Peer
from .addresses import Address

Self = TypeVar("Self", bound="SocketBase")

_FILE_CHUNK = 1 << 17


class SocketBase:
    """The lifetime, the files and the modes of a connection. A subclass moves the bytes."""

    family = constants.AF_HYPERV
    type = socket.SOCK_STREAM
    proto = constants.HV_PROTOCOL_RAW

    _closed = True
    _io_refs = 0
    _timeout: Optional[float] = None
    _local: Address
    _remote: Address
    #: The number of the connection, as the broker and its command show it.
    connection_id: int
    #: Who connected, on the listening side.
    peer: Optional[Peer] = None

    # What a subclass has

    def _real_close(self) -> None:
        raise NotImplementedError

    def recv(self, bufsize: int, flags: int = 0) -> bytes:
        raise NotImplementedError

    def sendall(self, data: Any, flags: int = 0) -> None:
        raise NotImplementedError

    def settimeout(self, value: Optional[float]) -> None:
        raise NotImplementedError

    def fileno(self) -> int:
        raise NotImplementedError

    # Context and lifetime

    def __enter__(self: Self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if not self._closed:
            self.close()

    def __repr__(self) -> str:
        state = "closed" if self._closed else f"fd={self.fileno()}"
        return f"<hvsock.Socket {state} connection={self.connection_id} peer={self._remote}>"

    def __getstate__(self) -> None:
        raise TypeError(f"cannot pickle {type(self).__name__!r} object")

    def __del__(self) -> None:
        if not self._closed:
            if not sys.is_finalizing():
                warnings.warn(f"unclosed {self!r}", ResourceWarning, source=self, stacklevel=2)
            self._io_refs = 0
            self.close()

    def close(self) -> None:
        """Closes the connection. The data that was written ends cleanly; data that was not read is lost, and the
        peer that sent it gets a reset."""
        self._closed = True
        if self._io_refs <= 0:
            self._real_close()

    def _decref_socketios(self) -> None:
        """For :class:`socket.SocketIO`, which calls it when a file of this socket is closed."""
        if self._io_refs > 0:
            self._io_refs -= 1
        if self._closed:
            self.close()

    def dup(self) -> Any:
        raise OSError(errno.EOPNOTSUPP, "a connection has one owner; share this object between threads")

    # Data

    def recvfrom(self, bufsize: int, flags: int = 0) -> Tuple[bytes, Optional[Address]]:
        return self.recv(bufsize, flags), None

    def sendfile(self, file: Any, offset: int = 0, count: Optional[int] = None) -> int:
        """Sends a file from ``offset`` on, and returns the number of bytes sent."""
        if self._timeout == 0:
            raise ValueError("non-blocking sockets are not supported")
        if offset:
            file.seek(offset)
        sent = 0
        while count is None or sent < count:
            chunk = file.read(_FILE_CHUNK if count is None else min(_FILE_CHUNK, count - sent))
            if not chunk:
                break
            self.sendall(chunk)
            sent += len(chunk)
        return sent

    # Files

    def makefile(
        self,
        mode: str = "r",
        buffering: Optional[int] = None,
        *,
        encoding: Optional[str] = None,
        errors: Optional[str] = None,
        newline: Optional[str] = None,
    ) -> Any:
        """A file for this socket, as :meth:`socket.socket.makefile`."""
        if not set(mode) <= {"r", "w", "b"}:
            raise ValueError(f"invalid mode {mode!r} (only r, w, b allowed)")
        writing = "w" in mode
        reading = "r" in mode or not writing
        raw_mode = ("r" if reading else "") + ("w" if writing else "")
        raw = socket.SocketIO(self, raw_mode)  # type: ignore[arg-type]
        self._io_refs += 1
        if buffering is None or buffering < 0:
            buffering = io.DEFAULT_BUFFER_SIZE
        if buffering == 0:
            if "b" not in mode:
                raise ValueError("unbuffered streams must be binary")
            return raw
        buffer: Any
        if reading and writing:
            buffer = io.BufferedRWPair(raw, raw, buffering)
        elif reading:
            buffer = io.BufferedReader(raw, buffering)
        else:
            buffer = io.BufferedWriter(raw, buffering)
        if "b" in mode:
            return buffer
        text = io.TextIOWrapper(buffer, encoding, errors, newline)
        text.mode = mode  # type: ignore[misc]
        return text

    # State

    def gettimeout(self) -> Optional[float]:
        return self._timeout

    timeout = property(gettimeout)

    def setblocking(self, flag: bool) -> None:
        self.settimeout(None if flag else 0.0)

    def getblocking(self) -> bool:
        return self._timeout != 0

    def getsockname(self) -> Address:
        """This end's address."""
        return self._local

    def getpeername(self) -> Address:
        """The peer's address."""
        return self._remote
