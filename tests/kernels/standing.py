"""Keep where each driver's tests ran, for the lines at the end of a run."""

from __future__ import annotations

STANDINGS: dict[str, str] = {}


def note(driver: str, where: str) -> None:
    """Say where a driver's tests ran, or why they didn't."""
    STANDINGS[driver] = where
