"""The options of a connect or listen."""

from typing import NamedTuple, Optional, Tuple


class Options(NamedTuple):
    #: The path of an endpoint socket, ``vsock`` for the kernel's AF_VSOCK, or ``None`` for the environment's choice.
    endpoint: Optional[str] = None
    #: The data descriptor is for a program without this package. Its end of file is a clean end.
    raw_fd: bool = False
    #: The connection is suspended while its partition is paused, in place of a reset.
    connected_suspend: bool = False
    #: An action in one word and its detail, for the broker's audit.
    describe: Optional[Tuple[str, str]] = None
