"""The code blocks of docs/library.md run as they stand there."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.build_case import make_tar

PAGE = Path(__file__).resolve().parents[2] / "docs" / "library.md"


def test_the_page_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert len(blocks) == 3
    (tmp_path / "rootfs.tar").write_bytes(make_tar())
    context = tmp_path / "context"
    context.mkdir()
    (context / "file").write_text("content")
    (context / "Dockerfile").write_text('FROM base\nARG VERSION\nCOPY file /app/\nLABEL version="$VERSION"\n')
    names: dict[str, Any] = {"root": tmp_path / "root", "rootfs": tmp_path / "rootfs.tar", "context": context}
    for block in blocks:
        exec(compile(block, str(PAGE), "exec"), names)
    printed = capsys.readouterr().out
    assert "COPY file /app/: built" in printed
    assert "0 of 4" not in printed
    assert "no-such-stage" in printed
