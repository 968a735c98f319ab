"""Who connected to a listener."""

from typing import NamedTuple, Optional


class Peer(NamedTuple):
    """The process at the other end of an accepted connection, as its kernel reported it at the connect."""

    #: The name of its partition.
    partition: str
    #: Its process id; ``None`` if it has no meaning in this partition.
    pid: Optional[int]
    #: Its user id; likewise.
    uid: Optional[int]
    #: Its group id; likewise.
    gid: Optional[int]
