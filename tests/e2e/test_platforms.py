"""Builds for several platforms: one image each under an index; emulators are needed for RUN alone."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from pylayers.build import emulation
from pylayers.engine import Engine
from pylayers.errors import InvalidInput, Unsupported
from tests.e2e.build_case import write

BOTH = ["linux/amd64", "linux/arm64"]
TEXT = """FROM scratch
ARG TARGETPLATFORM
ARG TARGETARCH
LABEL platform=$TARGETPLATFORM
COPY $TARGETARCH /which
"""


@pytest.fixture
def context(tmp_path: Path) -> Path:
    (tmp_path / "context").mkdir()
    return write(tmp_path / "context", {"Dockerfile": TEXT, "amd64": "intel", "arm64": "arm"})


def read_blob(layout: Path, digest: str) -> Any:
    return json.loads((layout / "blobs" / digest.replace(":", "/")).read_bytes())


def test_an_index_of_both(engine: Engine, context: Path, tmp_path: Path) -> None:
    layout = tmp_path / "out"
    result = engine.build(
        context, platforms=BOTH, references=["app:1"], outputs=[f"type=oci,dest={layout},tar=false"]
    )
    (top,) = json.loads((layout / "index.json").read_text())["manifests"]
    assert top["digest"] == result.image_digest
    index = read_blob(layout, top["digest"])
    assert [one["platform"]["architecture"] for one in index["manifests"]] == ["amd64", "arm64"]
    for one in index["manifests"]:
        config = read_blob(layout, read_blob(layout, one["digest"])["config"]["digest"])
        architecture = one["platform"]["architecture"]
        assert config["architecture"] == architecture
        assert config["config"]["Labels"] == {"platform": f"linux/{architecture}"}
    again = engine.build(context, platforms=BOTH[::-1], outputs=[f"type=oci,dest={tmp_path}/again,tar=false"])
    assert again.cache_hits == len(again.steps)
    if shutil.which("skopeo"):
        done = subprocess.run(
            ["skopeo", "inspect", "--raw", f"oci:{layout}:1"], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        assert len(json.loads(done.stdout)["manifests"]) == 2


def test_trees_have_a_folder_each(engine: Engine, context: Path, tmp_path: Path) -> None:
    engine.build(context, platforms=BOTH, outputs=[f"type=local,dest={tmp_path}/out"])
    assert (tmp_path / "out" / "linux_amd64" / "which").read_text() == "intel"
    assert (tmp_path / "out" / "linux_arm64" / "which").read_text() == "arm"


def test_one_platform_twice_is_one(engine: Engine, context: Path, tmp_path: Path) -> None:
    engine.build(
        context, platforms=["linux/amd64", "amd64"], outputs=[f"type=local,dest={tmp_path}/out,platform-split=false"]
    )
    assert (tmp_path / "out" / "which").read_text() == "intel"


def test_a_run_needs_an_emulator_and_cross_compiling_none(
    engine: Engine, context: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(emulation, "BINFMT", tmp_path / "none")
    output = [f"type=local,dest={tmp_path}/out"]
    (context / "Dockerfile").write_text("FROM scratch\nCOPY amd64 /a\nRUN true\n")
    with pytest.raises(Unsupported, match="binfmt_misc") as caught:
        engine.build(context, platforms=["linux/s390x", "linux/riscv64"], outputs=output)
    assert caught.value.span is not None
    assert caught.value.span.line == 3
    assert not (tmp_path / "out").exists()


def test_bad_platforms(engine: Engine, context: Path, tmp_path: Path) -> None:
    for platforms in (["linux/amd64", "windows/amd64"], ["linux/amd64", "what/is/this/now"]):
        with pytest.raises(InvalidInput):
            engine.build(context, platforms=platforms, outputs=[f"type=local,dest={tmp_path}/out"])
