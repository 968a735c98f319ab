"""The one place that chooses the operating system's folder."""

import sys
from typing import Any

if sys.platform == "win32":
    from .windows import backend as _backend
else:
    from .linux import backend as _backend

backend: Any = _backend
