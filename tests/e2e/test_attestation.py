"""Provenance and bills of materials, in the outputs that hold them; skopeo reads what is written."""

from __future__ import annotations

import json
import shutil
import subprocess
import tarfile
from pathlib import Path
from typing import Any

import pytest

from pylayers.engine import Engine
from pylayers.errors import InvalidInput, Unsupported
from tests.e2e.build_case import write

DPKG = """Package: libc6
Status: install ok installed
Architecture: amd64
Version: 2.36-9+deb12u9
Description: library
 with: a colon

Package: gone
Status: deinstall ok config-files
Architecture: amd64
Version: 1

Package: tool
Status: install ok installed
Architecture: all
Version: 1:2.0~rc1
"""
FILES = {
    "Dockerfile": "FROM base\nARG WHO=me\nCOPY tree /\nLABEL who=$WHO\n",
    "tree/etc/os-release": "NAME=x\nID=debian\n",
    "tree/var/lib/dpkg/status": DPKG,
    "tree/usr/lib/apk/db/installed": "C:Q1\nP:musl\nV:1.2.4-r2\nA:x86_64\nL:MIT\n\nP:busybox\nV:1.36\n",
    "tree/opt/p/Flask_Thing.dist-info/METADATA": "Metadata-Version: 2.1\nName: Flask_Thing\nVersion: 3.0\n\nName: no\n",
    "tree/opt/node_modules/@mui/material/package.json": '{"name": "@mui/material", "version": "5.1.0"}',
    "tree/opt/node_modules/bad/package.json": "{not json",
}
URLS = {
    "pkg:deb/debian/libc6@2.36-9%2Bdeb12u9?arch=amd64",
    "pkg:deb/debian/tool@1%3A2.0~rc1?arch=all",
    "pkg:apk/debian/musl@1.2.4-r2?arch=x86_64",
    "pkg:apk/debian/busybox@1.36",
    "pkg:pypi/flask-thing@3.0",
    "pkg:npm/%40mui/material@5.1.0",
}


@pytest.fixture
def context(tmp_path: Path) -> Path:
    (tmp_path / "context").mkdir()
    return write(tmp_path / "context", FILES)


def read_blob(layout: Path, digest: str) -> Any:
    return json.loads((layout / "blobs" / digest.replace(":", "/")).read_bytes())


def read_statements(layout: Path) -> dict[str, Any]:
    """Return the statements of an OCI layout by predicate type, checking how they are attached."""
    (top,) = json.loads((layout / "index.json").read_text())["manifests"]
    index = read_blob(layout, top["digest"])
    image, attached = index["manifests"]
    assert attached["annotations"] == {
        "vnd.docker.reference.type": "attestation-manifest",
        "vnd.docker.reference.digest": image["digest"],
    }
    assert attached["platform"] == {"os": "unknown", "architecture": "unknown"}
    manifest = read_blob(layout, attached["digest"])
    found = {}
    for layer in manifest["layers"]:
        assert layer["mediaType"] == "application/vnd.in-toto+json"
        statement = read_blob(layout, layer["digest"])
        assert statement["predicateType"] == layer["annotations"]["in-toto.io/predicate-type"]
        assert statement["subject"][0]["digest"]["sha256"] == image["digest"].removeprefix("sha256:")
        found[statement["predicateType"]] = statement["predicate"]
    return found


def test_provenance_in_an_oci_layout(engine: Engine, context: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"references": ["app:1"], "arguments": {"WHO": "you"}}
    outputs = [f"type=oci,dest={tmp_path}/out,tar=false"]
    engine.build(context, outputs=outputs, attestations=["type=provenance,mode=max"], **options)
    (predicate,) = read_statements(tmp_path / "out").values()
    definition = predicate["buildDefinition"]
    (base,) = definition["resolvedDependencies"]
    assert base["uri"].startswith("pkg:docker/base@")
    assert base["digest"] == {"sha256": engine.images.get("base").digest.removeprefix("sha256:")}
    assert definition["externalParameters"]["request"]["args"] == {"build-arg:WHO": "you"}
    again = tmp_path / "again"
    engine.build(
        context, outputs=[f"type=oci,dest={again},tar=false"], attestations=["type=provenance,mode=max"], **options
    )
    assert (again / "index.json").read_bytes() == (tmp_path / "out" / "index.json").read_bytes()
    minimal = tmp_path / "min"
    engine.build(context, outputs=[f"type=oci,dest={minimal},tar=false"], attestations=["type=provenance"], **options)
    (predicate,) = read_statements(minimal).values()
    assert "args" not in predicate["buildDefinition"]["externalParameters"]["request"]


def test_secrets_are_told_by_their_ids_alone(engine: Engine, context: Path, tmp_path: Path) -> None:
    (tmp_path / "key").write_text("s3cret")
    engine.build(
        context,
        outputs=[f"type=oci,dest={tmp_path}/out,tar=false"],
        attestations=["type=provenance,mode=max"],
        secrets=[f"id=token,src={tmp_path}/key"],
        arguments={"HTTP_PROXY": "http://me:hidden@proxy"},
    )
    (predicate,) = read_statements(tmp_path / "out").values()
    text = json.dumps(predicate)
    assert predicate["buildDefinition"]["externalParameters"]["request"]["secrets"] == [{"id": "token"}]
    assert "s3cret" not in text
    assert "hidden" not in text


@pytest.mark.parametrize("form", ["spdx", "cyclonedx"])
def test_the_bill_names_every_package(engine: Engine, context: Path, tmp_path: Path, form: str) -> None:
    engine.build(
        context, outputs=[f"type=oci,dest={tmp_path}/out,tar=false"], attestations=[f"type=sbom,format={form}"]
    )
    ((kind, bill),) = read_statements(tmp_path / "out").items()
    if form == "spdx":
        assert kind == "https://spdx.dev/Document"
        found = {reference["referenceLocator"] for one in bill["packages"] for reference in one["externalRefs"]}
        identifiers = [one["SPDXID"] for one in bill["packages"]]
        assert len(set(identifiers)) == len(identifiers)
        assert {one["relatedSpdxElement"] for one in bill["relationships"]} == set(identifiers)
    else:
        assert kind == "https://cyclonedx.org/bom"
        found = {one["purl"] for one in bill["components"]}
    assert found == URLS


def test_local_outputs_get_files(engine: Engine, context: Path, tmp_path: Path) -> None:
    wanted = ["type=sbom", "type=provenance"]
    engine.build(context, outputs=[f"type=local,dest={tmp_path}/out"], attestations=wanted)
    assert (tmp_path / "out" / "etc" / "passwd").exists()
    bill = json.loads((tmp_path / "out" / "sbom.spdx.json").read_text())
    assert bill["predicate"]["spdxVersion"] == "SPDX-2.3"
    provenance = json.loads((tmp_path / "out" / "provenance.json").read_text())
    assert provenance["predicateType"] == "https://slsa.dev/provenance/v1"
    engine.build(context, outputs=[f"type=tar,dest={tmp_path}/out.tar"], attestations=wanted)
    with tarfile.open(tmp_path / "out.tar") as tar:
        assert {"sbom.spdx.json", "provenance.json"} <= {name.removeprefix("./") for name in tar.getnames()}


def test_what_cannot_be_kept_is_refused_before_the_build(engine: Engine, context: Path, tmp_path: Path) -> None:
    with pytest.raises(Unsupported, match="docker's archives"):
        engine.build(context, attestations=["type=sbom"], outputs=[f"type=docker,dest={tmp_path}/x.tar"])
    with pytest.raises(InvalidInput, match="did you mean sbom"):
        engine.build(context, attestations=["type=sbmo"])
    engine.build(context, attestations=["type=provenance,disabled=true"])


@pytest.mark.skipif(shutil.which("skopeo") is None, reason="no skopeo here")
def test_skopeo_finds_the_image_in_the_index(engine: Engine, context: Path, tmp_path: Path) -> None:
    engine.build(
        context,
        references=["app:1"],
        outputs=[f"type=oci,dest={tmp_path}/out.tar"],
        attestations=["type=sbom", "type=provenance,mode=max"],
    )
    done = subprocess.run(
        ["skopeo", "inspect", "--config", f"oci-archive:{tmp_path}/out.tar"], capture_output=True, text=True, check=True
    )
    assert json.loads(done.stdout)["config"]["Labels"] == {"who": "me"}
