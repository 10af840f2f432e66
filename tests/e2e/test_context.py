"""Named contexts that are OCI layouts or tars, and outputs that leave the store aside."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from cli_process import Cli, small_tar

from pylayers.engine import Engine
from pylayers.errors import InvalidInput, NotFound, PylayersError
from tests.e2e.build_case import content, members, write


@pytest.fixture
def context(tmp_path: Path) -> Path:
    (tmp_path / "context").mkdir()
    return write(tmp_path / "context", {"Dockerfile": "FROM base\nCOPY a /a\n", "a": "content"})


def test_an_oci_layout_is_a_base_and_a_source(engine: Engine, context: Path, tmp_path: Path) -> None:
    layout = tmp_path / "layout"
    engine.build(context, references=["made:1"], outputs=[f"type=oci,dest={layout},tar=false"])
    (context / "Dockerfile").write_text("FROM other\nCOPY --from=other /a /b\n")
    result = engine.build(context, contexts={"other": f"oci-layout://{layout}:1"})
    assert content(engine, result, "b") == b"content"
    assert "a" in members(engine, result, -2)
    again = engine.build(context, contexts={"other": f"oci-layout://{layout}:1"})
    assert (again.image_digest, again.cache_hits) == (result.image_digest, len(again.steps))
    for place in (f"oci-layout://{layout}:none", f"oci-layout://{tmp_path}/nowhere"):
        with pytest.raises((NotFound, InvalidInput)):
            engine.build(context, contexts={"other": place})


def test_a_tar_is_a_source(engine: Engine, context: Path, tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        member = tarfile.TarInfo("d/f")
        member.size = 3
        tar.addfile(member, io.BytesIO(b"tar"))
    (tmp_path / "some.tar.gz").write_bytes(buffer.getvalue())
    (context / "Dockerfile").write_text("FROM base\nCOPY --from=some d/f /f\n")
    result = engine.build(context, contexts={"some": str(tmp_path / "some.tar.gz")})
    assert content(engine, result, "f") == b"tar"
    (tmp_path / "some.tar.gz").write_bytes(b"no tar at all")
    with pytest.raises(PylayersError):
        engine.build(context, contexts={"some": str(tmp_path / "some.tar.gz")})


@pytest.mark.parametrize("kind", ["image", "docker"])
def test_outputs_without_a_place_are_the_store(engine: Engine, context: Path, kind: str) -> None:
    plain = engine.build(context)
    result = engine.build(context, references=["app:1"], outputs=[f"type={kind}"])
    assert engine.images.get("app:1").digest == result.image_digest == plain.image_digest
    named = engine.build(context, outputs=[f"type={kind},name=named:2"])
    assert engine.images.get("named:2").digest == named.image_digest


def test_checks_may_be_errors(engine: Engine, context: Path) -> None:
    (context / "Dockerfile").write_text("# check=error=true\nFROM base AS one\nFROM base as two\nCOPY a /a\n")
    with pytest.raises(InvalidInput, match="FromAsCasing"):
        engine.build(context)
    (context / "Dockerfile").write_text("FROM base as two\nCOPY a /a\n")
    assert any(warning.rule == "FromAsCasing" for warning in engine.build(context).warnings)
    with pytest.raises(InvalidInput, match="FromAsCasing"):
        engine.build(context, arguments={"BUILDKIT_DOCKERFILE_CHECK": "error=true"})
    quiet = engine.build(context, arguments={"BUILDKIT_DOCKERFILE_CHECK": "skip=all"})
    assert quiet.warnings == ()


def test_a_tree_on_standard_output(context: Path, tmp_path: Path) -> None:
    cli = Cli(tmp_path)
    cli("import", "-", "base", input=small_tar())
    done = subprocess.run(
        [sys.executable, "-m", "pylayers.cli", "--root", str(cli.root), "build", "-o", "-", str(context)],
        capture_output=True, env={**os.environ, **cli.environment}, check=True,
    )  # fmt: skip
    with tarfile.open(fileobj=io.BytesIO(done.stdout)) as tar:
        names = {name.removeprefix("./") for name in tar.getnames()}
        stream = tar.extractfile("a")
        assert stream is not None
        assert stream.read() == b"content"
    assert {"a", "etc/passwd", "bin/tool"} <= names


def test_result_files(context: Path, tmp_path: Path) -> None:
    cli = Cli(tmp_path)
    cli("import", "-", "base", input=small_tar())
    cli("build", "-t", "app:1", "--iidfile", "id", "--metadata-file", "meta", str(context))
    found = json.loads(cli("inspect", "app:1").stdout)[0]
    assert (tmp_path / "id").read_text() == found["Id"]
    meta = json.loads((tmp_path / "meta").read_text())
    assert meta["containerimage.config.digest"] == found["Id"]
    assert meta["image.name"]
