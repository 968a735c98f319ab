"""Hyper-V sockets: reach services in any virtual machine or container of the machine by GUID or name.

>>> import hvsock
>>> with hvsock.connect(("parent", "HV Socket Demo")) as sock:
...     sock.sendall(b"hello")
...     sock.shutdown(hvsock.SHUT_WR)
...     print(sock.recv(100))

An address is a pair of a partition (a word such as ``parent``, a GUID or a name) and a service (a GUID, a vsock
port or a name), or an ``hvsock://`` URL. Sockets have the methods of :class:`socket.socket`. What was refused is an
:class:`OSError` of the class :class:`Refused`, with the reason in ``refusal``. :mod:`hvsock.asyncio` has streams.
"""

from socket import SHUT_RD, SHUT_RDWR, SHUT_WR, SOCK_STREAM

from ._api import (
    Lease,
    Listener,
    Socket,
    connect,
    create_server,
    implementation,
    lookup_partition,
    lookup_service,
    register,
    why,
)
from ._peer import Peer
from .addresses import Address, AddressLike, InvalidAddress, PartitionLike, ServiceLike, container_vm_id, service_of_port
from .constants import (
    AF_HYPERV,
    HV_GUID_BROADCAST,
    HV_GUID_CHILDREN,
    HV_GUID_LOOPBACK,
    HV_GUID_PARENT,
    HV_GUID_SILOHOST,
    HV_GUID_VSOCK_TEMPLATE,
    HV_GUID_WILDCARD,
    HV_GUID_ZERO,
    HV_PROTOCOL_RAW,
    HVSOCKET_ADDRESS_FLAG_PASSTHRU,
    HVSOCKET_CONNECT_TIMEOUT,
    HVSOCKET_CONNECT_TIMEOUT_MAX,
    HVSOCKET_CONNECTED_SUSPEND,
    HVSOCKET_CONTAINER_PASSTHRU,
    HVSOCKET_HIGH_VTL,
)
from .refusals import (
    Explanation,
    Fix,
    Refusal,
    Refused,
    RefusedConnection,
    RefusedPermission,
    RefusedTimeout,
    Reset,
    Step,
)

__version__ = "0.1.0"

__all__ = [
    "AF_HYPERV",
    "Address",
    "AddressLike",
    "Explanation",
    "Fix",
    "HVSOCKET_ADDRESS_FLAG_PASSTHRU",
    "HVSOCKET_CONNECTED_SUSPEND",
    "HVSOCKET_CONNECT_TIMEOUT",
    "HVSOCKET_CONNECT_TIMEOUT_MAX",
    "HVSOCKET_CONTAINER_PASSTHRU",
    "HVSOCKET_HIGH_VTL",
    "HV_GUID_BROADCAST",
    "HV_GUID_CHILDREN",
    "HV_GUID_LOOPBACK",
    "HV_GUID_PARENT",
    "HV_GUID_SILOHOST",
    "HV_GUID_VSOCK_TEMPLATE",
    "HV_GUID_WILDCARD",
    "HV_GUID_ZERO",
    "HV_PROTOCOL_RAW",
    "InvalidAddress",
    "Lease",
    "Listener",
    "PartitionLike",
    "Peer",
    "Refusal",
    "Refused",
    "RefusedConnection",
    "RefusedPermission",
    "RefusedTimeout",
    "Reset",
    "SHUT_RD",
    "SHUT_RDWR",
    "SHUT_WR",
    "SOCK_STREAM",
    "ServiceLike",
    "Socket",
    "Step",
    "connect",
    "container_vm_id",
    "create_server",
    "implementation",
    "lookup_partition",
    "lookup_service",
    "register",
    "service_of_port",
    "why",
]
