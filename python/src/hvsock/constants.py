"""The names and values of Microsoft's ``hvsocket.h``, spelled as in :mod:`socket` on Windows (Python 3.12)."""

from typing import Final

AF_HYPERV: Final = 34
HV_PROTOCOL_RAW: Final = 1

HVSOCKET_CONNECT_TIMEOUT: Final = 0x01
HVSOCKET_CONNECT_TIMEOUT_MAX: Final = 300_000
HVSOCKET_CONTAINER_PASSTHRU: Final = 0x02
HVSOCKET_CONNECTED_SUSPEND: Final = 0x04
HVSOCKET_HIGH_VTL: Final = 0x08
HVSOCKET_ADDRESS_FLAG_PASSTHRU: Final = 0x01

HV_GUID_ZERO: Final = "00000000-0000-0000-0000-000000000000"
HV_GUID_WILDCARD: Final = HV_GUID_ZERO
HV_GUID_BROADCAST: Final = "ffffffff-ffff-ffff-ffff-ffffffffffff"
HV_GUID_CHILDREN: Final = "90db8b89-0d35-4f79-8ce9-49ea0ac8b7cd"
HV_GUID_LOOPBACK: Final = "e0e16197-dd56-4a10-9195-5ee7a155a838"
HV_GUID_PARENT: Final = "a42e7cda-d03f-480c-9cc2-a4de20abb878"
HV_GUID_SILOHOST: Final = "36bd0c5c-7276-4223-88ba-7d03b654c568"
HV_GUID_VSOCK_TEMPLATE: Final = "00000000-facb-11e6-bd58-64006a7986d3"

__all__ = [name for name in dir() if name.startswith(("AF_", "HV"))]
