"""The choice of the accelerator: connections in shared memory by the Rust library."""

import importlib
import os
from typing import Any

from ._options import Options
from .addresses import HvAddress

VARIABLE = "HVSOCK_PYTHON_IMPLEMENTATION"

_unset = object()
_module: Any = _unset


def module() -> Any:
    """The module of the accelerator; ``None`` if it is not installed or not wanted."""
    global _module
    if _module is _unset:
        _module = _choose(os.environ.get(VARIABLE, ""))
    return _module


def _choose(wanted: str) -> Any:
    if wanted == "pure":
        return None
    if wanted not in ("", "accelerator"):
        raise ValueError(f"{VARIABLE} is `pure` or `accelerator`, not {wanted!r}")
    try:
        return importlib.import_module("hvsock_accelerator")
    except ImportError:
        if wanted:
            raise
        return None


def connect(address: HvAddress, timeout: Any, options: Options) -> Any:
    from . import _accelerated_socket

    return _accelerated_socket.connect(module(), address, timeout, options)


def create_server(address: HvAddress, backlog: int, options: Options) -> Any:
    from . import _accelerated_socket

    return _accelerated_socket.create_server(module(), address, backlog, options)
