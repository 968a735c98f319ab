"""Addresses: the text and the bytes of GUIDs, names, URLs and socket addresses. No input or output."""

import hashlib
import re
import struct
import unicodedata
import urllib.parse
import uuid
from typing import NamedTuple, Optional, Tuple, Union

from . import constants

UUID = uuid.UUID

ZERO = UUID(constants.HV_GUID_ZERO)
WILDCARD = ZERO
BROADCAST = UUID(constants.HV_GUID_BROADCAST)
CHILDREN = UUID(constants.HV_GUID_CHILDREN)
LOOPBACK = UUID(constants.HV_GUID_LOOPBACK)
PARENT = UUID(constants.HV_GUID_PARENT)
SILOHOST = UUID(constants.HV_GUID_SILOHOST)
VSOCK_TEMPLATE = UUID(constants.HV_GUID_VSOCK_TEMPLATE)

#: The words for partitions. ``zero`` and ``wildcard`` are one value, which prints as ``wildcard``.
WELL_KNOWN = {
    "wildcard": WILDCARD,
    "zero": ZERO,
    "broadcast": BROADCAST,
    "children": CHILDREN,
    "loopback": LOOPBACK,
    "parent": PARENT,
    "silohost": SILOHOST,
}

_TEMPLATE_MASK = (1 << 96) - 1
_CONTAINERS = UUID("cab70344-facb-41e4-b5e5-ab6592283e6e")
_GUID = re.compile(
    r"(?:urn:uuid:)?(?:[0-9a-f]{32}|[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})",
    re.IGNORECASE | re.ASCII,
)
_PARTITION_PART = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*", re.ASCII)
_SCHEME = "hvsock://"

#: What stands for a partition or service: a GUID, a name, or for a service a vsock port.
PartitionLike = Union[str, UUID]
ServiceLike = Union[str, int, UUID]
AddressLike = Union[str, Tuple[PartitionLike, ServiceLike]]


class InvalidAddress(ValueError):
    """Text that is no address. ``kind`` says why, in one word of the test vectors."""

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(text)
        self.kind = kind


class Address(NamedTuple):
    """The GUIDs of a partition and a service as text, as ``AF_HYPERV`` has them on Windows."""

    vm_id: str
    service_id: str

    def __str__(self) -> str:
        return HvAddress(UUID(self.vm_id), UUID(self.service_id)).url()


def parse_guid(text: str) -> UUID:
    """Parses every common format: either case, with or without hyphens, in braces or parentheses, or a URN."""
    bare = text.strip()
    for opening, closing in (("(", ")"), ("{", "}")):
        if bare.startswith(opening) and bare.endswith(closing):
            bare = bare[1:-1]
            break
    if not _GUID.fullmatch(bare):
        shown = text[:64]
        raise InvalidAddress("guid", f"{shown!r} is not a GUID; write 32 hexadecimal digits, with or without hyphens")
    return UUID(bare)


def _is_guid(text: str) -> bool:
    try:
        parse_guid(text)
    except InvalidAddress:
        return False
    return True


def service_of_port(port: int) -> UUID:
    """The ``ServiceId`` of a vsock port, by Microsoft's template."""
    if not 0 <= port <= 0xFFFFFFFF:
        raise InvalidAddress("port_too_large", f"a vsock port is a number up to 4294967295, not {port}")
    return UUID(int=VSOCK_TEMPLATE.int & _TEMPLATE_MASK | port << 96)


def port_of_service(service: UUID) -> Optional[int]:
    """The vsock port of a ``ServiceId`` on the template; ``None`` for any other."""
    if service.int & _TEMPLATE_MASK != VSOCK_TEMPLATE.int & _TEMPLATE_MASK:
        return None
    return service.int >> 96


def _mix(bits: int) -> int:
    """The 64-bit finalizer of MurmurHash3."""
    mask = (1 << 64) - 1
    bits = (bits ^ bits >> 33) * 0xFF51AFD7ED558CCD & mask
    bits = (bits ^ bits >> 33) * 0xC4CEB9FE1A85EC53 & mask
    return bits ^ bits >> 33


def vsock_alias(service: UUID) -> Optional[int]:
    """The vsock port by which ``AF_VSOCK`` programs reach a service off the template."""
    if port_of_service(service) is not None or service == ZERO:
        return None
    first, last = service.int >> 64, service.int & (1 << 64) - 1
    return 0x40000000 + (_mix(first ^ _mix(last)) >> 34)


def _uuid5(namespace: UUID, name: bytes) -> UUID:
    # `uuid.uuid5` takes bytes as the name from Python 3.12 on only.
    digest = bytearray(hashlib.sha1(namespace.bytes + name, usedforsecurity=False).digest()[:16])
    return UUID(bytes=bytes(digest), version=5)


def container_vm_id(runtime_id: str) -> UUID:
    """The ``VmId`` of the container with this id of its runtime, as Windows derives it."""
    return _uuid5(_CONTAINERS, runtime_id.upper().encode("utf-16-le"))


def nested_vm_id(vm: UUID, container: UUID) -> UUID:
    """The ``VmId`` by which a host knows a container in one of its virtual machines."""
    return _uuid5(vm, container.bytes)


def _is_default_ignorable(code: int) -> bool:
    """Unicode's property Default_Ignorable_Code_Point, and the interlinear annotation characters."""
    return (
        code in (0xAD, 0x34F, 0x61C, 0x115F, 0x1160, 0x17B4, 0x17B5, 0x3164, 0xFEFF, 0xFFA0)
        or 0x180B <= code <= 0x180F
        or 0x200B <= code <= 0x200F
        or 0x202A <= code <= 0x202E
        or 0x2060 <= code <= 0x206F
        or 0xFE00 <= code <= 0xFE0F
        or 0xFFF0 <= code <= 0xFFFB
        or 0x1BCA0 <= code <= 0x1BCA3
        or 0x1D173 <= code <= 0x1D17A
        or 0xE0000 <= code <= 0xE0FFF
    )


def _is_printable(character: str) -> bool:
    if character == " ":
        return True
    if _is_default_ignorable(ord(character)) or character == "\u2800":
        return False
    category = unicodedata.category(character)
    # Unassigned here may be assigned in the broker's version of Unicode, which decides.
    return category == "Cn" and ord(character) & 0xFFFE != 0xFFFE or category[0] not in "CZ"


def _check_length(text: str, limit: int) -> None:
    length = len(text.encode("utf-8", "surrogatepass"))
    if length > limit:
        raise InvalidAddress("too_long", f"a name has at most {limit} bytes; this one has {length}")


def check_service_name(text: str) -> str:
    """A service's friendly name: 1 to 255 bytes of visible characters and spaces that are not at an end."""
    if not text.strip():
        raise InvalidAddress("empty", "a service's name must not be empty")
    _check_length(text, 255)
    for character in text:
        if not _is_printable(character):
            raise InvalidAddress("character", f"{character!r} is not allowed in a service's name")
    if text != text.strip(" "):
        raise InvalidAddress("character", "a service's name cannot start or end with white space")
    digits = text[1:] if text.startswith("+") else _port_digits(text)
    if _is_guid(text) or (re.fullmatch("[0-9]+", digits) and int(digits) <= 0xFFFFFFFF):
        raise InvalidAddress("taken", f"{text!r} already means a service's GUID or a vsock port")
    return text


def _check_partition_part(text: str) -> None:
    if not text:
        raise InvalidAddress("empty", "a partition's name must not be empty")
    _check_length(text, 63)
    if not _PARTITION_PART.fullmatch(text):
        raise InvalidAddress(
            "character",
            f"{text!r} is no partition's name: letters, digits, `.`, `_` and `-` are allowed, after a letter or digit",
        )
    if text.lower() in WELL_KNOWN or text.lower() in ("host", "any", "self") or _is_guid(text):
        raise InvalidAddress("taken", f"{text!r} already means a partition seen from the caller")


def check_partition_name(text: str) -> str:
    """A partition's name, or that of a container in a virtual machine: ``web/box``."""
    vm, slash, container = text.partition("/")
    if slash and vm and container:
        _check_partition_part(vm)
        _check_partition_part(container)
    else:
        _check_partition_part(text)
    return text


def parse_partition(value: PartitionLike) -> Union[UUID, str]:
    """A partition: a word such as ``parent``, a GUID, or else a name, which only a broker can resolve."""
    if isinstance(value, UUID):
        return value
    word = value.lower()
    word = "wildcard" if word == "any" else word
    if word in WELL_KNOWN:
        return WELL_KNOWN[word]
    if _is_guid(value):
        return parse_guid(value)
    return check_partition_name(value)


def _port_digits(text: str) -> str:
    """The digits of a vsock port, ``2761`` or ``port:2761``, or nothing. 32 digits alone are a GUID."""
    match = re.fullmatch("(port:)?([0-9]+)", text, re.ASCII)
    return match[2] if match and (match[1] or len(text) != 32) else ""


def parse_service(value: ServiceLike) -> Union[UUID, str]:
    """A service: a vsock port, a GUID, or else a friendly name, which only a broker can resolve."""
    if isinstance(value, UUID):
        return value
    if isinstance(value, int):
        return service_of_port(value)
    digits = _port_digits(value)
    if digits:
        # A longer number is too large in any case, and `int` refuses very long ones.
        return service_of_port(int(digits[:4000]))
    if _is_guid(value):
        return parse_guid(value)
    return check_service_name(value)


def partition_text(partition: Union[UUID, str]) -> str:
    """The word, GUID or name of a partition, as :func:`parse_partition` reads it."""
    if isinstance(partition, str):
        return partition
    for word, known in WELL_KNOWN.items():
        if known == partition:
            return word
    return str(partition)


def service_text(service: Union[UUID, str]) -> str:
    """The port, GUID or name of a service, as :func:`parse_service` reads it."""
    if isinstance(service, str):
        return service
    port = port_of_service(service)
    return str(service) if port is None else str(port)


class HvAddress(NamedTuple):
    """A partition and a service, each a GUID or a name for the broker to resolve."""

    partition: Union[UUID, str]
    service: Union[UUID, str]

    def url(self) -> str:
        """The address as a URL: ``hvsock://parent/HV%20Socket%20Demo``."""
        service = urllib.parse.quote(service_text(self.service), safe="-._~")
        return f"{_SCHEME}{partition_text(self.partition)}/{service}"

    def ids(self) -> Tuple[UUID, UUID]:
        """Both GUIDs, with the zero GUID in place of a name."""
        vm = self.partition if isinstance(self.partition, UUID) else ZERO
        service = self.service if isinstance(self.service, UUID) else ZERO
        return vm, service

    def has_name(self) -> bool:
        return isinstance(self.partition, str) or isinstance(self.service, str)


def _unquote(text: str) -> str:
    if re.search("%(?![0-9A-Fa-f]{2})", text):
        raise InvalidAddress("encoding", "the service's name is not percent-encoded UTF-8")
    try:
        return urllib.parse.unquote_to_bytes(text).decode()
    except UnicodeDecodeError:
        raise InvalidAddress("encoding", "the service's name is not percent-encoded UTF-8") from None


def parse_url(text: str) -> HvAddress:
    """Parses ``hvsock://PARTITION/SERVICE``."""
    if text[: len(_SCHEME)].lower() != _SCHEME:
        raise InvalidAddress("scheme", "an address starts with hvsock://, as in hvsock://parent/2761")
    rest = text[len(_SCHEME) :]
    partition, slash, service = rest.partition("/")
    if slash and not (partition.lower() in (*WELL_KNOWN, "any") or _is_guid(partition)):
        # The name of a partition may be nested. After a word or a GUID nothing but a service can follow.
        partition, _, service = rest.rpartition("/")
    if not partition or not service:
        raise InvalidAddress("no_service", "an address names a partition and a service, as in hvsock://parent/2761")
    decoded = _unquote(service)
    try:
        return HvAddress(parse_partition(partition), parse_service(decoded))
    except InvalidAddress as error:
        raise InvalidAddress("part", f"{text!r}: {error}") from error


def parse_address(value: AddressLike) -> HvAddress:
    """An address: an ``hvsock://`` URL, or a pair of a partition and a service."""
    if isinstance(value, str):
        return parse_url(value)
    partition, service = value
    return HvAddress(parse_partition(partition), parse_service(service))


def sockaddr_hv(vm: UUID, service: UUID, flags: int = 0) -> bytes:
    """The 36 bytes of ``SOCKADDR_HV``."""
    return struct.pack("<HH", constants.AF_HYPERV, flags) + vm.bytes_le + service.bytes_le


def parse_sockaddr_hv(data: bytes) -> Tuple[UUID, UUID, int]:
    """The partition, the service and the flags of a ``SOCKADDR_HV``."""
    if len(data) < 36:
        raise InvalidAddress("short", f"a SOCKADDR_HV has 36 bytes; these are {len(data)}")
    family, flags = struct.unpack_from("<HH", data)
    if family != constants.AF_HYPERV:
        raise InvalidAddress("family", f"a SOCKADDR_HV has the address family 34; this one has {family}")
    return UUID(bytes_le=bytes(data[4:20])), UUID(bytes_le=bytes(data[20:36])), flags


_SOCKADDR_VM = struct.Struct("=HHIIB3x")
_AF_VSOCK = 40


def sockaddr_vm(cid: int, port: int, flags: int = 0) -> bytes:
    """The 16 bytes of ``sockaddr_vm``, in native byte order."""
    return _SOCKADDR_VM.pack(_AF_VSOCK, 0, port, cid, flags)


def parse_sockaddr_vm(data: bytes) -> Tuple[int, int, int]:
    """The context id, the port and the flags of a ``sockaddr_vm``."""
    if len(data) < _SOCKADDR_VM.size:
        raise InvalidAddress("short", f"a sockaddr_vm has 16 bytes; these are {len(data)}")
    family, _, port, cid, flags = _SOCKADDR_VM.unpack_from(data)
    if family != _AF_VSOCK:
        raise InvalidAddress("family", f"a sockaddr_vm has the address family 40; this one has {family}")
    return cid, port, flags
