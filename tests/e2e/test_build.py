"""Builds that only copy: no root, no runtime, real files and a real store."""

from __future__ import annotations

import bz2
import gc
import gzip
import io
import json
import lzma
import os
import shutil
import stat
from pathlib import Path

import pytest
import zstandard

from pylayers.build.copy.destination import Ownership
from pylayers.build.copy.rows import LayerRows
from pylayers.build.source.local import LocalTree
from pylayers.engine import Engine
from pylayers.errors import IntegrityError, InvalidInput, NotFound
from tests.e2e.build_case import BASE, content, leftovers, make_tar, members, open_with_base, settle, statuses, write


@pytest.fixture
def context(tmp_path: Path) -> Path:
    directory = tmp_path / "context"
    directory.mkdir()
    return directory


@pytest.mark.parametrize(
    "compress",
    [bytes, gzip.compress, lzma.compress, bz2.compress, zstandard.ZstdCompressor().compress],
    ids=["plain", "gzip", "xz", "bzip2", "zstd"],
)
@pytest.mark.parametrize("stream", [False, True], ids=["file", "stream"])
def test_imports_every_compression_to_the_same_image(tmp_path: Path, compress, stream) -> None:
    packed = compress(make_tar())
    (tmp_path / "rootfs").write_bytes(packed)
    with Engine.open(tmp_path / "root") as engine:
        plain = engine.images.import_(io.BytesIO(make_tar()), "x", message="same")
        image = engine.images.import_(
            io.BytesIO(packed) if stream else tmp_path / "rootfs", "Rootfs".lower(), message="same"
        )
        assert image.config.diff_ids == plain.config.diff_ids
        assert Path(engine.store.layers.open(image.config.diff_ids[0]).tar_path).read_bytes() == make_tar()


@pytest.mark.parametrize(
    "compress", [gzip.compress, lzma.compress, bz2.compress, zstandard.ZstdCompressor(write_checksum=True).compress]
)
@pytest.mark.parametrize("damage", ["cut", "flip"])
def test_refuses_damaged_archives(tmp_path: Path, compress, damage) -> None:
    packed = bytearray(compress(make_tar() + os.urandom(4096) + bytes(10240)))
    if damage == "cut":
        del packed[len(packed) // 2 :]
    else:
        for at in range(len(packed) // 2, len(packed) // 2 + 64):
            packed[at] ^= 0xFF
    with Engine.open(tmp_path / "root") as engine:
        with pytest.raises(IntegrityError):
            engine.images.import_(io.BytesIO(bytes(packed)), "x")
        assert list(engine.store.layers.walk()) == []
        assert leftovers(engine.root) == []


def test_refuses_what_is_no_archive(tmp_path: Path) -> None:
    with Engine.open(tmp_path / "root") as engine, pytest.raises(InvalidInput, match="neither a tar"):
        engine.images.import_(io.BytesIO(b"#!/bin/sh\n" * 100), "x")


def test_shares_steps_and_reuses_everything(engine: Engine, context: Path) -> None:
    write(context, {"a": "1", "b": "2", "Dockerfile": "FROM base\nCOPY a /a\nCOPY b /b\nENV X=1\n"})
    first = engine.build(context, references=["one"])
    assert statuses(first) == ["FROM cached", "COPY built", "COPY built", "ENV built"]
    again = engine.build(context, references=["one"])
    assert statuses(again) == ["FROM cached", "COPY cached", "COPY cached", "ENV cached"]
    assert again.image_digest == first.image_digest
    write(context, {"Second": "FROM base\nCOPY a /a\nCOPY a /b\nENV X=1\n"})
    second = engine.build(context, dockerfile=context / "Second")
    assert statuses(second) == ["FROM cached", "COPY cached", "COPY built", "ENV built"]
    assert second.diff_ids[:2] == first.diff_ids[:2]


def test_builds_a_file_and_names_the_base_in_any_case(engine: Engine, context: Path) -> None:
    write(context, {"a": "1", "Dockerfile.other": "FROM Base\nCOPY a /\n"})
    result = engine.build(context / "Dockerfile.other")
    assert content(engine, result, "a") == b"1"
    assert any("lowercase" in warning.message.lower() or "lower" in warning.message for warning in result.warnings)


def test_equal_inputs_give_equal_digests(tmp_path: Path, context: Path) -> None:
    write(context, {"d/a": "1", "d/b": "2", "Dockerfile": "FROM base\nCOPY d /d\nWORKDIR /w\nCMD sh\n"})
    digests = set()
    for name in ("one", "two"):
        with open_with_base(tmp_path / name) as engine:
            digests.add(engine.build(context).image_digest)
    assert len(digests) == 1


def test_skips_unused_stages_and_copies_between_stages(engine: Engine, context: Path) -> None:
    write(
        context,
        {
            "a": "1",
            "Dockerfile": "FROM base AS Unused\nCOPY missing /\nFROM base AS src\nCOPY --chown=app:staff a /x/y\n"
            "FROM scratch\nCOPY --from=src /x /copied\nCOPY --from=1 /x/y /by-number\nCOPY --from=base /etc/passwd /p\n",  # noqa: E501
        },
    )
    result = engine.build(context)
    assert "COPY missing" not in {step.step.instruction for step in result.steps}
    assert (members(engine, result, 0)["copied/y"].uid, members(engine, result, 0)["copied/y"].gid) == (1000, 50)
    assert members(engine, result, 1)["by-number"].uid == 1000
    assert content(engine, result, "p", 2) == BASE[1][1]


def test_a_stage_name_means_the_last_of_the_file(engine: Engine, context: Path) -> None:
    """As in BuildKit: of two stages of one name COPY --from means the later, which must stand above."""
    again = "FROM scratch AS s\nCOPY a /f\nFROM scratch AS s\nCOPY b /f\n"
    write(context, {"a": "1", "b": "2", "Dockerfile": again + "FROM scratch\nCOPY --from=s /f /two\n"})
    assert content(engine, engine.build(context), "two") == b"2"
    above = "FROM scratch AS s\nCOPY a /f\nFROM scratch AS mid\nCOPY --from=s /f /f\nFROM scratch AS s\nCOPY b /f\n"
    write(context, {"Dockerfile": above + "FROM mid\n"})
    with pytest.raises(InvalidInput, match='cannot copy from stage "s"'):
        engine.build(context)


@pytest.mark.parametrize(
    ("flags", "owner", "mode"),
    [
        ("", (0, 0), 0o640),
        ("--chown=app", (1000, 1001), 0o640),
        ("--chown=app:staff", (1000, 50), 0o640),
        ("--chown=5", (5, 5), 0o640),
        ("--chown=5:6", (5, 6), 0o640),
        ("--chown=:staff", (0, 50), 0o640),
        ("--chmod=4755", (0, 0), 0o4755),
    ],
)
def test_owner_and_mode(engine: Engine, context: Path, flags, owner, mode) -> None:
    write(context, {"a": "1", "Dockerfile": f"FROM base\nCOPY {flags} a /new/a\n"})
    (context / "a").chmod(0o640)
    made = members(engine, engine.build(context))
    assert ((made["new/a"].uid, made["new/a"].gid), made["new/a"].mode) == (owner, mode)
    assert (made["new"].uid, made["new"].gid, made["new"].mode) == (*owner, 0o755)


@pytest.mark.parametrize("line", ["COPY --chmod=u=7 a /", "COPY --chmod=9 a /", "COPY --chmod=17777 a /"])
def test_refuses_bad_owner_and_mode(engine: Engine, context: Path, line) -> None:
    write(context, {"a": "1", "Dockerfile": f"FROM base\n\n{line}\n"})
    with pytest.raises((InvalidInput, NotFound), match="Dockerfile:3"):
        engine.build(context)
    assert leftovers(engine.root) == []


def test_globs_and_directories(engine: Engine, context: Path) -> None:
    write(
        context, {"x1": "1", "x2": "2", "y": "3", "d/e/f": "4", "Dockerfile": "FROM base\nCOPY x* /all/\nCOPY d /opt\n"}
    )
    os.chmod(context / "d", 0o700)
    result = engine.build(context)
    assert set(members(engine, result, 1)) == {"all", "all/x1", "all/x2"}
    made = members(engine, result, 2)
    assert set(made) == {"opt", "opt/e", "opt/e/f"}
    assert (made["opt"].mode, made["opt"].uid, made["opt"].gid, made["opt"].mtime) == (0o750, 7, 8, 1_600_000_000)


def test_follows_links_in_the_destination(engine: Engine, context: Path) -> None:
    write(context, {"a": "1", "d/b": "2", "Dockerfile": "FROM base\nCOPY a /lib/a\nCOPY d /lib/\nCOPY a /lib/n/\n"})
    result = engine.build(context)
    assert [set(members(engine, result, layer)) for layer in (1, 2, 3)] == [
        {"usr", "usr/lib", "usr/lib/a"},
        {"usr", "usr/lib", "usr/lib/b"},
        {"usr", "usr/lib", "usr/lib/n", "usr/lib/n/a"},
    ]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("COPY d /etc/passwd", "non-directory"),
        ("COPY d /", "non-directory"),
        ("COPY etc /etcfile", None),
        ("COPY a /etc/passwd/", "not a directory"),
        ("COPY a /etc/passwd/x", "not a directory"),
        ("COPY nothing /", "not found"),
        ("COPY out/passwd /", "not found"),
        ("COPY dangling /", "not found"),
        ("COPY --from=nowhere a /", "nowhere"),
        ("COPY --from=base /nothing /", "not found"),
    ],
)
def test_refuses_what_does_not_fit(engine: Engine, context: Path, line, message) -> None:
    write(context, {"a": "1", "d/lib/x": "2", "etc": "file", "Dockerfile": f"FROM base\n{line}\n"})
    (context / "out").symlink_to("/etc")
    (context / "dangling").symlink_to("nowhere/at/all")
    before = set(engine.store.layers.walk())
    if message is None:
        engine.build(context)
        return
    with pytest.raises((InvalidInput, NotFound), match=message) as raised:
        engine.build(context)
    assert "Dockerfile:2" in str(raised.value)
    assert set(engine.store.layers.walk()) == before
    assert leftovers(engine.root) == []


def test_copies_a_whole_context_to_the_root_of_scratch(engine: Engine, context: Path) -> None:
    write(context, {"a": "1", "d/b": "2", "Dockerfile": "FROM scratch\nCOPY . /\nCOPY --from=base / /\nCOPY a d /\n"})
    result = engine.build(context)
    assert set(members(engine, result, 0)) >= {"a", "d", "d/b", "Dockerfile"}
    assert set(members(engine, result, 1)) >= {"etc/passwd", "lib", "usr/lib"}
    assert set(members(engine, result, 2)) >= {"a", "b"}


def test_a_later_source_covers_an_earlier_one(engine: Engine, context: Path) -> None:
    write(context, {"p/x": "1", "p/y": "2", "q/x": "3", "Dockerfile": "FROM base\nCOPY p q /d/\n"})
    result = engine.build(context)
    assert (content(engine, result, "d/x"), content(engine, result, "d/y")) == (b"3", b"2")
    assert statuses(engine.build(context))[-1] == "COPY cached"


def test_the_same_source_twice(engine: Engine, context: Path) -> None:
    write(context, {"x": "1", "Dockerfile": "FROM base\nCOPY x x /d/\n"})
    engine.build(context)
    assert statuses(engine.build(context))[-1] == "COPY cached"


def test_hard_links_stay_links_or_become_files(engine: Engine, context: Path) -> None:
    write(context, {"d/a": "content", "Dockerfile": "FROM scratch AS s\nCOPY d /d\nFROM scratch\nCOPY --from=s /d /d\n"
                    "COPY --from=s /d/b /alone\n"})  # fmt: skip
    os.link(context / "d/a", context / "d/b")
    os.link(context / "d/a", context / "d/c")
    result = engine.build(context)
    made = members(engine, result, 0)
    assert made["d/a"].isreg()
    assert [(made[name].islnk(), made[name].linkname) for name in ("d/b", "d/c")] == [(True, "d/a")] * 2
    assert content(engine, result, "alone", 1) == b"content"
    assert statuses(engine.build(context, target="s")) == ["FROM cached", "COPY cached"]


def test_odd_names_and_times(engine: Engine, context: Path) -> None:
    name = os.fsdecode(b"caf\xe9 \n")
    write(context, {f"{name}/{name}": "1", "Dockerfile": "FROM scratch\nCOPY caf* /d/\nCOPY . /all\n"})
    os.utime(context / name / name, ns=(0, -1_500_000_000))
    engine.build(context)
    result = engine.build(context)
    assert statuses(result)[1:] == ["COPY cached", "COPY cached"]


def test_workdir_makes_its_directory(engine: Engine, context: Path) -> None:
    write(context, {"a": "1", "Dockerfile": "FROM base\nUSER app\nWORKDIR /srv/x\nWORKDIR y\nCOPY a .\nWORKDIR /etc\n"})
    result = engine.build(context)
    made = members(engine, result, 1)
    assert {name: (made[name].uid, made[name].gid, made[name].mode) for name in made} == {
        "srv": (1000, 1001, 0o755),
        "srv/x": (1000, 1001, 0o755),
    }
    assert "srv/x/y/a" in members(engine, result, 3)
    assert len(result.diff_ids) == 4
    assert engine.images.get(result.image_digest).config.config.working_dir == "/etc"


def test_arguments_and_environment(engine: Engine, context: Path) -> None:
    write(
        context,
        {
            "f-one": "1",
            "Dockerfile": "ARG BASE=nowhere\nARG WHO=one\nFROM $BASE\nARG WHO\nARG OTHER=${WHO}x\nENV PLACE=/p/$OTHER\n"
            "COPY f-$WHO ${PLACE}/\nLABEL l=$PLACE\n",
        },
    )
    result = engine.build(context, arguments={"BASE": "base"})
    assert "p/onex/f-one" in members(engine, result)
    config = engine.images.get(result.image_digest).config.config
    assert config.labels["l"] == "/p/onex"
    assert "PLACE=/p/onex" in config.env
    assert not any(entry.startswith("WHO=") for entry in config.env)


def test_triggers_run_in_the_next_build_only(engine: Engine, context: Path) -> None:
    write(context, {"a": "1", "Dockerfile": "FROM base\nONBUILD COPY a /t\nONBUILD ENV T=1\n"})
    engine.build(context, references=["parent"])
    write(context, {"Child": "FROM parent\nLABEL x=1\n", "GrandChild": "FROM child\n"})
    child = engine.build(context, dockerfile=context / "Child", references=["child"])
    assert [line.split()[0] for line in statuses(child)] == ["FROM", "COPY", "ENV", "LABEL"]
    assert content(engine, child, "t") == b"1"
    grandchild = engine.build(context, dockerfile=context / "GrandChild")
    assert statuses(grandchild) == ["FROM cached"]
    assert grandchild.diff_ids == child.diff_ids


def test_ignore_rules(engine: Engine, context: Path) -> None:
    files = {"a.log": "1", "keep/x.log": "2", "keep/y": "3", "deep/in/z": "4", "deep/in/keep": "5", "hollow/q": "6"}
    write(
        context,
        {**files, "Dockerfile": "FROM base\nCOPY . /c/\n", ".dockerignore": "*.log\ndeep\n!deep/in/keep\nhollow/*\n"},
    )
    result = engine.build(context)
    assert {name for name in members(engine, result) if name.startswith("c/")} == {
        "c/.dockerignore", "c/Dockerfile", "c/keep", "c/keep/x.log", "c/keep/y", "c/deep", "c/deep/in", "c/deep/in/keep",  # noqa: E501
        "c/hollow",
    }  # fmt: skip
    write(context, {"Dockerfile.dockerignore": "*\n!a.log\n"})
    result = engine.build(context)
    assert {name for name in members(engine, result) if name.startswith("c/")} == {"c/a.log"}
    write(context, {"Dockerfile": "FROM base\nCOPY keep/y /c/\n"})
    with pytest.raises(NotFound, match=r"dockerignore|not found"):
        engine.build(context)


def test_an_image_id_is_a_base(engine: Engine, context: Path) -> None:
    digits = engine.images.get("base").id.removeprefix("sha256:")
    write(context, {"a": "1", "Dockerfile": f"FROM {digits[:12]}\nCOPY a /\n"})
    assert len(engine.build(context).diff_ids) == 2


def test_a_build_context_and_image_alias(engine: Engine, context: Path, tmp_path: Path) -> None:
    write(tmp_path / "extra", {"e": "1"})
    write(context, {"Dockerfile": "FROM start\nCOPY --from=extra e /e\n"})
    result = engine.build(context, contexts={"extra": str(tmp_path / "extra"), "start": "docker-image://base"})
    assert members(engine, result)["e"].uid == 0


def test_collecting_leaves_nothing(engine: Engine, context: Path) -> None:
    write(context, {"a": "1", "Dockerfile": "FROM base\nCOPY a /\nWORKDIR /x\n"})
    engine.build(context, references=["made"])
    engine.images.remove(["made", "base"])
    engine.system.prune(everything=True)
    assert list(engine.store.layers.walk()) == []
    assert list(engine.store.blobs.walk()) == []
    assert leftovers(engine.root) == []


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_no_space_leaves_nothing_half_made(tmp_path: Path, context: Path) -> None:
    import subprocess

    from pylayers.errors import NoSpace

    root = tmp_path / "small"
    root.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", root], check=True)
    try:
        with open_with_base(root / "data") as engine:
            before = set(engine.store.layers.walk())
            write(context, {"big": os.urandom(12 << 20), "small": "1", "Dockerfile": "FROM base\nCOPY big /\n"})
            with pytest.raises(NoSpace):
                engine.build(context)
            assert set(engine.store.layers.walk()) == before
            assert leftovers(root / "data") == []
            write(context, {"Dockerfile": "FROM base\nCOPY small /\n"})
            assert statuses(engine.build(context))[-1] == "COPY built"
            assert engine.system.check() == []
    finally:
        subprocess.run(["umount", root], check=True)


def test_stored_layers_hold_what_they_say(engine: Engine, context: Path) -> None:
    write(context, {"d/a": os.urandom(100_000), "d/b": "", "Dockerfile": "FROM base\nCOPY d /d\n"})
    (context / "d/l").symlink_to("a")
    settle(context)
    result = engine.build(context, references=["x"])
    assert engine.system.check() == []
    layer = engine.store.layers.open(result.diff_ids[-1])
    modes = {layer.table.path(entry): stat.S_IFMT(entry.mode) for entry in layer.table}
    assert modes[b"d/l"] == stat.S_IFLNK
    config = json.loads(engine.store.blobs.read(result.config_digest, 1 << 20))
    assert config["rootfs"]["diff_ids"] == list(result.diff_ids)
    shutil.rmtree(context)


def test_a_written_layers_rows_are_gone_before_its_key_is_computed(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are as large as the walked table, of which the key's digests make another copy."""
    context = write(tmp_path / "context", {"Dockerfile": "FROM base\nCOPY tree /tree\n", "tree/a": "a"})
    alive: list[int] = []
    digest = LocalTree.digest

    def count(tree: LocalTree, owner: Ownership) -> bytes:
        alive.append(sum(isinstance(one, LayerRows) for one in gc.get_objects()))
        return digest(tree, owner)

    monkeypatch.setattr(LocalTree, "digest", count)
    engine.build(context)
    assert alive == [0]
