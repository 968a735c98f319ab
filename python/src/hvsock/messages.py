"""The messages of the endpoint protocol (docs/endpoint.md) as bytes. No input or output.

A message is its kind in words and its fields by name, as in the test vectors. The layouts are data, so that each
is written once for both directions.
"""

import struct
from typing import Any, Dict, List, NamedTuple, Optional, Tuple, Union

from .addresses import UUID, ZERO

VERSION = 1
MAX_MESSAGE = 4096
MAX_DESCRIPTORS = 5

RAW_FD, DRY_RUN, EXPLAIN = 1, 2, 4
#: The transports that this client can use, as bits.
DESCRIPTOR = 1

LOOKUP_SERVICE, LOOKUP_PARTITION = 1, 2
CONNECTED_SUSPEND = 4

Fields = Dict[str, Any]


class DecodeError(ValueError):
    """Bytes that are no message. ``kind`` says why, in one word of the test vectors; ``field`` names the field."""

    def __init__(self, kind: str, field: Optional[str] = None) -> None:
        super().__init__(f"a message of the endpoint protocol is invalid: {kind} {field or ''}".rstrip())
        self.kind = kind
        self.field = field


class _U32(NamedTuple):
    name: str
    valid: Optional[Tuple[int, ...]] = None
    nonzero: bool = False
    most: int = 0xFFFFFFFF


class _U64(NamedTuple):
    name: str


class _Guid(NamedTuple):
    name: str


class _Text(NamedTuple):
    """Text that fills the rest of the message."""

    name: str


class _TwoTexts(NamedTuple):
    """The length of the first text, the first text, and the second one, which fills the rest."""

    first: str
    second: str


_Field = Union[_U32, _U64, _Guid, _Text, _TwoTexts]


class _Layout(NamedTuple):
    name: str
    fields: List[_Field]
    has_flags: bool = False


_TRANSPORTS = _U32("transports", nonzero=True)
_TRANSPORT = _U32("transport", valid=(1, 2, 4, 8, 16))
_ADDRESS: List[_Field] = [_Guid("vm"), _Guid("service")]
_ENDS: List[_Field] = [_Guid("local_vm"), _Guid("local_service"), _Guid("peer_vm"), _Guid("peer_service")]
_REASON: List[_Field] = [_U32("code"), _U32("errno"), _Text("detail")]
_NAMES = _TwoTexts("partition_name", "service_name")
_OPTIONS = (0x01, 0x02, 0x04, 0x08, 0x100, 0x101)

TO_BROKER = {
    0x01: _Layout("LOOKUP", [_U32("what", valid=(1, 2, 3)), _Text("name")]),
    0x02: _Layout("SET_OPTION", [_U32("option", valid=_OPTIONS), _U32("value")]),
    0x03: _Layout("CONNECT", [_U32("timeout"), _TRANSPORTS, *_ADDRESS], True),
    0x04: _Layout("LISTEN", [_U32("backlog"), _TRANSPORTS, *_ADDRESS], True),
    0x05: _Layout("REGISTER", [_Guid("service"), _TwoTexts("name", "purpose")]),
    0x06: _Layout("ACCEPTED", [_U64("connection")]),
    0x07: _Layout("SHUTDOWN", []),
    0x08: _Layout("CONNECT_NAMED", [_U32("timeout"), _TRANSPORTS, *_ADDRESS, _NAMES], True),
    0x09: _Layout("LISTEN_NAMED", [_U32("backlog"), _TRANSPORTS, *_ADDRESS, _NAMES], True),
    0x0A: _Layout("DESCRIBE", [_TwoTexts("action", "detail")]),
    0x0B: _Layout("ARENA_CHANGED", []),
    0x0C: _Layout("ARENA_GROW", []),
    0x0D: _Layout("CID_OF", [_Guid("vm")]),
    0x0E: _Layout("ATTACH", [_U32("filler", most=4096)]),
}

FROM_BROKER = {
    0x81: _Layout("FOUND", [_Guid("guid")]),
    0x82: _Layout("CONNECTED", [_TRANSPORT, _U64("connection"), *_ENDS]),
    0x83: _Layout("LISTENING", [_U32("backlog"), _U64("listener")]),
    0x84: _Layout("REGISTERED", []),
    0x85: _Layout(
        "INCOMING",
        [_TRANSPORT, _U64("connection"), *_ENDS, _U32("pid"), _U32("uid"), _U32("gid"), _Text("partition")],
    ),
    0x86: _Layout("REFUSED", _REASON),
    0x87: _Layout("SHUTDOWN", []),
    0x88: _Layout("RESET", _REASON),
    0x89: _Layout("EXPLAINED", _REASON),
    0x8A: _Layout("SUSPENDED", [_U32("suspended", valid=(0, 1))]),
    0x8B: _Layout("BOUND", [_U32("backlog"), _U64("listener"), *_ADDRESS]),
    0x8C: _Layout("STREAM_RESET", [_U32("slot"), _U32("seq"), *_REASON]),
    0x8D: _Layout("CID", [_U32("cid")]),
    0x8E: _Layout("ATTACHABLE", []),
}

_Table = Dict[int, _Layout]


def _truncated(text: bytes, room: int) -> bytes:
    """As much of the text as there is room for, up to a character boundary."""
    if len(text) <= room:
        return text
    while room > 0 and text[room] & 0xC0 == 0x80:
        room -= 1
    return text[: max(room, 0)]


def _encode(table: _Table, kind: str, fields: Fields) -> bytes:
    number = next(number for number, layout in table.items() if layout.name == kind)
    message = bytearray(struct.pack("<BBH", VERSION, number, fields.get("flags", 0)))
    for field in table[number].fields:
        if isinstance(field, _U32):
            message += struct.pack("<I", fields[field.name])
        elif isinstance(field, _U64):
            message += struct.pack("<Q", fields[field.name])
        elif isinstance(field, _Guid):
            message += fields[field.name].bytes_le
        elif isinstance(field, _Text):
            message += _truncated(fields[field.name].encode(), MAX_MESSAGE - len(message))
        else:
            first, second = fields[field.first].encode(), fields[field.second].encode()
            message += struct.pack("<I", len(first))
            message += _truncated(first + second, MAX_MESSAGE - len(message))
    return bytes(message)


class _Reader:
    def __init__(self, message: bytes) -> None:
        self.rest = memoryview(message)

    def take(self, count: int) -> bytes:
        if len(self.rest) < count:
            raise DecodeError("truncated")
        taken, self.rest = self.rest[:count], self.rest[count:]
        return bytes(taken)

    def number(self, count: int) -> int:
        return int.from_bytes(self.take(count), "little")

    def text(self, count: int) -> str:
        try:
            return self.take(count).decode()
        except UnicodeDecodeError:
            raise DecodeError("text") from None


def _decode(table: _Table, message: bytes) -> Tuple[str, Fields]:
    if len(message) > MAX_MESSAGE:
        raise DecodeError("too_long")
    if len(message) < 4:
        raise DecodeError("truncated")
    version, kind, flags = struct.unpack_from("<BBH", message)
    if version != VERSION:
        raise DecodeError("version")
    layout = table.get(kind)
    known_flags = RAW_FD | DRY_RUN | EXPLAIN
    if flags & ~known_flags or flags and not (layout and layout.has_flags):
        raise DecodeError("value", "flags")
    if layout is None:
        raise DecodeError("kind")
    fields: Fields = {"flags": flags} if layout.has_flags else {}
    reader = _Reader(message[4:])
    for field in layout.fields:
        if isinstance(field, _U32):
            value = reader.number(4)
            is_valid = field.valid is None or value in field.valid
            if not is_valid or value < field.nonzero or value > field.most:
                raise DecodeError("value", field.name)
            fields[field.name] = value
        elif isinstance(field, _U64):
            fields[field.name] = reader.number(8)
        elif isinstance(field, _Guid):
            fields[field.name] = UUID(bytes_le=reader.take(16))
        elif isinstance(field, _Text):
            fields[field.name] = reader.text(len(reader.rest))
        else:
            fields[field.first] = reader.text(reader.number(4))
            fields[field.second] = reader.text(len(reader.rest))
    for id_field in ("partition", "service"):
        guid = "vm" if id_field == "partition" else "service"
        if fields.get(f"{id_field}_name") and fields[guid] != ZERO:
            raise DecodeError("value", id_field)
    if reader.rest:
        raise DecodeError("trailing")
    return layout.name, fields


def encode(kind: str, **fields: Any) -> bytes:
    """The bytes of a message to the broker."""
    return _encode(TO_BROKER, kind, fields)


def decode(message: bytes) -> Tuple[str, Fields]:
    """The kind and the fields of a message from the broker. Raises :class:`DecodeError`."""
    return _decode(FROM_BROKER, message)


def encode_from_broker(kind: str, **fields: Any) -> bytes:
    """The bytes of a message from the broker, for tests and fakes."""
    return _encode(FROM_BROKER, kind, fields)


def decode_to_broker(message: bytes) -> Tuple[str, Fields]:
    """The kind and the fields of a message to the broker, for tests and fakes."""
    return _decode(TO_BROKER, message)
