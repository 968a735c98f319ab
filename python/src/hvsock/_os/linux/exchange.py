"""Requests to the broker: one endpoint connection each.

A request is a generator, so that blocking and asynchronous callers share it. It yields the socket that must be
readable before it goes on, or ``None`` to try again in some milliseconds, and returns its result. Closing the
generator closes its endpoint connection.
"""

import array
import errno
import os
import select
import socket
import time
from typing import Any, Dict, Generator, List, NamedTuple, NoReturn, Optional, Set, Tuple, TypeVar

from ..._options import Options
from ...addresses import UUID, HvAddress
from ...messages import (
    CONNECTED_SUSPEND,
    DESCRIPTOR,
    DRY_RUN,
    EXPLAIN,
    LOOKUP_PARTITION,
    LOOKUP_SERVICE,
    MAX_DESCRIPTORS,
    MAX_MESSAGE,
    RAW_FD,
    DecodeError,
    Fields,
    decode,
    encode,
)
from ...refusals import (
    RESET,
    VIOLATION,
    Explanation,
    Refusal,
    broker_gone,
    parse_explanation,
    protocol_error,
    refused,
    reset,
)
from .endpoints import Endpoint

T = TypeVar("T")
Steps = Generator[Optional[socket.socket], None, T]

#: How long a request waits for a broker that is busy, in seconds, beyond the timeout of its peer.
REPLY_TIMEOUT = 5.0
_RETRY_INTERVAL = 0.01
#: The longest wait of one system call, which has 31 bits of milliseconds, in seconds.
_LONGEST_WAIT = 1e6

#: The endpoints whose brokers do not know the messages that version 1 has gained.
_older_brokers: Set[str] = set()


class Message(NamedTuple):
    kind: str
    fields: Fields
    descriptors: List[int]

    def close(self) -> None:
        while self.descriptors:
            os.close(self.descriptors.pop())


def receive(sock: socket.socket) -> Message:
    """Receives one message of the broker. Raises ``BlockingIOError`` if there is none, and
    :class:`~hvsock.Reset` if the broker is gone or breaks the protocol."""
    space = socket.CMSG_SPACE(MAX_DESCRIPTORS * array.array("i").itemsize)
    flags = socket.MSG_DONTWAIT | socket.MSG_CMSG_CLOEXEC
    try:
        data, ancillary, got, _ = sock.recvmsg(MAX_MESSAGE + 1, space, flags)
    except ConnectionResetError:
        # Linux reports this once before it delivers what the other side had sent.
        try:
            data, ancillary, got, _ = sock.recvmsg(MAX_MESSAGE + 1, space, flags)
        except ConnectionResetError:
            raise broker_gone() from None
    descriptors = array.array("i")
    for level, type_, payload in ancillary:
        if level == socket.SOL_SOCKET and type_ == socket.SCM_RIGHTS:
            whole = len(payload) - len(payload) % descriptors.itemsize
            descriptors.frombytes(payload[:whole])
    message = Message("", {}, list(descriptors))
    try:
        if not data:
            raise broker_gone()
        if got & socket.MSG_CTRUNC:
            raise OSError(errno.EMFILE, "this process has no free file descriptor for a message of the broker")
        kind, fields = decode(data)
    except DecodeError as error:
        message.close()
        raise protocol_error(str(error)) from None
    except BaseException:
        message.close()
        raise
    return Message(kind, fields, message.descriptors)


def send(sock: socket.socket, kind: str, **fields: Any) -> None:
    """Sends one message to the broker. Waits for free space for a bounded time."""
    data = encode(kind, **fields)
    deadline = time.monotonic() + REPLY_TIMEOUT
    while True:
        try:
            sock.send(data, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
            return
        except BlockingIOError:
            if not wait(sock, select.POLLOUT, deadline):
                raise TimeoutError(errno.ETIMEDOUT, "the broker does not read its endpoint") from None


def remaining(deadline: Optional[float]) -> Optional[float]:
    return None if deadline is None else max(0.0, deadline - time.monotonic())


def wait(sock: socket.socket, events: int, deadline: Optional[float]) -> bool:
    """Waits until the socket is ready, or has ended; ``False`` at the deadline."""
    poll = select.poll()
    poll.register(sock, events)
    while True:
        left = remaining(deadline)
        if poll.poll(None if left is None else int(min(left, _LONGEST_WAIT) * 1000) + 1):
            return True
        if left is not None and left <= _LONGEST_WAIT:
            return False


def run(steps: Steps[T], timeout: Optional[float]) -> T:
    """Runs a request and blocks until its result."""
    deadline = None if timeout is None else time.monotonic() + timeout
    try:
        while True:
            try:
                waits_for = next(steps)
            except StopIteration as result:
                return result.value
            left = remaining(deadline)
            if left == 0.0:
                raise no_reply()
            if waits_for is None:
                time.sleep(_RETRY_INTERVAL)
            elif not wait(waits_for, select.POLLIN, deadline):
                raise no_reply()
    finally:
        steps.close()


def no_reply() -> TimeoutError:
    return TimeoutError(errno.ETIMEDOUT, "timed out: the broker did not answer")


class Opened(NamedTuple):
    """An endpoint connection, and the path of its endpoint."""

    sock: socket.socket
    path: str


def _open(endpoint: Endpoint) -> Steps[Opened]:
    """Connects to the first endpoint where a broker listens."""
    for path in endpoint.paths:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            sock.setblocking(False)
            while True:
                try:
                    sock.connect(path)
                    return Opened(sock, path)
                except BlockingIOError:
                    yield None
        except (FileNotFoundError, NotADirectoryError, ConnectionRefusedError):
            sock.close()
        except OSError as error:
            sock.close()
            words = f"cannot connect to the broker's endpoint {path!r}: {error.strerror or error}"
            raise type(error)(error.errno or errno.EINVAL, words) from None
        except BaseException:
            sock.close()
            raise
    tried = " or ".join(repr(path) for path in endpoint.paths)
    raise FileNotFoundError(errno.ENOENT, f"no hvsock broker listens at {tried}; help: start one with `hvsock broker`")


def _reply(sock: socket.socket) -> Steps[Message]:
    while True:
        try:
            return receive(sock)
        except BlockingIOError:
            yield sock


def _is_older_broker(message: Message) -> bool:
    fields = message.fields
    return message.kind == "REFUSED" and fields["code"] == RESET and VIOLATION in fields["detail"]


def _unexpected(message: Message) -> NoReturn:
    message.close()
    raise protocol_error(f"the message {message.kind} is unexpected")


class _OlderBroker(Exception):
    """The broker does not know a message or flag of the request."""


def _lookup(sock: socket.socket, what: int, name: str) -> Steps[UUID]:
    send(sock, "LOOKUP", what=what, name=name)
    message = yield from _reply(sock)
    if message.kind == "FOUND":
        message.close()
        found: UUID = message.fields["guid"]
        return found
    if message.kind == "REFUSED":
        kind = "partition" if what == LOOKUP_PARTITION else "service"
        raise _refused_by(message, f"cannot resolve the {kind} \"{name}\"")
    _unexpected(message)


def _refused_by(message: Message, what: str) -> OSError:
    fields = message.fields
    message.close()
    if message.kind == "EXPLAINED":
        explanation = parse_explanation(fields["code"], fields["detail"])
        refusal = explanation.refusal or Refusal(RESET, "the broker refused it for no reason")
        return refused(refusal, what, explanation)
    return refused(Refusal.from_wire(fields["code"], fields["detail"]), what)


def _ask(
    opened: Opened, request: str, address: HvAddress, first: Dict[str, int], flags: int, options: Options
) -> Steps[Message]:
    """Sends a CONNECT or LISTEN and returns the answer."""
    sock = opened.sock
    older = opened.path in _older_brokers
    fields: Fields = {**first, "transports": DESCRIPTOR}
    if older and flags & EXPLAIN:
        flags &= ~EXPLAIN
    vm, service = address.ids()
    if older:
        if isinstance(address.partition, str):
            vm = yield from _lookup(sock, LOOKUP_PARTITION, address.partition)
        if isinstance(address.service, str):
            service = yield from _lookup(sock, LOOKUP_SERVICE, address.service)
    if options.connected_suspend:
        send(sock, "SET_OPTION", option=CONNECTED_SUSPEND, value=1)
    if options.describe is not None and not older and request == "CONNECT":
        action, detail = options.describe
        # The broker keeps less than this of both.
        send(sock, "DESCRIBE", action=action[:32], detail=detail[:900])
    if address.has_name() and not older:
        fields["partition_name"] = address.partition if isinstance(address.partition, str) else ""
        fields["service_name"] = address.service if isinstance(address.service, str) else ""
        request += "_NAMED"
    send(sock, request, vm=vm, service=service, flags=flags, **fields)
    message = yield from _reply(sock)
    if _is_older_broker(message) and not older:
        message.close()
        raise _OlderBroker
    return message


def _request(
    endpoint: Endpoint, request: str, address: HvAddress, first: Dict[str, int], flags: int, options: Options
) -> Steps[Tuple[socket.socket, Message]]:
    """Sends a request on an endpoint connection of its own, and returns both the connection and the answer."""
    while True:
        opened = yield from _open(endpoint)
        try:
            message = yield from _ask(opened, request, address, first, flags, options)
            return opened.sock, message
        except _OlderBroker:
            opened.sock.close()
            _older_brokers.add(opened.path)
        except BrokenPipeError:
            # The broker closed after a refusal, which is there to read.
            try:
                message = receive(opened.sock)
            except BlockingIOError:
                raise broker_gone() from None
            finally:
                opened.sock.close()
            raise _refused_by(message, f"cannot ask for {address.url()}") from None
        except BaseException:
            opened.sock.close()
            raise


def connect(
    endpoint: Endpoint, address: HvAddress, timeout_ms: int, options: Options
) -> Steps[Tuple[socket.socket, Message]]:
    """Requests a connection. Returns its control and CONNECTED with the data descriptor."""
    flags = EXPLAIN | (RAW_FD if options.raw_fd else 0)
    first = {"timeout": timeout_ms}
    sock, message = yield from _request(endpoint, "CONNECT", address, first, flags, options)
    if message.kind == "CONNECTED":
        if message.fields["transport"] == DESCRIPTOR and len(message.descriptors) == 1:
            return sock, message
    sock.close()
    if message.kind in ("REFUSED", "EXPLAINED"):
        raise _refused_by(message, f"cannot connect to {address.url()}")
    _unexpected(message)


def listen(
    endpoint: Endpoint, address: HvAddress, backlog: int, options: Options
) -> Steps[Tuple[socket.socket, Message]]:
    """Requests a listener. Returns its endpoint connection and BOUND, also where the broker says LISTENING."""
    flags = EXPLAIN | (RAW_FD if options.raw_fd else 0)
    first = {"backlog": backlog}
    sock, message = yield from _request(endpoint, "LISTEN", address, first, flags, options)
    if message.kind in ("BOUND", "LISTENING"):
        vm, service = address.ids()
        message.close()
        return sock, Message("BOUND", {"vm": vm, "service": service, **message.fields}, [])
    sock.close()
    if message.kind in ("REFUSED", "EXPLAINED"):
        raise _refused_by(message, f"cannot listen at {address.url()}")
    _unexpected(message)


def explain(endpoint: Endpoint, address: HvAddress, listening: bool, options: Options) -> Steps[Explanation]:
    """Asks what a connect or listen would do, and does nothing."""
    request, first = ("LISTEN", {"backlog": 128}) if listening else ("CONNECT", {"timeout": 0})
    sock, message = yield from _request(endpoint, request, address, first, DRY_RUN, options)
    sock.close()
    message.close()
    if message.kind == "EXPLAINED":
        return parse_explanation(message.fields["code"], message.fields["detail"])
    if message.kind == "REFUSED":
        return Explanation(Refusal.from_wire(message.fields["code"], message.fields["detail"]))
    _unexpected(message)


def lookup(endpoint: Endpoint, what: int, name: str) -> Steps[UUID]:
    """Resolves the name of a service or partition."""
    opened = yield from _open(endpoint)
    try:
        return (yield from _lookup(opened.sock, what, name))
    finally:
        opened.sock.close()


def register(endpoint: Endpoint, service: UUID, name: str, purpose: str) -> Steps[socket.socket]:
    """Takes a lease. Returns the endpoint connection that it lives as long as."""
    opened = yield from _open(endpoint)
    try:
        send(opened.sock, "REGISTER", service=service, name=name, purpose=purpose)
        message = yield from _reply(opened.sock)
        if message.kind == "REGISTERED":
            message.close()
            return opened.sock
        if message.kind == "REFUSED":
            raise _refused_by(message, f"cannot register the service \"{name}\"")
        _unexpected(message)
    except BaseException:
        opened.sock.close()
        raise


def reset_by(message: Message, what: str) -> OSError:
    """The exception for a RESET."""
    message.close()
    return reset(Refusal.from_wire(message.fields["code"], message.fields["detail"]), what)
