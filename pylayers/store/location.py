"""Where a data root lies when nobody names one."""

from __future__ import annotations

import os
from pathlib import Path

ROOT_VARIABLE = "PYLAYERS_ROOT"
STAT_CACHE_FOLDER = "buildkit/stat"


def default_root() -> Path:
    """Return the data root: PYLAYERS_ROOT, else /var/lib/pylayers for root, else the user's data directory."""
    given = os.environ.get(ROOT_VARIABLE)
    if given:
        return Path(given)
    if os.geteuid() == 0:
        return Path("/var/lib/pylayers")
    return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share") / "pylayers"
