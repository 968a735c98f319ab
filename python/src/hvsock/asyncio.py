"""Streams and servers for :mod:`asyncio`: the counterparts of :func:`asyncio.open_connection` and
:func:`asyncio.start_server`.

They need an event loop that watches descriptors (``asyncio.SelectorEventLoop``, the default on Linux).
"""

import asyncio
from typing import Any, Awaitable, Callable, Optional, Set, Tuple

from ._api import PathLike, _check_timeout, _options
from ._os.backend import backend
from .addresses import Address, AddressLike, parse_address
from .refusals import Reset

__all__ = ["Server", "create_connection", "open_connection", "start_server"]

_LIMIT = 2**16


async def create_connection(
    protocol_factory: Callable[[], asyncio.BaseProtocol],
    address: AddressLike,
    *,
    timeout: Optional[float] = None,
    endpoint: Optional[PathLike] = None,
    connected_suspend: bool = False,
    describe: Optional[Tuple[str, str]] = None,
) -> Tuple[asyncio.Transport, Any]:
    """Connects a protocol to a service, as :meth:`asyncio.loop.create_connection`."""
    _check_timeout(timeout)
    options = _options(endpoint, connected_suspend=connected_suspend, describe=describe)
    sock = await backend.connect_async(parse_address(address), timeout, options)
    adopted: Tuple[asyncio.Transport, Any] = await _adopt(protocol_factory, sock, accepted=False)
    return adopted


async def _adopt(protocol_factory: Any, sock: Any, accepted: bool) -> Any:
    loop = asyncio.get_running_loop()
    inner = getattr(sock, "socket", sock)
    try:
        if accepted:
            return await loop.connect_accepted_socket(protocol_factory, inner)
        return await loop.create_connection(protocol_factory, sock=inner)
    except BaseException:
        sock.close()
        raise


async def open_connection(
    address: AddressLike,
    *,
    limit: int = _LIMIT,
    timeout: Optional[float] = None,
    endpoint: Optional[PathLike] = None,
    connected_suspend: bool = False,
    describe: Optional[Tuple[str, str]] = None,
) -> Tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Connects to a service and returns a reader and a writer.

    The arguments are those of :func:`hvsock.connect`. A peer that was killed is a :class:`~hvsock.Reset` of the reader.
    """
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader(limit=limit, loop=loop)
    protocol = asyncio.StreamReaderProtocol(reader, loop=loop)
    transport, _ = await create_connection(
        lambda: protocol,
        address,
        timeout=timeout,
        endpoint=endpoint,
        connected_suspend=connected_suspend,
        describe=describe,
    )
    return reader, asyncio.StreamWriter(transport, protocol, reader, loop)


#: What serves a connection.
ClientConnected = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Optional[Awaitable[None]]]


class Server:
    """A server. It accepts connections until :meth:`close`, or until its listener ends."""

    def __init__(self, listener: Any, connected: ClientConnected, limit: int) -> None:
        self._listener = listener
        self._connected = connected
        self._limit = limit
        self._tasks: Set["asyncio.Task[None]"] = set()
        self._ended: "asyncio.Future[None]" = asyncio.get_running_loop().create_future()
        self._accepting: Optional["asyncio.Task[None]"] = asyncio.ensure_future(self._accept_all())

    async def __aenter__(self) -> "Server":
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()
        await self.wait_closed()

    @property
    def sockets(self) -> Tuple[Any, ...]:
        return () if self._accepting is None else (self._listener,)

    def getsockname(self) -> Address:
        """The address that it listens at."""
        address: Address = self._listener.getsockname()
        return address

    def is_serving(self) -> bool:
        return self._accepting is not None

    def close(self) -> None:
        """Ends the listener. Accepted connections go on."""
        if self._accepting is not None:
            self._accepting.cancel()
            self._accepting = None
        self._listener.close()
        if not self._ended.done():
            self._ended.set_result(None)

    async def wait_closed(self) -> None:
        """Waits until the server has ended. Raises :class:`~hvsock.Reset` if that was for another reason than
        :meth:`close`."""
        await asyncio.shield(self._ended)

    async def serve_forever(self) -> None:
        """Serves until the server ends or this call is cancelled, which closes it."""
        try:
            await self.wait_closed()
        finally:
            self.close()

    async def _accept_all(self) -> None:
        from ._os.linux.backend import readable

        while True:
            try:
                sock, _ = self._listener.accept()
            except (BlockingIOError, InterruptedError):
                await readable(self._listener.fileno())
                continue
            except Reset as error:
                self._fail(error)
                return
            except OSError:
                # Too many open files, for example: those of others may be closed soon.
                await asyncio.sleep(0.1)
                continue
            await self._serve(sock)

    def _fail(self, error: BaseException) -> None:
        self._accepting = None
        self._listener.close()
        if not self._ended.done():
            self._ended.set_exception(error)
            # Nobody may be waiting.
            self._ended.exception()

    async def _serve(self, sock: Any) -> None:
        sock.setblocking(False)
        loop = asyncio.get_running_loop()
        reader = asyncio.StreamReader(limit=self._limit, loop=loop)
        # With the callback of this protocol a reader is a server's: the protocol closes the connection that nobody
        # keeps.
        protocol = asyncio.StreamReaderProtocol(reader, self._connected, loop=loop)
        try:
            await _adopt(lambda: protocol, sock, accepted=True)
        except OSError:
            sock.close()


async def start_server(
    client_connected: ClientConnected,
    address: AddressLike,
    *,
    limit: int = _LIMIT,
    backlog: int = 128,
    endpoint: Optional[PathLike] = None,
    connected_suspend: bool = False,
) -> Server:
    """Listens at an address, and calls ``client_connected`` with a reader and a writer for each connection.

    The arguments are those of :func:`hvsock.create_server`.
    """
    options = _options(endpoint, connected_suspend=connected_suspend)
    listener = await backend.create_server_async(parse_address(address), backlog, options)
    return Server(listener, client_connected, limit)
