"""Windows: the system's AF_HYPERV, which Python has from 3.12 on."""

import asyncio
import socket
import sys
from typing import Any, Optional

from ... import constants
from ..._options import Options
from ..._system_socket import SystemSocket, opened
from ...addresses import UUID, Address, HvAddress, parse_guid
from ...refusals import Explanation, Refusal, refused

#: Refusals by Winsock's error numbers.
_REFUSALS = {10061: 9, 10060: 14, 10048: 12, 10049: 13, 10051: 7, 10050: 6, 10045: 8, 10055: 16}
_SERVICES = r"SOFTWARE\Microsoft\Windows NT\CurrentVersion\Virtualization\GuestCommunicationServices"


def _module() -> Any:
    return socket


def _registry() -> Any:
    import winreg

    return winreg


def _family(module: Any) -> int:
    try:
        return int(module.AF_HYPERV)
    except AttributeError:
        version = ".".join(map(str, sys.version_info[:2]))
        raise OSError(
            10047, f"Python {version} cannot create AF_HYPERV sockets; help: use Python 3.12 or later"
        ) from None


def _refused(what: str, error: OSError) -> OSError:
    number = getattr(error, "winerror", None) or error.errno
    code = 14 if isinstance(error, socket.timeout) else _REFUSALS.get(number or 0)
    if code is None:
        return error
    return refused(Refusal(code, "the system" if code == 16 else ""), what)


def _to_address(name: Any) -> Address:
    vm, service = name
    return Address(str(parse_guid(vm)), str(parse_guid(service)))


def _ids(address: HvAddress, options: Options) -> Address:
    """The GUIDs of an address. Windows resolves names of services only."""
    vm, service = address.partition, address.service
    if isinstance(vm, str):
        vm = lookup_partition(vm, options)
    if isinstance(service, str):
        service = lookup_service(service, options)
    return Address(str(vm), str(service))


def connect(address: HvAddress, timeout: Optional[float], options: Options) -> SystemSocket:
    module = _module()
    family = _family(module)
    target = _ids(address, options)

    def start(sock: Any) -> None:
        if timeout is not None:
            milliseconds = max(1, min(constants.HVSOCKET_CONNECT_TIMEOUT_MAX, round(timeout * 1000)))
            sock.setsockopt(module.HV_PROTOCOL_RAW, module.HVSOCKET_CONNECT_TIMEOUT, milliseconds)
        if options.connected_suspend:
            sock.setsockopt(module.HV_PROTOCOL_RAW, module.HVSOCKET_CONNECTED_SUSPEND, 1)
        sock.connect(tuple(target))

    what = f"cannot connect to {address.url()}"
    inner = opened(module, family, module.HV_PROTOCOL_RAW, timeout, start, lambda error: _refused(what, error))
    return SystemSocket(inner, _to_address, "hyperv")


async def connect_async(address: HvAddress, timeout: Optional[float], options: Options) -> SystemSocket:
    loop = asyncio.get_running_loop()
    sock = await loop.run_in_executor(None, connect, address, 30.0 if timeout is None else timeout, options)
    sock.setblocking(False)
    return sock


def create_server(address: HvAddress, backlog: int, options: Options) -> SystemSocket:
    module = _module()
    family = _family(module)
    target = _ids(address, options)

    def start(sock: Any) -> None:
        if options.connected_suspend:
            sock.setsockopt(module.HV_PROTOCOL_RAW, module.HVSOCKET_CONNECTED_SUSPEND, 1)
        sock.bind(tuple(target))
        sock.listen(backlog)

    what = f"cannot listen at {address.url()}"
    inner = opened(module, family, module.HV_PROTOCOL_RAW, None, start, lambda error: _refused(what, error))
    return SystemSocket(inner, _to_address, "hyperv")


async def create_server_async(address: HvAddress, backlog: int, options: Options) -> SystemSocket:
    listener = create_server(address, backlog, options)
    listener.setblocking(False)
    return listener


def lookup_service(name: str, options: Options) -> UUID:
    """The service with this name (``ElementName``) in the system's registry."""
    registry = _registry()
    with registry.OpenKey(registry.HKEY_LOCAL_MACHINE, _SERVICES) as services:
        for index in range(registry.QueryInfoKey(services)[0]):
            guid = registry.EnumKey(services, index)
            try:
                with registry.OpenKey(services, guid) as service:
                    found, _ = registry.QueryValueEx(service, "ElementName")
            except OSError:
                continue
            if str(found).lower() == name.lower():
                return parse_guid(guid)
    raise refused(Refusal(1), f"cannot resolve the service \"{name}\"")


def lookup_partition(name: str, options: Options) -> UUID:
    raise refused(
        Refusal(7),
        f"cannot resolve the partition \"{name}\"",
        text="Windows tells names of virtual machines to administrators' tools only; use the VM's id",
    )


def why(address: HvAddress, listening: bool, options: Options) -> Explanation:
    raise OSError(10045, "Windows does not explain its decisions; `hvsock why` shows what can be known")


def register(name: str, service: UUID, purpose: str, options: Options) -> Any:
    raise OSError(10045, "Windows keeps its registrations in the system's registry; `hvsock service register` adds one")
