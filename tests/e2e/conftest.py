"""What most end-to-end tests begin with; a file that needs another engine has a fixture of the same name."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from pylayers.engine import Engine
from tests.e2e.build_case import open_with_base


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    """Open an engine on a fresh root with the image `base`."""
    with open_with_base(tmp_path / "root") as opened:
        yield opened
