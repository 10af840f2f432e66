"""What a snapshot shows, and that its changes reproduce it; for every storage driver."""

from __future__ import annotations

import errno
import os
import socket
import stat
import struct
from pathlib import Path

import pytest

from pylayers.store.entry import FLAG_OPAQUE, FLAG_WHITEOUT, EntryTable
from tests.conformance.stage import Stage, describe, digest_of, remove_tree, write

NOBODY = 0xFFFFFFFF  # in an ACL: the entry names no one


class ContentSuite:
    """Contents: what a snapshot shows, and that its changes reproduce it."""

    longest_name = 255  # what can be deleted without the driver's own program falling over
    sees_hard_links = True  # a mount's inode numbers tell which names are one file
    unreliable_link_changes: frozenset[str] = frozenset()  # of test_hard_links, that a driver's mount shows wrongly

    def reproduces(self, stage: Stage, key: str, parent: str | None) -> None:
        """Check that applying the changes of a snapshot to another child of its parent gives the same tree."""
        layer = stage.layer_of(key)
        sibling = stage.apply_to_sibling(layer, parent)
        with stage.mounted(key) as one, stage.mounted(sibling) as other:
            links = self.sees_hard_links
            assert describe(stage.table(one), links=links) == describe(stage.table(other), links=links)
        if links:
            assert stage.digest(key) == stage.digest(sibling)
        assert stage.times(key) == stage.times(sibling)
        stage.driver.commit(stage.fresh("applied"), sibling)

    def test_base_with_sticky_directory_and_setuid_file(self, stage: Stage) -> None:
        def fill(top: Path) -> None:
            (top / "tmp").mkdir()
            (top / "tmp").chmod(0o1777)
            file = write(top, "bin/su", b"su")
            os.chown(file, 5, 6)
            file.chmod(0o4755)
            os.chown(top, 3, 4)
            top.chmod(0o750)

        key = stage.active(None, fill)
        self.reproduces(stage, key, None)
        stage.driver.commit("base", key)
        child = stage.active("base", lambda top: write(top, "more"))
        with stage.mounted(child) as top:
            assert stat.S_IMODE(os.stat(top / "tmp").st_mode) == 0o1777
            found = os.stat(top / "bin" / "su")
            assert (stat.S_IMODE(found.st_mode), found.st_uid, found.st_gid) == (0o4755, 5, 6)
            assert (stat.S_IMODE(os.stat(top).st_mode), os.stat(top).st_uid) == (0o750, 3)
        assert stage.listed(child, "base") == [("A", b"more")]
        root = stage.active("base", lambda top: os.chown(top, 8, 8))
        self.reproduces(stage, root, "base")

    def test_new_snapshot_equals_its_parent(self, stage: Stage) -> None:
        def fill(top: Path) -> None:
            for number in range(20):
                write(top, f"d{number % 4}/f{number}", os.urandom(100 * number))

        stage.make("base", None, fill)
        stage.make("top", "base", lambda top: write(top, "d1/f1", b"changed"))
        for parent in ("base", "top"):
            key = stage.active(parent)
            assert stage.digest(key) == digest_of(stage.table_of(parent))
            assert stage.listed(key, parent) == []

    def test_deep_stack(self, stage: Stage) -> None:
        def fill(top: Path, number: int) -> None:
            write(top, f"file-{number}", b"%d" % number)
            write(top, "latest", b"%d" % number)
            if number % 10 == 9:
                (top / f"file-{number - 5}").unlink()

        stage.make("layer-0", None, lambda top: fill(top, 0))
        for number in range(1, 125):
            stage.make(f"layer-{number}", f"layer-{number - 1}", lambda top, number=number: fill(top, number))
        key = stage.active("layer-124", lambda top: write(top, "file-124", b"changed"))
        with stage.mounted(key) as top:
            assert (top / "latest").read_bytes() == b"124"
            names = {int(name.name[5:]) for name in top.glob("file-*")}
            assert names == {number for number in range(125) if number % 10 != 4 or number >= 120}
        assert stage.listed(key, "layer-124") == [("C", b"file-124")]

    def test_exact_change_set(self, stage: Stage) -> None:
        def base(top: Path) -> None:
            for name in ("keep", "same", "touched", "bytes", "mode", "owner", "gone"):
                write(top, name, name.encode())
            for name in ("dir/a", "dir/b", "tree/x/y", "old/1"):
                write(top, name, name.encode())
            os.symlink("keep", top / "link")

        def change(top: Path) -> None:
            write(top, "new/deep/file")
            write(top, "bytes", b"BYTES")  # same size, same mtime
            (top / "mode").chmod(0o600)
            os.chown(top / "owner", 7, 7)
            os.utime(top / "touched")
            (top / "same").chmod(0o600)
            (top / "same").chmod(0o644)  # copied up, but nothing changed
            with open(top / "keep", "r+b"):
                pass
            (top / "gone").unlink()
            (top / "dir" / "a").unlink()
            write(top, "tree/x/y", b"other")
            (top / "link").unlink()
            os.symlink("touched", top / "link")
            (top / "old" / "1").unlink()
            (top / "old").rmdir()

        stage.make("base", None, base)
        key = stage.active("base", change)
        assert stage.listed(key, "base") == [
            ("C", b"bytes"), ("C", b"dir"), ("D", b"dir/a"), ("D", b"gone"), ("C", b"link"), ("C", b"mode"),
            ("A", b"new"), ("A", b"new/deep"), ("A", b"new/deep/file"), ("D", b"old"), ("C", b"owner"),
            ("C", b"touched"), ("C", b"tree"), ("C", b"tree/x"), ("C", b"tree/x/y"),
        ]  # fmt: skip
        self.reproduces(stage, key, "base")
        listed = stage.listed(key, "base")
        stage.driver.commit("top", key)
        assert stage.listed("top", "base") == listed
        stage.driver.prepare("after", "top")
        self.reproduces(stage, "after", "top")

    def test_delete_and_recreate_at_every_depth(self, stage: Stage) -> None:
        def base(top: Path) -> None:
            for path in ("a/b/c/d/file", "a/b/c/other", "a/b/third", "a/fourth"):
                write(top, path, path.encode())

        stage.make("base", None, base)
        for depth in range(1, 5):
            path = "/".join("abcd"[:depth])

            def recreate(top: Path, path: str = path) -> None:
                remove_tree(top / path)
                write(top, f"{path}/fresh", b"fresh")

            key = stage.active("base", recreate)
            with stage.mounted(key) as top:
                assert [name.name for name in (top / path).iterdir()] == ["fresh"]
            lines = stage.listed(key, "base")
            assert ("A", f"{path}/fresh".encode()) in lines
            assert [line for line in lines if line[0] == "D"] == [
                ("D", f"{path}/{name}".encode())
                for name in [("b", "fourth"), ("c", "third"), ("d", "other"), ("file",)][depth - 1]
            ]
            self.reproduces(stage, key, "base")

            gone = stage.active("base", lambda top, path=path: remove_tree(top / path))
            assert [line for line in stage.listed(gone, "base") if line[0] == "D"] == [("D", path.encode())]
            self.reproduces(stage, gone, "base")
            name = stage.fresh("gone")
            stage.driver.commit(name, gone)
            again = stage.active(name, lambda top, path=path: write(top, f"{path}/again"))
            with stage.mounted(again) as top:
                assert [entry.name for entry in (top / path).iterdir()] == ["again"]
            self.reproduces(stage, again, name)

    def test_what_an_opaque_directory_hid_comes_back(self, stage: Stage) -> None:
        """Equal to the file two layers down, but that one was hidden in between: it is an addition."""
        stage.make("base", None, lambda top: write(top, "d/deep/file", b"same"))

        def recreate(top: Path) -> None:
            remove_tree(top / "d")
            write(top, "d/deep/other")

        def bring_back(top: Path) -> None:
            write(top, "d/deep/file", b"same")

        stage.make("middle", "base", recreate)
        key = stage.active("middle", bring_back)
        assert stage.listed(key, "middle") == [("C", b"d"), ("C", b"d/deep"), ("A", b"d/deep/file")]
        self.reproduces(stage, key, "middle")

    def test_types_replace_each_other(self, stage: Stage) -> None:
        def base(top: Path) -> None:
            for name in ("file-dir", "file-link"):
                write(top, name)
            for name in ("dir-file", "dir-link"):
                write(top, f"{name}/inside/deep")
            for name in ("link-dir", "link-file"):
                os.symlink("nowhere", top / name)

        def change(top: Path) -> None:
            for entry in list(top.iterdir()):
                remove_tree(entry)
                kind = entry.name.split("-")[1]
                if kind == "dir":
                    write(entry, "inside/new")
                elif kind == "file":
                    write(top, entry.name, b"now a file")
                else:
                    os.symlink("elsewhere", entry)

        stage.make("base", None, base)
        key = stage.active("base", change)
        self.reproduces(stage, key, "base")
        stage.driver.commit("top", key)
        self.reproduces(stage, stage.active("top", lambda top: write(top, "link-dir/inside/more")), "top")

    def test_whiteouts_and_opaque_in_the_layer_table(self, stage: Stage) -> None:
        stage.make("base", None, lambda top: [write(top, f"{name}/{at}") for name in "abc" for at in range(3)])

        def change(top: Path) -> None:
            (top / "a" / "1").unlink()
            remove_tree(top / "b")
            remove_tree(top / "c")
            (top / "c").mkdir()

        key = stage.active("base", change)
        with stage.changes(key) as found:
            table = EntryTable(found.records, found.heap)
            rows = {table.path(entry): entry for entry in table}
        assert rows[b"a/1"].flags == rows[b"b"].flags == FLAG_WHITEOUT
        hidden = [b"c/0", b"c/1", b"c/2"]
        opaque = rows[b"c"].flags & FLAG_OPAQUE
        assert opaque or all(rows[path].flags == FLAG_WHITEOUT for path in hidden)
        assert not (opaque and any(path in rows for path in hidden))
        assert [table.path(entry) for entry in table] == sorted(rows, key=lambda path: path.replace(b"/", b"\0"))
        self.reproduces(stage, key, "base")

    def test_hard_links(self, stage: Stage) -> None:
        def base(top: Path) -> None:
            write(top, "a", b"one inode")
            os.link(top / "a", top / "b")
            (top / "d").mkdir()
            os.link(top / "a", top / "d" / "c")

        def link_new(top: Path) -> None:
            write(top, "z/1", b"new")
            os.link(top / "z" / "1", top / "0")
            os.symlink("x", top / "s1")
            os.link(top / "s1", top / "s2", follow_symlinks=False)

        changes = {
            "new group": link_new,
            "one more name": lambda top: os.link(top / "b", top / "e"),
            "one name less": lambda top: (top / "a").unlink(),
            "content of all": lambda top: write(top, "a", b"changed"),
            "broken": lambda top: [(top / "b").unlink(), write(top, "b", b"one inode")],
            "joined": lambda top: [(top / "b").unlink(), write(top, "x"), os.link(top / "x", top / "b")],
        }
        key = stage.active(None, base)
        self.reproduces(stage, key, None)
        stage.driver.commit("base", key)
        for name, change in changes.items():
            if name not in self.unreliable_link_changes:
                self.reproduces(stage, stage.active("base", change), "base")

    def test_xattrs_and_capabilities(self, stage: Stage) -> None:
        capability = bytes.fromhex("0100000200200000000000000000000000000000")  # cap_net_raw=ep, version 2

        def fill(top: Path) -> None:
            write(top, "ping")
            os.setxattr(top / "ping", "security.capability", capability)
            os.setxattr(top / "ping", "user.note", b"\0binary\xff")
            write(top, "d/f")
            os.setxattr(top / "d", "trusted.mark", b"on a directory")

        key = stage.active(None, fill)
        self.reproduces(stage, key, None)
        stage.driver.commit("base", key)
        child = stage.active("base", lambda top: os.setxattr(top / "ping", "user.note", b"other"))
        with stage.mounted(child) as top:
            assert os.getxattr(top / "ping", "security.capability") == capability
        assert stage.listed(child, "base") == [("C", b"ping")]
        self.reproduces(stage, child, "base")
        self.reproduces(stage, stage.active("base", lambda top: os.removexattr(top / "d", "trusted.mark")), "base")

    def test_devices_and_fifos(self, stage: Stage) -> None:
        def fill(top: Path) -> None:
            os.mknod(top / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
            os.mknod(top / "disk", stat.S_IFBLK | 0o660, os.makedev(259, 70_000))
            os.mkfifo(top / "fifo", 0o600)

        def change(top: Path) -> None:
            (top / "null").unlink()
            os.mknod(top / "null", stat.S_IFCHR | 0o666, os.makedev(1, 5))
            with socket.socket(socket.AF_UNIX) as unix:
                here = os.open(top, os.O_RDONLY)
                unix.bind(f"/proc/self/fd/{here}/socket")
                os.close(here)

        key = stage.active(None, fill)
        self.reproduces(stage, key, None)
        stage.driver.commit("base", key)
        child = stage.active("base", change)
        assert stage.listed(child, "base") == [("C", b"null")]  # a socket means nothing once its server is gone

    def test_strange_names(self, stage: Stage) -> None:
        longest = b"a" * self.longest_name
        names = [b"\xff\xfe", b"line\nbreak", b" ", longest, b"-rf", b"\xe2\x82", b"back\\slash", b"comma,colon:"]

        def fill(top: Path) -> None:
            for name in names:
                write(top, name + b"/" + name, name)
                os.symlink(name, os.fsencode(top) + b"/to-" + name[:200])

        key = stage.active(None, fill)
        self.reproduces(stage, key, None)
        stage.driver.commit("base", key)
        child = stage.active("base", lambda top: [os.unlink(os.fsencode(top) + b"/%b/%b" % (n, n)) for n in names])
        assert {line for line in stage.listed(child, "base") if line[0] == "D"} == {("D", n + b"/" + n) for n in names}
        self.reproduces(stage, child, "base")

    def test_an_acl_is_one_attribute(self, stage: Stage) -> None:
        """xfs lists an ACL twice, once as `trusted.SGI_ACL_FILE`, which no layer may carry to another file system."""
        acl = b"\2\0\0\0" + b"".join(
            struct.pack("<HHI", tag, bits, who)
            for tag, bits, who in ((1, 6, NOBODY), (2, 4, 1234), (4, 4, NOBODY), (16, 6, NOBODY), (32, 0, NOBODY))
        )

        def fill(top: Path) -> None:
            write(top, "file")
            try:
                os.setxattr(top / "file", "system.posix_acl_access", acl)
            except OSError as error:
                if error.errno != errno.EOPNOTSUPP:
                    raise
                pytest.skip("the file system has no ACLs")

        key = stage.active(None, fill)
        layer = stage.layer_of(key)
        [found] = [entry for entry in layer.table if layer.table.path(entry) == b"file"]
        assert set(layer.table.xattrs(found)) == {b"system.posix_acl_access"}
        self.reproduces(stage, key, None)
