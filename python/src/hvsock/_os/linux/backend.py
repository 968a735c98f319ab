"""Linux: the broker's endpoint, or the kernel's AF_VSOCK in a virtual machine without one."""

import asyncio
from typing import Any, Callable, Optional

from ..._options import Options
from ...addresses import UUID, HvAddress
from ...messages import LOOKUP_PARTITION, LOOKUP_SERVICE
from ...refusals import Explanation
from . import exchange, vsock
from .endpoints import Endpoint
from .exchange import REPLY_TIMEOUT, Steps, T, no_reply, run
from .stream import Lease, Listener, connected

#: The most milliseconds of CONNECT, and how long the broker may take by its default.
_MAX_TIMEOUT_MS = 300_000
_DEFAULT_TIMEOUT = 30.0


def _timeout_ms(timeout: Optional[float]) -> int:
    return 0 if timeout is None else max(1, round(min(_MAX_TIMEOUT_MS, timeout * 1000)))


def _whole_timeout(timeout: Optional[float]) -> float:
    return (_DEFAULT_TIMEOUT if timeout is None else timeout) + REPLY_TIMEOUT


def _no_broker(what: str) -> OSError:
    return FileNotFoundError(2, f"cannot {what}: no broker serves this virtual machine")


def connect(address: HvAddress, timeout: Optional[float], options: Options) -> Any:
    endpoint = Endpoint.of(options.endpoint)
    if vsock.takes_over(endpoint):
        return vsock.connect(address, timeout)
    steps = exchange.connect(endpoint, address, _timeout_ms(timeout), options)
    control, message = run(steps, _whole_timeout(timeout))
    return connected(control, message, timeout, options.raw_fd)


async def connect_async(address: HvAddress, timeout: Optional[float], options: Options) -> Any:
    endpoint = Endpoint.of(options.endpoint)
    if vsock.takes_over(endpoint):
        # The kernel's connect waits on a thread, and ends by its timeout.
        bounded = _DEFAULT_TIMEOUT if timeout is None else timeout
        loop = asyncio.get_running_loop()
        sock = await loop.run_in_executor(None, vsock.connect, address, bounded)
        sock.setblocking(False)
        return sock
    steps = exchange.connect(endpoint, address, _timeout_ms(timeout), options)
    control, message = await run_async(steps, _whole_timeout(timeout))
    return connected(control, message, 0.0, options.raw_fd)


def create_server(address: HvAddress, backlog: int, options: Options) -> Any:
    endpoint = Endpoint.of(options.endpoint)
    if vsock.takes_over(endpoint):
        return vsock.listen(address, backlog)
    sock, bound = run(exchange.listen(endpoint, address, backlog, options), REPLY_TIMEOUT)
    return Listener(sock, bound, options.raw_fd)


async def create_server_async(address: HvAddress, backlog: int, options: Options) -> Any:
    endpoint = Endpoint.of(options.endpoint)
    if vsock.takes_over(endpoint):
        listener: Any = vsock.listen(address, backlog)
    else:
        sock, bound = await run_async(exchange.listen(endpoint, address, backlog, options), REPLY_TIMEOUT)
        listener = Listener(sock, bound, options.raw_fd)
    listener.setblocking(False)
    return listener


def why(address: HvAddress, listening: bool, options: Options) -> Explanation:
    endpoint = Endpoint.of(options.endpoint)
    if vsock.takes_over(endpoint):
        raise _no_broker(f"explain {address.url()}")
    return run(exchange.explain(endpoint, address, listening, options), REPLY_TIMEOUT)


def lookup_service(name: str, options: Options) -> UUID:
    return _lookup(LOOKUP_SERVICE, name, options)


def lookup_partition(name: str, options: Options) -> UUID:
    return _lookup(LOOKUP_PARTITION, name, options)


def _lookup(what: int, name: str, options: Options) -> UUID:
    endpoint = Endpoint.of(options.endpoint)
    if vsock.takes_over(endpoint):
        raise _no_broker(f"resolve the name \"{name}\"")
    return run(exchange.lookup(endpoint, what, name), REPLY_TIMEOUT)


def register(name: str, service: UUID, purpose: str, options: Options) -> Lease:
    endpoint = Endpoint.of(options.endpoint)
    if vsock.takes_over(endpoint):
        raise _no_broker(f"register the service \"{name}\"")
    sock = run(exchange.register(endpoint, service, name, purpose), REPLY_TIMEOUT)
    return Lease(sock, name, str(service))


async def run_async(steps: Steps[T], timeout: Optional[float]) -> T:
    """Runs a request without blocking the event loop. A cancelled one ends its endpoint connection."""
    loop = asyncio.get_running_loop()
    deadline = None if timeout is None else loop.time() + timeout
    try:
        while True:
            try:
                waits_for = next(steps)
            except StopIteration as result:
                return result.value
            left = None if deadline is None else deadline - loop.time()
            if left is not None and left <= 0:
                raise no_reply()
            if waits_for is None:
                await asyncio.sleep(0.01)
                continue
            try:
                await asyncio.wait_for(readable(waits_for.fileno()), left)
            except asyncio.TimeoutError:
                raise no_reply() from None
    finally:
        steps.close()


async def readable(descriptor: int) -> None:
    """Waits until a descriptor is readable."""
    loop = asyncio.get_running_loop()
    ready = loop.create_future()
    done: Callable[[], None] = lambda: None if ready.done() else ready.set_result(None)
    loop.add_reader(descriptor, done)
    try:
        await ready
    finally:
        loop.remove_reader(descriptor)
