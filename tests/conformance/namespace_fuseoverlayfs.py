"""The suite of fuse-overlayfs as test_fuseoverlayfs starts it once more, in a user namespace."""

from __future__ import annotations

import os
import stat
import tarfile
from pathlib import Path

import pytest

from pylayers.diff.apply import in_user_namespace
from pylayers.errors import PermissionDenied
from pylayers.store.layer import Layer
from tests.conformance.stage import Stage, scanned, write
from tests.conformance.test_fuseoverlayfs import TestFuseOverlayfs as Whole
from tests.conformance.test_fuseoverlayfs import pytestmark as needed

pytestmark = needed


class TestUserNamespace(Whole):
    def members(self, stage: Stage, *members: tarfile.TarInfo) -> Layer:
        path = stage.scratch / f"{stage.fresh('members')}.tar"
        with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as out:
            for member in members:
                out.addfile(member)
        return scanned(path)

    def test_it_is_one(self) -> None:
        assert in_user_namespace()

    def test_xattrs_and_capabilities(self, stage: Stage) -> None:
        """The first namespace's attributes (trusted, capabilities for all) can't be set here, the user's can."""

        def fill(top: Path) -> None:
            write(top, "ping")
            os.setxattr(top / "ping", "user.note", b"\0binary\xff")
            write(top, "d/f")

        stage.make("base", None, fill)
        child = stage.active("base", lambda top: os.setxattr(top / "ping", "user.note", b"other"))
        assert stage.listed(child, "base") == [("C", b"ping")]
        self.reproduces(stage, child, "base")
        member = tarfile.TarInfo("file")
        member.pax_headers = {"SCHILY.xattr.trusted.mark": "y"}
        layer = self.members(stage, member)
        stage.driver.prepare("trusted", None)
        with pytest.raises(PermissionDenied, match=r"extended attribute.*file"):
            stage.driver.apply("trusted", layer)

    def test_devices_and_fifos(self, stage: Stage) -> None:
        """Devices of a layer are left out, as docker and podman do it in a user namespace; fifos are made."""
        stage.make("base", None, lambda top: os.mkfifo(top / "fifo", 0o600))
        assert stage.listed("base", None) == [("A", b"fifo")]
        stage.driver.prepare("k", "base")
        device = tarfile.TarInfo("null")
        device.type, device.devmajor, device.devminor = tarfile.CHRTYPE, 1, 3
        stage.driver.apply("k", self.members(stage, tarfile.TarInfo("file"), device))
        with stage.mounted("k") as top:
            assert sorted(os.listdir(top)) == ["fifo", "file"]
            assert stat.S_ISFIFO((top / "fifo").lstat().st_mode)
