"""End a test that would not end by itself. It measures nothing: the alarm comes long after any honest run."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from types import FrameType

import pytest

ALARM_S = 120


@pytest.fixture
def alarm() -> Iterator[None]:
    """Fail a test that runs for two minutes."""

    def give_up(number: int, frame: FrameType | None) -> None:
        raise AssertionError("it does not end")

    kept = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(ALARM_S)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, kept)
