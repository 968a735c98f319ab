"""The kernel's AF_VSOCK, in a virtual machine without a broker."""

import errno
import fcntl
import os
import socket
import struct
from typing import Any, Optional, Tuple

from ... import addresses
from ..._system_socket import SystemSocket, opened
from ...addresses import UUID, Address, HvAddress
from ...refusals import Refusal, refused
from .endpoints import Endpoint, is_socket

_GET_LOCAL_CID = 0x7B9
_CID_ANY, _CID_LOCAL, _CID_HOST = 0xFFFFFFFF, 1, 2


def _local_cid() -> Optional[int]:
    try:
        device = os.open("/dev/vsock", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        cid: int = struct.unpack("=I", fcntl.ioctl(device, _GET_LOCAL_CID, bytes(4)))[0]
        return cid
    except OSError:
        return None
    finally:
        os.close(device)


def takes_over(endpoint: Endpoint, local_cid: Any = _local_cid) -> bool:
    """Whether a request to the endpoint uses AF_VSOCK now."""
    if endpoint.vsock != "without_broker":
        return endpoint.vsock == "always"
    if any(is_socket(path) for path in endpoint.paths):
        return False
    # The host has CID 2. Without a transport to a host there is none.
    cid = local_cid()
    return cid is not None and cid > _CID_HOST and cid != _CID_ANY


def _port(address: HvAddress) -> int:
    if address.has_name():
        raise ValueError(
            f"cannot resolve a name in {address.url()} without a broker; use the GUID or the vsock port of the "
            "service, and `parent` or `loopback` for the partition"
        )
    service = address.service
    assert isinstance(service, UUID)
    port = addresses.port_of_service(service)
    port = addresses.vsock_alias(service) if port is None else port
    if port is None or port == 0xFFFFFFFF:
        raise refused(Refusal(13), f"cannot use {address.url()}")
    return port


def _refused(address: HvAddress, error: OSError) -> OSError:
    code = {
        errno.ECONNRESET: 9,
        errno.ECONNREFUSED: 9,
        errno.ETIMEDOUT: 14,
        errno.EADDRINUSE: 12,
        errno.ENODEV: 7,
        errno.ENETUNREACH: 7,
        errno.EHOSTUNREACH: 7,
    }.get(error.errno or 0)
    if isinstance(error, socket.timeout):
        code = 14
    if code is None:
        return error
    return refused(Refusal(code), f"cannot connect to or listen at {address.url()} by AF_VSOCK")


def _to_address(name: Tuple[int, int]) -> Address:
    cid, port = name
    known = {_CID_ANY: addresses.WILDCARD, _CID_LOCAL: addresses.LOOPBACK, _CID_HOST: addresses.PARENT}
    vm = known.get(cid, addresses.LOOPBACK if cid == _local_cid() else addresses.ZERO)
    return Address(str(vm), str(addresses.service_of_port(port)))


def connect(address: HvAddress, timeout: Optional[float], module: Any = socket) -> SystemSocket:
    """Connects to the host or to this machine."""
    cids = {addresses.PARENT: _CID_HOST, addresses.LOOPBACK: _CID_LOCAL}
    port = _port(address)
    if address.partition not in cids:
        raise refused(Refusal(8), f"cannot connect to {address.url()}")
    cid = cids[address.partition]  # type: ignore[index]
    inner = opened(
        module,
        module.AF_VSOCK,
        0,
        timeout,
        lambda sock: sock.connect((cid, port)),
        lambda error: _refused(address, error),
    )
    return SystemSocket(inner, _to_address, "vsock")


def listen(address: HvAddress, backlog: int, module: Any = socket) -> SystemSocket:
    """Listens for the host and this machine, or for this machine only."""
    cids = {addresses.WILDCARD: _CID_ANY, addresses.LOOPBACK: _CID_LOCAL}
    port = _port(address)
    if address.partition not in cids:
        raise refused(Refusal(8), f"cannot listen at {address.url()}")
    cid = cids[address.partition]  # type: ignore[index]

    def start(sock: Any) -> None:
        sock.bind((cid, port))
        sock.listen(backlog)

    inner = opened(module, module.AF_VSOCK, 0, None, start, lambda error: _refused(address, error))
    return SystemSocket(inner, _to_address, "vsock")
