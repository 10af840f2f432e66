"""What --output writes is what other tools read: tar, skopeo, and the files themselves."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest

from pylayers.build.event import BuildResult
from pylayers.engine import Engine
from pylayers.errors import InvalidInput, Unsupported
from tests.e2e.build_case import make_tar, write

needs_skopeo = pytest.mark.skipif(shutil.which("skopeo") is None, reason="skopeo is not installed")
DOCKERFILE = "FROM base\nCOPY --chown=5:6 d /opt/d\nENV A=b\nCOPY late /opt/d/a\n"


def build(tmp_path: Path, *outputs: str, **given: object) -> BuildResult:
    context = write(
        tmp_path / "context", {"d/a": "old", "d/sub/b": b"\1" * 300_000, "late": "new", "Dockerfile": DOCKERFILE}
    )
    os.chmod(context / "d" / "sub" / "b", 0o4755)
    (tmp_path / "base.tar").write_bytes(make_tar())
    with Engine.open(tmp_path / "root") as engine:
        engine.images.import_(tmp_path / "base.tar", "base")
        return engine.build(context, outputs=outputs, **given)  # type: ignore[arg-type]


def test_local_writes_the_final_tree_into_a_directory_that_exists(tmp_path: Path) -> None:
    out = tmp_path / "out"
    (out / "opt").mkdir(parents=True)
    (out / "opt" / "mine").write_text("kept")
    build(tmp_path, str(out))
    assert (out / "opt" / "d" / "a").read_text() == "new"
    assert (out / "opt" / "mine").read_text() == "kept"
    found = (out / "opt" / "d" / "sub" / "b").stat()
    assert (found.st_size, found.st_mode & 0o7777, found.st_uid) == (300_000, 0o4755, os.geteuid())
    assert found.st_mtime == 1_600_000_000
    assert (out / "lib").readlink() == Path("usr/lib")


def test_tar_holds_the_final_tree_with_its_owners(tmp_path: Path) -> None:
    build(tmp_path, f"type=tar,dest={tmp_path}/out.tar")
    with tarfile.open(tmp_path / "out.tar") as tar:
        members = {member.name: member for member in tar.getmembers()}
        stream = tar.extractfile("opt/d/a")
        assert stream is not None
        assert stream.read() == b"new"
    assert (members["opt/d/sub/b"].uid, members["opt/d/sub/b"].gid) == (5, 6)
    assert not {".", "", "./"} & set(members)


@needs_skopeo
@pytest.mark.parametrize("compression", ["uncompressed", "gzip", "gzip,compression-level=9", "zstd"])
def test_skopeo_reads_oci_archives(tmp_path: Path, compression: str) -> None:
    place = tmp_path / "out.tar"
    text = f"type=oci,dest={place},name=app:1,annotation.k=v,compression={compression}"
    first = build(tmp_path, text)
    content = place.read_bytes()
    told = subprocess.run(["skopeo", "inspect", f"oci-archive:{place}:1"], check=True, capture_output=True).stdout
    assert json.loads(told)["Digest"] == first.image_digest
    target = tmp_path / "copy"
    subprocess.run(["skopeo", "copy", "-q", f"oci-archive:{place}:1", f"dir:{target}"], check=True)
    assert json.loads((target / "manifest.json").read_bytes())["annotations"] == {"k": "v"}
    build(tmp_path, text)
    assert place.read_bytes() == content  # the same bytes every time


@needs_skopeo
def test_skopeo_reads_docker_archives_and_layout_directories(tmp_path: Path) -> None:
    build(tmp_path, f"type=docker,dest={tmp_path}/d.tar", f"type=oci,tar=false,dest={tmp_path}/o", references=["app:2"])
    for name in (f"docker-archive:{tmp_path}/d.tar:app:2", f"oci:{tmp_path}/o:2"):
        told = json.loads(subprocess.run(["skopeo", "inspect", name], check=True, capture_output=True).stdout)
        assert "A=b" in told["Env"]
        assert len(told["Layers"]) == 3


def test_an_annotation_changes_the_stored_manifest(tmp_path: Path) -> None:
    result = build(tmp_path, references=["app"], annotations=["manifest:k=v"])
    with Engine.open(tmp_path / "root") as engine:
        image = engine.images.get("app")
    assert (image.digest, image.manifest.annotations) == (result.image_digest, {"k": "v"})


@pytest.mark.parametrize(
    ("text", "words"),
    [("type=locl,dest=x", "did you mean local"), ("type=local", "dest is required"), ("dest=x,a=b", "type is required"),
     ("type=tar,foo", "foo"), ("type=oci,dest=x,compression=foo", "compression"), ('type=oci,"dest=x', "quote"),
     ("type=oci,dest=x,annotation-index.a=b", "index annotations")],
)  # fmt: skip
def test_bad_outputs_are_refused_before_anything_is_built(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(InvalidInput, match=words):
        build(tmp_path, text)


def test_a_registry_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(Unsupported, match="registry"):
        build(tmp_path, "type=image,name=a,push=true")
