"""Where a data root lies when nobody names one."""

from __future__ import annotations

import os

ROOT_VARIABLE = "PYLAYERS_ROOT"
STAT_CACHE_FOLDER = "buildkit/stat"


def default_root() -> str:
    """Return the data root: PYLAYERS_ROOT, else /var/lib/pylayers for root, else the user's data directory."""
    given = os.environ.get(ROOT_VARIABLE)
    if given:
        return given
    if os.geteuid() == 0:
        return "/var/lib/pylayers"
    return os.path.join(os.environ.get("XDG_DATA_HOME") or os.path.join(_home(), ".local/share"), "pylayers")


def _home() -> str:
    home = os.path.expanduser("~")
    if home.startswith("~"):
        raise RuntimeError("Could not determine home directory.")
    return home
