"""The control of a connection: what the broker says besides the data.

The end of the data alone is ambiguous. A process that closes cleanly sends SHUTDOWN first, the broker announces a
reset by RESET, and a broker that dies closes everything at once.
"""

import select
import socket
import threading
import time
from typing import Optional

from ...messages import CONNECTED_SUSPEND
from ...refusals import broker_gone, is_broker_gone, protocol_error
from .exchange import receive, reset_by, send, wait

#: How often a thread checks whether another one has received the message that it waits for.
_RECHECK_INTERVAL = 0.02


class Control:
    """The control of one connection. Threads may share it."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._lock = threading.Lock()
        #: The peer's data ends where the data descriptor does.
        self.ended = False
        #: Why the connection was reset.
        self.error: Optional[OSError] = None
        self._announced = False

    def drain(self) -> None:
        """Receives all pending messages."""
        with self._lock:
            while self.error is None and self._receive():
                pass

    def _receive(self) -> bool:
        try:
            message = receive(self._sock)
        except BlockingIOError:
            return False
        except OSError as error:
            # After the end of the peer's data the broker closes when the peer has closed for good.
            if self.ended and is_broker_gone(error):
                return False
            self.error = error
            return True
        if message.kind == "SHUTDOWN":
            self.ended = True
        elif message.kind in ("RESET", "REFUSED"):
            self.error = reset_by(message, "")
        elif message.kind != "SUSPENDED":
            self.error = protocol_error(f"the message {message.kind} is unexpected")
        message.close()
        return True

    def wait_for_end(self, timeout: Optional[float]) -> None:
        """Returns at a clean end of the peer's data, and raises at any other one.

        Raises ``BlockingIOError`` if the kind of the end is not known yet and ``timeout`` is 0, and
        ``TimeoutError`` after it.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        while not self.ended:
            self.drain()
            if self.ended:
                return
            if self.error is not None:
                raise self.fresh_error()
            if timeout == 0:
                raise BlockingIOError(11, "the end of the data is not confirmed yet")
            now = time.monotonic()
            if deadline is not None and now >= deadline:
                raise socket.timeout("timed out")
            recheck = now + _RECHECK_INTERVAL
            wait(self._sock, select.POLLIN, recheck if deadline is None else min(recheck, deadline))

    def fresh_error(self) -> OSError:
        """The reason of the reset, as an exception that was not raised before."""
        known = self.error or broker_gone()
        error = type(known)(*known.args)
        error.__dict__.update(known.__dict__)
        return error

    def announce_end(self) -> None:
        """Says that no data follows what was written. This comes before the end of the data itself: an end
        without it means that the process was killed."""
        with self._lock:
            if self._announced:
                return
            self._announced = True
        self._send("SHUTDOWN")

    def set_connected_suspend(self, on: bool) -> None:
        self._send("SET_OPTION", option=CONNECTED_SUSPEND, value=int(on))

    def _send(self, kind: str, **fields: int) -> None:
        try:
            send(self._sock, kind, **fields)
        except (BrokenPipeError, ConnectionResetError):
            self.drain()
            # If the peer has ended and closed for good, the broker has closed, too.
            if self.error is not None or not self.ended:
                raise self.fresh_error() from None

    def close(self) -> None:
        self._sock.close()
