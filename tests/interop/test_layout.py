"""What pylayers writes is read by others: skopeo names it, umoci unpacks it to the same tree."""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
from pathlib import Path

import pytest

from pylayers.engine import Engine
from tests.e2e.build_case import make_tar

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: owners and devices are compared")


@pytest.fixture
def layout(tmp_path: Path) -> Path:
    context = tmp_path / "context"
    (context / "d" / "sub").mkdir(parents=True)
    (context / "d" / "file").write_bytes(os.urandom(200_000))
    (context / "d" / "sub" / ("long" * 40)).write_text("a name beyond ustar's")
    os.link(context / "d" / "file", context / "d" / "sub" / "hard")
    (context / "d" / "link").symlink_to("file")
    os.setxattr(context / "d" / "file", "user.note", b"kept\x00binary")
    os.chmod(context / "d" / "file", 0o4755)
    (context / "Dockerfile").write_text("FROM base\nCOPY --chown=5:6 d /opt/d\nENV A=b\nCMD [\"x\"]\n")
    (tmp_path / "base.tar").write_bytes(make_tar())
    with Engine.open(tmp_path / "root") as engine:
        engine.images.import_(tmp_path / "base.tar", "base")
        engine.build(context, references=["app:1"])
        return engine.images.save_layout("app:1", tmp_path / "layout")


@pytest.mark.skipif(shutil.which("skopeo") is None, reason="skopeo is not installed")
def test_skopeo_reads_the_layout(layout: Path) -> None:
    done = subprocess.run(["skopeo", "inspect", f"oci:{layout}:1"], check=True, capture_output=True)
    told = json.loads(done.stdout)
    assert "A=b" in told["Env"]
    assert len(told["Layers"]) == 2


@needs_root
@pytest.mark.skipif(shutil.which("umoci") is None, reason="umoci is not installed")
def test_umoci_unpacks_the_same_tree(layout: Path, tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    subprocess.run(["umoci", "unpack", "--image", f"{layout}:1", bundle], check=True, capture_output=True)
    copied, source = bundle / "rootfs" / "opt" / "d", tmp_path / "context" / "d"
    for path in [source, *source.rglob("*")]:
        twin = copied / path.relative_to(source)
        wanted, found = path.lstat(), twin.lstat()
        assert found.st_mode == wanted.st_mode, path
        assert (found.st_uid, found.st_gid) == (5, 6)
        assert int(found.st_mtime) == int(wanted.st_mtime) or stat.S_ISDIR(found.st_mode)
        if path.is_symlink():
            assert twin.readlink() == path.readlink()
        elif path.is_file():
            assert twin.read_bytes() == path.read_bytes()
    assert (copied / "file").stat().st_ino == (copied / "sub" / "hard").stat().st_ino
    assert os.getxattr(copied / "file", "user.note") == b"kept\x00binary"
    assert (bundle / "rootfs" / "opt").stat().st_mode == stat.S_IFDIR | 0o750
