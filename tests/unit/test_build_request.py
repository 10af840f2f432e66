"""The keywords of Engine.build."""

from __future__ import annotations

from pathlib import Path

import pytest

from pylayers.build.keyword import BuildRequest
from pylayers.build.request import KEYWORDS, read_request


def test_every_keyword_that_is_told_of_is_taken(tmp_path: Path) -> None:
    assert set(BuildRequest.__annotations__) == KEYWORDS


def test_a_keyword_that_there_is_not_is_refused(tmp_path: Path) -> None:
    """It was passed over once: an image built with tags=[...] had no name, and nothing said so."""
    with pytest.raises(TypeError, match="unexpected keyword argument 'tags'"):
        read_request(tmp_path, {"references": ["a"], "tags": ["b"]})  # type: ignore[typeddict-unknown-key]
