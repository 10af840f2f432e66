"""Layers that others wrote: implicit directories, whiteouts as tars spell them, times, and random trees."""

from __future__ import annotations

import io
import os
import random
import stat
import tarfile
from pathlib import Path

import pytest

from pylayers.store.layer import Layer
from tests.conformance.content_suite import ContentSuite
from tests.conformance.stage import Stage, describe, remove_tree, scanned, write


class ForeignSuite(ContentSuite):
    """Apply tars that pylayers did not write, and changes that chance made."""

    def tar(self, stage: Stage, *members: tuple[str, bytes | None]) -> Layer:
        """Write a tar with only these members; None content is a directory."""
        path = stage.scratch / f"{stage.fresh('foreign')}.tar"
        with tarfile.open(path, "w") as out:
            for name, content in members:
                member = tarfile.TarInfo(name)
                member.mode = 0o640
                member.mtime = 1_000_000_000
                if content is None:
                    member.type, member.mode = tarfile.DIRTYPE, 0o711
                else:
                    member.size = len(content)
                out.addfile(member, io.BytesIO(content or b""))
        return scanned(path)

    def test_implicit_directories_keep_the_parents_metadata(self, stage: Stage) -> None:
        def base(top: Path) -> None:
            write(top, "usr/local/old")
            (top / "usr").chmod(0o700)
            os.chown(top / "usr" / "local", 9, 10)
            os.setxattr(top / "usr", "user.note", b"kept")
            top.chmod(0o751)

        stage.make("base", None, base)
        stage.make("middle", "base", lambda top: write(top, "other"))
        key = stage.apply_to_sibling(self.tar(stage, ("usr/local/new", b"n"), ("opt/app/file", b"f")), "middle")
        with stage.mounted(key) as top:
            assert stat.S_IMODE(os.stat(top).st_mode) == 0o751
            assert stat.S_IMODE(os.stat(top / "usr").st_mode) == 0o700
            assert os.getxattr(top / "usr", "user.note") == b"kept"
            assert (os.stat(top / "usr/local").st_uid, os.stat(top / "usr/local").st_gid) == (9, 10)
            assert (top / "usr/local/old").exists()
            assert (top / "usr/local/new").read_bytes() == b"n"
            assert stat.S_IMODE(os.stat(top / "opt/app").st_mode) == 0o755
        self.reproduces(stage, key, "middle")

    def test_whiteouts_as_tars_spell_them(self, stage: Stage) -> None:
        stage.make("base", None, lambda top: [write(top, f"{name}/{at}") for name in "abc" for at in range(3)])
        layer = self.tar(
            stage,
            ("a/.wh.1", b""),
            (".wh.b", b""),
            ("c", None),
            ("c/.wh..wh..opq", b""),
            ("c/new", b"n"),
            (".wh.no", b""),
        )
        key = stage.apply_to_sibling(layer, "base")
        with stage.mounted(key) as top:
            assert sorted(os.listdir(top)) == ["a", "c"]
            assert sorted(os.listdir(top / "a")) == ["0", "2"]
            assert os.listdir(top / "c") == ["new"]
        lines = stage.listed(key, "base")
        assert {line for line in lines if line[0] != "C"} == {
            ("D", b"a/1"), ("D", b"b"), ("D", b"c/0"), ("D", b"c/1"), ("D", b"c/2"), ("A", b"c/new"),
        }  # fmt: skip
        self.reproduces(stage, key, "base")

    def test_whiteouts_in_a_lowest_layer_hide_nothing(self, stage: Stage) -> None:
        key = stage.apply_to_sibling(self.tar(stage, ("d/.wh.x", b""), ("d/y", b"y"), (".wh.z", b"")), None)
        with stage.mounted(key) as top:
            assert os.listdir(top) == ["d"]
            assert os.listdir(top / "d") == ["y"]
        stage.driver.commit("base", key)
        with stage.viewed("base") as top:
            assert os.listdir(top / "d") == ["y"]

    def test_same_size_and_time_as_a_tar_gave(self, stage: Stage) -> None:
        """A tar's times are whole seconds: a rewritten file whose time was set back must still be seen."""
        first = stage.apply_to_sibling(self.tar(stage, ("etc/conf", b"old"), ("etc/other", b"abc")), None)
        stage.driver.commit("base", first)
        second = stage.apply_to_sibling(self.tar(stage, ("etc/conf", b"new"), ("etc/other", b"abc")), "base")
        assert ("C", b"etc/conf") in stage.listed(second, "base")
        assert ("C", b"etc/other") not in stage.listed(second, "base")
        self.reproduces(stage, second, "base")

    @pytest.mark.parametrize("seed", range(4))
    def test_random_changes_are_reproduced(self, stage: Stage, seed: int) -> None:
        chance = random.Random(seed)
        key = stage.active(None, lambda top: [mutate(chance, top) for _ in range(60)])
        self.reproduces(stage, key, None)
        stage.driver.commit("n0", key)
        for depth in range(1, 4):
            key = stage.active(f"n{depth - 1}", lambda top: [mutate(chance, top) for _ in range(25)])
            self.reproduces(stage, key, f"n{depth - 1}")
            with stage.mounted(key) as top:
                seen = describe(stage.table(top))
            stage.driver.commit(f"n{depth}", key)
            assert describe(stage.table_of(f"n{depth}")) == seen

    def test_changes_over_applied_layers(self, stage: Stage) -> None:
        """Images are layers that were applied; what a container changes over them is found all the same."""
        first = self.tar(stage, ("etc", None), ("etc/a", b"a"), ("etc/b", b"b"), ("var/lib/c", b"c"))
        second = self.tar(stage, ("etc/.wh.a", b""), ("etc/d", b"d"), ("opt/.wh..wh..opq", b""), ("opt/e", b"e"))
        base = stage.apply_to_sibling(first, None)
        stage.driver.commit("image-1", base)
        middle = stage.apply_to_sibling(second, "image-1")
        stage.driver.commit("image-2", middle)

        def change(top: Path) -> None:
            assert sorted(path.name for path in (top / "etc").iterdir()) == ["b", "d"]
            (top / "etc/b").unlink()
            write(top, "etc/d", b"changed")
            remove_tree(top / "opt")
            write(top, "var/lib/new")

        key = stage.active("image-2", change)
        assert stage.listed(key, "image-2") == [
            ("C", b"etc"), ("D", b"etc/b"), ("C", b"etc/d"), ("D", b"opt"), ("C", b"var"), ("C", b"var/lib"),
            ("A", b"var/lib/new"),
        ]  # fmt: skip
        self.reproduces(stage, key, "image-2")

    def test_two_layers_on_one_snapshot(self, stage: Stage) -> None:
        """An active snapshot takes layer after layer, and writes before and after them."""
        first = self.tar(stage, ("a", b"1"), ("b", b"1"), ("d", None), ("d/x", b"1"))
        second = self.tar(stage, ("a", b"2"), (".wh.b", b""), ("d/.wh..wh..opq", b""), ("d/y", b"2"))
        stage.make("base", None, lambda top: write(top, "d/below"))
        for written_first in (False, True):
            key = stage.fresh("stacked")
            stage.driver.prepare(key, "base")
            if written_first:
                stage.change(key, lambda top: write(top, "b", b"0"))
            stage.driver.apply(key, first)
            stage.driver.apply(key, second)
            stage.change(key, lambda top: write(top, "z"))
            self.reproduces(stage, key, "base")
            name = stage.fresh("done")
            stage.driver.commit(name, key)
            with stage.viewed(name) as top:
                assert sorted(path.name for path in top.iterdir()) == ["a", "d", "z"]
                assert (top / "a").read_bytes() == b"2"
                assert [path.name for path in (top / "d").iterdir()] == ["y"]


def mutate(chance: random.Random, top: Path) -> None:
    """Do one random thing to a tree."""
    directories = [top, *(path for path in sorted(top.rglob("*")) if path.is_dir() and not path.is_symlink())]
    entries = sorted(top.rglob("*"))
    place = chance.choice(directories) / chance.choice("abcdef")
    victim = chance.choice(entries) if entries else None
    action = chance.randrange(9)
    if action <= 2 and not os.path.lexists(place):
        write(top, str(place.relative_to(top)), chance.randbytes(chance.randrange(200)))
    elif action == 3 and not os.path.lexists(place):
        place.mkdir()
    elif action == 4 and not os.path.lexists(place):
        os.symlink(chance.choice(("a", "../b", "/c")), place)
    elif action == 5 and victim is not None:
        remove_tree(victim)
    elif action == 6 and victim is not None and not victim.is_symlink():
        victim.chmod(chance.choice((0o600, 0o755, 0o4711)))
    elif action == 7 and victim is not None and victim.is_file() and not os.path.lexists(place):
        os.link(victim, place, follow_symlinks=False)
    elif action == 8 and victim is not None:
        remove_tree(victim)
        if not os.path.lexists(victim):
            write(top, str(victim.relative_to(top)) + chance.choice(("", "/again")), b"recreated")
