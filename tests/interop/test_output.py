"""What --output writes is what other tools read: tar, skopeo, and the files themselves."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path

import pytest

from pylayers._native.sha256 import is_fast
from pylayers.build.event import BuildResult
from pylayers.engine import Engine
from pylayers.errors import InvalidInput, Unsupported
from pylayers.transfer.packer import UNIT_BYTES
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


@pytest.fixture
def large(tmp_path: Path) -> tuple[Path, str]:
    """Make an OCI archive whose one layer is some zstd frames; return it and the layer's diff_id."""
    content = b"".join(random.Random(1).randbytes(10_000) + bytes(20_000) for _ in range(3 * UNIT_BYTES // 30_000))
    (tmp_path / "base.tar").write_bytes(make_tar((("opt/large", content, {}),)))
    context = write(tmp_path / "context", {"Dockerfile": "FROM base\nENV A=b\n"})
    place = tmp_path / "large.tar"
    with Engine.open(tmp_path / "root") as engine:
        engine.images.import_(tmp_path / "base.tar", "base")
        engine.build(context, outputs=(f"type=oci,dest={place},name=large:1,compression=zstd",))
        [layer] = list(engine.store.layers.walk())
        assert layer == "sha256:" + hashlib.sha256((tmp_path / "base.tar").read_bytes()).hexdigest()
        if is_fast():  # the states that the import kept prove it
            assert len(engine.store.layers.read_states(layer) or b"") == 32 * (
                (tmp_path / "base.tar").stat().st_size >> 22
            )
    return place, layer


@needs_skopeo
def test_skopeo_unpacks_a_layer_of_some_frames(large: tuple[Path, str], tmp_path: Path) -> None:
    target = tmp_path / "copy"
    source = f"oci-archive:{large[0]}:1"
    subprocess.run(["skopeo", "copy", "-q", "--dest-decompress", source, f"dir:{target}"], check=True)
    [layer] = json.loads((target / "manifest.json").read_bytes())["layers"]
    assert layer["digest"] == large[1]
    assert hashlib.sha256((target / layer["digest"].removeprefix("sha256:")).read_bytes()).hexdigest() in large[1]


@pytest.mark.skipif(shutil.which("podman") is None, reason="podman is not installed")
def test_podman_unpacks_a_layer_of_some_frames(large: tuple[Path, str]) -> None:
    with tempfile.TemporaryDirectory(prefix="podman-") as place:  # its runroot may have 50 characters
        podman = ["podman", "--root", f"{place}/p", "--runroot", f"{place}/r", "--storage-driver", "vfs"]
        subprocess.run([*podman, "load", "-q", "-i", str(large[0])], check=True)  # it compares the diff_id
        told = subprocess.run([*podman, "inspect", "large:1"], check=True, capture_output=True).stdout
        subprocess.run([*podman, "rmi", "--all", "--force"], check=True, capture_output=True)
    assert json.loads(told)[0]["RootFS"]["Layers"] == [large[1]]


def test_a_layer_of_some_frames_comes_in_again(large: tuple[Path, str], tmp_path: Path) -> None:
    with tarfile.open(large[0]) as archive:
        packed = max(archive.getmembers(), key=lambda member: member.size)
        archive.extract(packed, tmp_path, filter="data")
    with Engine.open(tmp_path / "other") as engine:
        engine.images.import_(tmp_path / packed.name, "again")
        assert list(engine.store.layers.walk()) == [large[1]]


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
