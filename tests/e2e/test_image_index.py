"""An index in the store: a name stands for the image that fits, and for all of them when they are kept or removed."""

from __future__ import annotations

import json
import os
import shutil
import tarfile
from pathlib import Path

import pytest

from pylayers.engine import Engine
from pylayers.errors import InvalidInput, NotFound
from pylayers.image.view import read_children
from pylayers.oci.platform import Platform
from pylayers.store.metadata import Images
from tests.e2e.build_case import write

HOST = Platform.from_machine(os.uname().machine)
OTHER = "linux/arm64" if HOST.architecture != "arm64" else "linux/amd64"
BOTH = [OTHER, str(HOST)]
TEXT = "FROM scratch\nARG TARGETARCH\nLABEL for=$TARGETARCH\nCOPY file /file\nCOPY $TARGETARCH /which\n"


@pytest.fixture
def context(tmp_path: Path) -> Path:
    (tmp_path / "context").mkdir()
    files = {"Dockerfile": TEXT, "file": "shared", "amd64": "intel", "arm64": "arm", HOST.architecture: "here"}
    return write(tmp_path / "context", files)


def build(engine: Engine, context: Path, name: str) -> str:
    return engine.build(context, platforms=BOTH, references=[name]).image_digest


def test_a_name_is_the_image_for_this_machine(engine: Engine, context: Path) -> None:
    index = build(engine, context, "app:1")
    assert [child.platform.architecture for child in read_children(engine.store, index) if child.platform] == [
        Platform.parse(platform).architecture for platform in BOTH
    ]
    found = engine.images.get("app:1")
    assert found.config.architecture == HOST.architecture
    assert found.config.config.labels == {"for": HOST.architecture}
    assert found.references == ("docker.io/library/app:1",)
    assert engine.images.get(found.id).digest == found.digest
    assert len([image for image in engine.images.list() if "docker.io/library/app:1" in image.references]) == 2
    assert engine.images.history("app:1")[0].created_by.startswith("COPY")


def test_a_build_starts_from_the_image_that_it_wants(engine: Engine, context: Path) -> None:
    build(engine, context, "app:1")
    (context / "Dockerfile").write_text("FROM app:1\nCOPY file /again\n")
    for platform in BOTH:
        made = engine.images.get(engine.build(context, platforms=[platform]).image_digest)
        assert made.config.architecture == Platform.parse(platform).architecture
        assert made.config.config.labels == {"for": made.config.architecture}
    with pytest.raises(InvalidInput, match="s390x"):
        engine.build(context, platforms=["linux/s390x"])
    both = engine.build(context, platforms=BOTH, references=["x:1"]).image_digest
    assert len(read_children(engine.store, both)) == 2


def test_pruning_keeps_what_a_name_stands_for(engine: Engine, context: Path) -> None:
    build(engine, context, "app:1")
    before = {image.digest for image in engine.images.list()}
    assert engine.images.prune().deleted == ()
    engine.system.prune()
    assert {image.digest for image in engine.images.list()} == before
    assert engine.store.check() == []
    engine.images.tag("app:1", "other:2")
    assert engine.store.metadata.references.get("docker.io/library/other:2") == engine.store.metadata.references.get(
        "docker.io/library/app:1"
    )
    assert engine.images.remove(["app:1"]).deleted == ()
    assert len(engine.images.remove(["other:2"]).deleted) == 2
    assert engine.store.metadata.references.get("docker.io/library/other:2") is None
    with pytest.raises(NotFound):
        engine.images.get("app:1")
    assert {image.references[0] for image in engine.images.list()} == {"docker.io/library/base:latest"}
    assert engine.store.check() == []


def test_pruning_everything_takes_all_of_it(engine: Engine, context: Path) -> None:
    build(engine, context, "app:1")
    result = engine.images.prune(everything=True)
    assert len(result.deleted) == 3
    assert sorted(result.untagged) == ["docker.io/library/app:1", "docker.io/library/base:latest"]
    assert engine.images.list() == []


def test_an_image_with_attestations_is_one_image(engine: Engine, context: Path) -> None:
    index = engine.build(context, references=["app:1"], attestations=["type=provenance", "type=sbom"]).image_digest
    found = engine.images.get("app:1")
    assert found.digest != index
    assert len(read_children(engine.store, index)) == 1
    document = json.loads(engine.store.blobs.read(index, 1 << 20))
    assert len(document["manifests"]) == 2
    attached = json.loads(engine.store.blobs.read(document["manifests"][1]["digest"], 1 << 20))
    engine.system.prune()
    for layer in attached["layers"]:
        assert b"in-toto.io/Statement" in engine.store.blobs.read(layer["digest"], 1 << 24), "kept by the name"
    again = engine.build(context, references=["app:1"], attestations=["type=provenance", "type=sbom"])
    assert again.image_digest == index
    assert engine.images.remove(["app:1"]).deleted == (found.digest,)
    with pytest.raises(NotFound):
        engine.store.blobs.read(attached["layers"][0]["digest"], 1 << 24)


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("runc") is None, reason="needs root and runc")
def test_a_container_is_made_of_the_image_that_fits(engine: Engine, context: Path) -> None:
    index = build(engine, context, "app:1")
    container = engine.containers.create("app:1", ["/file"])
    assert engine.containers.get(container.id).image_digest == engine.images.get("app:1").digest != index
    engine.containers.remove(container.id)


def test_an_image_is_found_without_reading_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a lookup takes doesn't grow with the names of other images."""
    with Engine.open(tmp_path / "root") as engine:
        tar = tmp_path / "base.tar"
        with tarfile.open(tar, "w"):
            pass
        for number in range(20):
            engine.images.import_(tar, f"base:{number}", changes=[f"LABEL number={number}"])
        asked: list[str] = []
        real = Images.get
        monkeypatch.setattr(Images, "get", lambda self, digest: asked.append(digest) or real(self, digest))
        assert engine.images.get("base:7").references == ("docker.io/library/base:7",)
        assert len(set(asked)) <= 1
