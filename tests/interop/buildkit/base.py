"""The base image of every case: a static busybox, a few users, and the odd things that a COPY can meet."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

from tests.e2e.busybox_rootfs import fill

MTIME_S = 1_000_000_000
PASSWD = """root:x:0:0:root:/root:/bin/sh
app:x:1000:1001:app:/home/app:/bin/sh
web:x:33:33:web:/var/www:/bin/sh
"""
GROUP = "root:x:0:\napp:x:1001:\nweb:x:33:\naudio:x:29:app\nextra:x:77:other,app\nstaff:x:50:\n"
Line = tuple[str, str, int, int, int, str]  # kind, name, mode, owner, group, target or text
LINES: tuple[Line, ...] = (
    ("file", "etc/passwd", 0o644, 0, 0, PASSWD),
    ("file", "etc/group", 0o644, 0, 0, GROUP),
    ("dir", "opt", 0o750, 7, 8, ""),
    ("file", "opt/old", 0o640, 7, 8, "old\n"),
    ("dir", "opt/sub", 0o711, 7, 8, ""),
    ("file", "opt/sub/old", 0o600, 9, 9, "old\n"),
    ("dir", "usr", 0o755, 0, 0, ""),
    ("dir", "usr/lib", 0o755, 0, 0, ""),
    ("link", "lib", 0, 0, 0, "usr/lib"),
    ("link", "absolute", 0, 0, 0, "/usr/lib"),
    ("link", "climbing", 0, 0, 0, "../../../usr/lib"),
    ("link", "dangling", 0, 0, 0, "/nowhere"),
    ("link", "loop", 0, 0, 0, "loop"),
    ("link", "filelink", 0, 0, 0, "opt/old"),
    ("dir", "tmp", 0o1777, 0, 0, ""),
    ("dir", "home", 0o755, 0, 0, ""),
    ("dir", "home/app", 0o700, 1000, 1001, ""),
    ("dir", "dev", 0o755, 0, 0, ""),
    ("dir", "proc", 0o755, 0, 0, ""),
    ("dir", "sys", 0o755, 0, 0, ""),
    ("file", "etc/hosts", 0o644, 0, 0, ""),
    ("file", "etc/resolv.conf", 0o644, 0, 0, ""),
    ("dir", "data", 0o755, 0, 0, ""),
    ("file", "data/one", 0o644, 0, 0, "1\n"),
    ("hard", "data/two", 0o644, 0, 0, "data/one"),
)
APPLETS = (
    "date dd find grep ln mkfifo mktemp nc printenv readlink rmdir sed seq sort stat tail tar tr uname wc wget df "
    "mount umount ulimit sha256sum cp cut basename dirname expr whoami setfattr chgrp xargs awk uniq od"
)


def make_base(directory: Path) -> Path:
    """Make the base image's tar; every time in it is the same."""
    rootfs = fill(directory / "rootfs")
    for applet in APPLETS.split():
        (rootfs / "bin" / applet).symlink_to("busybox")
    (rootfs / "etc/passwd").unlink()
    (rootfs / "etc/group").unlink()
    path = directory / "base.tar"

    def stamp(member: tarfile.TarInfo) -> tarfile.TarInfo:
        member.mtime, member.uid, member.gid, member.uname, member.gname = MTIME_S, 0, 0, "", ""
        return member

    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        tar.add(rootfs, ".", filter=stamp)
        for kind, name, mode, uid, gid, text in LINES:
            member = tarfile.TarInfo("./" + name)
            member.mode, member.uid, member.gid, member.mtime = mode, uid, gid, MTIME_S
            content = text.encode() if kind == "file" else b""
            member.size = len(content)
            if kind != "file":
                member.type = {"dir": tarfile.DIRTYPE, "link": tarfile.SYMTYPE, "hard": tarfile.LNKTYPE}[kind]
                member.linkname = "./" + text if kind == "hard" else text
            tar.addfile(member, io.BytesIO(content))
    return path
