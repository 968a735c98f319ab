"""Where a process looks for its broker."""

import os
import stat
from typing import Callable, List, Mapping, NamedTuple, Optional

#: The value of HVSOCK_ENDPOINT that selects the kernel's AF_VSOCK in place of a broker.
VSOCK = "vsock"


class Endpoint(NamedTuple):
    """The paths that are tried in order, and when the kernel's AF_VSOCK takes a broker's place."""

    paths: List[str]
    #: ``never``, ``always``, or ``without_broker``: in a virtual machine if none of the paths exists.
    vsock: str

    @classmethod
    def from_env(
        cls, env: Optional[Mapping[str, str]] = None, owner: Optional[Callable[[str], Optional[int]]] = None
    ) -> "Endpoint":
        """The endpoint that the environment selects. ``owner`` returns the user of a path that is another's."""
        env = os.environ if env is None else env
        owner = owner or _other_owner
        named = env.get("HVSOCK_ENDPOINT")
        if named == VSOCK:
            return cls([], "always")
        if named:
            return cls([named], "never")
        folder = env.get("HVSOCK_DIR")
        if folder:
            return cls([os.path.join(folder, "endpoint")], "never")
        paths = ["/run/hvsock/endpoint"]
        runtime = env.get("XDG_RUNTIME_DIR")
        # `sudo -E` and `su` pass on the runtime folder of another user, whose broker has other rules.
        if runtime and owner(runtime) is None and owner(os.path.join(runtime, "hvsock")) is None:
            paths.insert(0, os.path.join(runtime, "hvsock", "endpoint"))
        return cls(paths, "without_broker")

    @classmethod
    def of(cls, endpoint: Optional[str]) -> "Endpoint":
        """The endpoint at a path, or if ``None`` the one of the environment."""
        if endpoint is None:
            return cls.from_env()
        path = os.fspath(endpoint)
        return cls([], "always") if path == VSOCK else cls([path], "never")


def _other_owner(path: str) -> Optional[int]:
    """The user whose path it is, if that is neither root nor this one."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_uid if found.st_uid not in (0, os.geteuid()) else None


def is_socket(path: str) -> bool:
    """Whether a socket is at the path, or may be."""
    try:
        return stat.S_ISSOCK(os.lstat(path).st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        return True
